"""Whether the storage answers, and opening it anew when it has gone and come back."""

from __future__ import annotations

from math import inf

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from httpnas.storage.errors import StorageGone
from httpnas.storage.store import Storage
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk

#: Seconds that a call of the disk may take until one is made to see whether any comes back.
_SUSPECT = 2.0
#: Seconds from one look at a doubtful storage to the next.
_PAUSE = 2.0
#: Seconds that who waits is left to those who tell by themselves that nothing answers.
GRACE = 6.0
#: Seconds that a call of a good disk may take: copying a staged append of a hundred GB does.
LONGEST = 900.0


class Watchdog:
    """Looks after a storage whose disk may hang, fail, or be another one by now.

    A disk hangs when a look at it does not come back. What waits for it then is given up after a
    while, and when nothing at all has come back for that long, who comes is told to come again.

    :param patience: seconds that a disk is waited for that hangs.
    :ivar storage: the storage as it is to be used from now on.
    :ivar probe: looks whether it can be written to.
    :ivar space: finds out how much there is of what files take.
    """

    _log = Logger()

    def __init__(self, disk: Disk, storage: Storage, patience: float) -> None:
        self.storage = storage
        self._disk = disk
        self._patience = patience
        self._asked = -inf
        self._failed = 0
        self.probe = disk.shared(self._probe)
        self.space = disk.shared(self._space)

    @property
    def away(self) -> bool:
        """Whether no call of the disk has come back for too long."""
        return self._disk.quiet > self._patience

    @property
    def patience(self) -> float:
        """For how many seconds a request may wait without anything being moved for it."""
        if self.away:
            return GRACE
        if self.probe.age > self._patience:
            return self._patience
        return LONGEST if self._disk.oldest > LONGEST else inf

    @property
    def now(self) -> float:
        """The time by which patience is measured, in seconds."""
        return self._disk.awake.seconds()

    def check(self) -> None:
        """Look at the storage when it is in doubt; called about once a second."""
        self._disk.awake.tick()
        failed = self._disk.failed > self._failed
        if (self._disk.oldest > _SUSPECT or failed) and self.now - self._asked > _PAUSE:
            self._asked, self._failed = self.now, self._disk.failed
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
