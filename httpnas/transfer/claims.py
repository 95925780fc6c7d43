"""Waiting for locks that others hold without holding a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from httpnas.storage.locks import Claim, Locked
from httpnas.transfer.disk import Disk

#: How often a second all who wait ask for their locks, at most. One who waits alone asks up to
#: fifty times, which says :meth:`httpnas.storage.locks.Claim.nap`.
_TRIES = 2000

T = TypeVar("T")


class Claims:
    """Runs calls that need locks, each again and again until it has them.

    :param disk: runs the calls, and tries to take the locks in between.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._waiting = 0

    async def run(self, claim: Claim, call: Callable[[Claim], T], refuse: Callable[[], None]) -> T:
        """Run *call* in pool threads until it is not raising :exc:`Locked`; return its result.

        :param claim: is given to *call*, and is closed in the end.
        :param refuse: raises when the result is no longer wanted.
        :raises Contended: when others hold a lock for too long.
        """
        try:
            while True:
                try:
                    return await self._disk.run(call, claim)
                except Locked:
                    await self._complete(claim, refuse)
        finally:
            if claim.is_open:
                await self._disk.run(claim.close)

    async def _complete(self, claim: Claim, refuse: Callable[[], None]) -> None:
        """Wait until *claim* has all its locks."""
        self._waiting += 1
        try:
            complete = False
            while not complete:
                await self._disk.nap(max(claim.nap(), self._waiting / _TRIES))
                refuse()
                complete = await self._disk.run(claim.advance)
        finally:
            self._waiting -= 1
