from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import locks as locks_module
from httpnas.storage.append import Append
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import (
    Contended,
    IntoItself,
    IsFolder,
    NameTaken,
    NoSuchFile,
    NotAFolder,
    NotFreed,
    OtherFileSystem,
    Reserved,
    StorageError,
    StorageGone,
)
from httpnas.storage.locks import BUCKETS, Locked, NameLocks, all_buckets
from httpnas.storage.store import Storage
from httpnas.storage.workspace import _MOST_ALIVE
from tests.harness import wait_until
from tests.private import runs_of
from tests.storage.steps import (
    Refused,
    anything,
    at_once,
    leftovers,
    names,
    only,
    outcome,
    process,
    read,
    remove,
    tag,
    upload,
    with_another_lock,
)
from tests.storage.users import User, needs_root


@pytest.fixture(params=["renameat2", "no renameat2"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of renaming without replacing."""
    if request.param == "no renameat2":
        monkeypatch.setattr("httpnas.storage.rename._renameat2", None)
    return str(request.param)


# Moving


@pytest.mark.parametrize("create_only", [True, False])
def test_a_file_moves_with_its_version(storage: Storage, renaming: str, create_only: bool) -> None:
    before = upload(storage, b"a/f", b"content").tag
    storage.move(b"a/f", b"b/c/g", anything, create_only)
    assert read(storage, b"b/c/g") == b"content"
    assert tag(storage, b"b/c/g") == before
    assert names(storage, b"a") == []


@pytest.mark.parametrize("create_only", [True, False])
def test_a_folder_moves_with_all_in_it(storage: Storage, renaming: str, create_only: bool) -> None:
    upload(storage, b"a/b/f", b"content")
    upload(storage, b"a/g", b"more")
    storage.move(b"a", b"c/d", anything, create_only)
    assert names(storage) == [b"c"]
    assert names(storage, b"c/d") == [b"b", b"g"]
    assert read(storage, b"c/d/b/f") == b"content"


def test_a_moved_file_replaces_a_file(storage: Storage) -> None:
    upload(storage, b"a", b"new")
    upload(storage, b"b", b"old")
    storage.move(b"a", b"b", anything)
    assert names(storage) == [b"b"]
    assert read(storage, b"b") == b"new"


def test_a_replaced_destination_is_never_missing(storage: Storage) -> None:
    upload(storage, b"b", b"x")
    ended = threading.Event()

    def write() -> None:
        for _ in range(200):
            upload(storage, b"a", b"x")
            storage.move(b"a", b"b", anything)
        ended.set()

    def look() -> None:
        while not ended.is_set():
            assert read(storage, b"b") == b"x"

    assert at_once([write, look]) == [None, None]


@pytest.mark.parametrize("create_only", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_nothing_is_moved_onto_a_folder(
    storage: Storage, root: Path, renaming: str, empty: bool, create_only: bool
) -> None:
    upload(storage, b"f", b"content")
    upload(storage, b"d/f", b"content")
    (root / "e").mkdir()
    if not empty:
        upload(storage, b"e/f", b"other")
    for name in [b"f", b"d"]:
        for target in [b"e", b""]:
            with pytest.raises(NameTaken):
                storage.move(name, target, anything, create_only)
    assert names(storage) == [b"d", b"e", b"f"]
    assert names(storage, b"e") == ([] if empty else [b"f"])
    assert read(storage, b"d/f") == b"content"


def test_a_folder_is_not_moved_onto_a_file(storage: Storage, renaming: str) -> None:
    upload(storage, b"f", b"content")
    upload(storage, b"d/f", b"content")
    with pytest.raises(NameTaken):
        storage.move(b"d", b"f", anything)
    assert read(storage, b"f") == b"content"
    assert read(storage, b"d/f") == b"content"


def test_a_folder_is_not_moved_into_itself(storage: Storage) -> None:
    upload(storage, b"d/e/f", b"content")
    for target in [b"d/x", b"d/e", b"d/e/x", b"d/new/x"]:
        with pytest.raises(IntoItself):
            storage.move(b"d", target, anything)
    assert names(storage, b"d") == [b"e"]
    storage.move(b"d", b"dd", anything)  # only looks as if
    assert read(storage, b"dd/e/f") == b"content"


def test_a_move_onto_itself_loses_nothing(storage: Storage, renaming: str) -> None:
    before = upload(storage, b"d/f", b"content").tag
    storage.move(b"d/f", b"d/f", anything)
    with pytest.raises(NameTaken):
        storage.move(b"d/f", b"d/f", anything, create_only=True)
    with pytest.raises(NameTaken):
        storage.move(b"d", b"d", anything)
    assert tag(storage, b"d/f") == before


def test_a_missing_source_is_told(storage: Storage) -> None:
    upload(storage, b"f", b"content")
    for name in [b"none", b"none/none", b"f/x"]:
        with pytest.raises(NoSuchFile):
            storage.begin_move(name, anything)
        with pytest.raises(NoSuchFile):
            storage.move(name, b"made/target", anything)
    assert names(storage) == [b"f"]  # no folder was made for it


def test_a_file_on_the_way_of_the_destination_refuses(storage: Storage) -> None:
    upload(storage, b"f", b"content")
    upload(storage, b"g", b"other")
    with pytest.raises(NotAFolder):
        storage.move(b"g", b"f/x", anything)
    assert names(storage) == [b"f", b"g"]


def test_create_only_moves_onto_nothing_that_is_there(
    storage: Storage, root: Path, renaming: str
) -> None:
    upload(storage, b"f", b"content")
    upload(storage, b"g", b"other")
    (root / "link").symlink_to("nothing")
    for target in [b"g", b"link"]:
        with pytest.raises(NameTaken):
            storage.move(b"f", target, anything, create_only=True)
    assert read(storage, b"g") == b"other"
    assert read(storage, b"f") == b"content"
    assert os.readlink(root / "link") == "nothing"


def test_a_source_that_was_moved_to_the_destination_meanwhile_is_what_is_missing(
    storage: Storage, root: Path, renaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To say that the destination is taken would tell of a moment in which both were there."""
    upload(storage, b"old", b"x")

    def others_first(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(name: bytes, *arguments: Any) -> Any:
            if name == b"new" and (root / "old").exists():
                (root / "old").rename(root / "new")
            return call(name, *arguments)

        return called

    for step in ("stat", "make_parent"):
        monkeypatch.setattr(storage.root, step, others_first(getattr(storage.root, step)))
    with pytest.raises(NoSuchFile):
        storage.move(b"old", b"new", anything, create_only=True)
    assert (root / "new").read_bytes() == b"x"


def test_of_many_create_only_moves_to_one_name_exactly_one_wins(
    storage: Storage, renaming: str
) -> None:
    for round_ in range(10):
        for number in range(8):
            upload(storage, b"%d/f%d" % (round_, number), b"%d" % number)
        target = b"%d/target" % round_

        def move(number: int, round_: int = round_, target: bytes = target) -> None:
            storage.move(b"%d/f%d" % (round_, number), target, anything, create_only=True)

        results = at_once([partial(move, n) for n in range(8)])
        winners = [n for n, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert all(type(r) is NameTaken for n, r in enumerate(results) if n not in winners)
        assert read(storage, target) == b"%d" % winners[0]
        assert len(names(storage, b"%d" % round_)) == 8


def test_of_many_moves_of_one_name_exactly_one_wins(storage: Storage) -> None:
    for round_ in range(10):
        upload(storage, b"%d/f" % round_, b"content")
        results = at_once(
            [
                partial(storage.move, b"%d/f" % round_, b"%d/g%d" % (round_, n), anything)
                for n in range(8)
            ]
        )
        winners = [n for n, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert all(type(r) is NoSuchFile for n, r in enumerate(results) if n not in winners)
        assert names(storage, b"%d" % round_) == [b"g%d" % winners[0]]


def test_a_move_onto_another_link_of_the_file_leaves_the_destination_only(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"a", b"content")
    (root / "d").mkdir()
    for target in ["b", "d/a"]:
        os.link(root / "a", root / target)
        storage.move(b"a", target.encode(), anything)
        assert not (root / "a").exists()
        assert read(storage, target.encode()) == b"content"
        os.rename(root / target, root / "a")


def test_a_file_is_not_lost_when_both_names_become_one_in_the_middle(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for links in [1, 2]:
        upload(storage, b"a/f", b"content")
        if links == 2:
            os.link(root / "a" / "f", root / "other")
        real = storage.root.make_parent

        def late(*args: Any, real: Any = real) -> int:
            monkeypatch.setattr(storage.root, "make_parent", real)
            os.rename(root / "a", root / "b")  # so that a/f and b/f are one
            return int(real(*args))

        monkeypatch.setattr(storage.root, "make_parent", late)
        with pytest.raises(NoSuchFile):
            storage.move(b"a/f", b"b/f", anything)
        assert read(storage, b"b/f") == b"content"
        remove(storage, b"b")


def test_a_file_is_not_lost_where_upper_and_lower_case_are_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on such a file system: each name finds the file, and rename(2) finds nothing to do."""
    upload(storage, b"f", b"content")
    real = {function: getattr(os, function) for function in ["stat", "open", "unlink"]}
    for function, call in real.items():
        monkeypatch.setattr(
            os, function, lambda name, *args, call=call, **kw: call(_lower(name), *args, **kw)
        )
    monkeypatch.setattr(os, "rename", lambda *args, **kwargs: None)
    storage.move(b"f", b"F", anything)
    monkeypatch.undo()
    assert read(storage, b"f") == b"content"


def _lower(name: Any) -> Any:
    return name.lower() if isinstance(name, bytes) else name


def test_the_check_of_a_move_sees_the_source(storage: Storage) -> None:
    before = upload(storage, b"a", b"one").tag
    upload(storage, b"a", b"two")
    upload(storage, b"b", b"other")
    with pytest.raises(Refused):
        storage.move(b"a", b"b", only(before))
    assert read(storage, b"b") == b"other"
    storage.move(b"a", b"b", only(tag(storage, b"a")))
    assert read(storage, b"b") == b"two"


def test_a_source_swapped_with_a_link_moves_nothing_from_outside(
    storage: Storage, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    upload(storage, b"f", b"inside")
    real = storage.root.make_parent

    def late(*args: Any) -> int | None:
        (root / "f").unlink()
        (root / "f").symlink_to("../outside")
        return real(*args)

    monkeypatch.setattr(storage.root, "make_parent", late)
    outcome(lambda: storage.move(b"f", b"g", anything))
    assert (tmp_path / "outside").read_bytes() == b"outside"
    for name in [b"f", b"g"]:
        with pytest.raises(NoSuchFile):
            storage.open(name)


def test_a_move_to_another_file_system_is_refused(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"content")
    (root / "d").mkdir()
    storage.root.mount = storage.root.mount._replace(device=0)
    with pytest.raises(OtherFileSystem):
        storage.move(b"f", b"d/f", anything)
    assert read(storage, b"f") == b"content"


def test_what_is_new_keeps_its_name_where_no_flag_does_that(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has the call but the file system refuses the flag (CephFS, NFS)."""
    calls: list[Any] = []

    def refuses(*args: Any) -> int:
        calls.append(args)
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr("httpnas.storage.rename._renameat2", refuses)
    upload(storage, b"d/f", b"content", create_only=True)
    storage.move(b"d", b"e", anything)
    storage.move(b"e/f", b"e/g", anything, create_only=True)
    assert len(calls) == 3
    assert read(storage, b"e/g") == b"content"
    with pytest.raises(NameTaken):
        storage.move(b"e/g", b"e/g", anything, create_only=True)
    upload(storage, b"e/f", b"content")
    with pytest.raises(NameTaken):
        upload(storage, b"e/f", b"new", create_only=True)


# Removing


def test_a_removed_file_is_gone(storage: Storage) -> None:
    upload(storage, b"d/f", b"content")
    assert storage.remove(b"d/f", anything) is None
    with pytest.raises(NoSuchFile):
        storage.open(b"d/f")
    assert names(storage, b"d") == []  # its folder stays


def test_a_folder_goes_at_once_and_is_reclaimed_step_by_step(storage: Storage, root: Path) -> None:
    for number in range(50):
        upload(storage, b"d/e%d/f" % number, b"content")
    aside = storage.remove(b"d", anything)
    assert aside is not None
    assert names(storage) == []
    upload(storage, b"d/f", b"new")  # the name is free
    assert len(leftovers(root)) == 1
    steps = sum(1 for _ in storage.reclaim(aside))
    assert steps >= 100
    assert leftovers(root) == []
    assert read(storage, b"d/f") == b"new"


def test_what_is_not_there_can_not_be_removed(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"content")
    os.mkfifo(root / "fifo")
    for name in [b"none", b"none/x", b"f/x", b"fifo"]:
        with pytest.raises(NoSuchFile):
            storage.remove(name, anything)
    assert (root / "fifo").exists()
    with pytest.raises(Reserved):
        storage.remove(b"", anything)
    with pytest.raises(Reserved):
        storage.move(b"", b"x", anything)
    assert names(storage) == [b"f"]


def test_the_check_decides_whether_the_present_version_goes(storage: Storage) -> None:
    before = upload(storage, b"f", b"one").tag
    upload(storage, b"f", b"two")
    with pytest.raises(Refused):
        storage.remove(b"f", only(before))
    assert read(storage, b"f") == b"two"
    storage.remove(b"f", only(tag(storage, b"f")))


def test_of_many_who_remove_one_name_exactly_one_does(storage: Storage, root: Path) -> None:
    for round_ in range(10):
        for name, removed in [(b"f%d" % round_, b"f%d"), (b"d%d/f" % round_, b"d%d")]:
            upload(storage, name, b"content")
            results = at_once(
                [partial(storage.remove, removed % round_, anything) for _ in range(8)]
            )
            assert len([r for r in results if not isinstance(r, Exception)]) == 1
            assert all(type(r) is NoSuchFile for r in results if isinstance(r, Exception))


def test_uploads_and_removals_of_their_folder_race_without_an_error(
    storage: Storage, root: Path
) -> None:
    ended = threading.Event()

    def write(number: int) -> None:
        for _ in range(150):
            upload(storage, b"d/e/f%d" % number, b"x")
        ended.set()

    def sweep() -> None:
        while not ended.is_set():
            result = outcome(lambda: remove(storage, b"d"))
            assert result is None or type(result) is NoSuchFile, result

    assert at_once([lambda: write(0), lambda: write(1), sweep]) == [None] * 3


def test_a_tree_of_any_depth_is_reclaimed_with_few_descriptors(
    storage: Storage, root: Path
) -> None:
    depth, at = 3000, os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(at)
        at = below
    os.close(at)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + BUCKETS + 20, limits[1]))
    try:
        remove(storage, b"d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        left = os.listdir(root) != [".httpnas"] or leftovers(root) != []
        subprocess.run(["rm", "-rf", root / "d", runs_of(root)], check=True)
    assert not left


def test_what_can_not_be_reclaimed_does_not_keep_the_rest(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [b"d/a/f", b"d/b/f", b"d/b/stuck", b"d/b/z", b"d/b/x/f", b"d/c/f"]:
        upload(storage, name, b"content")
    real = os.unlink

    def unlink(name: Any, **kwargs: Any) -> None:
        if name == b"stuck":
            raise PermissionError(1, "not permitted")
        real(name, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(NotFreed, match=r"^1 entries .*'stuck': not permitted"):
        remove(storage, b"d")
    assert names(storage) == []
    left = [path for path in runs_of(root).rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["lease", "stuck"]


@needs_root
def test_all_is_freed_but_what_another_user_has_and_that_is_told_until_it_is(root: Path) -> None:
    def as_user() -> tuple[list[str], list[str]]:
        told, storage = [], Storage(".", durable=False)
        aside = storage.remove(b"d", anything)
        assert aside is not None
        for steps in (storage.reclaim(aside), Storage(".", durable=False).reclaim_abandoned()):
            told.append(str(outcome(partial(sum, (0 for _ in steps)))))
        left = [path.name for path in runs_of(Path(".")).rglob("*") if path.name != "lease"]
        storage.close()
        again = Storage(".", durable=False)
        told.append(str(outcome(partial(sum, (0 for _ in again.reclaim_abandoned())))))
        again.close()
        return told, left

    root.chmod(0o777)
    for number, (folder, bits, owner) in enumerate(
        [("mine", 0o755, 2000), ("still", 0o555, 2000), ("shut", 0, 2000), ("other", 0o755, 3000)]
    ):
        deep = root / "d" / folder / "deep"
        deep.mkdir(parents=True)
        for path in (deep / "f", root / "d" / folder / f"f{number}"):
            path.touch()
            os.chown(path, owner, owner)
        for path in (deep, deep.parent):
            os.chown(path, owner, owner)
            path.chmod(bits)
    os.chown(root / "d", 2000, 2000)
    told, left = User(2000, 2000).does(root, as_user)
    assert "'deep': Permission denied" in told[0] or "'f3': Permission denied" in told[0]
    assert told[1] == "0"  # its daemon is alive
    assert "Permission denied" in told[2]
    assert {name for name in left if name.startswith("f") and "-" not in name} == {"f", "f3"}
    assert [name for name in left if name in ("mine", "still", "shut")] == []

    last = Storage(str(root), durable=False)
    assert list(last.reclaim_abandoned())
    assert leftovers(root) == []
    last.close()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSPC, errno.EINVAL, errno.EACCES])
@pytest.mark.parametrize("create_only", [True, False])
def test_what_is_refused_leaves_no_new_folder(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, create_only: bool
) -> None:
    upload(storage, b"f", b"content")
    (root / "there").mkdir()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr("httpnas.storage.upload.name_new", fail)
    monkeypatch.setattr("httpnas.storage.tree.rename_new", fail)
    for folder in [b"new/a/b", b"there/a"]:
        with pytest.raises(StorageError):
            upload(storage, folder + b"/f", b"new", create_only=create_only)
        with pytest.raises(StorageError):
            storage.move(b"f", folder + b"/f", anything, create_only)
    assert names(storage) == [b"f", b"there"]
    assert os.listdir(root / "there") == []


def test_what_waited_for_a_lock_in_vain_leaves_no_new_folder(storage: Storage) -> None:
    storage.locks._timeout = 0
    upload(storage, b"f", b"content")
    others = NameLocks(storage.workspace.locks)
    with closing(others.claim()) as claim:
        claim.take(all_buckets())
        for act in [
            lambda: upload(storage, b"new/a/f", b"new"),
            lambda: storage.move(b"f", b"new/a/f", anything),
        ]:
            assert type(outcome(act)) is Contended
    assert names(storage) == [b"f"]


def test_of_many_new_folders_a_call_makes_only_some_and_all_go_again_when_refused(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = os.mkdir

    def mkdir(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        made.append(1)

    monkeypatch.setattr(os, "mkdir", mkdir)
    deep = b"/".join([b"d"] * 450)
    for check in [anything, only("none")]:
        begun = storage.begin_upload(deep + b"/f", anything)
        calls = 0
        with closing(begun), closing(begun.claim()) as claim:
            while True:
                made.clear()
                calls += 1
                try:
                    begun.publish(check, claim=claim)
                except Locked:
                    assert len(made) == 100
                    continue
                except Refused:
                    assert check is not anything
                break
        assert calls == 5
        if check is anything:
            assert read(storage, deep + b"/f") == b""
            remove(storage, b"d")
    assert names(storage) == []


def test_a_folder_on_the_way_that_somebody_removes_is_made_again(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"content")
    real = os.rename
    removed: list[bool] = []

    def rename(*args: Any, **kwargs: Any) -> None:
        if not removed:
            (root / "new/a").rmdir()
            removed.append(True)
        real(*args, **kwargs)

    monkeypatch.setattr(os, "rename", rename)
    storage.move(b"f", b"new/a/f", anything)
    assert removed
    assert read(storage, b"new/a/f") == b"content"


# What other daemons leave behind


_DAEMON = """
import sys
from httpnas.storage.store import Storage
from tests.storage.steps import anything, upload
storage = Storage(sys.argv[1], durable=False)
upload(storage, b"doomed/e/f", b"content")
storage.remove(b"doomed", anything)
pending = storage.begin_upload(b"f", anything)
pending.write([b"content"])
print("ready", flush=True)
sys.stdin.readline()
pending.publish(anything)
pending.close()
storage.close()
"""


@pytest.fixture
def daemon(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another daemon on the same root, with an upload under way and a tree set aside."""
    daemon = process(_DAEMON, str(root))
    assert daemon.stdout and daemon.stdout.readline() == b"ready\n"
    yield daemon
    daemon.kill()
    daemon.communicate()


def test_leftovers_of_a_killed_daemon_are_reclaimed(
    daemon: subprocess.Popen[bytes], storage: Storage, root: Path
) -> None:
    assert len(leftovers(root)) == 2
    daemon.kill()
    daemon.wait()
    assert sum(1 for _ in storage.reclaim_abandoned()) >= 3
    assert leftovers(root) == []
    assert len(os.listdir(runs_of(root))) == 1  # its folder is gone too
    assert names(storage) == []


def test_a_living_daemon_keeps_what_is_its_own(
    daemon: subprocess.Popen[bytes], storage: Storage, root: Path
) -> None:
    before = leftovers(root)
    for _ in storage.reclaim_abandoned():
        pass
    assert leftovers(root) == before
    daemon.communicate(b"\n", timeout=20)
    assert daemon.returncode == 0
    assert read(storage, b"f") == b"content"


def test_what_is_being_reclaimed_keeps_its_folder_open(storage: Storage, root: Path) -> None:
    """Another file may have the number of a descriptor that is closed too early."""
    other = Storage(str(root), durable=False)
    upload(other, b"d/f", b"content")
    aside = other.remove(b"d", anything)
    assert aside is not None
    folder, run = other.workspace.fd, os.fstat(other.workspace.fd)
    steps = other.reclaim(aside)
    del other
    gc.collect()
    assert os.path.samestat(os.fstat(folder), run)
    for _ in steps:
        pass
    del steps
    gc.collect()
    assert leftovers(root) == []


def test_a_storage_that_can_not_be_opened_keeps_no_descriptors(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr("os.mkdir", refuse)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(StorageError):
            storage.reopened()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors to be closed")


def test_a_storage_is_opened_anew_where_its_path_leads_to_it(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"content")
    again = storage.reopened()
    assert read(again, b"f") == b"content"
    again.close()
    moved = root.with_name("moved")
    root.rename(moved)
    root.mkdir()
    with pytest.raises(StorageGone):
        storage.reopened()
    assert list(root.iterdir()) == []
    root.rmdir()
    moved.rename(root)


def test_what_needs_a_working_folder_that_is_gone_is_not_said_to_be_missing(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"d/f", b"content")
    begun = storage.begin_upload(b"g", anything)
    shutil.rmtree(runs_of(root))
    with pytest.raises(StorageGone):
        begun.publish(anything)
    begun.close()
    with pytest.raises(StorageGone):
        storage.volume.verify()


def test_of_many_living_daemons_some_are_looked_at_and_a_dead_one_is_found(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Storage(str(root), durable=False) for _ in range(_MOST_ALIVE + 8)]
    dead = runs_of(root) / "dead"
    dead.mkdir()
    (dead / "lease").touch()
    flock, refused = fcntl.flock, []

    def look(fd: int, operation: int) -> None:
        try:
            flock(fd, operation)
        except BlockingIOError:
            refused.append(fd)
            raise

    monkeypatch.setattr("fcntl.flock", look)
    while dead.exists():
        refused.clear()
        for _ in storage.reclaim_abandoned():
            pass
        assert len(refused) <= _MOST_ALIVE
    for other in others:
        other.close()


def test_a_stopped_storage_leaves_no_folder_unless_something_is_in_it(
    storage: Storage, root: Path
) -> None:
    other = Storage(str(root), durable=False)
    assert len(os.listdir(runs_of(root))) == 2
    other.close()
    assert len(os.listdir(runs_of(root))) == 1
    other = Storage(str(root), durable=False)
    upload(other, b"d/f", b"content")
    other.remove(b"d", anything)
    other.close()
    assert len(leftovers(root)) == 1
    for _ in storage.reclaim_abandoned():
        pass
    assert leftovers(root) == []


def test_a_folder_without_a_lease_is_removed_only_when_it_is_empty(
    storage: Storage, root: Path
) -> None:
    runs = runs_of(root)
    (runs / "empty").mkdir()
    (runs / "full").mkdir()
    (runs / "full" / "starting").touch()
    (runs / "no folder").touch()
    for _ in storage.reclaim_abandoned():
        pass
    assert not (runs / "empty").exists()
    assert (runs / "full" / "starting").exists()


def test_daemons_start_while_others_reclaim(storage: Storage, root: Path) -> None:
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            for _ in storage.reclaim_abandoned():
                pass

    def start_and_use() -> None:
        try:
            for number in range(60):
                started = Storage(str(root), durable=False)
                upload(started, b"f", b"%d" % number)
                started.close()
        finally:
            ended.set()

    assert at_once([sweep, start_and_use]) == [None, None]
    assert read(storage, b"f") == b"59"


# Locks


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """A folder for the lock files."""
    (tmp_path / "locks").mkdir()
    fd = os.open(tmp_path / "locks", os.O_RDONLY)
    yield fd
    os.close(fd)


_HOLDER = """
import os, sys
from httpnas.storage.locks import NameLocks
folder = os.open(sys.argv[1], os.O_RDONLY)
with NameLocks(folder).hold((folder, b"name")):
    print("ready", flush=True)
    sys.stdin.readline()
print("given back", flush=True)
sys.stdin.readline()
"""


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("killed", [True, False])
def test_a_lock_is_held_across_processes_until_it_is_given_back(
    folder: int, tmp_path: Path, killed: bool
) -> None:
    holder = process(_HOLDER, str(tmp_path / "locks"))
    assert holder.stdout and holder.stdin and holder.stdout.readline() == b"ready\n"
    locks = NameLocks(folder, timeout=30)
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(locks_module, "time", clock)
        with pytest.raises(Contended), locks.hold((folder, b"name")):
            pass
        assert 30 <= clock.now < 30.1
    with locks.hold((folder, with_another_lock(folder, (folder, b"name")))):
        pass
    if killed:
        holder.kill()
        holder.wait()
    else:
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"given back\n"
    with locks.hold((folder, b"name")):
        pass
    holder.kill()
    holder.communicate()


def test_a_lock_given_up_on_leaves_no_descriptor(folder: int) -> None:
    locks = NameLocks(folder, timeout=0.01)
    with locks.hold((folder, b"b")):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(Contended), locks.hold((folder, b"a"), (folder, b"b")):
                pass
        assert len(os.listdir("/proc/self/fd")) == before
    with locks.hold((folder, b"b"), (folder, b"b")):  # one lock, not one that waits for itself
        pass


def test_two_names_in_both_orders_never_wait_for_each_other(folder: int) -> None:
    locks = NameLocks(folder, timeout=10)
    inside: list[int] = []

    def take(*names: bytes) -> None:
        for _ in range(100):
            with locks.hold(*((folder, name) for name in names)):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    orders = [(b"a", b"b"), (b"b", b"a"), (b"a", b"b", b"c"), (b"c", b"b", b"a")]
    assert at_once([partial(take, *order) for order in orders]) == [None] * 4


def test_a_lock_is_that_of_the_place_whatever_its_folder_is_called(
    folder: int, tmp_path: Path
) -> None:
    locks = NameLocks(folder, timeout=0.01)
    (tmp_path / "a").mkdir()
    a = os.open(tmp_path / "a", os.O_RDONLY)
    with locks.hold((a, b"f")):
        os.rename(tmp_path / "a", tmp_path / "b")
        b = os.open(tmp_path / "b", os.O_RDONLY)
        with pytest.raises(Contended), locks.hold((b, b"f")):
            pass
    os.close(a)
    os.close(b)


@pytest.mark.parametrize("operation", ["upload", "append", "move", "move to", "remove"])
def test_every_change_waits_for_the_lock_of_its_name(
    storage: Storage, root: Path, operation: str
) -> None:
    upload(storage, b"f", b"content")
    upload(storage, b"g", b"content")
    (root / "d").mkdir()
    with owned(os.open(root / "d", os.O_RDONLY)) as folder:
        other = b"d/" + with_another_lock(folder, (storage.root.fd, b"f"))
    pending = storage.begin_append(b"f", anything)
    assert isinstance(pending, Append)
    pending.write([b"x"])
    acts: dict[str, Callable[[], Any]] = {
        "upload": lambda: upload(storage, b"f", b"new"),
        "append": pending.commit,
        "move": lambda: storage.move(b"f", b"h", anything),
        "move to": lambda: storage.move(b"g", b"f", anything),
        "remove": lambda: storage.remove(b"f", anything),
    }
    storage.locks._timeout = 0.02
    with storage.locks.hold((storage.root.fd, b"f")):
        with pytest.raises(Contended):
            acts[operation]()
        upload(storage, other, b"not in the way")
    acts[operation]()
    pending.close()


def test_a_folder_at_the_name_of_a_file_is_told(storage: Storage) -> None:
    upload(storage, b"d/f", b"content")
    with pytest.raises(IsFolder):
        storage.version_of(b"d")
