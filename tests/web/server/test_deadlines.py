"""Deadlines alone, with a clock of the test's own: what a real socket shows only by chance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from httpnas.web.server.deadlines import PROGRESS, Deadlines, Limits

STALL = 10.0
HANG_TIMEOUT = 5.0
IDLE = 60.0
LINGER = 3.0


class Connection:
    """Notes how it is ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.left = 0
        self.drains = False

    def unsent(self) -> int:
        return self.left

    def refuse(self, status: int, detail: str) -> None:
        self.ended.append(f"refused with {status}")

    def linger(self) -> None:
        self.ended.append("lingers")

    def close(self) -> None:
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")

    def cut_off_slow_client(self) -> None:
        self.ended.append("too slow")


class Request:
    """One whose body has come as a whole, and whose handler waits."""

    finished = False
    given_up = False

    def __init__(self) -> None:
        self.sentLength = 0
        self.body: Any = SimpleNamespace(
            received=0, ended=True, paused=False, is_unclaimed=False, length=0
        )

    def give_up(self) -> None:
        self.given_up = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def deadlines(clock: Clock, connection: Connection) -> Deadlines:
    class Backend:
        away = False
        hang_timeout = HANG_TIMEOUT

        @property
        def now(self) -> float:
            return float(clock.seconds())

        def tick(self) -> None:
            pass

    limits = Limits(stall=STALL, idle=IDLE, linger=LINGER)
    return Deadlines(connection, limits, Backend(), clock.seconds, lambda: connection.drains)


def let_pass(clock: Clock, deadlines: Deadlines, seconds: float) -> None:
    for _ in range(round(seconds)):
        clock.advance(1)
        deadlines.check(clock.seconds())


def test_a_client_that_empties_no_buffer_but_takes_enough_is_not_cut_off(
    clock: Clock, connection: Connection, deadlines: Deadlines
) -> None:
    request = Request()
    deadlines.enter_body(request)
    connection.left = 100 * PROGRESS
    deadlines.block()
    for _ in range(10):
        connection.left -= PROGRESS
        let_pass(clock, deadlines, STALL - 1)
    assert connection.ended == []
    connection.left -= PROGRESS - 1
    let_pass(clock, deadlines, STALL + 2)
    assert "too slow" in connection.ended


def test_room_in_the_socket_again_and_again_is_no_progress_by_itself(
    deadlines: Deadlines, connection: Connection, clock: Clock
) -> None:
    for _ in range(int(STALL) + 2):
        connection.left -= 10
        deadlines.block()
        clock.advance(1)
        deadlines.check(clock.seconds())
    assert connection.ended[0] == "too slow"


def test_a_request_is_not_given_up_while_its_client_takes_nothing(
    clock: Clock, connection: Connection, deadlines: Deadlines
) -> None:
    request = Request()
    deadlines.enter_body(request)
    deadlines.block()
    let_pass(clock, deadlines, STALL - 1)
    assert not request.given_up
    deadlines.unblock()
    let_pass(clock, deadlines, HANG_TIMEOUT)
    assert not request.given_up, "its time begins when the client is ready"
    let_pass(clock, deadlines, 2)
    assert request.given_up
    assert connection.ended == []


@pytest.mark.parametrize(("drains", "seconds"), [(False, IDLE), (True, LINGER)])
def test_a_connection_without_a_request_is_kept_for_less_time_while_the_site_drains(
    clock: Clock, connection: Connection, deadlines: Deadlines, drains: bool, seconds: float
) -> None:
    connection.drains = drains
    let_pass(clock, deadlines, seconds)
    assert connection.ended == []
    let_pass(clock, deadlines, 1)
    assert connection.ended == ["closed"]
