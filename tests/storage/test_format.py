"""The format of a storage: chosen once, and kept out of daemons that do not know it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from httpnas.storage import format, locks, migration
from httpnas.storage.errors import OtherFormat, StorageError
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from tests.private import own, runs_of
from tests.storage.steps import (
    Faults,
    append,
    at_once,
    both_kinds,
    choose,
    crash,
    leftovers,
    need_xattrs,
    outcome,
    read,
    upload,
)

LOCK_FILES = 3


def chosen(root: Path) -> Any:
    return json.loads((root / ".httpnas" / "format").read_text())


@pytest.fixture
def no_xattrs(monkeypatch: pytest.MonkeyPatch, root: Path) -> pytest.MonkeyPatch:
    """Take user xattrs away; undoing the patch gives them back."""
    need_xattrs(root)
    choose("files", monkeypatch, root)
    return monkeypatch


# What is chosen, and that it stays


@both_kinds
def test_the_first_storage_chooses_and_all_others_follow(root: Path, kind: str) -> None:
    Storage(str(root)).close()
    place = {"xattrs": "xattr", "files": "beside"}[kind]
    assert chosen(root) == {"format": 2, "records": place}
    before = (root / ".httpnas" / "format").stat()
    storage = Storage(str(root))
    assert storage.has_xattrs == (kind == "xattrs")
    storage.close()
    assert (root / ".httpnas" / "format").stat() == before


def test_the_choice_is_durable_before_it_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Storage(str(root), durable=False).close()
    assert [synced[0], synced[-1]] == [str(root / ".httpnas")] * 2  # the names, before and after
    assert len(synced) == 3
    assert os.path.dirname(os.path.dirname(synced[1])) == str(runs_of(root))


def test_daemons_that_start_at_once_agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them, on hosts that mount it otherwise, find no xattrs."""
    real = os.setxattr

    def setxattr(*args: Any, **kwargs: Any) -> None:
        if threading.current_thread().native_id % 2:  # type: ignore[operator]
            raise OSError(errno.ENOTSUP, "not supported")
        real(*args, **kwargs)

    need_xattrs(root)
    for _ in range(10):
        shutil.rmtree(root / ".httpnas", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "setxattr", setxattr)
            opened = at_once([lambda: Storage(str(root), durable=False)] * 8)
        wanted = chosen(root)["records"] == "xattr"
        for storage in opened:
            if isinstance(storage, Storage):
                assert storage.has_xattrs == wanted
                storage.close()
            else:
                assert isinstance(storage, OtherFormat), storage
        assert any(isinstance(storage, Storage) for storage in opened)


def test_records_stay_beside_their_files_where_xattrs_have_come(
    root: Path, no_xattrs: pytest.MonkeyPatch
) -> None:
    """Otherwise a torn part counts, and what is appended behind it is cut off later."""
    storage = Storage(str(root))
    upload(storage, b"f", b"old\n")
    crash_in_append(storage, b"f")
    no_xattrs.undo()
    again = Storage(str(root))
    assert not again.has_xattrs
    assert read(again, b"f") == b"old\n"
    append(again, b"f", b"next\n")
    assert read(again, b"f") == b"old\nnext\n"
    again.close()
    assert (root / "f").read_bytes() == b"old\nnext\n"


def crash_in_append(storage: Storage, name: bytes) -> None:
    """Let the daemon die when a part of an append to *name*, which has 4 bytes, is in the file."""
    crash(storage, name, b"TORN" * PAGE, PAGE - 4)
    storage.workspace.close()


def test_a_file_system_that_has_no_xattrs_any_more_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_xattrs(root)
    storage = Storage(str(root))
    upload(storage, b"f", b"old\n")
    crash_in_append(storage, b"f")
    with monkeypatch.context() as patch:
        choose("files", patch, root)
        with pytest.raises(OtherFormat, match="mount it with them"):
            Storage(str(root))
    assert len(os.listdir(runs_of(root))) == 1, "the attempt has left something"
    storage = Storage(str(root))
    assert read(storage, b"f") == b"old\n"
    storage.close()


@pytest.mark.parametrize(
    "text, said",
    [
        (b'{"format": 3, "records": "xattr"}', "format 3"),
        (b'{"format": 3}', "format 3"),
        (b"", "broken"),
        (b"\xff", "broken"),
        (b"[2]", "broken"),
        (b'{"format": 2}', "broken"),
        (b'{"format": 2, "records": "elsewhere"}', "broken"),
        (b'{"format": 2, "records": ["xattr"]}', "broken"),
        (b'{"format": "2", "records": "xattr"}', "broken"),
        (b'{"format": 1, "records": "xattr"}', "broken"),
    ],
)
def test_a_format_that_is_not_known_is_refused_and_nothing_is_touched(
    root: Path, text: bytes, said: str
) -> None:
    (root / ".httpnas").mkdir()
    (root / ".httpnas" / "format").write_bytes(text)
    with pytest.raises(OtherFormat, match=said):
        Storage(str(root))
    assert os.listdir(root / ".httpnas") == ["format"]
    assert (root / ".httpnas" / "format").read_bytes() == text


def test_a_storage_that_is_opened_anew_is_known_by_its_locks(root: Path) -> None:
    storage = Storage(str(root))
    other = root.with_name("other")
    shutil.copytree(root, other)
    root.rename(root.with_name("away"))
    other.rename(root)
    with pytest.raises(StorageError, match="not there"):
        storage.reopened()
    storage.close()


# Without room


@pytest.mark.parametrize("function", ["write", "open"])
def test_without_room_for_it_the_choice_waits(
    root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(path: Any, *args: Any, **kwargs: Any) -> Any:
        if function == "write" or (isinstance(path, bytes) and path.endswith(b"-0")):
            raise OSError(errno.ENOSPC, "full")
        return real(path, *args, **kwargs)

    real = getattr(os, function)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        storage = Storage(str(root))
        assert not (root / ".httpnas" / "format").exists()
        other = Storage(str(root))
        assert other.has_xattrs == storage.has_xattrs
        list(storage.reclaim_abandoned())
    assert leftovers(root) == []
    list(storage.reclaim_abandoned())
    assert chosen(root)["records"] == ("xattr" if storage.has_xattrs else "beside")
    list(other.reclaim_abandoned())
    for opened in (storage, other):
        opened.close()


def test_who_finds_that_others_chose_otherwise_says_so(
    root: Path, no_xattrs: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, "write", 1, errno.ENOSPC, lasting=True)
        storage = Storage(str(root))
    (root / ".httpnas" / "format").write_text('{"format": 2, "records": "xattr"}')
    with pytest.raises(OtherFormat, match="restart"):
        list(storage.reclaim_abandoned())
    storage.close()


# Format 1


class Former:
    """A storage as daemons of format 1 have left it, and such a daemon."""

    def __init__(self, root: Path, beside: bool = False) -> None:
        self.root = root
        self.private = root / ".httpnas"
        (root / "f").write_bytes(b"content")
        for folder in ("locks", "run", "records"):
            (self.private / folder).mkdir(parents=True)
        for number in range(LOCK_FILES):
            (self.private / "locks" / f"{number:03x}").touch()
        if beside:
            (self.private / "records" / "7b.undo").write_bytes(b"record")
        self._serial = itertools.count()

    def dead(self) -> Path:
        """Make what a daemon has left that was killed."""
        run = self.private / "run" / f"dead{next(self._serial)}"
        (run / "tree" / "deep").mkdir(parents=True)
        (run / "lease").touch()
        (run / "upload").write_bytes(b"half")
        (run / "tree" / "deep" / "file").touch()
        return run

    def start(self) -> int:
        """Do what such a daemon does at its start; return its lease."""
        return self.settle(self.open_folders())

    def open_folders(self) -> int:
        for folder in ("locks", "run", "records"):
            path = self.private / folder
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if folder == "run":
                runs = fd
            else:
                os.close(fd)
        return runs

    def settle(self, runs: int) -> int:
        name = f"living{next(self._serial)}"
        os.mkdir(name, dir_fd=runs)
        lease = os.open(f"{name}/lease", os.O_RDWR | os.O_CREAT, dir_fd=runs)
        os.close(runs)
        fcntl.flock(lease, fcntl.LOCK_EX)
        return lease

    def is_shut_out(self) -> bool:
        return isinstance(outcome(self.start), NotADirectoryError)


@pytest.fixture(params=[False, True], ids=["xattr", "beside"])
def former(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Former:
    need_xattrs(root)
    monkeypatch.setattr(locks, "BUCKETS", LOCK_FILES)
    return Former(root, request.param)


def migrated(former: Former) -> None:
    """See that *former* is in format 2 with all that was in it, and daemons of 1 are kept out."""
    root, private = former.root, former.private
    beside = (own(root, "records") / "7b.undo").exists()
    assert chosen(root) == {"format": 2, "records": "beside" if beside else "xattr"}
    names = ["format", "locks", "locks.2", "records", "records.2", "run.2"]
    assert sorted(os.listdir(private)) == names
    assert {f"{number:03x}" for number in range(LOCK_FILES)} <= set(os.listdir(own(root, "locks")))
    for blocker in ("locks", "records"):
        assert b"keeps out" in (private / blocker).read_bytes()
    assert former.is_shut_out()
    assert sorted(os.listdir(private)) == names, "it has left something"


def test_what_daemons_of_format_1_have_left_is_taken_over(former: Former, root: Path) -> None:
    beside = os.listdir(former.private / "records")
    inode = (former.private / "locks").stat().st_ino
    former.dead(), former.dead()
    (former.private / "run" / "empty").mkdir()
    (former.private / "run" / "full" / "of something").mkdir(parents=True)
    (former.private / "run" / "no folder").touch()
    storage = Storage(str(root))
    assert os.listdir(own(root, "records")) == beside
    assert own(root, "locks").stat().st_ino == inode
    migrated(former)
    assert read(storage, b"f") == b"content"
    list(storage.reclaim_abandoned())
    assert leftovers(root) == []
    storage.close()
    assert list(runs_of(root).iterdir()) == []


def test_a_living_daemon_of_format_1_keeps_others_out_until_it_ends(
    former: Former, root: Path
) -> None:
    former.dead()
    lease = former.start()
    before = sorted(map(str, former.private.rglob("*")))
    for _ in range(2):
        with pytest.raises(OtherFormat, match=r"0\.1 is running"):
            Storage(str(root))
    assert sorted(map(str, former.private.rglob("*"))) == before, "something was changed"
    os.close(lease)
    Storage(str(root)).close()
    migrated(former)


CHANGES = ["mkdir", "rename", "rmdir", "unlink", "open", "write", "fsync", "link"]


class Steps:
    """Counts the calls that change something, and does something before some of them.

    :param acts: the number of a call, what to do before it, another number, and so on.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *acts: Any) -> None:
        self.made = 0
        self._acting = False
        self._acts = list(itertools.pairwise(acts))[::2]
        for function in CHANGES:
            self._watch(patch, os, function)
        self._watch(patch, format, "name_new")

    def _watch(self, patch: pytest.MonkeyPatch, module: Any, function: str) -> None:
        real = getattr(module, function)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if function != "open" or args[1] & os.O_CREAT:
                self._next()
            return real(*args, **kwargs)

        patch.setattr(module, function, watched)

    def _next(self) -> None:
        if not self._acting:
            self.made += 1
            self._acting = True
            for number, act in self._acts:
                if number == self.made:
                    act()
            self._acting = False


def in_a_process(call: Callable[[], object]) -> bool:
    """Call it in a process of its own; tell whether it came to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        call()
    finally:
        os._exit(1)
    return False


def open_and_die_at(root: Path, nth: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Steps(patch, nth, lambda: os._exit(1))
        Storage(str(root), durable=False)
        os._exit(0)


def test_a_migration_that_is_killed_at_any_step_is_made_by_the_next_daemon(
    former: Former, root: Path
) -> None:
    former.dead(), former.dead()
    pristine = root.with_name("pristine")
    shutil.copytree(root, pristine)
    for nth in itertools.count(1):
        if in_a_process(lambda nth=nth: open_and_die_at(root, nth)):  # type: ignore[misc]
            break
        storage = Storage(str(root), durable=False)
        migrated(former)
        list(storage.reclaim_abandoned())
        assert leftovers(root) == []
        assert len(os.listdir(runs_of(root))) == 1
        storage.close()
        shutil.rmtree(root)
        shutil.copytree(pristine, root)
    assert nth > 15


def test_a_daemon_of_format_1_that_starts_meanwhile_is_kept_out_or_noticed(
    former: Former, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has opened its folders before step *first*, and has its lease before step *second*."""
    monkeypatch.setattr(migration, "_LOOK", 0)
    former.dead()
    pristine = root.with_name("pristine")
    shutil.copytree(root, pristine)
    outcomes = Counter[str]()
    for first, wait in ((step, wait) for step in itertools.count(1) for wait in (0, 1, 4)):
        old = Meanwhile(former)
        with monkeypatch.context() as patch:
            steps = Steps(patch, first, old.open, first + wait, old.settle)
            opened = outcome(lambda: Storage(str(root), durable=False))
        if steps.made < first:
            break
        old.settle()
        outcomes[old.judge(opened)] += 1
        Storage(str(root), durable=False).close()
        migrated(former)
        shutil.rmtree(root)
        shutil.copytree(pristine, root)
    assert min(outcomes["kept out"], outcomes["noticed"]) > 3, outcomes


class Meanwhile:
    """A daemon of format 1 that starts while one of format 2 does."""

    def __init__(self, former: Former) -> None:
        self._former = former
        self._runs: Any = None
        self._lease: Any = None

    def open(self) -> None:
        self._runs = outcome(self._former.open_folders)

    def settle(self) -> None:
        if isinstance(self._runs, int) and self._lease is None:
            self._lease = outcome(lambda: self._former.settle(self._runs))

    def judge(self, opened: Any) -> str:
        """Say which of the two has started, of which there must be one, and end it."""
        if isinstance(self._lease, int):
            assert isinstance(opened, OtherFormat), "both have started"
            os.close(self._lease)
            return "noticed"
        assert isinstance(opened, Storage), opened
        opened.close()
        return "kept out"


def test_daemons_that_migrate_at_once_share_what_comes_of_it(former: Former, root: Path) -> None:
    """Another one does all of it before each step of one."""
    former.dead()
    pristine = root.with_name("pristine")
    shutil.copytree(root, pristine)
    for nth in itertools.count(1):
        opened: list[Storage] = []

        def another(opened: list[Storage] = opened) -> None:
            opened.append(Storage(str(root), durable=False))

        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, nth, another)
            another()
        for storage in opened:
            workspace = storage.workspace
            for fd, folder in ((workspace.locks, "locks"), (workspace.records, "records")):
                assert os.path.samestat(os.fstat(fd), own(root, folder).stat())
            append(storage, b"f", b"+")
        migrated(former)
        for storage in opened:
            list(storage.reclaim_abandoned())
            storage.close()
        assert list(runs_of(root).iterdir()) == []
        shutil.rmtree(root)
        shutil.copytree(pristine, root)
        if len(opened) == 1:
            break
    assert nth > 15


def test_a_daemon_of_format_1_that_has_not_locked_its_lease_yet_loses_it(
    former: Former, root: Path
) -> None:
    run = former.dead()
    with (run / "lease").open() as lease:
        Storage(str(root)).close()
        fcntl.flock(lease, fcntl.LOCK_EX)
        assert os.fstat(lease.fileno()).st_nlink == 0  # which it looks at once it has the lock
    migrated(former)


def test_a_daemon_of_format_1_that_has_no_lease_yet_cannot_make_one(
    former: Former, root: Path
) -> None:
    run = former.private / "run" / "starting"
    run.mkdir()
    fd = os.open(run, os.O_RDONLY)
    storage = Storage(str(root))
    with pytest.raises(FileNotFoundError):
        os.open("lease", os.O_RDWR | os.O_CREAT, dir_fd=fd)
    os.close(fd)
    storage.close()
    migrated(former)


def test_a_daemon_of_format_1_that_makes_its_lease_this_moment_is_noticed(
    former: Former, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = former.private / "run" / "starting"
    run.mkdir()
    leases: list[TextIO] = []

    def rmdir(path: Any, **kwargs: Any) -> None:
        if not leases:
            leases.append((run / "lease").open("w"))
            fcntl.flock(leases[0], fcntl.LOCK_EX)
        real(path, **kwargs)

    real = os.rmdir
    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OtherFormat, match=r"0\.1 is running"):
        Storage(str(root))
    assert (run / "lease").exists()
    leases[0].close()
    Storage(str(root)).close()
    migrated(former)


def test_what_a_daemon_of_format_1_wrote_after_a_broken_migration_is_kept(
    former: Former, root: Path
) -> None:
    shutil.copytree(former.private / "records", own(root, "records"))
    shutil.copytree(former.private / "locks", own(root, "locks"))
    (former.private / "records" / "8c.undo").write_bytes(b"record")
    (own(root, "records") / "7b.undo").write_bytes(b"record")
    Storage(str(root)).close()
    assert sorted(os.listdir(own(root, "records"))) == ["7b.undo", "8c.undo"]
    migrated(former)
