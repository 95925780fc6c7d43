"""What others do to files before, between and after the steps of an append.

Whatever it is: nothing that the daemon did not write is hidden or cut, a tag is never that of
another content, and what was torn is never taken for an append.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from httpnas.storage import commits, staging
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import Contended, WrongOffset
from httpnas.storage.facts import Facts
from httpnas.storage.format import RUNS
from httpnas.storage.group import Group
from httpnas.storage.record import PAGE, Record
from httpnas.storage.root import FOLDER
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.lock_files import SpareLockFiles
from tests.outside import ADDED, CHANGES, HEADS, OLD, TAR, changed, sh
from tests.storage.steps import (
    PATIENCE,
    Died,
    anything,
    append,
    at_once,
    both_kinds,
    crash,
    die_at,
    leftovers,
    only,
    opened,
    outcome,
    pends,
    process,
    read,
    tag,
    upload,
)

#: How much of the append is there when the daemon dies.
WRITTEN = {"record": 0, "a page": PAGE - len(OLD), "two": 2 * PAGE - len(OLD), "all": len(ADDED)}


def version_of(storage: Storage, name: bytes = b"f") -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def done_by_others(root: Path, name: str) -> bytes:
    """Let others do what has this *name* to ``f``; return its content then."""
    if name.startswith("rsync") and shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    return changed(root / "f", CHANGES[name])


@both_kinds
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("name", CHANGES)
def test_what_others_have_made_of_a_file_after_a_crash_is_all_there(
    storage: Storage, root: Path, name: str, written: int
) -> None:
    before = upload(storage, b"f", OLD)
    crash(storage, b"f", ADDED, written, b"key")
    content = done_by_others(root, name)
    seen = tag(storage, b"f")
    assert read(storage, b"f") == content
    assert seen != before.tag or content == OLD
    assert tag(storage, b"f") == seen
    append(storage, b"f", b"next\n")
    assert (root / "f").read_bytes() == read(storage, b"f") == content + b"next\n"
    assert not pends(storage, b"f")


@both_kinds
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("name", HEADS)
def test_where_the_tail_is_ours_it_is_completed_or_cut(
    storage: Storage, root: Path, name: str, written: int
) -> None:
    before = upload(storage, b"f", OLD)
    crash(storage, b"f", ADDED, written)
    head = changed(root / "f", HEADS[name])[: len(OLD)]
    seen = tag(storage, b"f")
    added = ADDED if written == len(ADDED) else b""
    assert read(storage, b"f") == head + added
    assert seen != before.tag or head + added == OLD
    assert append(storage, b"f", b"next\n").size == len(head + added) + 5
    assert (root / "f").read_bytes() == read(storage, b"f") == head + added + b"next\n"
    file = opened(storage, b"f")
    assert storage.recall(file).lines in (None, (head + added).count(b"\n") + 1)
    file.close()


@both_kinds
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_a_file_that_is_restored_as_it_was_is_whole_or_what_it_was(
    storage: Storage, root: Path, written: int
) -> None:
    before = upload(storage, b"f", OLD)
    crash(storage, b"f", ADDED, written)
    content = changed(root / "f", TAR)
    assert read(storage, b"f") in (content, OLD)
    assert tag(storage, b"f") != before.tag
    append(storage, b"f", b"next\n")
    assert read(storage, b"f") == (root / "f").read_bytes()
    assert read(storage, b"f") in (content + b"next\n", OLD + b"next\n")


@both_kinds
def test_a_restored_copy_of_before_the_crash_is_what_counts(storage: Storage, root: Path) -> None:
    upload(storage, b"f", OLD)
    append(storage, b"f", b"more\n")
    sh("cp -a f backup")(root)
    for restore in ["cp -a backup f", "rm f; cp -a backup f", "cat backup > f"]:
        append(storage, b"f", b"later\n")
        seen = tag(storage, b"f")
        crash(storage, b"f", ADDED, PAGE - (root / "f").stat().st_size)
        sh(restore)(root)
        assert read(storage, b"f") == OLD + b"more\n"
        assert tag(storage, b"f") != seen


# Anything at any moment


@pytest.fixture(scope="module")
def fast(
    tmp_path_factory: pytest.TempPathFactory, spare_lock_files: SpareLockFiles
) -> Iterator[tuple[Storage, Path]]:
    root = tmp_path_factory.mktemp("fast")
    with spare_lock_files.lent(root):
        storage = Storage(str(root), durable=False)
        yield storage, root
        storage.close()


BYTES = st.one_of(
    st.binary(max_size=30),
    st.integers(0, 3 * PAGE).map(lambda size: (b"%08d" * (size // 8 + 1))[:size]),
    st.sampled_from([b"\0" * 10, b"\0" * PAGE]),
)
#: What others do to the content of a file.
FOREIGN: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.just(lambda content: content),
    BYTES.map(lambda more: lambda content: content + more),
    BYTES.map(lambda other: lambda content: other),
    BYTES.map(lambda head: lambda content: head[: len(content)] + content[len(head) :]),
    st.integers(0, 4 * PAGE).map(lambda size: lambda content: content[:size]),
    st.integers(0, 4 * PAGE).map(lambda size: lambda content: content[:-size] + b"!" * size),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prior=BYTES,
    group=st.lists(BYTES, min_size=1, max_size=4),
    pages=st.none() | st.integers(0, 6),
    foreign=FOREIGN,
)
def test_all_that_others_wrote_is_there_and_all_or_none_of_a_group(
    fast: tuple[Storage, Path],
    prior: bytes,
    group: list[bytes],
    pages: int | None,
    foreign: Callable[[bytes], bytes],
) -> None:
    storage, root = fast
    upload(storage, b"f", prior)
    added = b"".join(group)
    written = len(added)
    if pages is not None:
        written = min(written, max(0, (len(prior) // PAGE + pages) * PAGE - len(prior)))
    crash_group(storage, group, written)
    torn = (root / "f").read_bytes()
    assert torn == prior + added[:written]
    content = foreign(torn)
    if content != torn:
        (root / "f").write_bytes(content)
    seen = read(storage, b"f")
    tail = content[len(prior) :]
    ours = len(content) >= len(prior) and added.startswith(tail)
    assert seen in ((content, content[: len(prior)]) if ours else (content,))
    append(storage, b"f", b"<next>")
    whole = (root / "f").read_bytes()
    assert whole == read(storage, b"f")
    allowed = {content}
    if ours:  # what lies before it counts as others have left it
        allowed = {content} if tail == added else {content, content[: len(prior)]}
    assert whole.removesuffix(b"<next>") in allowed
    assert whole == seen + b"<next>"
    if content == torn and added:
        assert whole == (torn if written == len(added) else prior) + b"<next>"


def crash_group(storage: Storage, group: list[bytes], written: int) -> None:
    """Die when *written* bytes of a group of appends are there."""
    appends = []
    for content in group:
        begun = storage.begin_append(b"f", anything)
        assert isinstance(begun, Append)
        begun.write([content])
        appends.append(begun)
    real = os.writev

    def writev(fd: int, views: Any) -> int:
        if written:
            real(fd, [b"".join(views)[:written]])
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        try:
            storage.commit(b"f", appends)
        except Died:
            pass
        else:
            assert not any(group)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prior=st.integers(0, 2 * PAGE),
    size=st.integers(1, 5 * PAGE),
    lost=st.sets(st.integers(0, 6)),
    end=st.integers(0, 7),
)
def test_pages_that_a_power_cut_has_left_out_are_ours(
    fast: tuple[Storage, Path], prior: int, size: int, lost: set[int], end: int
) -> None:
    storage, root = fast
    upload(storage, b"f", b"p" * prior)
    added = b"a" * size
    crash_group(storage, [added], size)
    content = bytearray(b"p" * prior + added)
    first = prior // PAGE
    del content[max(prior, (first + end) * PAGE) :]
    for page in lost:
        at, to = max(prior, (first + page) * PAGE), (first + page + 1) * PAGE
        content[at:to] = bytes(len(content[at:to]))
    (root / "f").write_bytes(content)
    assert read(storage, b"f") in (bytes(content), b"p" * prior)
    counts = bytes(content) if content[prior:] == added else b"p" * prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "boot", lambda: 1)
        assert read(storage, b"f") == counts
        append(storage, b"f", b"next")
    assert (root / "f").read_bytes() == counts + b"next"


# Processes that die

_DYING = """
import os, signal, sys
from httpnas.storage.store import Storage
root, function, nth, size, key = sys.argv[1:]
storage = Storage(root)
real, calls = getattr(os, function), 0

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth):
        if function == "writev" and len(args[1][0]) > 8192:
            real(args[0], [args[1][0][: 8192 - os.fstat(args[0]).st_size % 4096]])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

pending = storage.begin_append(b"d/f", lambda present: None, key=key.encode() or None)
pending.write([b"x" * int(size)])
pending.sync()
setattr(os, function, dying)
pending.commit()
"""
#: At what a process dies, the size of its append, and whether all of it is there then.
KILLS = {
    "before the record": ("setxattr", 1, 5000, False),
    "before the content": ("writev", 1, 5000, False),
    "in the content": ("writev", 1, IN_MEMORY + 5000, False),
    "before the sync": ("fsync", 1, 5000, True),
    "before the sync, large": ("fsync", 1, IN_MEMORY + 5000, True),
    "before it is settled": ("setxattr", 2, 5000, True),
}


@pytest.mark.parametrize("where", KILLS)
def test_who_reclaims_what_a_dead_daemon_has_left_repairs_what_it_was_appending_to(
    durable: Storage, root: Path, where: str
) -> None:
    function, nth, size, is_whole = KILLS[where]
    before = upload(durable, b"d/f", OLD)
    dying = process(_DYING, str(root), function, str(nth), str(size), "key")
    dying.communicate(timeout=PATIENCE)
    assert dying.returncode == -9
    whole = OLD + b"x" * size * is_whole
    assert read(durable, b"d/f") == whole
    seen = tag(durable, b"d/f")
    assert seen != before.tag or (function == "setxattr" and nth == 1)
    for _ in durable.reclaim_abandoned():
        assert read(durable, b"d/f") == whole
    assert read(durable, b"d/f") == (root / "d" / "f").read_bytes() == whole
    assert tag(durable, b"d/f") == seen
    assert not pends(durable, b"d/f")
    assert leftovers(root) == []
    assert isinstance(durable.begin_append(b"d/f", anything, key=b"key"), Version) == is_whole


def test_what_a_dead_daemon_has_completed_is_seen_while_it_is_repaired(
    durable: Storage, root: Path
) -> None:
    upload(durable, b"d/f", OLD)
    process(_DYING, str(root), "fsync", "1", "5000", "key").communicate(timeout=PATIENCE)
    seen, repair = [], durable.workspace.repair

    def look(name: bytes) -> bool:
        with open(root / "d" / "f", "rb") as file:
            assert commits.lock(file.fileno())  # as who repairs it has it
            seen.append(read(durable, b"d/f"))
        return repair(name)

    durable.workspace.repair = look
    for _ in durable.reclaim_abandoned():
        pass
    assert seen == [OLD + b"x" * 5000]


def test_what_a_dead_daemon_has_staged_stays_until_its_file_can_be_repaired(
    durable: Storage, root: Path
) -> None:
    """Without it nobody could tell that the torn part is ours."""
    upload(durable, b"d/f", OLD)
    dying = process(_DYING, str(root), "writev", "1", str(IN_MEMORY + 5000), "")
    dying.communicate(timeout=PATIENCE)
    with (
        owned(durable.root.open(b"d", FOLDER)) as folder,
        durable.locks.hold((folder, b"f")),
    ):
        for _ in durable.reclaim_abandoned():
            pass
        assert read(durable, b"d/f") == OLD
        assert leftovers(root) != []
    for _ in durable.reclaim_abandoned():
        pass
    assert (root / "d" / "f").read_bytes() == OLD
    assert leftovers(root) == []


def test_what_a_dead_daemon_has_staged_for_a_file_that_is_moved_stays_for_a_week(
    durable: Storage, root: Path
) -> None:
    upload(durable, b"d/f", OLD)
    dying = process(_DYING, str(root), "writev", "1", str(IN_MEMORY + 5000), "")
    dying.communicate(timeout=PATIENCE)
    (run,) = {root / ".httpnas" / RUNS.decode() / path.split("/")[0] for path in leftovers(root)}
    (run / "other").write_bytes(b"what an upload has left")
    durable.move(b"d", b"e", anything)
    torn = (root / "e" / "f").read_bytes()
    assert len(torn) > len(OLD)
    for _ in durable.reclaim_abandoned():
        pass
    assert len(leftovers(root)) == 1
    assert read(durable, b"e/f") == OLD
    (staged,) = (root / ".httpnas" / RUNS.decode() / path for path in leftovers(root))
    append(durable, b"e/f", b"next")
    assert (root / "e" / "f").read_bytes() == OLD + b"next"
    week_ago = time.time() - 8 * 86400
    os.utime(staged, (week_ago, week_ago))
    for _ in durable.reclaim_abandoned():
        pass
    assert leftovers(root) == []
    assert not run.exists()


def test_what_a_dead_daemon_was_appending_to_may_be_gone(durable: Storage, root: Path) -> None:
    upload(durable, b"d/f", OLD)
    dying = process(_DYING, str(root), "writev", "1", "5000", "")
    dying.communicate(timeout=PATIENCE)
    shutil.rmtree(root / "d")
    for _ in durable.reclaim_abandoned():
        pass
    assert leftovers(root) == []


def test_a_record_that_announces_is_judged_in_a_thread(durable: Storage, root: Path) -> None:
    upload(durable, b"f", OLD)
    read(durable, b"f")
    cached = durable.open_cached(b"f")
    if cached is None:
        pytest.skip("nothing is opened from the cache here")
    cached.close()
    crash(durable, b"f", ADDED, PAGE - len(OLD))
    count = len(os.listdir("/proc/self/fd"))
    assert durable.open_cached(b"f") is None
    assert len(os.listdir("/proc/self/fd")) == count
    append(durable, b"f", b"next")
    again = durable.open_cached(b"f")
    assert again is not None
    again.close()


# Backups that are taken meanwhile


BACKUPS = {
    "cp -a": "cp -a f backup",
    "tar": "tar --xattrs -cf backup.tar f || [ $? = 1 ]; mkdir b; "
    "tar --xattrs --xattrs-include='*' -xf backup.tar -C b; mv b/f backup; rmdir b; rm backup.tar",
}
RESTORES = {
    "in place": "cp -a backup f",
    "anew": "rm f; mv backup f",
    "without attributes": "rm f; cp backup f",
}


@both_kinds
@pytest.mark.parametrize("backup", BACKUPS.values(), ids=BACKUPS)
def test_a_backup_that_was_taken_while_it_was_appended_to_has_all_acknowledged_lines(
    storage: Storage, root: Path, backup: str
) -> None:
    upload(storage, b"f", b"")
    done: list[bytes] = []
    ended = threading.Event()

    def write() -> None:
        for number in range(20_000):
            if ended.is_set():
                return
            line = b"%06d" % number + b"." * (number * 37 % 5000) + b"\n"
            append(storage, b"f", line)
            done.append(line)

    copies: list[tuple[int, Path]] = []

    def copy() -> None:
        try:
            for number in range(9):
                count = len(done)
                sh(backup)(root)
                copies.append((count, (root / "backup").rename(root / f"copy{number}")))
        finally:
            ended.set()

    assert at_once([write, copy]) == [None, None]
    lines = b"".join(done)
    for number, (count, path) in enumerate(copies):
        path.rename(root / "backup")
        sh(list(RESTORES.values())[number % 3])(root)
        there = (root / "f").read_bytes()
        acknowledged = b"".join(done[:count])
        for _ in range(2):
            assert read(storage, b"f").startswith(acknowledged)
            assert lines.startswith(read(storage, b"f"))
        append(storage, b"f", b"next\n")
        whole = read(storage, b"f").removesuffix(b"next\n")
        assert whole.startswith(acknowledged) and there.startswith(whole)
        for leaf in root.glob("backup"):
            leaf.unlink()


# Programs beside the daemon


def not_supported(*args: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


_APPENDER = """
import os, sys
anew, number = sys.argv[2] == "anew", 0
os.write(1, b"begun\\n")
while not os.path.exists(sys.argv[1] + ".end"):
    if anew or not number:
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    number += 1
    os.write(fd, b"E-%07d\\n" % number)
    if anew:
        os.close(fd)
print(number)
"""


@pytest.mark.parametrize("opened", ["once", "anew"])
def test_lines_of_another_program_and_large_appends_of_ours_are_all_there(
    storage: Storage, root: Path, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens the file in the moment in which blocks are shared is not safe."""
    if opened == "anew":
        monkeypatch.setattr(staging, "share", not_supported)
    if not storage.volume.is_local:
        pytest.skip("on a network file system other programs have to leave the file alone")
    upload(storage, b"f", b"")
    appender = process(_APPENDER, str(root / "f"), opened)
    assert appender.stdout and appender.stdout.readline() == b"begun\n"
    ours = [b"H-%d-%s\n" % (number, b"x" * (IN_MEMORY + number * 99_999)) for number in range(12)]
    for number, line in enumerate(ours):
        made = append(storage, b"f", line, key=b"%d" % number)
        assert (root / "f").read_bytes()[: made.size].endswith(line)
        assert append(storage, b"f", line, key=b"%d" % number) == made
    (root / "f.end").touch()
    count = int(appender.communicate(timeout=PATIENCE)[0])
    lines = read(storage, b"f").splitlines(keepends=True)
    assert [line for line in lines if line.startswith(b"H")] == ours
    theirs = [line for line in lines if not line.startswith(b"H")]
    assert theirs == [b"E-%07d\n" % number for number in range(1, count + 1)]


@pytest.mark.parametrize("grouped", [False, True])
def test_lines_that_others_append_meanwhile_and_ours_are_all_there(
    storage: Storage, root: Path, grouped: bool
) -> None:
    upload(storage, b"f", b"")
    theirs: list[bytes] = []
    ended = threading.Event()

    def beside() -> None:
        fd = os.open(root / "f", os.O_WRONLY | os.O_APPEND)
        while not ended.is_set():
            theirs.append(b"E-%05d\n" % len(theirs))
            os.write(fd, theirs[-1])
            time.sleep(0.0002)
        os.close(fd)

    ours: list[bytes] = []

    def work() -> None:
        try:
            for number in range(200):
                group = [b"H-%d-%d\n" % (number, n) for n in range(3 if grouped else 1)]
                results = storage.commit(b"f", [staged(storage, line) for line in group])
                for line, result in zip(group, results, strict=True):
                    assert isinstance(result, Version)
                    assert (root / "f").read_bytes()[: result.size].endswith(line)
                ours.extend(group)
        finally:
            ended.set()

    assert at_once([work, beside]) == [None, None]
    lines = read(storage, b"f").splitlines(keepends=True)
    assert sorted(lines) == sorted(ours + theirs)
    assert [line for line in lines if line.startswith(b"H")] == ours


def staged(storage: Storage, content: bytes, **how: Any) -> Append:
    check = how.pop("check", anything)
    begun = storage.begin_append(b"f", check, **how)
    assert isinstance(begun, Append)
    begun.write([content])
    return begun


@both_kinds
@pytest.mark.parametrize("size", [4, IN_MEMORY + 10], ids=["small", "large"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_line_of_others_in_the_middle_of_an_append_is_kept(
    storage: Storage, root: Path, moment: str, size: int
) -> None:
    ours = b"new\n".rjust(size, b".")
    upload(storage, b"f", b"old\n")
    real = os.writev

    def writev(fd: int, views: Any) -> int:
        if moment == "before":
            sh("echo external >> f")(root)
        written = real(fd, views)
        if moment == "after":
            sh("echo external >> f")(root)
        return written

    pending = staged(storage, ours, key=b"key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        result = pending.commit()
    external = b"external\n"
    content = b"old\n" + (external + ours if moment == "before" else ours + external)
    assert read(storage, b"f") == (root / "f").read_bytes() == content
    assert content[: result.size].endswith(b"new\n")
    assert append(storage, b"f", ours, key=b"key") == result
    file = opened(storage, b"f")
    assert storage.recall(file).lines in (None, 3)
    assert (file.version.tag == result.tag) == (file.version.size == result.size)
    file.close()


@both_kinds
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_line_of_others_in_the_middle_of_a_failed_append_is_kept(
    storage: Storage, root: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"old\n")
    real = os.writev

    def writev(fd: int, views: Any) -> int:
        if moment == "before":
            sh("echo external >> f")(root)
        written = real(fd, views)
        if moment == "after":
            sh("echo external >> f")(root)
        return written

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    pending = staged(storage, b"new\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        patch.setattr(storage, "sync", broken)
        assert isinstance(outcome(pending.commit), Exception)
    append(storage, b"f", b"next\n")
    assert b"external\n" in read(storage, b"f")
    assert read(storage, b"f") == (root / "f").read_bytes()


@both_kinds
@pytest.mark.parametrize("size", [4, IN_MEMORY + 10], ids=["small", "large"])
@pytest.mark.parametrize("behind", [b"", b"and more\n"])
def test_an_append_at_an_offset_is_not_made_behind_what_others_have_appended_meanwhile(
    storage: Storage, root: Path, size: int, behind: bytes
) -> None:
    """Others of the group do not mind. Where something is behind it as well, it has to stay."""
    ours, real = b"new\n".rjust(size, b"."), os.writev
    upload(storage, b"f", b"old\n")
    lines = [b"external\n", behind]

    def writev(fd: int, views: Any) -> int:
        with (root / "f").open("ab", buffering=0) as other:
            other.write(lines[0])
            written = real(fd, views)
            other.write(lines[1])
        lines[:] = b"", b""
        return written

    group = [staged(storage, ours, expected=4, key=b"key")]
    if size == 4:
        group.append(staged(storage, b"another\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        results = storage.commit(b"f", group)
    for each in group:
        each.close()
    another = b"another\n" if size == 4 else b""
    if behind:
        assert read(storage, b"f") == b"old\nexternal\n" + ours + another + behind
        assert append(storage, b"f", ours, key=b"key", expected=4) == results[0]
    else:
        assert read(storage, b"f") == b"old\nexternal\n" + another
        assert isinstance(results[0], WrongOffset)
        assert results[0].actual == len(b"old\nexternal\n")
        append(storage, b"f", ours, key=b"key", expected=len(b"old\nexternal\n" + another))
    assert (root / "f").read_bytes().count(ours) == 1


@both_kinds
@pytest.mark.parametrize("expected, outcomes", [(4, [17, 17]), (13, [17, 17]), (17, [17, 22])])
def test_who_is_refused_for_a_length_is_told_one_that_the_file_has_had(
    storage: Storage, root: Path, expected: int, outcomes: list[int]
) -> None:
    """Others have appended, so that what was planned before it has another length."""
    upload(storage, b"f", b"old\n")
    real, lines = os.writev, [b"external\n"]

    def writev(fd: int, views: Any) -> int:
        with (root / "f").open("ab") as other:
            other.write(lines.pop() if lines else b"")
        return real(fd, views)

    group = [staged(storage, b"new\n"), staged(storage, b"more\n")]
    group[1].expected = expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        first, second = storage.commit(b"f", group)
    sizes = [getattr(one, "actual", None) or getattr(one, "size", None) for one in (first, second)]
    assert sizes == outcomes
    assert isinstance(second, WrongOffset) == (expected != 17)


# Times that tell nothing


def test_without_fractions_of_a_second_no_tag_comes_again(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    class Whole:
        """A status in which times are whole seconds."""

        def __init__(self, status: os.stat_result) -> None:
            self._status = status

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._status, name)
            return value // 10**9 * 10**9 if name.endswith("time_ns") else value

    monkeypatch.setattr(os, "fstat", lambda fd: Whole(real(fd)))
    tags = set()
    for number in range(60):
        tags.add(upload(storage, b"f", b"balance=%03d\n" % number).tag)
        assert tag(storage, b"f") in tags
        tags.add(append(storage, b"f", b"x").tag)
        assert tag(storage, b"f") in tags
    assert len(tags) == 120


@both_kinds
def test_with_a_clock_that_is_set_back_no_tag_comes_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([n % 3 * -(10**9) for n in range(10_000)])
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() // 10**10 * 10**10 + next(clock))
    tags = set()
    for number in range(40):
        tags.add(upload(storage, b"f", b"balance=%03d\n" % number).tag)
        tags.add(append(storage, b"f", b"x").tag)
        tags.add(append(storage, b"f", b"x", key=b"%d" % number).tag)
    assert len(tags) == 120


@both_kinds
@pytest.mark.parametrize("known", ["ours", "theirs"])
def test_a_time_that_is_set_back_makes_no_old_version(
    storage: Storage, root: Path, known: str
) -> None:
    upload(storage, b"f", b"balance=100\n")
    if known == "theirs":
        sh("printf 'balance=200\n' > f")(root)
        time.sleep(0.02)
        storage.remember(b"f", version_of(storage), Facts(1))
    time.sleep(0.02)  # longer than the kernel's clock takes for a step
    before = tag(storage, b"f")
    sh("touch -r f ref; printf 'balance=999\n' | dd of=f conv=notrunc status=none; touch -r ref f")(
        root
    )
    assert tag(storage, b"f") != before
    file = opened(storage, b"f")
    assert storage.recall(file) == Facts()
    file.close()


@pytest.mark.parametrize("year", [1901, 1969, 2100, 2400])
@both_kinds
def test_a_file_of_any_year_can_be_changed(storage: Storage, root: Path, year: int) -> None:
    (root / "f").write_bytes(b"old\n")
    sh(f"touch -d {year}-06-01 f")(root)
    before = version_of(storage)
    storage.remember(b"f", before, Facts(1))
    made = append(storage, b"f", b"new\n", key=b"key", expected=4)
    assert append(storage, b"f", b"new\n", key=b"key") == made
    assert version_of(storage).tag == made.tag
    sh(f"touch -d {year}-06-01 f")(root)
    assert version_of(storage).tag != made.tag
    append(storage, b"f", b"more\n")
    storage.move(b"f", b"g", anything)
    upload(storage, b"g", b"new")
    assert read(storage, b"g") == b"new"


def test_nothing_is_remembered_of_what_may_be_changed_in_memory(
    storage: Storage, root: Path
) -> None:
    (root / "f").write_bytes(b"a" * 2 * PAGE)
    with (root / "f").open("r+b") as file, mmap.mmap(file.fileno(), 2 * PAGE) as mapped:
        mapped[0] = ord("b")
        version = version_of(storage)
        storage.remember(b"f", version, Facts(0))
        mapped[1:100] = b"\n" * 99
        found = opened(storage, b"f")
        assert storage.recall(found) == Facts()
        found.close()


# Groups


def test_a_group_is_committed_in_its_order_with_one_record_one_write_and_one_sync(
    durable: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(durable, b"f", b"old\n")
    appends = [staged(durable, b"%d\n" % number, key=b"%d" % number) for number in range(20)]
    calls: list[str] = []
    for function in ["writev", "fsync", "setxattr"]:
        _count(monkeypatch, function, calls)
    results = durable.commit(b"f", appends)
    assert calls[:4] == ["setxattr", "writev", "fsync", "setxattr"]
    assert set(calls[4:]) <= {"setxattr"}  # again, when the clock has gone on meanwhile
    assert read(durable, b"f") == b"old\n" + b"".join(b"%d\n" % number for number in range(20))
    versions = [result for result in results if isinstance(result, Version)]
    assert len({version.tag for version in versions}) == 20
    sizes = [version.size for version in versions]
    assert sizes == sorted(sizes)
    assert versions[-1] == version_of(durable)
    for number, version in enumerate(versions):
        assert append(durable, b"f", b"", key=b"%d" % number) == version
    file = opened(durable, b"f")
    assert durable.recall(file).lines == 21
    file.close()


def _count(patch: pytest.MonkeyPatch, function: str, calls: list[str]) -> None:
    real = getattr(os, function)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(function)
        return real(*args, **kwargs)

    patch.setattr(os, function, counted)


@both_kinds
def test_a_file_that_is_removed_while_it_is_looked_at_has_its_tag_still(
    storage: Storage, root: Path
) -> None:
    """Removing it sets the time of change, by which other changes are seen."""
    before = upload(storage, b"f", b"old\n")
    time.sleep(0.02)  # more than that time may be off
    with owned(os.open(root / "f", os.O_RDONLY)) as fd:
        (root / "f").unlink()
        assert storage.known(fd).version.tag == before.tag


@both_kinds
def test_each_of_a_group_has_its_own_outcome(storage: Storage) -> None:
    class GivenUp(Exception):
        pass

    def given_up(find: Any) -> None:
        asked.append(1)
        if len(asked) > 1:
            raise GivenUp

    asked: list[int] = []
    before = upload(storage, b"f", b"old\n")
    unchanged = only(before.tag)
    group = [
        staged(storage, b"1\n", check=unchanged),
        staged(storage, b"2\n", check=unchanged),  # there is one before it now
        staged(storage, b"3\n", check=given_up),
        staged(storage, b"4\n", expected=4),
        staged(storage, b"5\n", key=b"key"),
        staged(storage, b"5\n", key=b"key"),
        staged(storage, b""),
    ]
    late = staged(storage, b"7\n")
    late.expected = 8
    results = storage.commit(b"f", [*group, late])
    kinds = [type(result).__name__ for result in results]
    assert kinds == [
        "Version", "Refused", "GivenUp", "WrongOffset", "Version", "Version", "Version", "Version",
    ]  # fmt: skip
    assert getattr(results[3], "actual", None) == 6
    assert results[4] == results[5] == results[6]
    assert [append.repeats for append in group].index(True) == 5
    assert read(storage, b"f") == b"old\n1\n5\n7\n"


@both_kinds
def test_who_was_refused_for_what_did_not_come_true_is_not_refused(storage: Storage) -> None:
    class GivenUp(Exception):
        pass

    def given_up_at_the_end(find: Any) -> None:
        asked.append(1)
        if len(asked) > 2:
            raise GivenUp

    asked: list[int] = []
    before = upload(storage, b"f", b"old\n")
    group = [
        staged(storage, b"1\n", check=given_up_at_the_end, key=b"key"),
        staged(storage, b"2\n", check=only(before.tag)),
        staged(storage, b"3\n", expected=4),  # what has come true refuses it again
        staged(storage, b"x", key=b"key"),
    ]
    kinds = [type(result).__name__ for result in storage.commit(b"f", group)]
    assert kinds == ["GivenUp", "Version", "WrongOffset", "Version"]
    assert read(storage, b"f") == b"old\n2\nx"


@both_kinds
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_of_a_group_that_does_not_fit_what_fits_is_made(
    storage: Storage, root: Path, code: int
) -> None:
    upload(storage, b"f", b"old\n")
    group = [
        staged(storage, b"1\n", key=b"small"),
        staged(storage, b"x" * 5000, key=b"big"),
        staged(storage, b"x" * 5000, key=b"big"),
        staged(storage, b"2\n"),
    ]
    real = os.writev

    def writev(fd: int, views: Any) -> int:
        content = b"".join(views)
        if len(content) > 5000 or code == errno.EIO:
            real(fd, [content[:100]])
            raise OSError(code, os.strerror(code))
        return real(fd, views)

    # It is as large as what does not fit by itself.
    group[1].write([b"y"])
    group[2].write([b"y"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        results = storage.commit(b"f", group)
    made = [isinstance(result, Version) for result in results]
    if code == errno.EIO:
        assert made == [False] * 4
        assert read(storage, b"f") == (root / "f").read_bytes() == b"old\n"
    else:
        assert made == [True, False, False, True]
        assert read(storage, b"f") == (root / "f").read_bytes() == b"old\n1\n2\n"
    assert isinstance(storage.begin_append(b"f", anything, key=b"big"), Append)


@both_kinds
def test_where_there_is_no_room_to_settle_the_keys_of_a_group_are_kept(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"old\n")
    real, full = storage.records.write, [True]

    def write(fd: int, record: Record) -> None:
        if record.pending is None and full:
            full.pop()
            raise OSError(errno.ENOSPC, "full")
        real(fd, record)

    monkeypatch.setattr(storage.records, "write", write)
    bodies = [b"1\n", b"2\n", b"3\n"]
    made = storage.commit(b"f", [staged(storage, body, key=body) for body in bodies])
    assert all(isinstance(result, Version) for result in made)
    for body in bodies:
        append(storage, b"f", body, key=body)
    assert read(storage, b"f") == b"old\n1\n2\n3\n"


@both_kinds
def test_a_repeat_in_a_group_that_fails_is_not_answered(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", b"old\n")
    group = [staged(storage, b"1\n", key=b"key") for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:

        def broken(fd: int) -> None:
            raise OSError(errno.EIO, "broken")

        patch.setattr(storage, "sync", broken)
        assert not any(isinstance(result, Version) for result in storage.commit(b"f", group))
    assert isinstance(storage.begin_append(b"f", anything, key=b"key"), Append)


@both_kinds
@pytest.mark.parametrize("where, nth", [("writev", 1), ("fsync", 1)])
def test_a_group_that_dies_is_all_there_or_not(durable: Storage, where: str, nth: int) -> None:
    if where == "fsync" and not durable.has_xattrs:
        nth = 3  # two are of the record
    upload(durable, b"f", b"old\n")
    group = [staged(durable, b"%d" % n * 3000 + b"\n", key=b"%d" % n) for n in range(4)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, where, nth)
        durable.commit(b"f", group)
    whole = b"old\n" + b"".join(b"%d" % n * 3000 + b"\n" for n in range(4))
    assert read(durable, b"f") == (whole if where == "fsync" else b"old\n")
    again = [staged(durable, b"%d" % n * 3000 + b"\n", key=b"%d" % n) for n in range(4)]
    results = durable.commit(b"f", again)
    assert all(isinstance(result, Version) for result in results)
    assert [one.repeats for one in again] == [where == "fsync"] * 4
    assert read(durable, b"f") == whole


def test_the_room_for_a_group_is_the_room_of_memory() -> None:
    assert IN_MEMORY // PAGE < commits.MOST_BLOCKS


@pytest.mark.parametrize("size", [100, IN_MEMORY + PAGE])
def test_what_others_have_cut_is_not_made_longer_by_an_undo(
    storage: Storage, root: Path, size: int
) -> None:
    upload(storage, b"f", b"x" * 10_000)
    calls = []

    def check(find: object) -> None:
        calls.append(find)
        if len(calls) == 3:  # when all is written
            (root / "f").write_bytes(b"new")
            raise InterruptedError

    adding = storage.begin_append(b"f", check)
    assert isinstance(adding, Append)
    adding.write([b"y" * size])
    with pytest.raises(Exception):  # noqa: B017
        adding.commit()
    adding.close()
    assert (root / "f").read_bytes() == b"new"


def test_an_append_that_stays_in_a_file_that_was_moved_is_not_made_twice(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(storage, b"f", OLD)
    write = Group.write

    def write_and_rotate(self: Group) -> bool:
        result = write(self)
        if not (root / "f.1").exists():
            (root / "f").rename(root / "f.1")
            with (root / "f.1").open("ab") as old:
                old.write(b"theirs\n")
            (root / "f").touch()
        return result

    monkeypatch.setattr(Group, "write", write_and_rotate)
    adding = storage.begin_append(b"f", lambda find: None)
    assert isinstance(adding, Append)
    adding.write([b"y" * (IN_MEMORY + PAGE)])
    with pytest.raises(Contended):
        adding.commit()
    adding.close()
    assert (root / "f").read_bytes() == b""
