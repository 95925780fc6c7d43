"""Clients of daemons on two hosts want the same at the same time: each gets what it was told."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from tests.crash.herd import PATIENCE, Wire, herd
from tests.crash.test_random_kills import parse, record

pytestmark = pytest.mark.cephfs

ROUNDS = 25
#: Clients of each daemon that append, and how often each does.
CLIENTS = 3
APPENDS = 15

Answer = tuple[int, dict[str, str], bytes]
T = TypeVar("T")


@pytest.fixture
def wires(roots: list[Path], tmp_path: Path) -> Iterator[list[Wire]]:
    """A connection to each of four daemons, two on each host."""
    with herd(roots, tmp_path / "logs", random.Random(3), full=1.0) as daemons:
        opened = [Wire(daemon.port) for daemon in daemons.serving]
        yield opened
        for wire in opened:
            wire.close()
        daemons.close()
        assert not daemons.complaints, daemons.complaints[0]


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make all *calls*, each in a thread, from one moment on; return what they returned."""
    gate = threading.Barrier(len(calls), timeout=PATIENCE)

    def run(call: Callable[[], T]) -> T:
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def store(wire: Wire, name: str, content: bytes) -> str:
    status, headers, _ = wire.ask("POST", f"/file/{name}", content)
    assert status == 200
    return headers["etag"]


def move(wire: Wire, name: str, target: str, **fields: str) -> Answer:
    document = f'{{"path": "{target}"}}'.encode()
    fields["Content_Type"] = "application/json"
    return wire.ask("PUT", f"/file/{name}", document, pieces=None, **fields)


def contents(wires: Sequence[Wire], name: str) -> bytes | None:
    """Return what *name* holds, or None when it is not there; all daemons say the same."""
    answers = [wire.ask("GET", f"/file/{name}") for wire in wires]
    told = {content if status == 200 else None for status, _, content in answers}
    assert len(told) == 1, f"{name}: {[status for status, *_ in answers]}"
    return told.pop()


def winner(answers: Sequence[Answer], refusal: int) -> int:
    """Return which of *answers* is a 200: only one is, and all others are refused."""
    statuses = [status for status, *_ in answers]
    assert sorted(statuses) == sorted([200] + [refusal] * (len(answers) - 1))
    return statuses.index(200)


def test_what_all_append_is_there_once_and_whole(wires: list[Wire]) -> None:
    store(wires[0], "log", b"")
    ends: dict[str, int] = {}

    def append(number: int) -> None:
        wire = Wire(wires[number % len(wires)].port)
        for serial in range(APPENDS):
            identity = f"{number}-{serial}"
            # One in five is staged in a temporary.
            length = (1 << 20) + 5000 if (number + serial) % 5 == 0 else 300 * serial
            status, headers, _ = wire.ask("PUT", "/file/log", record(identity, length))
            assert status == 200
            ends[identity] = int(headers["upload-offset"])
        wire.close()

    numbers = range(CLIENTS * len(wires))
    at_once([partial(append, number) for number in numbers])
    content = contents(wires, "log")
    assert content is not None
    found = parse(content)
    assert dict(found) == ends
    assert len(found) == len(ends) == len(numbers) * APPENDS
    for number in numbers:
        own = [identity for identity, _ in found if identity.startswith(f"{number}-")]
        assert own == [f"{number}-{serial}" for serial in range(APPENDS)]


def test_one_of_all_creates_a_name(wires: list[Wire]) -> None:
    for turn in range(ROUNDS):
        name = f"folder-{turn % 5}/new-{turn}"
        bodies = [b"%d %d" % (turn, number) for number in range(len(wires))]
        answers = at_once(
            [
                partial(wire.ask, "POST", f"/file/{name}", body, If_None_Match="*")
                for wire, body in zip(wires, bodies, strict=True)
            ]
        )
        assert contents(wires, name) == bodies[winner(answers, 412)]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_one_of_all_changes_a_version(wires: list[Wire], method: str) -> None:
    tag, content = store(wires[0], "f", b"begun"), b"begun"
    for turn in range(ROUNDS):
        bodies = [b"%d %d," % (turn, number) for number in range(len(wires))]
        answers = at_once(
            [
                partial(wire.ask, method, "/file/f", body, If_Match=tag)
                for wire, body in zip(wires, bodies, strict=True)
            ]
        )
        won = winner(answers, 412)
        content = bodies[won] if method == "POST" else content + bodies[won]
        tag = answers[won][1]["etag"]
        assert contents(wires, "f") == content


@pytest.mark.parametrize("length", [10, (1 << 20) + 10])
def test_what_all_append_with_one_key_is_there_once(wires: list[Wire], length: int) -> None:
    store(wires[0], "log", b"")
    content = b""
    for turn in range(ROUNDS if length < 100 else 5):
        body = b"%d," % turn + b"." * length
        content += body
        answers = at_once(
            [
                partial(wire.ask, "PUT", "/file/log", body, Idempotency_Key=f'"{turn}"')
                for wire in wires
            ]
        )
        told = {(status, headers["upload-offset"]) for status, headers, _ in answers}
        assert told == {(200, str(len(content)))}
        assert contents(wires, "log") == content


def test_one_of_all_moves_a_file_away(wires: list[Wire]) -> None:
    for turn in range(ROUNDS):
        store(wires[turn % len(wires)], "source", b"%d" % turn)
        targets = [f"to-{number}/{turn}" for number in range(len(wires))]
        answers = at_once(
            [
                partial(move, wire, "source", target)
                for wire, target in zip(wires, targets, strict=True)
            ]
        )
        won = winner(answers, 404)
        found = [contents(wires, target) for target in targets]
        assert found == [b"%d" % turn if number == won else None for number in range(len(wires))]
        assert contents(wires, "source") is None


def test_one_of_all_moves_its_file_to_a_new_name(wires: list[Wire]) -> None:
    for turn in range(ROUNDS):
        sources = [f"from-{number}" for number in range(len(wires))]
        for wire, source in zip(wires, sources, strict=True):
            store(wire, source, source.encode())
        answers = at_once(
            [
                partial(move, wire, source, f"target-{turn}", If_None_Match="*")
                for wire, source in zip(wires, sources, strict=True)
            ]
        )
        won = winner(answers, 412)
        assert contents(wires, f"target-{turn}") == sources[won].encode()
        left = [contents(wires, source) for source in sources]
        assert left == [None if n == won else s.encode() for n, s in enumerate(sources)]


def test_a_file_that_all_move_to_and_fro_is_somewhere(wires: list[Wire]) -> None:
    """Folders are moved as well as files, and appends come in between."""
    content = b"begun"
    store(wires[0], "p/f", content)
    for turn in range(ROUNDS):
        body = b",%d" % turn
        *movers, appender = wires
        answers = at_once(
            [
                *(
                    partial(move, wire, *(["p", "q"] if number % 2 else ["q", "p"]))
                    for number, wire in enumerate(movers)
                ),
                partial(appender.ask, "PUT", "/file/p/f", body),
            ]
        )
        assert all(status in (200, 404) for status, *_ in answers)
        content += body if answers[-1][0] == 200 else b""
        found = [contents(wires, "p/f"), contents(wires, "q/f")]
        assert sorted(found, key=bool) == [None, content]
