"""A daemon is killed at each of the system calls of each operation, and started again.

What has to hold whenever that was: each name has its old or its new content, whole; what was
answered with success is there; nothing else has changed; what was left behind is reclaimed; and
the next operations succeed. A call at which a process is killed is not made any more, so that the
sweep leaves the storage in each state between two calls; writes and copies in pieces (as on a
disk that takes no more at a time) are there for the states in the middle of one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from httpnas.storage.append import Append
from httpnas.storage.store import Storage
from tests.crash.sweep import (
    CHANGES,
    HEALTHY,
    LONG,
    VERBS,
    Call,
    Request,
    Tree,
    Verb,
    Ward,
    Wards,
    build,
    exhaust,
    leftovers,
    let_twistd_be_traced,
    on_disk,
    seen,
    shown,
    strace,
    telling,
)
from tests.harness import Client, Twistd, twistd, wait_until
from tests.private import runs_of

pytestmark = pytest.mark.crash


def steps_of(ward: Ward, name: str) -> list[Call]:
    """Let *name* run to its end, and return its calls.

    A record is written once more when the clock has moved meanwhile, which is seldom.
    """
    return min((_steps_of(ward, name) for _ in range(2)), key=len)


def _steps_of(ward: Ward, name: str) -> list[Call]:
    verb = VERBS[name]
    with ward.root(verb) as root:
        with (
            ward.patient(root, verb) as patient,
            strace(patient.pid, CHANGES, *verb.lacking) as steps,
        ):
            assert patient.ask(f"verb {name}") == verb.status
        assert verb.judge(recovered(ward.from_afar(root))) == (
            "new" if verb.after != verb.before else "old"
        )
    return telling([step for step in steps if step.name != verb.lacks])


def killed_at(ward: Ward, name: str, step: Call) -> str:
    """Kill *name* at *step*, and return what is there then.

    One time in 128 two names have the same lock, as which one it is depends on inodes: a call less
    is made then, and the last step does not come.
    """
    for _ in range(5):
        outcome = attempt_at(ward, name, step)
        if outcome is not None:
            return outcome
    raise AssertionError(f"not killed at {step}")


def attempt_at(ward: Ward, name: str, step: Call) -> str | None:
    """Kill *name* at *step*, and return what is there then, or None if it made fewer calls."""
    verb = VERBS[name]
    with ward.root(verb) as root:
        with ward.patient(root, verb) as patient:
            injections = [*verb.lacking, step.inject("signal=SIGKILL")]
            with strace(patient.pid, CHANGES, *injections) as made:
                status = patient.ask(f"verb {name}")
            ended = patient.ended
        if ended is None:
            assert status == verb.status
            assert sum(call.name == step.name for call in made) < step.number
            return None
        assert ended == -signal.SIGKILL
        assert (made[-1].name, made[-1].number) == (step.name, step.number)
        assert made[-1].text.endswith("= ?"), f"it was killed after {step}"
        try:
            outcome = verb.judge(recovered(ward.from_afar(root)))
        except AssertionError as error:
            raise AssertionError(f"killed at {step}: {error}") from error
    assert status in (None, verb.status), f"killed at {step}: answered {status}"
    if status == 200:
        assert outcome == "new", f"killed at {step}: what was acknowledged is lost"
    return outcome


def recovered(root: Path) -> Tree:
    """Start a daemon's storage on *root* after a crash; return what clients see then."""
    storage = Storage(str(root))
    try:
        found = seen(storage)
        exhaust(storage.reclaim_abandoned())
        assert seen(storage) == found, "reclaiming has changed what clients see"
        assert leftovers(root) == []
        assert len(os.listdir(runs_of(root))) == 1
        for name in found.files:
            append(storage, name.encode(), b"+")
        # Nothing lies behind the end of a file, or under a name that is not listed, any more.
        links = {name: (root / name).stat().st_nlink for name in found.files}
        assert on_disk(root) == seen(storage)
        assert shown(seen(storage).files) == shown(
            {name: text + b"+" * links[name] for name, text in found.files.items()}
        )
    finally:
        storage.close()
    assert os.listdir(runs_of(root)) == []
    return found


def append(storage: Storage, name: bytes, body: bytes) -> None:
    appended = storage.begin_append(name, lambda version: None)
    assert isinstance(appended, Append)
    with contextlib.closing(appended):
        appended.write([body])
        appended.commit()


def report(name: str, steps: int, outcomes: Counter[str], began: float) -> None:
    killed = sum(outcomes.values())
    told = ", ".join(f"{what} {count}" for what, count in sorted(outcomes.items()))
    seconds = time.monotonic() - began
    print(f"\n  {name}: {steps} steps, {killed} kills: {told}; {seconds:.1f} s", end="")


@pytest.mark.parametrize("name", VERBS)
def test_killed_at_each_call(wards: Wards, name: str) -> None:
    began = time.monotonic()
    steps = wards.once(steps_of, name)
    outcomes = wards.map(lambda ward, step: killed_at(ward, name, step), steps)
    report(name, len(steps), Counter(outcomes), began)
    # Old up to the one call that counts, new from there on.
    assert outcomes == sorted(outcomes, key=["old", "new"].index)
    verb = VERBS[name]
    assert set(outcomes) == ({"old", "new"} if verb.status == 200 else {"old"})


#: What a start finds: the verb at which a daemon was killed, where, and what clients see then.
STARTS = {
    "on an empty folder": None,
    "after an upload": ("replace in pieces", "fsync 1", "before"),
    "after a large append": (
        "append large on a network in pieces",
        "copy_file_range 2",
        "before",
    ),
    "after the removal of a folder": ("delete a folder", "unlinkat 2", "after"),
}


@pytest.mark.parametrize("start", STARTS)
def test_killed_at_each_call_of_a_start(wards: Wards, start: str) -> None:
    """Also what makes and reclaims the working folders is killed at each step."""
    began = time.monotonic()
    empty = Verb(Tree({}, frozenset()), Request("GET", "/file/"), Tree({}, frozenset()))
    verb, left = empty, empty.before
    if (crash := STARTS[start]) is not None:
        crashed = VERBS[crash[0]]
        verb = replace(crashed, crashed=crash[:2])
        left = crashed.before if crash[2] == "before" else crashed.after

    def run(ward: Ward, step: Call | None = None) -> list[Call]:
        with ward.root(verb) as root:
            with ward.patient(root, verb, stopped=True) as patient:
                kill = [step.inject("signal=SIGKILL")] if step else []
                with strace(patient.pid, CHANGES, *kill) as made:
                    patient.ask("start")
                if step:
                    assert patient.ended == -signal.SIGKILL
                    assert (made[-1].name, made[-1].number) == (step.name, step.number)
            assert recovered(ward.from_afar(root)) == left, f"killed at {step}"
        return made

    steps = wards.once(run)
    wards.map(run, steps)
    report(f"start {start}", len(steps), Counter(old=len(steps)), began)


#: Verbs that a whole daemon is killed at.
END_TO_END = (
    "create in new folders",
    "replace",
    "append",
    "append large",
    "move over a file",
    "delete a folder",
)


class WholeDaemon:
    """A ``twistd`` that is killed again and again; each start recovers from the last kill."""

    def __init__(self, root: Path, verb: Verb) -> None:
        self._root = root
        self._verb = verb
        self.found = verb.before

    def attempt(self, step: Call | None) -> tuple[str, list[Call]]:
        """Start it, see what it has recovered, and kill it at *step* of the verb."""
        with twistd(self._root) as daemon:
            self._look(daemon)
            build(self._root, self._verb.before)
            kill = [step.inject("signal=SIGKILL")] if step else []
            with strace(daemon.process.pid, CHANGES, *kill, threads=True) as made:
                status = self._send(daemon, self._verb.request)
                # What is done behind the answer may take a moment.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(0.3)
            killed = daemon.process.poll() is not None
            assert not killed or daemon.process.returncode == -signal.SIGKILL
        storage = Storage(str(self._root))
        self.found = seen(storage)
        storage.close()
        outcome = self._verb.judge(self.found)
        assert status in (None, self._verb.status)
        assert outcome == "new" or status is None, "what was acknowledged is lost"
        assert killed or status is not None
        return (outcome if killed else "not killed"), made

    def recover(self) -> None:
        """See what the last kill has left."""
        with twistd(self._root) as daemon:
            self._look(daemon)

    def _look(self, daemon: Twistd) -> None:
        runs = runs_of(self._root)
        wait_until(
            lambda: leftovers(self._root) == [] and len(os.listdir(runs)) == 1, "the reclaiming"
        )
        for name, content in self.found.files.items():
            if (self._root / name).exists():
                with Client(daemon.port) as client:
                    client.send(Request("GET", f"/file/{name}").head)
                    status, _, body = client.answer()
                    assert (status, body) == (200, content)
        for request, wanted in HEALTHY:
            assert self._send(daemon, request) == wanted

    def _send(self, daemon: Twistd, request: Request) -> int | None:
        try:
            with Client(daemon.port) as client:
                client.send(request.head + request.body)
                return client.answer()[0]
        except (OSError, AssertionError):
            return None  # the connection was cut


def test_killed_as_a_whole_daemon(wards: Wards, monkeypatch: pytest.MonkeyPatch) -> None:
    """``twistd``, HTTP, threads and all; in the short form at a few steps of each verb.

    Which thread makes which call is not the same each time, and calls are numbered in threads,
    so that some kills do not come about.
    """
    let_twistd_be_traced(monkeypatch)

    def work(ward: Ward, name: str) -> None:
        began, outcomes = time.monotonic(), Counter[str]()
        with ward.root(VERBS[name]) as root:
            daemon = WholeDaemon(root, VERBS[name])
            outcome, steps = daemon.attempt(None)
            assert outcome == "not killed"
            steps = telling(steps)
            for step in steps[:: 1 if LONG else max(1, len(steps) // 4)]:
                outcome, _ = daemon.attempt(step)
                outcomes[outcome] += 1
            daemon.recover()
        report(f"twistd: {name}", len(steps), outcomes, began)
        assert outcomes["old"] + outcomes["new"] > sum(outcomes.values()) // 2

    wards.map(work, END_TO_END)
