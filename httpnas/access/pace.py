"""How often each client may do something."""

from __future__ import annotations


class Pace:
    """Lets each client do something so many times at once, and then once in a while.

    It keeps one number for each client: when all that it has done would be done, if it did it once
    in a while from the start. That is the leaky bucket of ITU-T I.371, as a virtual schedule.

    :param at_once: how many times.
    :param every: seconds from then on.
    :param most: of how many clients it knows; who has done nothing for the longest is forgotten.
    """

    def __init__(self, at_once: int, every: float, most: int = 4096) -> None:
        self._ahead = (at_once - 1) * every
        self._every = every
        self._most = most
        self._done: dict[bytes, float] = {}

    def take(self, client: bytes, now: float) -> float:
        """Count that *client* does it.

        :param now: in seconds, by a clock that nobody sets.
        :return: 0, or for how many seconds it may not; then it is not counted.
        """
        done = max(self._done.pop(client, now), now)
        wait = done - now - self._ahead
        self._done[client] = done if wait > 0 else done + self._every
        if len(self._done) > self._most:
            del self._done[next(iter(self._done))]
        return max(wait, 0.0)

    def give_back(self, client: bytes) -> None:
        """Forget that *client* has done it once."""
        if client in self._done:
            self._done[client] -= self._every
