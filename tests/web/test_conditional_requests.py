from __future__ import annotations

import os
import re
import time
from collections import Counter
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.harness import Nas

CONTENT = b"0123456789" * 100
MODIFIED = 1_000_000_000
OLDER, SAME, NEWER = (formatdate(MODIFIED + days * 86400, usegmt=True) for days in (-1, 0, 1))
JSON = {"Content-Type": "application/json"}
CLIENTS = 16


async def stored(nas: Nas, name: str = "f") -> str:
    """Store a file of a known time and return its entity tag."""
    path = nas.root / name
    path.write_bytes(CONTENT)
    os.utime(path, (MODIFIED, MODIFIED + 0.5))
    return await etag_of(nas, name)


async def etag_of(nas: Nas, name: str) -> str:
    _, _, headers = await nas.fetch("HEAD", f"/file/{name}")
    tag: str = headers.getRawHeaders("ETag")[0]
    return tag


def spelled(conditions: dict[str, str], etag: str) -> dict[str, str]:
    return {field: value.replace("ETAG", etag) for field, value in conditions.items()}


# Reads


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({}, 200),
        ({"If-None-Match": "ETAG"}, 304),
        ({"If-None-Match": "W/ETAG"}, 304),
        ({"If-None-Match": '"a", ETAG ,"b"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "nonsense"}, 200),
        ({"If-Modified-Since": SAME}, 304),
        ({"If-Modified-Since": NEWER}, 304),
        ({"If-Modified-Since": OLDER}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": NEWER}, 200),
        ({"If-None-Match": "ETAG", "If-Modified-Since": OLDER}, 304),
        ({"If-Match": "ETAG"}, 200),
        ({"If-Match": '"a", ETAG'}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "W/ETAG"}, 412),
        ({"If-Match": "nonsense"}, 412),
        ({"If-Unmodified-Since": SAME}, 200),
        ({"If-Unmodified-Since": NEWER}, 200),
        ({"If-Unmodified-Since": OLDER}, 412),
        ({"If-Unmodified-Since": "yesterday"}, 200),
        ({"If-Match": "ETAG", "If-Unmodified-Since": OLDER}, 200),
        ({"If-Match": '"other"', "If-None-Match": "ETAG"}, 412),
        ({"If-Match": "ETAG", "If-None-Match": "ETAG"}, 304),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_a_read_keeps_to_its_conditions(
    nas: Nas, method: str, conditions: dict[str, str], status: int
) -> None:
    etag = await stored(nas)
    headers = spelled(conditions, etag)
    for extra in ({}, {"Range": "bytes=0-4"}):
        code, body, answered = await nas.fetch(method, "/file/f", headers=headers | extra)
        wanted = 206 if (status, method) == (200, "GET") and extra else status
        assert code == wanted
        if code == 304:
            assert body == b""
            assert answered.getRawHeaders("ETag") == [etag]
            assert not answered.hasHeader("Content-Length")
            assert not answered.hasHeader("Content-Type")
        elif code == 412:
            assert not answered.hasHeader("ETag")
        elif method == "GET":
            assert body == (CONTENT[:5] if code == 206 else CONTENT)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        ("ETAG", 206),
        (SAME, 200),
        ("W/ETAG", 200),
        ('"other"', 200),
        ("nonsense", 200),
        ("*", 200),
        (OLDER, 200),
        (NEWER, 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_range_is_sent_only_of_the_version_in_if_range(
    nas: Nas, if_range: str, status: int
) -> None:
    etag = await stored(nas)
    headers = {"Range": "bytes=5-9", "If-Range": if_range.replace("ETAG", etag)}
    code, body, _ = await nas.fetch("GET", "/file/f", headers=headers)
    assert (code, body) == (status, CONTENT[5:10] if status == 206 else CONTENT)


@pytest_twisted.ensureDeferred
async def test_a_range_is_not_sent_of_what_came_in_the_same_second(nas: Nas) -> None:
    """A date is a weak validator: RFC 9110 sections 8.8.2.2 and 13.1.5."""
    await stored(nas)
    _, _, headers = await nas.fetch("GET", "/file/f", headers={"Range": "bytes=0-4"})
    (nas.root / "f").write_bytes(CONTENT[::-1])
    os.utime(nas.root / "f", (MODIFIED, MODIFIED + 0.9))
    asked = {"Range": "bytes=5-", "If-Range": headers.getRawHeaders("Last-Modified")[0]}
    code, body, _ = await nas.fetch("GET", "/file/f", headers=asked)
    assert (code, body) == (200, CONTENT[::-1])


@pytest_twisted.ensureDeferred
async def test_a_file_of_the_future_is_not_kept_by_caches_until_then(nas: Nas) -> None:
    """Last-Modified is not later than Date: RFC 9110 section 8.8.2.1."""
    (nas.root / "f").write_bytes(CONTENT)
    future = int(time.time()) + 1000
    os.utime(nas.root / "f", (future, future))
    for path in ("/file/f", "/files/f"):
        _, _, headers = await nas.fetch("GET", path)
        modified, date = (headers.getRawHeaders(name)[0] for name in ("Last-Modified", "Date"))
        assert parsedate_to_datetime(modified) <= parsedate_to_datetime(date)
    os.utime(nas.root / "f", (MODIFIED, MODIFIED))
    for since in (modified, formatdate(future, usegmt=True)):
        code, _, _ = await nas.fetch("GET", "/file/f", headers={"If-Modified-Since": since})
        assert code == (304 if since == modified else 200)


@pytest_twisted.ensureDeferred
async def test_an_unsatisfiable_range_of_another_version_gives_the_whole_file(nas: Nas) -> None:
    await stored(nas)
    headers = {"Range": "bytes=99999-", "If-Range": '"other"'}
    code, body, _ = await nas.fetch("GET", "/file/f", headers=headers)
    assert (code, body) == (200, CONTENT)


# Writes: what each does to f, which exists with CONTENT

WRITES: dict[str, tuple[str, str, dict[str, Any], dict[str, bytes]]] = {
    "create": ("POST", "/file/f", {"data": b"new"}, {"f": b"new"}),
    "append": ("PUT", "/file/f", {"data": b"new"}, {"f": CONTENT + b"new"}),
    "delete": ("DELETE", "/file/f", {}, {}),
    "move": ("PUT", "/file/f", {"data": b'{"path": "g"}', "headers": JSON}, {"g": CONTENT}),
    "mv": ("PUT", "/file/f/mv", {"data": b'{"path": "g"}'}, {"g": CONTENT}),
}


async def write(nas: Nas, what: str, conditions: dict[str, str]) -> tuple[int, dict[str, bytes]]:
    method, path, kwargs, _ = WRITES[what]
    headers = kwargs.get("headers", {}) | conditions
    status, _, _ = await nas.fetch(method, path, **(kwargs | {"headers": headers}))
    return status, files(nas)


def files(nas: Nas) -> dict[str, bytes]:
    paths = [path for path in nas.root.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"If-Match": "ETAG"}, 200),
        ({"If-Match": '"a", ETAG'}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "W/ETAG"}, 412),
        ({"If-Match": "nonsense"}, 412),
        ({"If-Match": ""}, 412),
        ({"If-Unmodified-Since": SAME}, 200),
        ({"If-Unmodified-Since": NEWER}, 200),
        ({"If-Unmodified-Since": OLDER}, 412),
        ({"If-Match": "ETAG", "If-Unmodified-Since": OLDER}, 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_change_is_made_only_to_the_version_it_names(
    nas: Nas, what: str, conditions: dict[str, str], status: int
) -> None:
    etag = await stored(nas)
    code, left = await write(nas, what, spelled(conditions, etag))
    assert code == status
    assert left == (WRITES[what][3] if status == 200 else {"f": CONTENT})
    assert nas.leftovers() == []


@pytest.mark.parametrize("what", ["create", "append", "delete"])
@pytest.mark.parametrize(
    ("value", "status"),
    [("*", 412), ("ETAG", 412), ("W/ETAG", 412), ("nonsense", 412), ('"other"', 200)],
)
@pytest_twisted.ensureDeferred
async def test_a_change_is_not_made_to_a_version_it_excludes(
    nas: Nas, what: str, value: str, status: int
) -> None:
    etag = await stored(nas)
    code, left = await write(nas, what, {"If-None-Match": value.replace("ETAG", etag)})
    assert code == status
    assert left == (WRITES[what][3] if status == 200 else {"f": CONTENT})


@pytest.mark.parametrize("value", ["*", '"other"', "ETAG"])
@pytest_twisted.ensureDeferred
async def test_if_match_is_never_met_by_a_file_that_does_not_exist(nas: Nas, value: str) -> None:
    etag = (await stored(nas)) if value == "ETAG" else value
    (nas.root / "f").unlink(missing_ok=True)
    status, left = await write(nas, "create", {"If-Match": etag})
    assert (status, left) == (412, {})


@pytest.mark.parametrize("what", ["move", "mv"])
@pytest.mark.parametrize(
    ("there", "status"), [(None, 200), ("file", 412), ("folder", 412), ("link", 412)]
)
@pytest_twisted.ensureDeferred
async def test_create_only_concerns_the_destination_of_a_move(
    nas: Nas, what: str, there: str | None, status: int
) -> None:
    await stored(nas)
    if there == "file":
        (nas.root / "g").write_bytes(b"there")
    elif there == "folder":
        (nas.root / "g").mkdir()
    elif there == "link":
        (nas.root / "g").symlink_to("missing")
    code, left = await write(nas, what, {"If-None-Match": "*"})
    assert code == status
    kept = {"f": CONTENT} | ({"g": b"there"} if there == "file" else {})
    assert left == ({"g": CONTENT} if status == 200 else kept)


@pytest_twisted.ensureDeferred
async def test_an_outdated_version_is_refused_before_the_body_is_asked_for(nas: Nas) -> None:
    await stored(nas)
    for condition in (b'If-Match: "other"', b"If-None-Match: *"):
        for method in (b"POST", b"PUT"):
            head = b"%b /file/f HTTP/1.1\r\nHost: x\r\n%b\r\nContent-Length: 9\r\n"
            answer = await nas.talk(head % (method, condition) + b"Expect: 100-continue\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 412 ")
    assert files(nas) == {"f": CONTENT}


# Races


async def race(
    nas: Nas, method: str, path: str, conditions: dict[str, str]
) -> list[tuple[int, bytes]]:
    """Let many clients send at the same time; return status and body sent of each."""

    async def one(number: int) -> tuple[int, bytes]:
        body = b"client %d\n" % number * 20000
        status, _, _ = await nas.fetch(method, path, data=body, headers=conditions)
        return status, body

    every = [Deferred.fromCoroutine(one(number)) for number in range(CLIENTS)]
    outcomes: list[tuple[int, bytes]] = await gatherResults(every)
    return outcomes


@pytest_twisted.ensureDeferred
async def test_of_many_that_create_only_exactly_one_creates(nas: Nas) -> None:
    for round_ in range(5):
        name = f"new{round_}"
        outcomes = await race(nas, "POST", f"/file/{name}", {"If-None-Match": "*"})
        assert Counter(status for status, _ in outcomes) == {200: 1, 412: CLIENTS - 1}
        assert files(nas)[name] == dict(outcomes)[200]
    assert nas.leftovers() == []


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest_twisted.ensureDeferred
async def test_of_many_that_change_one_version_exactly_one_does(nas: Nas, method: str) -> None:
    for round_ in range(5):
        name = f"f{round_}"
        etag = await stored(nas, name)
        outcomes = await race(nas, method, f"/file/{name}", {"If-Match": etag})
        assert Counter(status for status, _ in outcomes) == {200: 1, 412: CLIENTS - 1}
        before = CONTENT if method == "PUT" else b""
        assert files(nas)[name] == before + dict(outcomes)[200]
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_of_many_that_append_at_one_offset_exactly_one_does(nas: Nas) -> None:
    await stored(nas)
    outcomes = await race(nas, "PUT", "/file/f", {"Upload-Offset": str(len(CONTENT))})
    assert Counter(status for status, _ in outcomes) == {200: 1, 409: CLIENTS - 1}
    assert files(nas) == {"f": CONTENT + dict(outcomes)[200]}


@pytest_twisted.ensureDeferred
async def test_of_many_that_append_all_land_whole_and_contiguous(nas: Nas) -> None:
    await stored(nas)
    outcomes = await race(nas, "PUT", "/file/f", {})
    assert Counter(status for status, _ in outcomes) == {200: CLIENTS}
    rest = files(nas)["f"].removeprefix(CONTENT)
    landed = [match.group() for match in re.finditer(rb"(client \d+\n)\1*", rest)]
    assert sorted(landed) == sorted(body for _, body in outcomes)


@pytest_twisted.ensureDeferred
async def test_of_many_that_move_to_one_name_exactly_one_does(nas: Nas) -> None:
    async def move(number: int) -> int:
        conditions = JSON | {"If-None-Match": "*"}
        status, _, _ = await nas.fetch(
            "PUT", f"/file/source{number}", data=b'{"path": "g"}', headers=conditions
        )
        return status

    for number in range(CLIENTS):
        (nas.root / f"source{number}").write_bytes(b"%d" % number)
    statuses = await gatherResults([Deferred.fromCoroutine(move(n)) for n in range(CLIENTS)])
    assert Counter(statuses) == {200: 1, 412: CLIENTS - 1}
    left = files(nas)
    assert len(left) == CLIENTS
    assert sorted(left.values()) == sorted(b"%d" % number for number in range(CLIENTS))


@pytest_twisted.ensureDeferred
async def test_a_file_is_deleted_by_exactly_one_of_many(nas: Nas) -> None:
    await stored(nas)
    deletes = [Deferred.fromCoroutine(nas.fetch("DELETE", "/file/f")) for _ in range(CLIENTS)]
    statuses = [status for status, _, _ in await gatherResults(deletes)]
    assert Counter(statuses) == {200: 1, 404: CLIENTS - 1}
