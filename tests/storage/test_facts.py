"""What a file is known to be without reading it, and when that is void."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from httpnas.storage import facts
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.errors import StorageBroken
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.records import LARGEST
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.storage.steps import (
    anything,
    append,
    both_kinds,
    opened,
    outcome,
    read,
    remove,
    upload,
)

SHA256, SHA512 = b"\x01" * 32, b"\x02" * 64


def known(storage: Storage, name: bytes) -> Facts:
    file = opened(storage, name)
    try:
        return storage.recall(file)
    finally:
        file.close()


def version_of(storage: Storage, name: bytes) -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def upload_with(storage: Storage, name: bytes, content: bytes, **digests: bytes) -> Version:
    """Upload *content*, with digests that are known already."""
    pending = storage.begin_upload(name, anything)
    try:
        pending.write([content])
        return pending.publish(anything, digests=digests)
    finally:
        pending.close()


def write_record(storage: Storage, name: bytes, record: bytes) -> None:
    file = opened(storage, name)
    storage.records.write(file.fd, "facts", record)
    file.close()


# What is known


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", 0),
        (b"no end", 0),
        (b"\n", 1),
        (b"a\nb", 1),
        (b"a\r\nb\n\n", 3),
        (b"\n" * 99999, 99999),
    ],
)
def test_the_lines_of_an_upload_are_known(storage: Storage, content: bytes, lines: int) -> None:
    upload(storage, b"d/f", content)
    assert known(storage, b"d/f") == Facts(lines)


def test_the_digests_that_an_upload_came_with_are_known(storage: Storage) -> None:
    digests = {"sha-256": SHA256, "sha-512": SHA512, "md5": b"\x03" * 16}
    upload_with(storage, b"f", b"a\n", **digests)
    assert known(storage, b"f") == Facts(1, digests)


@both_kinds
def test_a_new_content_has_facts_of_its_own(storage: Storage) -> None:
    upload_with(storage, b"f", b"a\nb\n", **{"sha-256": SHA256})
    upload(storage, b"f", b"c\n")
    assert known(storage, b"f") == Facts(1)


@pytest.mark.parametrize("size", [100, IN_MEMORY + 100], ids=["in memory", "in a temporary"])
def test_an_append_adds_its_lines_and_voids_the_digests(storage: Storage, size: int) -> None:
    upload_with(storage, b"f", b"a\nb", **{"sha-256": SHA256})
    lines = 1
    for number in range(3):
        pending = storage.begin_append(b"f", anything)
        assert isinstance(pending, Append)
        pending.write([b"\n", b"x" * size])
        pending.write([b"\n\n" * number])
        pending.commit()
        pending.close()
        lines += 1 + 2 * number
        assert known(storage, b"f") == Facts(lines)
    assert read(storage, b"f").count(b"\n") == lines


def test_an_append_of_nothing_leaves_what_is_known(storage: Storage) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    append(storage, b"f", b"")
    assert known(storage, b"f") == Facts(1, {"sha-256": SHA256})


def test_an_append_to_a_file_nobody_has_counted_makes_no_count(
    storage: Storage, root: Path
) -> None:
    (root / "f").write_bytes(b"a\nb\n")
    append(storage, b"f", b"c\n")
    assert known(storage, b"f") == Facts()


@both_kinds
def test_facts_go_with_a_file_that_is_moved(storage: Storage) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    upload(storage, b"d/g", b"1\n2\n3\n")
    storage.move(b"f", b"d/g", anything)
    assert known(storage, b"d/g") == Facts(1, {"sha-256": SHA256})
    storage.move(b"d", b"e", anything)
    assert known(storage, b"e/g") == Facts(1, {"sha-256": SHA256})


def test_a_version_that_was_opened_before_has_no_facts_of_a_later_one(storage: Storage) -> None:
    upload(storage, b"f", b"a\n")
    file = opened(storage, b"f")
    append(storage, b"f", b"b\n")
    assert storage.recall(file) == Facts()
    file.close()


@both_kinds
def test_a_failed_append_leaves_no_wrong_count(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"a\n")
    with pytest.MonkeyPatch.context() as patch:

        def fail(*args: Any) -> None:
            raise OSError(errno.EIO, "broken")

        patch.setattr(storage, "sync", fail)
        assert isinstance(outcome(lambda: append(storage, b"f", b"b\nc\n")), Exception)
    assert known(storage, b"f").lines in (1, None)
    append(storage, b"f", b"d\n")
    assert known(storage, b"f").lines in (2, None)


# Behind the daemon's back


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def _write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\n")


def _replace(path: Path) -> None:
    """Put a copy with all attributes in its place, as ``cp -a`` and ``mv`` do."""
    shutil.copy2(path, path.with_suffix(".new"))
    os.rename(path.with_suffix(".new"), path)


def _touch(path: Path) -> None:
    os.utime(path)


CHANGES: list[Callable[[Path], None]] = [
    _append,
    _write,
    _replace,
    _touch,
    lambda path: os.truncate(path, 2),
    lambda path: os.truncate(path, 0),
]


@both_kinds
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_others_voids_what_is_known(
    storage: Storage, root: Path, change: Callable[[Path], None]
) -> None:
    upload_with(storage, b"f", b"a\nb\n", **{"sha-256": SHA256})
    assert known(storage, b"f") != Facts()
    change(root / "f")
    assert known(storage, b"f") == Facts()
    append(storage, b"f", b"c\n")
    assert known(storage, b"f") == Facts()


# Remembering what was found out


def test_what_is_remembered_is_joined_to_what_is_known(storage: Storage) -> None:
    version = upload(storage, b"f", b"a\n")
    storage.remember(b"f", version, Facts(digests={"sha-256": SHA256}))
    assert known(storage, b"f") == Facts(1, {"sha-256": SHA256})
    storage.remember(b"f", version, Facts(digests={"sha-512": SHA512}))
    assert known(storage, b"f") == Facts(1, {"sha-256": SHA256, "sha-512": SHA512})
    storage.remember(b"f", version, Facts(7, {"sha-256": b"new"}))
    assert known(storage, b"f") == Facts(7, {"sha-256": b"new", "sha-512": SHA512})


def test_what_is_remembered_of_a_file_of_others_is_known(storage: Storage, root: Path) -> None:
    (root / "f").write_bytes(b"a\nb\n")
    storage.remember(b"f", version_of(storage, b"f"), Facts(2))
    assert known(storage, b"f") == Facts(2)
    append(storage, b"f", b"c\n")
    assert known(storage, b"f") == Facts(3)


def test_nothing_is_remembered_of_a_version_that_is_not_there_any_more(
    storage: Storage, root: Path
) -> None:
    for number, change in enumerate(
        [
            lambda name: append(storage, name, b"b\nc\n"),
            lambda name: upload(storage, name, b"b\nc\n\n"),
            lambda name: (root / name.decode()).write_bytes(b"\n\n\n"),
        ]
    ):
        name = b"f%d" % number
        version = upload(storage, name, b"a\n")
        change(name)
        before = known(storage, name)
        storage.remember(name, version, Facts(99, {"sha-256": SHA256}))
        assert known(storage, name) == before


def test_facts_of_another_version_are_not_joined(storage: Storage, root: Path) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    _append(root / "f")
    storage.remember(b"f", version_of(storage, b"f"), Facts(2))
    assert known(storage, b"f") == Facts(2)


def test_what_has_gone_is_not_remembered_and_no_error(storage: Storage, root: Path) -> None:
    upload(storage, b"d/f", b"a\n")
    version = version_of(storage, b"d/f")
    found = Facts(1)
    for vanish in [
        lambda: remove(storage, b"d/f"),
        (root / "d/f").mkdir,
        (root / "d/f").rmdir,
        lambda: os.symlink("target", root / "d/f"),
        lambda: os.unlink(root / "d/f"),
        lambda: os.mkfifo(root / "d/f"),
        lambda: shutil.rmtree(root / "d"),
        (root / "d").touch,
    ]:
        vanish()
        storage.remember(b"d/f", version, found)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_where_nothing_can_be_written_nothing_is_remembered(
    kind: str, storage: Storage, code: int
) -> None:
    version = upload(storage, b"f", b"a\n")
    with pytest.MonkeyPatch.context() as patch:

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(code, os.strerror(code))

        patch.setattr(os, "setxattr" if kind == "xattrs" else "rename", fail)
        storage.remember(b"f", version, Facts(digests={"sha-256": SHA256}))
    assert known(storage, b"f") == Facts(1)


@both_kinds
@pytest.mark.parametrize("folder", ["locks", "records"])
def test_without_the_daemons_own_folders_nothing_is_remembered(
    storage: Storage, root: Path, folder: str
) -> None:
    version = upload(storage, b"f", b"a\n")
    shutil.rmtree(root / ".httpnas" / folder)
    storage.remember(b"f", version, Facts(digests={"sha-256": SHA256}))
    assert read(storage, b"f") == b"a\n"


def test_a_file_that_can_not_be_opened_any_more_is_no_error(storage: Storage) -> None:
    version = upload(storage, b"f", b"a\n")
    real = os.open
    with pytest.MonkeyPatch.context() as patch:

        def fail(path: Any, *args: Any, **kwargs: Any) -> int:
            if path == b"f":
                raise OSError(errno.EACCES, "may not")
            return real(path, *args, **kwargs)

        patch.setattr(os, "open", fail)
        storage.remember(b"f", version, Facts(9))
    assert known(storage, b"f") == Facts(1)


# Records that are none


DAMAGED = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"7",
    b"{}",
    b"[" * 2000,
    b'{"version":' * 150,
    b'{"version": "%s"}',
    b'{"version": "%s", "lines": 7}',
    b'{"version": "%s", "lines": 7, "digests": []}',
    b'{"version": "%s", "lines": 7, "digests": null}',
    b'{"version": "%s", "lines": 7, "digests": {"sha-256": 1}}',
    b'{"version": "%s", "lines": 7, "digests": {"sha-256": "xx"}}',
    b'{"version": "%s", "lines": 7, "digests": {}',
    b'{"version": "%s", "lines": "7", "digests": {}}',
    b'{"version": "%s", "lines": [], "digests": {}}',
    b'{"version": "%s", "lines": ' + b"7" * 1900 + b"x",
    b'{"version": ["%s"], "lines": 7, "digests": {}}',
    b'{"version": "0-0-0", "lines": 7, "digests": {}}',
]


@pytest.mark.parametrize("record", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_ignored(storage: Storage, record: bytes) -> None:
    version = upload(storage, b"f", b"a\n")
    write_record(storage, b"f", record.replace(b"%s", version.tag.encode()))
    assert known(storage, b"f") == Facts()
    assert append(storage, b"f", b"b\n").size == 4
    assert known(storage, b"f") == Facts()
    version = version_of(storage, b"f")
    write_record(storage, b"f", record.replace(b"%s", version.tag.encode()))
    storage.remember(b"f", version, Facts(2))
    assert known(storage, b"f") == Facts(2)


@settings(max_examples=60, deadline=None)
@given(record=st.one_of(st.binary(max_size=LARGEST), st.text(max_size=500).map(str.encode)))
def test_any_record_can_be_read(record: bytes) -> None:
    class Foreign:
        def read(self, fd: int, kind: str) -> bytes:
            return record

    facts.recall(0, Version(1, 2, 3), Foreign())  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    found=st.builds(
        Facts,
        st.none() | st.integers(0, 2**64),
        st.dictionaries(st.sampled_from(["md5", "sha-256", "sha-512"]), st.binary(max_size=64)),
    )
)
def test_what_was_remembered_is_recalled(found: Facts) -> None:
    class Memory:
        record = b""

        def write(self, fd: int, kind: str, record: bytes) -> None:
            self.record = record

        def read(self, fd: int, kind: str) -> bytes:
            return self.record

    memory, version = Memory(), Version(1, 2, 3)
    facts.remember(0, version, found, memory)  # type: ignore[arg-type]
    assert facts.recall(0, version, memory) == found  # type: ignore[arg-type]
    assert json.loads(memory.record)["version"] == version.tag
    for other in [Version(0, 2, 3), Version(1, 1, 3), Version(1, 2, 1)]:
        assert facts.recall(0, other, memory) == Facts()  # type: ignore[arg-type]


@both_kinds
def test_more_than_a_record_holds_is_not_kept(storage: Storage) -> None:
    version = upload(storage, b"f", b"a\n")
    storage.remember(b"f", version, Facts(digests={"huge": b"x" * LARGEST}))
    assert known(storage, b"f") == Facts(1)


# No room


@pytest.fixture
def no_room(kind: str, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the room away that facts need, and nothing else's; return what was tried in vain."""
    tried: list[str] = []
    real_set, real_open = os.setxattr, os.open

    def setxattr(target: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name.endswith(".facts"):
            tried.append(name)
            raise OSError(errno.ENOSPC, "full")
        real_set(target, name, *args, **kwargs)

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(path, str) and path.endswith(".facts.new"):
            tried.append(path)
            raise OSError(errno.EDQUOT, "full")
        return real_open(path, *args, **kwargs)

    if kind == "xattrs":
        monkeypatch.setattr(os, "setxattr", setxattr)
    else:
        monkeypatch.setattr(os, "open", open_)
    return tried


def test_no_room_for_facts_fails_nothing(storage: Storage, no_room: list[str]) -> None:
    version = upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    assert len(no_room) == 1
    assert known(storage, b"f") == Facts()
    storage.remember(b"f", version, Facts(1))
    assert len(no_room) == 2
    assert append(storage, b"f", b"b\n").size == 4
    assert read(storage, b"f") == b"a\nb\n"


@both_kinds
def test_no_room_for_newer_facts_fails_no_append_and_leaves_no_old_ones(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    no_room = request.getfixturevalue("no_room")
    append(storage, b"f", b"b\n")
    assert len(no_room) == 1
    assert read(storage, b"f") == b"a\nb\n"
    assert known(storage, b"f") == Facts()


def test_a_disk_that_breaks_while_facts_are_written_fails_the_append(
    kind: str, storage: Storage, root: Path
) -> None:
    before = upload(storage, b"f", b"a\n")
    with pytest.MonkeyPatch.context() as patch:
        function = "setxattr" if kind == "xattrs" else "rename"
        real = getattr(os, function)

        def broken(*args: Any, **kwargs: Any) -> Any:
            if str(args[1]).endswith(".facts"):
                raise OSError(errno.EIO, "broken")
            return real(*args, **kwargs)

        patch.setattr(os, function, broken)
        assert isinstance(outcome(lambda: append(storage, b"f", b"b\n")), StorageBroken)
    assert (root / "f").read_bytes() == b"a\n"
    assert version_of(storage, b"f") == before


# Counting


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.text("\n\r\v\f\x85\u2028a", max_size=40).map(str.encode),
        st.integers(0, 9).map(lambda n: b"\n" * n + b"x" * (1 << n)),
    ),
    max_size=6,
)


def test_counts_are_those_of_wc_whatever_the_pieces(storage: Storage, root: Path) -> None:
    @settings(max_examples=50, deadline=None)
    @given(uploaded=PIECES, appended=st.lists(PIECES, max_size=3), spill=st.booleans())
    def check(uploaded: list[bytes], appended: list[list[bytes]], spill: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if spill:
                patch.setattr("httpnas.storage.append.IN_MEMORY", 10)
            upload(storage, b"f", uploaded)
            for pieces in appended:
                pending = storage.begin_append(b"f", anything)
                assert isinstance(pending, Append)
                pending.write(pieces[:2])
                pending.write(pieces[2:])
                pending.commit()
                pending.close()
        whole = b"".join([*uploaded, *(piece for pieces in appended for piece in pieces)])
        counted = subprocess.run(["wc", "-l"], input=whole, capture_output=True, check=True).stdout
        assert (root / "f").read_bytes() == whole
        assert known(storage, b"f").lines == int(counted)

    check()


@given(pieces=PIECES)
def test_newlines_do_not_depend_on_where_the_pieces_end(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert newlines(pieces) == newlines([whole]) == whole.count(b"\n")
    assert newlines([whole[n : n + 1] for n in range(len(whole))]) == whole.count(b"\n")
    assert newlines([bytearray(whole), memoryview(whole)]) == 2 * whole.count(b"\n")
