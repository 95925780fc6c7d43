from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from httpnas.storage.pagecache import cached, tells

PAGE = mmap.PAGESIZE
MIB = 1 << 20
# Pages are kept and dropped in groups of up to 2 MiB.
SIZE = 8 * MIB + 5


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def forget(fd: int, first: int, length: int) -> None:
    """Take a part of the file out of memory."""
    os.fsync(fd)
    os.posix_fadvise(fd, first, length, os.POSIX_FADV_DONTNEED)
    if cached(fd, first, length):
        pytest.skip("this file system keeps everything in memory")


@pytest.mark.parametrize(
    ("offset", "length"), [(0, SIZE), (1, 1), (PAGE - 1, 2), (PAGE + 1, PAGE), (SIZE - 1, 1)]
)
def test_what_was_written_is_in_memory(fd: int, offset: int, length: int) -> None:
    assert cached(fd, offset, length) == length


def test_asking_reads_nothing(fd: int) -> None:
    forget(fd, 0, SIZE + PAGE)
    assert [cached(fd, 0, SIZE) for _ in range(2)] == [0, 0]


def test_only_what_comes_before_the_first_gap_counts(fd: int) -> None:
    forget(fd, 4 * MIB, 2 * MIB)
    assert cached(fd, 0, SIZE) == 4 * MIB
    assert cached(fd, 3 * PAGE + 7, SIZE - MIB) == 4 * MIB - 3 * PAGE - 7
    assert cached(fd, 4 * MIB + 1, 10) == 0
    assert cached(fd, 6 * MIB, 10) == 10


def test_what_is_behind_the_end_is_not_in_memory(fd: int) -> None:
    assert cached(fd, 0, 2 * SIZE) <= SIZE + PAGE
    assert cached(fd, 2 * SIZE, 1) == 0


def test_the_owner_is_told(fd: int) -> None:
    assert tells(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_who_may_only_read_is_told_nothing(fd: int) -> None:
    os.fchmod(fd, 0o644)
    os.seteuid(65534)
    try:
        assert not tells(fd)
    finally:
        os.seteuid(0)


def test_a_file_system_that_cannot_answer_without_waiting_tells_nothing() -> None:
    with open("/proc/self/status") as status:
        assert not tells(status.fileno())
