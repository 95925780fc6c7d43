"""The one way off the reactor thread: blocking storage calls run in a bounded pool of threads.

No call here may wait for a peer, only for the disk, so the pool's bound is a bound on disk work
and never on the number of transfers.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from httpnas.storage.errors import (
    NoSuchFile,
    NotPermitted,
    OutOfDescriptors,
    StorageAway,
    StorageBroken,
    StorageFull,
    StorageGone,
    translate,
)

#: Errors that are no client's doing, unlike more special ones (a name that others hold locked, more
#: announced than there is room for).
_FAULTS = {
    StorageAway,
    StorageGone,
    OutOfDescriptors,
    StorageBroken,
    StorageFull,
    NotPermitted,
}
#: Those of them that make one doubt the storage.
_FAILURES = {StorageAway, StorageGone, StorageBroken}
#: How many of those in how many seconds are too many.
_REPEATED = 3
_LATELY = 30.0
#: Seconds after which somebody who only asks how the storage is does not wait any longer.
PATIENCE = 5.0
#: Threads that may wait for the disk at the same time.
THREADS = 16
#: Threads for those who only ask: all others may be at work, and their disk well.
_LOOKERS = 2
#: Seconds that a tick of :class:`AwakeTime` may count.
_TICK = 3.0
#: Small steps of a long job that are done in one call.
_BATCH = 256

P = ParamSpec("P")
T = TypeVar("T")


class AwakeTime:
    """Seconds that this process was awake: not those for which it or its machine stood still.

    What was waited for in those has had no chance to come.
    """

    def __init__(self) -> None:
        self._ticked = time.monotonic()
        self._seconds = 0.0

    def tick(self) -> None:
        """Move on; called about once a second."""
        now = time.monotonic()
        self._seconds += min(now - self._ticked, _TICK)
        self._ticked = now

    def seconds(self) -> float:
        """Return the time, as of the latest tick."""
        return self._seconds


class Disk:
    """A pool of threads for blocking calls.

    :param reactor: where results are delivered, and what tells the time.
    :param threads: how many calls may run at the same time.
    :ivar awake: what tells how long calls take.
    :ivar faults: how often which error came from the storage that is no client's doing.
    :ivar failed: how many calls have failed for want of a good storage.
    :ivar verify: is called, in a pool thread, when a call has failed as it also may when the
        whole storage is gone; it raises what to say then.
    """

    _log = Logger()

    def __init__(self, reactor: Any, threads: int = THREADS) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name="httpnas-disk")
        self._lookers = ThreadPool(0, _LOOKERS, name="httpnas-looks")
        self._stopping = False
        self.awake = AwakeTime()
        self.faults: Counter[str] = Counter()
        self.verify: Callable[[], None] = lambda: None
        self.failed = 0
        self._failures: deque[float] = deque(maxlen=_REPEATED)
        self._threads = threads
        self._serial = count()
        #: When each call that has not ended was begun, the oldest first.
        self._pending: dict[int, float] = {}
        self._moved = 0.0

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()
        self._lookers.start()

    def stop(self) -> None:
        """Wait for the calls that run, and take no more."""
        self._stopping = True
        self._pool.stop()
        self._lookers.stop()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in a pool thread; the result fires on the reactor thread."""
        return self._run(self._pool, lambda: call(*args, **kwargs))

    def look(self, call: Callable[[], T]) -> Deferred[T]:
        """Run *call*, which only asks how the disk is, in a thread that is kept for that."""
        return self._run(self._lookers, call)

    def _run(self, pool: ThreadPool, call: Callable[[], T]) -> Deferred[T]:
        number, now = next(self._serial), self.awake.seconds()
        if not self._pending:
            self._moved = now
        self._pending[number] = now

        def verified() -> T:
            try:
                return call()
            except (OSError, NoSuchFile, StorageAway, StorageBroken):
                self.verify()
                raise

        done: Deferred[T] = deferToThreadPool(self._reactor, pool, verified)
        return done.addBoth(self._ended, number)

    def _ended(self, result: T | Failure, number: int) -> T | Failure:
        del self._pending[number]
        self._moved = self.awake.seconds()
        if isinstance(result, Failure) and result.value is not None:
            self._note(result.value)
        return result

    def _note(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            error = translate(error)
        if type(error) in _FAULTS:
            self.faults[type(error).__name__] += 1
        if type(error) in _FAILURES:
            self.failed += 1
            self._failures.append(self._reactor.seconds())
            self._log.error("the storage failed: {error}", error=error)

    @property
    def running(self) -> int:
        """How many calls run."""
        return min(len(self._pending), self._threads)

    @property
    def queued(self) -> int:
        """How many calls wait for a thread."""
        return len(self._pending) - self.running

    @property
    def quiet(self) -> float:
        """For how many seconds no call has ended although there are some."""
        return self.awake.seconds() - self._moved if self._pending else 0.0

    @property
    def oldest(self) -> float:
        """How many seconds ago the first call was begun of those that have not ended."""
        now = self.awake.seconds()
        return now - next(iter(self._pending.values()), now)

    @property
    def failing(self) -> bool:
        """Whether calls have failed repeatedly of late, for want of a good storage."""
        since = self._reactor.seconds() - _LATELY
        return len(self._failures) == _REPEATED and self._failures[0] > since

    def forget_failures(self) -> None:
        """Take the storage for a good one again; from any thread."""
        self._reactor.callFromThread(self._failures.clear)

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
        self._since: float | None = None

    @property
    def age(self) -> float:
        """For how many seconds the call has been running; 0 while it does not."""
        return 0.0 if self._since is None else self._disk.awake.seconds() - self._since

    async def ask(self) -> T:
        """Return the result.

        :raises StorageAway: when it does not come within :data:`PATIENCE`.
        """
        asking = Deferred[T]()
        self._asking.append(asking)
        if self._since is None:
            self._since = self._disk.awake.seconds()
            self._disk.look(self._call).addBoth(self._tell)
        try:
            return await asking.addTimeout(PATIENCE, self._clock)
        except TimeoutError as error:
            self._asking.remove(asking)
            raise StorageAway("it does not answer") from error

    def _tell(self, result: Any) -> None:
        self._since = None
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
