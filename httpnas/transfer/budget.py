"""What all requests of one daemon share: bytes of memory, and descriptors."""

from __future__ import annotations

import ctypes
import os
import resource
from math import inf

#: Bytes that have to be given back before the system gets them.
_WORTH_IT = 16 << 20


class Budget:
    """An amount that is shared out until nothing is left.

    :param limit: how much there is.
    :ivar taken: how much of it is taken.
    """

    def __init__(self, limit: float = inf) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, amount: int, keep: float = 0) -> bool:
        """Take *amount*, and return whether that was there.

        :param keep: the part of the limit, from 0 to 1, that must be left then, for others.
        """
        if self.taken + amount > self.limit * (1 - keep):
            return False
        self.taken += amount
        return True

    def give_back(self, amount: int) -> None:
        """Give back *amount* of what was taken."""
        self.taken -= amount


class Memory(Budget):
    """The memory that requests share."""

    def __init__(self, limit: float = inf) -> None:
        super().__init__(limit)
        self._most = 0

    def take(self, amount: int, keep: float = 0) -> bool:
        """Take *amount*, as :meth:`Budget.take` does."""
        taken = super().take(amount, keep)
        self._most = max(self._most, self.taken)
        return taken

    def trim(self) -> None:
        """Let the system have what requests have given back (malloc_trim(3)); called now and then.

        The allocator keeps freed memory, and a daemon that had been busy once would never shrink.
        """
        if self._most - self.taken > _WORTH_IT:
            self._most = self.taken
            if hasattr(_C, "malloc_trim"):
                _C.malloc_trim(0)


_C = ctypes.CDLL(None)


def descriptors_left() -> float:
    """Return how many more descriptors this process may open (getrlimit(2)).

    The soft limit is raised to the hard one first: it is low for the sake of select(2), which is
    not used here.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = inf if hard == resource.RLIM_INFINITY else hard
    return limit - len(os.listdir("/proc/self/fd"))
