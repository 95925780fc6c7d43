"""A daemon for tests: in this process on a loopback port, or a real ``twistd`` of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import treq
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

from httpnas.access import admission
from httpnas.access.authentication import Authentication
from httpnas.files.points import tell_nobody
from httpnas.storage import locks
from httpnas.storage.store import Storage
from httpnas.tap import Engine, make_doors, make_engine, make_site
from httpnas.transfer.disk import Disk
from httpnas.web.metrics import Metrics
from httpnas.web.routing import Door
from httpnas.web.server.deadlines import Limits
from httpnas.web.server.places import Places
from tests.private import runs_of

#: Seconds after which a test that waits for something gives up.
PATIENCE = 20.0
ROOT = Path(__file__).parent.parent
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
#: Options that a site needs.
DEFAULTS: dict[str, Any] = {
    "cors-origins": [],
    "hosts": [],
    "resource-policy": "same-origin",
    "headroom": 0,
    "patience": 45,
    "max-upload": None,
    "plain-redirect": None,
    "connections-per-client": 0,
    "proxies": [],
}


class Nas:
    """A daemon in this process, serving the real folder *root* at a real port.

    :param clock: the time of its connections, which passes only when a test lets it.
    :param places: room for connections and requests, None for any number.
    :param auth: the file that says who may do what, None for a daemon without one.
    """

    def __init__(
        self,
        root: Path,
        limits: Limits | None = None,
        max_upload: int | None = None,
        durable: bool = False,
        more_doors: Callable[[Engine], Iterable[Door]] = lambda engine: (),
        clock: Clock | None = None,
        places: Places | None = None,
        auth: Path | None = None,
        **options: Any,
    ) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        metrics = Metrics()
        # Each of 128 lock files is made when it is needed: all at once take longer than a test.
        with mock.patch.object(locks, "BUCKETS", 0):
            self.storage = Storage(str(root), durable, metrics.step)
        options = {**DEFAULTS, **options, "max-upload": max_upload}
        self.disk = Disk(reactor)
        self.authentication = None if auth is None else Authentication(reactor, str(auth))
        points = () if auth is None else (admission.admit, tell_nobody, admission.show)
        patience = options["patience"]
        self.engine = make_engine(reactor, self.disk, self.storage, patience, *points)
        self.disk.start()
        if self.authentication is not None:
            self.authentication.start()
        doors = [
            *make_doors(self.engine, metrics, options, authentication=self.authentication),
            *more_doors(self.engine),
        ]
        limits = limits or Limits()
        self.site = make_site(
            clock or reactor,
            doors,
            self.engine.watchdog,
            limits,
            metrics,
            options,
            places,
            self.authentication,
        )
        self._listening = reactor.listenTCP(
            0,
            self.site,
            interface="127.0.0.1",
        )
        address = self._listening.getHost()
        assert isinstance(address, IPv4Address)
        self.port = address.port
        self.url = f"http://127.0.0.1:{self.port}"
        self._clock = clock
        self._pool = HTTPConnectionPool(reactor)

    async def request(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send a request with treq, on a connection that is kept."""
        return await treq.request(method, self.url + path, pool=self._pool, **kwargs)

    async def fetch(self, method: str, path: str, **kwargs: Any) -> tuple[int, bytes, Any]:
        """Send a request; return status, body and headers of the answer."""
        response = await self.request(method, path, **kwargs)
        return response.code, await response.content(), response.headers

    async def talk(self, *sent: bytes, close: bool = False) -> bytes:
        """Send bytes as they are, in separate segments; return all that comes until the end.

        :param close: close for writing after the last one.
        """
        return await deferToThread(talk, self.port, sent, close)

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run blocking code of a test beside the reactor."""
        return await deferToThread(call, *args)

    async def at_rest(self) -> None:
        """Wait until no request is being handled and no connection is open, but kept ones."""

        def busy() -> bool:
            return bool(self.site.handlers.running) or not all(
                c.deadlines.is_idle for c in self.site.channels
            )

        await self.in_thread(let_daemon_read)
        await self.in_thread(wait_until, lambda: not busy(), "the daemon to come to rest")

    def leftovers(self) -> list[Path]:
        """Return the files of transfers that the daemon keeps at this moment."""
        runs = runs_of(self.root).iterdir()
        return [f for run in runs for f in run.iterdir() if f.name != "lease"]

    async def stop(self) -> None:
        await self._pool.closeCachedConnections()
        drained = Deferred.fromCoroutine(
            self.site.drain(0.2, lambda: maybeDeferred(self._listening.stopListening))
        )
        if self._clock is not None:
            self._clock.advance(1)
        await drained
        if self.authentication is not None:
            self.authentication.stop()
        self.disk.stop()
        self.storage.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def talk(port: int, sent: Sequence[bytes], close: bool = False) -> bytes:
    """Send the segments of *sent* one by one; return all that comes until the peer closes."""
    with connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in sent:
            client.sendall(segment)
        if close:
            client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def receive_all(client: socket.socket) -> bytes:
    """Return what comes until the peer closes."""
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def receive_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers (lower case) and body of one answer that has a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = client.recv(65536)
        if not chunk:
            raise AssertionError(f"the connection ended in an answer's head: {received!r}")
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        chunk = client.recv(65536)
        if not chunk:
            raise AssertionError("the connection ended in an answer's body")
        body += chunk
    return int(status_line.split()[1]), headers, body


class Client:
    """A client on one connection to a daemon in this process, for a thread of its own.

    :param buffer: bytes that its kernel buffers for receiving and for sending, if not many.
    """

    def __init__(self, port: int, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *segments: bytes) -> None:
        """Send *segments* so that the daemon reads them one by one."""
        for index, segment in enumerate(segments):
            if index:
                let_daemon_read()
            self.socket.sendall(segment)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (lower case) and body of the next answer, maybe a 100."""
        while b"\r\n\r\n" not in self._received:
            self._received += self._some(1 << 16, "an answer's head")
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        body = bytearray(self._received[:length])
        self._received = self._received[length:]
        while len(body) < length:
            body += self._some(length - len(body), "an answer's body")
        return int(status_line.split()[1]), headers, bytes(body)

    def _some(self, wanted: int, what: str) -> bytes:
        chunk = self.socket.recv(min(wanted, 1 << 20))
        if not chunk:
            raise AssertionError(f"the connection ended in {what}: {self._received[:500]!r}")
        return chunk

    def rest(self) -> bytes:
        """Return what comes until the daemon closes the connection."""
        return self._received + receive_all(self.socket)


def let_daemon_read() -> None:
    """Return when the daemon in this process has read what its sockets hold; from a thread."""
    for _ in range(3):  # one to accept, one to read, and one that may have been under way
        blockingCallFromThread(IReactorFromThreads(reactor), lambda: None)


def wait_until(
    condition: Callable[[], Any], what: str = "a condition", seconds: float = PATIENCE
) -> Any:
    """Poll *condition* until it holds, and return what it returned; give up after *seconds*."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.005)
    return result


@implementer(ILogObserver)
class _Log:
    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


@contextlib.contextmanager
def logged() -> Iterator[list[LogEvent]]:
    """Keep what is logged in this process for as long as the block."""
    log = _Log()
    globalLogPublisher.addObserver(log)
    try:
        yield log.events
    finally:
        globalLogPublisher.removeObserver(log)


class Twistd:
    """A real ``twistd -n httpnas`` on *root*.

    :param listen: where it listens; None leaves that to the other options and the environment.
    :param under: the command that starts it, such as ``prlimit`` with its options.
    """

    def __init__(
        self,
        root: Path,
        *options: str,
        env: dict[str, str] | None = None,
        listen: str | None = "tcp:0:interface=127.0.0.1",
        cwd: Path | None = None,
        terminal: bool = False,
        under: Sequence[str] = (),
    ) -> None:
        self.root = root
        cwd = cwd or root.parent
        handle, log_path = tempfile.mkstemp(suffix=".log", dir=cwd)
        self.log_path = Path(log_path)
        places = [] if listen is None else [f"--listen={listen}"]
        stdout = self._terminal() if terminal else handle
        self.process = subprocess.Popen(
            [
                *under,
                *TWISTD,
                "-n",
                "--pidfile=",
                "httpnas",
                *places,
                f"--storage={root}",
                *options,
            ],
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HTTPNAS_HOSTS": "*", **(env or {})},
            cwd=cwd,
        )
        for fd in {handle, stdout}:
            os.close(fd)
        found = wait_until(self._address, "the daemon to listen")
        self.port = int(found[2])
        self.url = f"{found[1]}://127.0.0.1:{self.port}"

    def _terminal(self) -> int:
        """Return one end of a terminal; what comes out at the other is copied to the log."""
        ours, theirs = os.openpty()

        def copy() -> None:
            with self.log_path.open("ab", buffering=0) as log, contextlib.suppress(OSError):
                while shown := os.read(ours, 65536):
                    log.write(shown)
            os.close(ours)

        threading.Thread(target=copy, daemon=True).start()
        return theirs

    def _address(self) -> re.Match[str] | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended: {self.log()}")
        return re.search(r" at (https?)://127\.0\.0\.1:([1-9]\d*)", self.log())

    def log(self) -> str:
        return self.log_path.read_text()

    def memory(self) -> int:
        """Return the memory the daemon has in use, in bytes.

        Pages of files that it has mapped do not count: the kernel takes them when it likes.
        """
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(kib) << 10 for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit status."""
        return self.process.wait(timeout=PATIENCE)


@contextlib.contextmanager
def twistd(root: Path, *options: str, **kwargs: Any) -> Iterator[Twistd]:
    """Run a real daemon for as long as the block."""
    daemon = Twistd(root, *options, **kwargs)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()
