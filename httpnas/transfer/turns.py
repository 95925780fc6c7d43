"""Waiting in line without holding a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import Deferred


class Turns:
    """Lets one task at a time work on a name, in the order in which they came.

    The locks of the storage exclude others too, but waiting for one of them takes a thread. Many
    tasks that append to one file wait here instead.
    """

    def __init__(self) -> None:
        self._lines: dict[bytes, _Line] = {}

    @asynccontextmanager
    async def take(self, name: bytes) -> AsyncIterator[None]:
        """Wait for a turn at *name*, which lasts as long as the block."""
        line = self._lines.setdefault(name, _Line())
        await line.take()
        try:
            yield
        finally:
            line.give_back()
            if line.is_empty and self._lines.get(name) is line:
                del self._lines[name]


class _Line:
    """Those who wait for one name.

    A turn may end before its task has waited for anything else. Many of those in a row must not
    call each other: that would be deeper than Python's stack may be (sys.setrecursionlimit).
    """

    def __init__(self) -> None:
        self._has_turn = False
        self._waiting: deque[Deferred[None]] = deque()
        self._is_passing_on = False

    @property
    def is_empty(self) -> bool:
        return not self._has_turn and not self._waiting

    async def take(self) -> None:
        if self.is_empty:
            self._has_turn = True
        else:
            turn: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(turn)
            await turn

    def give_back(self) -> None:
        """End a turn, and begin the next ones, unless that is being done further up the stack."""
        self._has_turn = False
        if self._is_passing_on:
            return
        self._is_passing_on = True
        while self._waiting and not self._has_turn:
            self._has_turn = True
            self._waiting.popleft().callback(None)
        self._is_passing_on = False
