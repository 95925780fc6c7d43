"""How often each client may do something."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from httpnas.access.pace import Pace


def taken(pace: Pace, client: bytes, now: float, tries: int) -> int:
    return sum(not pace.take(client, now) for _ in range(tries))


def test_so_many_at_once_and_then_one_in_a_while() -> None:
    pace = Pace(3, 10.0)
    assert taken(pace, b"a", 0.0, 10) == 3
    assert pace.take(b"a", 4.0) == 6.0
    assert [taken(pace, b"a", now, 10) for now in (9.9, 10.0, 19.9, 20.0)] == [0, 1, 0, 1]
    assert taken(pace, b"a", 1000.0, 10) == 3, "all is forgotten after a while"


def test_others_are_counted_by_themselves() -> None:
    pace = Pace(3, 10.0)
    taken(pace, b"a", 0.0, 10)
    assert taken(pace, b"b", 0.0, 10) == 3
    pace.give_back(b"b")
    assert taken(pace, b"b", 0.0, 10) == 1
    assert taken(pace, b"a", 0.0, 10) == 0


def test_what_is_given_back_twice_gives_nothing_more_than_was_there() -> None:
    pace = Pace(3, 10.0)
    for _ in range(10):
        pace.give_back(b"a")
        pace.take(b"a", 0.0)
        pace.give_back(b"a")
        pace.give_back(b"a")
    assert taken(pace, b"a", 0.0, 10) == 3


def test_it_knows_a_bounded_number_of_clients_in_bounded_memory() -> None:
    pace = Pace(3, 10.0, most=1000)
    taken(pace, b"attacker", 0.0, 10)
    for number in range(20_000):
        pace.take(number.to_bytes(8, "big"), 0.0)
        if number % 500 == 0:
            assert pace.take(b"attacker", 0.0), "who is at it is not the oldest"
    assert len(pace._done) == 1000
    size = sys.getsizeof(pace._done) + sum(map(sys.getsizeof, [*pace._done, *pace._done.values()]))
    assert size < 256 * 1000


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 5))
def test_nobody_does_more_than_the_pace_in_any_time(steps: list[float], at_once: int) -> None:
    pace, now, times = Pace(at_once, 10.0), 0.0, []
    for step in steps:
        now += step
        if not pace.take(b"a", now):
            times.append(now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = at_once + (times[last] - times[first]) / 10.0
            assert last - first + 1 <= allowed + 1e-6
