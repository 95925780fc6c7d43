"""The storage: one folder of the file system, and all that can be done with the names in it.

Every call here may wait for a disk and belongs in a pool thread, except where it says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Literal

from httpnas.storage import facts, idempotency, tree, version
from httpnas.storage.append import Append, WrongOffset
from httpnas.storage.errors import (
    IsFolder,
    NoSuchFile,
    NotAFolder,
    StorageError,
    translated,
)
from httpnas.storage.facts import Facts
from httpnas.storage.listing import Folder
from httpnas.storage.locks import NameLocks
from httpnas.storage.records import FileRecords, Records, XattrRecords
from httpnas.storage.root import READ, Root, refuse_private, split
from httpnas.storage.upload import Check, Upload
from httpnas.storage.version import Version
from httpnas.storage.volume import Volume
from httpnas.storage.workspace import Workspace

#: What may be held up: by the disk, by others who change the same name, or by both.
Step = Literal["fsync", "lock_wait", "append_commit"]
Observe = Callable[[Step, float], None]


class StoredFile:
    """An open file; whoever has it closes it.

    :ivar fd: its descriptor, open for reading.
    :ivar version: the version it was opened at. Reading up to its size gives that version,
        whatever others do to the name or behind the end meanwhile.
    """

    def __init__(self, fd: int, version: Version) -> None:
        self.fd = fd
        self.version = version

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class Storage:
    """Files and folders below one root.

    :param path: the root; it is not made here.
    :param durable: whether a change is on stable storage before it is reported.
    :param observe: is told of each step that others or the disk may hold up, as it ends.
    :param after: which storage it has to be.
    :raises StorageError: when the root is no folder that can be written to, or is another storage.
    """

    def __init__(
        self,
        path: str,
        durable: bool = True,
        observe: Observe = lambda step, seconds: None,
        after: Storage | None = None,
    ) -> None:
        self.durable = durable
        self._observe = observe
        self._path = os.path.abspath(path)
        self.root = Root(path)
        if after is not None:
            after.volume.expect(self.root)
        self.workspace = Workspace(self.root.fd)
        self.volume: Volume = Volume(self._path, self.root, self.workspace)
        self.locks = NameLocks(self.workspace.locks)
        #: Whether files keep their records themselves.
        self.has_xattrs = self.workspace.keeps_xattrs()
        self.records: Records = (
            XattrRecords()
            if self.has_xattrs
            else FileRecords(self.workspace, self.workspace.records, durable)
        )
        self.opens_at_once = self.has_xattrs and self.volume.is_local

    def close(self) -> None:
        """Give everything back. No call may run or follow."""
        self.workspace.leave()
        self.workspace.close()
        self.root.close()

    def reopened(self) -> Storage:
        """Return this storage as its path leads to it now, because what is open of it is gone.

        This one keeps what is open until the last transfer that uses it has ended, and needs not
        be closed.

        :raises StorageError: when the path does not lead there.
        """
        return Storage(self._path, self.durable, self._observe, after=self)

    def sync(self, fd: int) -> None:
        """Bring the file or folder *fd* to stable storage, if durability is asked for.

        A failure is final: the kernel drops what it could not write, and asking again would
        be answered with success.
        """
        if self.durable:
            with self.timed("fsync"):
                os.fsync(fd)

    @contextlib.contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Tell the observer how long the block takes, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._observe(step, time.monotonic() - began)

    @contextlib.contextmanager
    def hold(self, *names: tuple[int, bytes]) -> Iterator[None]:
        """Hold the locks of *names* for as long as the block, as :meth:`NameLocks.hold`."""
        with contextlib.ExitStack() as held:
            with self.timed("lock_wait"):
                held.enter_context(self.locks.hold(*names))
            yield

    # Reading

    def open(self, name: bytes) -> StoredFile | Folder:
        """Open the file or folder *name* for reading.

        :raises NoSuchFile: when it is neither.
        """
        return self._opened(name, self.root.open(name, READ))

    def open_cached(self, name: bytes) -> StoredFile | Folder | None:
        """Open *name* like :meth:`open` if that needs no disk, else return None.

        Safe on the reactor thread.
        """
        fd = self.root.open_cached(name, READ) if self.opens_at_once else None
        return None if fd is None else self._opened(name, fd)

    def _opened(self, name: bytes, fd: int) -> StoredFile | Folder:
        try:
            with translated():
                status = os.fstat(fd)
                if version.is_folder(status):
                    return Folder(fd, is_root=not name, records=self.records)
                if version.is_file(status):
                    return StoredFile(fd, version.committed(fd, self.records))
            raise NoSuchFile("neither a file nor a folder")
        except BaseException:
            os.close(fd)
            raise

    def open_regular(self, name: bytes, flags: int) -> int:
        """Open the file *name* with *flags* and return its descriptor.

        :raises IsFolder: when it is a folder.
        :raises NoSuchFile: when it is nothing a client can reach.
        """
        return _only_file(self.root.open(name, flags))

    def open_holder(self, name: bytes) -> int:
        """Open the folder that holds *name*, which should be there, to change what is in it.

        :raises NoSuchFile: when it is not there, or a file or link stands on the way.
        :raises OtherFileSystem: when it is on another file system than the root.
        """
        try:
            return self.root.open_parent_to_change(name)
        except NotAFolder as error:
            raise NoSuchFile("no such file or folder") from error

    @contextlib.contextmanager
    def held_file(self, name: bytes, flags: int) -> Iterator[int]:
        """Open the file *name* under its lock, for as long as the block.

        :raises IsFolder: when it is a folder.
        :raises NoSuchFile: when it is nothing a client can reach.
        """
        folder = self.open_holder(name)
        try:
            leaf = split(name)[1]
            with self.hold((folder, leaf)):
                fd = _only_file(os.open(leaf, flags | os.O_NOFOLLOW, dir_fd=folder))
                try:
                    yield fd
                finally:
                    os.close(fd)
        finally:
            os.close(folder)

    def look(self, name: bytes) -> Version | None:
        """Return the version of the file *name*, or None when nothing has that name.

        :raises StorageError: as :meth:`is_file`.
        """
        return self._present(name) if self.is_file(name) else None

    def _present(self, name: bytes) -> Version | None:
        with translated():
            try:
                folder = self.root.open_parent(name)
            except NoSuchFile:
                return None  # it went in this moment
            try:
                return self.current(folder, split(name)[1])
            finally:
                os.close(folder)

    def is_file(self, name: bytes) -> bool:
        """Tell whether *name* is a file, and not nothing.

        :raises IsFolder: when it is a folder.
        :raises NoSuchFile: when it is a link or a special file, or a link stands on the way.
        :raises NotAFolder: when a file stands on the way.
        """
        status = self.root.stat(name)
        if status is not None and not version.is_file(status):
            raise _not_a_file(status)
        return status is not None

    def current(self, folder: int, leaf: bytes) -> Version | None:
        """Return the version that *leaf* in *folder* has now, or None when there is none."""
        try:
            return version.committed_at(folder, leaf, self.records)
        except FileNotFoundError:
            os.fstat(folder)  # fails when it is the volume that is not there
            return None

    def sole_inode(self, folder: int, leaf: bytes) -> int | None:
        """Return the inode of *leaf* in *folder* if it goes with that name, with its records.

        None where it has another name, or files keep their records themselves.
        """
        if self.has_xattrs:
            return None
        try:
            status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_ino if status.st_nlink == 1 else None

    def recall(self, file: StoredFile) -> Facts:
        """Return what is known of the opened version of *file*."""
        with translated():
            return facts.recall(file.fd, file.version, self.records)

    def remember(self, name: bytes, version_: Version, found: Facts) -> None:
        """Keep *found* about *version_* of the file *name*, if it still has that version.

        Where that can not be done it is not: it will be found out again.
        """
        with contextlib.suppress(StorageError), translated(), self.held_file(name, READ) as fd:
            if version.committed(fd, self.records) == version_:
                known = facts.recall(fd, version_, self.records)
                facts.remember(fd, version_, known.joined(found), self.records)

    # Changing

    def begin_upload(self, name: bytes, check: Check, length: int | None = None) -> Upload:
        """Make room for a new content of *name*; nothing is visible yet.

        :param check: is shown the present version now, to refuse early. What decides is the
            check given to :meth:`Upload.publish`.
        :param length: bytes that will come, if that is known.
        :raises StorageError: when it is known already that it can not be published.
        """
        refuse_private(name)
        is_there = self.is_file(name)
        check(lambda: self._present(name) if is_there else None)
        self.volume.refuse_full(length)
        return Upload(self, name, *self.workspace.create())

    def begin_append(
        self,
        name: bytes,
        check: Check,
        length: int | None = None,
        expected: int | None = None,
        key: bytes | None = None,
    ) -> Append | Version:
        """Make ready to append to *name*; parameters as in :meth:`begin_upload`.

        :param expected: the length in bytes that the file should have.
        :param key: tells this append from all others, so that it is done once if it comes twice.
        :return: the version that the append with this key has made, if it is done already.
        :raises NoSuchFile: when there is no such file.
        :raises WrongOffset: when it has another length already.
        """
        refuse_private(name)
        with translated():
            fd = self.open_regular(name, READ)
            try:
                present = version.committed(fd, self.records)
                done = None if key is None else idempotency.outcome(fd, key, present, self.records)
            finally:
                os.close(fd)
        if done is not None:
            return done
        check(lambda: present)
        if expected is not None and expected != present.size:
            raise WrongOffset(present.size)
        self.volume.refuse_full(length)
        return Append(self, name, key)

    def begin_move(self, name: bytes, check: Check) -> None:
        """Refuse what can not be moved, before anything is known of the destination.

        :param check: is shown the present version now, to refuse early.
        :raises NoSuchFile: when there is no such file or folder.
        """
        tree.begin_move(self, name, check)

    def move(self, name: bytes, target: bytes, check: Check, create_only: bool = False) -> None:
        """Give the file or folder *name* the new name *target*, making the folders on the way.

        :param check: decides under the locks whether the present version of *name* may be moved.
        :param create_only: never replace anything.
        :raises NameTaken: when *target* is a folder, or is there and *create_only* is set, or is
            a file and *name* a folder.
        :raises IntoItself: when *target* lies in *name*.
        """
        tree.move(self, name, target, check, create_only)

    def remove(self, name: bytes, check: Check) -> bytes | None:
        """Remove the file, folder or link *name*.

        A folder goes in one step: it is set aside, and what is returned is for
        :meth:`reclaim`, which takes as long as there is to remove.

        :param check: decides under the name's lock whether the present version may go.
        :raises NoSuchFile: when there is nothing to remove.
        """
        return tree.remove(self, name, check)

    def reclaim(self, aside: bytes) -> Iterator[None]:
        """Free what :meth:`remove` set aside, a small step with each item of the iterator."""
        return self.workspace.reclaim(aside)

    def reclaim_abandoned(self) -> Iterator[None]:
        """Free what daemons that died have left behind, as :meth:`reclaim` does."""
        return self.workspace.reclaim_abandoned()


def _only_file(fd: int) -> int:
    """Return *fd* if it is a file, else close it and raise what fits."""
    status = os.fstat(fd)
    if version.is_file(status):
        return fd
    os.close(fd)
    raise _not_a_file(status)


def _not_a_file(status: os.stat_result) -> IsFolder | NoSuchFile:
    if version.is_folder(status):
        return IsFolder("this is a folder, not a file")
    return NoSuchFile("neither a file nor a folder")
