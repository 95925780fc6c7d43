"""The storage: one folder of the file system, and all that can be done with the names in it.

Every call here may wait for a disk and belongs in a pool thread, except where it says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from httpnas.storage import tree, version
from httpnas.storage.append import Append, commit
from httpnas.storage.commits import Undecided, may_be_mapped
from httpnas.storage.descriptors import handed_over, owned
from httpnas.storage.errors import NoSuchFile, StorageError, WrongOffset, translated
from httpnas.storage.facts import Facts
from httpnas.storage.group import refuse_other_body, taken
from httpnas.storage.ledger import ledger_of
from httpnas.storage.listing import Folder
from httpnas.storage.locks import Claim, Locked
from httpnas.storage.namespace import Namespace, Observe, refuse_non_file
from httpnas.storage.record import Key
from httpnas.storage.recovery import repair
from httpnas.storage.root import READ, refuse_private
from httpnas.storage.staging import hashed
from httpnas.storage.upload import Upload
from httpnas.storage.version import Check, Version


class StoredFile:
    """An open file; whoever has it closes it.

    :ivar fd: its descriptor, open for reading.
    :ivar version: the version it was opened at. Reading up to its size gives that version,
        whatever others do meanwhile to the name or behind the end.
    """

    def __init__(self, fd: int, version: Version) -> None:
        self.fd = fd
        self.version = version

    def close(self) -> None:
        """Close the descriptor."""
        with translated():
            os.close(self.fd)


class Storage(Namespace):
    """Files and folders below one root.

    :param path: the root; it is not made here.
    :param durable: whether a change is on stable storage before it is reported.
    :param observe: is called when a step ends that others or the disk may hold up.
    :param after: the storage that this must be, opened anew.
    :param shared: whether daemons of other users in the root's group use it too.
    :raises StorageError: when the root is not a folder that can be written to, or is another
        storage.
    """

    def __init__(
        self,
        path: str,
        durable: bool = True,
        observe: Observe = lambda step, seconds: None,
        after: Storage | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(path, durable, observe, after, shared)
        self.workspace.repair = partial(repair, weakref.proxy(self))
        self.opens_at_once = self.has_xattrs and self.volume.is_local

    def reopened(self) -> Storage:
        """Open this storage again by its path, because what is open of it is gone.

        This object keeps what it has open until the last transfer that uses it has ended. It need
        not be closed.

        :raises StorageError: when the path does not lead to the same storage.
        """
        return Storage(self._path, self.durable, self._observe, self, self._shared)

    # Reading

    def open(self, name: bytes) -> StoredFile | Folder:
        """Open the file or folder *name* for reading.

        :raises NoSuchFile: when it is neither.
        """
        with handed_over(self.root.open(name, READ)) as fd:
            return self._file_or_folder(name, fd)

    def open_cached(self, name: bytes) -> StoredFile | Folder | None:
        """Open *name* like :meth:`open` if that needs no disk; otherwise return None.

        This is safe on the reactor thread.
        """
        opened = self.root.open_cached(name, READ) if self.opens_at_once else None
        if opened is None:
            return None
        try:
            with handed_over(opened) as fd:
                return self._file_or_folder(name, fd, at_once=True)
        except Undecided:
            return None

    def _file_or_folder(self, name: bytes, fd: int, at_once: bool = False) -> StoredFile | Folder:
        with translated():
            status = os.fstat(fd)
            if version.is_folder(status):
                return Folder(fd, is_root=not name, records=self.records)
            if version.is_file(status):
                return StoredFile(fd, self.known(fd, at_once, status).version)
        raise NoSuchFile("neither a file nor a folder")

    def version_of(self, name: bytes) -> Version | None:
        """Return the version of the file *name*, or None when nothing has that name.

        :raises StorageError: as :meth:`is_file`.
        """
        return self.current_at(name) if self.is_file(name) else None

    def is_file(self, name: bytes) -> bool:
        """Tell whether there is a file *name*; it is False when nothing has that name.

        :raises IsFolder: when it is a folder.
        :raises NoSuchFile: when it is a link or a special file, or a link stands on the way.
        :raises NotAFolder: when a file stands on the way.
        """
        status = self.root.stat(name)
        if status is None:
            return False
        refuse_non_file(status)
        return True

    def recall(self, file: StoredFile) -> Facts:
        """Return what is known of the opened version of *file*."""
        with translated():
            known = self.known(file.fd)
        return known.facts if known.version == file.version else Facts()

    def remember(self, name: bytes, version_: Version, found: Facts) -> None:
        """Keep *found* about *version_* of the file *name*, if it still has that version.

        When the storage does not take them, or others hold the lock, they are dropped: they can be
        found out again.
        """
        with (
            closing(self.claim()) as claim,
            contextlib.suppress(StorageError, Locked),
            translated(),
            self.held_file(name, READ, claim) as fd,
        ):
            ledger = ledger_of(fd, self.records)
            pends = ledger.record is not None and ledger.record.pending is not None
            if ledger.version == version_ and not pends and not may_be_mapped(fd):
                base = ledger.base
                all_known = Facts(base.lines, base.digests).joined(found)
                ledger.settle(replace(base, lines=all_known.lines, digests=all_known.digests))

    # Changing

    def begin_upload(self, name: bytes, check: Check, length: int | None = None) -> Upload:
        """Make room for a new content of *name*; nothing is visible yet.

        :param check: is given the present version now, to refuse early. The check that decides is
            the one given to :meth:`Upload.publish`.
        :param length: bytes that will come, if that is known.
        :raises StorageError: when it is known already that it cannot be published.
        """
        refuse_private(name)
        is_there = self.is_file(name)
        check(lambda: self.current_at(name) if is_there else None)
        self.volume.refuse_full(length)
        with translated(), contextlib.ExitStack() as undoing:
            with owned(self.root.open_nearest_to_change(name)) as folder:
                self.volume.refuse_quota(folder)
                upload = Upload(self, name, folder, private=is_there)
                undoing.callback(upload.close)
            undoing.pop_all()
            return upload

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
        :raises KeyReused: when the append with this key had another length.
        """
        present, done = self._taken(name, key)
        if done is not None:
            refuse_other_body(done, done.length if length is None else length, done.checksum)
            return done.version
        check(lambda: present)
        if expected is not None and expected != present.size:
            raise WrongOffset(present.size)
        self.volume.refuse_full(length)
        return Append(self, name, check, expected, key)

    def refuse_other_body(self, name: bytes, key: bytes, length: int, checksum: int) -> None:
        """Refuse what is not a repeat of the append with *key*, though it has its key.

        :param length: bytes of its body, and *checksum*, their CRC-32.
        :raises KeyReused: when the file *name* has taken another body with this key.
        """
        _, done = self._taken(name, key)
        if done is not None:
            refuse_other_body(done, length, checksum)

    def _taken(self, name: bytes, key: bytes | None) -> tuple[Version, Key | None]:
        """Return the version of the file *name*, and the append that it has taken with *key*."""
        refuse_private(name)
        with translated(), owned(self.root.open(name, READ)) as fd:
            refuse_non_file(os.fstat(fd))
            self.root.refuse_mounted(fd)
            present, record = self.known(fd)
            done = None if key is None else taken(fd, hashed(key), present, record)
            if done is not None and done.doubtful:
                self.sync(fd)
            return present, done

    def commit(
        self, name: bytes, appends: Sequence[Append], claim: Claim | None = None
    ) -> list[Version | Exception]:
        """Put *appends* behind the end of *name*, as :func:`httpnas.storage.append.commit`."""
        return commit(self, name, appends, claim)

    def begin_move(self, name: bytes, check: Check) -> None:
        """Refuse what cannot be moved, before the destination is known.

        :param check: is given the present version now, to refuse early.
        :raises NoSuchFile: when there is no such file or folder.
        """
        tree.begin_move(self, name, check)

    def move(
        self,
        name: bytes,
        target: bytes,
        check: Check,
        create_only: bool = False,
        claim: Claim | None = None,
    ) -> None:
        """Give the file or folder *name* the new name *target*, making the folders on the way.

        :param check: decides under the locks whether the present version of *name* may be moved.
        :param create_only: never replace anything.
        :param claim: takes the locks; without one, they are waited for in this thread.
        :raises Locked: when it is to be called again, with the same claim.
        :raises NameTaken: when *target* is a folder, or is there and *create_only* is set, or is
            a file and *name* a folder.
        :raises IntoItself: when *target* lies in *name*.
        """
        self.patiently(
            lambda claim: tree.move(self, name, target, check, create_only, claim), claim
        )

    def remove(self, name: bytes, check: Check, claim: Claim | None = None) -> bytes | None:
        """Remove the file, folder or link *name*.

        A folder disappears in one step: it is set aside. Its content is then freed by
        :meth:`reclaim`, which takes longer the more there is.

        :param check: decides under the name's lock whether the present version may be removed.
        :param claim: takes the locks; without one, they are waited for in this thread.
        :raises Locked: when it is to be called again, with the same claim.
        :return: what to give to :meth:`reclaim`, None when nothing is left to free.
        :raises NoSuchFile: when there is nothing to remove.
        """
        return self.patiently(lambda claim: tree.remove(self, name, check, claim), claim)

    def reclaim(self, aside: bytes) -> Iterator[None]:
        """Free what :meth:`remove` set aside, a small step with each item of the iterator."""
        return self.workspace.reclaim(aside)

    def reclaim_abandoned(self) -> Iterator[None]:
        """Free what dead daemons have left behind, in steps as :meth:`reclaim`."""
        return self.workspace.reclaim_abandoned()
