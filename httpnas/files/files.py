"""Opening, replacing, appending, moving, removing, counting, digesting and listing files.

Each operation finds in one place what it needs: the admission, its line in the trace, its turn at
the name, a pool thread for what may wait for the disk, and the call of the storage.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace as replace_fields
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer

from httpnas.fields.conditions import Conditions
from httpnas.fields.digests import HASHES
from httpnas.files.changes import Changes, refuse_given_up
from httpnas.files.content import DigestCheck, require
from httpnas.files.errors import AlreadyThere
from httpnas.files.findings import Findings, FindOut
from httpnas.files.job import Incoming, Job
from httpnas.files.points import (
    Admit,
    Commit,
    Effect,
    Intent,
    Show,
    Tell,
    Verb,
    admit_all,
    show_all,
    tell_nobody,
)
from httpnas.files.shown import Shown
from httpnas.files.trace import Trace
from httpnas.storage.errors import IsFolder, NameTaken
from httpnas.storage.facts import Facts
from httpnas.storage.listing import Folder
from httpnas.storage.locks import Claim
from httpnas.storage.store import Storage, StoredFile
from httpnas.storage.upload import Upload
from httpnas.storage.version import Check, Find, Version
from httpnas.transfer import scan
from httpnas.transfer.disk import Disk
from httpnas.transfer.sender import Chained, ConsumerGone, Generated, Sender, Source, Text
from httpnas.transfer.turns import Turns
from httpnas.transfer.watchdog import Watchdog

#: Pieces of a listing that are made in one call of a pool thread.
PAGE = 2000
#: What becomes of the name that these begin with, where no disk is needed to tell.
_KNOWN = {Verb.APPEND: Effect.CHANGED, Verb.MOVE: Effect.REMOVED, Verb.DELETE: Effect.REMOVED}
_NO_CONDITIONS = Conditions()
_NO_DIGESTS: Mapping[str, bytes] = MappingProxyType({})

T = TypeVar("T")


class Files:
    """The operations on the files of one storage.

    :param watchdog: has the storage, which is another object after it has gone and come back.
    :param admit: is asked before anything is done.
    :param tell: is told what has become true.
    :param show: is asked what the listing of a folder shows.
    """

    def __init__(
        self,
        disk: Disk,
        watchdog: Watchdog,
        turns: Turns,
        trace: Trace,
        admit: Admit = admit_all,
        tell: Tell = tell_nobody,
        show: Show = show_all,
    ) -> None:
        self._disk = disk
        self._watchdog = watchdog
        self._changes = Changes(disk, turns)
        self._findings = Findings()
        self._trace = trace
        self._admit = admit
        self._tell = tell
        self._show = show

    @property
    def _storage(self) -> Storage:
        return self._watchdog.storage

    # Reading

    @asynccontextmanager
    async def open(
        self, job: Job, name: bytes, verb: Verb = Verb.DOWNLOAD
    ) -> AsyncIterator[StoredFile | Folder]:
        """Open *name* for as long as the block, without a thread when no disk has to be asked.

        :param verb: what is to be done with it; when it would be downloaded but is a folder, it is
            listed.
        :raises NoSuchFile: when it is neither a file nor a folder.
        """
        known = _KNOWN.get(verb)
        self._admit(job, Intent(verb, name, lambda: known or Effect.UNKNOWN))
        opened = self._storage.open_cached(name)
        if opened is None:
            opened = await self._disk.run(self._storage.open, name)
        try:
            if isinstance(opened, Folder) and verb is Verb.DOWNLOAD:
                verb = Verb.LIST
            self._admit(job, Intent(verb, name, lambda: known or Effect.NONE))
            if isinstance(opened, Folder):
                opened.between = partial(_refuse_gone, job)
                shows = self._show(job, name)
                yield opened if shows is None else Shown(opened, shows)
            else:
                yield opened
        finally:
            self._close(opened)

    def _close(self, opened: StoredFile | Folder) -> None:
        """Close what was opened, where that cannot hold up the reactor.

        The last close of a file that was removed or replaced frees it, block by block.
        """
        if self._storage.opens_at_once and os.fstat(opened.fd).st_nlink:
            opened.close()
        else:
            self._disk.run(opened.close)

    async def download(
        self, job: Job, name: bytes, source: Source, consumer: IConsumer, sent: Callable[[], int]
    ) -> None:
        """Send *source*, which is made of the open file *name*, to *consumer*.

        :param sent: tells how many bytes have gone out so far.
        :raises ConsumerGone: when the consumer stopped that.
        """
        with self._trace.transfer(job, Verb.DOWNLOAD, name, sent):
            await self.send(source, consumer)

    async def send(self, source: Source, consumer: IConsumer) -> None:
        """Send *source* to *consumer*, reading in pool threads what is not in memory.

        :raises ConsumerGone: when the consumer stopped that.
        """
        threads = self._disk.surveys if isinstance(source, _Listing) else self._disk
        await Sender(threads).beginFileTransfer(source, consumer)

    async def list(self, folder: Folder, pieces: Iterator[bytes]) -> Source:
        """Return *pieces*, which are made of the open *folder*, as a source.

        They are made in threads for that, :data:`PAGE` at a time, as long as the client is there.
        The first are made now, so that what goes wrong with them can still be answered.

        :raises ConsumerGone: when the client is not there any more.
        """

        def page() -> bytes:
            folder.between()
            return b"".join(islice(pieces, PAGE))

        return _Listing(Text(await self._disk.surveys.run(page)), Generated(page))

    async def lines(self, job: Job, name: bytes) -> int:
        """Return how many newlines the file *name* has.

        :raises IsFolder: when it is a folder.
        """
        async with self.open(job, name, Verb.COUNT) as opened:
            if isinstance(opened, Folder):
                raise IsFolder("a folder has no lines")
            file, disk = opened, self._disk.surveys

            async def count(wanted: Callable[[], bool]) -> Facts:
                return Facts(await scan.count_lines(disk, file.fd, file.version.size, wanted))

            return await self._known(job, name, file, "lines", lambda facts: facts.lines, count)

    async def digest(self, job: Job, name: bytes, file: StoredFile, algorithm: str) -> bytes:
        """Return the digest of the open *file*, whose name is *name*.

        :param algorithm: one of :data:`httpnas.fields.digests.HASHES`.
        """

        async def compute(wanted: Callable[[], bool]) -> Facts:
            surveys, size = self._disk.surveys, file.version.size
            value = await scan.digest(surveys, file.fd, size, HASHES[algorithm], wanted)
            return Facts(digests={algorithm: value})

        return await self._known(
            job, name, file, algorithm, lambda facts: facts.digests.get(algorithm), compute
        )

    async def _known(
        self,
        job: Job,
        name: bytes,
        file: StoredFile,
        what: str,
        pick: Callable[[Facts], T | None],
        find: FindOut,
    ) -> T:
        """Return what *pick* takes from the facts about *file*.

        When nobody knows *what* yet, *find* finds it out for all who ask, and it is remembered.
        """
        remembered = pick(await self._disk.run(self._storage.recall, file))
        if remembered is not None:
            return remembered

        async def find_and_remember(wanted: Callable[[], bool]) -> Facts:
            found = await find(wanted)
            await self._disk.run(self._storage.remember, name, file.version, found)
            return found

        found = await self._findings.ask(job, (what, file.version), find_and_remember)
        picked = pick(found)
        assert picked is not None, "what was to be found out was found out"
        return picked

    # Changing

    async def expect(self, job: Job, folder: bytes, length: int | None) -> None:
        """Prepare for files below *folder* whose names are not known yet.

        :param length: how many bytes they have in all, None when that is not known.
        :raises NoRoom: when the storage has less left.
        """
        self._admit(job, Intent(Verb.UPLOAD, folder, _unknown, below=True))
        await self._disk.run(self._storage.volume.refuse_full, length)

    async def replace(
        self,
        job: Job,
        name: bytes,
        body: Incoming,
        conditions: Conditions = _NO_CONDITIONS,
        digests: Mapping[str, bytes] = _NO_DIGESTS,
    ) -> Version:
        """Make *body* the content of *name*, whole or not at all; return its version.

        :param digests: what the content must have, by algorithm.
        :raises PreconditionFailed: when the present version is not one that *conditions* allow.
        :raises DigestMismatch: when the content is not the announced one.
        :raises StorageError: when it was not stored.
        """
        check = self._check(job, Verb.UPLOAD, name, conditions)
        digesting = DigestCheck(digests)
        with self._trace.transfer(job, Verb.UPLOAD, name, lambda: body.received):
            storage = self._storage

            def begin() -> Upload:
                return storage.begin_upload(name, check, body.length)

            def publish(upload: Upload, claim: Claim) -> Version:
                try:
                    return upload.publish(check, conditions.create_only, digesting.expected, claim)
                except NameTaken as error:
                    raise AlreadyThere("A file or folder with this name exists already.") from error

            version = await self._changes.store(
                job, name, body, digesting, begin, publish, storage.claim()
            )
        self._tell(job, Commit(Verb.UPLOAD, name, version))
        return version

    async def append(
        self,
        job: Job,
        name: bytes,
        body: Incoming,
        conditions: Conditions = _NO_CONDITIONS,
        digests: Mapping[str, bytes] = _NO_DIGESTS,
        expected: int | None = None,
        key: bytes | None = None,
    ) -> Version:
        """Put *body* behind the end of the file *name*, whole or not at all; return the version.

        :param expected: the length in bytes that the file must have.
        :param key: tells this append from all others, so that it is done once if it comes twice.
        :raises KeyReused: when another body was appended with it.
        :raises WrongOffset: when the file has another length.
        :raises NoSuchFile: when there is no such file.
        :raises PreconditionFailed: as of :meth:`replace`, also the following.
        :raises DigestMismatch:
        :raises StorageError:
        """
        check = self._check(job, Verb.APPEND, name, conditions)
        with self._trace.transfer(job, Verb.APPEND, name, lambda: body.received):
            begun = await self._disk.run(
                self._storage.begin_append, name, check, body.length, expected, key
            )
            if isinstance(begun, Version):
                await self._changes.compare(self._storage, name, key or b"", body)
                return begun
            version = await self._changes.append(
                self._storage, name, body, DigestCheck(digests), begun
            )
        if begun.repeats:
            return version
        self._tell(job, Commit(Verb.APPEND, name, version))
        return version

    async def move(
        self,
        job: Job,
        name: bytes,
        find_target: Callable[[], Coroutine[Deferred[Any], Any, bytes]],
        conditions: Conditions = _NO_CONDITIONS,
    ) -> None:
        """Give the file or folder *name* another name, making the folders on the way.

        :param find_target: finds out the new name; called once *name* is known to be movable.
        :param conditions: about *name*; whether something may be replaced concerns the new one.
        :raises AlreadyThere: when *conditions* forbid to replace what has the new name.
        :raises NameTaken: when it is a folder, which is never replaced.
        :raises NoSuchFile: when there is no such file or folder.
        :raises PreconditionFailed: as of :meth:`replace`.
        """
        create_only = conditions.create_only
        conditions = replace_fields(conditions, if_none_match=None)
        check = self._check(job, Verb.MOVE, name, conditions)
        with self._trace.transfer(job, Verb.MOVE, name) as transfer:
            await self._disk.run(self._storage.begin_move, name, check)
            transfer.to = target = await find_target()
            self._admit(job, Intent(Verb.MOVE, target, _unknown))

            def check_both(find: Find) -> None:
                self._admit(job, Intent(Verb.MOVE, target, lambda: self._effect_on(target)))
                check(find)

            storage = self._storage

            def rename(claim: Claim) -> None:
                try:
                    storage.move(name, target, check_both, create_only, claim)
                except NameTaken as error:
                    if create_only:
                        exists = "A file or folder with the new name exists already."
                        raise AlreadyThere(exists) from error
                    raise

            await self._changes.in_turn(job, name, storage.claim(), rename)
        self._tell(job, Commit(Verb.MOVE, name, to=target))

    def _effect_on(self, name: bytes) -> Effect:
        return Effect.NEW if self._storage.version_of(name) is None else Effect.CHANGED

    async def remove(self, job: Job, name: bytes, conditions: Conditions = _NO_CONDITIONS) -> None:
        """Remove the file, the link, or the folder *name* with all in it.

        What a folder holds is freed in the background.

        :raises NoSuchFile: when there is nothing to remove.
        :raises PreconditionFailed: as of :meth:`replace`.
        """
        check = self._check(job, Verb.DELETE, name, conditions)
        with self._trace.transfer(job, Verb.DELETE, name):
            storage = self._storage
            remove = partial(storage.remove, name, check)
            aside = await self._changes.in_turn(job, name, storage.claim(), remove)
        if aside is not None:
            self._disk.chore(storage.reclaim(aside))
        self._tell(job, Commit(Verb.DELETE, name))

    # What all changes share

    def _check(self, job: Job, verb: Verb, name: bytes, conditions: Conditions) -> Check:
        """Return what refuses the change of *name* by *verb* that may not be made.

        The storage calls it before any content comes, and once more when the lock of the name is
        held: that decides. Admission is asked now as well, before the disk tells anything.
        """
        known = _KNOWN.get(verb)
        self._admit(job, Intent(verb, name, lambda: known or Effect.UNKNOWN))

        def check(find: Find) -> None:
            refuse_given_up(job)

            def effect() -> Effect:
                return known or (Effect.NEW if find() is None else Effect.CHANGED)

            self._admit(job, Intent(verb, name, effect))
            if not conditions.any_version:
                require(conditions, find())

        return check


def _unknown() -> Effect:
    return Effect.UNKNOWN


class _Listing(Chained):
    """What is sent of an open folder."""


def _refuse_gone(job: Job) -> None:
    """Give up what is read for a client that is not there any more.

    :raises ConsumerGone: when it is not.
    """
    if job.client_gone:
        raise ConsumerGone("the client went away before it had its answer")
