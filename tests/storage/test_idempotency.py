"""Appends that come twice, told by their keys."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.errors import NoSuchFile, StorageBroken, StorageError, StorageFull, WrongOffset
from httpnas.storage.record import KEYS, LARGEST, PAGE, Record, decode
from httpnas.storage.store import Storage
from httpnas.storage.version import Check, Version
from tests.private import own
from tests.storage import steps
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
from tests.storage.test_records import LARGE, SMALL, Failing


def begin(
    storage: Storage,
    name: bytes,
    content: bytes,
    key: bytes | None,
    check: Check = anything,
    expected: int | None = None,
) -> Append:
    """Stage an append which is not done yet."""
    pending = storage.begin_append(name, check, expected=expected, key=key)
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
    return steps.append(storage, name, content, check, expected, key)


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
    first, second = (begin(storage, b"f", b"new", b"key", only(before.tag), 3) for _ in range(2))
    done = first.commit()
    assert second.commit() == done
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
    assert KEYS >= 32
    upload(storage, b"f", b"")
    count = 2 * KEYS + 5
    done = [append(storage, b"f", b"x", b"%d" % number) for number in range(count)]
    forgotten = count - KEYS
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
    for number in range(KEYS):
        append(storage, b"f", b"x", b"%d" % number)
        append(storage, b"f", b"y")
        append(storage, b"f", b"x", b"0")
    assert all(knows(storage, b"f", b"%d" % number) for number in range(KEYS))


# Races


def test_of_repeats_that_race_one_lands(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"")
    other = Storage(str(root), durable=False)
    for round_ in range(12):
        key, line = b"%d" % round_, b"%d\n" % round_
        size = LARGE if round_ == 3 else 0
        results = at_once(
            [partial(append, s, b"f", b"x" * size + line, key) for s in [storage, other] * 4]
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
        results = at_once([one.commit for one in pending])
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


#: Where a daemon dies before all of an append is there.
DEATHS = [("xattrs", "writev", 1), ("files", "rename", 1), ("files", "writev", 1)]


@pytest.mark.parametrize("kind, where, nth", DEATHS, indirect=["kind"])
@pytest.mark.parametrize(
    "between, between_key", [(b"much more than was lost" * 500, None), (b"x", b"between")]
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
        append(durable, b"f", b"lost!" * PAGE, b"key")
    assert not knows(durable, b"f", b"key")
    append(durable, b"f", between, between_key)
    for number, done in enumerate(older):
        assert append(durable, b"f", b"o", b"older %d" % number) == done
    landed = append(durable, b"f", b"new", b"key")
    assert landed == version_of(durable, b"f")
    assert append(durable, b"f", b"new", b"key") == landed
    assert read(durable, b"f") == b"old ooo" + between + b"new"


#: Where a daemon dies when all of an append is there.
LATE_DEATHS = [
    ("xattrs", "fsync", 1),
    ("xattrs", "setxattr", 2),
    ("files", "fsync", 3),
    ("files", "rename", 2),
]


@pytest.mark.parametrize("kind, where, nth", LATE_DEATHS, indirect=["kind"])
def test_a_key_whose_append_a_crash_has_left_whole_is_answered_once_that_is_synced(
    kind: str, where: str, nth: int, durable: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(durable, b"f", b"old ")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, where, nth)
        append(durable, b"f", b"new", b"key")
    assert not knows(durable, b"f", b"key"), "nobody has synced it"
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    done = append(durable, b"f", b"new", b"key")
    assert synced[0] == (root / "f").stat().st_ino
    assert (done, read(durable, b"f")) == (version_of(durable, b"f"), b"old new")
    assert append(durable, b"f", b"new", b"key") == done


@both_kinds
def test_a_repeat_is_not_answered_whose_first_can_not_be_synced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the first one fails, a repeat of it waits at the lock, and the disk stays broken."""

    def die(fd: int) -> None:
        raise Died

    upload(storage, b"f", b"old ")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(storage, "sync", die)
        append(storage, b"f", b"new", b"key")

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(storage, "sync", broken)
    for _ in range(2):
        assert isinstance(outcome(lambda: append(storage, b"f", b"new", b"key")), StorageBroken)
    monkeypatch.undo()


def test_while_an_append_is_under_way_its_key_is_not_known(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still be undone, and then who was told that it landed was told wrong."""
    upload(storage, b"f", b"old")
    seen: list[bool] = []
    monkeypatch.setattr(storage, "sync", lambda fd: seen.append(knows(storage, b"f", b"key")))
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
    "function", ["setxattr", "getxattr", "removexattr", "fsync", "writev", "open",
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
        name = b"%d" % nth
        upload(storage, name, b"old ")
        append(storage, name, b"o", b"older")
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, function, nth, errno.EIO)
            result = outcome(partial(append, storage, name, b"new", b"key"))
        if failing.calls < nth:
            assert isinstance(result, Version)
            break
        landed = isinstance(result, Version)
        assert landed or isinstance(result, StorageError)
        assert read(storage, name) == b"old o" + b"new" * landed
        append(storage, name, b"and more")
        assert knows(storage, name, b"key") == landed
        assert knows(storage, name, b"older")
    storage.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_keys_that_can_not_be_written_fail_the_append_as_a_whole(
    kind: str, storage: Storage, root: Path, code: int
) -> None:
    upload(storage, b"f", b"old\n")
    before = append(storage, b"f", b"o", b"older")
    with pytest.MonkeyPatch.context() as patch:
        function = "setxattr" if kind == "xattrs" else "rename"

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(code, os.strerror(code))

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


#: The steps of each, in their order; so with OTHERS.
REPLACEMENTS: dict[str, list[Callable[[Storage, Path], object]]] = {
    "upload": [lambda storage, root: upload(storage, b"f", b"replaced ")],
    "move": [
        lambda storage, root: upload(storage, b"g", b"replaced "),
        lambda storage, root: storage.move(b"g", b"f", anything),
    ],
}


@both_kinds
@pytest.mark.parametrize("replacing", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_a_replacement_by_the_daemon_goes_on_with_the_keys_of_the_name(
    storage: Storage, root: Path, replacing: list[Callable[[Storage, Path], object]]
) -> None:
    upload(storage, b"f", b"")
    done = append(storage, b"f", b"much more than it is replaced by", b"key")
    for _ in range(2):
        for step in replacing:
            step(storage, root)
        assert append(storage, b"f", b"x", b"key") == done
        assert read(storage, b"f") == b"replaced "
    append(storage, b"f", b"y", b"other")
    assert knows(storage, b"f", b"key") and knows(storage, b"f", b"other")


OTHERS: dict[str, list[Callable[[Storage, Path], object]]] = {
    "remove": [
        lambda storage, root: remove(storage, b"f"),
        lambda storage, root: upload(storage, b"f", b"replaced "),
    ],
    "others": [
        lambda storage, root: (root / "g").write_bytes(b"replaced "),
        lambda storage, root: os.rename(root / "g", root / "f"),
    ],
    "move away": [
        lambda storage, root: storage.move(b"f", b"away", anything),
        lambda storage, root: upload(storage, b"f", b"replaced "),
    ],
    "cp -a by others": [
        lambda storage, root: (root / "f").rename(root / "first"),
        lambda storage, root: subprocess.run(["cp", "-a", root / "first", root / "f"], check=True),
        lambda storage, root: (root / "f").write_bytes(b"replaced "),
    ],
    "copytruncate": [
        lambda storage, root: os.truncate(root / "f", 0),
        lambda storage, root: append(storage, b"f", b"replaced "),
    ],
}


@both_kinds
@pytest.mark.parametrize("replacing", OTHERS.values(), ids=OTHERS)
def test_what_others_make_of_the_name_has_taken_nothing(
    storage: Storage, root: Path, replacing: list[Callable[[Storage, Path], object]]
) -> None:
    upload(storage, b"f", b"")
    append(storage, b"f", b"x", b"key")
    for step in replacing:
        step(storage, root)
    assert not knows(storage, b"f", b"key")
    append(storage, b"f", b"y", b"key")
    assert read(storage, b"f") == b"replaced y"


@both_kinds
def test_a_copy_with_all_attributes_has_taken_nothing(storage: Storage, root: Path) -> None:
    upload(storage, b"monday", b"")
    append(storage, b"monday", b"x", b"key")
    subprocess.run(["cp", "-a", root / "monday", root / "tuesday"], check=True)
    append(storage, b"tuesday", b"y", b"key")
    assert (read(storage, b"monday"), read(storage, b"tuesday")) == (b"x", b"xy")


@both_kinds
def test_an_append_that_began_before_a_replacement_is_a_repeat_after_it(storage: Storage) -> None:
    upload(storage, b"f", b"")
    first, again = begin(storage, b"f", b"x", b"key"), begin(storage, b"f", b"x", b"key")
    done = first.commit()
    upload(storage, b"f", b"replaced ")
    assert again.commit() == done
    assert again.repeats
    first.close()
    again.close()
    assert read(storage, b"f") == b"replaced "


@both_kinds
def test_keys_go_with_a_file_that_is_moved_and_join_those_of_the_name(storage: Storage) -> None:
    upload(storage, b"f", b"")
    upload(storage, b"d/g", b"other")
    other = append(storage, b"d/g", b"x", b"other key")
    first = append(storage, b"f", b"x", b"key")
    storage.move(b"f", b"d/g", anything)
    assert append(storage, b"d/g", b"x", b"key") == first
    assert append(storage, b"d/g", b"x", b"other key") == other
    storage.move(b"d", b"e", anything)
    assert append(storage, b"e/g", b"x", b"key") == first
    assert read(storage, b"e/g") == b"x"
    with pytest.raises(NoSuchFile):
        append(storage, b"f", b"x", b"key")


@pytest.mark.parametrize("birth", [True, False], ids=["birth", "no time of birth"])
def test_a_new_file_has_not_taken_what_its_inode_had(
    root: Path, monkeypatch: pytest.MonkeyPatch, birth: bool
) -> None:
    """Others remove a file and make another one, which has the same inode."""
    steps.choose("files", monkeypatch, root)
    if not birth:
        monkeypatch.setattr("httpnas.storage.statx._NUMBER", None)
    storage = Storage(str(root), durable=False)
    upload(storage, b"f", b"")
    append(storage, b"f", b"x", b"key")
    assert knows(storage, b"f", b"key")
    (record,) = own(root, "records").iterdir()
    (root / "other").write_bytes(b"of others ")
    record.rename(record.with_name(f"{(root / 'other').stat().st_ino:x}"))
    monkeypatch.setattr("httpnas.storage.records.decode", _about(root / "other"))
    assert not knows(storage, b"other", b"key")
    append(storage, b"other", b"x", b"key")
    assert read(storage, b"other") == b"of others x"
    storage.close()


def _about(path: Path) -> Callable[[bytes], Record | None]:
    """Let all that was recorded have been recorded of the inode of *path*."""

    def decoded(encoded: bytes) -> Record | None:
        record = decode(encoded)
        return record and replace(record, inode=path.stat().st_ino)

    return decoded


# Records that are none


@both_kinds
@pytest.mark.parametrize(
    "record", [b"", b"x", b"\xff" * 31, b"\0" * 33, b"\xff" * LARGEST, os.urandom(1000)]
)
def test_a_damaged_record_knows_no_key(storage: Storage, root: Path, record: bytes) -> None:
    upload(storage, b"f", b"x" * SMALL)
    if storage.has_xattrs:
        os.setxattr(root / "f", "user.httpnas", record)
    else:
        (own(root, "records") / f"{(root / 'f').stat().st_ino:x}").write_bytes(record)
    assert not knows(storage, b"f", b"key")
    first = append(storage, b"f", b"y", b"key")
    assert append(storage, b"f", b"y", b"key") == first
    assert read(storage, b"f") == b"x" * SMALL + b"y"


@pytest.mark.parametrize("room", [1000, 300])
def test_old_keys_give_way_where_there_is_no_room_for_all(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """As on ext4 with blocks of 1 KiB, which hold all user xattrs of a file."""
    real = os.setxattr

    def setxattr(fd: int, name: str, value: bytes) -> None:
        if len(value) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, name, value)

    upload(storage, b"f", b"")
    monkeypatch.setattr(os, "setxattr", setxattr)
    for number in range(3 * KEYS):
        done = append(storage, b"f", b"x", b"%d" % number)
        assert append(storage, b"f", b"x", b"%d" % number) == done
    assert read(storage, b"f") == b"x" * 3 * KEYS
    assert not knows(storage, b"f", b"0")


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


def test_a_key_counts_while_its_bytes_are_there_whatever_others_add(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"f", b"")
    first = append(storage, b"f", b"ours\n", b"key")
    with (root / "f").open("ab") as other:
        other.write(b"theirs\n")
    assert append(storage, b"f", b"ours\n", b"key").size == first.size
    append(storage, b"f", b"more\n", b"another")
    assert append(storage, b"f", b"ours\n", b"key").size == first.size
    assert read(storage, b"f") == b"ours\ntheirs\nmore\n"


@both_kinds
@pytest.mark.parametrize("size", [5, IN_MEMORY + 10])
@pytest.mark.parametrize("before", [b"", b"theirs\n"])
def test_an_append_that_failed_and_can_not_be_undone_is_not_made_twice(
    storage: Storage, root: Path, size: int, before: bytes
) -> None:
    """Others have appended behind it, so that it stays."""
    upload(storage, b"f", b"old\n")
    ours, theirs, real = b"\n".rjust(size, b"."), b"theirs\n", os.writev

    def writev(fd: int, views: Any) -> int:
        with (root / "f").open("ab") as other:
            other.write(before)
        return real(fd, views)

    def check(find: object) -> None:
        if (root / "f").stat().st_size > size:
            with (root / "f").open("ab") as other:
                other.write(theirs)
            raise Refused

    pending = begin(storage, b"f", ours, b"key", check)
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(pending):
        patch.setattr(os, "writev", writev)
        assert isinstance(outcome(pending.commit), Exception)
    stored = read(storage, b"f")
    assert stored == b"old\n" + before + ours + theirs
    append(storage, b"f", ours, b"key")
    assert read(storage, b"f") == stored


@both_kinds
@pytest.mark.parametrize("is_begun_before", [True, False])
def test_what_failed_and_can_not_be_undone_is_synced_before_its_repeat_is_answered(
    durable: Storage, root: Path, is_begun_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(durable, b"f", b"old\n")
    file, synced, real = (root / "f").stat().st_ino, list[int](), os.fsync

    def broken(fd: int) -> None:
        with (root / "f").open("ab") as other:
            other.write(b"theirs\n")
        raise OSError(errno.EIO, "broken")

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    first, again = (begin(durable, b"f", b"ours\n", b"key") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(first):
        patch.setattr(durable, "sync", broken)
        assert isinstance(outcome(first.commit), StorageError)
    monkeypatch.setattr(os, "fsync", fsync)
    if is_begun_before:
        again.commit()
        assert again.repeats
    else:
        assert knows(durable, b"f", b"key")
    assert file in synced
    assert read(durable, b"f").count(b"ours\n") == 1


@both_kinds
@pytest.mark.parametrize("size", [5, 9000, IN_MEMORY + 10])
@pytest.mark.parametrize("theirs", [b"", b"theirs", b"lines\n" * 500])
def test_a_key_counts_whose_append_came_behind_lines_of_others_and_died(
    storage: Storage, root: Path, size: int, theirs: bytes
) -> None:
    """It died before the record could say where it is."""
    upload(storage, b"f", b"before\n")
    ours, others = b"\n".rjust(size, b"."), root / "f"
    real = os.writev

    def writev(fd: int, views: Any) -> int:
        with others.open("ab") as other:
            other.write(theirs)
        real(fd, views)
        with others.open("ab") as other:
            other.write(theirs)
        raise Died

    pending = begin(storage, b"f", ours, b"key")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(os, "writev", writev)
        pending.commit()
    for _ in range(2):
        assert append(storage, b"f", ours, b"key").size == len(b"before\n" + theirs + ours)
    assert read(storage, b"f") == b"before\n" + theirs + ours + theirs


def test_a_key_whose_bytes_others_have_overwritten_counts_no_more(
    storage: Storage, root: Path
) -> None:
    """Also when the file is as long as before, and has taken another append of ours since."""
    for between in [False, True]:
        upload(storage, b"f", b"")
        storage.remove(b"f", anything)
        upload(storage, b"f", b"")
        append(storage, b"f", b"ours\n", b"key")
        (root / "f").write_bytes(b"a longer text of others\n")
        if between:
            append(storage, b"f", b"more\n")
        append(storage, b"f", b"ours\n", b"key")
        assert read(storage, b"f").endswith(b"ours\n")
