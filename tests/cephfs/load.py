"""Clients of several replicas that go on through a fault, and write down what they were answered.

Each does one kind of request at one replica, again and again. What was acknowledged is remembered,
so that it can be looked for in the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.crash.herd import Unanswered, Wire

#: Seconds in which every answer must come, whatever has happened: a hang beyond.
LONGEST_WAIT = 120.0
#: Seconds that a client waits before it comes again, when it was refused.
AGAIN = 0.2
BLOCK = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Answer:
    """One request and its answer.

    :ivar start: when it was sent, by the monotonic clock.
    :ivar seconds: how long its client waited.
    :ivar status: None when the connection was cut.
    """

    replica: int
    verb: str
    start: float
    seconds: float
    status: int | None
    again: int | None = None


class Ledger:
    """What was acknowledged, and all answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self.files: dict[str, bytes] = {}
        self.records: set[str] = set()
        self.wrong: list[str] = []

    def note(self, answer: Answer) -> None:
        with self._lock:
            self.answers.append(answer)


class Client(threading.Thread):
    """Sends one kind of request to one replica until it is told to stop."""

    def __init__(self, ledger: Ledger, replica: int, port: int, verb: str) -> None:
        super().__init__()
        self._ledger = ledger
        self._replica = replica
        self._wire = Wire(port, LONGEST_WAIT)
        self._verb = verb
        self._done = threading.Event()
        self._serial = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        act: Callable[[str], None] = getattr(self, f"_{self._verb}")
        try:
            while not self._done.is_set():
                self._serial += 1
                act(f"{self._replica}-{self._serial}")
        except BaseException as error:
            self.failure = error
        finally:
            self._wire.close()

    def stop(self) -> None:
        self._done.set()

    def _ask(self, method: str, path: str, body: bytes = b"", **fields: str) -> bytes | None:
        """Return the body of a good answer, or None."""
        start = time.monotonic()
        status, again, content = None, None, b""
        try:
            status, headers, content = self._wire.ask(method, path, body, None, **fields)
            again = int(headers["retry-after"]) if "retry-after" in headers else None
        except Unanswered:
            pass
        seconds = time.monotonic() - start
        answer = Answer(self._replica, self._verb, start, seconds, status, again)
        self._ledger.note(answer)
        if status == 200:
            return content
        self._done.wait(AGAIN)
        return None

    def _upload(self, identity: str) -> None:
        content = identity.encode() * 1000
        if self._ask("POST", f"/file/load/{identity}", content) is not None:
            self._ledger.files[f"load/{identity}"] = content

    def _append(self, identity: str) -> None:
        """Append a line under a key until that is acknowledged."""
        line = f"{identity} {'x' * 200}\n".encode()
        while not self._done.is_set():
            if self._ask("PUT", "/file/log", line, Idempotency_Key=f'"{identity}"') is not None:
                self._ledger.records.add(identity)
                return

    def _download(self, identity: str) -> None:
        content = self._ask("GET", "/file/block")
        if content is not None and content != BLOCK:
            self._ledger.wrong.append(f"a download of {len(content)} bytes")

    def _count(self, identity: str) -> None:
        content = self._ask("GET", "/file/block/wc")
        if content is not None and int(content) != BLOCK.count(b"\n"):
            self._ledger.wrong.append(f"a count: {content!r}")

    def _ready(self, identity: str) -> None:
        if self._ask("GET", "/ready") is not None:
            self._done.wait(AGAIN)


VERBS = ("upload", "append", "download", "count", "ready")


class Load:
    """All clients of the replicas at *ports*, for as long as the block."""

    def __init__(self, ports: Iterable[int]) -> None:
        self.ledger = Ledger()
        self._ports = list(ports)
        self._clients: list[Client] = []

    def __enter__(self) -> Load:
        wire = Wire(self._ports[0])
        for path, content in (("log", b""), ("block", BLOCK)):
            status = wire.ask("POST", f"/file/{path}", content)[0]
            assert status == 200, f"{path}: {status}"
        wire.close()
        self._clients = [
            Client(self.ledger, replica, port, verb)
            for replica, port in enumerate(self._ports)
            for verb in VERBS
        ]
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop()
        for client in self._clients:
            client.join()
        for client in self._clients:
            if client.failure is not None:
                raise client.failure

    def await_answers(self, since: float, replicas: Iterable[int], seconds: float) -> None:
        """Wait until every client of *replicas* has had a good answer.

        :param since: to what it has sent after this, by the monotonic clock.
        :raises AssertionError: when that takes more than *seconds*.
        """
        wanted = {(replica, verb) for replica in replicas for verb in VERBS}
        deadline = time.monotonic() + seconds
        while True:
            good = {
                (a.replica, a.verb)
                for a in list(self.ledger.answers)
                if a.start > since and a.status == 200
            }
            if wanted <= good:
                return
            assert time.monotonic() < deadline, f"no good answer to {sorted(wanted - good)}"
            time.sleep(0.05)


def check(ledger: Ledger, port: int) -> None:
    """Look for all that was acknowledged, through the replica at *port*."""
    assert not ledger.wrong, ledger.wrong
    wire = Wire(port, LONGEST_WAIT)
    for path, content in ledger.files.items():
        status, _, found = wire.ask("GET", f"/file/{path}")
        assert (status, found) == (200, content), f"{path}: {status}, {len(found)} bytes"
    lines = wire.ask("GET", "/file/log")[2].decode().splitlines()
    found_records = [line.partition(" ")[0] for line in lines]
    assert all(line.endswith("x" * 200) for line in lines), "a torn record"
    assert len(set(found_records)) == len(found_records), "a record is there twice"
    missing = ledger.records - set(found_records)
    assert not missing, f"{len(missing)} of {len(ledger.records)} records are lost: {missing}"
    assert int(wire.ask("GET", "/file/log/wc")[2]) == len(lines)
    wire.close()


def summary(ledger: Ledger, since: float, replicas: int) -> str:
    """Return, for each replica and verb, what was answered to requests that ended after *since*."""
    rows = []
    for replica in range(replicas):
        for verb in VERBS:
            answers = [
                a
                for a in ledger.answers
                if (a.replica, a.verb) == (replica, verb) and a.start + a.seconds > since
            ]
            good = [a for a in answers if a.status == 200]
            bad = [a for a in answers if a.status != 200]
            rows.append(
                f"  {'AB'[replica]} {verb:9} {len(good):5} good, longest "
                f"{max((a.seconds for a in good), default=0):5.1f} s"
                + (
                    f"; {len(bad):4} refused ({_statuses(bad)}), first after "
                    f"{bad[0].start + bad[0].seconds - since:5.1f} s, longest "
                    f"{max(a.seconds for a in bad):5.1f} s, last after "
                    f"{bad[-1].start + bad[-1].seconds - since:5.1f} s"
                    if bad
                    else ""
                )
            )
    return "\n".join(rows)


def _statuses(answers: Iterable[Answer]) -> str:
    found = sorted({str(a.status or "cut") for a in answers})
    return ", ".join(found)
