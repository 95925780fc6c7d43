"""Changes in the making: content that streams in, and the step that makes it true, in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

from httpnas.files import groups
from httpnas.files.content import DigestCheck, Sum
from httpnas.files.errors import NoLongerWanted
from httpnas.files.groups import Groups, Waiting
from httpnas.files.job import Incoming, Job
from httpnas.storage.append import Append
from httpnas.storage.locks import Claim
from httpnas.storage.store import Storage
from httpnas.storage.upload import Upload
from httpnas.storage.version import Version
from httpnas.transfer.claims import Claims
from httpnas.transfer.disk import Disk
from httpnas.transfer.sink import Sink
from httpnas.transfer.turns import Turns

T = TypeVar("T")


class Changes:
    """Makes changes, each when it is its turn at the name and when its locks can be had.

    :param disk: runs what may wait for the disk.
    """

    def __init__(self, disk: Disk, turns: Turns) -> None:
        self._disk = disk
        self._turns = turns
        self._claims = Claims(disk)
        self._groups = Groups()

    async def in_turn(self, job: Job, name: bytes, claim: Claim, call: Callable[[Claim], T]) -> T:
        """Run *call*, which changes *name*, in a pool thread when it is its turn.

        :param claim: takes the locks that it needs; nobody waits for one in a thread.
        """
        async with self._turns.take(name):
            return await self._claims.run(claim, call, lambda: refuse_given_up(job))

    async def store(
        self,
        job: Job,
        name: bytes,
        body: Incoming,
        digesting: DigestCheck,
        begin: Callable[[], Upload],
        publish: Callable[[Upload, Claim], T],
        claim: Claim,
    ) -> T:
        """Stream *body* into what *begin* makes, then *publish* that; it is closed in the end.

        If all of *body* is there already, one call in a thread does everything. Otherwise *begin*
        comes first, to refuse what may not be stored before the client sends it.

        :param claim: takes the locks that *publish* needs.
        """
        ending = ExitStack()  # closes it once, whoever asks for it
        upload: Upload | None = None

        def begun() -> Upload:
            nonlocal upload
            if upload is None:
                upload = begin()
                ending.callback(upload.close)
            return upload

        try:
            if not body.ended:
                await self._disk.run(begun)
            async with self._streamed(
                body, digesting, lambda chunks: begun().write(chunks)
            ) as rest:

                def finish(claim: Claim) -> T:
                    upload = begun()
                    if rest:
                        digesting.update(rest)
                        upload.write(rest)
                        rest.clear()
                    digesting.verify()
                    result = publish(upload, claim)
                    ending.close()
                    return result

                return await self.in_turn(job, name, claim, finish)
        except BaseException:
            await self._disk.run(ending.close)
            raise

    async def append(
        self,
        storage: Storage,
        name: bytes,
        body: Incoming,
        digesting: DigestCheck,
        append: Append,
    ) -> Version:
        """Stream *body* into *append*, then commit it together with others that wait."""

        try:
            async with self._streamed(body, digesting, append.write) as rest:

                def prepare() -> None:
                    digesting.update(rest)
                    append.write(rest)
                    digesting.verify()
                    append.sync()

                waiting = Waiting(append, append.length + sum(map(len, rest)), prepare)
                if waiting.length > storage.in_memory:
                    await self._disk.run(waiting.prepare)  # nobody else has to wait for its sync
                await self._commit_together(storage, name, waiting)
        finally:
            if append.staged is not None:
                await self._disk.run(append.close)
        return waiting.result

    async def compare(self, storage: Storage, name: bytes, key: bytes, body: Incoming) -> None:
        """Compare *body* with what the file *name* has taken with *key*; nothing is stored.

        :raises KeyReused: when it is another one.
        """
        whole = Sum()
        async with self._streamed(body, DigestCheck({}), whole.write) as rest:

            def compare() -> None:
                whole.write(rest)
                storage.refuse_other_body(name, key, whole.length, whole.checksum)

            await self._disk.run(compare)

    async def _commit_together(self, storage: Storage, name: bytes, waiting: Waiting) -> None:
        """Wait until *waiting* has its outcome; who has the turn commits all who wait."""
        self._groups.add(name, waiting)
        async with self._turns.take(name):
            if waiting.outcome is not None:
                return
            group = self._groups.take(name, storage.in_memory)
            commit = partial(groups.commit, storage, name, group)
            try:
                await self._claims.run(storage.claim(), commit, lambda: None)
            except Exception as error:
                for each in group:
                    each.outcome = each.outcome or error

    @asynccontextmanager
    async def _streamed(
        self, body: Incoming, digesting: DigestCheck, take: Callable[[Sequence[bytes]], None]
    ) -> AsyncIterator[list[bytes]]:
        """Give *body* to *take* as it comes, and yield what is left to be given to it.

        What is left counts as memory of the request for as long as the block.
        """

        def write(chunks: Sequence[bytes]) -> None:
            digesting.update(chunks)
            take(chunks)

        sink = Sink(self._disk, write, self._disk.memory)
        try:
            await body.deliver_to(sink)
            yield await sink.finish()
        except BaseException:
            await sink.abandon()
            raise
        finally:
            sink.close()


def refuse_given_up(job: Job) -> None:
    """Refuse what nobody waits for any more.

    :raises NoLongerWanted: when *job* was given up.
    """
    if job.given_up:
        raise NoLongerWanted("The storage did not answer in time.")
