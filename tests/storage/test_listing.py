from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import listing
from httpnas.storage.errors import NoSuchFile
from httpnas.storage.listing import Entry, Folder
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
    for name in [b"link", b"dangling", b"fifo", b"socket", b"none"]:
        assert folder.look(name) is None
    folder.close()


def test_an_entry_is_what_the_name_is_by_now(storage: Storage, root: Path) -> None:
    written = upload(storage, b"f", b"content")
    upload(storage, b"d/f", b"")
    folder = storage.open(b"")
    assert isinstance(folder, Folder)
    assert folder.look(b"f") == Entry(b"f", False, written)
    assert folder.look(b"d") == Entry(b"d", True, of_stat((root / "d").stat()))
    listed_names = folder.names()
    remove(storage, b"f")
    assert folder.look(b"f") is None
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


class _Many:
    """What scandir gives for a folder of a million files."""

    def __init__(self, fd: int) -> None:
        pass

    def __enter__(self) -> Iterator[Any]:
        return (_File(f"{number * 2654435761 % 2**32:x}") for number in range(1_000_000))

    def __exit__(self, *_: object) -> None:
        pass


class _File:
    def __init__(self, name: str) -> None:
        self.name = name

    def is_file(self, *, follow_symlinks: bool) -> bool:
        return not follow_symlinks


def _longest_gap(call: Any) -> float:
    """Return for how many seconds at most another thread could not run during *call*."""
    ended = threading.Event()
    gaps = [0.0]

    def tick() -> None:
        last = time.monotonic()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    call()
    ended.set()
    ticking.join()
    return max(gaps)


def test_a_million_names_do_not_stop_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", _Many)
    folder = Folder(-1, is_root=False, records=XattrRecords())
    counts = []

    def first_and_page() -> None:
        found = folder.names()
        counts.append(len([next(found) for _ in range(1000)]))

    # A busy machine may stop a thread as well, but not in each of several tries.
    gap = min(_longest_gap(first_and_page) for _ in range(2))
    assert counts == [1000, 1000]
    assert gap < 0.25
