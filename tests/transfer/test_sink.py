from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.transfer.budget import Budget
from httpnas.transfer.sink import HIGH_WATER, LITTLE_SLAB, LITTLE_WATER, SLAB, Sink


class HandDisk:
    """A disk whose calls run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, call, args))
        return done

    def complete(self) -> None:
        """Run the oldest call."""
        done, call, args = self.waiting.pop(0)
        try:
            result = call(*args)
        except Exception:
            done.errback(Failure())
        else:
            done.callback(result)


@implementer(IPushProducer)
class Producer:
    def __init__(self) -> None:
        self.events: list[str] = []

    def pauseProducing(self) -> None:
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.events.append("resume")

    def stopProducing(self) -> None:
        self.events.append("stop")


class Bench:
    """A sink between a hand-driven disk and a producer that only takes notes."""

    def __init__(self, memory: float = inf) -> None:
        self.disk = HandDisk()
        self.written = b""
        self.slabs: list[int] = []
        self.error: Exception | None = None
        self.producer = Producer()
        self.memory = Budget(memory)
        self.sink = Sink(self.disk, self._write, self.memory)  # type: ignore[arg-type]
        self.sink.registerProducer(self.producer, True)

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self.error is not None:
            raise self.error
        slab = b"".join(chunks)
        self.written += slab
        self.slabs.append(len(slab))

    def held(self) -> int:
        return self.sink._gathered_bytes + self.sink._writing_bytes


@pytest.fixture
def bench() -> Bench:
    return Bench()


def outcome(deferred: Deferred[Any]) -> list[Any]:
    """Return what *deferred* has fired with, as a list of one or, if it has not, of nothing."""
    fired: list[Any] = []
    deferred.addBoth(fired.append)
    return fired


HALF = bytes(SLAB // 2)


def test_little_is_not_written_before_the_end(bench: Bench) -> None:
    bench.sink.write(b"ab")
    bench.sink.write(b"c")
    assert bench.disk.waiting == []
    assert outcome(bench.sink.finish()) == [[b"abc"]]
    assert bench.disk.waiting == []


def test_nothing_at_all_is_nothing_left(bench: Bench) -> None:
    assert outcome(bench.sink.finish()) == [[]]


def test_a_slab_is_written_as_soon_as_there_is_one(bench: Bench) -> None:
    bench.sink.write(HALF)
    assert bench.disk.waiting == []
    bench.sink.write(HALF)
    assert len(bench.disk.waiting) == 1
    bench.disk.complete()
    assert bench.slabs == [SLAB]


def test_one_slab_is_written_at_a_time(bench: Bench) -> None:
    for _ in range(8):
        bench.sink.write(HALF)
        assert len(bench.disk.waiting) <= 1
    bench.disk.complete()
    assert len(bench.disk.waiting) == 1
    bench.disk.complete()
    assert bench.disk.waiting == []
    assert bench.slabs == [SLAB, 3 * SLAB]


@given(st.lists(st.tuples(st.integers(0, SLAB + SLAB // 2), st.integers(0, 2)), max_size=12))
def test_chunks_are_written_once_and_in_order_however_slow_the_disk(
    steps: list[tuple[int, int]],
) -> None:
    bench, sent = Bench(), b""
    for number, (size, completed) in enumerate(steps):
        chunk = bytes([number]) * size
        sent += chunk
        bench.sink.write(chunk)
        for _ in range(completed):
            if bench.disk.waiting:
                bench.disk.complete()
        paused = bench.producer.events[-1:] == ["pause"]
        assert paused == (bench.held() >= HIGH_WATER)
    rest = outcome(bench.sink.finish())
    while bench.disk.waiting:
        bench.disk.complete()
    assert bench.written + b"".join(rest[0]) == sent


def test_empty_chunks_do_nothing(bench: Bench) -> None:
    bench.sink.write(b"")
    bench.sink.write(b"a")
    bench.sink.write(b"")
    assert outcome(bench.sink.finish()) == [[b"a"]]


def test_at_high_water_the_producer_is_paused_once(bench: Bench) -> None:
    bench.sink.write(bytes(HIGH_WATER - 1))
    assert bench.producer.events == []
    bench.sink.write(b"x")
    assert bench.producer.events == ["pause"]
    bench.sink.write(b"overrun")
    assert bench.producer.events == ["pause"]


def test_below_high_water_the_producer_is_resumed(bench: Bench) -> None:
    bench.sink.write(bytes(SLAB))
    bench.sink.write(bytes(HIGH_WATER))
    bench.disk.complete()
    assert bench.producer.events == ["pause"], "what was gathered alone is too much"
    bench.disk.complete()
    assert bench.producer.events == ["pause", "resume"]
    bench.sink.write(bytes(HIGH_WATER))
    assert bench.producer.events == ["pause", "resume", "pause"]


def test_a_producer_that_was_not_paused_is_not_resumed(bench: Bench) -> None:
    bench.sink.write(bytes(SLAB))
    bench.disk.complete()
    assert bench.producer.events == []


def test_a_producer_that_has_ended_is_left_alone(bench: Bench) -> None:
    bench.sink.write(bytes(HIGH_WATER))
    bench.sink.unregisterProducer()
    bench.sink.write(bytes(HIGH_WATER))
    bench.disk.complete()
    bench.error = OSError("disk")
    bench.disk.complete()
    assert bench.producer.events == ["pause"]


def test_finish_waits_for_the_write_that_runs_and_starts_no_other(bench: Bench) -> None:
    bench.sink.write(bytes(SLAB))
    bench.sink.write(b"b" * SLAB)
    finished = outcome(bench.sink.finish())
    assert finished == []
    bench.disk.complete()
    assert finished == [[b"b" * SLAB]]
    assert bench.disk.waiting == []


def test_the_first_failure_stops_the_producer_and_is_reported(bench: Bench) -> None:
    bench.error = OSError("disk")
    bench.sink.write(bytes(SLAB))
    bench.sink.write(bytes(SLAB))
    bench.disk.complete()
    assert bench.producer.events == ["pause", "stop"]
    (failure,) = outcome(bench.sink.finish())
    assert failure.value is bench.error


def test_after_a_failure_nothing_is_held_or_written_any_more(bench: Bench) -> None:
    bench.error = OSError("disk")
    bench.sink.write(bytes(SLAB + 5))
    bench.sink.write(bytes(SLAB))
    bench.disk.complete()
    assert bench.held() == 0
    bench.error = None
    bench.sink.write(bytes(5 * SLAB))
    assert bench.disk.waiting == []
    assert bench.held() == 0


def test_a_failure_while_finish_waits_is_reported_by_it(bench: Bench) -> None:
    bench.sink.write(bytes(SLAB))
    finished = outcome(bench.sink.finish())
    bench.error = OSError("disk")
    bench.disk.complete()
    assert finished[0].value is bench.error


def test_abandon_waits_for_the_write_that_runs_and_drops_the_rest(bench: Bench) -> None:
    bench.sink.write(bytes(SLAB))
    bench.sink.write(bytes(2 * SLAB))
    abandoned = outcome(bench.sink.abandon())
    assert abandoned == []
    bench.disk.complete()
    assert abandoned == [None]
    assert bench.disk.waiting == []
    assert bench.held() == 0


def test_abandon_of_an_idle_sink_is_done_at_once(bench: Bench) -> None:
    bench.sink.write(b"x")
    assert outcome(bench.sink.abandon()) == [None]
    assert bench.held() == 0


def test_abandon_keeps_quiet_about_failures_before_and_meanwhile(bench: Bench) -> None:
    bench.error = OSError("disk")
    bench.sink.write(bytes(SLAB))
    abandoned = outcome(bench.sink.abandon())
    bench.disk.complete()
    assert abandoned == [None]
    assert outcome(bench.sink.abandon()) == [None]


def test_without_memory_for_more_a_stalled_client_holds_little() -> None:
    bench = Bench(memory=2 * HIGH_WATER - 1)
    for _ in range(SLAB // 8192 - 1):
        bench.sink.write(bytes(8192))
        assert bench.held() < LITTLE_WATER + 8192
        while bench.disk.waiting:
            bench.disk.complete()
    assert bench.held() < LITTLE_SLAB
    assert bench.memory.taken == 0


def test_without_memory_for_more_the_producer_is_paused_early_and_resumed() -> None:
    bench = Bench(memory=0)
    for _ in range(LITTLE_WATER // 8192):
        bench.sink.write(bytes(8192))
    assert bench.producer.events == ["pause"]
    bench.disk.complete()
    assert bench.producer.events == ["pause", "resume"]


def test_the_memory_that_a_sink_borrows_is_given_back_when_it_is_closed() -> None:
    bench = Bench(memory=2 * HIGH_WATER)
    bench.sink.write(bytes(LITTLE_SLAB - 1))
    assert bench.memory.taken == 0, "little costs nothing"
    bench.sink.write(bytes(SLAB))
    assert bench.memory.taken == HIGH_WATER
    bench.sink.close()
    bench.sink.close()
    assert bench.memory.taken == 0
