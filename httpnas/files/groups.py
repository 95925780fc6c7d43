"""Appends that wait for one file, and are committed together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from httpnas.storage.append import Append
from httpnas.storage.locks import Claim
from httpnas.storage.record import KEYS
from httpnas.storage.store import Storage
from httpnas.storage.version import Version


class Waiting:
    """An append that is to be committed, alone or together with others.

    :param prepare: stages the rest of its body, in a pool thread, once.
    :ivar outcome: the version that it has made, or why it was refused; None while it waits.
    """

    def __init__(self, append: Append, length: int, prepare: Callable[[], None]) -> None:
        self.append = append
        self.length = length
        self._prepare: Callable[[], None] | None = prepare
        self.outcome: Version | Exception | None = None

    def prepare(self) -> None:
        """Stage the rest of its body, if that was not done before."""
        if self._prepare is not None:
            prepare, self._prepare = self._prepare, None
            prepare()

    @property
    def result(self) -> Version:
        """The version that it has made.

        :raises Exception: what it was refused for.
        """
        assert self.outcome is not None, "it has had its turn"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Groups:
    """The appends that wait, by the name of their file, in the order in which they came."""

    def __init__(self) -> None:
        self._lines: dict[bytes, deque[Waiting]] = {}

    def add(self, name: bytes, waiting: Waiting) -> None:
        """Let *waiting* wait for the file *name*."""
        self._lines.setdefault(name, deque()).append(waiting)

    def take(self, name: bytes, most: int) -> list[Waiting]:
        """Return those that come next for the file *name*, of *most* bytes if they are several."""
        line = self._lines[name]
        group = [line.popleft()]
        length = group[0].length
        while line and len(group) < KEYS and length + line[0].length <= most:
            group.append(line.popleft())
            length += group[-1].length
        if not line:
            del self._lines[name]
        return group


def commit(storage: Storage, name: bytes, group: Sequence[Waiting], claim: Claim) -> None:
    """Give each of *group* its outcome; in a pool thread.

    :raises Locked: when it is to be called again, with the same claim.
    :raises StorageError: when none of them could be committed.
    """
    for waiting in group:
        try:
            waiting.prepare()
        except Exception as error:
            waiting.outcome = error
    ready = [waiting for waiting in group if waiting.outcome is None]
    if not ready:
        return
    outcomes = storage.commit(name, [waiting.append for waiting in ready], claim)
    for waiting, outcome in zip(ready, outcomes, strict=True):
        waiting.outcome = outcome
