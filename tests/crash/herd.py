"""Daemons by the dozen on one storage, started in milliseconds and killed at any moment.

Starting Python takes half a second, most of it imports. A *nurse*, a process that has imported
everything but the reactor, forks each daemon instead, which then runs ``twistd`` as ever.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from httpnas.storage.format import Place
from tests.private import keep_records
from tests.storage.users import without_privileges

ROOT = Path(__file__).parent.parent.parent
#: Seconds after which waiting for a daemon to start is given up.
PATIENCE = 20.0


def nurse() -> None:
    """Fork a daemon for each order on stdin, and answer with its pid; at the end kill them all."""
    # Forks would share the descriptors of a reactor. Klein imports one, only to run its own site.
    name = "twisted.internet.reactor"
    sys.modules[name] = ModuleType(name)
    for module in ("httpnas.tap", "twisted.internet.epollreactor", "twisted.scripts.twistd"):
        importlib.import_module(module)
    del sys.modules[name]
    gc.freeze()
    children = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "reap" in order:
            os.waitpid(order["reap"], 0)
            children.discard(order["reap"])
            print("reaped", flush=True)
        else:
            pid = os.fork()
            if not pid:
                _be_daemon(order["log"], order["arguments"], order["lag"])
            children.add(pid)
            print(pid, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _be_daemon(log: str, arguments: list[str], lag: float) -> None:
    from twisted.scripts import twistd  # noqa: PLC0415

    status = 1
    try:
        without_privileges()
        _slow_down(lag)
        nothing = os.open(os.devnull, os.O_RDONLY)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["twistd", "-n", "--pidfile=", "httpnas", *arguments]
        twistd.run()
        status = 0
    finally:
        os._exit(status)


def _slow_down(lag: float) -> None:
    """Let each fsync(2) of this process take *lag* seconds more on average."""
    sync, chance = os.fsync, random.Random()

    def late(fd: int) -> None:
        time.sleep(min(chance.expovariate(1 / lag), 20 * lag))
        sync(fd)

    if lag:
        os.fsync = late  # type: ignore[assignment]


class Daemon:
    """One daemon that a nurse has forked.

    :ivar place: which of the herd's roots it serves.
    """

    def __init__(self, herd: Herd, place: int, pid: int, log: Path) -> None:
        self._herd = herd
        self.place = place
        self.pid = pid
        self.port = 0
        self._log = log

    def await_listening(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r" at http://127\.0\.0\.1:([1-9]\d*)", self._said())):
            if time.monotonic() > deadline:
                raise AssertionError(f"a daemon did not start: {self._said()}")
            time.sleep(0.003)
        self.port = int(found[1])

    def _said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL; returns when nothing is left of the process."""
        self.send(signal.SIGKILL)
        self._herd.order(reap=self.pid)
        for line in self._said().splitlines():
            if "Traceback" in line:
                self._herd.complaints.append(line)
        self._log.unlink(missing_ok=True)


class Herd:
    """Daemons on one storage: some serve, and others are ready to take their place.

    :param roots: the storage, as each of several hosts sees it; all have as many daemons.
    :param logs: a folder for what daemons say.
    :param serving: how many serve each root at any time.
    :param spares: how many are ready besides, for each root.
    :param full: the share of daemons that run with full durability.
    :param lag: seconds by which syncs are late, on average, with half of these.
    :param records: where files have their records, as in :mod:`httpnas.storage.format`.
    :ivar complaints: lines of logs in which a traceback stands.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        logs: Path,
        rng: random.Random,
        serving: int = 2,
        spares: int = 2,
        full: float = 0.3,
        lag: float = 0.004,
        records: Place = "xattr",
    ) -> None:
        keep_records(roots[0], records)
        self._roots = roots
        self._rng = rng
        self._full = full
        self._lag = lag
        self._logs = logs
        self._serial = 0
        self._talking = threading.Lock()
        self.complaints: list[str] = []
        self._nurse = subprocess.Popen(
            [sys.executable, "-c", "from tests.crash.herd import nurse; nurse()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=logs,
        )
        places = range(len(roots))
        self.serving = [self.start(place) for _ in range(serving) for place in places]
        self._spares: list[queue.Queue[Daemon]] = [queue.Queue(spares) for _ in places]
        self._closing = False
        self._failure: BaseException | None = None
        self._breeders = [threading.Thread(target=self._breed, args=[place]) for place in places]
        for breeder in self._breeders:
            breeder.start()

    def order(self, **order: object) -> str:
        assert self._nurse.stdin and self._nurse.stdout
        with self._talking:
            self._nurse.stdin.write(json.dumps(order) + "\n")
            self._nurse.stdin.flush()
            return self._nurse.stdout.readline().strip()

    def fork(self, place: int = 0) -> Daemon:
        """Return a daemon that is just being started."""
        with self._talking:
            self._serial += 1
            log = self._logs / f"{self._serial}.log"
            draw = self._rng.random()
            durability = "full" if draw < self._full else "none"
            lag = self._lag if draw < self._full / 2 else 0.0
        arguments = [
            "--listen=tcp:0:interface=127.0.0.1",
            f"--storage={self._roots[place]}",
            f"--durability={durability}",
        ]
        return Daemon(self, place, int(self.order(log=str(log), arguments=arguments, lag=lag)), log)

    def start(self, place: int = 0) -> Daemon:
        """Return a daemon that listens."""
        daemon = self.fork(place)
        daemon.await_listening()
        return daemon

    def _breed(self, place: int) -> None:
        try:
            while not self._closing:
                daemon = self.start(place)
                while not self._closing:
                    with contextlib.suppress(queue.Full):
                        self._spares[place].put(daemon, timeout=0.1)
                        break
                else:
                    daemon.kill()
        except BaseException as error:
            self._failure = error

    def replace(self, victim: Daemon) -> None:
        """Kill *victim*, which serves, and let a spare daemon take its place at once."""
        place = self.serving.index(victim)
        try:
            spare = self._spares[victim.place].get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("no daemon could be started") from self._failure
        self.serving[place] = spare
        victim.kill()

    def kill_one_that_starts(self) -> None:
        """Start a daemon and kill it at some moment of that."""
        newborn = self.fork(self._rng.randrange(len(self._roots)))
        time.sleep(self._rng.random() * 0.08)
        newborn.kill()

    def close(self) -> None:
        """Kill all; what is left then is what a last start has to put right."""
        self._closing = True
        for breeder in self._breeders:
            breeder.join()
        for spares in self._spares:
            while not spares.empty():
                spares.get().kill()
        for daemon in self.serving:
            daemon.kill()
        self.serving = []

    def end(self) -> None:
        """Let the nurse go, who kills what still runs."""
        self._closing = True
        assert self._nurse.stdin
        self._nurse.stdin.close()
        self._nurse.wait(timeout=PATIENCE)


@contextlib.contextmanager
def herd(
    roots: Sequence[Path], logs: Path, rng: random.Random, **kwargs: int | float | str
) -> Iterator[Herd]:
    """Keep daemons for as long as the block."""
    logs.mkdir()
    daemons = Herd(roots, logs, rng, **kwargs)  # type: ignore[arg-type]
    try:
        yield daemons
    finally:
        daemons.end()


class Unanswered(Exception):
    """No whole answer came: what was asked for may have been done or not."""


class Wire:
    """A connection to one daemon, opened again when it broke.

    :param port: where the daemon listens.
    :param patience: seconds to wait for anything.
    """

    def __init__(self, port: int, patience: float = PATIENCE) -> None:
        self.port = port
        self._patience = patience
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *segments: bytes) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.port), self._patience)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            self._socket.sendall(segment)
        return self._socket

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        pieces: int | None = None,
        **fields: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers (lower case) and body of its answer.

        :param pieces: send the body chunked, in that many chunks.
        :raises Unanswered: when no whole answer came.
        """
        try:
            return self._receive(self._send(*_request(method, path, body, pieces, fields)))
        except OSError as error:
            self.close()
            raise Unanswered from error

    def break_off(self, path: str, body: bytes, pieces: int | None) -> None:
        """Append *body*, but hang up before all of it has been sent."""
        with contextlib.suppress(OSError):
            *head, last = _request("PUT", path, body, pieces, {})
            self._send(*head, last[: len(last) // 2])
        self.close()

    def _receive(self, connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
        with connection.makefile("rb") as stream:
            status = _status(stream)
            headers = {}
            while (line := stream.readline()) != b"\r\n":
                if not line.endswith(b"\n"):
                    raise ConnectionError("cut off in the head of an answer")
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("transfer-encoding") == "chunked":
                body = _chunks(stream)
            else:
                body = _exactly(stream, int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return status, headers, body


def _status(stream: BinaryIO) -> int:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("cut off before an answer")
    return int(line.split()[1])


def _exactly(stream: BinaryIO, length: int) -> bytes:
    body = stream.read(length)
    if len(body) < length:
        raise ConnectionError("cut off in the body of an answer")
    return body


def _chunks(stream: BinaryIO) -> bytes:
    body = b""
    while length := _length_of_chunk(stream):
        body += _exactly(stream, length + 2)[:-2]
    _exactly(stream, 2)
    return body


def _length_of_chunk(stream: BinaryIO) -> int:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("cut off before a chunk of an answer")
    return int(line, 16)


def _request(
    method: str, path: str, body: bytes, pieces: int | None, fields: dict[str, str]
) -> list[bytes]:
    """Return the request in the segments in which it is sent."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if method in ("GET", "DELETE"):
        return ["\r\n".join([*head, "", ""]).encode()]
    head.append("Transfer-Encoding: chunked" if pieces else f"Content-Length: {len(body)}")
    segments = ["\r\n".join([*head, "", ""]).encode()]
    if not pieces:
        return [*segments, body]
    step = len(body) // pieces + 1
    for at in range(0, len(body), step):
        chunk = body[at : at + step]
        segments.append(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    segments[-1] += b"0\r\n\r\n"
    return segments
