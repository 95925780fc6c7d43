"""Waiting in line without holding a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import DeferredLock


class Turns:
    """Lets one task at a time work on a name, in the order in which they came.

    The locks of the storage exclude others too, but waiting for one of them takes a thread. Many
    tasks that append to one file wait here instead.
    """

    def __init__(self) -> None:
        self._lines: dict[bytes, DeferredLock] = {}

    @asynccontextmanager
    async def take(self, name: bytes) -> AsyncIterator[None]:
        """Wait for a turn at *name*, which lasts as long as the block."""
        line = self._lines.setdefault(name, DeferredLock())
        await line.acquire()
        try:
            yield
        finally:
            line.release()
            if not line.locked:
                self._lines.pop(name, None)
