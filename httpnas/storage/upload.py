"""Writing a file that appears under its name whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from httpnas.storage import facts, projects, version
from httpnas.storage.content import stamp, write_all
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import translated
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.inheritance import Inheritance
from httpnas.storage.namespace import Namespace
from httpnas.storage.rename import name_new
from httpnas.storage.version import Check, Version


class Upload:
    """A temporary file that is being written; :meth:`publish` gives it its name.

    Made by :meth:`httpnas.storage.store.Storage.begin_upload`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.

    :param private: whether nobody else may read the file before it is known who may.
    :raises StorageError: when no temporary file can be made.
    """

    def __init__(self, namespace: Namespace, name: bytes, private: bool) -> None:
        self._namespace = namespace
        self._name = name
        self._fd, self._temporary = namespace.workspace.create(0o600 if private else 0o666)
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
            stamp(self._fd)
            written = version.of_stat(os.fstat(self._fd))
            known = Facts(self._lines, digests or {})
            # A file that others have removed may have left records to this inode.
            namespace.records.forget(written.inode)
            facts.remember(self._fd, written, known, namespace.records)
            while not self._published:
                self._try_to_publish(check, create_only)
            return written

    def _try_to_publish(self, check: Check, create_only: bool) -> None:
        """Put the file under its name, unless its folder is removed in this moment."""
        namespace = self._namespace
        with owned(namespace.root.make_parent(self._name, namespace.durable)) as folder:
            try:
                inheritance = Inheritance(self._fd, folder, os.path.basename(self._name))
                inheritance.take()
                namespace.sync(self._fd)
                self._enter(folder, inheritance, check, create_only)
                namespace.sync(folder)
            except FileNotFoundError:
                namespace.workspace.verify_temporary(self._temporary)

    def _enter(
        self, folder: int, inheritance: Inheritance, check: Check, create_only: bool
    ) -> None:
        leaf = os.path.basename(self._name)
        namespace = self._namespace
        with namespace.hold((folder, leaf)):
            check(lambda: namespace.current(folder, leaf))
            if inheritance.renew():
                namespace.sync(self._fd)
            doomed = namespace.sole_inode(folder, leaf)
            try:
                self._rename(folder, leaf, create_only)
            except OSError as error:
                if error.errno != errno.EXDEV or not projects.join(self._fd, folder):
                    raise
                namespace.sync(self._fd)
                self._rename(folder, leaf, create_only)
            if doomed is not None:
                namespace.records.forget(doomed)
        self._published = True

    def _rename(self, folder: int, leaf: bytes, create_only: bool) -> None:
        work = self._namespace.workspace.fd
        if create_only:
            name_new(work, self._temporary, folder, leaf)
        else:
            os.rename(self._temporary, leaf, src_dir_fd=work, dst_dir_fd=folder)

    def close(self) -> None:
        """Close the file, and remove it if it was not published."""
        try:
            with translated():
                os.close(self._fd)
        finally:
            if not self._published:
                self._namespace.workspace.discard(self._temporary)
