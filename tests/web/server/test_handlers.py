"""Handlers run to their end, and what they raise is logged when nobody else would hear of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from httpnas.web.server.handlers import Handlers
from tests import harness


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    with harness.logged() as events:
        yield events


@pytest.mark.parametrize(
    ("error", "is_waited_for", "is_logged"),
    [
        (OSError("unexpected"), False, True),
        (OSError("unexpected"), True, False),  # whoever waits logs it
        (KeyError("expected"), False, False),
    ],
)
def test_an_error_that_nobody_waits_for_is_logged_unless_it_is_expected(
    logged: list[LogEvent], error: Exception, is_waited_for: bool, is_logged: bool
) -> None:
    ended: list[int] = []
    handlers = Handlers(lambda e: isinstance(e, KeyError), lambda: ended.append(handlers.running))
    step = Deferred[None]()

    async def handler() -> None:
        await step

    result = handlers.run(handler())
    result.addErrback(lambda failure: None)
    if not is_waited_for:
        result.cancel()
    assert handlers.running == 1
    step.errback(error)
    assert ended == [0]
    assert [event["log_failure"].value for event in logged] == [error] * is_logged
