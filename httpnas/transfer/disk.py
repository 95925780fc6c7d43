"""The one way off the reactor thread: blocking storage calls run in a bounded pool of threads.

No call here may wait for a peer, only for the disk. So the size of the pool bounds the work of the
disk, and never the number of transfers.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from httpnas.storage.errors import (
    NoSuchFile,
    NotFreed,
    NotPermitted,
    OutOfDescriptors,
    StorageAway,
    StorageBroken,
    StorageFull,
    StorageGone,
    translate,
)
from httpnas.transfer.budget import Budget

#: Errors that no client has caused. Their subclasses are not meant: a name that others hold locked
#: and a body larger than the space left are caused by clients.
_FAULTS = {
    StorageAway,
    StorageGone,
    OutOfDescriptors,
    StorageBroken,
    StorageFull,
    NotPermitted,
    NotFreed,
}
#: Those of them that raise doubt about the storage.
_FAILURES = {StorageAway, StorageGone, StorageBroken}
#: So many of those within so many seconds are too many.
_REPEATED = 3
_LATELY = 30.0
#: Seconds to wait for the result of a probe.
PROBE_TIMEOUT = 5.0
#: Threads that may wait for the disk at the same time.
THREADS = 16
#: Threads for what reads much: listings, digests and line counts. They never keep changes waiting.
SURVEYS = 4
#: Threads for probes alone: all others may be busy although the disk is well.
_PROBE_THREADS = 2
#: Seconds that a tick of :class:`AwakeTime` may count.
_TICK = 3.0
#: How many small steps of a long job are done in one call.
_BATCH = 256

P = ParamSpec("P")
T = TypeVar("T")


class AwakeTime:
    """Seconds that this process was awake, without those for which it or its machine stood still.

    A call of the disk could not end in those either.
    """

    def __init__(self) -> None:
        self._ticked = time.monotonic()
        self._seconds = 0.0

    def tick(self) -> None:
        """Let the time go on; called about once a second."""
        now = time.monotonic()
        self._seconds += min(now - self._ticked, _TICK)
        self._ticked = now

    def seconds(self) -> float:
        """Return the time, as of the latest tick."""
        return self._seconds


class Runs(Protocol):
    """Runs blocking calls in threads."""

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in a thread; its result or error comes on the reactor thread."""


class _Surveys:
    """The threads of a :class:`Disk` for what reads much."""

    def __init__(self, disk: Disk, pool: ThreadPool) -> None:
        self._disk = disk
        self.pool = pool

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in one of these threads; its result or error comes on the reactor thread."""
        return self._disk.run_in(self.pool, lambda: call(*args, **kwargs))


class Disk:
    """A pool of threads for blocking calls.

    :param reactor: delivers results, and tells the time.
    :param threads: how many calls may run at the same time.
    :param memory: bytes that may wait to be written.
    :ivar surveys: runs what reads much, in a few threads of its own.
    :ivar awake: measures how long calls take.
    :ivar faults: how often the storage has raised each error that no client has caused.
    :ivar failed: how many calls have failed because the storage did.
    :ivar verify: is called in a pool thread when a call has failed in a way that may mean that the
        whole storage is gone. It raises :exc:`StorageGone` if that is so.
    """

    _log = Logger()

    def __init__(self, reactor: Any, threads: int = THREADS, memory: Budget | None = None) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads, name="httpnas-disk")
        self._probes = ThreadPool(0, _PROBE_THREADS, name="httpnas-probes")
        self.surveys = _Surveys(self, ThreadPool(0, SURVEYS, name="httpnas-surveys"))
        self._in_pools: Counter[ThreadPool] = Counter()
        self._stopping = False
        self.memory = memory or Budget()
        self.awake = AwakeTime()
        self.faults: Counter[str] = Counter()
        self.verify: Callable[[], None] = lambda: None
        self.failed = 0
        self._failures: deque[float] = deque(maxlen=_REPEATED)
        self._serial = count()
        #: When each call that has not ended was begun, the oldest first.
        self._pending: dict[int, float] = {}
        self._moved = 0.0

    def start(self) -> None:
        """Begin to run calls."""
        self._pool.start()
        self.surveys.pool.start()
        self._probes.start()

    def stop(self) -> None:
        """Wait for the calls that run, and take no more."""
        self._stopping = True
        self._pool.stop()
        self.surveys.pool.stop()
        self._probes.stop()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run *call* in a pool thread; its result or error comes on the reactor thread."""
        return self.run_in(self._pool, lambda: call(*args, **kwargs))

    def probe(self, call: Callable[[], T]) -> Deferred[T]:
        """Run *call*, which only asks how the storage is, in a thread kept for such calls."""
        return self.run_in(self._probes, call)

    def nap(self, seconds: float) -> Deferred[None]:
        """Wait for some time without a thread."""
        return deferLater(self._reactor, seconds)

    def run_in(self, pool: ThreadPool, call: Callable[[], T]) -> Deferred[T]:
        """Run *call* in a thread of *pool*, which is one of this disk's."""
        number, now = next(self._serial), self.awake.seconds()
        if not self._pending:
            self._moved = now
        self._pending[number] = now
        self._in_pools[pool] += 1

        def verified() -> T:
            try:
                return call()
            except (OSError, NoSuchFile, StorageAway, StorageBroken):
                self.verify()
                raise

        done: Deferred[T] = deferToThreadPool(self._reactor, pool, verified)
        return done.addBoth(self._ended, number, pool)

    def _ended(self, result: T | Failure, number: int, pool: ThreadPool) -> T | Failure:
        del self._pending[number]
        self._in_pools[pool] -= 1
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
        """How many calls are running."""
        return sum(min(calls, pool.max) for pool, calls in self._in_pools.items())

    @property
    def queued(self) -> int:
        """How many calls wait for a thread."""
        return len(self._pending) - self.running

    @property
    def quiet(self) -> float:
        """For how many seconds no call has ended; 0 while there are none."""
        return self.awake.seconds() - self._moved if self._pending else 0.0

    @property
    def oldest(self) -> float:
        """For how many seconds the oldest call that has not ended has been waiting or running."""
        now = self.awake.seconds()
        return now - next(iter(self._pending.values()), now)

    @property
    def failing(self) -> bool:
        """Whether calls have failed repeatedly of late, because the storage did."""
        since = self._reactor.seconds() - _LATELY
        return len(self._failures) == _REPEATED and self._failures[0] > since

    def forget_failures(self) -> None:
        """Take the storage for a good one again. Safe in any thread."""
        self._reactor.callFromThread(self._failures.clear)

    def shared(self, call: Callable[[], T]) -> SharedCall[T]:
        """Return *call* as one that runs once at a time, however many ask for it."""
        return SharedCall(self, self._reactor, call)

    def chore(self, steps: Iterator[None]) -> Deferred[None]:
        """Run *steps* to their end in the background, a batch at a time.

        So they hold a thread only for a short while. Their errors are logged, and :meth:`stop` ends
        them.
        """

        async def work() -> None:
            while not self._stopping and await self.run(_advance, steps):
                pass

        done = Deferred.fromCoroutine(work())
        return done.addErrback(self._tell)

    def _tell(self, failure: Failure) -> None:
        if failure.check(NotFreed):
            self._log.warn("{error}; the next start tries again", error=failure.value)
        else:
            self._log.failure("a chore ended early", failure)


class SharedCall(Generic[T]):
    """A call whose result is shared by all who ask while it runs.

    So a disk that hangs holds one thread, and not one for each who asks.
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

        :raises StorageAway: when it does not come within :data:`PROBE_TIMEOUT` seconds.
        """
        asking = Deferred[T]()
        self._asking.append(asking)
        if self._since is None:
            self._since = self._disk.awake.seconds()
            self._disk.probe(self._call).addBoth(self._deliver)
        try:
            return await asking.addTimeout(PROBE_TIMEOUT, self._clock)
        except TimeoutError as error:
            self._asking.remove(asking)
            raise StorageAway("it does not answer") from error

    def _deliver(self, result: Any) -> None:
        self._since = None
        asking, self._asking = self._asking, []
        for each in asking:
            each.callback(result)


def _advance(steps: Iterator[None]) -> bool:
    """Do a batch of *steps*, and tell whether there may be more."""
    for _ in range(_BATCH):
        try:
            next(steps)
        except StopIteration:
            return False
    return True
