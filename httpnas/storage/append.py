"""Adding to the end of a file, whole or not at all.

A body is staged first (:mod:`httpnas.storage.staging`). All appends that wait for a file are then
committed together (:mod:`httpnas.storage.group`), under its lock, with one record, one write and
one sync, in the order in which they came. What an append is and how it becomes true,
:mod:`httpnas.storage.commits` says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from httpnas.storage import commits
from httpnas.storage.commits import may_be_mapped
from httpnas.storage.errors import Contended, translated
from httpnas.storage.group import Group
from httpnas.storage.locks import Claim, Locked
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import PAGE
from httpnas.storage.recovery import recover
from httpnas.storage.root import READ, WRITE
from httpnas.storage.staging import Staging
from httpnas.storage.version import Version

#: Bytes that are kept in memory, and committed together, before a temporary file is made.
IN_MEMORY = (commits.MOST_BLOCKS - 1) * PAGE


class Append(Staging):
    """A body on its way to the end of a file, which can be committed.

    Made by :meth:`httpnas.storage.store.Storage.begin_append`.

    :ivar landed: what it has written to its file, and synced, when that does not count yet.
    """

    landed: Group | None = None
    _has_begun_again = False

    def commit(self, claim: Claim | None = None) -> Version:
        """Commit this append alone; see :func:`commit`."""
        (outcome,) = commit(self._namespace, self.name, [self], claim)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Take back what does not count, and remove the temporary file."""
        try:
            if self.landed is not None:
                self.landed.undo()
                self.let_go()
        finally:
            super().close()

    def let_go(self) -> None:
        """Give back the lock of the file that it has been written to."""
        group, self.landed = self.landed, None
        if group is not None:
            os.close(group.fd)

    def begin_again(self, claim: Claim) -> None:
        """Begin again with what has the name by now.

        :raises Locked: always, or :exc:`Contended` when that has been done before.
        """
        if self._has_begun_again:
            raise Contended("the file is replaced again and again")
        self._has_begun_again = True
        claim.begin_again()


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
        if appends[0].staged is not None:
            return _commit_staged(namespace, name, appends[0], claim)
        with (
            namespace.held_file(name, WRITE, claim) as fd,
            namespace.timed("append_commit"),
            namespace.workspace.notes.noted(name),
        ):
            group = Group(namespace, recover(namespace, fd, claim), appends)
            group.commit()
            return group.outcomes

    with translated():
        return namespace.patiently(commit_all, claim)


def _commit_staged(
    namespace: Namespace, name: bytes, append: Append, claim: Claim
) -> list[Version | Exception]:
    """Commit what is staged in a file, which may take long.

    Other names share the lock of this one, so it is given back meanwhile. The lock of the file
    itself is kept, and then the name has to lead to that file still: who replaced, moved or removed
    it did not know of the append.
    """
    group = append.landed or _land(namespace, name, append, claim)
    if append.landed is None:
        return group.outcomes
    with ExitStack() as ending:
        ending.callback(append.let_go)
        try:
            with namespace.held_file(name, READ, claim) as fd:
                is_there = os.path.samestat(os.fstat(fd), os.fstat(group.fd))
                if is_there:
                    group.settle()
        except Locked:
            ending.pop_all()  # it is to be called again
            raise
        except Exception:
            group.undo()
            raise
        if not is_there and not group.undo():
            raise Contended("others have appended to the file that was moved, so it stays there")
    if not is_there:
        append.begin_again(claim)
    return group.outcomes


def _land(namespace: Namespace, name: bytes, append: Append, claim: Claim) -> Group:
    """Write what is staged to the file, and let :attr:`Append.landed` have it."""
    with ExitStack() as failing, ExitStack() as undoing:
        with namespace.held_file(name, READ, claim) as found:
            alone = namespace.volume.is_local and not may_be_mapped(found)
            with namespace.held_file(name, WRITE, claim, long=True) as fd:
                kept = claim.keep_file(fd)
                failing.callback(os.close, kept)
                group = Group(namespace, recover(namespace, kept, claim), [append], alone)
                append.note_target(kept)
                is_announced = group.announce()
                if is_announced:
                    undoing.callback(group.undo)
        claim.wait_anew()
        undoing.pop_all()  # from here on, it does that itself
        with namespace.timed("append_commit"):
            if is_announced and group.write():
                append.landed = group
                failing.pop_all()
    return group
