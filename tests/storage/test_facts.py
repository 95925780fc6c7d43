"""What a file is known to be without reading it, and when that is void."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.errors import StorageBroken
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.record import KEYS, LARGEST, Key, Pending, Record, decode
from httpnas.storage.records import Records
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.private import own
from tests.storage.steps import (
    Faults,
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


def write_record(storage: Storage, root: Path, name: str, record: bytes) -> None:
    """Put *record* in the place of the record of *name*, by other hands than the daemon's."""
    if storage.has_xattrs:
        os.setxattr(root / name, "user.httpnas", record)
    else:
        (own(root, "records") / f"{(root / name).stat().st_ino:x}").write_bytes(record)


def record_of(storage: Storage, name: bytes) -> Record:
    file = opened(storage, name)
    record = storage.records.read(file.fd)
    file.close()
    assert record is not None
    return record


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
    storage.remember(b"f", version, Facts(7, {"sha-256": SHA256[::-1]}))
    assert known(storage, b"f") == Facts(7, {"sha-256": SHA256[::-1], "sha-512": SHA512})


def test_what_is_remembered_of_a_file_of_others_is_known(storage: Storage, root: Path) -> None:
    (root / "f").write_bytes(b"a\nb\n")
    storage.remember(b"f", version_of(storage, b"f"), Facts(2))
    assert known(storage, b"f") == Facts(2)
    append(storage, b"f", b"c\n")
    assert known(storage, b"f") == Facts(3)


def test_nothing_is_remembered_of_a_version_that_is_not_there_any_more(
    storage: Storage, root: Path
) -> None:
    changes: list[Callable[[bytes], object]] = [
        lambda name: append(storage, name, b"b\nc\n"),
        lambda name: upload(storage, name, b"b\nc\n\n"),
        lambda name: (root / name.decode()).write_bytes(b"\n\n\n"),
    ]
    for number, change in enumerate(changes):
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
    steps: list[Callable[[], object]] = [
        lambda: remove(storage, b"d/f"),
        (root / "d/f").mkdir,
        (root / "d/f").rmdir,
        lambda: os.symlink("target", root / "d/f"),
        lambda: os.unlink(root / "d/f"),
        lambda: os.mkfifo(root / "d/f"),
        lambda: shutil.rmtree(root / "d"),
        (root / "d").touch,
    ]
    for vanish in steps:
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
    shutil.rmtree(own(root, folder))
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


@both_kinds
@pytest.mark.parametrize("nth", range(0, 140, 3))
def test_a_damaged_record_is_ignored(storage: Storage, root: Path, nth: int) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    whole = record_of(storage, b"f").encode()
    nth %= len(whole)
    damaged = [
        whole[:nth],
        whole[nth:],
        whole[:nth] + bytes([whole[nth] ^ 1]) + whole[nth + 1 :],
        whole + b"x" * nth + b"y",
    ]
    for record in damaged:
        write_record(storage, root, "f", record)
        before = known(storage, b"f")
        assert before in (Facts(), Facts(1, {"sha-256": SHA256})) and (
            before == Facts() or record == whole
        )
    assert append(storage, b"f", b"b\n").size == 4
    assert known(storage, b"f") == Facts()
    storage.remember(b"f", version_of(storage, b"f"), Facts(2))
    assert known(storage, b"f") == Facts(2)


@settings(max_examples=100, deadline=None)
@given(record=st.binary(max_size=LARGEST))
def test_what_is_no_record_is_none(record: bytes) -> None:
    assert decode(record) is None


TIMES = st.integers(-(2**63), 2**63 - 1)
SIZES = st.integers(0, 2**63 - 1)
KEY = st.builds(Key, st.binary(min_size=8, max_size=8), SIZES, SIZES, TIMES, st.booleans())
PENDING = st.builds(
    Pending,
    added=SIZES,
    checksum=st.integers(0, 2**32 - 1),
    stamp=TIMES,
    lines=st.none() | SIZES,
    boot=SIZES,
    keys=st.just(0),
    blocks=st.lists(st.integers(0, 2**32 - 1), max_size=64).map(tuple),
    staged=st.binary(max_size=60),
)
DIGESTS = st.fixed_dictionaries(
    {},
    optional={
        "md5": st.binary(min_size=16, max_size=16),
        "sha-256": st.binary(min_size=32, max_size=32),
        "sha-512": st.binary(min_size=64, max_size=64),
    },
)


@settings(max_examples=200, deadline=None)
@given(
    record=st.builds(
        Record,
        inode=SIZES,
        birth=SIZES,
        size=SIZES,
        mtime_ns=TIMES,
        at_ns=TIMES,
        stamp=TIMES,
        foreign_ctime_ns=st.none() | TIMES,
        lines=st.none() | SIZES,
        digests=DIGESTS,
        keys=st.lists(KEY, max_size=KEYS).map(tuple),
        pending=st.none() | PENDING,
    )
)
def test_what_was_recorded_is_read_again(record: Record) -> None:
    encoded = record.encode()
    assert decode(encoded) == record
    assert decode(encoded[:-1]) is None


@pytest.mark.parametrize("time_ns", [-1, -(10**18), 1 << 63, 15 * 10**18, -(1 << 63)])
def test_a_time_of_any_year_can_be_recorded(time_ns: int) -> None:
    record = Record(1, 0, 1, time_ns, time_ns, time_ns, time_ns)
    found = decode(record.encode())
    assert found is not None
    assert (found == record) == (-(1 << 63) <= time_ns < 1 << 63)


# No room


@pytest.fixture
def no_room(kind: str, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the room away that digests need, and nothing else's; return what was tried in vain."""
    tried: list[int] = []
    real_write = type(storage.records).write

    def write(records: Records, fd: int, record: Record) -> None:
        if record.digests:
            tried.append(len(record.encode()))
            raise OSError(errno.EDQUOT, "full")
        real_write(records, fd, record)

    monkeypatch.setattr(type(storage.records), "write", write)
    return tried


def test_no_room_for_digests_fails_nothing(storage: Storage, no_room: list[int]) -> None:
    version = upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    assert len(no_room) == 1
    assert known(storage, b"f") == Facts(1)
    storage.remember(b"f", version, Facts(2, {"sha-256": SHA256}))
    assert len(no_room) == 2
    assert known(storage, b"f") == Facts(2)
    assert append(storage, b"f", b"b\n").size == 4
    assert read(storage, b"f") == b"a\nb\n"


@both_kinds
def test_no_room_for_old_digests_fails_no_append(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    upload_with(storage, b"f", b"a\n", **{"sha-256": SHA256})
    no_room = request.getfixturevalue("no_room")
    append(storage, b"f", b"b\n")
    assert len(no_room) == 1
    assert read(storage, b"f") == b"a\nb\n"
    assert known(storage, b"f") == Facts(2)


def test_a_disk_that_breaks_while_the_record_is_written_fails_the_append(
    kind: str, storage: Storage, root: Path
) -> None:
    for nth in (1, 2):
        before = upload(storage, b"f", b"a\n")
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, "setxattr" if kind == "xattrs" else "rename", nth, errno.EIO)
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
                patch.setattr(storage, "in_memory", 10)
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
