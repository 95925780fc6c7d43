"""The wall clock is set while the daemon works: nothing is late, and nothing is cut off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, Twistd, connect, receive_all, receive_answer, twistd, wait_until
from tests.private import runs_of

#: Run by the interpreter before anything else: makes the wall clock differ by what a file says.
SET_CLOCK = """
import time

real = time.time
time.time = lambda: real() + float(open({path!r}).read())
"""
UPLOAD = b"POST /file/f HTTP/1.1\r\nHost: nas\r\nContent-Length: 10\r\n\r\n"

Set = Callable[[int], None]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Twistd, Set]]:
    difference = tmp_path / "difference"

    def set_clock(seconds: int) -> None:
        new = tmp_path / "new"
        new.write_text(str(seconds))
        new.rename(difference)

    set_clock(0)
    (tmp_path / "sitecustomize.py").write_text(SET_CLOCK.format(path=str(difference)))
    (tmp_path / "root").mkdir()
    path = f"{tmp_path}:{ROOT}"
    with twistd(tmp_path / "root", "--drain=1", env={"PYTHONPATH": path}) as daemon:
        yield daemon, set_clock


def has_begun(daemon: Twistd) -> bool:
    return any(f.name != "lease" for run in runs_of(daemon.root).iterdir() for f in run.iterdir())


@pytest.mark.parametrize("step", [600, -600])
def test_a_transfer_goes_on_and_the_log_tells_how_long_it_took(
    daemon: tuple[Twistd, Set], step: int
) -> None:
    running, set_clock = daemon
    with connect(running.port) as client:
        client.sendall(UPLOAD + b"hello")
        wait_until(lambda: has_begun(running), "the upload to begin")
        set_clock(step)
        transfers = connect(running.port)
        transfers.sendall(b"GET /transfers HTTP/1.1\r\nHost: nas\r\nConnection: close\r\n\r\n")
        shown = json.loads(receive_all(transfers).partition(b"\r\n\r\n")[2])
        assert 0 <= shown["running"][0]["seconds"] < 60
        client.sendall(b"world")
        assert receive_answer(client)[0] == 200
    wait_until(lambda: '"verb": "upload"' in running.log(), "the line of the log")
    (line,) = (x for x in running.log().splitlines() if '"verb": "upload"' in x)
    assert 0 <= json.loads(line)["seconds"] < 60


def test_a_deadline_comes_although_the_clock_was_set_back(daemon: tuple[Twistd, Set]) -> None:
    running, set_clock = daemon
    with connect(running.port) as client:
        client.sendall(UPLOAD + b"hello")
        wait_until(lambda: has_begun(running), "the upload to begin")
        running.terminate()
        wait_until(lambda: "draining" in running.log(), "the deadline to be set")
        set_clock(-600)
        assert running.wait() == 0, "the transfer is cut off when the time to drain is over"
