"""Records of a file, in user xattrs and in files; and the promises of an append with both."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import commits
from httpnas.storage.append import IN_MEMORY, Append, WrongOffset
from httpnas.storage.errors import StorageError, StorageFull
from httpnas.storage.facts import Facts
from httpnas.storage.record import LARGEST
from httpnas.storage.records import FileRecords, Records, XattrRecords
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.storage.steps import (
    Died,
    Refused,
    anything,
    append,
    at_once,
    both_kinds,
    choose,
    content_of,
    die_at,
    leftovers,
    only,
    opened,
    outcome,
    read,
    remove,
    upload,
)

SMALL, LARGE = 1000, IN_MEMORY + 1000


@pytest.fixture
def plain(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A durable storage on a file system without user xattrs."""
    choose("files", monkeypatch, root)
    storage = Storage(str(root))
    yield storage
    storage.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def version_of(storage: Storage, name: bytes) -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def kept(root: Path) -> list[str]:
    """Return the names of the files that records are in."""
    return sorted(os.listdir(root / ".httpnas" / "records"))


def kinds_of(root: Path, name: str) -> list[str]:
    """Return what kinds of records are kept in files for *name*."""
    inode = f"{os.stat(root / name).st_ino:x}"
    return [file.partition(".")[2] for file in kept(root) if file.partition(".")[0] == inode]


# Reading and writing


def test_the_kind_follows_from_the_file_system(kind: str, storage: Storage, root: Path) -> None:
    wanted = {"xattrs": XattrRecords, "files": FileRecords}[kind]
    assert type(storage.records) is wanted
    assert storage.has_xattrs == (kind == "xattrs")
    upload(storage, b"f", b"x\n")
    assert kinds_of(root, "f") == ([] if kind == "xattrs" else ["facts"])


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EPERM, errno.EACCES])
def test_whatever_keeps_xattrs_from_being_set_makes_files_of_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", fail)
    storage = Storage(str(root), durable=False)
    assert type(storage.records) is FileRecords
    storage.close()


def test_an_error_in_the_probe_is_no_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "setxattr", fail)
    with pytest.raises(StorageError):
        Storage(str(root), durable=False)


@both_kinds
def test_a_record_is_read_as_it_was_written(storage: Storage, fd: int, tmp_path: Path) -> None:
    records = storage.records
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    for kind in ["undo", "facts", "keys"]:
        assert records.read(fd, kind) is None
        records.remove(fd, kind)  # which is none, and no error
        for record in [b"a longer one", b"short", b"", b"\0\xff" * 100]:
            records.write(fd, kind, record)
            assert records.read(fd, kind) == record
            assert records.read(other, kind) is None
    for kind in ["undo", "facts", "keys"]:
        records.remove(fd, kind)
        assert records.read(fd, kind) is None
        assert [records.read(fd, k) is None for k in ["undo", "facts", "keys"]].count(True) == (
            ["undo", "facts", "keys"].index(kind) + 1
        )
    os.close(other)


@both_kinds
def test_a_record_of_the_largest_size_is_kept_whole(storage: Storage, fd: int) -> None:
    record = os.urandom(LARGEST)
    storage.records.write(fd, "keys", record)
    assert storage.records.read(fd, "keys") == record


@both_kinds
def test_records_are_those_of_the_file_and_not_of_its_name(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"x")
    file = opened(storage, b"f")
    storage.records.write(file.fd, "keys", b"record")
    storage.move(b"f", b"d/g", anything)
    moved = opened(storage, b"d/g")
    assert storage.records.read(moved.fd, "keys") == b"record"
    file.close()
    moved.close()


def test_forgetting_takes_all_records_of_one_file(plain: Storage, root: Path) -> None:
    fds = [os.open(root / name, os.O_RDWR | os.O_CREAT) for name in ["one", "two"]]
    for fd in fds:
        for kind in ["undo", "facts", "keys"]:
            plain.records.write(fd, kind, b"record")
    plain.records.forget(os.fstat(fds[0]).st_ino)
    plain.records.forget(os.fstat(fds[0]).st_ino)
    assert kinds_of(root, "one") == []
    assert kinds_of(root, "two") == ["facts", "keys", "undo"]
    for fd in fds:
        os.close(fd)


def test_a_record_that_can_not_be_read_is_not_taken_for_none(
    kind: str, storage: Storage, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes an undo record for none shows torn content."""
    storage.records.write(fd, "undo", b"record")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "broken")

    for function in ["getxattr", "removexattr"] if kind == "xattrs" else ["open", "unlink"]:
        monkeypatch.setattr(os, function, fail)
    for act in [storage.records.read, storage.records.remove]:
        with pytest.raises(OSError, match="broken"):
            act(fd, "undo")


# Crashes of records in files


STEPS = ["open", "write", "fsync", "rename"]


@pytest.mark.parametrize("function, nth", [(f, n) for f in STEPS for n in (1, 2)])
@pytest.mark.parametrize("old", [None, b"old record"])
def test_a_crash_in_between_leaves_the_old_record_or_the_new_one(
    plain: Storage, fd: int, function: str, nth: int, old: bytes | None
) -> None:
    new = b"the new record, which is longer"
    if old is not None:
        plain.records.write(fd, "undo", old)
    calls = 0
    real = getattr(os, function)
    with pytest.MonkeyPatch.context() as patch:

        def die(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if function == "write":  # it comes in parts, as where it is nearly full
                if calls == nth:
                    raise Died
                return real(args[0], args[1][:5])
            if calls == nth:
                raise Died
            return real(*args, **kwargs)

        patch.setattr(os, function, die)
        died = False
        try:
            plain.records.write(fd, "undo", new)
        except Died:
            died = True
    assert died or calls < nth
    found = plain.records.read(fd, "undo")
    assert found in ((old, new) if died else (new,))
    if died and function != "fsync":
        assert found == old
    plain.records.write(fd, "undo", b"next")  # what was left over is in nobody's way
    assert plain.records.read(fd, "undo") == b"next"
    plain.records.remove(fd, "undo")
    assert plain.records.read(fd, "undo") is None


def test_a_torn_leftover_is_neither_read_nor_kept(plain: Storage, root: Path) -> None:
    before = upload(plain, b"f", b"old")
    inode = (root / "f").stat().st_ino
    for kind in ["undo", "facts", "keys"]:
        (root / ".httpnas" / "records" / f"{inode:x}.{kind}.new").write_bytes(b"torn" * 100)
    assert version_of(plain, b"f") == before
    append(plain, b"f", b" new\n")
    file = opened(plain, b"f")
    assert content_of(file) == b"old new\n"
    assert plain.recall(file) == Facts(1)
    file.close()


def test_a_record_that_is_written_in_parts_is_whole(
    plain: Storage, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    plain.records.write(fd, "undo", b"a whole record")
    assert plain.records.read(fd, "undo") == b"a whole record"


# What is durable when


class Trace:
    """What is done to the disk, in order, as words such as ``sync f``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._watch(patch, "fsync", lambda fd: f"sync {_short(_path(fd))}")
        self._watch(patch, "pwritev", lambda fd, *_: f"append {_short(_path(fd))}")
        self._watch(patch, "rename", lambda old, new, **_: f"name {_short(new)}")
        self._watch(patch, "unlink", lambda name, **_: f"unlink {_short(name)}")

    def _watch(self, patch: pytest.MonkeyPatch, function: str, describe: Any) -> None:
        real = getattr(os, function)

        def watched(*args: Any, **kwargs: Any) -> Any:
            word = describe(*args, **kwargs)
            result = real(*args, **kwargs)
            self.steps.append(word)
            return result

        patch.setattr(os, function, watched)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _short(path: str | bytes) -> str:
    leaf = os.path.basename(os.fsdecode(path))
    return leaf.partition(".")[2] or leaf  # without the inode


def test_a_record_is_durable_before_the_first_byte_and_its_end_before_the_answer(
    plain: Storage,
) -> None:
    upload(plain, b"f", b"old")
    pending = plain.begin_append(b"f", anything, key=b"key")
    assert isinstance(pending, Append)
    pending.write([b"new"])
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        pending.commit()
        steps = trace.steps
    pending.close()
    assert steps[:4] == ["sync undo.new", "name undo", "sync records", "append f"]
    committed = steps.index("unlink undo")
    for kind in ["facts", "keys"]:
        at = steps.index(f"name {kind}")
        assert steps[at - 1] == f"sync {kind}.new"
        assert steps[at + 1] == "sync records"
        assert at + 1 < committed
    assert "sync f" in steps[4:committed]
    assert steps[committed + 1] == "sync records"


def test_an_undo_is_durable_before_its_record_goes(plain: Storage) -> None:
    upload(plain, b"f", b"old")
    real = os.fsync
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        steps = trace.steps
        watched = os.fsync

        def once(fd: int) -> None:
            if _short(_path(fd)) == "f" and "fails" not in steps:
                steps.append("fails")
                raise OSError(errno.EIO, "broken")
            watched(fd)

        patch.setattr(os, "fsync", once)
        with pytest.raises(StorageError):
            append(plain, b"f", b"new")
    assert os.fsync is real
    after = steps[steps.index("fails") + 1 :]
    assert after.index("sync f") < after.index("unlink undo")
    assert after[after.index("unlink undo") + 1] == "sync records"


def test_what_an_inode_had_before_is_durably_gone_when_an_upload_is(plain: Storage) -> None:
    pending = plain.begin_upload(b"f", anything)
    plain.records.write(pending._fd, "undo", b"record")
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        pending.publish(anything)
        steps = trace.steps
    pending.close()
    named = steps.index("name f")
    assert "sync records" in steps[steps.index("unlink undo") : named]


@both_kinds
def test_without_durability_nothing_is_synced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch)
    upload(storage, b"f", b"old")
    append(storage, b"f", b"new")
    storage.remember(b"f", version_of(storage, b"f"), Facts(digests={"sha-256": b"x"}))
    remove(storage, b"f")
    assert [step for step in trace.steps if step.startswith("sync")] == []


# Files that go


def test_records_of_a_file_that_goes_are_forgotten(plain: Storage, root: Path) -> None:
    for name in [b"removed", b"replaced", b"over", b"source"]:
        upload(plain, name, b"x\n")
        pending = plain.begin_append(name, anything, key=b"key")
        assert isinstance(pending, Append)
        pending.commit()
        pending.close()
        file = opened(plain, name)
        version.write_undo(file.fd, file.version, plain.records)
        file.close()
    every = {name: (root / name).stat().st_ino for name in ["removed", "replaced", "over"]}
    held = [os.open(root / name, os.O_RDONLY) for name in every]  # no inode is used again
    plain.remove(b"removed", anything)
    upload(plain, b"replaced", b"new")
    plain.move(b"source", b"over", anything)
    left = {file.partition(".")[0] for file in kept(root)}
    assert left.isdisjoint(f"{inode:x}" for inode in every.values())
    assert kinds_of(root, "over") == ["facts", "keys", "undo"]  # those of what moved there
    for fd in held:
        os.close(fd)


def test_a_check_that_refuses_forgets_nothing(plain: Storage, root: Path) -> None:
    upload(plain, b"f", b"x\n")
    upload(plain, b"g", b"x\n")
    for act in [
        lambda: upload(plain, b"f", b"new", only("stale")),
        lambda: plain.remove(b"f", only("stale")),
        lambda: plain.move(b"g", b"f", only("stale")),
    ]:
        with pytest.raises(Refused):
            act()
    assert kinds_of(root, "f") == ["facts"]


def test_a_file_that_has_another_name_keeps_its_records(plain: Storage, root: Path) -> None:
    """Others may link files; with the undo record of such a one a torn part would be shown."""
    for number, change in enumerate(
        [
            lambda name: upload(plain, name, b"new"),
            lambda name: plain.remove(name, anything),
            lambda name: (upload(plain, b"source", b"x"), plain.move(b"source", name, anything)),
        ]
    ):
        name, link = f"f{number}", f"link{number}"
        before = upload(plain, name.encode(), b"old")
        crash(plain, root / name, before, b"garbage")
        os.link(root / name, root / link)
        change(name.encode())
        assert read(plain, link.encode()) == b"old"


@pytest.mark.parametrize("create_only", [False, True])
def test_a_new_file_inherits_nothing_from_its_inode(
    plain: Storage, root: Path, create_only: bool
) -> None:
    """Others remove files too, and a folder goes with all in it: their inodes come again."""
    pending = plain.begin_upload(b"f", anything)
    stale = version.of_stat(os.fstat(pending._fd))
    version.write_undo(pending._fd, stale, plain.records)
    plain.records.write(pending._fd, "keys", b"record")
    plain.records.write(pending._fd, "facts", b"record")
    pending.write([b"whole\n"])
    published = pending.publish(anything, create_only)
    pending.close()
    assert kinds_of(root, "f") == ["facts"]
    file = opened(plain, b"f")
    assert file.version == published
    assert content_of(file) == b"whole\n"
    assert plain.recall(file) == Facts(1)
    file.close()


def test_an_inode_that_comes_again_after_its_folder_was_removed(plain: Storage, root: Path) -> None:
    before = upload(plain, b"d/f", b"old")
    crash(plain, root / "d/f", before, b"garbage")
    inode = (root / "d/f").stat().st_ino
    remove(plain, b"d")
    for number in range(200):
        upload(plain, b"f%d" % number, b"much longer than the old one")
        assert read(plain, b"f%d" % number) == b"much longer than the old one"
        if (root / f"f{number}").stat().st_ino == inode:
            break


@pytest.mark.xfail(strict=True, reason="only files that are removed by themselves are forgotten")
def test_records_of_files_in_a_folder_that_goes_are_forgotten(plain: Storage, root: Path) -> None:
    """Else a file that others make later with the same inode inherits undo record and keys."""
    upload(plain, b"d/f", b"old")
    remove(plain, b"d")
    assert kept(root) == []


@pytest.mark.xfail(strict=True, reason="the undo record goes while a reader looks for it")
def test_a_reader_of_a_crashed_file_that_is_replaced_meanwhile_sees_no_torn_part(
    plain: Storage, root: Path
) -> None:
    before = upload(plain, b"f", b"old")
    crash(plain, root / "f", before, b"garbage")
    fd = os.open(root / "f", os.O_RDONLY)
    try:
        upload(plain, b"f", b"new")
        assert version.committed(fd, plain.records).size == len(b"old")
    finally:
        os.close(fd)


# The promises of an append


def crash(storage: Storage, path: Path, before: Version, extra: bytes) -> None:
    """Leave *path* as a daemon leaves it that dies in the middle of a commit."""
    fd = os.open(path, os.O_RDWR)
    version.write_undo(fd, before, storage.records)
    os.pwrite(fd, extra, before.size)
    os.close(fd)


def has_undo(storage: Storage, path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return version.read_undo(fd, storage.records) is not None
    finally:
        os.close(fd)


@both_kinds
def test_a_reader_never_sees_a_part_of_an_append(storage: Storage) -> None:
    piece, bodies = 500, 80
    real = os.pwritev

    def in_pieces(fd: int, views: list[Any], at: int) -> int:
        time.sleep(0.0001)  # lets readers in between the pieces
        return real(fd, [b"".join(views)[:piece]], at)

    known = {upload(storage, b"f", b"").tag}
    seen: set[tuple[int, str]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            file = opened(storage, b"f")
            assert content_of(file).endswith(b"\n") or not file.version.size
            seen.add((file.version.size, file.version.tag))
            file.close()

    def look_until_the_end() -> Any:
        result = outcome(look)
        ended.set()
        return result

    def write() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwritev", in_pieces)
            for _ in range(bodies):
                known.add(append(storage, b"f", b"x" * (4 * piece - 1) + b"\n").tag)
        ended.set()

    assert at_once([write, look_until_the_end, look_until_the_end]) == [None] * 3
    assert {size % (4 * piece) for size, _ in seen} == {0}
    assert {tag for _, tag in seen} <= known
    assert len(seen) > 5


@both_kinds
def test_a_reader_between_two_commits_sees_one_of_the_versions(storage: Storage) -> None:
    known = [upload(storage, b"f", b"first")]
    real = version.read_undo
    file = opened(storage, b"f")
    with pytest.MonkeyPatch.context() as patch:

        def late(fd: int, records: Records) -> Any:
            patch.setattr(version, "read_undo", real)
            known.append(append(storage, b"f", b" second"))
            writer = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            version.write_undo(writer, known[-1], storage.records)
            os.pwrite(writer, b" thi", known[-1].size)
            os.close(writer)
            return real(fd, records)

        patch.setattr(version, "read_undo", late)
        assert version.committed(file.fd, storage.records) in known
    file.close()


@both_kinds
def test_a_reader_whose_look_fell_into_a_commit_that_then_ended_looks_again(
    storage: Storage, root: Path
) -> None:
    before = upload(storage, b"f", b"first")
    crash(storage, root / "f", before, b" sec")
    real = version.read_undo
    file = os.open(root / "f", os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:

        def late(fd: int, records: Records) -> Any:
            patch.setattr(version, "read_undo", real)
            with (root / "f").open("ab") as rest:
                rest.write(b"ond")
            writer = os.open(root / "f", os.O_RDWR)
            version.clear_undo(writer, storage.records)
            os.close(writer)
            return real(fd, records)

        patch.setattr(version, "read_undo", late)
        found = version.committed(file, storage.records)
    assert found == version.of_stat(os.fstat(file))
    assert found.size == len(b"first second")
    os.close(file)


DEATHS = [
    ("xattrs", "setxattr", 1, SMALL),
    ("xattrs", "setxattr", 2, SMALL),
    ("xattrs", "pwritev", 1, SMALL),
    ("xattrs", "copy_file_range", 1, LARGE),
    ("xattrs", "utime", 1, SMALL),
    ("xattrs", "fsync", 1, SMALL),
    ("xattrs", "fsync", 1, LARGE),
    ("xattrs", "removexattr", 1, LARGE),
    ("files", "write", 1, SMALL),
    ("files", "rename", 1, SMALL),
    ("files", "pwritev", 1, SMALL),
    ("files", "copy_file_range", 1, LARGE),
    ("files", "utime", 1, SMALL),
    ("files", "rename", 2, SMALL),
    ("files", "unlink", 1, SMALL),
]


@pytest.mark.parametrize("kind, where, nth, size", DEATHS, indirect=["kind"])
def test_an_append_that_dies_never_was_and_the_next_one_repairs(
    kind: str, where: str, nth: int, size: int, durable: Storage, root: Path
) -> None:
    before = upload(durable, b"f", b"old ")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, where, nth)
        append(durable, b"f", b"x" * size)
    assert version_of(durable, b"f") == before
    assert read(durable, b"f") == b"old "
    with pytest.raises(WrongOffset) as caught:
        append(durable, b"f", b"new", expected=4 + size)
    assert caught.value.actual == 4
    append(durable, b"f", b"new", only(before.tag), expected=4)
    assert (root / "f").read_bytes() == b"old new"
    assert not has_undo(durable, root / "f")
    assert leftovers(root) == []


@both_kinds
def test_what_counts_after_a_crash_can_be_changed(storage: Storage, root: Path) -> None:
    for number, change in enumerate(
        [
            lambda name, check: upload(storage, name, b"new and longer than all", check),
            lambda name, check: append(storage, name, b"new", check),
            lambda name, check: storage.move(name, b"moved", check),
            storage.remove,
        ]
    ):
        name = b"f%d" % number
        before = upload(storage, name, b"old")
        crash(storage, root / name.decode(), before, b"garbage")
        assert version_of(storage, name) == before
        change(name, only(before.tag))
    assert read(storage, b"f0") == b"new and longer than all"
    assert read(storage, b"f1") == b"oldnew"
    assert read(storage, b"moved") == b"old"
    append(storage, b"moved", b" new")
    assert read(storage, b"moved") == b"old new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "function, size",
    [*((f, SMALL) for f in ["write", "pwritev", "utime", "fsync", "rename", "unlink", "open"]),
     ("setxattr", SMALL), ("removexattr", SMALL), ("copy_file_range", LARGE)],
)  # fmt: skip
def test_a_failed_append_leaves_the_old_version(
    kind: str, durable: Storage, root: Path, function: str, size: int, code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    met = 0
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for nth in itertools.count(1):
        before = upload(durable, b"f", b"old ")
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, function, nth, code)
            result = outcome(lambda: append(durable, b"f", b"x" * size))
        assert leftovers(root) == []
        if failing.calls < nth:
            assert isinstance(result, Version)
            break
        if isinstance(result, Version):  # only facts were lost
            assert read(durable, b"f") == b"old " + b"x" * size
            continue
        met += 1
        assert isinstance(result, StorageError)
        assert version_of(durable, b"f") == before
        assert (root / "f").read_bytes() == b"old "
        append(durable, b"f", b"new", only(before.tag), 4)
        assert read(durable, b"f") == b"old new"
        assert not has_undo(durable, root / "f")
    if (kind == "xattrs") == (function in ("setxattr", "removexattr")):
        assert met


class Failing:
    """Make the *nth* call of a function of :mod:`os` fail."""

    def __init__(self, patch: pytest.MonkeyPatch, function: str, nth: int, code: int) -> None:
        self.calls = 0
        real = getattr(os, function)

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == nth:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        patch.setattr(os, function, faulty)


def test_no_room_for_the_undo_record_fails_the_append(
    kind: str, storage: Storage, root: Path
) -> None:
    before = upload(storage, b"f", b"old")
    with pytest.MonkeyPatch.context() as patch:

        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "full")

        patch.setattr(os, "setxattr" if kind == "xattrs" else "write", full)
        with pytest.raises(StorageFull):
            append(storage, b"f", b"new")
    assert version_of(storage, b"f") == before
    assert (root / "f").read_bytes() == b"old"


def test_the_folder_of_records_may_be_gone(plain: Storage, root: Path) -> None:
    """Somebody has removed it: nothing is torn, and what is there can still be read."""
    upload(plain, b"f", b"old")
    shutil.rmtree(root / ".httpnas" / "records")
    assert read(plain, b"f") == b"old"
    with pytest.raises(StorageError):
        append(plain, b"f", b"new")
    assert (root / "f").read_bytes() == b"old"


def test_every_kind_of_record_is_forgotten() -> None:
    """A kind that others write and :meth:`forget` does not know would be inherited."""
    written = {facts._KIND, idempotency._KIND, version._UNDO}
    assert set(FileRecords._KINDS) == written
