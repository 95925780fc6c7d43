"""What must not take longer than its input is long, whatever somebody sends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Bytes of input: what takes their number squared does not end in :data:`PATIENCE`.
LENGTH = 1 << 18
#: Seconds of computing after which the test gives up; ten milliseconds are usual.
PATIENCE = 8.0


@contextmanager
def must_end() -> Iterator[None]:
    """Give up on the block when it computes for too long.

    Seconds in which others have the processor do not count.
    """

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("it takes much more time than its input is long")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
