"""The one way off the reactor thread: blocking storage calls run in a bounded pool of threads.

No call here may wait for a peer, only for the disk, so the pool's bound is a bound on disk work
and never on the number of transfers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from httpnas.storage.errors import NotPermitted, StorageAway, StorageBroken, StorageFull

_FAULTS = (StorageAway, StorageBroken, StorageFull, NotPermitted, OSError)
#: Threads that may wait for the disk at the same time.
THREADS = 16
#: Small steps of a long job that are done in one call.
_BATCH = 256

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """A pool of threads for blocking calls.

    :param reactor: where results are delivered, and what tells the time.
    :param threads: how many calls may run at the same time.
    :ivar faults: how often which error came from the storage that is no client's doing.
    :ivar last_fault: when the latest of them came, by the reactor's clock; None if none has.
    """

    _log = Logger()

    def __init__(self, reactor: Any, threads: int = THREADS) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name="httpnas-disk")
        self._stopping = False
        self.faults: Counter[str] = Counter()
        self.last_fault: float | None = None

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the calls that run, and take no more."""
        self._stopping = True
        self._pool.stop()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in a pool thread; the result fires on the reactor thread."""
        done: Deferred[T] = deferToThreadPool(self._reactor, self._pool, call, *args, **kwargs)
        return done.addErrback(self._note_fault)

    def _note_fault(self, failure: Failure) -> Failure:
        fault = failure.check(*_FAULTS)
        if fault is not None:
            self.faults[fault.__name__] += 1
            self.last_fault = self._reactor.seconds()
        return failure

    def chore(self, steps: Iterator[None]) -> Deferred[None]:
        """Run *steps* to their end in the background, some at a time, so that nobody waits long.

        What they raise is logged, and a stop of the pool ends them.
        """

        async def work() -> None:
            while not self._stopping and await self.run(_advance, steps):
                pass

        done = Deferred.fromCoroutine(work())
        return done.addErrback(lambda failure: self._log.failure("a chore ended early", failure))


def _advance(steps: Iterator[None]) -> bool:
    """Take some of *steps*, and tell whether there may be more."""
    for _ in range(_BATCH):
        try:
            next(steps)
        except StopIteration:
            return False
    return True
