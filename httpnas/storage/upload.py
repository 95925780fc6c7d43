"""Writing a file that appears under its name whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from httpnas.storage import projects
from httpnas.storage.content import write_all
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import OtherFileSystem, translated
from httpnas.storage.facts import newlines
from httpnas.storage.inheritance import Inheritance
from httpnas.storage.ledger import Ledger, next_stamp
from httpnas.storage.locks import Claim
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import Record
from httpnas.storage.recovery import recovered_at
from httpnas.storage.rename import name_new
from httpnas.storage.root import split
from httpnas.storage.version import Check, Version, of_stat

_NOT_NOTED = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


class Upload:
    """A temporary file that is being written; :meth:`publish` gives it its name.

    Made by :meth:`httpnas.storage.store.Storage.begin_upload`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.

    :param folder: descriptor of the folder that it will be in, or of the nearest one above it.
    :param private: whether nobody else may read the file before it is known who may.
    :raises OtherFileSystem: when that folder does not take it in.
    :raises StorageError: when no temporary file can be made.
    """

    def __init__(self, namespace: Namespace, name: bytes, folder: int, private: bool) -> None:
        self._namespace = namespace
        self._name = name
        self._leaf = split(name)[1]
        self._fd, self._temporary = namespace.workspace.create(0o600 if private else 0o666)
        self._lines = 0
        self._ledger: Ledger | None = None
        self._inheritance: Inheritance | None = None
        self._published = False
        try:
            if not projects.takes_in(folder, self._fd):
                raise OtherFileSystem("this folder has a quota that the daemon may not choose")
        except BaseException:
            self.close()
            raise

    def claim(self) -> Claim:
        """Return a claim for its last step, which holds nothing yet; the caller closes it."""
        return self._namespace.claim()

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write *chunks* behind what was written before.

        :raises StorageError: when the storage does not take them.
        """
        self._lines += newlines(chunks)
        with translated():
            write_all(self._fd, chunks)

    def publish(
        self,
        check: Check,
        create_only: bool = False,
        digests: Mapping[str, bytes] | None = None,
        claim: Claim | None = None,
    ) -> Version:
        """Make what was written the content of the name, and return its version.

        When this returns, content and entry are on stable storage (unless durability is off).

        :param check: decides under the name's lock whether the present version may be replaced.
        :param create_only: never replace anything.
        :param digests: by algorithm, what is known already of what was written.
        :param claim: takes the locks; without one, they are waited for in this thread.
        :raises NameTaken: when something has the name and *create_only* is set.
        :raises StorageError: when it is not published, or not known to be durable.
        :raises Locked: when it is to be called again, with the same claim.
        """
        with translated():
            ledger = self._ledger or self._seal(digests or {})
            self._namespace.patiently(
                lambda claim: self._enter(ledger, check, create_only, claim), claim
            )
            return ledger.version

    def _seal(self, digests: Mapping[str, bytes]) -> Ledger:
        """Say which version was written, and what is known of it."""
        status = os.fstat(self._fd)
        written = Version(status.st_size, status.st_mtime_ns, status.st_ino, next_stamp(None))
        self._ledger = ledger = Ledger(self._fd, self._namespace.records, written, None)
        self._record = replace(ledger.base, lines=self._lines, digests=digests)
        return ledger

    def _enter(self, ledger: Ledger, check: Check, create_only: bool, claim: Claim) -> None:
        """Put the file under its name, in a folder that others may remove in any moment."""
        namespace = self._namespace
        while not self._published:
            with owned(namespace.make_parent(self._name, claim)) as folder:
                try:
                    inheritance = self._inherit(folder)
                    self._replace(ledger, folder, inheritance, check, create_only, claim)
                    namespace.sync_folder(folder)
                except FileNotFoundError:
                    namespace.workspace.verify_temporary(self._temporary)

    def _inherit(self, folder: int) -> Inheritance:
        """Take over rights and sync the file, once for a folder, however often it is tried."""
        if self._inheritance is None or not self._inheritance.moved_to(folder):
            self._inheritance = Inheritance(self._fd, folder, self._leaf)
            self._inheritance.take()
            self._namespace.sync(self._fd)
        return self._inheritance

    def _replace(
        self,
        ledger: Ledger,
        folder: int,
        inheritance: Inheritance,
        check: Check,
        create_only: bool,
        claim: Claim,
    ) -> None:
        leaf, namespace = self._leaf, self._namespace
        with namespace.hold(claim, (folder, self._name)):
            check(lambda: namespace.current(folder, leaf))
            if inheritance.renew():
                namespace.sync(self._fd)
            record = self._following(folder, leaf)
            self._note(ledger, record)
            with self._being_named(), namespace.doomed(folder, leaf) as doomed:
                try:
                    self._rename(folder, leaf, create_only)
                except OSError as error:
                    if error.errno != errno.EXDEV or not projects.join(self._fd, folder):
                        raise
                    namespace.sync(self._fd)
                    self._rename(folder, leaf, create_only)
                self._published = True
                claim.undoing.clear()
                ledger.confirm()
                if doomed is not None:
                    namespace.records.forget(doomed)

    @contextmanager
    def _being_named(self) -> Iterator[None]:
        """Let readers know that the record will fit again: a new name sets the change time."""
        if not self._namespace.records.change_times:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):  # the file is closed soon, which gives the lock back
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _note(self, ledger: Ledger, record: Record) -> None:
        """Write down *record*, unless the rights that the file has taken over forbid that.

        Without it the version has another tag, and nothing is known of it.
        """
        try:
            ledger.settle(record)
        except OSError as error:
            if error.errno not in _NOT_NOTED:
                raise
            ledger.version = of_stat(os.fstat(self._fd))

    def _following(self, folder: int, leaf: bytes) -> Record:
        """Return the record of what was written, with what a name keeps when it is replaced.

        A repeat of an append is told apart by its key also when the file has been replaced since;
        and a version is never taken for one of the file before.
        """
        replaced = recovered_at(self._namespace, folder, leaf)
        if replaced is None:
            return self._record
        stamp = next_stamp(replaced)
        return replace(self._record, keys=replaced.inherited_keys, stamp=stamp)

    def _rename(self, folder: int, leaf: bytes, create_only: bool) -> None:
        work = self._namespace.workspace.fd
        if create_only:
            name_new(work, self._temporary, folder, leaf)
        else:
            os.rename(self._temporary, leaf, src_dir_fd=work, dst_dir_fd=folder)

    def close(self) -> None:
        """Close the file, and remove it if it was not published."""
        namespace = self._namespace
        try:
            with translated():
                if not self._published and not namespace.has_xattrs:
                    namespace.records.forget(os.fstat(self._fd).st_ino)
        finally:
            try:
                with translated():
                    os.close(self._fd)
            finally:
                if not self._published:
                    namespace.workspace.discard(self._temporary)
