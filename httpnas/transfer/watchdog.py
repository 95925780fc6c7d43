"""Finding out whether the storage answers, and opening it again when it was gone and came back."""

from __future__ import annotations

from math import inf

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from httpnas.storage.errors import StorageGone
from httpnas.storage.store import Storage
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk

#: Seconds that a call of the disk may take before the storage is probed.
_SUSPECT = 2.0
#: Seconds from one probe of a doubtful storage to the next, at least.
_PAUSE = 2.0
#: Seconds that a request may wait once no call of the disk has come back for too long. This is
#: longer than a probe takes to time out, so that a handler that waits for one answers by itself.
GRACE = 6.0
#: Seconds that a call may take on a disk that is well: committing a staged append of 100 GB does.
LONGEST = 900.0


class Watchdog:
    """Watches a storage whose disk may hang or fail, or may be another one by now.

    A disk hangs when a probe of it does not come back. Then requests that wait for it are given up
    after a while. When no call at all has come back for that long, new requests are refused.

    :param patience: seconds that requests wait for a disk that hangs.
    :ivar storage: the storage that is to be used from now on.
    :ivar probe: finds out whether it can be written to.
    :ivar space: finds out how much space and how many files are left.
    """

    _log = Logger()

    def __init__(self, disk: Disk, storage: Storage, patience: float) -> None:
        self.storage = storage
        self._disk = disk
        self._patience = patience
        self._probed_at = -inf
        self._failed_then = 0
        self.probe = disk.shared(self._probe)
        self.space = disk.shared(self._space)

    @property
    def away(self) -> bool:
        """Whether no call of the disk has come back for too long."""
        return self._disk.quiet > self._patience

    @property
    def hang_timeout(self) -> float:
        """For how many seconds a request may wait now without a byte being moved for it."""
        if self.away:
            return GRACE
        if self.probe.age > self._patience:
            return self._patience
        return LONGEST if self._disk.oldest > LONGEST else inf

    @property
    def now(self) -> float:
        """The time by which that is measured, in seconds."""
        return self._disk.awake.seconds()

    def tick(self) -> None:
        """Let the time go on, and probe a doubtful storage; called about once a second."""
        self._disk.awake.tick()
        failed = self._disk.failed > self._failed_then
        if (self._disk.oldest > _SUSPECT or failed) and self.now - self._probed_at > _PAUSE:
            self._probed_at, self._failed_then = self.now, self._disk.failed
            Deferred.fromCoroutine(self.probe.ask()).addErrback(lambda failure: None)

    def verify(self) -> None:
        """See whether what has just failed may have failed because the volume is gone.

        :raises StorageGone: when it is.
        """
        self.storage.volume.verify()

    def _space(self) -> Space:
        return self.storage.volume.space()

    def _probe(self) -> None:
        try:
            self.storage.volume.probe()
        except StorageGone:
            self.storage = self.storage.reopened()
            self._disk.forget_failures()
            self._log.warn("the storage was gone, and has been opened anew")
