"""Records of a file, in user xattrs and in files; and the promises of an append with both."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import commits, version
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.descriptors import owned
from httpnas.storage.durability import sync_folder
from httpnas.storage.errors import StorageError, StorageFull, WrongOffset
from httpnas.storage.facts import Facts
from httpnas.storage.ledger import Ledger
from httpnas.storage.record import KEYS, PAGE, Key, Pending, Record
from httpnas.storage.records import FileRecords, Records, XattrRecords
from httpnas.storage.store import Storage
from httpnas.storage.version import Check, Version
from tests.private import RECORDS, keep_records, own
from tests.storage.steps import (
    Died,
    Refused,
    anything,
    append,
    at_once,
    both_kinds,
    choose,
    content_of,
    crash,
    die_at,
    leftovers,
    names,
    only,
    opened,
    outcome,
    pends,
    read,
    remove,
    tag,
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
    return sorted(os.listdir(own(root, "records")))


def has_kept(root: Path, name: str) -> bool:
    """Tell whether a record is kept in a file for *name*."""
    return f"{os.stat(root / name).st_ino:x}" in kept(root)


def some(fd: int, records: Records, stamp: int = 1, lines: int | None = None) -> Record:
    """Return a record of the file *fd*, which others tell by its *stamp*."""
    return Record(os.fstat(fd).st_ino, records.birth(fd), 0, 0, 0, stamp, lines=lines)


# Reading and writing


def test_the_kind_follows_from_the_file_system(kind: str, storage: Storage, root: Path) -> None:
    wanted = {"xattrs": XattrRecords, "files": FileRecords}[kind]
    assert type(storage.records) is wanted
    assert storage.has_xattrs == (kind == "xattrs")
    upload(storage, b"f", b"x\n")
    assert has_kept(root, "f") == (kind == "files")


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
    assert records.read(fd) is None
    for stamp in [5, 1 << 40, 0]:
        record = Ledger(fd, records, version.of_stat(os.fstat(fd)), None)
        record.settle(replace(record.base, stamp=stamp, keys=(Key(b"12345678", 1, 0, 0),)))
        assert records.read(fd) == record.record
        assert records.read(other) is None
    os.close(other)


@both_kinds
def test_a_record_of_the_largest_size_is_kept_whole(storage: Storage, fd: int) -> None:
    ledger = Ledger(fd, storage.records, version.of_stat(os.fstat(fd)), None)
    keys = tuple(Key(os.urandom(8), n, 0, n) for n in range(KEYS))
    digests = {"sha-256": os.urandom(32), "sha-512": os.urandom(64), "md5": os.urandom(16)}
    ledger.settle(replace(ledger.base, lines=9, digests=digests, keys=keys))
    found = storage.records.read(fd)
    assert found is not None
    assert (found.keys, found.digests, found.lines) == (keys, digests, 9)


@both_kinds
def test_records_are_those_of_the_file_and_not_of_its_name(storage: Storage, root: Path) -> None:
    before = upload(storage, b"f", b"x\n")
    file = opened(storage, b"f")
    storage.move(b"f", b"d/g", anything)
    moved = opened(storage, b"d/g")
    assert moved.version == storage.known(file.fd).version == before
    assert storage.recall(moved) == Facts(1)
    file.close()
    moved.close()


@pytest.mark.parametrize("how", ["cp -a", "rsync -aX", "tar --xattrs"])
def test_a_copy_with_all_attributes_has_no_record(storage: Storage, root: Path, how: str) -> None:
    """Others say that it was made of the first; it is another file."""
    if shutil.which(how.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{how} is not installed")
    first = upload(storage, b"f", b"x\n")
    copied(root, how)
    assert os.getxattr(root / "copy" / "f", "user.httpnas") == os.getxattr(
        root / "f", "user.httpnas"
    )
    copy = opened(storage, b"copy/f")
    assert storage.records.read(copy.fd) is None
    assert copy.version.tag != first.tag
    copy.close()


def copied(root: Path, how: str) -> None:
    """Copy ``f`` to ``copy/f`` with all its attributes."""
    (root / "copy").mkdir()
    commands = {
        "cp -a": "cp -a f copy/f",
        "rsync -aX": "rsync -aX f copy/f",
        "tar --xattrs": "tar --xattrs -cf - f | tar --xattrs --xattrs-include='*' -xf - -C copy",
    }
    subprocess.run(commands[how], shell=True, check=True, cwd=root)


def test_forgetting_takes_the_record_of_one_file(plain: Storage, root: Path) -> None:
    fds = [os.open(root / name, os.O_RDWR | os.O_CREAT) for name in ["one", "two"]]
    for fd in fds:
        plain.records.write(fd, some(fd, plain.records))
    plain.records.forget(os.fstat(fds[0]).st_ino)
    plain.records.forget(os.fstat(fds[0]).st_ino)
    assert not has_kept(root, "one")
    assert has_kept(root, "two")
    for fd in fds:
        os.close(fd)


def test_a_record_that_can_not_be_read_is_not_taken_for_none(
    kind: str, storage: Storage, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes one that announces something for none shows torn content."""
    storage.records.write(fd, some(fd, storage.records))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "getxattr" if kind == "xattrs" else "open", fail)
    with pytest.raises(OSError, match="broken"):
        storage.records.read(fd)


# Crashes of records in files


STEPS = ["open", "write", "fsync", "rename"]


@pytest.mark.parametrize("function, nth", [(f, n) for f in STEPS for n in (1, 2)])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_crash_in_between_leaves_the_old_record_or_the_new_one(
    plain: Storage, fd: int, function: str, nth: int, has_old: bool
) -> None:
    old, new, latest = (some(fd, plain.records, stamp) for stamp in (1, 2, 3))
    if has_old:
        plain.records.write(fd, old)
    calls = 0
    real = getattr(os, function)
    with pytest.MonkeyPatch.context() as patch:

        def die(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Died
            if function == "write":  # it comes in parts, as where it is nearly full
                return real(args[0], args[1][:5])
            return real(*args, **kwargs)

        patch.setattr(os, function, die)
        died = False
        try:
            plain.records.write(fd, new)
        except Died:
            died = True
    assert died or calls < nth
    found = plain.records.read(fd)
    before = old if has_old else None
    assert found in ((before, new) if died else (new,))
    if died and function != "fsync":
        assert found == before
    plain.records.write(fd, latest)  # what was left over is in nobody's way
    assert plain.records.read(fd) == latest


def test_a_torn_leftover_is_neither_read_nor_kept(plain: Storage, root: Path) -> None:
    before = upload(plain, b"f", b"old")
    inode = (root / "f").stat().st_ino
    (own(root, "records") / f"{inode:x}.new").write_bytes(b"torn" * 100)
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
    record = some(fd, plain.records)
    plain.records.write(fd, record)
    assert plain.records.read(fd) == record


# What is durable when


class Trace:
    """What is done to the disk, in order, as words such as ``sync f``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._watch(patch, "fsync", lambda fd: f"sync {_short(_path(fd))}")
        self._watch(patch, "writev", lambda fd, *_: f"append {_short(_path(fd))}")
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
    return "records" if leaf == RECORDS.rpartition("/")[2] else leaf if leaf == "f" else "record"


def test_a_record_is_durable_before_the_first_byte_and_the_content_before_its_end(
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
    recorded = ["sync record", "name record", "sync records"]
    assert steps == [*recorded, "append f", "sync f", *recorded]


def test_an_undo_is_durable_before_the_record_says_so(plain: Storage) -> None:
    upload(plain, b"f", b"old")
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        watched, steps = os.fsync, trace.steps

        def once(fd: int) -> None:
            if _short(_path(fd)) == "f" and "fails" not in steps:
                steps.append("fails")
                raise OSError(errno.EIO, "broken")
            watched(fd)

        patch.setattr(os, "fsync", once)
        with pytest.raises(StorageError):
            append(plain, b"f", b"new")
    after = steps[steps.index("fails") + 1 :]
    assert after == ["sync f", "sync record", "name record", "sync records"]


@both_kinds
def test_without_durability_nothing_is_synced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch)
    upload(storage, b"f", b"old")
    append(storage, b"f", b"new")
    storage.remember(b"f", version_of(storage, b"f"), Facts(digests={"sha-256": b"x" * 32}))
    remove(storage, b"f")
    assert [step for step in trace.steps if step.startswith("sync")] == []


# Files that go


def test_records_of_a_file_that_goes_are_forgotten(plain: Storage, root: Path) -> None:
    for name in [b"removed", b"replaced", b"over", b"source"]:
        upload(plain, name, b"x\n")
        append(plain, name, b"y\n", key=b"key")
    every = {name: (root / name).stat().st_ino for name in ["removed", "replaced", "over"]}
    held = [os.open(root / name, os.O_RDONLY) for name in every]  # no inode is used again
    plain.remove(b"removed", anything)
    upload(plain, b"replaced", b"new")
    plain.move(b"source", b"over", anything)
    assert set(kept(root)).isdisjoint(f"{inode:x}" for inode in every.values())
    assert has_kept(root, "over")
    for fd in held:
        os.close(fd)


def test_a_check_that_refuses_forgets_nothing(plain: Storage, root: Path) -> None:
    upload(plain, b"f", b"x\n")
    upload(plain, b"g", b"x\n")
    before = kept(root)
    acts: list[Callable[[], object]] = [
        lambda: upload(plain, b"f", b"new", only("stale")),
        lambda: plain.remove(b"f", only("stale")),
        lambda: plain.move(b"g", b"f", only("stale")),
    ]
    for act in acts:
        with pytest.raises(Refused):
            act()
    assert kept(root) == before


def test_a_file_that_has_another_name_keeps_its_records(plain: Storage, root: Path) -> None:
    """Others may link files; without the record of such a one a torn part would be shown."""

    def move_over(name: bytes) -> None:
        upload(plain, b"source", b"x")
        plain.move(b"source", name, anything)

    changes: list[Callable[[bytes], object]] = [
        lambda name: upload(plain, name, b"new"),
        lambda name: plain.remove(name, anything),
        move_over,
    ]
    for number, change in enumerate(changes):
        name, link = f"f{number}", f"link{number}"
        upload(plain, name.encode(), b"old")
        crash(plain, name.encode(), b"torn" * PAGE, PAGE - 3)
        os.link(root / name, root / link)
        change(name.encode())
        assert read(plain, link.encode()) == b"old"


@pytest.mark.parametrize("create_only", [False, True])
def test_a_new_file_inherits_nothing_from_its_inode(
    plain: Storage, root: Path, create_only: bool
) -> None:
    """Others remove files too, and a folder goes with all in it: their inodes come again."""
    pending = plain.begin_upload(b"f", anything)
    stale = some(pending._fd, plain.records, lines=99)
    announced = Pending(100, 0, 2, None, 0)
    plain.records.write(pending._fd, replace(stale, pending=announced))
    pending.write([b"whole\n"])
    published = pending.publish(anything, create_only)
    pending.close()
    file = opened(plain, b"f")
    assert file.version == published
    assert content_of(file) == b"whole\n"
    assert plain.recall(file) == Facts(1)
    file.close()


def test_an_inode_that_comes_again_after_its_folder_was_removed(plain: Storage, root: Path) -> None:
    upload(plain, b"d/f", b"old")
    crash(plain, b"d/f", b"torn" * PAGE, PAGE - 3)
    inode = (root / "d/f").stat().st_ino
    remove(plain, b"d")
    for number in range(200):
        upload(plain, b"f%d" % number, b"much longer than the old one")
        assert read(plain, b"f%d" % number) == b"much longer than the old one"
        if (root / f"f{number}").stat().st_ino == inode:
            break


def test_records_of_files_in_a_folder_that_goes_are_forgotten(plain: Storage, root: Path) -> None:
    upload(plain, b"d/f", b"old")
    upload(plain, b"d/e/g", b"old")
    upload(plain, b"d/linked", b"old")
    os.link(root / "d" / "linked", root / "linked")
    remove(plain, b"d")
    assert kept(root) == [f"{(root / 'linked').stat().st_ino:x}"]


def test_an_upload_that_is_not_published_leaves_no_record(plain: Storage, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        Failing(patch, "rename", 2, errno.EIO)  # the first one is that of the record
        upload(plain, b"f", b"x")
    assert kept(root) == []


@both_kinds
@pytest.mark.parametrize("change", ["upload", "move", "remove"])
def test_a_reader_of_a_crashed_file_that_goes_meanwhile_sees_no_torn_part(
    storage: Storage, root: Path, change: str
) -> None:
    upload(storage, b"f", b"old")
    upload(storage, b"g", b"new")
    crash(storage, b"f", b"torn" * PAGE, PAGE - 3)
    changes: dict[str, Callable[[], object]] = {
        "upload": lambda: upload(storage, b"f", b"new"),
        "move": lambda: storage.move(b"g", b"f", anything),
        "remove": lambda: remove(storage, b"f"),
    }
    fd = os.open(root / "f", os.O_RDONLY)
    try:
        changes[change]()
        assert storage.known(fd).version.size == len(b"old")
    finally:
        os.close(fd)


# The promises of an append


@both_kinds
def test_a_reader_never_sees_a_part_of_an_append(storage: Storage) -> None:
    piece, bodies = 500, 80
    real = os.writev

    def in_pieces(fd: int, views: list[Any]) -> int:
        time.sleep(0.0001)  # lets readers in between the pieces
        return real(fd, [b"".join(views)[:piece]])

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
            patch.setattr(os, "writev", in_pieces)
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
    real = storage.records.read
    file = opened(storage, b"f")
    with pytest.MonkeyPatch.context() as patch:

        def late(fd: int) -> Any:
            patch.setattr(storage.records, "read", real)
            known.append(append(storage, b"f", b" second"))
            crash(storage, b"f", b"torn" * PAGE, PAGE - known[-1].size)
            return real(fd)

        patch.setattr(storage.records, "read", late)
        found = storage.known(file.fd).version
        assert found.size == known[-1].size
    file.close()


@both_kinds
def test_a_reader_whose_look_fell_into_a_commit_that_then_ended_looks_again(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"f", b"first")
    crash(storage, b"f", b" second", 7)
    file = os.open(root / "f", os.O_RDONLY)
    done: list[Version] = []
    real = commits.is_locked
    with pytest.MonkeyPatch.context() as patch:

        def late(fd: int) -> bool:
            patch.setattr(commits, "is_locked", real)
            done.append(append(storage, b"f", b" third"))
            return real(fd)

        patch.setattr(commits, "is_locked", late)
        found = storage.known(file).version
    assert found == done[0]
    assert found.size == len(b"first second third")
    os.close(file)


@both_kinds
def test_a_reader_sees_what_a_dead_daemon_has_completed_while_another_one_mends_it(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"f", b"first")
    crash(storage, b"f", b" second", 7)
    with open(root / "f", "rb") as mended:
        assert commits.lock(mended.fileno())
        assert read(storage, b"f") == b"first second"


#: Where a daemon dies, before all of an append is there.
DEATHS = [
    ("xattrs", "setxattr", 1, SMALL),
    ("xattrs", "writev", 1, SMALL),
    ("xattrs", "writev", 1, 3 * PAGE),
    ("xattrs", "writev", 1, LARGE),
    ("files", "write", 1, SMALL),
    ("files", "rename", 1, SMALL),
    ("files", "writev", 1, SMALL),
    ("files", "writev", 1, 3 * PAGE),
    ("files", "writev", 1, LARGE),
]
#: Where it dies when all is there, and when it is settled already.
LATE_DEATHS = [
    ("xattrs", "fsync", 1, SMALL),
    ("xattrs", "setxattr", 2, SMALL),
    ("xattrs", "fsync", 3, LARGE),
    ("files", "fsync", 3, SMALL),
    ("files", "rename", 2, SMALL),
    ("files", "rename", 2, LARGE),
]


def die_in_append(storage: Storage, where: str, nth: int, size: int) -> None:
    """Die in an append to ``f``, as a process does: what it has staged stays."""
    pending = storage.begin_append(b"f", anything)
    assert isinstance(pending, Append)
    pending.write([b"x" * size])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, where, nth)
        pending.commit()


@pytest.mark.parametrize("kind, where, nth, size", DEATHS, indirect=["kind"])
def test_an_append_that_dies_never_was_and_the_next_one_repairs(
    kind: str, where: str, nth: int, size: int, durable: Storage, root: Path
) -> None:
    upload(durable, b"f", b"old ")
    die_in_append(durable, where, nth, size)
    assert read(durable, b"f") == b"old "
    before = version_of(durable, b"f")
    with pytest.raises(WrongOffset) as caught:
        append(durable, b"f", b"new", expected=4 + size)
    assert caught.value.actual == 4
    append(durable, b"f", b"new", only(before.tag), expected=4)
    assert (root / "f").read_bytes() == b"old new"
    assert not pends(durable, b"f")


@pytest.mark.parametrize("kind, where, nth, size", LATE_DEATHS, indirect=["kind"])
def test_an_append_that_dies_when_all_is_there_counts_and_the_next_one_completes_it(
    kind: str, where: str, nth: int, size: int, durable: Storage, root: Path
) -> None:
    upload(durable, b"f", b"old ")
    die_in_append(durable, where, nth, size)
    synced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        seen = version_of(durable, b"f")
    assert synced == [(root / "f").stat().st_ino], "it may be gone after a power cut"
    assert read(durable, b"f") == b"old " + b"x" * size
    append(durable, b"f", b"new", only(seen.tag))
    assert read(durable, b"f") == (root / "f").read_bytes() == b"old " + b"x" * size + b"new"
    assert not pends(durable, b"f")


@both_kinds
def test_what_counts_after_a_crash_can_be_changed(storage: Storage, root: Path) -> None:
    changes: list[Callable[[bytes, Check], object]] = [
        lambda name, check: upload(storage, name, b"new and longer than all", check),
        lambda name, check: append(storage, name, b"new", check),
        lambda name, check: storage.move(name, b"moved", check),
        storage.remove,
    ]
    for number, change in enumerate(changes):
        name = b"f%d" % number
        upload(storage, name, b"old")
        crash(storage, name, b"torn" * PAGE, PAGE - 3)
        present = version_of(storage, name)
        assert present.size == 3
        change(name, only(present.tag))
    assert read(storage, b"f0") == b"new and longer than all"
    assert read(storage, b"f1") == b"oldnew"
    assert read(storage, b"moved") == b"old"
    append(storage, b"moved", b" new")
    assert read(storage, b"moved") == b"old new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "function, size",
    [*((f, SMALL) for f in ["write", "writev", "fsync", "rename", "unlink", "open"]),
     ("setxattr", SMALL), ("writev", LARGE)],
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
        assert not pends(durable, b"f")
    if (kind == "xattrs") == (function == "setxattr"):
        assert met or function == "unlink" or (function, code) == ("copy_file_range", errno.EIO)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_where_folders_are_not_synced_every_change_is_made(
    kind: str, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = Storage(str(root))
    assert not storage.syncs_folders
    upload(storage, b"a/b/f", b"old")
    append(storage, b"a/b/f", b" and more")
    append(storage, b"a/b/f", b"x" * LARGE)
    storage.move(b"a/b/f", b"c/d/f", anything)
    assert read(storage, b"c/d/f") == b"old and more" + b"x" * LARGE
    remove(storage, b"a")
    storage.remove(b"c/d/f", anything)
    assert names(storage, b"c/d") == []
    storage.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_can_be_synced_and_is_not_is_an_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with owned(os.dup(storage.workspace.fd)) as folder, pytest.raises(OSError):
        sync_folder(folder)


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


def test_no_room_for_the_record_fails_the_append(kind: str, storage: Storage, root: Path) -> None:
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
    shutil.rmtree(own(root, "records"))
    assert read(plain, b"f") == b"old"
    with pytest.raises(StorageError):
        append(plain, b"f", b"new")
    assert (root / "f").read_bytes() == b"old"


@pytest.mark.parametrize("verb", ["delete", "replace", "move over", "free"])
def test_a_record_is_not_removed_that_another_file_of_the_inode_has_by_then(
    root: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A daemon may stand still between removing a file and its record."""
    keep_records(root, "beside")
    storage = Storage(str(root), durable=False)
    for name in (b"f", b"d/f", b"g"):
        upload(storage, name, b"1")
    inodes = {(root / name).stat().st_ino for name in ("f", "d/f")}
    real = storage.records.forget
    tags: list[str] = []

    def late(inode: int) -> None:
        if inode in inodes and not tags:
            # ext4 gives the inode to the next file that is made.
            tags.append(upload(storage, b"next", b"2").tag)
        real(inode)

    monkeypatch.setattr(storage.records, "forget", late)
    storage.workspace.forget = late
    if verb == "delete":
        storage.remove(b"f", anything)
    elif verb == "replace":
        upload(storage, b"f", b"3")
    elif verb == "move over":
        storage.move(b"g", b"f", anything)
    else:
        aside = storage.remove(b"d", anything)
        assert aside is not None
        for _ in storage.reclaim(aside):
            pass
    assert tags == [tag(storage, b"next")]
    storage.close()


@both_kinds
def test_a_file_has_its_tag_as_soon_as_it_has_its_name(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the daemon stands still before it writes down the change time of the new name."""
    confirm, seen = Ledger.confirm, []

    def late(ledger: Ledger) -> None:
        seen.append(tag(storage, b"f"))
        confirm(ledger)

    rename = os.rename

    def later(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.02)  # more than the change time may be off
        rename(*args, **kwargs)

    monkeypatch.setattr(Ledger, "confirm", late)
    monkeypatch.setattr(os, "rename", later)
    assert upload(storage, b"f", b"1").tag == seen[0] == tag(storage, b"f")
