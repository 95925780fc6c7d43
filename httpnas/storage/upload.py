"""Writing a file that appears under its name whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from httpnas.storage.append import recovered_at
from httpnas.storage.commits import Ledger, next_stamp
from httpnas.storage.content import write_all
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import translated
from httpnas.storage.facts import newlines
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import Record
from httpnas.storage.rename import name_new
from httpnas.storage.version import Check, Version


class Upload:
    """A temporary file that is being written; :meth:`publish` gives it its name.

    Made by :meth:`httpnas.storage.store.Storage.begin_upload`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.

    :raises StorageError: when no temporary file can be made.
    """

    def __init__(self, namespace: Namespace, name: bytes) -> None:
        self._namespace = namespace
        self._name = name
        self._fd, self._temporary = namespace.workspace.create()
        self._lines = 0
        self._published = False

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
    ) -> Version:
        """Make what was written the content of the name, and return its version.

        When this returns, content and entry are on stable storage (unless durability is off).

        :param check: decides under the name's lock whether the present version may be replaced.
        :param create_only: never replace anything.
        :param digests: by algorithm, what is known already of what was written.
        :raises NameTaken: when something has the name and *create_only* is set.
        :raises StorageError: when it is not published, or not known to be durable.
        """
        namespace = self._namespace
        with translated():
            namespace.sync(self._fd)
            status = os.fstat(self._fd)
            written = Version(status.st_size, status.st_mtime_ns, status.st_ino, next_stamp(None))
            ledger = Ledger(self._fd, namespace.records, written, None)
            self._record = replace(ledger.base, lines=self._lines, digests=digests or {})
            while not self._published:
                self._try_to_publish(ledger, check, create_only)
            return ledger.version

    def _try_to_publish(self, ledger: Ledger, check: Check, create_only: bool) -> None:
        """Put the file under its name, unless its folder is removed in this moment."""
        namespace = self._namespace
        with owned(namespace.root.make_parent(self._name, namespace.durable)) as folder:
            try:
                self._enter(ledger, folder, check, create_only)
                namespace.sync(folder)
            except FileNotFoundError:
                namespace.workspace.verify_temporary(self._temporary)

    def _enter(self, ledger: Ledger, folder: int, check: Check, create_only: bool) -> None:
        leaf = os.path.basename(self._name)
        namespace = self._namespace
        work = namespace.workspace.fd
        with namespace.hold((folder, leaf)):
            check(lambda: namespace.current(folder, leaf))
            doomed = namespace.sole_inode(folder, leaf)
            record = self._following(folder, leaf)
            ledger.settle(record)
            if create_only:
                name_new(work, self._temporary, folder, leaf)
            else:
                os.rename(self._temporary, leaf, src_dir_fd=work, dst_dir_fd=folder)
            self._published = True
            ledger.confirm()
            if doomed is not None:
                namespace.records.forget(doomed)

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
