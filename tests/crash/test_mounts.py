"""What is mounted below the root is read and never changed; and layers, which look alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.errors import NotFreed, OtherFileSystem
from httpnas.storage.store import Storage
from tests.crash import images
from tests.harness import Client, twistd
from tests.storage.steps import anything, append, leftovers, names, outcome, read, remove, upload

pytestmark = pytest.mark.crash


@pytest.fixture
def place() -> Iterator[Path]:
    if reason := images.why_not("tmpfs"):
        pytest.skip(reason)
    with images.folder() as path, images.in_memory(path, "tmpfs") as memory:
        (memory / "root").mkdir()
        (memory / "outside" / "below").mkdir(parents=True)
        (memory / "outside" / "f").write_bytes(b"outside")
        yield memory


@pytest.fixture
def root(place: Path) -> Path:
    return place / "root"


@pytest.fixture(params=["openat2", "walk"])
def storage(request: pytest.FixtureRequest, root: Path) -> Iterator[Storage]:
    storage = Storage(str(root), durable=False)
    storage.root.kernel_walks = request.param == "openat2"
    yield storage
    storage.close()


@pytest.fixture(params=["bind", "tmpfs"])
def mounted(request: pytest.FixtureRequest, place: Path, root: Path) -> Iterator[Path]:
    """A mount in a folder of the root, of the same file system or of another one."""
    point = root / "d" / "mnt"
    point.mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"inside")
    if request.param == "bind":
        with images.bound(place / "outside", point):
            yield point
    else:
        with images.in_memory(point.parent, "tmpfs") as tmpfs:
            (tmpfs / "below").mkdir()
            (tmpfs / "f").write_bytes(b"outside")
            yield tmpfs


def inside(mounted: Path, name: str) -> bytes:
    return os.fsencode(f"d/{mounted.name}{name}")


CHANGES: dict[str, Callable[[Storage, Path], Any]] = {
    "upload": lambda s, m: s.begin_upload(inside(m, "/f"), anything).close(),
    "new": lambda s, m: s.begin_upload(inside(m, "/new"), anything).close(),
    "new below": lambda s, m: s.begin_upload(inside(m, "/a/b/new"), anything).close(),
    "publish": lambda s, m: upload(s, inside(m, "/below/c/new"), b"new"),
    "make": lambda s, m: s.root.make_parent(inside(m, "/a/b/new"), sync=True),
    "append": lambda s, m: s.begin_append(inside(m, "/f"), anything),
    "remove": lambda s, m: s.remove(inside(m, "/f"), anything),
    "remove folder": lambda s, m: s.remove(inside(m, "/below"), anything),
    "remove mount": lambda s, m: s.remove(inside(m, ""), anything),
    "remove above": lambda s, m: s.remove(b"d", anything),
    "move in": lambda s, m: s.move(b"d/f", inside(m, "/g"), anything),
    "move in below": lambda s, m: s.move(b"d/f", inside(m, "/a/b/g"), anything),
    "move out": lambda s, m: s.move(inside(m, "/f"), b"g", anything),
    "move mount": lambda s, m: s.move(inside(m, ""), b"g", anything),
    "move above": lambda s, m: s.move(b"d", b"e", anything),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_changes_in_a_mount_nor_goes_with_it(
    storage: Storage, root: Path, mounted: Path, change: Callable[[Storage, Path], Any]
) -> None:
    assert read(storage, inside(mounted, "/f")) == b"outside"
    with pytest.raises(OtherFileSystem):
        change(storage, mounted)
    assert sorted(os.listdir(mounted)) == ["below", "f"]
    assert os.listdir(mounted / "below") == []
    assert read(storage, inside(mounted, "/f")) == b"outside"
    assert read(storage, b"d/f") == b"inside"
    assert leftovers(root) == []


def test_a_folder_beside_a_mount_is_moved_and_removed(storage: Storage, mounted: Path) -> None:
    upload(storage, b"d/m/f", b"content")
    storage.move(b"d/m", b"d/n", anything)
    remove(storage, b"d/n")
    assert names(storage, b"d") == [b"f", *sorted({b"mnt", os.fsencode(mounted.name)})]


def test_a_folder_above_a_mount_that_another_one_hides_is_removed(place: Path, root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (place / "outside" / "d").mkdir()
    with (
        images.bound(place / "outside", root / "d" / "e"),
        images.bound(place / "outside", root),
    ):
        storage = Storage(str(root), durable=False)
        remove(storage, b"d")
        storage.close()
    assert not (place / "outside" / "d").exists()


def test_a_file_that_is_mounted_over_another_is_not_appended_to(
    storage: Storage, place: Path, root: Path
) -> None:
    (root / "f").write_bytes(b"old")
    with images.bound(place / "outside" / "f", root / "f"):
        for change in [
            lambda: append(storage, b"f", b"more"),
            lambda: upload(storage, b"f", b"new"),
            lambda: storage.remove(b"f", anything),
        ]:
            assert type(outcome(change)) is OtherFileSystem
    assert (place / "outside" / "f").read_bytes() == b"outside"
    assert (root / "f").read_bytes() == b"old"


def test_a_mount_that_comes_into_a_removed_folder_keeps_what_it_has(
    storage: Storage, place: Path, root: Path
) -> None:
    (root / "d" / "e" / "mnt").mkdir(parents=True)
    (root / "d" / "e" / "f").write_bytes(b"content")
    aside = storage.remove(b"d", anything)
    assert aside is not None
    run = Path(f"/proc/self/fd/{storage.workspace.fd}").resolve()
    with images.bound(place / "outside", run / os.fsdecode(aside) / "e" / "mnt"):
        with pytest.raises(NotFreed, match="mnt"):
            for _ in storage.reclaim(aside):
                pass
        assert (place / "outside" / "f").read_bytes() == b"outside"
        assert [path.parent.name for path in run.rglob("f")] == ["mnt"]


def test_an_upload_into_a_mount_is_refused_before_its_body(root: Path, mounted: Path) -> None:
    with twistd(root) as daemon, Client(daemon.port) as client:
        path = os.fsdecode(inside(mounted, "/new/f"))
        client.send(
            f"POST /file/{path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        status, _, body = client.answer()
    assert (status, b"other-file-system" in body) == (409, True)
    assert not (mounted / "new").exists()


# Layers


@pytest.fixture
def layered() -> Iterator[Path]:
    """An overlay whose lower layer has files and folders, as of an image."""
    if reason := images.why_not("tmpfs"):
        pytest.skip(reason)
    with images.folder() as place, images.overlay(place) as (lower, seen):
        for path in ["d/e/f", "d/g", "f"]:
            (lower / path).parent.mkdir(parents=True, exist_ok=True)
            (lower / path).write_bytes(b"of the image")
        yield seen


@pytest.fixture
def over(layered: Path) -> Iterator[Storage]:
    storage = Storage(str(layered))
    yield storage
    storage.close()


def test_a_folder_of_a_lower_layer_is_removed(over: Storage, layered: Path) -> None:
    upload(over, b"d/e/new/g", b"of the upper layer")
    remove(over, b"d")
    assert names(over) == [b"f"]
    assert leftovers(layered) == []
    upload(over, b"d/new", b"new")
    assert names(over, b"d") == [b"new"]


def test_a_folder_of_a_lower_layer_is_removed_with_a_folder_above_it(
    over: Storage, layered: Path
) -> None:
    """What was made in the upper layer moves, and what it holds of the lower one does not."""
    remove(over, b"d/e")
    upload(over, b"d/e/g", b"new")
    remove(over, b"d")
    assert names(over) == [b"f"]
    assert leftovers(layered) == []


def test_a_folder_of_a_lower_layer_is_not_moved_and_nothing_is_left(
    over: Storage, layered: Path
) -> None:
    with pytest.raises(OtherFileSystem):
        over.move(b"d", b"new/folder/d", anything)
    assert names(over) == [b"d", b"f"]
    assert read(over, b"d/e/f") == b"of the image"


def test_files_of_a_lower_layer_are_changed_as_others(over: Storage) -> None:
    append(over, b"d/g", b" and more")
    upload(over, b"d/e/f", b"new")
    over.move(b"f", b"d/moved", anything)
    assert read(over, b"d/g") == b"of the image and more"
    assert read(over, b"d/e/f") == b"new"
    assert read(over, b"d/moved") == b"of the image"
    remove(over, b"d/g")
    assert names(over, b"d") == [b"e", b"moved"]
