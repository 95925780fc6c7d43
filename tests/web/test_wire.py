"""HTTP framing, as bytes over a real socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.testing import StringTransport

from httpnas.storage.append import Append
from httpnas.storage.version import Check, Version
from httpnas.web.server.channel import StreamingChannel
from httpnas.web.server.head import Head
from httpnas.web.server.request import Ending, StreamingRequest
from tests.harness import Client, Nas, logged, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
OK = (200, b"OK")
#: What must never be done: it stands where only data, or nothing, may be read.
SMUGGLED = b"POST /file/smuggled HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"


def post(name: str, body: bytes) -> bytes:
    return b"POST /file/%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
        name.encode(),
        HOST,
        len(body),
        body,
    )


def append(name: str, body: bytes) -> bytes:
    return post(name, body).replace(b"POST", b"PUT", 1)


def get(name: str) -> bytes:
    return b"GET /file/%b HTTP/1.1\r\n%b\r\n" % (name.encode(), HOST)


def chunked(name: str, encoded: bytes) -> bytes:
    head = b"POST /file/%b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n"
    return head % (name.encode(), HOST) + encoded


def chunks(
    body: bytes, sizes: Iterable[int], extension: bytes = b"", trailer: bytes = b""
) -> bytes:
    encoded, offset = b"", 0
    for size in sizes:
        piece = body[offset : offset + size]
        offset += size
        if piece:
            encoded += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    return encoded + b"0%b\r\n%b\r\n" % (extension, trailer)


def brief(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, bytes]:
    return answer[0], answer[2]


def stored(nas: Nas) -> set[str]:
    return {entry.name for entry in nas.root.iterdir()} - {".httpnas"}


# What is taken


CONTENT = b"line\r\n0\r\n\r\nGET / HTTP/1.1\n\x00\xff"
UPLOADS = {
    "length": post("f", CONTENT),
    "chunked": chunked("f", chunks(CONTENT, [1, 10, 3, 99], b";a=b", b"X-Checked: 1\r\n")),
}


@pytest.mark.parametrize("framing", UPLOADS)
@pytest_twisted.ensureDeferred
async def test_an_upload_split_anywhere_is_the_same_file(nas: Nas, framing: str) -> None:
    upload = UPLOADS[framing]

    def split_everywhere() -> None:
        with Client(nas.port) as client:
            for at in range(1, len(upload)):
                client.send(upload[:at], upload[at:])
                assert brief(client.answer()) == OK, at
                assert (nas.root / "f").read_bytes() == CONTENT, at
                (nas.root / "f").unlink()

    await nas.in_thread(split_everywhere)
    assert nas.leftovers() == []


@pytest.mark.parametrize("framing", UPLOADS)
@pytest_twisted.ensureDeferred
async def test_an_upload_sent_byte_by_byte_is_the_same_file(nas: Nas, framing: str) -> None:
    def byte_by_byte() -> None:
        with Client(nas.port) as client:
            client.send(*(bytes([byte]) for byte in UPLOADS[framing]))
            assert brief(client.answer()) == OK

    await nas.in_thread(byte_by_byte)
    assert (nas.root / "f").read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_chunks_of_any_size_are_put_together(nas: Nas) -> None:
    body = bytes(range(256)) * 4096
    encodings = [
        chunks(body, [len(body)]),
        chunks(body, [1] * 300 + [65535, 65536, 65537, len(body)]),
        chunks(body, [7919] * 200, b' ;q="a b;c"'.strip(), b"A: b\r\nContent-Length: 3\r\n"),
        chunks(body, [len(body)]).replace(
            b"100000\r\n", b"000000000010 0000\r\n".replace(b" ", b"")
        ),
    ]

    def upload() -> None:
        with Client(nas.port) as client:
            for encoded in encodings:
                client.send(chunked("f", encoded))
                assert brief(client.answer()) == OK
                assert (nas.root / "f").read_bytes() == body

    await nas.in_thread(upload)


@pytest_twisted.ensureDeferred
async def test_empty_bodies_make_empty_files(nas: Nas) -> None:
    def upload() -> None:
        with Client(nas.port) as client:
            client.send(post("length", b"") + chunked("chunked", b"0\r\n\r\n"))
            assert [brief(client.answer()) for _ in range(2)] == [OK, OK]
            client.send(b"POST /file/none HTTP/1.1\r\n" + HOST + b"\r\n")
            assert brief(client.answer()) == OK

    await nas.in_thread(upload)
    for name in ("length", "chunked", "none"):
        assert (nas.root / name).read_bytes() == b""


# Several requests on a connection


@pytest_twisted.ensureDeferred
async def test_pipelined_requests_are_answered_in_order_each_seeing_those_before(nas: Nas) -> None:
    first, second = SMUGGLED, b"PUT /file/f HTTP/1.1\r\n\r\n"
    requests = [
        (post("f", first), OK),
        (get("f"), (200, first)),
        (append("f", second), OK),
        (get("f"), (200, first + second)),
        (chunked("f", chunks(b"third", [2, 3])), OK),
        (get("f/wc"), (200, b"0")),
        (get("f"), (200, b"third")),
        (b"DELETE /file/f HTTP/1.1\r\n" + HOST + b"\r\n", OK),
        (HEALTH, OK),
    ]
    sent = b"".join(request for request, _ in requests)

    def pipeline(*segments: bytes) -> None:
        with Client(nas.port) as client:
            client.send(*segments)
            assert [brief(client.answer()) for _ in requests] == [answer for _, answer in requests]

    await nas.in_thread(pipeline, sent)
    for at in range(1, len(sent), 7):
        await nas.in_thread(pipeline, sent[:at], sent[at:])
    assert stored(nas) == set()


@pytest_twisted.ensureDeferred
async def test_pipelined_mutations_are_done_one_at_a_time(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    begin = nas.storage.begin_append

    def counted(
        name: bytes, check: Check, length: int | None, expected: int | None, key: bytes | None
    ) -> Append | Version:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return begin(name, check, length, expected, key)

    real = nas.site.log

    def done(request: StreamingRequest) -> None:
        nonlocal running
        running -= 1
        real(request)

    monkeypatch.setattr(nas.storage, "begin_append", counted)
    monkeypatch.setattr(nas.site, "log", done)
    (nas.root / "f").touch()

    def pipeline() -> None:
        with Client(nas.port) as client:
            client.send(b"".join(append("f", b"%d," % n) for n in range(50)))
            assert [client.answer()[0] for _ in range(50)] == [200] * 50

    await nas.in_thread(pipeline)
    assert (nas.root / "f").read_bytes() == b"".join(b"%d," % n for n in range(50))
    assert most == 1


@pytest_twisted.ensureDeferred
async def test_many_pipelined_requests_that_nobody_reads_the_answers_of_come_through(
    nas: Nas,
) -> None:
    content = b"x" * 50_000
    (nas.root / "f").write_bytes(content)

    def pipeline() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(get("f") * 200)
            for _ in range(200):
                assert brief(client.answer()) == (200, content)

    await nas.in_thread(pipeline)


@pytest_twisted.ensureDeferred
async def test_what_follows_a_request_that_closes_is_not_executed(nas: Nas) -> None:
    closing = HEALTH.replace(HOST, HOST + b"Connection: foo, Close\r\n")
    for request in (closing, HEALTH.replace(b"HTTP/1.1", b"HTTP/1.0")):
        answers = await nas.talk(request + SMUGGLED)
        assert answers.count(b"HTTP/1.") == 1
        assert b"Connection: close" in answers
    assert stored(nas) == set()


@pytest_twisted.ensureDeferred
async def test_http_1_0_uploads_downloads_and_closes(nas: Nas) -> None:
    body = b"old but sound\n"
    upload = b"POST /file/f HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert (await nas.talk(upload)).endswith(b"\r\n\r\nOK")
    answer = await nas.talk(b"GET /file/f HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b"\r\n\r\n" + body)


@pytest_twisted.ensureDeferred
async def test_an_expectation_of_http_1_0_is_ignored(nas: Nas) -> None:
    head = b"POST /file/f HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head)
            wait_until(lambda: nas.site.channels)
            (channel,) = nas.site.channels
            wait_until(lambda: channel.requests and channel.requests[0].body._consumer)
            client.send(b"abc")
            assert brief(client.answer()) == OK  # a 100 would have come before it

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_one_empty_line_between_requests_is_skipped(nas: Nas) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post("f", b"x") + b"\r\n" + HEALTH)
            assert [brief(client.answer()) for _ in range(2)] == [OK, OK]

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_raw_utf_8_in_a_target_is_taken_as_if_it_were_escaped(nas: Nas) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post("grün", b"x") + get("gr%C3%BCn"))
            assert [brief(client.answer()) for _ in range(2)] == [OK, (200, b"x")]

    await nas.in_thread(talk)
    assert stored(nas) == {"grün"}


@pytest_twisted.ensureDeferred
async def test_headers_just_within_the_limits_are_taken(nas: Nas) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            client.send(HEALTH.replace(HOST, HOST + b"X: y\r\n" * 99))
            assert brief(client.answer()) == OK
            client.send(HEALTH.replace(HOST, HOST + b"X: %b\r\n" % (b"y" * 16_000)))
            assert brief(client.answer()) == OK
            client.send(b"GET /file?%b HTTP/1.1\r\n%b\r\n" % (b"q" * 8_000, HOST))
            assert brief(client.answer()) == OK
            client.send(HEALTH.replace(HOST, HOST + b"X:\ty\xe9z \r\n"))
            assert brief(client.answer()) == OK

    await nas.in_thread(talk)


# What is refused


@pytest.mark.parametrize("sent", [b"GET /file HTTP/1.1\nHost: nas\n\n", b"\n", b"GET /\n"])
@pytest_twisted.ensureDeferred
async def test_a_bare_line_feed_is_refused_at_once(nas: Nas, sent: bytes) -> None:
    nas.site.limits.headers = nas.site.limits.idle = 1e6
    assert_is_refusal(await nas.talk(sent), 400)


def head(*lines: bytes, first: bytes = b"POST /file/f HTTP/1.1") -> bytes:
    return b"".join(line + b"\r\n" for line in (first, *lines, b""))


def with_host(*lines: bytes) -> bytes:
    return head(b"Host: nas", *lines)


def bad_chunk(encoded: bytes) -> bytes:
    return with_host(b"Transfer-Encoding: chunked") + encoded


TE, CL = b"Transfer-Encoding: chunked", b"Content-Length: 5"
REFUSED: dict[str, tuple[int, bytes]] = {
    "length and coding": (400, with_host(CL, TE) + b"0\r\n\r\n"),
    "coding and length": (400, with_host(TE, CL) + b"0\r\n\r\n"),
    "two lengths": (400, with_host(CL, b"Content-Length: 6") + b"hello"),
    "one length twice": (400, with_host(CL, CL) + b"hello"),
    "two codings": (400, with_host(TE, TE) + b"0\r\n\r\n"),
    "length +5": (400, with_host(b"Content-Length: +5") + b"hello"),
    "length -5": (400, with_host(b"Content-Length: -5") + b"hello"),
    "length 5,5": (400, with_host(b"Content-Length: 5,5") + b"hello"),
    "length 5, 5": (400, with_host(b"Content-Length: 5, 5") + b"hello"),
    "length 0x5": (400, with_host(b"Content-Length: 0x5") + b"hello"),
    "length 5_0": (400, with_host(b"Content-Length: 5_0") + b"hello"),
    "length 5.0": (400, with_host(b"Content-Length: 5.0") + b"hello"),
    "length superscript": (400, with_host(b"Content-Length: \xb2") + b"hello"),
    "length empty": (400, with_host(b"Content-Length:") + b"hello"),
    "length 2**63": (400, with_host(b"Content-Length: %d" % 2**63) + b"hello"),
    "length 2**64": (400, with_host(b"Content-Length: %d" % 2**64) + b"hello"),
    "length 2**64 + 5": (400, with_host(b"Content-Length: %d" % (2**64 + 5)) + b"hello"),
    "length of 5000 digits": (400, with_host(b"Content-Length: " + b"9" * 5000) + b"hello"),
    "length of 5000 zeros": (400, with_host(b"Content-Length: " + b"0" * 5000) + b"hello"),
    "chunk size of letters": (400, bad_chunk(b"zz\r\nhello\r\n0\r\n\r\n")),
    "chunk size 0x5": (400, bad_chunk(b"0x5\r\nhello\r\n0\r\n\r\n")),
    "chunk size -5": (400, bad_chunk(b"-5\r\nhello\r\n0\r\n\r\n")),
    "chunk size +5": (400, bad_chunk(b"+5\r\nhello\r\n0\r\n\r\n")),
    "chunk size empty": (400, bad_chunk(b"\r\nhello\r\n0\r\n\r\n")),
    "chunk size 5_0": (400, bad_chunk(b"5_0\r\nhello\r\n0\r\n\r\n")),
    "chunk size with a blank": (400, bad_chunk(b" 5\r\nhello\r\n0\r\n\r\n")),
    "chunk size ended by LF": (400, bad_chunk(b"5\nhello\r\n0\r\n\r\n")),
    "chunk longer than its size": (400, bad_chunk(b"5\r\nhello!\r\n0\r\n\r\n")),
    "chunk ended by LF": (400, bad_chunk(b"5\r\nhello\n0\r\n\r\n")),
    "chunk extension with LF": (400, bad_chunk(b"5;a\nb\r\nhello\r\n0\r\n\r\n")),
    "chunk extension without end": (400, bad_chunk(b"5;" + b"a" * 5000)),
    "chunk extension of eight bits": (400, bad_chunk(b"5;a=\xe9\r\nhello\r\n0\r\n\r\n")),
    "quoted chunk extension of eight bits": (
        400,
        bad_chunk(b'5;a="\xe9"\r\nhello\r\n0\r\n\r\n'),
    ),
    "trailer without a colon": (400, bad_chunk(b"0\r\nnonsense\r\n\r\n")),
    "trailer without a name": (400, bad_chunk(b"0\r\n: b\r\n\r\n")),
    "trailer with a blank before the colon": (400, bad_chunk(b"0\r\nA : b\r\n\r\n")),
    "bare LF in the trailers": (400, bad_chunk(b"0\r\nA: b\nC: d\r\n\r\n")),
    "trailers without end": (400, bad_chunk(b"0\r\n" + b"A: b\r\n" * 20_000)),
    "all lines end in LF": (400, with_host(CL).replace(b"\r\n", b"\n") + b"hello"),
    "request line ends in LF": (400, with_host(CL).replace(b"\r\n", b"\n", 1) + b"hello"),
    "header ends in LF": (400, with_host(CL, b"A: b").replace(b"A: b\r\n", b"A: b\n") + b"hello"),
    "headers end in LF": (400, with_host(CL)[:-2] + b"\nhello"),
    "LF before the request": (400, b"\n" + with_host(CL) + b"hello"),
    "blank before the colon": (400, with_host(b"Transfer-Encoding : chunked") + b"0\r\n\r\n"),
    "length, blank before the colon": (400, with_host(b"Content-Length : 5") + b"hello"),
    "coding gzip": (501, with_host(b"Transfer-Encoding: gzip") + b"hello"),
    "coding gzip, chunked": (501, with_host(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "coding chunked, chunked": (
        501,
        with_host(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    ),
    "coding identity": (501, with_host(b"Transfer-Encoding: identity") + b"hello"),
    "coding empty": (501, with_host(b"Transfer-Encoding:") + b"hello"),
    "coding xchunked": (501, with_host(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n"),
    "coding with a vertical tab": (
        400,
        with_host(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
    ),
    "chunked on HTTP/1.0": (400, head(TE, first=b"POST /file/f HTTP/1.0") + b"0\r\n\r\n"),
    "unknown expectation": (417, with_host(CL, b"Expect: 200-ok") + b"hello"),
    "a second, unknown expectation": (
        417,
        with_host(CL, b"Expect: 100-continue", b"Expect: x") + b"hello",
    ),
    "no Host": (400, head(CL) + b"hello"),
    "two Hosts": (400, with_host(CL, b"Host: nas") + b"hello"),
    "two Hosts on HTTP/1.0": (
        400,
        head(b"Host: a", b"Host: b", CL, first=b"POST /file/f HTTP/1.0") + b"hello",
    ),
    "Host with a path": (400, head(b"Host: nas/x", CL) + b"hello"),
    "Host with a blank": (400, head(b"Host: a b", CL) + b"hello"),
    "Host with a user": (400, head(b"Host: me@nas", CL) + b"hello"),
    "Host with a bad port": (400, head(b"Host: nas:http", CL) + b"hello"),
    "folded header": (400, with_host(b"A: b", b" c", CL) + b"hello"),
    "folded by a tab": (400, with_host(b"A: b", b"\tc", CL) + b"hello"),
    "folded first header": (400, head(b" A: b", b"Host: nas", CL) + b"hello"),
    "folded length": (400, with_host(b"Content-Length:", b" 5") + b"hello"),
    "NUL in a value": (400, with_host(b"A: b\x00c", CL) + b"hello"),
    "CR in a value": (400, with_host(b"A: b\rc", CL) + b"hello"),
    "LF in a value": (400, with_host(b"A: b\nc: d", CL) + b"hello"),
    "escape in a value": (400, with_host(b"A: b\x1b[0m", CL) + b"hello"),
    "DEL in a value": (400, with_host(b"A: b\x7f", CL) + b"hello"),
    "CR before CRLF": (400, with_host(b"A: b\r", CL) + b"hello"),
    "header without a colon": (400, with_host(b"nonsense", CL) + b"hello"),
    "header without a name": (400, with_host(b": b", CL) + b"hello"),
    "header name with a blank": (400, with_host(b"A b: c", CL) + b"hello"),
    "last header without a colon": (400, with_host(CL, b"nonsense") + b"hello"),
    "headers of over 16 KiB": (431, with_host(*[b"X: " + b"y" * 1000] * 17, CL) + b"hello"),
    "one header of over 16 KiB": (431, with_host(b"X: " + b"y" * 17_000, CL) + b"hello"),
    "101 headers": (431, with_host(CL, *[b"X: y"] * 99) + b"hello"),
    "endless header": (431, b"POST /file/f HTTP/1.1\r\nX: " + b"y" * 20_000),
    "endless first line": (414, b"POST /file/" + b"f" * 20_000),
    "target of over 8 KiB": (
        414,
        head(CL, b"Host: nas", first=b"POST /file/f?%b HTTP/1.1" % (b"q" * 8200)) + b"hello",
    ),
    "user in the target": (
        400,
        head(b"Host: nas", CL, first=b"POST http://me:secret@nas/file/f HTTP/1.1") + b"hello",
    ),
    "user in the target of another scheme": (
        400,
        head(b"Host: nas", CL, first=b"POST ftp://me:secret@nas/file/f HTTP/1.1") + b"hello",
    ),
    "user in a target without a scheme": (
        400,
        head(b"Host: nas", CL, first=b"POST me:secret@nas:80 HTTP/1.1") + b"hello",
    ),
    "no version": (400, head(b"Host: nas", CL, first=b"POST /file/f") + b"hello"),
    "HTTP/0.9": (400, b"GET /file\r\n"),
    "HTTP/2.0": (400, head(b"Host: nas", CL, first=b"POST /file/f HTTP/2.0") + b"hello"),
    "http/1.1": (400, head(b"Host: nas", CL, first=b"POST /file/f http/1.1") + b"hello"),
    "HTTP/1.10": (400, head(b"Host: nas", CL, first=b"POST /file/f HTTP/1.10") + b"hello"),
    "blanks in the target": (400, head(b"Host: nas", CL, first=b"POST /file/f g HTTP/1.1")),
    "two blanks": (400, head(b"Host: nas", CL, first=b"POST  /file/f HTTP/1.1") + b"hello"),
    "tabs": (400, head(b"Host: nas", CL, first=b"POST\t/file/f\tHTTP/1.1") + b"hello"),
    "control character in the target": (
        400,
        head(b"Host: nas", CL, first=b"POST /file/f\x01 HTTP/1.1") + b"hello",
    ),
    "LF in the target": (400, head(b"Host: nas", CL, first=b"POST /file/f\n HTTP/1.1") + b"hello"),
    "no method": (400, head(b"Host: nas", CL, first=b" /file/f HTTP/1.1") + b"hello"),
    "odd method": (400, head(b"Host: nas", CL, first=b"PO(ST /file/f HTTP/1.1") + b"hello"),
    "method of eight bits": (
        400,
        head(b"Host: nas", CL, first=b"P\xc3\x96ST /file/f HTTP/1.1") + b"hello",
    ),
    "version of eight bits": (
        400,
        head(b"Host: nas", CL, first=b"POST /file/f HTTP/1.\xb9") + b"hello",
    ),
    "a TLS greeting": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n"),
    "two empty lines": (400, b"\r\n\r\n" + with_host(CL) + b"hello"),
}


def assert_is_refusal(answer: bytes, status: int) -> None:
    answer_head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = answer_head.split(b"\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"Content-Type: application/problem+json" in lines
    assert b"Connection: close" in lines
    assert b"Content-Length: %d" % len(body) in lines, "more than one answer"
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["instance"].startswith("#")


@pytest.mark.parametrize("what", REFUSED)
@pytest_twisted.ensureDeferred
async def test_bad_framing_is_refused_and_ends_the_connection(nas: Nas, what: str) -> None:
    status, sent = REFUSED[what]
    assert_is_refusal(await nas.talk(sent + SMUGGLED), status)
    # In front of it a good request, and its own bytes in two segments.
    answers = await nas.talk(HEALTH + sent[: len(sent) // 2], sent[len(sent) // 2 :] + SMUGGLED)
    good, _, refusal = answers.partition(b"\r\n\r\nOK")
    assert good.startswith(b"HTTP/1.1 200 ")
    assert_is_refusal(refusal, status)
    await nas.at_rest()
    assert stored(nas) == set()
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_bad_framing_in_the_middle_of_a_download_ends_both(nas: Nas) -> None:
    with (nas.root / "large").open("wb") as file:
        file.truncate(64 << 20)

    def talk() -> int:
        got = 0
        with Client(nas.port) as client, contextlib.suppress(ConnectionResetError):
            client.send(get("large").replace(HOST, HOST + TE + b"\r\n"), b"1\r\na\r\n", b"zz\r\n")
            while chunk := client.socket.recv(1 << 20):
                got += len(chunk)
        return got

    assert 0 < await nas.in_thread(talk) < 64 << 20
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_the_unread_rest_of_a_refused_request_does_not_destroy_the_answer(nas: Nas) -> None:
    def talk() -> bytes:
        with Client(nas.port) as client:
            client.send(with_host(CL, TE))
            for _ in range(64):
                client.socket.sendall(SMUGGLED * 1000)
            client.socket.shutdown(1)
            return client.rest()

    assert_is_refusal(await nas.in_thread(talk), 400)
    assert stored(nas) == set()


@pytest_twisted.ensureDeferred
async def test_an_upload_ends_with_its_framing_and_not_with_its_connection(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.site.limits.linger = 1e6
    ended: list[tuple[int, Ending]] = []

    def observe(request: StreamingRequest) -> None:
        ended.append((request.code, request.ending))

    monkeypatch.setattr(nas.site.application, "request_ended", observe)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(chunked("f", b"5\r\nhello\r\n"))
            wait_until(nas.leftovers, "a temporary")
            client.send(b"zz\r\n")
            assert client.answer()[0] == 400
            wait_until(lambda: not nas.leftovers(), "the temporary to be gone")
            assert nas.site.channels, "it waits for the client to read the answer"

    await nas.in_thread(talk)
    assert ended == [(400, Ending.REFUSED)]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"PUT /file/f/mv HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\n", b"x"),
        (
            b"POST /files/ HTTP/1.1\r\n"
            + HOST
            + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 7\r\n\r\n",
            b"--b--\r\n",
        ),
        (
            b"PUT /file/f/mv HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n0\r\n\r\n",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_body_whose_last_byte_is_answered_at_once_does_not_cost_the_connection(
    nas: Nas, head: bytes, body: bytes
) -> None:
    (nas.root / "f").write_bytes(b"x")

    def converse() -> tuple[int, tuple[int, bytes]]:
        with Client(nas.port) as client:
            client.send(head)
            wait_until(lambda: any(r.body._consumer for r in nas.site.running()), "the handler")
            client.send(body + HEALTH)
            return client.answer()[0], brief(client.answer())

    assert await nas.in_thread(converse) == (400, OK)


@pytest_twisted.ensureDeferred
async def test_the_only_request_for_the_server_as_a_whole_is_options(nas: Nas) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            client.send(b"DELETE * HTTP/1.1\r\n" + HOST + b"\r\n")
            status, headers, body = client.answer()
            assert (status, headers["allow"]) == (405, "OPTIONS")
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["instance"] == f"#{headers['x-request-id']}"

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_an_error_before_any_route_is_a_problem_of_the_server(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: object) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr(nas.site, "route", fail)
    status, body, headers = await nas.fetch("GET", "/file")
    assert (status, json.loads(body)["status"]) == (500, 500)
    assert headers.getRawHeaders("content-type") == ["application/problem+json"]


@pytest_twisted.ensureDeferred
async def test_an_at_sign_in_a_path_is_a_character_of_a_name(nas: Nas) -> None:
    (nas.root / "a@b").write_bytes(b"x")

    def talk() -> None:
        with Client(nas.port) as client:
            for target in (b"/file/a@b", b"http://nas/file/a@b"):
                client.send(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST))
                assert brief(client.answer()) == (200, b"x")

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_the_user_of_a_target_is_not_logged(nas: Nas) -> None:
    with logged() as events:
        for target in (b"http://me:secret@nas/file/f", b"ftp://me:secret@nas/", b"me:secret@nas:1"):
            await nas.talk(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST))
    assert events
    assert "secret" not in repr(events)


KEPT = b"GET %b HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"


@pytest_twisted.ensureDeferred
async def test_http_1_0_keeps_the_connection_if_asked_to(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")

    def talk() -> None:
        with Client(nas.port) as client:
            for path in (b"/file/f", b"/file", b"/file/missing", b"/file/f"):
                client.send(KEPT % path)
                status, headers, _ = client.answer()
                assert (status, headers["connection"]) == (
                    404 if path.endswith(b"missing") else 200,
                    "keep-alive",
                )
            client.send(b"GET /file/f HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n")
            assert client.answer()[1]["connection"] == "close"
            assert client.rest() == b""

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_http_1_0_is_told_the_end_of_an_answer_of_unknown_length_by_closing(nas: Nas) -> None:
    for number in range(3):
        (nas.root / f"{number}").touch()
    answer = await nas.talk(KEPT % b"/file/" + KEPT % b"/file")
    answer_head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in answer_head.split(b"\r\n")
    assert body == b"0\n1\n2\n"


@pytest_twisted.ensureDeferred
async def test_no_answer_tells_versions(nas: Nas) -> None:
    for target in ("/file", "/nothing", "/file/missing", "/metrics"):
        _, body, headers = await nas.fetch("GET", target)
        assert headers.getRawHeaders("server") == ["httpnas"]
        assert b"python_info" not in body


# What an answer is


@pytest_twisted.ensureDeferred
async def test_a_short_answer_is_one_write(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    (nas.root / "f").write_bytes(b"x" * 4096)
    writes: list[int] = []
    real = StreamingChannel.write_head

    def write(channel: StreamingChannel, *pieces: bytes) -> None:
        writes.append(sum(map(len, pieces)))
        real(channel, *pieces)

    monkeypatch.setattr(StreamingChannel, "write_head", write)
    monkeypatch.setattr(StreamingChannel, "write", write)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(get("f"))
            assert client.answer()[2] == b"x" * 4096

    await nas.in_thread(talk)
    assert len(writes) == 1 and writes[0] > 4096


@pytest_twisted.ensureDeferred
async def test_a_field_of_an_answer_can_not_become_two(nas: Nas) -> None:
    channel: Any = StreamingChannel(nas.site)
    channel.makeConnection(StringTransport())
    request = StreamingRequest(channel, Head(b"GET", b"/", b"HTTP/1.1", {}))
    channel.connectionLost()
    with pytest.raises(ValueError, match="one line"):
        request.setHeader(b"Location", b"/\r\nSet-Cookie: a=b")
