"""``k8s/test_client.py``: that it finds a daemon right, and every wrong answer wrong."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.peers import served
from tests.harness import connect, twistd

pytestmark = pytest.mark.deploy

SCRIPT = Path(__file__).parents[2] / "k8s" / "test_client.py"


def try_it(url: str) -> tuple[int, str, str]:
    """Run the script as it is piped into a pod; return its status, and what it said."""
    run = subprocess.run(
        [sys.executable, "-I", "-", "--url", url],
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, of which a liar changes something."""

    asked: str
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Lie = Callable[[Exchange], Exchange]


@contextlib.contextmanager
def liar(port: int, lie: Lie) -> Iterator[str]:
    """Stand in front of the daemon at *port*; what it answers is passed on through *lie*."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            sent = self._body()
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            upstream.request(self.command, self.path, sent, headers)
            got = upstream.getresponse()
            true = Exchange(
                f"{self.command} {self.path}", got.status, got.read(), dict(got.getheaders())
            )
            upstream.close()
            told = lie(true)
            self.send_response_only(told.status)
            for name, value in told.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_POST = do_PUT = do_DELETE = do_GET

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url


@pytest.fixture(scope="module")
def daemon_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a daemon of which only others' answers are wrong."""
    root = tmp_path_factory.mktemp("client") / "root"
    with twistd(root, "--durability=none") as daemon:
        yield daemon.port


def test_a_right_daemon_passes_and_nothing_is_left(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--durability=none") as daemon:
        status, said, complained = try_it(daemon.url + "/")
    assert (status, complained) == (0, "")
    assert said.splitlines()[-1] == f"all is well at {daemon.url}/"
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".httpnas"]


def test_the_way_through_an_honest_proxy_changes_nothing(daemon_port: int) -> None:
    with liar(daemon_port, lambda true: true) as url:
        status, _, complained = try_it(url)
    assert (status, complained) == (0, "")


def status_of(start: str, status: int, end: str = "") -> Lie:
    """Return the lie that a request, by what it starts and ends with, has another status."""
    return lambda true: (
        replace(true, status=status)
        if true.asked.startswith(start) and true.asked.endswith(end)
        else true
    )


def body_of(start: str, body: bytes, end: str = "", once: int = 200) -> Lie:
    """Return the lie that a request which had the status *once* has another body."""
    return lambda true: (
        replace(true, body=body)
        if true.asked.startswith(start) and true.asked.endswith(end) and true.status == once
        else true
    )


LIES: dict[str, tuple[Lie, str]] = {
    "it is dead": (status_of("GET /health", 500), "GET /health"),
    "it is not ready": (status_of("GET /ready", 503), "GET /ready"),
    "a form is 200": (status_of("POST /files/", 200), "POST /files/"),
    "another message": (body_of("POST /files/", b'{"message": "OK"}', once=202), "POST /files/"),
    "no message": (body_of("POST /files/", b"OK", once=202), "POST /files/"),
    "another file": (body_of("GET /files/", b"other"), "GET /files/"),
    "shown and not saved": (
        lambda true: replace(true, headers={}) if true.asked.startswith("GET /files/") else true,
        "Content-Disposition",
    ),
    "an upload is 202": (status_of("POST /file/", 202), "POST /file/"),
    "another OK": (body_of("POST /file/", b"okay"), "POST /file/"),
    "an append is 404": (status_of("PUT /file/", 404), "PUT /file/"),
    "what was stored is other": (body_of("GET /file/", b"1\n2\n", "numbers.txt"), "GET /file/"),
    "another count": (body_of("GET /file/", b"4\n", "/wc"), "/wc: 3 lines must be counted"),
    "no ranges": (
        lambda true: replace(true, status=200) if true.status == 206 else true,
        "must be 206",
    ),
    "no conditions": (
        lambda true: replace(true, status=200) if true.status == 412 else true,
        "must be 412",
    ),
    "a key is forgotten": (
        lambda true: replace(true, body=true.body + b"4\n") if true.body.endswith(b"4\n") else true,
        "numbers.txt: the body must be",
    ),
    "an empty folder": (body_of("GET /file/", b"", "/"), "the body must be b'done.txt"),
    "a byte too few": (
        lambda true: replace(true, body=true.body[:-1]) if len(true.body) > 1 << 20 else true,
        "what comes must be what was sent",
    ),
    "it stays": (
        lambda true: replace(true, status=200) if true.status == 404 else true,
        "must be 404",
    ),
    "a deletion is refused": (status_of("DELETE /file/", 403), "DELETE /file/"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_wrong_answer_is_told_with_its_request(name: str, daemon_port: int) -> None:
    lie, says = LIES[name]
    with liar(daemon_port, lie) as url:
        status, said, complained = try_it(url)
    assert status == 1
    assert complained.startswith(f"FAILED at {url}: ")
    assert says in complained
    assert "all is well" not in said


def test_where_nobody_listens_it_says_so() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    status, _, complained = try_it(f"http://127.0.0.1:{port}")
    assert status == 1
    assert "GET /health: no answer: ConnectionRefusedError" in complained


def test_what_is_no_url_is_refused() -> None:
    status, _, complained = try_it("localhost:3000")
    assert status == 1
    assert "localhost:3000 is no URL" in complained
