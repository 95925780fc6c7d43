"""The trace of transfers: what runs now, and how the latest ones ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from twisted.internet.interfaces import IReactorTime

from httpnas.files.job import Job, Outcome
from httpnas.files.points import Verb

#: What leaves a trace.
VERBS = (Verb.UPLOAD, Verb.APPEND, Verb.DOWNLOAD, Verb.MOVE, Verb.DELETE)
#: Ended transfers that are remembered.
KEPT = 1000


class Transfer:
    """What one job does to one file.

    :param clock: tells for how long.
    :param name: of the file or folder.
    :param moved: tells how many bytes of content have come or gone.
    :ivar to: the new name, of a move.
    """

    def __init__(
        self, clock: IReactorTime, job: Job, verb: Verb, name: bytes, moved: Callable[[], int]
    ) -> None:
        self.verb = verb
        self.to: bytes | None = None
        self._id = job.id
        self._client = job.client
        self._principal = job.principal and job.principal.name
        self._name = name
        self._since = time.time()
        self._clock: Callable[[], float] = clock.seconds
        self._began = self._clock()
        self._moved = moved
        self._end: dict[str, object] = {}

    def end(self, outcome: Outcome) -> None:
        """Note how it has ended, and keep nothing of the job."""
        now, moved = self._clock(), self._moved()
        self._clock, self._moved = (lambda: now), (lambda: moved)
        self._end = {"outcome": outcome.word}
        if outcome.status is not None:
            self._end["status"] = outcome.status

    def record(self) -> dict[str, Any]:
        """Return what :meth:`Trace.record` shows of it."""
        seconds, moved = self._clock() - self._began, self._moved()
        since = datetime.fromtimestamp(self._since, timezone.utc)
        return {
            "id": self._id,
            "client": self._client,
            **({} if self._principal is None else {"principal": self._principal}),
            "verb": self.verb.value,
            "name": _path(self._name),
            **({} if self.to is None else {"to": _path(self.to)}),
            "since": since.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "seconds": round(seconds, 3),
            "bytes": moved,
            "bytes_per_second": round(moved / seconds) if seconds > 0 else 0,
            **self._end,
        }


class Trace:
    """All transfers of one daemon that run, and the latest that have ended.

    :param clock: tells how long they take.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._running: dict[Transfer, None] = {}
        self._ended: deque[Transfer] = deque(maxlen=KEPT)

    @contextmanager
    def transfer(
        self, job: Job, verb: Verb, name: bytes, moved: Callable[[], int] = lambda: 0
    ) -> Iterator[Transfer]:
        """Keep a trace of what the block does; parameters as of :class:`Transfer`.

        How the block ends is the outcome: what has become true in the storage, whether the
        client hears of it or not.
        """
        transfer = Transfer(self._clock, job, verb, name, moved)
        self._running[transfer] = None
        try:
            yield transfer
        except BaseException as error:
            transfer.end(job.outcome(error))
            raise
        else:
            transfer.end(Outcome("done"))
        finally:
            del self._running[transfer]
            self._ended.appendleft(transfer)

    def running(self) -> Counter[Verb]:
        """Return how many transfers of which verb run."""
        return Counter(transfer.verb for transfer in self._running)

    def record(self, limit: int | None = None) -> dict[str, Any]:
        """Return what runs and what has ended, the latest first.

        :param limit: how many that ended, None for all that are remembered.
        :return: ``running`` and ``ended``.

        Each has ``id`` (of the request), ``client`` (address), ``principal`` (who asked, when that
        is asked), ``verb``, ``name`` (of a move also
        ``to``), ``since`` (ISO 8601), ``seconds``, ``bytes`` and ``bytes_per_second``. One that
        has ended also has ``outcome`` (``done``, ``refused``, ``client gone``, ``client too
        slow``, ``failed``) and, where it was answered with an error, ``status``.
        """
        return {
            "running": [transfer.record() for transfer in reversed(self._running)],
            "ended": [transfer.record() for transfer in islice(self._ended, limit)],
        }


def joined(records: Sequence[Mapping[str, Any]], limit: int | None) -> dict[str, Any]:
    """Return what :meth:`Trace.record` of several traces tells, as if they were one."""
    running, ended = (
        sorted(
            (transfer for record in records for transfer in record[what]),
            key=lambda transfer: str(transfer["since"]),
            reverse=True,
        )
        for what in ("running", "ended")
    )
    return {"running": running, "ended": ended[:limit]}


def _path(name: bytes) -> str:
    return "/" + name.decode()
