"""What every answer says to caches and browsers, whatever it is about."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.harness import Nas, talk, twistd

HTML = b"Accept: text/html"
FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nnew\r\n--b--'

#: Method and target, status, header lines: what may be kept if it is asked for again each time.
KEPT: list[tuple[bytes, int, tuple[bytes, ...]]] = [
    (b"GET /file/f.txt", 200, ()),
    (b"HEAD /file/f.txt", 200, ()),
    (b"GET /file/f.txt", 206, (b"Range: bytes=0-1",)),
    (b"GET /file/f.txt", 304, (b"If-None-Match: *",)),
    (b"GET /files/f.txt", 200, ()),
    (b"GET /files/f.txt", 304, (b"If-None-Match: *",)),
    (b"GET /file/", 200, ()),
    (b"GET /file/", 200, (HTML,)),
    (b"GET /file/d", 200, (b"Accept: application/json",)),
    (b"GET /", 200, ()),
    (b"GET /page/app.js", 200, ()),
    (b"GET /docs", 200, ()),
    (b"GET /openapi.json", 200, ()),
]
#: What is about the moment.
PASSING: list[tuple[bytes, int, tuple[bytes, ...]]] = [
    (b"GET /file", 200, ()),
    (b"GET /file/f.txt/wc", 200, ()),
    (b"GET /file/none", 404, ()),
    (b"GET /file/d", 301, (HTML,)),
    (b"GET /file/f.txt", 412, (b'If-Match: "x"',)),
    (b"GET /file/f.txt", 416, (b"Range: bytes=99-",)),
    (b"GET /file/..", 400, ()),
    (b"GET /nowhere", 404, ()),
    (b"PATCH /file/f.txt", 405, ()),
    (b"OPTIONS /file/f.txt", 204, ()),
    (b"OPTIONS *", 200, ()),
    (b"GET *", 405, ()),
    (b"GET /health", 200, ()),
    (b"GET /ready", 200, ()),
    (b"GET /metrics", 200, ()),
    (b"GET /transfers", 200, ()),
    (b"POST /file/g", 200, (b"Content-Length: 0",)),
    (b"PUT /file/f.txt", 200, (b"Content-Length: 0",)),
    (b"DELETE /file/f.txt", 200, ()),
    (b"POST /file/g", 403, (b"Sec-Fetch-Site: cross-site",)),
    (b"GET /", 400, (b"bad line",)),
    (b"GET /" + b"x" * 9000, 414, ()),
    (b"GET /", 431, (b"X: y",) * 101),
    (b"GET /", 417, (b"Expect: x",)),
]


@pytest_twisted.async_yield_fixture
async def furnished(tmp_path: Path) -> AsyncIterator[Nas]:
    nas = Nas(tmp_path / "root")
    (nas.root / "d").mkdir()
    (nas.root / "f.txt").write_bytes(b"0123456789")
    yield nas
    await nas.stop()


def fields_of(answer: bytes) -> dict[bytes, bytes]:
    """Return the header fields of an answer, none of which may come twice."""
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    assert len(fields) == len(lines)
    return fields


ROWS = [*((row, b"no-cache") for row in KEPT), *((row, b"no-store") for row in PASSING)]


@pytest.mark.parametrize(
    ("asked", "cached"), ROWS, ids=[f"{row[0][:20].decode()}-{row[1]}" for row, _ in ROWS]
)
@pytest_twisted.ensureDeferred
async def test_every_answer_tells_caches_and_browsers_what_they_may_do(
    furnished: Nas, asked: tuple[bytes, int, tuple[bytes, ...]], cached: bytes
) -> None:
    target, status, lines = asked
    head = [target + b" HTTP/1.1", b"Host: x", b"Connection: close", *lines, b"", b""]
    answer = await furnished.talk(b"\r\n".join(head))
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    fields = fields_of(answer)
    assert fields[b"cache-control"] == cached
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert fields[b"cross-origin-resource-policy"] == b"same-origin"


@pytest_twisted.ensureDeferred
async def test_a_form_that_is_stored_is_answered_so_too(furnished: Nas) -> None:
    for accept in (b"*/*", b"text/html"):
        head = b"POST /files/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: %s\r\n" % accept
        kind = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n"
        answer = await furnished.talk(head + kind % len(FORM) + FORM)
        assert answer.startswith(b"HTTP/1.1 202 ")
        assert fields_of(answer)[b"cache-control"] == b"no-store"
    assert b"frame-ancestors 'none'" in fields_of(answer)[b"content-security-policy"]


@pytest_twisted.ensureDeferred
async def test_no_page_of_another_site_can_put_a_listing_or_a_page_in_a_frame(
    furnished: Nas,
) -> None:
    for path in (b"/file/", b"/file/d/", b"/", b"/docs", b"/docs/problems"):
        head = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: text/html\r\n\r\n"
        policy = fields_of(await furnished.talk(head % path))[b"content-security-policy"]
        assert b"frame-ancestors 'none'" in policy.split(b"; "), path


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest_twisted.ensureDeferred
async def test_a_page_runs_the_scripts_that_it_names_and_no_stored_one(nas: Nas, path: str) -> None:
    nonces = set()
    for _ in range(2):
        _, page, headers = await nas.fetch("GET", path)
        policy = headers.getRawHeaders("Content-Security-Policy")[0].split("; ")
        (scripts,) = [part for part in policy if part.startswith("script-src ")]
        found = re.fullmatch(r"script-src 'nonce-([\w-]{22,})'", scripts)
        assert found
        named = re.findall(rb"<script[^>]*>", page)
        assert named and all(b'nonce="%s"' % found[1].encode() in tag for tag in named)
        nonces.add(found[1])
    assert len(nonces) == 2
    etag = headers.getRawHeaders("ETag")[0]
    status, _, headers = await nas.fetch("GET", path, headers={"If-None-Match": etag})
    assert status == 304
    assert not headers.hasHeader("Content-Security-Policy"), "not the one of the copy"


def test_the_operator_may_share_what_is_stored(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--resource-policy=cross-origin") as daemon:
        head = b"GET /file/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        fields = fields_of(talk(daemon.port, [head]))
        assert fields[b"cross-origin-resource-policy"] == b"cross-origin"
