from __future__ import annotations

import json
import os
import re
import select
import socket
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.log import Log, _File, as_json, as_text
from httpnas.web.server.deadlines import Limits
from tests.harness import Nas, connect, wait_until

FIELDS = {
    "time",
    "id",
    "client",
    "method",
    "verb",
    "name",
    "status",
    "bytes_in",
    "bytes_out",
    "seconds",
    "ended",
}
RECORD = {
    "id": "6c6b62b4-1f26-4b8e-a4f2-2a6a1a3e1d9f",
    "client": "192.0.2.1",
    "method": "GET",
    "verb": "download",
    "name": "/a",
    "status": 200,
    "bytes_in": 0,
    "bytes_out": 12,
    "seconds": 0.25,
    "ended": "answered",
}
#: What a terminal, or whoever reads lines, would act on.
INJECTIONS = [
    'a\n{"status": 200}',
    "a\r\nb",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x08\x7f",
    '"quoted" \\ back',
    "{request} {time!r} %s",
    "气 \U0001f600",
]


def event(**record: object) -> LogEvent:
    return {
        "log_time": 1_000_000_000.125,
        "log_level": LogLevel.info,
        "log_namespace": "n",
        "log_format": "{request[method]} {request[name]}",
        "request": RECORD | record,
    }


@implementer(ILogObserver)
class Lines:
    """The requests that are logged, as the lines they become."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, logged: LogEvent) -> None:
        if "request" in logged:
            self.events.append(logged)

    async def last(self) -> dict[str, Any]:
        """Wait for a request to be logged, and return its line of JSON."""
        for _ in range(1000):
            if self.events:
                break
            await deferLater(reactor, 0.005)
        assert len(self.events) == 1
        logged = self.events.pop()
        text = as_text(logged)
        assert text is not None and text.count("\n") == 1
        line = as_json(logged)
        assert line.endswith("\n") and line.count("\n") == 1
        record: dict[str, Any] = json.loads(line)
        return record


@pytest.fixture
def log() -> Iterator[Lines]:
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    yield lines
    globalLogPublisher.removeObserver(lines)


# The form of a line


@pytest.mark.parametrize("field", ["name", "method", "client", "ended"])
@pytest.mark.parametrize("value", INJECTIONS)
def test_a_line_of_json_is_one_line_whatever_is_in_it(field: str, value: str) -> None:
    line = as_json(event(**{field: value}))
    assert line.endswith("}\n") and line.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f]", line)
    record = json.loads(line)
    assert record == RECORD | {"time": "2001-09-09T01:46:40.125Z", field: value}


@pytest.mark.parametrize("field", ["name", "method", "client", "ended"])
@pytest.mark.parametrize("value", [*INJECTIONS, "\x85", "\u2028", "\u202egpj.exe", "\x9b2J"])
def test_a_line_of_text_is_one_line_whatever_is_in_it(field: str, value: str) -> None:
    line = as_text(event(**{field: value}))
    assert line is not None
    assert line.endswith("\n") and len(line.splitlines()) == 1
    assert line[:-1].isprintable()
    for shown in (str(part) for key, part in RECORD.items() if key not in (field, "seconds")):
        assert shown in line


def test_text_leaves_what_can_be_read_as_it_is() -> None:
    line = as_text(event(name="/气 a", client=None))
    assert line is not None
    assert line.startswith("2001-09-09T01:46:40.125Z 200 GET /气 a in=0 out=12 0.25")
    assert " - answered " in line


@pytest.mark.parametrize("form", [as_json, as_text])
def test_other_events_are_told_with_their_traceback(
    form: Callable[[LogEvent], str | None],
) -> None:
    out: list[str] = []
    logger = Logger("n", observer=lambda told: out.append(form(told) or ""))  # type: ignore[arg-type]
    try:
        raise RuntimeError("what\nhappened")
    except RuntimeError:
        logger.failure("it failed: {why}", Failure(), why="reason")
    assert "it failed: reason" in out[0]
    assert "RuntimeError" in out[0] and "Traceback" in out[0]
    if form is as_json:
        assert out[0].count("\n") == 1
        record = json.loads(out[0])
        assert set(record) == {"time", "level", "message", "traceback"}
        assert record["level"] == "critical"


def test_a_log_file_is_rotated_without_touching_the_umask_of_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.touch(0o640)
    file = _File.fromFullPath(str(path))
    monkeypatch.setattr("os.umask", lambda _: pytest.fail("the umask of all threads was set"))
    for number in range(3):
        file.write(f"{number}\n")
        file.rotate()
    assert [(tmp_path / f"log.{n}").read_text() for n in (1, 2, 3)] == ["2\n", "1\n", "0\n"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_log_file_that_was_cut_goes_on_at_its_new_end(tmp_path: Path) -> None:
    file = _File.fromFullPath(str(tmp_path / "log"))
    file.write("before\n")
    os.truncate(tmp_path / "log", 0)
    file.write("after\n")
    assert (tmp_path / "log").read_text() == "after\n"


def test_a_log_file_that_cannot_be_renamed_or_opened_again_is_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = _File.fromFullPath(str(folder / "log"))
    os.rename(folder, tmp_path / "elsewhere")
    file.rotate()
    with pytest.raises(FileNotFoundError):
        file.reopen()
    file.write("line\n")
    assert (tmp_path / "elsewhere" / "log").read_text() == "line\n"


# What is told of a request


def test_lines_that_wait_are_written_together_in_pieces_that_a_pipe_keeps_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sizes = tmp_path / "log", []
    log = Log(str(path), dropped=lambda: None)
    write = _File.write

    def noted(file: _File, text: str) -> None:
        sizes.append(len(text))
        write(file, text)

    monkeypatch.setattr(_File, "write", noted)
    for number in range(500):
        log(event(id=str(number)))
    threading.Thread(target=log._work, daemon=True).start()
    log.flush(10)
    found = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert found == [str(number) for number in range(500)]
    assert len(sizes) < 100
    assert max(sizes) <= select.PIPE_BUF


@pytest.mark.parametrize(
    ("method", "path", "data", "expected"),
    [
        ("POST", "/file/d/a%20b", b"12345", ("upload", "/d/a b", 200, 5, 2)),
        ("PUT", "/file/f", b"123", ("append", "/f", 200, 3, 2)),
        ("GET", "/file/f", None, ("download", "/f", 200, 0, 7)),
        ("HEAD", "/file/f", None, ("download", "/f", 200, 0, 0)),
        ("GET", "/file/f/wc", None, ("count", "/f", 200, 0, 1)),
        ("GET", "/file/", None, ("list", "/", 200, 0, 2)),
        ("GET", "/file/%E6%B0%94", None, ("download", "/气", 404, 0, None)),
        ("GET", "/file/%0A", None, ("download", "/file/%0A", 400, 0, None)),
        ("GET", "/file/%FF", None, ("download", "/file/%FF", 400, 0, None)),
        ("GET", "/nowhere", None, ("none", "/nowhere", 404, 0, None)),
        ("PATCH", "/file/f", b"x", ("refuse", "/f", 405, 1, None)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_request_is_logged_with_all_that_is_known(
    nas: Nas, log: Lines, method: str, path: str, data: bytes | None, expected: tuple[Any, ...]
) -> None:
    (nas.root / "f").write_bytes(b"content")
    _, body, headers = await nas.fetch(method, path, data=data)
    record = await log.last()
    assert set(record) == FIELDS
    verb, name, status, bytes_in, bytes_out = expected
    assert (record["verb"], record["name"], record["status"]) == (verb, name, status)
    assert record["bytes_in"] in ((0, bytes_in) if status == 405 else (bytes_in,))
    assert record["bytes_out"] == (len(body) if bytes_out is None else bytes_out)
    assert (record["method"], record["client"]) == (method, "127.0.0.1")
    assert record["ended"] == "answered"
    assert 0 <= record["seconds"] < 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    assert [record["id"]] == headers.getRawHeaders("X-Request-ID")
    if status >= 400:
        assert json.loads(body)["instance"] == f"#{record['id']}"


@pytest_twisted.ensureDeferred
async def test_every_request_has_an_id_of_its_own(nas: Nas, log: Lines) -> None:
    ids = set()
    for _ in range(5):
        await nas.fetch("GET", "/file")
        ids.add((await log.last())["id"])
    assert len(ids) == 5


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ({"X-Request-ID": "dag-7.task_3~1"}, "dag-7.task_3~1"),
        ({"X-Request-ID": "a" * 128}, "a" * 128),
        ({"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}, TRACE_ID),
        ({"traceparent": f"01-{TRACE_ID}-00f067aa0ba902b7-01-more"}, TRACE_ID),
        ({"X-Request-ID": "mine", "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}, "mine"),
        ({"X-Request-ID": "no good", "traceparent": f"00-{TRACE_ID}-{'1' * 16}-00"}, TRACE_ID),
        ({"X-Request-ID": "a" * 129}, None),
        ({"X-Request-ID": ""}, None),
        ({"X-Request-ID": 'a"b'}, None),
        ({"X-Request-ID": "a\tb"}, None),
        ({"X-Request-ID": "é"}, None),
        ({"X-Request-ID": ["one", "two"]}, None),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"ff-{TRACE_ID}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE_ID.upper()}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7"}, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_request_has_the_id_that_its_client_gave_it_if_that_is_good(
    nas: Nas, log: Lines, sent: dict[str, Any], taken: str | None
) -> None:
    lines = b"".join(
        f"{name}: {value}\r\n".encode()
        for name, values in sent.items()
        for value in ([values] if isinstance(values, str) else values)
    )
    answer = await nas.talk(
        b"GET /file/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n"
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"^X-Request-ID: (.*?)\r?$", head, re.I | re.M)
    assert found is not None
    answered = found[1].decode()
    assert (await log.last())["id"] == answered
    assert json.loads(body)["instance"] == f"#{answered}"
    if taken is None:
        assert uuid.UUID(answered).version == 4
    else:
        assert answered == taken


@pytest.mark.parametrize("raw", ["a\x85b", "a\u2028b", "\u202egpj", 'a", "status": 1'])
@pytest_twisted.ensureDeferred
async def test_a_name_can_not_forge_a_line(nas: Nas, log: Lines, raw: str) -> None:
    target = raw.replace('"', "%22").replace(" ", "%20").encode()
    await nas.talk(b"GET /file/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
    assert (await log.last())["name"] == f"/{raw}"


def cut(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_in_its_body_is_logged_as_gone(
    nas: Nas, log: Lines, method: str
) -> None:
    (nas.root / "f").write_bytes(b"old")
    client = await nas.in_thread(connect, nas.port)
    head = f"{method} /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    client.sendall(head.encode() + b"part")
    await nas.in_thread(wait_until, lambda: any(r.body.received for r in nas.site.running()))
    assert log.events == []
    client.close()
    record = await log.last()
    assert set(record) == FIELDS
    assert (record["ended"], record["name"], record["bytes_in"]) == ("client gone", "/f", 4)
    assert record["status"] is None, "nothing was answered"
    assert (nas.root / "f").read_bytes() == b"old"


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_in_a_download_is_logged_as_gone(
    nas: Nas, log: Lines
) -> None:
    size = 30 << 20
    (nas.root / "f").write_bytes(bytes(size))
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n")
    await nas.in_thread(client.recv, 1000)
    cut(client)
    record = await log.last()
    assert (record["ended"], record["name"], record["status"]) == ("client gone", "/f", 200)
    assert 0 < record["bytes_out"] < size


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_more_is_logged_as_too_slow(
    tmp_path: Path, log: Lines
) -> None:
    nas = Nas(tmp_path / "root", Limits(stall=0.1))
    (nas.root / "f").write_bytes(bytes(30 << 20))
    try:
        client = await nas.in_thread(connect, nas.port)
        client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n")
        record = await log.last()
        client.close()
    finally:
        await nas.stop()
    assert (record["ended"], record["name"]) == ("client too slow", "/f")


@pytest_twisted.ensureDeferred
async def test_a_request_that_breaks_off_in_its_framing_is_logged_as_refused(
    nas: Nas, log: Lines
) -> None:
    head = b"POST /file/f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await nas.talk(head, b"5\r\n12345\r\nnonsense\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    record = await log.last()
    assert (record["ended"], record["status"], record["name"]) == ("refused", 400, "/f")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["instance"] == f"#{record['id']}"
    assert not (nas.root / "f").exists()


@pytest_twisted.ensureDeferred
async def test_a_download_that_fails_is_logged_as_failed(nas: Nas, log: Lines) -> None:
    size = 30 << 20
    (nas.root / "f").write_bytes(bytes(size))
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n")
    await nas.in_thread(client.recv, 1000)
    (nas.root / "f").write_bytes(b"")

    def read_on() -> None:
        try:
            while client.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass

    await nas.in_thread(read_on)
    client.close()
    assert (await log.last())["ended"] == "failed"
