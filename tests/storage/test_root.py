from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import root as root_module
from httpnas.storage.errors import (
    NoSuchFile,
    NotAFolder,
    OtherFileSystem,
    Reserved,
    StorageAway,
    StorageError,
    translated,
)
from httpnas.storage.listing import Folder
from httpnas.storage.locks import Claim
from httpnas.storage.root import FOLDER, READ, Root, is_private
from httpnas.storage.store import Storage, StoredFile
from tests.private import LOCKS, RUNS, runs_of
from tests.storage.steps import (
    anything,
    append,
    at_once,
    begin_append,
    content_of,
    leftovers,
    names,
    opened,
    outcome,
    read,
    remove,
    upload,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=["openat2", "walk"])
def storage(request: pytest.FixtureRequest, root: Path) -> Iterator[Storage]:
    storage = Storage(str(root), durable=False)
    if request.param == "walk":
        storage.root.kernel_walks = False
    elif not storage.root.kernel_walks:
        storage.close()
        pytest.skip("this kernel or container has no openat2")
    yield storage
    storage.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the root, with a file and a folder."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret").write_bytes(b"outside")
    (folder / "deep" / "secret").write_bytes(b"outside")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }


#: Every operation that names a file, with the arguments that let it do harm.
OPERATIONS: dict[str, Callable[[Storage, bytes], Any]] = {
    "open": lambda storage, name: storage.open(name).close(),
    "look": lambda storage, name: storage.version_of(name),
    "upload": lambda storage, name: upload(storage, name, b"new"),
    "create": lambda storage, name: upload(storage, name, b"new", create_only=True),
    "append": lambda storage, name: append(storage, name, b"more"),
    "move": lambda storage, name: storage.move(name, b"moved", anything),
}


def test_a_name_is_reached_at_any_depth(storage: Storage) -> None:
    deep = b"/".join([b"d"] * 500) + b"/f"
    upload(storage, deep, b"content")
    assert read(storage, deep) == b"content"
    assert names(storage, b"/".join([b"d"] * 500)) == [b"f"]


def test_walks_give_their_descriptors_back(storage: Storage) -> None:
    upload(storage, b"a/b/f", b"")
    os.symlink("b", os.path.join(b"/proc/self/fd/%d" % storage.root.fd, b"a/link").decode())
    before = len(os.listdir("/proc/self/fd"))
    for name in [b"", b"a", b"a/b/f", b"a/link", b"a/link/f", b"a/b/f/x", b"a/no/f", b".httpnas"]:
        for act in OPERATIONS.values():
            outcome(partial(act, storage, name))
        outcome(partial(storage.remove, name, anything))
        upload(storage, b"a/b/f", b"")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("act", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    "target",
    ["../outside/secret", "../outside/deep", "../outside", "inside", "folder", "nothing", "loop"],
)
def test_a_link_at_the_leaf_is_nothing(
    storage: Storage,
    root: Path,
    outside: Path,
    target: str,
    act: Callable[[Storage, bytes], Any],
) -> None:
    (root / "inside").write_bytes(b"inside")
    (root / "folder").mkdir()
    (root / "loop").symlink_to(target)
    before = snapshot(outside)
    with pytest.raises(NoSuchFile):
        act(storage, b"loop")
    assert snapshot(outside) == before
    assert (root / "inside").read_bytes() == b"inside"
    assert os.listdir(root / "folder") == []
    assert os.readlink(root / "loop") == target
    assert not (root / "nothing").exists()


@pytest.mark.parametrize("act", [*OPERATIONS.values()], ids=OPERATIONS)
@pytest.mark.parametrize("way", [b"link/secret", b"real/link/secret", b"link/deep/secret"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_on_the_way_is_nothing(
    storage: Storage,
    root: Path,
    outside: Path,
    act: Callable[[Storage, bytes], Any],
    way: bytes,
    absolute: bool,
) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to(outside if absolute else "../outside")
    (root / "real" / "link").symlink_to(outside if absolute else "../../outside")
    before = snapshot(outside)
    with pytest.raises(NoSuchFile):
        act(storage, way)
    with pytest.raises(NoSuchFile):
        storage.remove(way, anything)
    assert snapshot(outside) == before


@pytest.mark.parametrize("target", ["../outside", "real", "nothing", "/etc"])
def test_a_link_to_a_folder_is_not_passed_by_what_is_made_or_moved(
    storage: Storage, root: Path, outside: Path, target: str
) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to(target)
    upload(storage, b"f", b"content")
    before = snapshot(outside)
    for name in [b"link/new", b"link/new/newer"]:
        with pytest.raises(NoSuchFile):
            upload(storage, name, b"new")
        with pytest.raises(NoSuchFile):
            storage.move(b"f", name, anything)
    assert snapshot(outside) == before
    assert os.listdir(root / "real") == []
    assert read(storage, b"f") == b"content"
    assert not (root / "nothing").exists()


def test_removing_a_link_removes_the_link_only(storage: Storage, root: Path, outside: Path) -> None:
    before = snapshot(outside)
    for number, target in enumerate(["../outside", "../outside/secret", "nothing"]):
        (root / f"{number}").symlink_to(target)
        assert storage.remove(b"%d" % number, anything) is None
        assert not (root / f"{number}").is_symlink()
    assert snapshot(outside) == before


def test_reclaiming_a_folder_with_links_in_it_leaves_what_they_point_to(
    storage: Storage, root: Path, outside: Path
) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "link").symlink_to(outside)
    (root / "d" / "e" / "link").symlink_to(outside / "deep")
    before = snapshot(outside)
    remove(storage, b"d")
    assert snapshot(outside) == before
    assert leftovers(root) == []


def _open_to_change(storage: Storage, name: bytes) -> None:
    def hold(claim: Claim) -> None:
        with storage.held_file(name, root_module.WRITE, claim):
            raise AssertionError("it was opened")

    with translated():
        storage.patiently(hold, None)


@pytest.mark.parametrize("kind", ["fifo", "socket", "null"])
def test_special_files_are_nothing_and_never_hang(storage: Storage, root: Path, kind: str) -> None:
    _make_special(root, kind)
    acts: list[Callable[[], Any]] = [
        *(partial(act, storage, b"special") for act in OPERATIONS.values()),
        lambda: storage.open_cached(b"special") or storage.open(b"special"),
        lambda: storage.open(b"special/below"),
        lambda: append(storage, b"special/below", b""),
        lambda: storage.remove(b"special", anything),
        lambda: _open_to_change(storage, b"special"),
    ]
    for result in at_once(acts):
        assert type(result) is NoSuchFile
    with pytest.raises(NotAFolder):
        upload(storage, b"special/below", b"")
    assert (root / "special").exists()
    assert names(storage) == []


def _make_special(root: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(root / "special")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            # The path of a socket has a short limit: it is bound by a relative one.
            here = os.getcwd()
            os.chdir(root)
            try:
                unix.bind("special")
            finally:
                os.chdir(here)
    else:
        try:
            os.mknod(root / "special", 0o666 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make devices")


def test_a_device_that_comes_in_the_middle_of_an_append_is_not_written_to(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"special", b"old")
    pending = begin_append(storage, b"special")
    pending.write([b"more"])
    (root / "special").unlink()
    os.mkfifo(root / "special")
    with pytest.raises(NoSuchFile):
        pending.commit()
    pending.close()


def test_a_link_that_comes_in_the_middle_of_an_upload_or_append_is_not_followed(
    storage: Storage, root: Path, outside: Path
) -> None:
    before = snapshot(outside)
    upload(storage, b"f", b"old")
    pending = begin_append(storage, b"f")
    pending.write([b"more"])
    (root / "f").unlink()
    (root / "f").symlink_to("../outside/secret")
    with pytest.raises(NoSuchFile):
        pending.commit()
    pending.close()
    (root / "f").unlink()

    begun = storage.begin_upload(b"d/f", anything)
    begun.write([b"new"])
    (root / "d").symlink_to("../outside")
    with pytest.raises(NoSuchFile):
        begun.publish(anything)
    begun.close()
    assert snapshot(outside) == before


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step: renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


def _need_exchange(root: Path) -> None:
    try:
        _exchange(root / "d", root / "link")
        _exchange(root / "d", root / "link")
    except OSError:
        pytest.skip("this file system cannot swap two names in one step")


def _rounds(succeeded: list[int]) -> Iterator[int]:
    """Yield once a round, until there were many and enough of their acts have succeeded."""
    for number in range(5000):
        if number >= 150 and sum(succeeded) > 60:
            return
        yield number


def test_a_folder_swapped_with_a_link_in_a_race_never_leads_outside(
    storage: Storage, root: Path, outside: Path
) -> None:
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "secret").write_bytes(b"inside")
    (root / "d" / "deep" / "secret").write_bytes(b"inside")
    (root / "link").symlink_to("../outside")
    _need_exchange(root)
    before = snapshot(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            _exchange(root / "d", root / "link")

    def look() -> bytes:
        return read(storage, b"d/secret")

    def listing() -> bytes:
        folder = storage.open(b"d")
        assert isinstance(folder, Folder)
        outer = os.path.samestat(os.fstat(folder.fd), os.stat(outside))
        folder.close()
        return b"outside" if outer else b"inside"

    def cached() -> bytes:
        file = storage.open_cached(b"d/deep/secret")
        if file is None:
            raise NoSuchFile
        assert isinstance(file, StoredFile)
        content = content_of(file)
        file.close()
        return content

    acts: list[Callable[[], Any]] = [
        look,
        listing,
        cached,
        lambda: upload(storage, b"d/new", b"new"),
        lambda: upload(storage, b"d/deep/newer/newest", b"new"),
        lambda: storage.remove(b"d/new", anything),
        lambda: remove(storage, b"d/deep/newer"),
        lambda: append(storage, b"d/deep/secret", b""),
        lambda: append(storage, b"d/log", b"x"),
        lambda: upload(storage, b"d/log", b"x"),
        lambda: storage.move(b"d/log", b"d/deep/log", anything),
        lambda: storage.move(b"d/secret", b"secret", anything),
        lambda: storage.move(b"secret", b"d/secret", anything),
    ]
    swapper = threading.Thread(target=swap)
    swapper.start()
    succeeded = [0] * len(acts)
    try:
        for _ in _rounds(succeeded):
            for number, act in enumerate(acts):
                result = outcome(act)
                if isinstance(result, Exception):
                    assert isinstance(result, StorageError), result
                else:
                    succeeded[number] += 1
                    assert result != b"outside"
    finally:
        ended.set()
        swapper.join()
    assert snapshot(outside) == before
    assert sum(succeeded) > 60  # the folder is there half of the time


def test_the_private_folder_does_not_exist_for_reads(storage: Storage, root: Path) -> None:
    run = next(runs_of(root).iterdir()).name
    for name in [b".httpnas", RUNS.encode(), f"{RUNS}/{run}/lease".encode()]:
        with pytest.raises(NoSuchFile):
            storage.open(name)
        assert storage.open_cached(name) is None
    assert names(storage) == []


@pytest.mark.parametrize(
    "name", [b".httpnas", b".httpnas/new", f"{LOCKS}/000".encode(), RUNS.encode()]
)
def test_the_private_folder_is_not_for_clients_to_change(storage: Storage, name: bytes) -> None:
    upload(storage, b"f", b"content")
    acts: list[Callable[[], Any]] = [
        lambda: upload(storage, name, b"new"),
        lambda: upload(storage, name, b"new", create_only=True),
        lambda: append(storage, name, b"more"),
        lambda: storage.move(b"f", name, anything),
        lambda: storage.move(b"f", name, anything, create_only=True),
        lambda: storage.move(name, b"g", anything),
        lambda: storage.begin_move(name, anything),
        lambda: storage.remove(name, anything),
    ]
    for act in acts:
        with pytest.raises(Reserved):
            act()
    assert names(storage) == [b"f"]


def test_only_the_private_folder_itself_is_private(storage: Storage) -> None:
    assert is_private(b".httpnas")
    assert is_private(b".httpnas/x")
    for name in [b".httpnas2", b".httpna", b"d/.httpnas", b".httpnas\n"]:
        assert not is_private(name)
    upload(storage, b"d/.httpnas/f", b"content")
    upload(storage, b".httpnas2/f", b"content")
    assert read(storage, b"d/.httpnas/f") == b"content"
    assert names(storage, b"d") == [b".httpnas"]
    assert names(storage) == [b".httpnas2", b"d"]


def test_open_cached_gives_the_same_as_open_or_nothing(storage: Storage, root: Path) -> None:
    upload(storage, b"d/f", b"content")
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("d")
    for name in [b"d/f", b"d", b"", b"none", b"link", b"link/f", b"d/f/x"]:
        by_open = outcome(partial(storage.open, name))
        cached = storage.open_cached(name)
        if cached is None:
            assert isinstance(by_open, NoSuchFile) or not storage.root.kernel_walks
        else:
            assert type(cached) is type(by_open)
            assert os.path.samestat(os.fstat(cached.fd), os.fstat(by_open.fd))
            cached.close()
        if not isinstance(by_open, Exception):
            by_open.close()


def test_open_cached_succeeds_for_what_was_just_read(storage: Storage) -> None:
    if not (storage.root.kernel_walks and storage.opens_at_once):
        assert storage.open_cached(b"") is None
        return
    upload(storage, b"d/f", b"content")
    opened(storage, b"d/f").close()
    cached = storage.open_cached(b"d/f")
    if cached is None:
        pytest.skip("this kernel knows no RESOLVE_CACHED")
    assert isinstance(cached, StoredFile)
    assert content_of(cached) == b"content"
    cached.close()


def test_a_file_on_the_way_is_told_from_nothing(storage: Storage) -> None:
    upload(storage, b"f", b"content")
    for name in [b"f/x", b"f/x/y"]:
        with pytest.raises(NotAFolder):
            storage.root.stat(name)
        with pytest.raises(NotAFolder):
            storage.root.open_parent(name)
        with pytest.raises(NotAFolder):
            storage.root.make_parent(name, sync=False)
        with pytest.raises(NoSuchFile):
            storage.open(name)
    assert storage.root.stat(b"none/x") is None
    with pytest.raises(NoSuchFile):
        storage.root.open_parent(b"none/x")


def test_a_folder_removed_again_and_again_while_it_is_made_ends_in_an_error(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def mkdir(name: Any, *args: Any, **kwargs: Any) -> None:
        real(name, *args, **kwargs)
        os.rmdir(name, dir_fd=kwargs["dir_fd"])

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StorageAway):
        storage.root.make_parent(b"d/f", sync=False)


def test_nothing_is_made_in_another_file_system_below_the_root(
    storage: Storage, root: Path
) -> None:
    (root / "mnt").mkdir()
    storage.root.mount = storage.root.mount._replace(device=0)
    with pytest.raises(OtherFileSystem):
        upload(storage, b"mnt/f", b"content")
    assert os.listdir(root / "mnt") == []


def test_links_on_the_way_to_the_root_itself_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(root)
    way = Root(str(tmp_path / "way"))
    assert os.path.samestat(os.fstat(way.fd), os.stat(root))
    way.close()


def test_a_root_that_is_a_file_or_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ["file", "missing"]:
        with pytest.raises(NoSuchFile):
            Root(str(tmp_path / name))


def test_a_refused_openat2_makes_the_walk_take_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(root_module, "_syscall", refused)
    opened_root = Root(str(root))
    assert not opened_root.kernel_walks
    (root / "f").write_bytes(b"content")
    fd = opened_root.open(b"f", READ)
    assert os.read(fd, 9) == b"content"
    os.close(fd)
    assert opened_root.open_cached(b"f", READ) is None
    opened_root.close()


def test_an_openat2_that_is_told_to_try_again_ends(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_root = Root(str(root))
    if not opened_root.kernel_walks:
        opened_root.close()
        pytest.skip("this kernel or container has no openat2")
    calls = []

    def again(*args: Any) -> int:
        calls.append(args)
        assert len(calls) < 1000
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(root_module, "_syscall", again)
    with pytest.raises(StorageAway):
        opened_root.open(b"f", READ)
    assert len(calls) > 10
    calls.clear()
    assert opened_root.open_cached(b"f", READ) is None
    assert len(calls) == 1  # there, EAGAIN means that a disk is needed
    opened_root.close()


def test_every_descriptor_closes_on_exec(storage: Storage) -> None:
    upload(storage, b"d/f", b"content")
    for name, flags in [(b"d/f", READ), (b"d/f", root_module.WRITE), (b"d", FOLDER)]:
        fd = storage.root.open(name, flags)
        assert not os.get_inheritable(fd)
        os.close(fd)
