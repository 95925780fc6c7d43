"""What a client of the end-to-end test does, in a pod of the cluster; only the standard library.

Each command prints one JSON document. Every request has a connection of its own, as curl's have,
and none is tried again: what fails has failed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

PIECE = 64 << 10


def ask(
    base: str, method: str, path: str, body: bytes | Iterator[bytes] | None = None
) -> tuple[int, bytes]:
    """Send one request; return status and body of the answer."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=60)
    try:
        connection.request(method, path, body, {"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Load:
    """Clients that work until they are told to stop.

    :param base: URL of the daemon.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.stop = threading.Event()
        self.requests = self.transfers = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def expect(
        self, wanted: tuple[int, bytes], method: str, path: str, body: bytes | None = None
    ) -> None:
        """Send a request, and note when the answer is another one than *wanted*."""
        began = time.time()
        try:
            got = ask(self.base, method, path, body)
            error = "" if got == wanted else f"{got[0]} {got[1][:200]!r}"
        except OSError as failure:
            error = repr(failure)
        with self._lock:
            self.requests += 1
            if error:
                self.failures.append(f"{began:.1f} {method} {path}: {error}")

    def work(self, name: str) -> None:
        """Create, append, read, count, move and delete, again and again."""
        content = os.urandom(2000).hex().encode()
        path, moved = f"/file/load/{name}", f"/file/load/{name}-moved"
        while not self.stop.is_set():
            self.expect((200, b"OK"), "POST", path, content)
            self.expect((200, b"OK"), "PUT", path, b"more\n")
            self.expect((200, content + b"more\n"), "GET", path)
            self.expect((200, b"1"), "GET", f"{path}/wc")
            target = json.dumps({"path": f"load/{name}-moved"}).encode()
            self.expect((200, b"OK"), "PUT", f"{path}/mv", target)
            self.expect((200, b"OK"), "DELETE", moved)

    def transfer(self, name: str, seconds: float) -> None:
        """Upload and download slowly, *seconds* each, again and again."""
        while not self.stop.is_set():
            try:
                outcome = slow_upload(self.base, name, seconds) or slow_download(
                    self.base, name, seconds
                )
            except OSError as failure:
                outcome = repr(failure)
            with self._lock:
                self.transfers += 2
                if outcome:
                    self.failures.append(f"{time.time():.1f} transfer of {name}: {outcome}")

    def run(self, seconds: float, workers: int) -> dict[str, object]:
        """Work for so long, then return what has come of it."""
        calls: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (self.work, (f"worker-{number}",)) for number in range(workers)
        ]
        calls += [(self.transfer, (f"slow-{number}", 12.0)) for number in range(2)]
        threads = [threading.Thread(target=call, args=arguments) for call, arguments in calls]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        return {
            "requests": self.requests,
            "transfers": self.transfers,
            "failed": len(self.failures),
            "failures": self.failures[:20],
        }


def pieces(count: int, pause: float) -> Iterator[bytes]:
    """Yield the content of a slow upload."""
    for number in range(count):
        yield number.to_bytes(8, "big") * (PIECE // 8)
        time.sleep(pause)


def slow_upload(base: str, name: str, seconds: float, check: str = "") -> str:
    """Upload for so long; return what went wrong, if anything did.

    :param check: where it is then read; by default the same.
    """
    count = max(1, int(seconds * 10))
    status, body = ask(base, "POST", f"/file/slow/{name}", pieces(count, 0.1))
    if (status, body) != (200, b"OK"):
        return f"upload: {status} {body[:200]!r}"
    wanted = hashlib.sha256(b"".join(pieces(count, 0))).hexdigest()
    status, body = ask(check or base, "GET", f"/file/slow/{name}")
    return "" if hashlib.sha256(body).hexdigest() == wanted else f"stored: {status} {len(body)}"


def slow_download(base: str, name: str, seconds: float) -> str:
    """Download for so long; return what went wrong, if anything did."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=60)
    try:
        connection.request("GET", f"/file/slow/{name}", headers={"Connection": "close"})
        response = connection.getresponse()
        length = int(response.headers["Content-Length"])
        piece, received = max(1, length // 50), 0
        while chunk := response.read(piece):
            received += len(chunk)
            time.sleep(seconds / 50)
        return "" if received == length else f"download: {received} of {length} bytes"
    finally:
        connection.close()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["load", "upload", "get"])
    parser.add_argument("base")
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--check", default="", help="where an upload is read then")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    told: object
    if options.command == "load":
        told = Load(options.base).run(options.seconds, options.workers)
    elif options.command == "upload":
        try:
            error = slow_upload(options.base, options.name, options.seconds, options.check)
            told = {"error": error}
        except OSError as failure:
            told = {"error": repr(failure)}
    else:
        status, body = ask(options.base, "GET", options.name)
        told = {"status": status, "length": len(body)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
