"""Changes that meet others: in the folder that they change, above it, and in the file itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from httpnas.storage import locks as locks_module
from httpnas.storage.append import Append
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import Contended, NoSuchFile
from httpnas.storage.facts import Facts
from httpnas.storage.locks import Locked, _bucket, all_buckets
from httpnas.storage.store import Storage
from tests.storage.steps import (
    Holder,
    anything,
    append,
    leftovers,
    names,
    on_write,
    opened,
    read,
    upload,
    with_another_lock,
)


def meanwhile(
    storage: Storage, patch: pytest.MonkeyPatch, act: Callable[[], Any], opened: int = 1
) -> None:
    """Let *act* happen when a change has opened so many folders, and locked nothing yet."""
    real, calls = storage.root.open_parent_to_change, itertools.count(1)

    def late(name: bytes) -> int:
        folder = real(name)
        if next(calls) == opened:
            patch.undo()
            act()
        return folder

    patch.setattr(storage.root, "open_parent_to_change", late)


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def move(storage: Storage, name: bytes, target: bytes) -> Callable[[], None]:
    return lambda: storage.move(name, target, anything)


def be_impatient(storage: Storage) -> None:
    storage.locks._timeout = 0.02


# A folder that goes before the lock is there


def test_an_upload_whose_folder_is_moved_meanwhile_appears_under_its_own_name(
    storage: Storage, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"d/other", b"x")
    begun = storage.begin_upload(b"d/f", anything)
    begun.write([b"late"])
    meanwhile(storage, patch, move(storage, b"d", b"e"))
    begun.publish(anything)
    begun.close()
    assert (names(storage, b"e"), names(storage, b"d")) == ([b"other"], [b"f"])


def test_an_upload_whose_folder_is_removed_meanwhile_makes_it_again(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"d/other", b"x")
    begun = storage.begin_upload(b"d/f", anything)
    begun.write([b"late"])
    aside: list[bytes | None] = []
    meanwhile(storage, patch, lambda: aside.append(storage.remove(b"d", anything)))
    begun.publish(anything)
    begun.close()
    assert names(storage, b"d") == [b"f"]
    for _ in storage.reclaim(aside[0] or b""):
        pass
    assert leftovers(root) == []


def test_an_append_whose_folder_is_moved_meanwhile_finds_no_file(
    storage: Storage, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"d/f", b"old")
    begun = begin_append(storage, b"d/f", b"new")
    meanwhile(storage, patch, move(storage, b"d", b"e"))
    with closing(begun), pytest.raises(NoSuchFile):
        begun.commit()
    assert read(storage, b"e/f") == b"old"


def begin_append(storage: Storage, name: bytes, content: bytes) -> Append:
    begun = storage.begin_append(name, anything)
    assert isinstance(begun, Append)
    begun.write([content])
    return begun


def test_a_move_into_a_folder_that_is_removed_meanwhile_makes_it_again(
    storage: Storage, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"p", b"precious")
    upload(storage, b"q/other", b"x")
    meanwhile(storage, patch, lambda: storage.remove(b"q", anything), opened=3)
    storage.move(b"p", b"q/p", anything)
    assert read(storage, b"q/p") == b"precious"


@pytest.mark.parametrize("verb", ["move", "remove"])
def test_what_goes_elsewhere_with_its_folder_is_not_changed_there(
    storage: Storage, patch: pytest.MonkeyPatch, verb: str
) -> None:
    upload(storage, b"d/f", b"content")
    upload(storage, b"t/other", b"x")
    meanwhile(storage, patch, move(storage, b"d", b"e"), opened=3 if verb == "move" else 1)
    with pytest.raises(NoSuchFile):
        if verb == "move":
            storage.move(b"d/f", b"t/f", anything)
        else:
            storage.remove(b"d/f", anything)
    assert read(storage, b"e/f") == b"content"


# A folder that is to go while something changes below it


@pytest.mark.parametrize("verb", ["move", "remove"])
@pytest.mark.parametrize("folder", [b"d", b"d/x"])
def test_a_folder_stays_while_an_append_below_it_is_committed(
    storage: Storage, patch: pytest.MonkeyPatch, folder: bytes, verb: str
) -> None:
    upload(storage, b"d/x/y/f", b"old ")
    begun = begin_append(storage, b"d/x/y/f", b"new")
    be_impatient(storage)
    refused = []

    def watched(real: Callable[..., int]) -> Callable[..., int]:
        def write(*args: Any) -> int:
            with pytest.raises(Contended):
                change_folder(storage, folder, verb)
            refused.append(folder)
            return real(*args)

        return write

    on_write(patch, watched)
    with closing(begun):
        begun.commit()
    assert refused
    assert read(storage, b"d/x/y/f") == b"old new"
    change_folder(storage, folder, verb)


def change_folder(storage: Storage, folder: bytes, verb: str) -> None:
    if verb == "move":
        storage.move(folder, b"moved", anything)
    else:
        storage.remove(folder, anything)


@pytest.mark.parametrize("verb", ["move", "remove"])
def test_nothing_changes_below_a_folder_that_goes(storage: Storage, verb: str) -> None:
    upload(storage, b"d/f", b"old")
    be_impatient(storage)
    met: list[Any] = []

    def check(find: Any) -> None:
        """Is asked first without the locks, if it is a move, and then with them."""
        met.append(None)
        if len(met) == (2 if verb == "move" else 1):
            with pytest.raises(Contended):
                append(storage, b"d/f", b"more")
            with pytest.raises(Contended):
                upload(storage, b"d/new", b"new")

    if verb == "move":
        storage.move(b"d", b"moved", check)
        assert names(storage, b"moved") == [b"f"]
    else:
        storage.remove(b"d", check)
    assert met
    assert names(storage) == ([b"moved"] if verb == "move" else [])


def test_what_becomes_a_folder_before_its_lock_is_there_gets_all_locks(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"x", b"a file")
    other = with_another_lock(storage.root.fd, (storage.root.fd, b"x"))

    def become_folder() -> None:
        (root / "x").unlink()
        upload(storage, b"x/f", b"below")

    real = storage.hold

    def hold(*args: Any, **kwargs: Any) -> Any:
        patch.undo()
        become_folder()
        return real(*args, **kwargs)

    with storage.locks.hold((storage.root.fd, other)), closing(storage.claim()) as claim:
        patch.setattr(storage, "hold", hold)
        with pytest.raises(Locked):
            storage.remove(b"x", anything, claim)
        with pytest.raises(Locked):
            storage.remove(b"x", anything, claim)
    assert read(storage, b"x/f") == b"below"


# Claims


def test_who_wants_all_locks_keeps_what_it_has_and_nothing_behind_what_it_waits_for(
    storage: Storage,
) -> None:
    locks = storage.locks
    fifth, claim = locks.claim(), locks.claim()
    fifth.take({5})
    with pytest.raises(Locked):
        claim.take(all_buckets())
    for bucket in range(20):
        with closing(locks.claim()) as one:
            if bucket <= 5:
                with pytest.raises(Locked):
                    one.take({bucket})
            else:
                one.take({bucket})
    fifth.close()
    assert claim.advance()
    with closing(locks.claim()) as one, pytest.raises(Locked):
        one.take({100})
    claim.take({7})  # as it has it, it need not give the others back to get it
    before = len(os.listdir("/proc/self/fd"))
    claim.close()
    assert len(os.listdir("/proc/self/fd")) == before - len(all_buckets())


def test_an_upload_is_synced_once_however_often_it_has_to_wait(
    durable: Storage, patch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    patch.setattr(os, "fsync", synced.append)
    begun = durable.begin_upload(b"f", anything)
    begun.write([b"content"])
    with closing(begun), closing(begun.claim()) as claim:
        with durable.locks.hold((durable.root.fd, b"f")):
            for _ in range(3):
                with pytest.raises(Locked):
                    begun.publish(anything, claim=claim)
            assert not claim.advance()
        assert claim.advance()
        published = begun.publish(anything, claim=claim)
    assert synced.count(begun._fd) == 1
    assert len(synced) == 2  # and the folder
    file = opened(durable, b"f")
    file.close()
    assert file.version == published


def test_a_wait_for_locks_is_measured_once_from_its_begin(
    storage: Storage, patch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, float]] = []
    storage._observe = lambda step, seconds: measured.append((step, seconds))
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    patch.setattr(locks_module, "time", clock)
    upload(storage, b"f", b"content")
    measured.clear()
    with closing(storage.claim()) as claim:
        with storage.locks.hold((storage.root.fd, b"f")):
            with pytest.raises(Locked):
                storage.remove(b"f", anything, claim)
            clock.now += 7
        storage.remove(b"f", anything, claim)
    assert measured == [("lock_wait", 7)]


def test_a_fact_is_not_waited_for(storage: Storage, patch: pytest.MonkeyPatch) -> None:
    upload(storage, b"f", b"a\n")
    file = opened(storage, b"f")
    file.close()

    def sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    with storage.locks.hold((storage.root.fd, b"f")):
        patch.setattr("time.sleep", sleep)
        storage.remember(b"f", file.version, Facts(digests={"sha-256": b"x"}))
    again = opened(storage, b"f")
    assert storage.recall(again) == Facts(1)
    again.close()


# The file itself


def two_links(storage: Storage, root: Path) -> bytes:
    """Make a file *f*, and return another name of it that has another lock."""
    upload(storage, b"f", b"")
    other = with_another_lock(storage.root.fd, (storage.root.fd, b"f"))
    os.link(root / "f", root / other.decode())
    return other


@pytest.mark.parametrize("local", [True, False])
def test_an_append_by_another_name_of_the_file_waits(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch, local: bool
) -> None:
    other = two_links(storage, root)
    storage.volume.is_local = local
    be_impatient(storage)
    refused = []

    def watched(real: Callable[..., int]) -> Callable[..., int]:
        def write(*args: Any) -> int:
            patch.undo()
            with pytest.raises(Contended):
                append(storage, other, b"second ")
            refused.append(other)
            return real(*args)

        return write

    on_write(patch, watched)
    append(storage, b"f", b"first ")
    assert refused
    append(storage, other, b"second ")
    assert (root / "f").read_bytes() == b"first second "


@pytest.fixture
def holder(storage: Storage, root: Path) -> Iterator[Holder]:
    """Another program that has a lock on the file *f*."""
    upload(storage, b"f", b"")
    holder = Holder(root / "f", "theirs\n")
    yield holder
    holder.end()


def test_an_append_waits_for_another_program_that_locks_the_file(
    storage: Storage, root: Path, holder: Holder
) -> None:
    if not storage.volume.is_local:
        pytest.skip("the file itself is not locked here")
    begun = begin_append(storage, b"f", b"ours\n")
    same = _bucket(storage.root.fd, b"f")
    tried = (b"n%d" % n for n in range(10_000))
    neighbour = next(name for name in tried if _bucket(storage.root.fd, name) == same)
    with closing(begun), closing(storage.claim()) as claim:
        with pytest.raises(Locked):
            begun.commit(claim)
        assert not claim.advance()
        be_impatient(storage)
        upload(storage, neighbour, b"is not waiting for that program")
        storage.locks._timeout = 30
        holder.let_go()
        assert claim.advance()
        begun.commit(claim)
    assert (root / "f").read_bytes() == b"theirs\nours\n"


def test_an_append_does_not_wait_for_a_file_that_is_replaced_meanwhile(
    storage: Storage, root: Path, holder: Holder
) -> None:
    if not storage.volume.is_local:
        pytest.skip("the file itself is not locked here")
    begun = begin_append(storage, b"f", b"more")
    with closing(begun), closing(storage.claim()) as claim:
        with pytest.raises(Locked):
            begun.commit(claim)
        upload(storage, b"f", b"new ")
        assert claim.advance()
        begun.commit(claim)
    assert read(storage, b"f") == b"new more"


def test_a_lock_on_a_file_that_has_lost_its_name_is_not_taken_for_one_on_the_next(
    storage: Storage, root: Path, holder: Holder
) -> None:
    if not storage.volume.is_local:
        pytest.skip("the file itself is not locked here")
    begun = begin_append(storage, b"f", b"more")
    with closing(begun), closing(storage.claim()) as claim:
        with pytest.raises(Locked):
            begun.commit(claim)
        storage.move(b"f", b"g", anything)
        upload(storage, b"f", b"new ")
        holder.let_go()
        assert claim.advance()
        with owned(os.open(root / "f", os.O_RDWR)) as fd:
            locks_module._is_locked(fd)
            with pytest.raises(Locked):
                begun.commit(claim)
        assert claim.advance()
        begun.commit(claim)
    assert read(storage, b"f") == b"new more"
