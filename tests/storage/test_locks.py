"""Changes that meet others: in the folder that they change, above it, and in the file itself."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from httpnas.storage import locks as locks_module
from httpnas.storage import staging
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import Contended, NoSuchFile, StorageError, WrongOffset
from httpnas.storage.facts import Facts
from httpnas.storage.locks import Locked, _bucket, all_buckets
from httpnas.storage.store import Storage
from tests.storage.steps import (
    Holder,
    Refused,
    anything,
    append,
    leftovers,
    names,
    on_write,
    only,
    opened,
    read,
    tag,
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
    other = neighbour(storage, b"f")
    with closing(begun), closing(storage.claim()) as claim:
        with pytest.raises(Locked):
            begun.commit(claim)
        assert not claim.advance()
        be_impatient(storage)
        upload(storage, other, b"is not waiting for that program")
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


# A large append, which gives back the lock of its name while it copies

LARGE = b"large " * (IN_MEMORY // 6 + 1)


@pytest.fixture(params=[True, False], ids=["local", "network"])
def kept_apart(request: pytest.FixtureRequest, storage: Storage) -> Storage:
    """A storage on a local file system, and one on a network."""
    storage.volume.is_local &= request.param
    return storage


def while_it_copies(patch: pytest.MonkeyPatch, act: Callable[[], Any], times: int = 1) -> list[Any]:
    """Let *act* happen when large appends have copied; the list gets what it has returned."""
    done: list[Any] = []

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def copy(*args: Any) -> Any:
            result = real(*args)
            if len(done) < times:
                done.append(None)
                done[-1] = act()
            return result

        return copy

    for function in ["append_all", "copy"]:
        patch.setattr(staging, function, wrapped(getattr(staging, function)))
    return done


def neighbour(storage: Storage, name: bytes) -> bytes:
    """Return another name in the root that has the lock of *name*."""
    same = _bucket(storage.root.fd, name)
    tried = (b"n%d" % n for n in range(10_000))
    return next(name for name in tried if _bucket(storage.root.fd, name) == same)


def test_other_names_do_not_wait_for_a_large_append(
    kept_apart: Storage, patch: pytest.MonkeyPatch
) -> None:
    storage = kept_apart
    upload(storage, b"f", b"old ")
    other = neighbour(storage, b"f")
    be_impatient(storage)
    done = while_it_copies(patch, lambda: upload(storage, other, b"meanwhile"))
    append(storage, b"f", LARGE)
    assert len(done) == 1
    assert read(storage, other) == b"meanwhile"
    assert read(storage, b"f") == b"old " + LARGE


@pytest.mark.parametrize("by", [b"f", b"link"])
def test_other_appends_to_the_file_do_wait_for_it(
    kept_apart: Storage, root: Path, patch: pytest.MonkeyPatch, by: bytes
) -> None:
    storage = kept_apart
    upload(storage, b"f", b"old ")
    os.link(root / "f", root / "link")
    be_impatient(storage)
    seen: list[bytes] = []

    def meanwhile() -> None:
        with pytest.raises(Contended):
            append(storage, by, b"too early")
        seen.append(read(storage, b"f"))

    while_it_copies(patch, meanwhile)
    append(storage, b"f", LARGE)
    assert seen == [b"old "]
    append(storage, by, b" next")
    assert read(storage, b"f") == b"old " + LARGE + b" next"


def test_a_large_append_to_a_file_that_is_replaced_meanwhile_goes_to_the_new_one(
    kept_apart: Storage, root: Path, patch: pytest.MonkeyPatch
) -> None:
    storage = kept_apart
    upload(storage, b"f", b"old ")
    os.link(root / "f", root / "link")
    done = while_it_copies(patch, lambda: upload(storage, b"f", b"new "))
    made = append(storage, b"f", LARGE, key=b"key")
    assert len(done) == 1
    assert read(storage, b"f") == b"new " + LARGE
    assert append(storage, b"f", LARGE, key=b"key") == made
    assert (root / "link").read_bytes() == read(storage, b"link") == b"old "
    append(storage, b"link", b"more")


@pytest.mark.parametrize("how", ["tag", "length"])
def test_a_large_append_is_refused_when_its_condition_does_not_hold_for_the_new_file(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch, how: str
) -> None:
    before = upload(storage, b"f", b"old ")
    while_it_copies(patch, lambda: upload(storage, b"f", b"newer "))
    with pytest.raises(Refused if how == "tag" else WrongOffset):
        if how == "tag":
            append(storage, b"f", LARGE, check=only(before.tag))
        else:
            append(storage, b"f", LARGE, expected=4)
    assert read(storage, b"f") == (root / "f").read_bytes() == b"newer "
    assert leftovers(root) == []


@pytest.mark.parametrize("what", ["remove", "move", "move the folder"])
def test_a_large_append_to_a_name_that_goes_meanwhile_is_undone(
    kept_apart: Storage, root: Path, patch: pytest.MonkeyPatch, what: str
) -> None:
    storage = kept_apart
    upload(storage, b"d/f", b"old ")
    os.link(root / "d" / "f", root / "link")
    act = {
        "remove": lambda: storage.remove(b"d/f", anything),
        "move": move(storage, b"d/f", b"g"),
        "move the folder": move(storage, b"d", b"e"),
    }[what]
    while_it_copies(patch, act)
    with pytest.raises(NoSuchFile):
        append(storage, b"d/f", LARGE, key=b"key")
    assert read(storage, b"link") == (root / "link").read_bytes() == b"old "
    assert append(storage, b"link", b"new", key=b"key").size == len(b"old new")
    assert leftovers(root) == []


def test_a_large_append_gives_up_when_its_file_is_replaced_again_and_again(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"old ")
    done = while_it_copies(patch, lambda: upload(storage, b"f", b"new "), times=9)
    with pytest.raises(Contended):
        append(storage, b"f", LARGE)
    assert len(done) == 2
    assert read(storage, b"f") == (root / "f").read_bytes() == b"new "


@pytest.mark.parametrize("given_up", [False, True])
def test_a_large_append_waits_for_the_lock_of_its_name_without_a_thread(
    storage: Storage, root: Path, patch: pytest.MonkeyPatch, given_up: bool
) -> None:
    before = upload(storage, b"f", b"old ")
    begun = begin_append(storage, b"f", LARGE)
    descriptors = len(os.listdir("/proc/self/fd"))
    other = storage.claim()
    wanted = {_bucket(storage.root.fd, b"f")}
    done = while_it_copies(patch, lambda: other.take(wanted))
    with closing(begun), closing(storage.claim()) as claim:
        for _ in range(3):
            with pytest.raises(Locked):
                begun.commit(claim)
            assert read(storage, b"f") == b"old "
        other.close()
        if not given_up:
            assert claim.advance()
            begun.commit(claim)
    assert len(done) == 1
    assert read(storage, b"f") == (root / "f").read_bytes() == b"old " + LARGE * (not given_up)
    assert (tag(storage, b"f") == before.tag) == given_up
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1  # and the temporary file
    append(storage, b"f", b"next")


def test_the_time_that_a_large_append_copies_is_not_taken_for_time_that_it_waits(
    storage: Storage, patch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"old ")
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    patch.setattr(locks_module, "time", clock)

    def pass_time() -> None:
        clock.now += 100
        other.take({_bucket(storage.root.fd, b"f")})

    other = storage.claim()
    while_it_copies(patch, pass_time)
    begun = begin_append(storage, b"f", LARGE)
    with closing(begun), closing(storage.claim()) as claim:
        with pytest.raises(Locked):
            begun.commit(claim)
        other.close()
        assert claim.advance()
        begun.commit(claim)


@pytest.mark.parametrize("number", range(30))
def test_a_large_append_that_fails_in_between_keeps_the_next_from_nothing(
    kept_apart: Storage, root: Path, patch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever of its calls of close(2) reports an error."""
    storage, close, calls = kept_apart, os.close, itertools.count()

    def fail_once(fd: int) -> None:
        close(fd)
        if next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    upload(storage, b"f", b"old ")
    begun = begin_append(storage, b"f", LARGE)
    patch.setattr(os, "close", fail_once)
    failures = []  # holds what the call had, as a log does
    try:
        with closing(begun):
            begun.commit()
    except StorageError as error:
        failures.append(error)
    patch.setattr(os, "close", close)
    be_impatient(storage)
    append(storage, b"f", b"next")
    assert (root / "f").read_bytes() == read(storage, b"f")
    assert read(storage, b"f") in (b"old next", b"old " + LARGE + b"next")
