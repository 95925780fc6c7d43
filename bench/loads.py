"""The loads: what a client does, how long it took, and whether every answer was the right one.

Each load ends by itself, by count and by time. What many small requests cost is measured by ``wrk``
where it is installed. Large bodies are sent by sendfile(2), and received with ``MSG_TRUNC``
(tcp(7)), which drops them in the kernel. So a client costs less than any server does.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import DESCRIPTORS

MIB = 1 << 20
#: Seconds after which a socket that nothing happens on fails its load.
PATIENCE = 60
#: Bytes of each chunk of a chunked upload.
CHUNK = MIB
#: Bytes of a small body.
SMALL = 4096


class Wrong(Exception):
    """An answer is not the one that the load is about."""


def head(method: str, path: str, *fields: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def connect(port: int, receives: int = 0) -> socket.socket:
    """Return a connection to *port*.

    :param receives: bytes that the kernel keeps for what was received, if not as many as it likes.
    """
    client = socket.socket()
    client.settimeout(PATIENCE)
    if receives:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(("127.0.0.1", port))
    return client


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, fields (lower case) and the beginning of the body of an answer.

    The length of the body is in the field ``content-length``.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        received += (some := client.recv(1 << 16))
        if not some:
            raise Wrong(f"the connection ended in the head of an answer: {received[:200]!r}")
    shown, _, body = received.partition(b"\r\n\r\n")
    first, *lines = shown.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), fields, body


def ask(port: int, method: str, path: str, *fields: str) -> tuple[int, dict[str, str], bytes]:
    """Send one request without a body; return status, fields and body of its answer."""
    with connect(port) as client:
        client.sendall(head(method, path, *fields))
        status, found, body = answer(client)
        left = 0 if method == "HEAD" else int(found.get("content-length", 0))
        while len(body) < left:
            body += (some := client.recv(1 << 16))
            if not some:
                raise Wrong(f"{path}: the connection ended in the body of an answer")
        return status, found, body


# Large bodies


@dataclass(frozen=True)
class Moved:
    """How many bytes were moved in how many seconds."""

    size: int
    seconds: float

    @property
    def speed(self) -> float:
        """In MiB a second."""
        return self.size / MIB / self.seconds


def download(
    port: int, path: str, size: int, *fields: str, clients: int = 1, times: int = 1, most: float = 4
) -> Moved:
    """Receive the *size* bytes at *path*, by each of *clients* and *times* times in a row.

    :param most: seconds after which the clients leave, and what they have until then counts.
    """
    got, errors = [0] * clients, list[Exception]()
    began = time.perf_counter()
    end = began + most

    def receive(number: int) -> None:
        room = bytearray(4 * MIB)
        try:
            with connect(port) as client:
                for _ in range(times):
                    client.sendall(head("GET", path, *fields))
                    status, found, body = answer(client)
                    if status not in (200, 206) or int(found["content-length"]) != size:
                        raise Wrong(f"{path}: {status}, {found}")
                    left = size - len(body)
                    got[number] += len(body)
                    while left:
                        some = client.recv_into(room, min(left, len(room)), socket.MSG_TRUNC)
                        if not some:
                            raise Wrong(f"{path}: the download ended {left} bytes too early")
                        left -= some
                        got[number] += some
                        if time.perf_counter() > end:
                            return
        except Exception as error:
            errors.append(error)

    in_threads(clients, receive)
    if errors:
        raise errors[0]
    return Moved(sum(got), time.perf_counter() - began)


def download_by_tls(port: int, path: str, size: int, most: float = 4) -> Moved:
    """Receive the *size* bytes at *path* over TLS; what comes is decrypted, so this costs more."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    room = bytearray(MIB)
    with context.wrap_socket(connect(port)) as client:
        began = time.perf_counter()
        client.sendall(head("GET", path))
        status, _, body = answer(client)
        if status != 200:
            raise Wrong(f"{path} over TLS: {status}")
        left = size - len(body)
        while left and time.perf_counter() < began + most:
            some = client.recv_into(room, min(left, MIB))
            if not some:
                raise Wrong(f"{path} over TLS: the download ended {left} bytes too early")
            left -= some
        return Moved(size - left, time.perf_counter() - began)


def upload(
    port: int,
    method: str,
    path: str,
    source: Path,
    size: int,
    chunked: bool = False,
    form: bool = False,
) -> Moved:
    """Send the first *size* bytes of *source*.

    :param chunked: in chunks of :data:`CHUNK` bytes, instead of with a ``Content-Length``.
    :param form: as the only file of a form (RFC 7578), under the last name of *path*.
    """
    folder, _, name = path.rpartition("/")
    before, after = b"", b""
    fields = [f"Content-Length: {size}"]
    if form:
        disposition = f'form-data; name="file"; filename="{name}"'
        before = f"--edge\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        after = b"\r\n--edge--\r\n"
        fields = [f"Content-Length: {len(before) + size + len(after)}"]
        fields.append("Content-Type: multipart/form-data; boundary=edge")
        method, path = "POST", folder + "/"
    elif chunked:
        fields = ["Transfer-Encoding: chunked"]
    with source.open("rb") as file, connect(port) as client:
        began = time.perf_counter()
        client.sendall(head(method, path, *fields) + before)
        for start in range(0, size, CHUNK if chunked else max(size, 1)):
            length = min(CHUNK, size - start) if chunked else size
            if chunked:
                client.sendall(b"%x\r\n" % length, socket.MSG_MORE)
            client.sendfile(file, start, length)
            if chunked:
                client.sendall(b"\r\n", socket.MSG_MORE)
        client.sendall(b"0\r\n\r\n" if chunked else after)
        status, _, _ = answer(client)
        seconds = time.perf_counter() - began
    if status not in (200, 201, 202, 204):
        raise Wrong(f"{method} {path}: {status}")
    return Moved(size, seconds)


# Small requests


@dataclass
class Answered:
    """How many requests were answered in how many seconds, and how long each one took."""

    seconds: float = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p99(self) -> float:
        """In milliseconds."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)] * 1000


def wrk(
    port: int,
    path: str,
    *fields: str,
    connections: int = 16,
    threads: int = 1,
    seconds: float = 1,
) -> float:
    """Ask for *path* again and again for a second, by ``wrk``; return how many answers a second.

    :func:`requests` asks without ``wrk``, and for less than a second, which ``wrk`` cannot do.

    :raises Wrong: an answer is neither 2xx nor 304.
    """
    if shutil.which("wrk") is None or seconds < 1:
        request = head("GET", path, *fields)
        return requests(port, lambda _: request, connections, min(seconds, 1)).rate
    command = ["wrk", f"-t{threads}", f"-c{connections}", "-d1s"]
    for line in fields:
        command += ["-H", line]
    command.append(f"http://127.0.0.1:{port}{path}")
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"^Requests/sec: +([\d.]+)", done, re.M)
    if found is None or float(found[1]) == 0 or "Non-2xx" in done or "Socket errors" in done:
        raise Wrong(f"{path}: {done}")
    return float(found[1])


def requests(
    port: int,
    make: Callable[[int], bytes],
    connections: int,
    seconds: float,
    most: int = 1_000_000,
    has_body: bool = True,
) -> Answered:
    """Send requests on kept connections, one at a time on each, in one thread.

    :param make: makes the request with a number from 0.
    :param seconds: after which no request is sent any more, and *most* says after how many.
    :param has_body: whether answers have the body whose length they tell; to HEAD they have none.
    """
    made, answered = 0, Answered()
    under_way: dict[int, tuple[socket.socket, float]] = {}
    watch = select.epoll()
    began = time.perf_counter()

    def send(client: socket.socket) -> None:
        nonlocal made
        if made < most and time.perf_counter() < began + seconds:
            client.sendall(make(made))
            made += 1
            under_way[client.fileno()] = client, time.perf_counter()

    with contextlib.ExitStack() as open_ones:
        open_ones.callback(watch.close)
        for _ in range(connections):
            client = open_ones.enter_context(connect(port))
            watch.register(client, select.EPOLLIN)
            send(client)
        while under_way:
            ready = watch.poll(PATIENCE)
            if not ready:
                raise Wrong(f"{len(under_way)} requests got no answer in {PATIENCE} s")
            for number, _ in ready:
                client, sent = under_way.pop(number)
                _finish(client, has_body)
                answered.latencies.append(time.perf_counter() - sent)
                send(client)
    answered.seconds = time.perf_counter() - began
    return answered


_OK = re.compile(rb"HTTP/1\.1 (20[01246]|304) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)


def _finish(client: socket.socket, has_body: bool = True) -> None:
    """Read one answer."""
    got = client.recv(1 << 18)
    while (end := got.find(b"\r\n\r\n")) < 0:
        got += (some := client.recv(1 << 18))
        if not some:
            break
    if not _OK.match(got):
        raise Wrong(f"an answer: {got[:300]!r}")
    length = _LENGTH.search(got, 0, end + 2)
    left = int(length[1]) - (len(got) - end - 4) if length and has_body else 0
    while left > 0:
        some = client.recv(1 << 18)
        if not some:
            raise Wrong("the connection ended in an answer")
        left -= len(some)


def stores(port: int, method: str, path: str, seconds: float) -> float:
    """Store bodies of 4 KiB under new names that begin with *path*; return how many a second."""
    start = time.monotonic_ns()
    body = os.urandom(SMALL)

    def make(number: int) -> bytes:
        return head(method, f"{path}{start}-{number}", f"Content-Length: {SMALL}") + body

    return requests(port, make, 16, seconds, 100_000).rate


def appends(port: int, path: str, clients: int, seconds: float) -> float:
    """Append lines of 100 bytes to one file by PUT; return how many a second."""
    line = b"x" * 99 + b"\n"
    request = head("PUT", path, f"Content-Length: {len(line)}") + line
    return requests(port, lambda _: request, clients, seconds).rate


# Many connections


def in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raise_descriptors() -> None:
    """Let this process have as many descriptors as the loads need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))


@contextlib.contextmanager
def idle(port: int, path: str, count: int) -> Iterator[None]:
    """Keep *count* connections open for the block, each of which was answered once."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(connect(port))
            client.sendall(head("GET", path))
            _finish(client)
        yield


@contextlib.contextmanager
def large_transfers(
    port: int, method: str, big: str, size: int, target: str, source: Path
) -> Iterator[None]:
    """Run four downloads and four uploads again and again for the block, in a process of its own.

    :param big: the path of a file of *size* bytes.
    :param target: what the paths of uploads begin with.
    """
    child = os.fork()
    if child == 0:  # it ends by a signal or after 20 s, and never returns
        end = time.monotonic() + 20

        def move(number: int) -> None:
            while time.monotonic() < end:
                if number % 2:
                    upload(port, method, f"{target}{number}", source, min(size, 256 * MIB))
                else:
                    download(port, big, size)

        with contextlib.suppress(BaseException):
            in_threads(8, move)
        os._exit(0)
    time.sleep(0.3)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def slow_transfers(port: int, door: str, folder: Path, count: int, size: int, takes: float) -> int:
    """Run *count* uploads and *count* downloads at once, all slow; return how many were whole.

    Each has *size* bytes, and moves a part of them now and then, so that it takes *takes* seconds.

    :param folder: where the server keeps what is at *door*.
    """
    content = os.urandom(size)
    (folder / "slow").write_bytes(content)
    checksum, parts = zlib.crc32(content), 40
    part = -(-size // parts)
    whole = 0
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(connect(port)) for _ in range(count)]
        downloads = [stack.enter_context(connect(port, 1 << 16)) for _ in range(count)]
        for number, client in enumerate(uploads):
            client.sendall(head("POST", f"{door}slow-{number}", f"Content-Length: {size}"))
        for client in downloads:
            client.sendall(head("GET", f"{door}slow"))
        begun = [_begin(client, size) for client in downloads]
        sums = [zlib.crc32(body) for body in begun]
        left = [size - len(body) for body in begun]
        began = time.monotonic()
        for turn in range(parts):
            time.sleep(max(0, began + takes * turn / parts - time.monotonic()))
            for client in uploads:
                with contextlib.suppress(OSError):
                    client.sendall(content[turn * part : (turn + 1) * part])
            for number, client in enumerate(downloads):
                wanted = left[number] if turn == parts - 1 else min(left[number], part)
                while wanted > 0 and (some := client.recv(min(wanted, MIB))):
                    sums[number] = zlib.crc32(some, sums[number])
                    wanted -= len(some)
                    left[number] -= len(some)
        whole += sum(checksum == found for found in sums)
        for number, client in enumerate(uploads):
            with contextlib.suppress(OSError, Wrong):
                stored = answer(client)[0] == 200
                whole += stored and (folder / f"slow-{number}").read_bytes() == content
    return whole


def _begin(client: socket.socket, size: int) -> bytes:
    """Return the beginning of the body of a download, which may be refused."""
    with contextlib.suppress(OSError, Wrong):
        status, fields, body = answer(client)
        if status == 200 and int(fields["content-length"]) == size:
            return body
    return b""


@contextlib.contextmanager
def most_memory(look: Callable[[], float], every: float = 0.2) -> Iterator[list[float]]:
    """Look at the memory of a server now and then; what was found is in the list, in MiB."""
    seen, ended = [look()], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            seen.append(look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()
        seen.append(look())


@contextlib.contextmanager
def folder_in(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder for the block."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as made:
        yield Path(made)
