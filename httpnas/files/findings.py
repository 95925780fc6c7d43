"""What is being found out about files, each thing once for all who ask for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from httpnas.files.job import Job
from httpnas.storage.facts import Facts
from httpnas.transfer.sender import ConsumerGone

#: Finds something out; what it is given tells whether anybody still waits for that.
FindOut = Callable[[Callable[[], bool]], Coroutine[Deferred[Any], Any, Facts]]


class Findings:
    """Shares what takes long to find out, such as the digest of a large file."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, list[tuple[Job, Deferred[Facts]]]] = {}

    async def ask(self, job: Job, what: Hashable, find: FindOut) -> Facts:
        """Return what *find* finds out, or somebody else does who asked for it before.

        :param what: tells it from all else, the version of the file included.
        :raises ConsumerGone: when the client of *job* has gone.
        :raises Exception: what the finding out raises, for all who asked.
        """
        while True:
            try:
                return await self._ask(job, what, find)
            except ConsumerGone:  # all had gone, and this one has come just then
                if job.client_gone:
                    raise

    async def _ask(self, job: Job, what: Hashable, find: FindOut) -> Facts:
        answer = Deferred[Facts]()
        asking = self._asking.setdefault(what, [])
        asking.append((job, answer))
        if len(asking) == 1:
            try:
                found = await find(lambda: not all(job.client_gone for job, _ in asking))
            except Exception:
                self._tell(what, Failure())
            else:
                self._tell(what, found)
        return await answer

    def _tell(self, what: Hashable, outcome: Facts | Failure) -> None:
        for _, answer in self._asking.pop(what):
            if isinstance(outcome, Failure):
                answer.errback(outcome)
            else:
                answer.callback(outcome)
