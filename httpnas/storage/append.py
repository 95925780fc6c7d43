"""Adding to the end of a file, whole or not at all.

A body is staged first (:mod:`httpnas.storage.staging`). All appends that wait for a file are then
committed together (:mod:`httpnas.storage.group`), under its lock, with one record, one write and
one sync, in the order in which they came. What an append is and how it becomes true,
:mod:`httpnas.storage.commits` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from httpnas.storage import commits
from httpnas.storage.errors import translated
from httpnas.storage.group import Group
from httpnas.storage.locks import Claim
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import PAGE
from httpnas.storage.recovery import recover
from httpnas.storage.root import WRITE
from httpnas.storage.staging import Staging
from httpnas.storage.version import Version

#: Bytes that are kept in memory, and committed together, before a temporary file is made.
IN_MEMORY = (commits.MOST_BLOCKS - 1) * PAGE


class Append(Staging):
    """A body on its way to the end of a file, which can be committed.

    Made by :meth:`httpnas.storage.store.Storage.begin_append`.
    """

    def commit(self, claim: Claim | None = None) -> Version:
        """Commit this append alone; see :func:`commit`."""
        (outcome,) = commit(self._namespace, self._name, [self], claim)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def commit(
    namespace: Namespace, name: bytes, appends: Sequence[Append], claim: Claim | None = None
) -> list[Version | Exception]:
    """Put *appends* behind the end of the file *name*, in their order.

    Each has its own condition, expected length and key, and an outcome of its own: the version
    that it has made (or has made when it came before), or what it is refused for.

    :param appends: several only if none is staged in a file, and no more bytes in all than
        :attr:`Namespace.in_memory`.
    :param claim: takes the locks; without one, they are waited for in this thread.
    :raises NoSuchFile: when the file is not there any more.
    :raises StorageError: when nothing was appended.
    :raises Locked: when it is to be called again, with the same claim.
    """

    for append in appends:
        append.sync()

    def commit_all(claim: Claim) -> list[Version | Exception]:
        with (
            namespace.held_file(name, WRITE, claim) as fd,
            namespace.timed("append_commit"),
            namespace.workspace.notes.noted(name),
        ):
            group = Group(namespace, recover(namespace, fd), appends)
            group.commit()
            return group.outcomes

    with translated():
        return namespace.patiently(commit_all, claim)
