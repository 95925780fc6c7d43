"""What every change stands on: the names below one root, opened safely, locked and synced.

Uploads, appends, moves and removals are made of these steps. :class:`httpnas.storage.store.Storage`
adds the operations themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import Literal, TypeVar

from httpnas.storage import commits, version
from httpnas.storage.commits import Known
from httpnas.storage.descriptors import owned, sole_inode
from httpnas.storage.durability import sync_folder
from httpnas.storage.errors import IsFolder, NoSuchFile, NotAFolder, translated
from httpnas.storage.locks import Claim, Locked, NameLocks, all_buckets, buckets, patiently
from httpnas.storage.records import FileRecords, Records, XattrRecords
from httpnas.storage.root import Root, split
from httpnas.storage.version import Version
from httpnas.storage.volume import Volume
from httpnas.storage.workspace import Workspace

#: A step that may take long: because of the disk, because of others who change the same name, or
#: because of both.
Step = Literal["fsync", "lock_wait", "append_commit"]
#: Is called with a step that has ended and the seconds that it took.
Observe = Callable[[Step, float], None]

T = TypeVar("T")


class Namespace:
    """The names below one root, with the locks, records and temporaries that belong to them.

    :param path: the root; it is not made here.
    :param durable: whether a change is on stable storage before it is reported.
    :param observe: is called when a step ends that others or the disk may hold up.
    :param same_as: the namespace that this must be, opened anew.
    :param shared: whether daemons of other users in the root's group use it too.
    :raises StorageError: when the root is not a folder that can be written to.
    :raises StorageGone: when *path* does not lead to *same_as*.
    """

    def __init__(
        self, path: str, durable: bool, observe: Observe, same_as: Namespace | None, shared: bool
    ) -> None:
        self.durable = durable
        self._shared = shared
        self._observe = observe
        self._path = os.path.abspath(path)
        self.root = Root(path)
        if same_as is not None:
            same_as.volume.verify_same(self.root)
        self.workspace = Workspace(self.root.fd, shared)
        self.workspace.stat = self.root.stat
        self.volume: Volume = Volume(self._path, self.root, self.workspace)
        self.locks = NameLocks(self.workspace.locks)
        self.workspace.give_locks()
        #: Whether files keep their records themselves, in user xattrs.
        self.has_xattrs = self.workspace.has_xattrs
        with translated():
            #: Whether a new name can be brought to stable storage, if that is asked for.
            self.syncs_folders = not durable or sync_folder(self.workspace.fd)
        #: Bytes of a block: a write that a power cut interrupts ends where one does.
        self.block = self.volume.block()
        #: Bytes of appends that are committed together and need not be staged in a file.
        self.in_memory = (commits.MOST_BLOCKS - 1) * self.block
        kept = (durable, self.workspace.staged, self.volume.is_local, self.workspace.is_at_work)
        self.records: Records = (
            XattrRecords(*kept)
            if self.has_xattrs
            else FileRecords(self.workspace, self.workspace.records, *kept)
        )
        if not self.has_xattrs:
            self.workspace.forget = self.records.forget

    def close(self) -> None:
        """Close everything that is open. No call may be running, and none may follow."""
        self.workspace.leave()
        self.workspace.close()
        self.root.close()

    def sync(self, fd: int) -> None:
        """Bring the file *fd* to stable storage (fsync(2)), if durability is asked for.

        A failure is final: the kernel drops what it could not write, and would answer the next
        call with success.

        :raises OSError: as fsync(2).
        """
        if self.durable:
            with self.timed("fsync"):
                os.fsync(fd)

    def sync_folder(self, fd: int) -> None:
        """Bring the entries of the folder *fd* to stable storage, if its file system can."""
        if self.durable:
            with self.timed("fsync"):
                sync_folder(fd)

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Tell the observer how long the block takes, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._observe(step, time.monotonic() - began)

    def claim(self) -> Claim:
        """Return a claim for one change, which holds nothing yet; the caller closes it."""
        return self.locks.claim(partial(self._observe, "lock_wait"))

    def patiently(self, call: Callable[[Claim], T], claim: Claim | None) -> T:
        """Run *call* with *claim*; without one, wait in this thread until it has its locks.

        :raises Locked: when it has to be begun again.
        """
        if claim is not None:
            return call(claim)
        with closing(self.claim()) as own:
            return patiently(own, call)

    @contextmanager
    def hold(self, claim: Claim, *places: tuple[int, bytes], below: bool = False) -> Iterator[None]:
        """Hold the locks of *places* for as long as the block, and give them back then.

        Each place is still where it was: a folder that was opened before the lock was there may
        have been moved or removed meanwhile, and what is changed in it would appear elsewhere.

        :param places: each the descriptor of a folder and the name of what is to be changed in it.
        :param below: keep everybody out of all other names too, because what is to be changed is
            a folder, and there may be changes at work below it.
        :raises Locked: when others hold a lock, or a name leads elsewhere by now. The call is to
            be begun again with the claim, which keeps what is still of use.
        :raises Contended: when that has been so for too long.
        """
        claim.take(
            all_buckets() if below else buckets(*((fd, split(name)[1]) for fd, name in places))
        )
        try:
            if not all(self.leads_to(name, fd) for fd, name in places):
                claim.begin_again()
            claim.note_success()
            yield
        except Locked:
            raise
        except BaseException:
            claim.release()
            raise
        claim.release()

    def leads_to(self, name: bytes, folder: int) -> bool:
        """Tell whether the open *folder* is still the one that holds *name*."""
        try:
            found = self.root.open_parent(name)
        except (NoSuchFile, NotAFolder):
            return False
        with owned(found):
            return os.path.samestat(os.fstat(found), os.fstat(folder))

    def open_holder(self, name: bytes) -> int:
        """Open the folder that holds *name*, to change what is in it; the caller closes it.

        :raises NoSuchFile: when it is not there, or a file or link stands on the way.
        :raises OtherFileSystem: when it is on another file system than the root.
        """
        try:
            return self.root.open_parent_to_change(name)
        except NotAFolder as error:
            raise NoSuchFile("no such file or folder") from error

    def make_parent(self, name: bytes, claim: Claim) -> int:
        """Open the folder that holds *name*, made if it is missing; the caller closes it.

        What is made goes again when *claim* is closed, unless its change was made by then.

        :raises Locked: when there are so many to make that others should have a turn.
        :raises StorageError: as :meth:`Root.make_parent`.
        """
        made: list[bytes] = []
        try:
            folder = self.root.make_parent(name, self.durable, made)
        finally:
            if made:
                claim.undoing.append(partial(self.root.unmake, made))
        if folder is None:
            raise Locked
        return folder

    @contextmanager
    def held_file(self, name: bytes, flags: int, claim: Claim, long: bool = False) -> Iterator[int]:
        """Open the file *name* under its lock, for as long as the block.

        If it is opened to be written to, the file itself is locked as well. Readers know by that
        that it is being changed, and nobody changes it meanwhile by another name of the file, nor
        any program that asks flock(2) first. On a network, where that is two round trips, it is
        done only for a file with several names, or for long.

        :param long: whether much is to be written.
        :raises IsFolder: when it is a folder.
        :raises NoSuchFile: when it is nothing that a client can reach.
        :raises Locked: as :meth:`hold`, and :exc:`Contended` as well.
        """
        with (
            owned(self.open_holder(name)) as folder,
            self.hold(claim, (folder, name)),
            owned(os.open(split(name)[1], flags | os.O_NOFOLLOW, dir_fd=folder)) as fd,
        ):
            status = os.fstat(fd)
            refuse_non_file(status)
            self.root.refuse_mounted(fd)
            if flags & os.O_RDWR and (self.volume.is_local or long or status.st_nlink > 1):
                claim.take_file(fd)
            yield fd

    def known(self, fd: int, at_once: bool = False, status: os.stat_result | None = None) -> Known:
        """Return what is known of the open file *fd*, whatever is being done with it.

        :param at_once: when its content would have to be read for that, give up.
        :param status: what fstat(2) has just told of it, if it was asked.
        :raises Undecided: when that is so.
        """
        return commits.known(fd, self.records, at_once, status)

    def current(self, folder: int, leaf: bytes) -> Version | None:
        """Return the version that *leaf* in *folder* has now, or None when there is none."""
        try:
            return commits.version_at(folder, leaf, self.records)
        except FileNotFoundError:
            os.fstat(folder)  # fails when it is the volume that is gone
            return None

    def current_at(self, name: bytes) -> Version | None:
        """Return the version that *name* has now, or None when there is none."""
        with translated():
            try:
                folder = self.root.open_parent(name)
            except NoSuchFile:
                return None  # it was removed in this moment
            with owned(folder):
                return self.current(folder, split(name)[1])

    def doomed(self, folder: int, leaf: bytes) -> AbstractContextManager[int | None]:
        """Yield the inode of *leaf* in *folder*, if its record goes when this name goes.

        No other file gets that inode as long as the block, in which the record is removed. It is
        None for a file that has another name too, and where files keep their records themselves.
        """
        return nullcontext() if self.has_xattrs else sole_inode(folder, leaf)


def refuse_non_file(status: os.stat_result) -> None:
    """Refuse what *status* shows not to be a regular file.

    :raises IsFolder: when it is a folder.
    :raises NoSuchFile: when it is a link or a special file.
    """
    if version.is_folder(status):
        raise IsFolder("this is a folder, not a file")
    if not version.is_file(status):
        raise NoSuchFile("neither a file nor a folder")
