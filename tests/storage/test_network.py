"""Appends on a network, where the lock of the file itself is taken only if it has to be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import commits, volume
from httpnas.storage.append import IN_MEMORY
from httpnas.storage.errors import Contended
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from tests.lock_files import SpareLockFiles
from tests.storage.steps import (
    append,
    both_kinds,
    crash,
    on_write,
    outcome,
    pends,
    read,
    upload,
    with_another_lock,
)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file system be one on a network."""
    monkeypatch.setattr(volume, "_LOCAL", frozenset())


@pytest.fixture
def other(storage: Storage, root: Path, spare_lock_files: SpareLockFiles) -> Iterator[Storage]:
    """What another daemon has on the same root."""
    with closing(Storage(str(root), durable=False)) as other:
        yield other


def when_written(look: Callable[[], None]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Let *look* happen when the content of an append is there, and the append goes on."""

    def wrap(real: Callable[..., int]) -> Callable[..., int]:
        def write(*args: Any) -> int:
            written = real(*args)
            look()
            return written

        return write

    return wrap


@pytest.mark.parametrize(
    ("links", "length", "locked"), [(1, 10, False), (2, 10, True), (1, IN_MEMORY + 10, True)]
)
def test_the_file_itself_is_locked_if_it_has_several_names_or_much_is_written(
    storage: Storage, root: Path, links: int, length: int, locked: bool
) -> None:
    upload(storage, b"f", b"")
    for number in range(1, links):
        os.link(root / "f", root / f"link{number}")
    found = []

    def look() -> None:
        with open(root / "f", "rb") as file:
            found.append(commits.is_locked(file.fileno()))

    with pytest.MonkeyPatch.context() as patch:
        on_write(patch, when_written(look))
        patch.setattr(os, "copy_file_range", when_written(look)(os.copy_file_range))
        append(storage, b"f", b"x" * length)
    assert found[-1] == locked


@both_kinds
def test_readers_see_the_version_before_until_the_append_is_true(
    storage: Storage, other: Storage
) -> None:
    upload(storage, b"f", b"old ")
    seen: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        on_write(patch, when_written(lambda: seen.extend(read(s, b"f") for s in (storage, other))))
        append(storage, b"f", b"new")
    assert seen == [b"old ", b"old "]
    assert read(storage, b"f") == read(other, b"f") == b"old new"


@both_kinds
@pytest.mark.parametrize("written", [0, PAGE - 4, 2 * PAGE])
def test_what_a_daemon_has_left_is_judged_when_it_is_gone(
    storage: Storage, root: Path, written: int
) -> None:
    upload(storage, b"f", b"old ")
    added = b"n" * 2 * PAGE
    with closing(Storage(str(root), durable=False)) as dead:
        dead.workspace.leave = lambda: None  # type: ignore[method-assign]
        crash(dead, b"f", added, written)
        assert read(storage, b"f") == b"old "
    counts = b"old " + (added if written == len(added) else b"")
    assert read(storage, b"f") == counts
    append(storage, b"f", b", next")
    assert read(storage, b"f") == (root / "f").read_bytes() == counts + b", next"


@both_kinds
def test_a_lease_that_is_taken_over_does_not_bring_back_who_had_it(
    storage: Storage, other: Storage
) -> None:
    upload(storage, b"f", b"old ")
    crash(other, b"f", b"new", 3)
    storage.workspace._name = other.workspace._name
    assert read(storage, b"f") == b"old new"


@both_kinds
def test_what_others_have_written_since_is_shown_whoever_lives(
    storage: Storage, other: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old ")
    crash(other, b"f", b"new", 3)
    with open(root / "f", "ab") as file:
        file.write(b" and more")
    assert read(storage, b"f") == b"old new and more"


@both_kinds
def test_an_append_that_cannot_be_undone_is_repaired_by_the_daemon_that_made_it(
    storage: Storage, other: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old ")

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "sync", broken)
        patch.setattr(os, "ftruncate", broken)
        assert isinstance(outcome(lambda: append(storage, b"f", b"new")), Exception)
    assert pends(storage, b"f")
    for _ in storage.reclaim_abandoned():
        pass
    assert not pends(storage, b"f")
    assert read(storage, b"f") == read(other, b"f") == (root / "f").read_bytes()
    assert not storage.workspace._inherited


@both_kinds
def test_what_others_have_written_in_the_middle_of_a_failed_append_is_shown_by_all(
    storage: Storage, other: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old ")

    def broken(_: int) -> None:
        (root / "f").write_bytes(b"old xyz")
        raise OSError(errno.EIO, "broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "sync", broken)
        assert isinstance(outcome(lambda: append(storage, b"f", b"new")), Exception)
    assert read(storage, b"f") == read(other, b"f") == b"old xyz"


@both_kinds
def test_an_append_by_a_name_that_the_file_was_given_meanwhile_waits(
    storage: Storage, other: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old ")
    name = with_another_lock(storage.root.fd, (storage.root.fd, b"f"))
    outcomes: list[Any] = []

    def look() -> None:
        patch.undo()
        os.link(root / "f", root / os.fsdecode(name))
        for one in (storage, other):
            one.locks._timeout = 0.02
            outcomes.append(outcome(partial(append, one, name, b"late")))

    with pytest.MonkeyPatch.context() as patch:

        def half(real: Callable[..., int]) -> Callable[..., int]:
            def write(fd: int, views: Any, offset: int) -> int:
                written = real(fd, [b"".join(views)[:1]], offset)
                look()
                return written

            return write

        on_write(patch, half)
        append(storage, b"f", b"new ")
    assert [type(each) for each in outcomes] == [Contended, Contended]
    append(other, name, b"next")
    assert read(storage, b"f") == (root / "f").read_bytes() == b"old new next"
