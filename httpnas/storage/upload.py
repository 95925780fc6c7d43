"""Writing a file that appears under its name whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from httpnas.storage import facts, version
from httpnas.storage.content import stamp, write_all
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import translated
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.locks import Claim
from httpnas.storage.namespace import Namespace
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
        self._written: Version | None = None
        self._published = False

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
            if self._written is None:
                self._written = self._sealed(digests or {})
            self._namespace.patiently(lambda claim: self._enter(check, create_only, claim), claim)
            return self._written

    def _sealed(self, digests: Mapping[str, bytes]) -> Version:
        """Bring what was written to stable storage, with what is known of it."""
        records = self._namespace.records
        stamp(self._fd)
        written = version.of_stat(os.fstat(self._fd))
        # A file that others have removed may have left records to this inode.
        records.forget(written.inode)
        facts.remember(self._fd, written, Facts(self._lines, digests), records)
        self._namespace.sync(self._fd)
        return written

    def _enter(self, check: Check, create_only: bool, claim: Claim) -> None:
        """Put the file under its name, in a folder that others may remove in any moment."""
        namespace = self._namespace
        while not self._published:
            with owned(namespace.root.make_parent(self._name, namespace.durable)) as folder:
                try:
                    self._replace(folder, check, create_only, claim)
                    namespace.sync(folder)
                except FileNotFoundError:
                    namespace.workspace.verify_temporary(self._temporary)

    def _replace(self, folder: int, check: Check, create_only: bool, claim: Claim) -> None:
        leaf = os.path.basename(self._name)
        namespace = self._namespace
        work = namespace.workspace.fd
        with namespace.hold(claim, (folder, self._name)):
            check(lambda: namespace.current(folder, leaf))
            doomed = namespace.sole_inode(folder, leaf)
            if create_only:
                name_new(work, self._temporary, folder, leaf)
            else:
                os.rename(self._temporary, leaf, src_dir_fd=work, dst_dir_fd=folder)
            if doomed is not None:
                namespace.records.forget(doomed)
        self._published = True

    def close(self) -> None:
        """Close the file, and remove it if it was not published."""
        try:
            with translated():
                os.close(self._fd)
        finally:
            if not self._published:
                self._namespace.workspace.discard(self._temporary)
