"""The checker of histories, with histories made by hand."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tests.crash import history
from tests.crash.history import Call, TooHard, components, is_linearizable, shortest_bad, shown


def call(kind: str, start: float, end: float, status: int | None = 200, **more: Any) -> Call:
    return Call(kind, more.pop("name", "a"), start, end, status, **more)


def write(value: str, start: float, end: float, status: int | None = 200, **more: Any) -> Call:
    return call("write", start, end, status, value=value, **more)


def append(value: str, start: float, end: float, status: int | None = 200, **more: Any) -> Call:
    return call("append", start, end, status, value=value, **more)


def read(seen: str | None, start: float, end: float, **more: Any) -> Call:
    """A read of the values in *seen*, a letter each; None for 404."""
    if seen is None:
        return call("read", start, end, 404, **more)
    return call("read", start, end, seen=tuple(seen), **more)


def move(start: float, end: float, status: int | None = 200, **more: Any) -> Call:
    return call("move", start, end, status, target="b", **more)


def folder(kind: str, start: float, end: float, status: int | None = 200, **more: Any) -> Call:
    return call(f"{kind} folder", start, end, status, name="x", **more)


GOOD = {
    "nothing": [],
    "one after the other": [read(None, 0, 1), write("x", 2, 3), read("x", 4, 5)],
    "a read beside a write sees the old": [write("x", 0, 1), write("y", 2, 9), read("x", 3, 4)],
    "a read beside a write sees the new": [write("x", 0, 1), write("y", 2, 9), read("y", 3, 4)],
    "appends beside each other": [
        write("x", 0, 1),
        append("y", 2, 9, seen=3),
        append("z", 3, 8, seen=2),
        read("xzy", 10, 11),
    ],
    "no answer, and done": [write("x", 0, 1), append("y", 2, inf, None), read("xy", 3, 4)],
    "no answer, and not done": [write("x", 0, 1), append("y", 2, inf, None), read("x", 3, 4)],
    "no answer, and done much later": [
        write("x", 0, 1),
        append("y", 2, inf, None),
        read("x", 3, 4),
        write("z", 5, 6),
        read("zy", 7, 8),
    ],
    "create only, lost": [
        write("x", 0, 5, create=True),
        write("y", 0, 5, 412, create=True),
        read("x", 6, 7),
    ],
    "create only, won again after a delete": [
        write("x", 0, 1, create=True),
        call("delete", 2, 9),
        write("y", 3, 8, create=True),
    ],
    "a conditional write, lost": [
        write("x", 0, 1),
        write("y", 2, 5, expects=("x",)),
        write("z", 2, 5, 412, expects=("x",)),
    ],
    "a move beside a write of the new name": [
        write("x", 0, 1),
        move(2, 9),
        write("y", 3, 8, name="b"),
        read("x", 10, 11, name="b"),
        read(None, 10, 11),
    ],
    "a restored copy": [
        write("x", 0, 1),
        append("y", 2, 3),
        call("write", 4, 5, restored=("x",)),
        append("z", 6, 7, seen=2),
        read("xz", 8, 9),
    ],
    "a folder that is moved beside a write": [
        write("p", 0, 1, name="x/f"),
        folder("move", 2, 9, target="y"),
        write("q", 3, 8, name="x/g"),
        read("p", 10, 11, name="y/f"),
        read("q", 10, 11, name="x/g"),
    ],
    "a folder that is moved there and back": [
        write("p", 0, 2, name="x/f"),
        folder("move", 1, 4, target="y"),
        call("move folder", 3, 5, name="y", target="x"),
        read("p", 6, 7, name="x/f"),
    ],
    "a folder that is not moved onto an empty one": [folder("move", 0, 1, 412, target="y")],
    "a folder that is gone, with no answer": [
        write("p", 0, 1, name="x/f"),
        folder("delete", 2, inf, None),
        read(None, 3, 4, name="x/f"),
    ],
    "an offset, refused": [write("x", 0, 1), append("y", 2, 3, 409, offset=5, seen=1)],
}

BAD = {
    "a lost update": [write("x", 0, 1), append("y", 2, 3), read("x", 4, 5)],
    "a lost append beside another": [
        write("x", 0, 1),
        append("y", 2, 9),
        append("z", 2, 9),
        read("xz", 10, 11),
    ],
    "an append behind a stale length": [
        write("x", 0, 1),
        append("y", 2, 9, seen=2),
        append("z", 2, 9, seen=2),
    ],
    "a stale read": [write("x", 0, 1), write("y", 2, 3), read("x", 4, 5)],
    "a read that goes back": [
        write("x", 0, 1),
        write("y", 2, 9),
        read("y", 3, 4),
        read("x", 5, 6),
    ],
    "a torn append": [write("x", 0, 1), append("y", 2, 9), read("x?", 3, 4)],
    "a torn append without an answer": [
        write("x", 0, 1),
        append("y", 2, inf, None),
        read("x?", 3, 4),
    ],
    "a double append": [write("x", 0, 1), append("y", 2, 3), read("xyy", 4, 5)],
    "an append done before it was sent": [
        write("x", 0, 1),
        read("xy", 2, 3),
        append("y", 4, inf, None),
    ],
    "create only, won twice": [write("x", 0, 5, create=True), write("y", 0, 5, create=True)],
    "a conditional write, won twice": [
        write("x", 0, 1),
        write("y", 2, 5, expects=("x",)),
        write("z", 2, 5, expects=("x",)),
    ],
    "a conditional write, refused without reason": [
        write("x", 0, 1),
        write("y", 2, 3, 412, expects=("x",)),
    ],
    "a file lost in a move": [write("x", 0, 1), move(2, 3), read(None, 4, 5, name="b")],
    "a file under two names": [
        write("x", 0, 1),
        move(2, inf, None),
        read("x", 3, 4, name="b"),
        read("x", 5, 6),
    ],
    "a deleted file that comes back": [write("x", 0, 1), call("delete", 2, 3), read("x", 4, 5)],
    "a file that stays where its folder was moved away": [
        write("p", 0, 1, name="x/f"),
        folder("move", 2, 3, target="y"),
        read("p", 4, 5, name="x/f"),
    ],
    "half of a folder moved": [
        write("p", 0, 1, name="x/f"),
        write("q", 0, 1, name="x/g"),
        folder("move", 2, inf, None, target="y"),
        read("p", 3, 4, name="y/f"),
        read(None, 5, 6, name="y/g"),
    ],
    "a folder missing that has a file": [
        write("p", 0, 1, name="x/f"),
        folder("delete", 2, 3, 404),
    ],
    "a folder moved onto one with a file": [
        write("p", 0, 1, name="y/f"),
        folder("move", 2, 3, target="y"),
    ],
    "an answer that never was": [write("x", 0, 1), call("delete", 2, 3, 404)],
}


@pytest.mark.parametrize("what", GOOD)
def test_a_good_history_is_explained(what: str) -> None:
    assert is_linearizable(GOOD[what])


@pytest.mark.parametrize("what", BAD)
def test_a_bad_history_is_not_explained(what: str) -> None:
    assert not is_linearizable(BAD[what])


@pytest.mark.parametrize("what", BAD)
def test_a_bad_piece_is_found_among_much_that_is_good(what: str) -> None:
    bad = BAD[what]
    before = [call("delete", -9, -8, 404), write("p", -7, -6), append("q", -7, -6, 404)]
    before += [read("p", -5, -4), call("delete", -3, -2)]
    after = [write("r", 20, 21), append("s", 22, 23), read("rs", 24, 25), read(None, 24, 25)]
    piece = shortest_bad([*before, *bad, *after])
    assert not is_linearizable(piece)
    # The delete before it may have to stay: without an answer it could come late, and explain.
    answered = [c for c in bad if c.status is not None]
    assert sum(c.status is not None for c in piece) <= len(answered) + 1
    assert max(c.start for c in piece) < 20
    assert len(shown(piece).splitlines()) == len(piece)


def test_many_calls_at_once_are_no_trouble() -> None:
    calls = [write("x", 0, 1)]
    calls += [append(f"{n}", 2 + n / 100, 3 + n / 100) for n in range(60)]
    calls += [append(f"lost {n}", 2, inf, None) for n in range(4)]
    kept = ("x", *(f"{n}" for n in range(60)))
    good = [*calls, call("read", 5, 6, seen=kept)]
    assert is_linearizable(good)


def test_too_hard_a_history_is_not_taken_for_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 100)
    calls = [write("x", 0, 1), *(append(f"{n}", 2, 3) for n in range(9)), read("x", 4, 5)]
    with pytest.raises(TooHard):
        is_linearizable(calls)


def test_names_that_a_move_joins_are_one_history() -> None:
    calls = [
        write("x", 0, 1),
        write("y", 0, 1, name="b"),
        write("z", 0, 1, name="c"),
        move(2, 3),
    ]
    assert sorted(len(part) for part in components(calls)) == [1, 3]
