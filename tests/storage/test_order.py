"""The one order of changes on disk that appends rely on: the record first, then the length.

An append is recorded step by step, as a file system sees it. Then the power is cut after each
step, in each way that the file system may: what was not synced may be there or not. One that keeps
the order of metadata has a first part of the changes of record and length. Each block of data is
there, or has zeros or what it had before.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from httpnas.storage import commits
from httpnas.storage.append import IN_MEMORY, commit
from httpnas.storage.group import Group
from httpnas.storage.ledger import Ledger
from httpnas.storage.record import PAGE, Record
from httpnas.storage.store import Storage
from tests.storage.steps import append, begin_append, need_xattrs, read, upload

NAME = "user.httpnas"
#: Ends in the middle of a block.
OLD = b"old line\n" * 500
GROUPS = {
    "in one block": [b"new"],
    "in several blocks": [b"new line\n" * 1200],
    "a group": [b"one\n", b"two\n" * PAGE, b"three\n"],
    "staged in a file": [b"large\n" * (IN_MEMORY // 5)],
}


class Step(NamedTuple):
    """What the file is after a call that changes or syncs it."""

    is_sync: bool
    record: bytes
    content: bytes


class Cut(NamedTuple):
    """What a power cut leaves of the file."""

    is_acknowledged: bool
    record: bytes
    content: bytes


@pytest.fixture
def path(durable: Storage, root: Path) -> Path:
    need_xattrs(root)
    upload(durable, b"f", OLD)
    append(durable, b"f", b"settled\n")
    return root / "f"


@contextmanager
def recorded(storage: Storage, path: Path, group: list[bytes]) -> Iterator[list[Step]]:
    """Append *group*, and yield each step of that while what it was staged in is there."""
    steps = [Step(True, os.getxattr(path, NAME), path.read_bytes())]
    inode = path.stat().st_ino

    def watched(call: Callable[..., Any], target: int = 0) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if os.fstat(args[target]).st_ino == inode:
                is_sync = call is os_fsync
                steps.append(Step(is_sync, os.getxattr(path, NAME), path.read_bytes()))
            return result

        return watch

    os_fsync = os.fsync
    begun = [begin_append(storage, b"f") for _ in group]
    try:
        for pending, content in zip(begun, group, strict=True):
            pending.write([content])
        with pytest.MonkeyPatch.context() as patch:
            for name in ("setxattr", "writev", "pwritev", "ftruncate", "fsync"):
                patch.setattr(os, name, watched(getattr(os, name)))
            patch.setattr(os, "copy_file_range", watched(os.copy_file_range, 1))
            commit(storage, b"f", begun)
        yield steps
    finally:
        for pending in begun:
            pending.close()


def cuts(steps: list[Step], in_order: bool) -> Iterator[Cut]:
    """Yield what a cut after each step may leave of the file.

    :param in_order: whether the file system keeps the order of record and length.
    """
    for last in range(len(steps)):
        synced = max(n for n in range(last + 1) if steps[n].is_sync)
        possible = range(synced, last + 1)
        for record, length in itertools.product(possible, possible):
            if in_order and record != length:
                continue
            size = len(steps[length].content)
            for content in torn(steps[synced].content, steps[last].content, size):
                yield Cut(last == len(steps) - 1, steps[record].record, content)


def torn(before: bytes, after: bytes, size: int) -> Iterator[bytes]:
    """Yield the ways in which *size* bytes of *after* may be there, of which *before* is synced."""
    was, now = before[:size].ljust(size, b"\0"), after[:size].ljust(size, b"\0")
    starts = [at for at in range(0, size, PAGE) if was[at : at + PAGE] != now[at : at + PAGE]]
    chosen: list[tuple[int, ...]] = [(), tuple(starts), tuple(starts[::2]), tuple(starts[1:])]
    if len(starts) < 5:
        chosen = [c for n in range(len(starts) + 1) for c in itertools.combinations(starts, n)]
    for there in dict.fromkeys(chosen):
        content = bytearray(was)
        for at in there:
            content[at : at + PAGE] = now[at : at + PAGE]
        yield bytes(content)


def harm(storage: Storage, path: Path, cut: Cut, old: bytes, new: bytes) -> str:
    """Return what is wrong with the file after *cut*, as clients see it; empty for nothing."""
    path.write_bytes(cut.content)
    os.setxattr(path, NAME, cut.record)
    seen = read(storage, b"f")
    if seen not in (old, new):
        return "torn"
    if cut.is_acknowledged and seen != new:
        return "lost"
    append(storage, b"f", b"next")
    return "" if path.read_bytes() == seen + b"next" else "torn later"


def found(storage: Storage, path: Path, group: list[bytes], in_order: bool = True) -> set[str]:
    """Return what is wrong after any power cut in the middle of appending *group*."""
    old = path.read_bytes()
    with (
        recorded(storage, path, group) as steps,
        pytest.MonkeyPatch.context() as patch,
    ):
        all_cuts = set(cuts(steps, in_order))
        patch.setattr(commits, "boot", lambda: 1)  # after a power cut the machine has started anew
        patch.setattr(os, "fsync", lambda fd: None)
        assert len(all_cuts) > 5
        return {harm(storage, path, cut, old, old + b"".join(group)) for cut in all_cuts}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_where_the_record_comes_before_the_length_every_power_cut_leaves_old_or_new(
    durable: Storage, path: Path, group: list[bytes]
) -> None:
    assert found(durable, path, group) == {""}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_where_the_length_may_come_before_the_record_a_part_may_be_seen(
    durable: Storage, path: Path, group: list[bytes]
) -> None:
    """This is no promise: it shows what is relied on, and that these cuts would show it."""
    assert "torn" in found(durable, path, group, in_order=False)


@pytest.mark.parametrize("fault", ["written first", "not synced", "settled first"])
def test_an_append_in_another_order_is_seen(
    durable: Storage, path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "not synced":
        monkeypatch.setattr(durable, "sync", lambda fd: None)
    elif fault == "settled first":
        write, settle = Group._write, Group._settle

        def late_write(group: Group, offset: int) -> None:
            settle(group)
            write(group, offset)

        monkeypatch.setattr(Group, "_write", late_write)
        monkeypatch.setattr(Group, "_settle", lambda group: None)
    else:
        announce, later = Ledger.announce, list[Record]()
        write = Group._write

        def early_write(group: Group, offset: int) -> None:
            write(group, offset)
            announce(group._ledger, later.pop())

        def noted(ledger: Ledger, record: Record) -> None:
            ledger.record = record
            later.append(record)

        monkeypatch.setattr(Ledger, "announce", noted)
        monkeypatch.setattr(Group, "_write", early_write)
    assert found(durable, path, GROUPS["in several blocks"]) - {""}
