"""Who gets room in the daemon: what connections and requests cost, and who is turned away.

A connection has a *place*, a request *room*. Both cost memory and descriptors, and there is a limit
to each. When no place is left, the connection that has been without a request for the longest gives
its place up, whether it has sent nothing or a part of a head. If there is none, the new one gets no
place: it is kept for one request, which is answered only if it is about the daemon itself. So
operators, and orchestrators, see what goes on. Of too many such connections, the oldest is ended.
A connection beyond the *share* of its client gets no place either.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from httpnas.fields.clients import Clients


class Budget(Protocol):
    """An amount that is shared out."""

    def take(self, amount: int, keep: float = 0) -> bool:
        """Take *amount* if that is left, and the part *keep* of the limit beside it."""

    def give_back(self, amount: int) -> None:
        """Give back *amount* of what was taken."""


class Cost(NamedTuple):
    """What something may take up.

    :ivar memory: in bytes.
    :ivar descriptors: how many.
    """

    memory: int
    descriptors: int


#: A connection: its objects and buffers, and a short answer.
CONNECTION = Cost(32 << 10, 1)
#: A request beside its connection: what is read and not taken, and written and not sent; and the
#: file, its folder and two locks.
REQUEST = Cost(192 << 10, 4)
#: The part of everything that is left to connections, and that which long bodies leave as well, to
#: requests that are soon over.
KEEP, KEEP_OF_BODY = 1 / 8, 1 / 4
#: A body of more bytes than this, or of no length, is long.
LONG = 64 << 10
#: Connections without a place that are open at the same time.
EXTRA = 64


class Places:
    """Shares out memory and descriptors.

    :param memory: in bytes.
    :param descriptors: beside :data:`EXTRA` and those that the daemon has for itself.
    """

    def __init__(self, memory: Budget, descriptors: Budget) -> None:
        self._memory = memory
        self._descriptors = descriptors

    def take(self, cost: Cost, keep: float = 0) -> bool:
        """Take what *cost* says, and return whether that was left."""
        if not self._memory.take(cost.memory, keep):
            return False
        if self._descriptors.take(cost.descriptors, keep):
            return True
        self._memory.give_back(cost.memory)
        return False

    def give_back(self, cost: Cost) -> None:
        """Give back what *cost* says."""
        self._memory.give_back(cost.memory)
        self._descriptors.give_back(cost.descriptors)


class Share:
    """How many connections each client has, and may have.

    :param most: of each; 0 for any number.
    :param clients: tells which connections come from one client.
    """

    def __init__(self, most: int = 0, clients: Clients | None = None) -> None:
        self._most = most
        self._clients = clients or Clients()
        self._taken: Counter[bytes] = Counter()

    def take(self, host: str | None) -> bool:
        """Return whether the client at *host* may have one more, and count it then."""
        client = self._clients.of(host) if self._most else None
        if client is None:
            return True
        if self._taken[client] >= self._most:
            return False
        self._taken[client] += 1
        return True

    def give_back(self, host: str | None) -> None:
        """Note that the client at *host* has one less of those that were counted."""
        client = self._clients.of(host) if self._most else None
        if client is not None:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
