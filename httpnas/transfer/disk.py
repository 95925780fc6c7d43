"""The one way off the reactor thread: blocking storage calls run in a bounded pool of threads.

No call here may wait for a peer, only for the disk, so the pool's bound is a bound on disk work
and never on the number of transfers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from httpnas.storage.errors import (
    NotPermitted,
    OutOfDescriptors,
    StorageAway,
    StorageBroken,
    StorageFull,
    translate,
)

#: Errors that are no client's doing, unlike more special ones (a name that others hold locked, more
#: announced than there is room for).
_FAULTS = {StorageAway, OutOfDescriptors, StorageBroken, StorageFull, NotPermitted}
#: Those of them that make one doubt the storage.
_FAILURES = {StorageAway, StorageBroken}
#: How many of those in how many seconds are too many.
_REPEATED = 3
_LATELY = 30.0
#: Seconds after which somebody who only asks how the storage is does not wait any longer.
PATIENCE = 5.0
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
    """

    _log = Logger()

    def __init__(self, reactor: Any, threads: int = THREADS) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name="httpnas-disk")
        self._stopping = False
        self.faults: Counter[str] = Counter()
        self._failures: deque[float] = deque(maxlen=_REPEATED)
        self._threads = threads
        self._pending = 0

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the calls that run, and take no more."""
        self._stopping = True
        self._pool.stop()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in a pool thread; the result fires on the reactor thread."""
        self._pending += 1
        done: Deferred[T] = deferToThreadPool(self._reactor, self._pool, call, *args, **kwargs)
        return done.addBoth(self._ended)

    def _ended(self, result: T | Failure) -> T | Failure:
        self._pending -= 1
        if isinstance(result, Failure) and result.value is not None:
            self._note(result.value)
        return result

    def _note(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            error = translate(error)
        if type(error) in _FAULTS:
            self.faults[type(error).__name__] += 1
        if type(error) in _FAILURES:
            self._failures.append(self._reactor.seconds())
            self._log.error("the storage failed: {error}", error=error)

    @property
    def running(self) -> int:
        """How many calls run."""
        return min(self._pending, self._threads)

    @property
    def queued(self) -> int:
        """How many calls wait for a thread."""
        return self._pending - self.running

    @property
    def failing(self) -> bool:
        """Whether calls have failed repeatedly of late, for want of a good storage."""
        since = self._reactor.seconds() - _LATELY
        return len(self._failures) == _REPEATED and self._failures[0] > since

    def shared(self, call: Callable[[], T]) -> SharedCall[T]:
        """Return *call* as one that runs once at a time, however many ask for it."""
        return SharedCall(self, self._reactor, call)

    def chore(self, steps: Iterator[None]) -> Deferred[None]:
        """Run *steps* to their end in the background, some at a time, so that nobody waits long.

        What they raise is logged, and a stop of the pool ends them.
        """

        async def work() -> None:
            while not self._stopping and await self.run(_advance, steps):
                pass

        done = Deferred.fromCoroutine(work())
        return done.addErrback(lambda failure: self._log.failure("a chore ended early", failure))


class SharedCall(Generic[T]):
    """A call whose result is shared by all who ask while it runs.

    A disk that hangs holds one thread of it then, and not one for each who asks.
    """

    def __init__(self, disk: Disk, clock: Any, call: Callable[[], T]) -> None:
        self._disk = disk
        self._clock = clock
        self._call = call
        self._asking: list[Deferred[T]] = []
        self._running = False

    async def ask(self) -> T:
        """Return the result.

        :raises StorageAway: when it does not come within :data:`PATIENCE`.
        """
        asking = Deferred[T]()
        self._asking.append(asking)
        if not self._running:
            self._running = True
            self._disk.run(self._call).addBoth(self._tell)
        try:
            return await asking.addTimeout(PATIENCE, self._clock)
        except TimeoutError as error:
            self._asking.remove(asking)
            raise StorageAway("it does not answer") from error

    def _tell(self, result: Any) -> None:
        self._running = False
        asking, self._asking = self._asking, []
        for each in asking:
            each.callback(result)


def _advance(steps: Iterator[None]) -> bool:
    """Take some of *steps*, and tell whether there may be more."""
    for _ in range(_BATCH):
        try:
            next(steps)
        except StopIteration:
            return False
    return True
