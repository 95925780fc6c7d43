from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.request import urlopen

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.ssl import KeyPair

from tests.harness import Nas, connect, logged, receive_answer

CONTENT = bytes(range(256)) * 40
SIZE = len(CONTENT)
Parts = list[tuple[int, bytes]]


def parts_of(body: bytes, content_type: str, size: int) -> Parts:
    """Take a multipart body apart; return the offset and the bytes of each part."""
    found = re.fullmatch(r"multipart/byteranges; boundary=([0-9A-Za-z'+_.-]{1,70})", content_type)
    assert found
    delimiter = b"\r\n--" + found[1].encode()
    rest, parts = body, []
    while not rest.startswith(delimiter + b"--"):
        assert rest.startswith(delimiter + b"\r\n")
        head, _, rest = rest[len(delimiter) + 2 :].partition(b"\r\n\r\n")
        fields = dict(line.split(b": ") for line in head.split(b"\r\n"))
        assert fields[b"Content-Type"] == b"text/csv; charset=utf-8"
        position = re.fullmatch(rb"bytes (\d+)-(\d+)/(\d+)", fields[b"Content-Range"])
        assert position and int(position[3]) == size
        first, last = int(position[1]), int(position[2])
        parts.append((first, rest[: last + 1 - first]))
        rest = rest[last + 1 - first :]
    assert rest == delimiter + b"--\r\n"
    return parts


def spans(*pairs: tuple[int, int]) -> Parts:
    return [(first, CONTENT[first : last + 1]) for first, last in pairs]


@pytest.mark.parametrize(
    ("field", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-", 100, SIZE - 1),
        ("bytes=5-99999999999999999999", 5, SIZE - 1),
        ("bytes=-500", SIZE - 500, SIZE - 1),
        (f"bytes=7-8,{SIZE}-", 7, 8),
        ("Bytes= 3-4 ", 3, 4),
    ],
)
@pytest_twisted.ensureDeferred
async def test_one_range_is_sent(nas: Nas, field: str, first: int, last: int) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)
    status, body, headers = await nas.fetch("GET", "/file/f.csv", headers={"Range": field})
    assert (status, body) == (206, CONTENT[first : last + 1])
    assert headers.getRawHeaders("Content-Range") == [f"bytes {first}-{last}/{SIZE}"]
    assert headers.getRawHeaders("Content-Type") == ["text/csv; charset=utf-8"]
    assert headers.hasHeader("ETag")
    assert headers.hasHeader("Last-Modified")


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("bytes=0-0,2-2", spans((0, 0), (2, 2))),
        ("bytes=0-9,10-19", spans((0, 9), (10, 19))),
        ("bytes=50-59, 0-9 ,-5", spans((50, 59), (0, 9), (SIZE - 5, SIZE - 1))),
        ("bytes=0-9,99999-,-1", spans((0, 9), (SIZE - 1, SIZE - 1))),
        (
            "bytes=" + ",".join(f"{n * 9}-{n * 9 + 4}" for n in range(16)),
            spans(*((n * 9, n * 9 + 4) for n in range(16))),
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_several_ranges_are_sent_as_parts(nas: Nas, field: str, parts: Parts) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)
    status, body, headers = await nas.fetch("GET", "/file/f.csv", headers={"Range": field})
    assert status == 206
    assert not headers.hasHeader("Content-Range")
    assert parts_of(body, headers.getRawHeaders("Content-Type")[0], SIZE) == parts


@pytest.mark.parametrize(
    "field",
    [
        "bytes=0-10,5-15",
        "bytes=" + ",".join(f"{n * 9}-{n * 9 + 4}" for n in range(17)),
        "bytes=" + ",".join(["0-"] * 2000),
        f"bytes=0-5000,5002-{SIZE}",
        "bytes=9-3",
        "lines=1-2",
        "",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_range_that_makes_no_sense_gives_the_whole_file(nas: Nas, field: str) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)
    status, body, headers = await nas.fetch("GET", "/file/f.csv", headers={"Range": field})
    assert (status, body) == (200, CONTENT)
    assert not headers.hasHeader("Content-Range")


@pytest.mark.parametrize("field", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE}-,99999-99999"])
@pytest_twisted.ensureDeferred
async def test_a_range_behind_the_end_is_not_satisfiable(nas: Nas, field: str) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)
    asked = {"Range": field, "Want-Repr-Digest": "sha-256=1"}
    status, _, headers = await nas.fetch("GET", "/file/f.csv", headers=asked)
    assert status == 416
    assert headers.getRawHeaders("Content-Range") == [f"bytes */{SIZE}"]
    assert headers.getRawHeaders("Content-Type") == ["application/problem+json"]
    for field_of_the_file in ("ETag", "Last-Modified", "Repr-Digest"):
        assert not headers.hasHeader(field_of_the_file)


@pytest.mark.parametrize("field", ["bytes=0-", "bytes=0-9", "bytes=5-", "bytes=-5", "bytes=-0"])
@pytest.mark.parametrize("door", ["file", "files"])
@pytest_twisted.ensureDeferred
async def test_an_empty_file_is_sent_whole_whatever_the_range(
    nas: Nas, door: str, field: str
) -> None:
    """As nginx and Go answer: some clients ask for a range of every file (fsspec, ffprobe)."""
    (nas.root / "empty").touch()
    code, body, headers = await nas.fetch("GET", f"/{door}/empty", headers={"Range": field})
    assert (code, body) == (200, b"")
    assert not headers.hasHeader("Content-Range")


@pytest_twisted.ensureDeferred
async def test_a_head_is_of_the_whole_file(nas: Nas) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)
    for field in ("bytes=0-9", "bytes=99999-"):
        status, _, headers = await nas.fetch("HEAD", "/file/f.csv", headers={"Range": field})
        assert status == 200
        assert not headers.hasHeader("Content-Range")


numbers = st.one_of(st.integers(0, SIZE + 50), st.sampled_from(["", SIZE - 1, SIZE, 10**30]))
specs = st.tuples(numbers, numbers).map(lambda pair: f"{pair[0]}-{pair[1]}")
near = st.builds(lambda at, more: f"{at}-{at + more}", st.integers(0, SIZE), st.integers(0, 99))
fields = st.one_of(
    st.lists(st.one_of(specs, near), min_size=1, max_size=20).map(",".join),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40),
).map("bytes={}".format)


@pytest_twisted.ensureDeferred
async def test_no_range_makes_an_answer_wrong_or_much_larger_than_the_file(nas: Nas) -> None:
    (nas.root / "f.csv").write_bytes(CONTENT)

    def ask() -> None:
        with connect(nas.port) as client:

            @settings(max_examples=250, deadline=None, database=None)
            @given(fields)
            def check(field: str) -> None:
                request = f"GET /file/f.csv HTTP/1.1\r\nHost: x\r\nRange: {field}\r\n\r\n"
                client.sendall(request.encode())
                check_answer(*receive_answer(client))

            check()

    await nas.in_thread(ask)


def check_answer(status: int, headers: dict[str, str], body: bytes) -> None:
    assert status in (200, 206, 416)
    assert len(body) <= SIZE * 1.1
    if status == 200:
        assert body == CONTENT
    elif status == 416:
        assert headers["content-range"] == f"bytes */{SIZE}"
    elif "content-range" in headers:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers["content-range"])
        assert found and int(found[3]) == SIZE
        assert body == CONTENT[int(found[1]) : int(found[2]) + 1]
    else:
        for first, sent in parts_of(body, headers["content-type"], SIZE):
            assert sent and sent == CONTENT[first : first + len(sent)]


# Changes during a download


LARGE = 20 << 20


class SlowReader:
    """Begins to read an answer and goes on only when told."""

    def __init__(self, port: int, range_: str = "bytes=0-") -> None:
        self.socket = socket.socket()
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.socket.connect(("127.0.0.1", port))
        request = f"GET /file/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: {range_}\r\n\r\n"
        self.socket.sendall(request.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.socket.recv(4096)
        head, _, self.body = received.partition(b"\r\n\r\n")
        found = re.search(rb"\r\nContent-Length: (\d+)", head)
        assert found
        self.announced = int(found[1])

    def rest(self) -> bytes:
        """Read to the end, or to where the connection is cut."""
        pieces = [self.body]
        with closing(self.socket):
            try:
                while piece := self.socket.recv(1 << 20):
                    pieces.append(piece)
            except ConnectionResetError:
                pass
        return b"".join(pieces)


async def replaced(nas: Nas) -> None:
    assert (await nas.fetch("POST", "/file/f", data=b"new" * 1000))[0] == 200


async def appended_to(nas: Nas) -> None:
    assert (await nas.fetch("PUT", "/file/f", data=b"more" * 500000))[0] == 200


async def deleted(nas: Nas) -> None:
    assert (await nas.fetch("DELETE", "/file/f"))[0] == 200


async def moved(nas: Nas) -> None:
    move = {"data": b'{"path": "g"}', "headers": {"Content-Type": "application/json"}}
    assert (await nas.fetch("PUT", "/file/f", **move))[0] == 200


async def moved_over(nas: Nas) -> None:
    (nas.root / "g").write_bytes(b"g")
    move = {"data": b'{"path": "f"}', "headers": {"Content-Type": "application/json"}}
    assert (await nas.fetch("PUT", "/file/g", **move))[0] == 200


@pytest.mark.parametrize("range_", ["bytes=0-", "bytes=1-9,100-20000000"])
@pytest.mark.parametrize("change", [replaced, appended_to, deleted, moved, moved_over])
@pytest_twisted.ensureDeferred
async def test_a_download_is_of_the_version_that_was_opened(
    nas: Nas, change: Callable[[Nas], Any], range_: str
) -> None:
    content = os.urandom(LARGE)
    (nas.root / "f").write_bytes(content)
    reader = await nas.in_thread(SlowReader, nas.port, range_)
    await change(nas)
    body = await nas.in_thread(reader.rest)
    assert len(body) == reader.announced
    if "," in range_:
        assert content[1:10] in body
        assert content[100:20000001] in body
    else:
        assert body == content


@pytest_twisted.ensureDeferred
async def test_a_download_of_a_file_that_others_cut_short_is_cut_and_not_padded(nas: Nas) -> None:
    content = os.urandom(LARGE)
    (nas.root / "f").write_bytes(content)
    reader = await nas.in_thread(SlowReader, nas.port)
    os.truncate(nas.root / "f", LARGE - 4096)
    body = await nas.in_thread(reader.rest)
    assert len(body) < reader.announced == LARGE
    assert content.startswith(body)
    assert (await nas.fetch("GET", "/file/f"))[1] == content[:-4096]


@pytest.mark.parametrize("ranges", [None, "bytes=5-8000000", "bytes=1-2000000,2500000-,0-0"])
@pytest_twisted.ensureDeferred
async def test_what_the_kernel_sends_is_counted_like_what_the_daemon_sends(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, ranges: str | None
) -> None:
    by_kernel: list[int] = []
    real = os.sendfile

    def sendfile(*args: int) -> int:
        by_kernel.append(real(*args))
        return by_kernel[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    (nas.root / "f").write_bytes(os.urandom(LARGE))
    headers = {} if ranges is None else {"Range": ranges}
    with logged() as events:
        body = (await nas.fetch("GET", "/file/f", headers=headers))[1]
        await nas.at_rest()
    assert sum(by_kernel) > len(body) - (2 << 20)
    (line,) = [event["request"] for event in events if "request" in event]
    assert line["bytes_out"] == len(body)
    traced = json.loads((await nas.fetch("GET", "/transfers"))[1])["ended"][0]
    assert traced["bytes"] == len(body)


@pytest_twisted.ensureDeferred
async def test_nothing_passes_by_encryption(nas: Nas) -> None:
    content = os.urandom(LARGE)
    (nas.root / "f").write_bytes(content)
    certificate = KeyPair.generate(size=2048).selfSignedCert(1, CN="localhost")
    reactor_: Any = reactor
    listening = reactor_.listenSSL(0, nas.site, certificate.options(), interface="127.0.0.1")

    def get() -> bytes:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{listening.getHost().port}/file/f"
        with urlopen(url, context=trusting) as answer:
            return bytes(answer.read())

    try:
        assert await nas.in_thread(get) == content
    finally:
        await listening.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_slow_download_holds_up_nobody_else(nas: Nas) -> None:
    (nas.root / "f").write_bytes(bytes(LARGE))
    readers = [await nas.in_thread(SlowReader, nas.port) for _ in range(20)]
    (nas.root / "small").write_bytes(b"x")
    assert (await nas.fetch("GET", "/file/small"))[1] == b"x"
    assert (await nas.fetch("POST", "/file/new", data=b"y"))[0] == 200
    for reader in readers:
        reader.socket.close()


# Digests


def digest_fields(body: bytes) -> dict[str, dict[str, str]]:
    sha256 = b64encode(hashlib.sha256(body).digest()).decode()
    sha512 = b64encode(hashlib.sha512(body).digest()).decode()
    md5 = b64encode(hashlib.md5(body).digest()).decode()
    return {
        "repr sha-256": {"Repr-Digest": f"sha-256=:{sha256}:"},
        "repr sha-512": {"Repr-Digest": f"sha-512=:{sha512}:"},
        "content sha-256": {"Content-Digest": f"sha-256=:{sha256}:"},
        "content sha-512": {"Content-Digest": f"sha-512=:{sha512}:"},
        "several": {"Repr-Digest": f"unknown=:YQ==:, sha-256=:{sha256}:, sha-512=:{sha512}:"},
        "md5": {"Content-MD5": md5},
        "all": {
            "Content-MD5": md5,
            "Content-Digest": f"sha-512=:{sha512}:",
            "Repr-Digest": f"sha-256=:{sha256}:",
        },
    }


WAYS = list(digest_fields(b""))


@pytest.mark.parametrize("size", [0, 10, (3 << 20) + 5])
@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_body_with_the_announced_digest_is_taken(nas: Nas, way: str, size: int) -> None:
    data = os.urandom(size)
    headers = digest_fields(data)[way]
    assert (await nas.fetch("POST", "/file/f", data=data, headers=headers))[0] == 200
    assert (await nas.fetch("PUT", "/file/f", data=data, headers=headers))[0] == 200
    assert (nas.root / "f").read_bytes() == data + data


@pytest.mark.parametrize("size", [0, 10, (3 << 20) + 5])
@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_body_with_another_digest_changes_nothing(nas: Nas, way: str, size: int) -> None:
    (nas.root / "f").write_bytes(b"old")
    data = os.urandom(size)
    await check_refused(nas, data, digest_fields(data + b"x")[way])


@pytest.mark.parametrize(
    "headers",
    [
        {"Repr-Digest": "sha-256"},
        {"Repr-Digest": "sha-256=abc"},
        {"Repr-Digest": "sha-256=:YWJj:"},
        {"Repr-Digest": "sha-256=:%%%:"},
        {"Content-Digest": "nonsense nonsense"},
        {"Content-MD5": "YWJj"},
        {"Content-MD5": "?"},
        digest_fields(b"data")["repr sha-256"] | digest_fields(b"other")["content sha-256"],
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_digest_that_can_not_be_understood_changes_nothing(
    nas: Nas, headers: dict[str, str]
) -> None:
    (nas.root / "f").write_bytes(b"old")
    await check_refused(nas, b"data", headers)


async def check_refused(nas: Nas, data: bytes, headers: dict[str, str]) -> None:
    for method, name in (("POST", "new"), ("POST", "f"), ("PUT", "f")):
        status, _, answered = await nas.fetch(method, f"/file/{name}", data=data, headers=headers)
        assert status == 400
        assert answered.getRawHeaders("Content-Type") == ["application/problem+json"]
        files = {p.name: p.read_bytes() for p in nas.root.iterdir() if p.is_file()}
        assert files == {"f": b"old"}
        assert nas.leftovers() == []


@pytest.mark.parametrize("size", [0, 10, (33 << 20) + 3])
@pytest.mark.parametrize(
    ("wish", "algorithm"),
    [
        ("sha-256=1", "sha-256"),
        ("sha-512=1", "sha-512"),
        ("sha-256=1, sha-512=9", "sha-512"),
        ("sha-256=10,sha-512=3, md5=10", "sha-256"),
        ("md5=10", None),
        ("sha-256=0", None),
        ("nonsense,,", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wanted_digest_is_that_of_the_whole_file(
    nas: Nas, wish: str, algorithm: str | None, size: int
) -> None:
    content = os.urandom(size)
    (nas.root / "f").write_bytes(content)
    expected = None
    if algorithm is not None:
        value = b64encode(hashlib.new(algorithm.replace("-", ""), content).digest()).decode()
        expected = [f"{algorithm}=:{value}:"]
    for method, range_ in (("HEAD", {}), ("GET", {"Range": "bytes=0-5"})):
        headers = {"Want-Repr-Digest": wish} | range_
        status, _, answered = await nas.fetch(method, "/file/f", headers=headers)
        assert status == (206 if range_ and size else 200)
        assert answered.getRawHeaders("Repr-Digest") == expected
