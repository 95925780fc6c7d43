from __future__ import annotations

import errno
import itertools
import mmap
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import content as content_module
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.errors import (
    Contended,
    IsFolder,
    NoSuchFile,
    NotPermitted,
    OutOfDescriptors,
    StorageAway,
    StorageBroken,
    StorageError,
    StorageFull,
    WrongOffset,
)
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from httpnas.storage.version import Find, Version
from tests.storage.steps import (
    Faults,
    Refused,
    anything,
    append,
    at_once,
    begin_append,
    content_of,
    crash,
    leftovers,
    names,
    on_write,
    only,
    opened,
    outcome,
    pends,
    process,
    read,
    remove,
    tag,
    upload,
)
from tests.storage.steps import need_xattrs as skip_without_xattrs

SMALL, LARGE = 1000, IN_MEMORY + 1000


@pytest.fixture
def need_xattrs(tmp_path: Path) -> None:
    skip_without_xattrs(tmp_path)


@pytest.mark.parametrize("sizes", [[3], [0], [3, 0, 4], [SMALL] * 3, [LARGE], [SMALL, LARGE, 1]])
def test_a_body_lands_behind_the_end(storage: Storage, root: Path, sizes: list[int]) -> None:
    upload(storage, b"d/f", b"old")
    pending = begin_append(storage, b"d/f")
    for number, size in enumerate(sizes):
        pending.write([bytes([48 + number]) * size])
    assert read(storage, b"d/f") == b"old"
    result = pending.commit()
    pending.close()
    content = b"old" + b"".join(bytes([48 + n]) * size for n, size in enumerate(sizes))
    assert read(storage, b"d/f") == content
    assert result.size == len(content)
    assert result == opened_version(storage, b"d/f")
    assert leftovers(root) == []


def opened_version(storage: Storage, name: bytes) -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def test_every_append_makes_another_version(storage: Storage) -> None:
    tags = [upload(storage, b"f", b"").tag]
    for _ in range(100):
        tags.append(append(storage, b"f", b"x").tag)
        assert tags[-1] == tag(storage, b"f")
    assert len(set(tags)) == len(tags)


def test_an_append_of_nothing_changes_nothing(storage: Storage) -> None:
    before = upload(storage, b"f", b"old")
    assert append(storage, b"f", b"") == before
    assert opened_version(storage, b"f") == before


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_close_without_commit_leaves_nothing(storage: Storage, root: Path, size: int) -> None:
    before = upload(storage, b"f", b"old")
    pending = begin_append(storage, b"f")
    pending.write([b"x" * size])
    assert len(leftovers(root)) == (size > IN_MEMORY)
    pending.close()
    assert leftovers(root) == []
    assert opened_version(storage, b"f") == before
    assert read(storage, b"f") == b"old"


def test_what_is_no_file_can_not_be_appended_to(storage: Storage) -> None:
    upload(storage, b"d/f", b"old")
    for name, error in [
        (b"none", NoSuchFile),
        (b"none/none", NoSuchFile),
        (b"d/f/x", NoSuchFile),
        (b"d", IsFolder),
        (b"", IsFolder),
    ]:
        with pytest.raises(error):
            append(storage, name, b"more")
    assert names(storage) == [b"d"]


def test_a_file_that_goes_during_the_append_is_not_made_anew(storage: Storage) -> None:
    upload(storage, b"d/f", b"old")
    upload(storage, b"e/f", b"old")
    upload(storage, b"g", b"old")
    pending = [begin_append(storage, name) for name in [b"d/f", b"e/f", b"g"]]
    for one in pending:
        one.write([b"more"])
    remove(storage, b"d/f")
    remove(storage, b"e")
    remove(storage, b"g")
    upload(storage, b"g/folder", b"")
    for one, error in zip(pending, [NoSuchFile, NoSuchFile, IsFolder], strict=True):
        with pytest.raises(error):
            one.commit()
        one.close()
    assert names(storage, b"d") == []
    assert names(storage) == [b"d", b"g"]


def test_another_length_than_expected_is_told(storage: Storage) -> None:
    before = upload(storage, b"f", b"old")
    for wrong in [0, 2, 4, 1 << 63]:
        with pytest.raises(WrongOffset) as caught:
            storage.begin_append(b"f", anything, expected=wrong)
        assert caught.value.actual == 3
    assert opened_version(storage, b"f") == before
    assert append(storage, b"f", b"more", expected=3).size == 7


def test_of_many_appends_at_one_offset_exactly_one_lands(storage: Storage) -> None:
    upload(storage, b"f", b"")
    for round_ in range(10):
        pending = [begin_append(storage, b"f", expected=round_) for _ in range(8)]
        for number, one in enumerate(pending):
            one.write([b"%d" % number])
        results = at_once([one.commit for one in pending])
        landed = [n for n, result in enumerate(results) if isinstance(result, Version)]
        assert len(landed) == 1
        others = [result for n, result in enumerate(results) if n not in landed]
        assert all(type(r) is WrongOffset and r.actual == round_ + 1 for r in others)
        assert read(storage, b"f")[round_:] == b"%d" % landed[0]
        for one in pending:
            one.close()


def test_what_is_refused_when_it_is_written_already_is_not_appended(
    storage: Storage, root: Path
) -> None:
    """As when the syncs took so long that the client was told to come again."""
    upload(storage, b"f", b"old\n")
    answers = iter([None, None, Refused()])

    def check(find: Find) -> None:
        if (answer := next(answers)) is not None:
            raise answer

    begun = storage.begin_append(b"f", check, key=b"key")
    assert isinstance(begun, Append)
    begun.write([b"new\n"])
    with pytest.raises(Refused):
        begun.commit()
    begun.close()
    assert read(storage, b"f") == (root / "f").read_bytes() == b"old\n"
    again = storage.begin_append(b"f", anything, key=b"key")
    assert isinstance(again, Append)
    again.write([b"new\n"])
    again.commit()
    again.close()
    assert read(storage, b"f") == b"old\nnew\n"


def test_the_check_decides_in_the_moment_of_the_commit(storage: Storage) -> None:
    before = upload(storage, b"f", b"old").tag
    pending = begin_append(storage, b"f", only(before))
    pending.write([b"more"])
    upload(storage, b"f", b"new")
    with pytest.raises(Refused):
        pending.commit()
    pending.close()
    assert read(storage, b"f") == b"new"


# Many at once


def body(author: int, number: int, size: int) -> bytes:
    """A line that only its author writes, of *size* bytes with its end."""
    mark = b"%d.%d:" % (author, number)
    return mark + b"x" * (size - len(mark) - 1) + b"\n"


def assert_whole(content: bytes, authors: int, numbers: int, sizes: list[int]) -> None:
    lines = content.splitlines(keepends=True)
    wanted = {
        body(author, number, sizes[number % len(sizes)])
        for author in range(authors)
        for number in range(numbers)
    }
    assert len(lines) == len(wanted)
    assert set(lines) == wanted
    for author in range(authors):  # and in the order in which each was answered
        mine = [line for line in lines if line.startswith(b"%d." % author)]
        assert [int(re.split(rb"[.:]", line)[1]) for line in mine] == list(range(numbers))


def test_appends_of_many_threads_are_whole_and_contiguous(storage: Storage) -> None:
    upload(storage, b"f", b"")
    sizes = [SMALL, 50, LARGE, 200]

    def write(author: int) -> list[Version]:
        return [
            append(storage, b"f", body(author, n, sizes[n % len(sizes)])) for n in range(len(sizes))
        ]

    results = at_once([partial(write, author) for author in range(16)])
    assert_whole(read(storage, b"f"), 16, len(sizes), sizes)
    ends = sorted(result.size for results_ in results for result in results_)
    assert len(set(ends)) == 16 * len(sizes)  # each was answered with the length of its own


_AUTHOR = """
import sys
from httpnas.storage.records import XattrRecords
from httpnas.storage.store import Storage
from tests.storage.steps import append
from tests.storage.test_append import body
root, author, numbers, *sizes = sys.argv[1:]
storage = Storage(root, durable=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(numbers)):
    size = int(sizes[number % len(sizes)])
    append(storage, b"f", body(int(author), number, size))
storage.close()
"""


def test_appends_of_many_processes_are_whole_and_contiguous(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"")
    sizes, numbers, authors = [SMALL, 77, LARGE], 12, 3
    writers = [
        process(_AUTHOR, str(root), str(author), str(numbers), *map(str, sizes))
        for author in range(authors)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    assert_whole(read(storage, b"f"), authors, numbers, sizes)


def test_an_opened_version_stays_as_it_was_when_the_file_grows(storage: Storage) -> None:
    upload(storage, b"f", b"old")
    file = opened(storage, b"f")
    append(storage, b"f", b"more" * 1000)
    assert content_of(file) == b"old"
    file.close()


def test_an_append_is_not_lost_when_its_folder_is_renamed_in_the_middle(
    storage: Storage, root: Path, need_xattrs: None
) -> None:
    """By another program. The name's lock has another name then; the second writer must wait."""
    upload(storage, b"d/f", b"old ")
    pending = begin_append(storage, b"d/f")
    pending.write([b"first "])
    second: list[threading.Thread] = []

    def slow(real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, views: list[Any], *at: int) -> int:
            if second:
                return real(fd, views, *at)
            os.rename(root / "d", root / "e")
            second.append(threading.Thread(target=append, args=[storage, b"e/f", b"second "]))
            second[0].start()
            second[0].join(0.3)
            return real(fd, views, *at)

        return write

    with pytest.MonkeyPatch.context() as patch:
        on_write(patch, slow)
        pending.commit()
        pending.close()
        second[0].join()
    assert read(storage, b"e/f") == b"old first second "


# Crashes


def test_a_file_cut_short_by_others_after_a_crash_is_not_filled_up(
    storage: Storage, root: Path, need_xattrs: None
) -> None:
    upload(storage, b"f", b"old content")
    crash(storage, b"f", b"x" * 9000, PAGE - 11)
    os.truncate(root / "f", 3)
    assert read(storage, b"f") == b"old"
    append(storage, b"f", b" new")
    assert read(storage, b"f") == b"old new"


def test_a_replaced_file_has_nothing_of_an_old_crash(
    storage: Storage, root: Path, need_xattrs: None
) -> None:
    upload(storage, b"f", b"old")
    crash(storage, b"f", b"x" * 9000, PAGE - 3)
    upload(storage, b"f", b"much longer than the old content")
    assert read(storage, b"f") == b"much longer than the old content"
    assert not pends(storage, b"f")


# Faults


CODES = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EIO: StorageBroken,
    errno.EROFS: NotPermitted,
    errno.ESTALE: StorageAway,
    errno.EMFILE: OutOfDescriptors,
}
FAULTY = ["setxattr", "getxattr", "writev", "fsync", "open", "fstat"]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize(
    "function, size",
    [*((function, SMALL) for function in FAULTY), ("copy_file_range", LARGE), ("writev", LARGE)],
)
def test_whatever_fails_leaves_the_old_version_and_the_next_append_works(
    durable: Storage, root: Path, function: str, size: int, code: int, lasting: bool,
    need_xattrs: None,
) -> None:  # fmt: skip
    met = 0
    if function == "copy_file_range":
        durable.volume.is_local = False
    for nth in itertools.count(1):
        before = upload(durable, b"f", b"old ")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: None)
            faults = Faults(patch, function, nth, code, lasting)
            result = outcome(lambda: append(durable, b"f", b"x" * size))
        assert leftovers(root) == []
        if faults.calls < nth:
            assert isinstance(result, Version)
            break
        met += 1
        if isinstance(result, Version):  # it did not matter
            assert read(durable, b"f") == b"old " + b"x" * size
            continue
        assert type(result) is CODES[code], (nth, result)
        # Where not even the length can be asked for, nothing can be undone: it stays.
        stays = lasting and function == "fstat" and (root / "f").stat().st_size > before.size
        old = b"old " + b"x" * size * stays
        assert read(durable, b"f") == old
        if not lasting:
            assert opened_version(durable, b"f") == before
            assert (root / "f").stat().st_size == before.size
            assert not pends(durable, b"f")
        append(durable, b"f", b"new")
        assert (root / "f").read_bytes() == old + b"new"
    assert met


def test_content_and_record_are_synced_once_before_they_count(
    durable: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, need_xattrs: None
) -> None:
    upload(durable, b"f", b"old ")
    synced: list[tuple[bytes, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(((root / "f").read_bytes(), pends(durable, b"f")))
    )
    append(durable, b"f", b"new")
    assert synced == [(b"old new", True)]
    assert not pends(durable, b"f")


def test_short_writes_are_continued(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(storage, b"f", b"old ")
    real_copy = os.copy_file_range
    on_write(monkeypatch, lambda real: lambda fd, views, *at: real(fd, [views[0][:77]], *at))
    monkeypatch.setattr(
        os,
        "copy_file_range",
        lambda source, target, count, *at: real_copy(source, target, min(count, 99_999), *at),
    )
    content = os.urandom(SMALL)
    append(storage, b"f", content)
    large = os.urandom(LARGE)
    append(storage, b"f", large)
    storage.volume.is_local = False
    append(storage, b"f", large)
    assert read(storage, b"f") == b"old " + content + large * 2


def test_what_is_larger_than_one_write_takes_is_appended_in_several(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not storage.volume.is_local:
        pytest.skip("on a network file system it is copied")
    upload(storage, b"f", b"old ")
    pages = 2 * mmap.ALLOCATIONGRANULARITY
    monkeypatch.setattr(content_module, "_ONE_WRITE", pages)
    sizes: list[int] = []

    def counted(real: Callable[..., int]) -> Callable[..., int]:
        def writev(fd: int, views: Sequence[memoryview]) -> int:
            sizes.append(sum(map(len, views)))
            return real(fd, views)

        return writev

    content = os.urandom(LARGE)
    begun = begin_append(storage, b"f")
    with closing(begun):
        begun.write([content])
        on_write(monkeypatch, counted)
        begun.commit()
    assert max(sizes) == pages
    assert read(storage, b"f") == b"old " + content


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_lines_of_others_in_the_middle_of_a_short_write_are_kept_and_it_is_told(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    if not storage.volume.is_local:
        pytest.skip("on a network file system other programs have to leave the file alone")
    upload(storage, b"f", b"old ")

    def interrupted(real: Callable[..., int]) -> Callable[..., int]:
        def writev(fd: int, views: Sequence[memoryview]) -> int:
            written = real(fd, [views[0][:500]])
            with (root / "f").open("ab") as file:
                file.write(b"theirs ")
            return written

        return writev

    begun = begin_append(storage, b"f")
    with closing(begun):
        begun.write([b"x" * size])
        on_write(monkeypatch, interrupted)
        with pytest.raises(Contended):
            begun.commit()
    monkeypatch.undo()
    append(storage, b"f", b"next")
    assert read(storage, b"f").startswith(b"old " + b"x" * 500 + b"theirs ")
    assert read(storage, b"f").endswith(b"theirs next")


@pytest.mark.parametrize(
    "code",
    [errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_where_the_kernel_does_not_copy_the_daemon_does(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, code: int, nth: int
) -> None:
    storage.volume.is_local = False
    upload(storage, b"f", b"old ")
    real = os.copy_file_range
    calls = []

    def copy_file_range(source: int, target: int, count: int, *at: int) -> int:
        calls.append(at)
        if len(calls) >= nth:
            raise OSError(code, os.strerror(code))
        return real(source, target, 100_000, *at)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    content = os.urandom(LARGE)
    append(storage, b"f", content)
    assert read(storage, b"f") == b"old " + content
    assert len(calls) == nth


def test_a_file_system_without_user_xattrs_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOTSUP, "not supported")

    for function in ["setxattr", "getxattr", "removexattr"]:
        monkeypatch.setattr(os, function, unsupported)
    (tmp_path / "plain").mkdir()
    durable = Storage(str(tmp_path / "plain"))
    assert not durable.has_xattrs
    upload(durable, b"f", b"old ")
    append(durable, b"f", b"more ")
    before = append(durable, b"f", b"x" * LARGE)
    assert read(durable, b"f") == b"old more " + b"x" * LARGE
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, "fsync", 1, errno.EIO)
        with pytest.raises(StorageBroken):
            append(durable, b"f", b"lost")
    assert opened_version(durable, b"f") == before
    durable.close()


def test_a_process_that_vanishes_while_it_stages_leaves_nothing_that_counts(
    storage: Storage, root: Path
) -> None:
    upload(storage, b"f", b"old")
    script = (
        "import sys\n"
        "from httpnas.storage.store import Storage\n"
        "storage = Storage(sys.argv[1], durable=False)\n"
        "pending = storage.begin_append(b'f', lambda present: None)\n"
        f"pending.write([b'x' * {LARGE}])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    stager: subprocess.Popen[bytes] = process(script, str(root))
    assert stager.stdout and stager.stdout.readline() == b"ready\n"
    assert len(leftovers(root)) == 1
    stager.kill()
    stager.communicate()
    assert read(storage, b"f") == b"old"
    append(storage, b"f", b" new")
    assert read(storage, b"f") == b"old new"
    for _ in storage.reclaim_abandoned():
        pass
    assert leftovers(root) == []


def test_nothing_but_storage_errors_comes_out_of_a_broken_file(
    storage: Storage, root: Path, need_xattrs: None
) -> None:
    """A record that is none (others may write user xattrs too) is not a crash of the daemon's."""
    upload(storage, b"f", b"old")
    os.setxattr(root / "f", "user.httpnas", b"odd")
    for act in [lambda: read(storage, b"f"), lambda: append(storage, b"f", b"x")]:
        result = outcome(act)
        assert not isinstance(result, Exception) or isinstance(result, StorageError)
