"""Appends that come twice, told by their keys."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import idempotency, version
from httpnas.storage.append import IN_MEMORY, Append, WrongOffset
from httpnas.storage.errors import NoSuchFile, StorageBroken, StorageError, StorageFull
from httpnas.storage.idempotency import REMEMBERED
from httpnas.storage.records import LARGEST
from httpnas.storage.store import Storage
from httpnas.storage.version import Check, Version
from tests.storage.steps import (
    Died,
    Refused,
    anything,
    at_once,
    both_kinds,
    die_at,
    leftovers,
    only,
    opened,
    outcome,
    process,
    read,
    remove,
    upload,
)
from tests.storage.test_records import LARGE, SMALL, Failing, crash


def begin(storage: Storage, name: bytes, content: bytes, key: bytes | None) -> Append:
    """Stage an append which is not done yet."""
    pending = storage.begin_append(name, anything, key=key)
    assert isinstance(pending, Append)
    pending.write([content])
    return pending


def append(
    storage: Storage,
    name: bytes,
    content: bytes,
    key: bytes | None = None,
    check: Check = anything,
    expected: int | None = None,
) -> Version:
    begun = storage.begin_append(name, check, expected=expected, key=key)
    if isinstance(begun, Version):
        return begun
    try:
        begun.write([content])
        return begun.commit()
    finally:
        begun.close()


def version_of(storage: Storage, name: bytes) -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def knows(storage: Storage, name: bytes, key: bytes) -> bool:
    """Tell whether *key* is answered at once, without a body."""
    begun = storage.begin_append(name, anything, key=key)
    if isinstance(begun, Append):
        begun.close()
    return isinstance(begun, Version)


# Repeats


@pytest.mark.parametrize("size", [0, 1, SMALL, LARGE])
def test_a_repeat_appends_nothing_and_gives_the_first_outcome(storage: Storage, size: int) -> None:
    upload(storage, b"f", b"old ")
    first = append(storage, b"f", b"x" * size, b"key")
    assert first.size == 4 + size
    assert append(storage, b"f", b"x" * size, b"key") == first
    assert append(storage, b"f", b"other", b"key") == first
    assert version_of(storage, b"f") == first
    later = append(storage, b"f", b"more", b"other key")
    last = append(storage, b"f", b"most")
    assert len({first, later, last}) == 3
    assert append(storage, b"f", b"x" * size, b"key") == first
    assert append(storage, b"f", b"more", b"other key") == later
    assert read(storage, b"f") == b"old " + b"x" * size + b"moremost"


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
def test_a_repeat_that_was_begun_before_the_first_ended_appends_nothing(
    storage: Storage, root: Path, size: int
) -> None:
    upload(storage, b"f", b"old ")
    pending = [begin(storage, b"f", b"x" * size, b"key") for _ in range(3)]
    outcomes = [one.commit() for one in pending]
    for one in pending:
        one.close()
    assert len(set(outcomes)) == 1
    assert read(storage, b"f") == b"old " + b"x" * size
    assert leftovers(root) == []


def test_without_a_key_every_append_lands(storage: Storage) -> None:
    upload(storage, b"f", b"")
    for _ in range(3):
        append(storage, b"f", b"x")
    assert read(storage, b"f") == b"xxx"


def test_keys_are_told_apart_however_alike(storage: Storage) -> None:
    upload(storage, b"f", b"")
    every = [b"a", b"A", b"a ", b" a", b"\0", b"\0\0", b"x" * 255, b"x" * 254, b"\xff"]
    for number, key in enumerate(every):
        assert append(storage, b"f", b"x", key).size == number + 1
    for number, key in enumerate(every):
        assert append(storage, b"f", b"x", key).size == number + 1


def test_a_key_is_that_of_one_file(storage: Storage) -> None:
    for name in [b"f", b"g"]:
        upload(storage, name, b"")
        append(storage, name, b"x", b"key")
        assert read(storage, name) == b"x"


def test_a_repeat_is_not_asked_for_conditions(storage: Storage) -> None:
    before = upload(storage, b"f", b"old")
    first = append(storage, b"f", b"new", b"key", only(before.tag), expected=3)
    assert append(storage, b"f", b"new", b"key", only(before.tag), expected=3) == first
    with pytest.raises(WrongOffset):
        append(storage, b"f", b"new", b"other", expected=3)
    with pytest.raises(Refused):
        append(storage, b"f", b"new", b"other", only(before.tag))
    assert not knows(storage, b"f", b"other")  # what was refused was not done


def test_a_repeat_that_was_begun_before_is_not_asked_for_conditions_either(
    storage: Storage,
) -> None:
    before = upload(storage, b"f", b"old")
    first, second = begin(storage, b"f", b"new", b"key"), begin(storage, b"f", b"new", b"key")
    done = first.commit(only(before.tag), 3)
    assert second.commit(only(before.tag), 3) == done
    first.close()
    second.close()


def test_an_append_that_is_given_up_was_never_seen(storage: Storage) -> None:
    upload(storage, b"f", b"")
    begin(storage, b"f", b"x", b"key").close()
    assert not knows(storage, b"f", b"key")
    append(storage, b"f", b"y", b"key")
    assert read(storage, b"f") == b"y"


# How many


@both_kinds
def test_the_latest_keys_are_remembered_in_order(storage: Storage) -> None:
    assert REMEMBERED >= 32
    upload(storage, b"f", b"")
    count = 2 * REMEMBERED + 5
    done = [append(storage, b"f", b"x", b"%d" % number) for number in range(count)]
    forgotten = count - REMEMBERED
    for number in range(forgotten, count):
        assert append(storage, b"f", b"x", b"%d" % number) == done[number]
    assert read(storage, b"f") == b"x" * count
    for number in range(forgotten):
        assert not knows(storage, b"f", b"%d" % number)
    append(storage, b"f", b"x", b"next")  # and the oldest goes first
    assert not knows(storage, b"f", b"%d" % forgotten)
    assert knows(storage, b"f", b"%d" % (forgotten + 1))


def test_repeats_and_appends_without_a_key_push_none_out(storage: Storage) -> None:
    upload(storage, b"f", b"")
    for number in range(REMEMBERED):
        append(storage, b"f", b"x", b"%d" % number)
        append(storage, b"f", b"y")
        append(storage, b"f", b"x", b"0")
    assert all(knows(storage, b"f", b"%d" % number) for number in range(REMEMBERED))


# Races


def test_of_repeats_that_race_one_lands(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"")
    other = Storage(str(root), durable=False)
    for round_ in range(12):
        key, line = b"%d" % round_, b"%d\n" % round_
        size = LARGE if round_ == 3 else 0
        results = at_once(
            [
                lambda s=s: append(s, b"f", b"x" * size + line, key)  # noqa: B023
                for s in [storage, other] * 4
            ]
        )
        assert len(set(results)) == 1 and isinstance(results[0], Version)
        assert results[0] == version_of(storage, b"f")
    assert [line.lstrip(b"x") for line in read(storage, b"f").split()] == [
        b"%d" % number for number in range(12)
    ]
    other.close()


def test_of_repeats_that_were_staged_before_one_lands(storage: Storage) -> None:
    upload(storage, b"f", b"")
    for round_ in range(12):
        pending = [begin(storage, b"f", b"%d\n" % round_, b"%d" % round_) for _ in range(6)]
        results = at_once([lambda one=one: one.commit() for one in pending])
        assert len(set(results)) == 1 and isinstance(results[0], Version)
        for one in pending:
            one.close()
    assert read(storage, b"f") == b"".join(b"%d\n" % number for number in range(12))


_REPEATS = """
import sys
from httpnas.storage.store import Storage
from tests.storage.test_idempotency import append
root, rounds = sys.argv[1:]
storage = Storage(root, durable=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(rounds)):
    size = append(storage, b"f", b"%d\\n" % number, b"%d" % number).size
    print(number, size, flush=True)
storage.close()
"""


def test_of_repeats_from_two_processes_one_lands(storage: Storage, root: Path) -> None:
    rounds = 40  # fewer than are remembered: one may be far ahead
    upload(storage, b"f", b"")
    writers = [process(_REPEATS, str(root), str(rounds)) for _ in range(2)]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    answers = [writer.communicate(timeout=30)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read(storage, b"f") == b"".join(b"%d\n" % number for number in range(rounds))
    assert answers[0] == answers[1]


# Crashes and failures


#: Where a daemon dies: as soon as the keys are written, and before the append counts.
DEATHS = [
    ("xattrs", "pwritev", 1),
    ("xattrs", "setxattr", 3),
    ("xattrs", "fsync", 1),
    ("xattrs", "removexattr", 1),
    ("files", "pwritev", 1),
    ("files", "rename", 3),
    ("files", "unlink", 1),
]


@pytest.mark.parametrize("kind, where, nth", DEATHS, indirect=["kind"])
@pytest.mark.parametrize(
    "between, between_key", [(b"much more than was lost", None), (b"x", b"between")]
)
def test_a_key_whose_append_a_crash_has_undone_was_never_seen(
    kind: str,
    where: str,
    nth: int,
    between: bytes,
    between_key: bytes | None,
    durable: Storage,
) -> None:
    upload(durable, b"f", b"old ")
    older = [append(durable, b"f", b"o", b"older %d" % number) for number in range(3)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, where, nth)
        append(durable, b"f", b"lost!", b"key")
    assert not knows(durable, b"f", b"key")
    append(durable, b"f", between, between_key)
    for number, done in enumerate(older):
        assert append(durable, b"f", b"o", b"older %d" % number) == done
    landed = append(durable, b"f", b"new", b"key")
    assert landed == version_of(durable, b"f")
    assert append(durable, b"f", b"new", b"key") == landed
    assert read(durable, b"f") == b"old ooo" + between + b"new"


def test_while_an_append_is_under_way_its_key_is_not_known(storage: Storage) -> None:
    """It may still be undone, and then who was told that it landed was told wrong."""
    upload(storage, b"f", b"old")
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        real = version.clear_undo

        def late(fd: int, records: Any) -> None:
            seen.append(knows(storage, b"f", b"key"))
            real(fd, records)

        patch.setattr(version, "clear_undo", late)
        append(storage, b"f", b"new", b"key")
    assert seen == [False]
    assert knows(storage, b"f", b"key")


@both_kinds
@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("next_key", [None, b"next"])
def test_a_key_whose_append_failed_was_never_seen(
    storage: Storage, root: Path, next_key: bytes | None, restored: bool
) -> None:
    upload(storage, b"f", b"old ")
    older = append(storage, b"f", b"o", b"older")
    with pytest.MonkeyPatch.context() as patch:
        real, calls = storage.sync, []

        def sync(fd: int) -> None:
            calls.append(fd)
            if len(calls) == 1 or not restored:
                raise OSError(errno.EIO, "broken")
            real(fd)

        patch.setattr(storage, "sync", sync)
        with pytest.raises(StorageBroken):
            append(storage, b"f", b"lost!", b"key")
    assert not knows(storage, b"f", b"key")
    append(storage, b"f", b"much longer than that", next_key)
    assert not knows(storage, b"f", b"key")
    assert append(storage, b"f", b"o", b"older") == older
    append(storage, b"f", b"new", b"key")
    assert read(storage, b"f") == b"old omuch longer than thatnew"


@pytest.mark.parametrize(
    "function", ["setxattr", "getxattr", "removexattr", "fsync", "pwritev", "utime", "open",
                 "read", "write", "rename", "unlink", "fstat"],
)  # fmt: skip
def test_whatever_fails_an_append_with_a_key_has_landed_or_not(
    kind: str, root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    if (kind == "files") == function.endswith("xattr"):
        return
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    storage = Storage(str(root))
    for nth in itertools.count(1):
        upload(storage, b"f", b"old ")
        append(storage, b"f", b"o", b"older")
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, function, nth, errno.EIO)
            result = outcome(lambda: append(storage, b"f", b"new", b"key"))
        if failing.calls < nth:
            assert isinstance(result, Version)
            break
        landed = isinstance(result, Version)
        assert landed or isinstance(result, StorageError)
        assert read(storage, b"f") == b"old o" + b"new" * landed
        append(storage, b"f", b"and more")
        assert knows(storage, b"f", b"key") == landed
        assert knows(storage, b"f", b"older")
    storage.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_keys_that_can_not_be_written_fail_the_append_as_a_whole(
    kind: str, storage: Storage, root: Path, code: int
) -> None:
    upload(storage, b"f", b"old\n")
    before = append(storage, b"f", b"o", b"older")
    with pytest.MonkeyPatch.context() as patch:
        function = "setxattr" if kind == "xattrs" else "rename"
        real = getattr(os, function)

        def fail(*args: Any, **kwargs: Any) -> Any:
            if str(args[1]).endswith(".keys"):
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        patch.setattr(os, function, fail)
        with pytest.raises(StorageBroken if code == errno.EIO else StorageFull):
            append(storage, b"f", b"new", b"key")
        assert append(storage, b"f", b"o", b"older") == before  # a repeat writes nothing
    assert (root / "f").read_bytes() == b"old\no"
    assert version_of(storage, b"f") == before
    assert not knows(storage, b"f", b"key")
    append(storage, b"f", b"new", b"key")
    assert read(storage, b"f") == b"old\nonew"


def test_a_file_that_is_cut_short_by_others_has_not_taken_what_it_lost(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old ")
    append(storage, b"f", b"kept ", b"kept")
    append(storage, b"f", b"lost ", b"lost")
    os.truncate(root / "f", 9)
    assert knows(storage, b"f", b"kept")
    assert not knows(storage, b"f", b"lost")
    append(storage, b"f", b"next ", b"next")
    append(storage, b"f", b"lost ", b"lost")
    assert read(storage, b"f") == b"old kept next lost "


# Other files of the name


@both_kinds
def test_a_replacement_has_taken_nothing(storage: Storage, root: Path) -> None:
    for replace in [
        lambda: upload(storage, b"f", b"replaced "),
        lambda: (upload(storage, b"g", b"replaced "), storage.move(b"g", b"f", anything)),
        lambda: (remove(storage, b"f"), upload(storage, b"f", b"replaced ")),
        lambda: ((root / "g").write_bytes(b"replaced "), os.rename(root / "g", root / "f")),
        lambda: (storage.move(b"f", b"away", anything), upload(storage, b"f", b"replaced ")),
    ]:
        upload(storage, b"f", b"")
        append(storage, b"f", b"x", b"key")
        replace()
        assert not knows(storage, b"f", b"key")
        append(storage, b"f", b"y", b"key")
        assert read(storage, b"f") == b"replaced y"


@both_kinds
def test_an_append_that_began_before_a_replacement_lands_on_it(storage: Storage) -> None:
    upload(storage, b"f", b"")
    first, again = begin(storage, b"f", b"x", b"key"), begin(storage, b"f", b"x", b"key")
    first.commit()
    upload(storage, b"f", b"replaced ")
    again.commit()
    first.close()
    again.close()
    assert read(storage, b"f") == b"replaced x"


@both_kinds
def test_keys_go_with_a_file_that_is_moved(storage: Storage) -> None:
    upload(storage, b"f", b"")
    upload(storage, b"d/g", b"other")
    append(storage, b"d/g", b"x", b"other key")
    first = append(storage, b"f", b"x", b"key")
    storage.move(b"f", b"d/g", anything)
    assert append(storage, b"d/g", b"x", b"key") == first
    assert not knows(storage, b"d/g", b"other key")
    storage.move(b"d", b"e", anything)
    assert append(storage, b"e/g", b"x", b"key") == first
    assert read(storage, b"e/g") == b"x"
    with pytest.raises(NoSuchFile):
        append(storage, b"f", b"x", b"key")


def test_a_new_file_has_not_taken_what_its_inode_had(kind: str, storage: Storage) -> None:
    pending = storage.begin_upload(b"f", anything)
    if kind == "files":  # left by a file that somebody else has removed
        made = version.of_stat(os.fstat(pending._fd))
        idempotency.remember(pending._fd, b"key", made, made, storage.records)
    pending.write([b"new "])
    pending.publish(anything)
    pending.close()
    append(storage, b"f", b"x", b"key")
    assert read(storage, b"f") == b"new x"


# Records that are none


@pytest.mark.parametrize(
    "record", [b"", b"x", b"\xff" * 31, b"\0" * 33, b"\xff" * LARGEST, os.urandom(1000)]
)
def test_a_damaged_record_knows_no_key(storage: Storage, record: bytes) -> None:
    upload(storage, b"f", b"x" * SMALL)
    file = opened(storage, b"f")
    storage.records.write(file.fd, "keys", record)
    file.close()
    assert not knows(storage, b"f", b"key")
    first = append(storage, b"f", b"y", b"key")
    assert append(storage, b"f", b"y", b"key") == first
    assert read(storage, b"f") == b"x" * SMALL + b"y"


@both_kinds
def test_a_crash_with_a_damaged_record_is_repaired(storage: Storage, root: Path) -> None:
    before = upload(storage, b"f", b"old")
    crash(storage, root / "f", before, b"garbage")
    file = opened(storage, b"f")
    storage.records.write(file.fd, "keys", b"\xff" * 70)
    file.close()
    append(storage, b"f", b"new", b"key")
    assert read(storage, b"f") == b"oldnew"
    assert knows(storage, b"f", b"key")


def test_a_large_repeat_leaves_no_temporary(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"")
    pending = [begin(storage, b"f", b"x" * (IN_MEMORY + 1), b"key") for _ in range(2)]
    assert len(leftovers(root)) == 2
    for one in pending:
        one.commit()
        one.close()
    assert leftovers(root) == []
    assert (root / "f").stat().st_size == IN_MEMORY + 1


def test_a_copy_by_others_in_the_same_place_is_the_same_file(storage: Storage, root: Path) -> None:
    """``cp`` over a file keeps its inode: what it has taken can not be told from what it has."""
    upload(storage, b"f", b"old")
    append(storage, b"f", b"x", b"key")
    (root / "g").write_bytes(b"2")
    shutil.copyfile(root / "g", root / "f")
    assert not knows(storage, b"f", b"key")
