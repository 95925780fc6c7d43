"""The handlers of a site: each runs to its end, whatever becomes of its request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure


class Awaited:
    """A condition that is waited for, of something that tells when it has changed."""

    def __init__(self) -> None:
        self._condition: Callable[[], bool] = lambda: False
        self._met = Deferred[None]()

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Return what fires when *condition* holds; only the latest is waited for."""
        self._condition, self._met = condition, Deferred[None]()
        met = self._met
        self.changed()
        return met

    def changed(self) -> None:
        """Check the condition, which may hold by now."""
        if not self._met.called and self._condition():
            self._met.callback(None)


class Handlers:
    """The handlers that run.

    :param is_expected: tells of an error whether it needs no log entry when nobody waits for the
        handler that raised it.
    :param changed: is called whenever one has ended.
    :ivar running: how many they are.
    """

    _log = Logger()

    def __init__(
        self, is_expected: Callable[[BaseException], bool], changed: Callable[[], None]
    ) -> None:
        self.running = 0
        self._is_expected = is_expected
        self._changed = changed

    def run(
        self,
        handler: Coroutine[Deferred[Any], Any, Any],
        then: Callable[[], object] = lambda: None,
    ) -> Deferred[Any]:
        """Run *handler* to its end.

        :param then: is called at its end, before the result is there.
        :return: fires with its result. Cancelling or firing it before stops waiting for the
            result; the handler runs on.
        """
        result = Deferred[Any](lambda _: None)
        self.running += 1
        running = Deferred.fromCoroutine(handler)

        def ended(outcome: object) -> None:
            self.running -= 1
            then()
            self._changed()
            if not result.called:
                result.callback(outcome)
            elif isinstance(outcome, Failure):
                self._log_unless_expected(outcome)

        running.addBoth(ended)
        return result

    def _log_unless_expected(self, failure: Failure) -> None:
        if failure.value is None or not self._is_expected(failure.value):
            self._log.failure("a handler failed when nobody waited for it any more", failure)
