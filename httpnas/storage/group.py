"""Appends that are committed together: announced, written, synced and settled as one."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property

from httpnas.storage import commits
from httpnas.storage.commits import block_sums
from httpnas.storage.content import append_all, write_all
from httpnas.storage.errors import KeyReused, WrongOffset, translate
from httpnas.storage.ledger import Ledger, next_stamp
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import KEYS, Key, Pending, Record
from httpnas.storage.staging import Staging
from httpnas.storage.version import Version, of_stat

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Group:
    """Appends that are committed together.

    :param ledger: of their file, whose lock is held until all is done.
    :param alone: whether nobody else has the file open for writing.
    """

    def __init__(
        self,
        namespace: Namespace,
        ledger: Ledger,
        appends: Sequence[Staging],
        alone: bool = False,
    ) -> None:
        self._namespace = namespace
        self._alone = alone
        self._ledger = ledger
        self._appends = appends
        self._before = ledger.version
        self._version = ledger.version
        #: What an undo goes back to.
        self._base = ledger.base
        self._keys: dict[Staging, Key] = {}
        self._members: list[Staging] = []
        #: Those that repeat another one of the group.
        self._repeats: dict[Staging, Staging] = {}
        self._made: dict[Staging, Version] = {}
        self._refused: dict[Staging, Exception] = {}
        #: Those refused for what others before them would have made.
        self._refused_behind: list[Staging] = []
        self._working = ExitStack()
        self._mtime_ns: int | None = None
        self._is_shifted = False

    @property
    def fd(self) -> int:
        """The file."""
        return self._ledger.fd

    @property
    def outcomes(self) -> list[Version | Exception]:
        """What has become of each, in their order."""
        firsts = [self._repeats.get(append, append) for append in self._appends]
        return [self._refused.get(append) or self._made[append] for append in firsts]

    def commit(self) -> None:
        """Do all there is to do, while the lock of the name is held as well."""
        if self.announce() and self.write():
            self.settle()

    def announce(self) -> bool:
        """Write down what is to be added, and tell whether there is something."""
        for append in self._appends:
            try:
                self._admit(append)
            except Exception as error:
                self._refused[append] = error
                if self._members:
                    self._refused_behind.append(append)
        if not self._members:
            return False
        staged, workspace = self._members[0].staged, self._namespace.workspace
        path = self._working.enter_context(workspace.at_work(staged and staged[1]))
        return self._has_done(lambda: self._ledger.announce(self._announcement(self._base, path)))

    def write(self) -> bool:
        """Add it to the file, bring it to stable storage, and tell whether that was possible."""

        def write() -> None:
            self._write(self._base.size)
            if self._namespace.volume.is_local:
                # What others change from now on has another time, and the record does not fit it.
                self._mtime_ns = os.fstat(self._ledger.fd).st_mtime_ns
            self._namespace.sync(self._ledger.fd)

        return self._has_done(write)

    def settle(self) -> None:
        """Let it count, unless nobody waits for it any more."""

        def settle() -> None:
            self._recheck()
            self._settle()

        if self._has_done(settle):
            self._working.close()
            if self._is_shifted:
                self._try_alone(self._refused_behind)

    def _has_done(self, step: Callable[[], None]) -> bool:
        """Do *step*, or else undo what was done before and refuse all."""
        try:
            step()
        except Exception as error:
            self._fail(error, self.undo())
            return False
        return True

    def _admit(self, append: Staging) -> None:
        """Plan *append* behind those before it, or say what it has made before."""
        if append.hashed is not None and self._is_done(append, append.hashed):
            append.repeats = True
            return
        present = self._version
        append.check(lambda: present)
        if append.expected is not None and append.expected != present.size:
            raise WrongOffset(present.size)
        if append.length or append.hashed is not None:
            self._plan(append, present)
        self._made[append] = self._version

    def _is_done(self, append: Staging, wanted: bytes) -> bool:
        for first, key in self._keys.items():
            if key.hashed == wanted:
                refuse_other_body(key, append.length, append.whole_checksum)
                self._repeats[append] = first
                return True
        done = taken(self._ledger.fd, wanted, self._before, self._ledger.record)
        if done is None:
            return False
        refuse_other_body(done, append.length, append.whole_checksum)
        if done.doubtful:
            self._namespace.sync(self._ledger.fd)
        self._made[append] = done.version
        return True

    def _plan(self, append: Staging, present: Version) -> None:
        last = self._ledger.record if not self._members else None
        stamp = max(next_stamp(last), present.stamp + 1 if self._members else 0)
        size, inode = present.size + append.length, present.inode
        self._version = Version(size, present.mtime_ns, inode, stamp)
        if append.hashed is not None:
            checksum = append.whole_checksum
            self._keys[append] = Key(append.hashed, inode, size, stamp, append.length, checksum)
        self._members.append(append)

    def _announcement(self, before: Record, path: bytes) -> Record:
        """Return *before* with all that is about to be added, for which *path* stands."""
        first, added = self._members[0], self._version.size - before.size
        checksum = first.checksum
        block = self._namespace.block
        blocks: tuple[int, ...] = ()
        if first.staged is None:
            content = self._content
            checksum, blocks = zlib.crc32(content), block_sums(content, before.size, block)
        lines = None if before.lines is None else before.lines + sum(a.lines for a in self._members)
        keys = (*before.keys, *self._keys.values())[-KEYS:]
        pending = Pending(
            added,
            checksum,
            self._version.stamp,
            lines,
            commits.boot(),
            block,
            min(len(self._keys), KEYS),
            blocks,
            path,
        )
        return replace(before, keys=keys, pending=pending)

    @cached_property
    def _content(self) -> bytes:
        """What the members add, when it is not staged in a file."""
        return b"".join(chunk for append in self._members for chunk in append.chunks)

    def _write(self, offset: int) -> None:
        fd, first = self._ledger.fd, self._members[0]
        if self._version.size == offset:
            return
        landed = offset
        if first.staged is not None:
            landed = first.put(fd, offset, self._alone)
        elif self._namespace.volume.is_local:
            landed = append_all(fd, [self._content])
        else:
            write_all(fd, [self._content], offset)
        if landed != offset:
            self._shift(landed - offset)

    def _shift(self, by: int) -> None:
        """Take notice that others have appended *by* bytes before ours.

        :raises WrongOffset: when that was not to be, and can be undone.
        """
        record = self._ledger.record
        assert record is not None and record.pending is not None
        status = os.fstat(self._ledger.fd)
        foreign = replace(of_stat(status), size=record.size + by)
        self._base, self._is_shifted = record.about(foreign), True
        is_last = status.st_size == foreign.size + record.pending.added
        if is_last and any(append.expected is not None for append in self._members):
            raise WrongOffset(foreign.size)
        self._keys = {a: replace(key, size=key.size + by) for a, key in self._keys.items()}
        blocks = block_sums(self._content, foreign.size, self._namespace.block)
        self._ledger.announce(
            replace(
                self._base,
                keys=(*self._base.keys, *self._keys.values())[-KEYS:],
                pending=replace(record.pending, lines=None, blocks=blocks),
            )
        )
        for append in self._members:
            made = self._made[append]
            self._made[append] = replace(made, size=made.size + by)
        self._version = replace(self._version, size=self._version.size + by)

    def _recheck(self) -> None:
        """Give up what nobody waits for any more, unless it stands between others that count."""
        before = self._before
        errors = []
        for append in self._members:
            try:
                append.check(lambda: before)
            except Exception as error:
                errors.append(error)
        if len(errors) == len(self._members):
            raise errors[0]

    def undo(self) -> bool:
        """Take back what was written, and tell whether that was possible.

        Where others have added something too, it stays.
        """
        if not self._members:
            return True  # it was done before
        with self._working:
            try:
                return self._undo()
            except OSError:
                self._namespace.workspace.repair_later(self._members[0].name)
                return False

    def _undo(self) -> bool:
        fd, before = self._ledger.fd, self._base
        status = os.fstat(fd)
        if not status.st_nlink:
            return True
        there = status.st_size - before.size
        if there < 0 or not self._is_ours(there, before.size):
            # It stays, and its keys with it: their checksums tell whether all of it is there.
            keys = (*before.keys, *self._keys.values())[-KEYS:]
            self._ledger.settle(replace(before, keys=keys).about(of_stat(status)))
            return False
        if there:
            os.ftruncate(fd, before.size)
            self._namespace.sync(fd)
        self._ledger.settle(replace(before, mtime_ns=os.fstat(fd).st_mtime_ns))
        return True

    def _is_ours(self, there: int, offset: int) -> bool:
        """Tell whether the *there* bytes at *offset* begin what this group adds."""
        first = self._members[0]
        if first.staged is not None:
            return first.begins_at(self._ledger.fd, offset, there)
        return os.pread(self._ledger.fd, there, offset) == self._content[:there]

    def _fail(self, error: Exception, undone: bool) -> None:
        """Refuse all that were to be added.

        Those are tried alone that were refused because of them. So is each of several where there
        is no room, as a smaller one may fit, and where others were faster, as only some mind that.
        """
        members, self._members = self._members, []
        behind, self._refused_behind = self._refused_behind, []
        no_room = isinstance(error, OSError) and error.errno in NO_ROOM
        is_of_some = (no_room or isinstance(error, WrongOffset)) and len(members) > 1
        again = [*(members if is_of_some else []), *behind] if undone else []
        for append in members:
            del self._made[append]
        for append in [*members, *behind]:
            self._refused[append] = translate(error) if isinstance(error, OSError) else error
        self._try_alone(again)

    def _try_alone(self, refused: Sequence[Staging]) -> None:
        """Try each of *refused* anew, as what it was refused for has not come true like that."""
        for append in filter(refused.__contains__, self._appends):
            group = Group(self._namespace, self._ledger, [append])
            group.commit()
            del self._refused[append]
            self._made |= group._made
            self._refused |= group._refused

    def _settle(self) -> None:
        """Write down that it is true; the next sync may bring that to stable storage."""
        ledger, version = self._ledger, self._version
        record = ledger.record
        assert record is not None and record.pending is not None
        written = self._mtime_ns
        settled = replace(
            record,
            size=version.size,
            mtime_ns=os.fstat(ledger.fd).st_mtime_ns if written is None else written,
            stamp=version.stamp,
            foreign_ctime_ns=None,
            lines=record.pending.lines,
            digests={},
            pending=None,
        )
        ledger.settle(settled, record.pending.keys)


def taken(fd: int, wanted: bytes, present: Version, record: Record | None) -> Key | None:
    """Return the append with the hashed key *wanted* that the file *fd* has taken, or None.

    :param present: the version that the file has.
    """
    if record is not None:
        for key in reversed(record.settled_keys):
            if key.hashed == wanted and _is_there(fd, key, present, record):
                return key
    return None


def refuse_other_body(key: Key, length: int, checksum: int) -> None:
    """Refuse an append with the idempotency key of another one.

    :raises KeyReused: when *key* stands for a body of another length or CRC-32.
    """
    if (key.length, key.checksum) != (length, checksum):
        raise KeyReused("another body was appended with this key")


def _is_there(fd: int, key: Key, present: Version, record: Record) -> bool:
    """Tell whether what *key* stands for is still there, if it belongs to this file.

    When others have changed the file, its content tells.
    """
    if key.replaced or not key.counts_at(present.size):
        return key.replaced
    is_sure = record.version == present and not key.doubtful
    return is_sure or commits.checksum(fd, key.size - key.length, key.length) == key.checksum
