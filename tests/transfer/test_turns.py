"""One task at a time for each name, in the order in which they came."""

from __future__ import annotations

import sys

import pytest
from twisted.internet.defer import CancelledError, Deferred

from httpnas.transfer.turns import Turns


class Tasks:
    """Tasks that take a turn at a name.

    :ivar begun: their numbers, in the order in which their turns have begun.
    """

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[int] = []
        self._running: dict[bytes, int] = {}

    def start(self, number: int, name: bytes = b"f", until: Deferred[None] | None = None) -> None:
        self.last = Deferred.fromCoroutine(self._run(number, name, until))

    async def _run(self, number: int, name: bytes, until: Deferred[None] | None) -> None:
        async with self.turns.take(name):
            assert name not in self._running
            self._running[name] = number
            self.begun.append(number)
            try:
                if until is not None:
                    await until
            finally:
                del self._running[name]


def test_turns_come_in_order_and_names_do_not_wait_for_each_other() -> None:
    tasks, first, third = Tasks(), Deferred[None](), Deferred[None]()
    tasks.start(1, until=first)
    tasks.start(2)
    tasks.start(3, until=third)
    tasks.start(4)
    tasks.start(5, b"g")
    assert tasks.begun == [1, 5]
    first.callback(None)
    assert tasks.begun == [1, 5, 2, 3]
    tasks.start(6)
    third.callback(None)
    assert tasks.begun == [1, 5, 2, 3, 4, 6]
    assert not tasks.turns._lines, "nobody waits"


@pytest.mark.parametrize("count", [100, 5000])
def test_any_number_may_wait_for_turns_that_end_at_once(count: int) -> None:
    """As those do whose append was committed with that of another."""
    assert count < 1000 or count > sys.getrecursionlimit()
    tasks, first = Tasks(), Deferred[None]()
    tasks.start(0, until=first)
    for number in range(1, count):
        tasks.start(number)
    first.callback(None)
    assert tasks.begun == [*range(count)]
    assert not tasks.turns._lines


def test_a_turn_that_ends_with_an_error_is_passed_on() -> None:
    tasks, first = Tasks(), Deferred[None]()
    tasks.start(1, until=first)
    failed = tasks.last
    tasks.start(2)
    first.errback(ValueError())
    failures: list[object] = []
    failed.addErrback(lambda failure: failures.append(failure.value))
    assert len(failures) == 1
    assert tasks.begun == [1, 2]


def test_who_waits_no_longer_has_no_turn() -> None:
    tasks, first = Tasks(), Deferred[None]()
    tasks.start(1, until=first)
    tasks.start(2)
    given_up = tasks.last
    tasks.start(3)
    given_up.cancel()
    given_up.addErrback(lambda failure: failure.trap(CancelledError))
    first.callback(None)
    assert tasks.begun == [1, 3]


def test_who_comes_when_the_line_has_just_ended_waits_for_who_came_before() -> None:
    """A task that ends starts others, while the turn of the one before it is being ended."""
    turns, begun, hold = Turns(), list[str](), Deferred[None]()

    async def task(name: str, until: Deferred[None] | None = None) -> None:
        async with turns.take(b"f"):
            begun.append(name)
            if until is not None:
                await until

    async def starts_two() -> None:
        await task("second")
        Deferred.fromCoroutine(task("third", hold))

    first = Deferred[None]()
    Deferred.fromCoroutine(task("first", first))
    Deferred.fromCoroutine(starts_two())
    first.callback(None)
    Deferred.fromCoroutine(task("fourth"))
    assert begun == ["first", "second", "third"]
    hold.callback(None)
    assert begun == ["first", "second", "third", "fourth"]
