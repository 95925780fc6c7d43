#!/usr/bin/env python3
"""Try a daemon that runs somewhere: what clients of simple-fs do, and what clients of http-nas do.

Needs nothing but Python 3.10; reads no file beside it, so that it can be piped into a pod::

    python3 test_client.py --url http://localhost:3000
    kubectl exec -i deployment/http-nas -- python3 - --url http://http-nas:3000 < test_client.py

It says what it does, leaves nothing behind, and ends with status 1 at the first wrong answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import uuid
from collections.abc import Iterable
from urllib.parse import urlsplit

#: Seconds that an answer may take; the daemon waits 30 for a name that others change.
PATIENCE = 60.0
#: Bytes of the body that is streamed without a length.
BIG = 4 << 20

Body = bytes | Iterable[bytes] | None
Headers = dict[str, str]


class WrongAnswer(Exception):
    """An answer that is not what it has to be."""


class Answer:
    """What was answered to one request."""

    def __init__(self, asked: str, status: int, headers: Headers, body: bytes) -> None:
        self._asked = asked
        self.status = status
        self.headers = headers
        self.body = body

    def must(self, holds: bool, what: str) -> None:
        """Refuse the answer unless *holds*."""
        if not holds:
            shown = self.body[:300].decode(errors="replace")
            raise WrongAnswer(f"{self._asked}: {what}; it was {self.status}: {shown}")

    def must_be(self, status: int, body: bytes | None = None) -> None:
        self.must(self.status == status, f"the status must be {status}")
        self.must(body is None or self.body == body, f"the body must be {body!r:.100}")


class Daemon:
    """A daemon at a URL.

    :param url: such as ``http://http-nas:3000``; may have a path.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongAnswer(f"{url} is no URL such as http://localhost:3000")
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._connect = kinds[parts.scheme]
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/")

    def ask(
        self, method: str, path: str, body: Body = None, headers: Headers | None = None
    ) -> Answer:
        """Send a request on a connection of its own; a body that is no bytes is sent chunked."""
        connection = self._connect(self._host, self._port, timeout=PATIENCE)
        asked = f"{method} {path}"
        try:
            connection.request(method, self._base + path, body, headers or {})
            got = connection.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Answer(asked, got.status, found, got.read())
        except (OSError, http.client.HTTPException) as error:
            raise WrongAnswer(f"{asked}: no answer: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def say(what: str) -> None:
    print(what, flush=True)


def form(name: str, content: bytes) -> tuple[bytes, Headers]:
    """Return a form as simple-fs's clients send it, with another field, and its headers."""
    boundary = uuid.uuid4().hex
    lines = [
        f"--{boundary}",
        'Content-Disposition: form-data; name="Button"',
        "",
        "Submit",
        f"--{boundary}",
        f'Content-Disposition: form-data; name="file"; filename="{name}"',
        "Content-Type: multipart/form-data",
        "",
        content.decode(),
        f"--{boundary}--",
        "",
    ]
    return "\r\n".join(lines).encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


def round_trip(daemon: Daemon, name: str) -> None:
    """Do what simple-fs's own test does: send a file in a form, and fetch it again."""
    content = str(uuid.uuid4()).encode()

    say(f"simple-fs: POST /files/ with a form that has the file {name}")
    answer = daemon.ask("POST", "/files/", *form(name, content))
    answer.must_be(202)
    expected = {"message": f"{name} upload task submitted."}
    answer.must(json_or_none(answer.body) == expected, f"the body must be {expected}")

    say(f"simple-fs: GET /files/{name}, which must be the same")
    answer = daemon.ask("GET", f"/files/{name}")
    answer.must_be(200, content)
    expected_name = rf'attachment; filename="?download_\d+_{re.escape(name)}"?'
    disposition = answer.headers.get("content-disposition", "")
    answer.must(
        re.match(expected_name, disposition) is not None,
        f"Content-Disposition must match {expected_name}, not be {disposition!r}",
    )


def json_or_none(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def tour(daemon: Daemon, folder: str) -> None:
    """Do what http-nas is for: upload, append, count, read, move, list and delete."""
    path = f"/file/{folder}/numbers.txt"
    say(f"http-nas: POST {path}, PUT (append), and read back")
    daemon.ask("POST", path, b"1\n2\n").must_be(200, b"OK")
    daemon.ask("PUT", path, b"3\n").must_be(200, b"OK")
    daemon.ask("GET", path).must_be(200, b"1\n2\n3\n")

    say(f"http-nas: GET {path}/wc, a range, and a condition")
    answer = daemon.ask("GET", f"{path}/wc")
    answer.must(answer.status == 200 and answer.body.strip() == b"3", "3 lines must be counted")
    daemon.ask("GET", path, headers={"Range": "bytes=2-3"}).must_be(206, b"2\n")
    daemon.ask("POST", path, b"mine", {"If-None-Match": "*"}).must_be(412)

    say("http-nas: append twice with one Idempotency-Key, which must land once")
    for _ in range(2):
        daemon.ask("PUT", path, b"4\n", {"Idempotency-Key": folder}).must_be(200, b"OK")
    daemon.ask("GET", path).must_be(200, b"1\n2\n3\n4\n")

    say("http-nas: move it, and list the folder")
    moved = json.dumps({"path": f"{folder}/done.txt"}).encode()
    daemon.ask("PUT", path, moved, {"Content-Type": "application/json"}).must_be(200, b"OK")
    daemon.ask("GET", path).must_be(404)
    daemon.ask("GET", f"/file/{folder}/").must_be(200, b"done.txt\n")

    say(f"http-nas: POST {BIG >> 20} MiB without a length, and fetch them")
    big = f"/file/{folder}/big"
    block = bytes(range(256)) * 256
    blocks = BIG // len(block)
    daemon.ask("POST", big, (block for _ in range(blocks))).must_be(200, b"OK")
    answer = daemon.ask("GET", big)
    answer.must_be(200)
    answer.must(answer.body == block * blocks, "what comes must be what was sent")


def delete(daemon: Daemon, name: str) -> None:
    say(f"delete {name}")
    daemon.ask("DELETE", f"/file/{name}").must_be(200, b"OK")
    daemon.ask("GET", f"/file/{name}").must_be(404)


def main() -> str | None:
    """Return what is wrong, if anything is."""
    parser = argparse.ArgumentParser(description="Try a daemon that runs somewhere.")
    parser.add_argument("--url", required=True, help="such as http://localhost:3000")
    url = parser.parse_args().url
    names = [f"test-client-{uuid.uuid4()}" for _ in range(2)]
    made = []
    try:
        daemon = Daemon(url)
        say("health: GET /health and GET /ready")
        daemon.ask("GET", "/health").must_be(200)
        daemon.ask("GET", "/ready").must_be(200)
        for name, part in zip(names, (round_trip, tour), strict=True):
            made.append(name)
            part(daemon, name)
        while made:
            delete(daemon, made.pop())
    except WrongAnswer as error:
        for name in made:
            leave_behind_nothing(daemon, name)
        return f"FAILED at {url}: {error}"
    say(f"all is well at {url}")
    return None


def leave_behind_nothing(daemon: Daemon, name: str) -> None:
    """Delete what a failed part may have made; that something is wrong is known already."""
    try:
        daemon.ask("DELETE", f"/file/{name}")
    except WrongAnswer as error:
        say(f"could not delete {name}: {error}")


if __name__ == "__main__":
    sys.exit(main())
