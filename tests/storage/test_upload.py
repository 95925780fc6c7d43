from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.content import write_all
from httpnas.storage.errors import (
    IsFolder,
    NameTaken,
    NotAFolder,
    NotPermitted,
    OtherFileSystem,
    OutOfDescriptors,
    StorageAway,
    StorageBroken,
    StorageError,
    StorageFull,
)
from httpnas.storage.store import Storage
from httpnas.storage.version import Find, Version
from tests.private import RUNS, runs_of
from tests.storage.steps import (
    Faults,
    Refused,
    anything,
    at_once,
    begin_append,
    content_of,
    leftovers,
    names,
    only,
    opened,
    outcome,
    read,
    remove,
    tag,
    upload,
)


def test_content_comes_back_as_it_was_written(storage: Storage) -> None:
    chunks = [b"", b"one", b"\x00\xff" * 100_000, b"", b"three"]
    written = upload(storage, b"f", chunks)
    assert read(storage, b"f") == b"".join(chunks)
    assert written == opened_version(storage, b"f") == storage.version_of(b"f")


def opened_version(storage: Storage, name: bytes) -> Version:
    file = opened(storage, name)
    file.close()
    return file.version


def test_an_empty_upload_is_an_empty_file(storage: Storage) -> None:
    assert upload(storage, b"f", b"").size == 0
    assert read(storage, b"f") == b""


def test_more_chunks_than_one_call_takes_are_all_written(storage: Storage) -> None:
    begun = storage.begin_upload(b"f", anything)
    begun.write([b"%07d\n" % number for number in range(5000)])
    begun.publish(anything)
    begun.close()
    assert read(storage, b"f") == b"".join(b"%07d\n" % number for number in range(5000))


def test_nothing_is_visible_before_the_publish(storage: Storage, root: Path) -> None:
    begun = storage.begin_upload(b"d/f", anything)
    begun.write([b"content"])
    assert storage.version_of(b"d/f") is None
    assert names(storage) == []
    begun.publish(anything)
    assert read(storage, b"d/f") == b"content"
    begun.close()
    assert leftovers(root) == []


def test_the_old_content_is_served_until_the_publish(storage: Storage) -> None:
    old = upload(storage, b"f", b"old")
    begun = storage.begin_upload(b"f", anything)
    begun.write([b"new content"])
    assert read(storage, b"f") == b"old"
    assert storage.version_of(b"f") == old
    begun.publish(anything)
    assert read(storage, b"f") == b"new content"
    begun.close()


def test_close_without_publish_leaves_nothing(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"old")
    for name in [b"f", b"new", b"d/e/new"]:
        begun = storage.begin_upload(name, anything)
        begun.write([b"x" * 100_000])
        assert len(leftovers(root)) == 1
        begun.close()
        assert leftovers(root) == []
    assert names(storage) == [b"f"]
    assert read(storage, b"f") == b"old"


def test_parents_are_made(storage: Storage, root: Path) -> None:
    upload(storage, b"a/b/c/f", b"content")
    upload(storage, b"a/b/g", b"content")
    assert read(storage, b"a/b/c/f") == b"content"
    assert sorted(os.listdir(root / "a" / "b")) == ["c", "g"]


def test_parents_made_by_many_at_once_are_made_once(storage: Storage) -> None:
    for round_ in range(20):
        results = at_once(
            [partial(upload, storage, b"%d/a/b/%d" % (round_, n), b"x") for n in range(8)]
        )
        assert all(isinstance(result, Version) for result in results), results
        assert len(names(storage, b"%d/a/b" % round_)) == 8


def test_modes_follow_the_umask(storage: Storage, root: Path) -> None:
    before = os.umask(0o027)
    try:
        upload(storage, b"d/f", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "d" / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750


@pytest.mark.parametrize("create_only", [True, False])
def test_a_file_on_the_way_refuses_the_upload(storage: Storage, create_only: bool) -> None:
    upload(storage, b"f", b"content")
    for name in [b"f/x", b"f/x/y/z"]:
        with pytest.raises(NotAFolder):
            upload(storage, name, b"new", create_only=create_only)
    assert read(storage, b"f") == b"content"


def test_a_folder_at_the_name_refuses_the_upload(storage: Storage) -> None:
    upload(storage, b"d/f", b"content")
    for name in [b"d", b""]:
        with pytest.raises(IsFolder):
            storage.begin_upload(name, anything)
    assert read(storage, b"d/f") == b"content"


def test_conflicts_that_come_during_the_upload_refuse_the_publish(
    storage: Storage, root: Path
) -> None:
    on_the_way = storage.begin_upload(b"a/f", anything)
    at_the_name = storage.begin_upload(b"b", anything)
    created = storage.begin_upload(b"b", anything)
    upload(storage, b"a", b"content")
    upload(storage, b"b/f", b"content")
    with pytest.raises(NotAFolder):
        on_the_way.publish(anything)
    with pytest.raises(IsFolder):
        at_the_name.publish(anything)
    with pytest.raises(NameTaken):
        created.publish(anything, create_only=True)
    for begun in [on_the_way, at_the_name, created]:
        begun.close()
    assert read(storage, b"a") == b"content"
    assert read(storage, b"b/f") == b"content"
    assert leftovers(root) == []


def test_parents_removed_during_the_upload_are_made_anew(storage: Storage) -> None:
    upload(storage, b"d/e/old", b"")
    begun = storage.begin_upload(b"d/e/new", anything)
    remove(storage, b"d")
    begun.publish(anything)
    begun.close()
    assert names(storage, b"d/e") == [b"new"]


def test_a_parent_removed_in_the_moment_of_the_publish_is_made_anew(
    storage: Storage, root: Path
) -> None:
    (root / "d").mkdir()
    removals = iter([True, True, False])

    def pull_away(find: Find) -> None:
        if next(removals):
            os.rmdir(root / "d")

    begun = storage.begin_upload(b"d/f", anything)
    begun.write([b"content"])
    begun.publish(pull_away)
    begun.close()
    assert read(storage, b"d/f") == b"content"


def test_the_check_sees_the_present_version_and_can_refuse(storage: Storage, root: Path) -> None:
    seen: list[Version | None] = []
    first = upload(storage, b"f", b"one", lambda find: seen.append(find()))
    assert seen == [None, None]
    upload(storage, b"f", b"two", lambda find: seen.append(find()))
    assert seen[2:] == [first, first]
    with pytest.raises(Refused):
        upload(storage, b"f", b"three", only(first.tag))
    assert read(storage, b"f") == b"two"
    assert leftovers(root) == []


def test_of_many_who_change_one_version_exactly_one_wins(storage: Storage) -> None:
    for _ in range(20):
        before = upload(storage, b"f", b"before").tag
        begun = [storage.begin_upload(b"f", anything) for _ in range(8)]
        for number, one in enumerate(begun):
            one.write([b"%d" % number])
        check = only(before)
        results = at_once([partial(one.publish, check) for one in begun])
        winners = [n for n, result in enumerate(results) if isinstance(result, Version)]
        assert len(winners) == 1
        assert all(isinstance(r, Refused) for n, r in enumerate(results) if n not in winners)
        assert read(storage, b"f") == b"%d" % winners[0]
        for one in begun:
            one.close()


def test_a_created_name_is_never_replaced(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"old", create_only=True)
    with pytest.raises(NameTaken):
        upload(storage, b"f", b"new", create_only=True)
    assert read(storage, b"f") == b"old"
    assert leftovers(root) == []


@pytest.mark.parametrize("flag", [True, False], ids=["renameat2", "link"])
def test_of_many_creators_of_one_name_exactly_one_wins(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, flag: bool
) -> None:
    if not flag:
        monkeypatch.setattr("httpnas.storage.rename._renameat2", None)
    for round_ in range(10):
        name = b"d%d/f" % round_
        results = at_once(
            [partial(upload, storage, name, b"%d" % n, create_only=True) for n in range(16)]
        )
        winners = [n for n, result in enumerate(results) if isinstance(result, Version)]
        assert len(winners) == 1
        assert all(isinstance(r, NameTaken) for n, r in enumerate(results) if n not in winners)
        assert read(storage, name) == b"%d" % winners[0]
    assert leftovers(root) == []


def test_a_file_is_created_where_there_are_neither_flags_nor_links(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr("httpnas.storage.rename._renameat2", None)
    monkeypatch.setattr("os.link", refuse)
    upload(storage, b"f", b"content", create_only=True)
    with pytest.raises(NameTaken):
        upload(storage, b"f", b"new", create_only=True)
    assert read(storage, b"f") == b"content"


def test_creating_wins_or_loses_against_others_without_the_locks(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears beside the daemon, behind the check, is not replaced either."""

    def sneak(find: Find) -> None:
        (root / "f").write_bytes(b"sneaked in")

    for flag in [True, False]:
        begun = storage.begin_upload(b"f", anything)
        with pytest.raises(NameTaken):
            begun.publish(sneak, create_only=True)
        begun.close()
        assert (root / "f").read_bytes() == b"sneaked in"
        (root / "f").unlink()
        if flag:
            monkeypatch.setattr("httpnas.storage.rename._renameat2", None)


def test_creating_is_never_left_to_a_rename_that_replaces(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look and a plain rename others could have taken the name."""
    renamed: list[Any] = []
    monkeypatch.setattr(os, "rename", lambda *args, **kwargs: renamed.append(args))
    upload(storage, b"f", b"content", create_only=True)
    assert renamed == []
    assert (root / "f").read_bytes() == b"content"


def test_one_whole_version_of_many_wins(storage: Storage, root: Path) -> None:
    contents = [bytes([65 + n]) * 200_000 for n in range(8)]
    ended = threading.Event()
    seen: set[bytes] = set()

    def reader() -> None:
        while not ended.is_set():
            content = read(storage, b"f")
            seen.add(content if content in contents else b"torn")

    upload(storage, b"f", contents[0])
    thread = threading.Thread(target=reader)
    thread.start()
    for _ in range(5):
        results = at_once(
            [
                partial(upload, storage, b"f", [content[:70_000], content[70_000:]])
                for content in contents
            ]
        )
        assert all(isinstance(result, Version) for result in results)
    ended.set()
    thread.join()
    assert read(storage, b"f") in contents
    assert b"torn" not in seen
    assert leftovers(root) == []


def test_an_opened_version_stays_whole_when_it_is_replaced_or_removed(storage: Storage) -> None:
    upload(storage, b"f", b"o" * 300_000)
    file = opened(storage, b"f")
    assert os.pread(file.fd, 10, 0) == b"o" * 10
    upload(storage, b"f", b"new")
    assert content_of(file) == b"o" * 300_000
    remove(storage, b"f")
    assert content_of(file) == b"o" * 300_000
    file.close()


def test_every_replacement_has_a_tag_of_its_own(storage: Storage) -> None:
    tags = [upload(storage, b"f", b"same length").tag for _ in range(1000)]
    assert len(set(tags)) == len(tags)
    assert tag(storage, b"f") == tags[-1]


def test_tags_differ_even_when_the_inode_is_used_again(storage: Storage) -> None:
    tags = set()
    for _ in range(300):
        tags.add(upload(storage, b"f", b"same length").tag)
        remove(storage, b"f")
    assert len(tags) == 300


# What is brought to stable storage, and when


@pytest.fixture
def events(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced, renamed and made, in order, as paths below the root."""
    events: list[tuple[str, str]] = []

    def path(fd: int, name: bytes = b"") -> str:
        found = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root)
        found = "temporary" if found.startswith(RUNS) else found
        return os.path.join(found, name.decode()).rstrip("/")

    def record(function: str, describe: Callable[..., str]) -> None:
        real = getattr(os, function)

        def recording(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            events.append((function, describe(*args, **kwargs)))
            return result

        monkeypatch.setattr(os, function, recording)

    record("fsync", path)
    record("rename", lambda _old, new, *, src_dir_fd, dst_dir_fd: path(dst_dir_fd, new))
    record("mkdir", lambda name, *, dir_fd: path(dir_fd, name))
    return events


def test_content_is_synced_before_the_rename_and_the_folder_after(
    durable: Storage, events: list[tuple[str, str]]
) -> None:
    upload(durable, b"f", b"content")
    assert events == [("fsync", "temporary"), ("rename", "./f"), ("fsync", ".")]


def test_the_entry_of_each_new_folder_is_synced(
    durable: Storage, events: list[tuple[str, str]]
) -> None:
    upload(durable, b"a/b/f", b"content")
    assert events == [
        ("mkdir", "./a"),
        ("mkdir", "a/b"),
        ("fsync", "."),
        ("fsync", "a"),
        ("fsync", "temporary"),
        ("rename", "a/b/f"),
        ("fsync", "a/b"),
    ]


def test_nothing_is_written_behind_the_sync(
    durable: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[os.stat_result] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.append(os.fstat(fd))

    monkeypatch.setattr(os, "fsync", fsync)
    written = upload(durable, b"f", b"content")
    assert (synced[0].st_size, synced[0].st_mtime_ns) == (7, written.mtime_ns)


def test_a_created_file_is_synced_like_a_replaced_one(
    durable: Storage, events: list[tuple[str, str]]
) -> None:
    upload(durable, b"f", b"content", create_only=True)
    assert [event for event in events if event[0] == "fsync"] == [
        ("fsync", "temporary"),
        ("fsync", "."),
    ]


def test_moves_and_removals_sync_the_folders_they_change(
    durable: Storage, events: list[tuple[str, str]]
) -> None:
    upload(durable, b"a/f", b"content")
    events.clear()
    durable.move(b"a/f", b"b/f", anything)
    assert events == [
        ("mkdir", "./b"),
        ("fsync", "."),
        ("rename", "b/f"),
        ("fsync", "b"),
        ("fsync", "a"),
    ]
    events.clear()
    remove(durable, b"b/f")
    assert events == [("fsync", "b")]
    events.clear()
    durable.remove(b"b", anything)
    assert [event for event in events if event[0] == "fsync"] == [("fsync", ".")]


def test_durability_none_syncs_nothing(storage: Storage, events: list[tuple[str, str]]) -> None:
    upload(storage, b"a/f", b"content")
    storage.move(b"a/f", b"b/f", anything)
    begun = begin_append(storage, b"b/f")
    begun.write([b"more"])
    begun.commit()
    begun.close()
    remove(storage, b"b")
    assert [event for event in events if event[0] == "fsync"] == []
    assert ("mkdir", "./a") in events


# Faults

CODES = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EIO: StorageBroken,
    errno.EROFS: NotPermitted,
    errno.ESTALE: StorageAway,
    errno.EMFILE: OutOfDescriptors,
}


@pytest.mark.parametrize("kernel_walks", [True, False], ids=["openat2", "walk"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize(
    "function", ["writev", "fsync", "rename", "setxattr", "open", "mkdir", "fstat", "dup"]
)
def test_whatever_fails_the_name_has_the_old_or_the_new_content_and_nothing_is_left(
    durable: Storage, root: Path, function: str, code: int, kernel_walks: bool
) -> None:
    durable.root.kernel_walks &= kernel_walks
    met = 0
    for nth in itertools.count(1):
        name = b"n%d/m/f" % nth
        failed, calls = _upload_with_fault(durable, name, function, nth, code)
        old = b"d%d/f" % nth
        upload(durable, old, b"old")
        replaced, more_calls = _upload_with_fault(durable, old, function, nth, code)
        assert leftovers(root) == []
        if calls < nth and more_calls < nth:
            break
        met += 1
        for new_name, result, before in [(name, failed, None), (old, replaced, b"old")]:
            present = outcome(partial(read, durable, new_name))
            if isinstance(result, Version):
                assert present == b"new content"
            elif isinstance(result, tuple):  # it failed behind the rename
                assert present == b"new content"
                assert function == "fsync"
            else:
                assert type(result) is CODES[code], result
                assert present == before or (before is None and isinstance(present, StorageError))
        upload(durable, name, b"works again")
        upload(durable, old, b"works again")
    assert met


def _upload_with_fault(
    storage: Storage, name: bytes, function: str, nth: int, code: int
) -> tuple[Any, int]:
    """Upload with one failing call; a failure behind the rename comes as a tuple."""
    renamed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        real_rename = os.rename

        def rename(*args: Any, **kwargs: Any) -> None:
            real_rename(*args, **kwargs)
            renamed.append(args)

        patch.setattr(os, "rename", rename)
        # Real syncs would take long, and fail in no interesting way.
        patch.setattr(os, "fsync", lambda fd: None)
        faults = Faults(patch, function, nth, code)
        chunks = [b"new ", b"content"]
        result = outcome(lambda: upload(storage, name, chunks))
    if renamed and isinstance(result, StorageError):
        return (result,), faults.calls
    return result, faults.calls


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_sync_is_never_tried_again(durable: Storage, root: Path, nth: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, "fsync", nth, errno.EIO)
        with pytest.raises(StorageBroken):
            upload(durable, b"f", b"content")
        assert faults.calls == nth
    assert leftovers(root) == []


def test_an_upload_whose_content_is_not_known_to_be_stored_is_not_published(
    durable: Storage,
) -> None:
    upload(durable, b"f", b"old")
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, "fsync", 1, errno.EIO)
        with pytest.raises(StorageBroken):
            upload(durable, b"f", b"new")
    assert read(durable, b"f") == b"old"


def test_an_error_of_the_sync_of_a_folder_is_not_an_answer_of_success(durable: Storage) -> None:
    for nth, name in [(2, b"f"), (2, b"d/f"), (3, b"e/f")]:
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, "fsync", nth, errno.EIO)
            with pytest.raises(StorageBroken):
                upload(durable, name, b"content")


@pytest.mark.parametrize("step", [1, 3, 7])
def test_short_writes_are_continued(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = []

    def writev(fd: int, views: list[Any]) -> int:
        calls.append(fd)
        return os.write(fd, b"".join(views)[:step])

    monkeypatch.setattr(os, "writev", writev)
    begun = storage.begin_upload(b"f", anything)
    begun.write([b"abc", b"", b"defgh", b"i", b"jklmnopqr"])
    begun.publish(anything)
    begun.close()
    assert read(storage, b"f") == b"abcdefghijklmnopqr"
    assert len(calls) == -(-18 // step)


def test_a_disk_that_fills_in_the_middle_of_a_write_publishes_nothing(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writev(fd: int, views: list[Any]) -> int:
        if os.fstat(fd).st_size >= 8:
            raise OSError(errno.ENOSPC, "full")
        return os.write(fd, b"".join(views)[:4])

    upload(storage, b"f", b"old")
    monkeypatch.setattr(os, "writev", writev)
    with pytest.raises(StorageFull):
        upload(storage, b"f", b"0123456789")
    assert read(storage, b"f") == b"old"
    assert leftovers(root) == []


def test_writing_at_an_offset_continues_there(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    real = os.pwritev
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, views, at: real(fd, [b"".join(views)[:3]], at))
        write_all(fd, [b"abcde", b"fgh"], offset=2)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\0abcdefgh"


def test_more_than_the_free_space_is_refused_before_anything_is_written(
    storage: Storage, root: Path
) -> None:
    much = storage.volume.free_bytes() * 2 + 1
    upload(storage, b"f", b"old")
    with pytest.raises(StorageFull):
        storage.begin_upload(b"f", anything, much)
    with pytest.raises(StorageFull):
        storage.begin_append(b"f", anything, much)
    assert leftovers(root) == []
    storage.begin_upload(b"f", anything, 10).close()


def test_a_removed_working_folder_is_an_error_that_may_pass(storage: Storage, root: Path) -> None:
    run = next(runs_of(root).iterdir())
    (run / "lease").unlink()
    run.rmdir()
    with pytest.raises(StorageAway):
        storage.begin_upload(b"f", anything)


def test_the_probe_tells_whether_the_root_can_be_written_to(storage: Storage, root: Path) -> None:
    storage.volume.probe()
    assert leftovers(root) == []
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, "open", 1, errno.EROFS)
        with pytest.raises(NotPermitted):
            storage.volume.probe()


def test_an_upload_to_another_quota_of_a_cephfs_is_refused_before_it_begins(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CephFS moves nothing from one quota to another (rename(2) gives EXDEV)."""
    monkeypatch.setattr("httpnas.storage.mounts.kind", lambda device: "ceph")
    for folder in ["team/deep", "free", "nothing"]:
        (root / folder).mkdir(parents=True)
    quotas = {(root / "team").stat().st_ino: b"1000000", (root / "nothing").stat().st_ino: b"0"}
    real = os.getxattr

    def getxattr(file: Any, name: str, **kwargs: Any) -> bytes:
        if name != "ceph.quota.max_bytes":
            return real(file, name, **kwargs)
        if os.fstat(file).st_ino not in quotas:
            raise OSError(errno.ENODATA, "no quota")
        return quotas[os.fstat(file).st_ino]

    monkeypatch.setattr(os, "getxattr", getxattr)
    storage = Storage(str(root), durable=False)
    for name in [b"team/f", b"team/deep/f", b"team/deep/new/f"]:
        with pytest.raises(OtherFileSystem):
            storage.begin_upload(name, anything)
    for name in [b"f", b"free/f", b"nothing/f", b"new/team/f"]:
        upload(storage, name, b"content")
    assert leftovers(root) == []
    storage.close()
