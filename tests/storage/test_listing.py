from __future__ import annotations

import errno
import os
import socket
import tempfile
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httpnas.storage import listing
from httpnas.storage.errors import NoSuchFile
from httpnas.storage.listing import Entry, Folder, Order, Place
from httpnas.storage.records import XattrRecords
from httpnas.storage.store import Storage
from httpnas.storage.version import of_stat
from tests.storage.steps import names, remove, upload

NAMES = [
    b" ",
    b"!",
    b"-",
    b"10",
    b"2",
    b"A",
    b"B" * 255,
    b"a",
    b"a b",
    b"a.txt",
    b"ab",
    b"b\\c",
    b"wc",
    "\u0085".encode(),
    "ä".encode(),
    "日本".encode(),
    "😀".encode(),
]


ORDERS = [Order(by, descending) for by in ("name", "size", "mtime") for descending in (False, True)]
#: Names of one component; few letters, so that some begin alike.
components = st.one_of(
    st.text("ab.- \\ä😀", min_size=1, max_size=6),
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1),
    st.just(".httpnas"),
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
#: What a name is: its size, or None for a folder, and its time, which kernels cut to what they can.
things = st.tuples(
    st.one_of(st.none(), st.integers(0, 3), st.sampled_from([10, 1 << 20, 1 << 40])),
    st.one_of(st.integers(-3, 3), st.integers(-(2**61), 2**61)),
)


def make(root: Path, name: str, thing: tuple[int | None, int]) -> None:
    size, mtime_ns = thing
    if size is None:
        (root / name).mkdir()
    else:
        (root / name).touch()
        os.truncate(root / name, size)
    os.utime(root / name, ns=(0, mtime_ns))


def place_of(root: Path, name: bytes, order: Order) -> Place:
    """Return where *name* must stand in *order*."""
    status = os.stat(os.fsencode(root) + b"/" + name)
    is_folder = os.path.isdir(os.fsencode(root) + b"/" + name)
    value = {
        "name": 0,
        "size": -1 if is_folder else status.st_size,
        "mtime": status.st_mtime_ns,
    }[order.by]
    return Place(value, name)


def in_order(root: Path, order: Order) -> list[Place]:
    """Return the places of all that is in the storage root *root*, as they must be listed."""
    found = [place_of(root, name, order) for name in os.listdir(os.fsencode(root))]
    found = [place for place in found if place.name != b".httpnas"]
    return sorted(found, key=tuple, reverse=order.descending)


def listed(root: Path, after: bytes = b"") -> list[bytes]:
    folder = Folder(os.open(root, os.O_RDONLY), is_root=False, records=XattrRecords())
    try:
        return list(folder.names(after))
    finally:
        folder.close()


@pytest.mark.parametrize("run", [1, 2, 3, len(NAMES), 100_000])
def test_names_come_in_the_order_of_their_bytes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    monkeypatch.setattr(listing, "_RUN", run)
    for number, name in enumerate(reversed(NAMES)):
        upload(storage, name + b"/f" if number % 3 == 0 and len(name) < 9 else name, b"")
    assert names(storage) == NAMES == sorted(NAMES)


@pytest.mark.parametrize("run", [1, 4, 100_000])
def test_pages_join_to_the_whole(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    monkeypatch.setattr(listing, "_RUN", run)
    for name in NAMES:
        upload(storage, name, b"")
    for after in [b"", b"0", b"a", b"a\x00", b"a b", b"\xff", NAMES[-1]]:
        assert names(storage, after=after) == [name for name in NAMES if name > after]
    found: list[bytes] = []
    while page := names(storage, after=found[-1] if found else b"")[:3]:
        found += page
    assert found == NAMES


def test_an_empty_folder_has_no_names(storage: Storage, root: Path) -> None:
    assert names(storage) == []
    (root / "d").mkdir()
    assert names(storage, b"d") == []


def test_the_private_folder_is_hidden_at_the_root_only(storage: Storage) -> None:
    upload(storage, b"d/.httpnas/f", b"")
    upload(storage, b".hidden", b"")
    assert names(storage) == [b".hidden", b"d"]
    assert names(storage, b"d") == [b".httpnas"]


def test_what_no_request_can_name_is_left_out(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"")
    upload(storage, b"d/f", b"")
    (root / "link").symlink_to("f")
    (root / "link to a folder").symlink_to("d")
    (root / "dangling").symlink_to("nothing")
    os.mkfifo(root / "fifo")
    here = os.getcwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("socket")
    finally:
        os.chdir(here)
    raw = os.fsencode(root) + b"/"
    for name in [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"a\nb", b"\t", b"\x7f", b"a\x1b[2J", b"\x01",
                 "ä\n".encode(), "ä\x7f".encode()]:  # fmt: skip
        os.close(os.open(raw + name, os.O_CREAT | os.O_WRONLY))
    assert names(storage) == [b"d", b"f"]
    folder = storage.open(b"")
    assert isinstance(folder, Folder)
    for order in ORDERS:
        assert sorted(place.name for place in folder.places(order, None, 2)) == [b"d", b"f"]
    for name in [b"link", b"dangling", b"fifo", b"socket", b"none"]:
        assert folder.entry(name) is None
    folder.close()


def test_an_entry_is_what_the_name_is_by_now(storage: Storage, root: Path) -> None:
    written = upload(storage, b"f", b"content")
    upload(storage, b"d/f", b"")
    folder = storage.open(b"")
    assert isinstance(folder, Folder)
    assert folder.entry(b"f") == Entry(b"f", False, written)
    assert folder.entry(b"d") == Entry(b"d", True, of_stat((root / "d").stat()))
    listed_names = folder.names()
    remove(storage, b"f")
    assert folder.entry(b"f") is None
    assert list(listed_names) == [b"d", b"f"]  # as it was when it was asked for
    assert list(folder.names()) == [b"d"]  # an open folder can be listed again
    folder.close()


def test_a_removed_folder_that_is_open_has_no_names(storage: Storage) -> None:
    upload(storage, b"d/f", b"")
    folder = storage.open(b"d")
    assert isinstance(folder, Folder)
    remove(storage, b"d")
    assert list(folder.names()) == []
    folder.close()
    with pytest.raises(NoSuchFile):
        storage.open(b"d")


def test_listing_gives_its_descriptors_back(storage: Storage) -> None:
    upload(storage, b"d/f", b"")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        names(storage)
        names(storage, b"d")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_of_more_than_one_run_is_listed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_RUN", 500)
    folder = tmp_path / "many"
    folder.mkdir()
    wanted = [b"%x" % (number * 2654435761 % 2**32) for number in range(listing._RUN * 2 + 10)]
    fd = os.open(folder, os.O_RDONLY)
    for name in wanted:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    wanted.sort()
    assert listed(folder) == wanted
    assert listed(folder, after=wanted[600]) == wanted[601:]
    for name in wanted:
        os.unlink(name, dir_fd=fd)
    os.close(fd)


# Orders


def test_entries_come_by_size_or_time_and_then_by_name(root: Path) -> None:
    for name, thing in {
        "b": (5, 10),
        "a": (5, 10),
        "z": (0, -1),
        "y": (1 << 40, 11),
        "d": (None, 10),
        "c": (None, 12),
    }.items():
        make(root, name, thing)
    folder = Folder(os.open(root, os.O_RDONLY), is_root=True, records=XattrRecords())
    expected = {
        "name": [(0, b"a"), (0, b"b"), (0, b"c"), (0, b"d"), (0, b"y"), (0, b"z")],
        "size": [(-1, b"c"), (-1, b"d"), (0, b"z"), (5, b"a"), (5, b"b"), (1 << 40, b"y")],
        "mtime": [(-1, b"z"), (10, b"a"), (10, b"b"), (10, b"d"), (11, b"y"), (12, b"c")],
    }
    for by, places in expected.items():
        assert list(folder.places(Order(by), None, 100)) == places
        assert list(folder.places(Order(by, descending=True), None, 100)) == places[::-1]
    folder.close()


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.dictionaries(components, things, max_size=12),
    st.sampled_from(ORDERS),
    st.integers(1, 13),
    st.integers(1, 13),
)
def test_places_taken_page_by_page_are_all_places_in_order(
    entries: dict[str, tuple[int | None, int]], order: Order, most: int, taken: int
) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for name, thing in entries.items():
            make(root, name, thing)
        expected = in_order(root, order)
        folder = Folder(os.open(root, os.O_RDONLY), is_root=True, records=XattrRecords())
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(listing, "_RUN", most)
                assert list(folder.places(order, None, most)) == expected
                found: list[Place] = []
                while page := list(
                    islice(folder.places(order, found[-1] if found else None, most), taken)
                ):
                    found += page
            assert found == expected
        finally:
            folder.close()


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_what_comes_and_goes_between_pages_neither_repeats_nor_hides_others(
    data: st.DataObject,
) -> None:
    order = data.draw(st.sampled_from(ORDERS))
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for name, thing in data.draw(st.dictionaries(components, things, max_size=12)).items():
            make(root, name, thing)
        stayed = set(in_order(root, order))
        folder = Folder(os.open(root, os.O_RDONLY), is_root=True, records=XattrRecords())
        try:
            found: list[Place] = []
            while page := list(islice(folder.places(order, found[-1] if found else None, 3), 2)):
                found += page
                present = os.listdir(root)
                for name in data.draw(st.lists(st.sampled_from(present or [""]), unique=True)):
                    if name and len(found) < 40:
                        (root / name).rmdir() if (root / name).is_dir() else (root / name).unlink()
                        stayed -= {place for place in stayed if place.name == name.encode()}
                for name, thing in data.draw(
                    st.dictionaries(components, things, max_size=3 if len(found) < 20 else 0)
                ).items():
                    if name not in present:
                        make(root, name, thing)
            assert stayed <= set(found)
            assert found == sorted(set(found), key=tuple, reverse=order.descending)
        finally:
            folder.close()


@pytest.mark.parametrize("by", ["size", "mtime"])
def test_what_is_gone_when_it_is_looked_for_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    for name in "abc":
        (root / name).touch()
    stat = os.stat

    def racing(path: Any, **kwargs: Any) -> os.stat_result:
        if path == b"b":
            (root / "b").unlink()
        return stat(path, **kwargs)

    monkeypatch.setattr(os, "stat", racing)
    folder = Folder(os.open(root, os.O_RDONLY), is_root=True, records=XattrRecords())
    assert {place.name for place in folder.places(Order(by), None, 9)} == {b"a", b"c"}
    folder.close()


# Large folders


class _Many:
    """What scandir gives for a folder of many files."""

    count = 50_000

    def __init__(self, fd: int) -> None:
        pass

    def __enter__(self) -> Iterator[Any]:
        return (_File(f"{number * 2654435761 % 2**32:x}") for number in range(self.count))

    def __exit__(self, *_: object) -> None:
        pass


class _File:
    def __init__(self, name: str) -> None:
        self.name = name

    def is_file(self, *, follow_symlinks: bool) -> bool:
        return not follow_symlinks


def _stat_of_one_of_many(name: bytes, **_: object) -> Any:
    number = int(name, 16)
    return SimpleNamespace(st_mode=0o100644, st_size=number % 1000, st_mtime_ns=number)


@pytest.fixture
def many() -> Iterator[pytest.MonkeyPatch]:
    """Let the system show :class:`_Many` in every folder, until the patch is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", _Many)
        patch.setattr(os, "stat", _stat_of_one_of_many)
        yield patch


@pytest.mark.parametrize("descending", [False, True])
def test_names_are_sorted_some_at_a_time(many: pytest.MonkeyPatch, descending: bool) -> None:
    """One call that sorts all of a million names would stop every other thread meanwhile."""
    sizes = []

    def counted(names: list[bytes], reverse: bool) -> list[bytes]:
        sizes.append(len(names))
        return sorted(names, reverse=reverse)

    many.setattr(listing, "sorted", counted, raising=False)
    folder = Folder(-1, is_root=False, records=XattrRecords())
    found = list(folder.names(descending=descending))
    many.undo()
    assert found == sorted(found, reverse=descending)
    assert sum(sizes) == len(found) == _Many.count
    assert max(sizes) <= 20_000


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("by", ["size", "mtime"])
def test_of_many_entries_by_size_or_time_few_are_kept(
    many: pytest.MonkeyPatch, by: str, descending: bool
) -> None:
    folder = Folder(-1, is_root=False, records=XattrRecords())
    tracemalloc.start()
    try:
        found = list(islice(folder.places(Order(by, descending), None, 100), 100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        many.undo()
    assert len(found) == 100
    assert peak < 1 << 20  # 50,000 places are more than 5 MiB


def test_a_file_that_becomes_a_link_while_it_is_listed_is_left_out(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"content")
    folder = storage.open(b"")
    assert isinstance(folder, Folder)

    def is_a_link_by_now(*_: object) -> None:
        raise OSError(errno.ELOOP, "a link")

    monkeypatch.setattr("httpnas.storage.commits.version_at", is_a_link_by_now)
    assert folder.entry(b"f") is None
    folder.close()
