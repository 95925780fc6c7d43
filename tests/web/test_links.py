"""Presigned links: what they give to whoever has no credentials, and nothing else."""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.access import links
from httpnas.files.job import Principal
from tests.access import files
from tests.access.files import link_key, rule, token, token_of
from tests.harness import Nas, logged

EVERYTHING = ["list", "read", "create", "append", "replace", "delete", "sign"]
CI = {"Authorization": f"Bearer {token_of('ci')}"}
OLD, NEW = link_key("old", b"o" * 32), link_key("new", b"n" * 32)
RULES = (token("ci"), rule("ci", "/secret", [], EVERYTHING), rule("ci", "/", EVERYTHING))
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="%b"\r\n\r\nx\r\n--b--'


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    nas = Nas(tmp_path / "root", auth=files.write(tmp_path, OLD, *RULES))
    for name in ("f", "d/f", "d/sub/g", "secret/s", "d é"):
        (nas.root / name).parent.mkdir(parents=True, exist_ok=True)
        (nas.root / name).write_bytes(b"1\n")
    yield nas
    await nas.stop()


async def ask(nas: Nas, headers: dict[str, str] | None = None, **members: Any) -> tuple[int, Any]:
    """Ask for a link."""
    wish = {"method": "GET", "path": "/f", "seconds": 60, **members}
    body = json.dumps(wish).encode()
    status, answer, _ = await nas.fetch("POST", "/links", headers=headers or CI, data=body)
    return status, json.loads(answer)


async def link(nas: Nas, **members: Any) -> str:
    """Return the URL of a link."""
    status, answer = await ask(nas, **members)
    assert status == 200, answer
    return str(answer["url"])


async def status(nas: Nas, method: str, url: str, data: bytes = b"", **kwargs: Any) -> int:
    return (await nas.fetch(method, url, data=data, **kwargs))[0]


def query_of(url: str) -> str:
    return url.partition("?")[2]


@pytest_twisted.ensureDeferred
async def test_a_link_is_for_one_method_and_one_name(nas: Nas) -> None:
    url = await link(nas, path="d/f")
    assert re.fullmatch(r"/file/d/f\?link=[\w.-]+", url)
    assert (await nas.fetch("GET", url))[1] == b"1\n"
    assert await status(nas, "HEAD", url) == 200
    query = query_of(url)
    assert await status(nas, "GET", f"/files/d/f?{query}") == 200
    assert await status(nas, "GET", f"/file/d/f/wc?{query}") == 200
    assert await status(nas, "GET", f"/file//d/./%66?{query}") == 200
    for method, path in [
        ("GET", "/file/f"),
        ("GET", "/file/d"),
        ("GET", "/file/"),
        ("GET", "/transfers"),
        ("GET", "/metrics"),
        ("POST", "/file/d/f"),
        ("PUT", "/file/d/f"),
        ("DELETE", "/file/d/f"),
        ("POST", "/links"),
    ]:
        got = await nas.fetch(method, f"{path}?{query}", data=b"x")
        kind = b"missing-right" if method == "GET" else b"link-refused"
        assert (got[0], kind in got[1]) == (403, True), (method, path)


@pytest_twisted.ensureDeferred
async def test_a_link_may_be_for_all_below_a_name(nas: Nas) -> None:
    url = await link(nas, path="d", prefix=True)
    assert url.startswith("/file/d/?link=")
    assert (await nas.fetch("GET", url))[1].decode().split() == ["f", "sub"]
    query = query_of(url)
    assert await status(nas, "GET", f"/file/d/sub/g?{query}") == 200
    for path in ("/file/f", "/file/", "/file/d%20%C3%A9", "/file/secret/s"):
        assert await status(nas, "GET", f"{path}?{query}") == 403
    whole = query_of(await link(nas, path="/", prefix=True))
    assert await status(nas, "GET", f"/file/d/f?{whole}") == 200
    assert await status(nas, "GET", f"/file/secret/s?{whole}") == 403
    assert b"secret" not in (await nas.fetch("GET", f"/file/?{whole}"))[1]


@pytest_twisted.ensureDeferred
async def test_a_link_changes_what_its_method_does(nas: Nas) -> None:
    assert await status(nas, "POST", await link(nas, method="POST"), b"2\n") == 200
    assert await status(nas, "PUT", await link(nas, method="PUT"), b"3\n") == 200
    assert (nas.root / "f").read_bytes() == b"2\n3\n"
    move = {"headers": {"Content-Type": "application/json"}}
    url = await link(nas, method="PUT", path="/", prefix=True)
    moved = url.replace("/file/", "/file/f")
    assert await status(nas, "PUT", moved, b'{"path": "g"}', **move) == 403
    assert await status(nas, "DELETE", await link(nas, method="DELETE")) == 200
    assert not (nas.root / "f").exists()


@pytest_twisted.ensureDeferred
async def test_a_link_may_create_only(nas: Nas) -> None:
    url = await link(nas, method="POST", path="in", prefix=True, create_only=True)
    new = url.replace("/file/in/", "/file/in/new")
    assert await status(nas, "POST", new, b"x") == 200
    assert await status(nas, "POST", new, b"x") == 403
    form = f"/files/in?{query_of(url)}"
    assert await status(nas, "POST", form, PART % b"other", headers=FORM) == 202
    assert await status(nas, "POST", form, PART % b"new", headers=FORM) == 403
    elsewhere = form.replace("/files/in", "/files/d")
    assert await status(nas, "POST", elsewhere, PART % b"other", headers=FORM) == 403


@pytest_twisted.ensureDeferred
async def test_a_link_may_limit_the_bytes(nas: Nas) -> None:
    url = await link(nas, method="POST", max_bytes=3)
    assert await status(nas, "POST", url, b"1234") == 413
    chunked = await nas.talk(
        f"POST {url} HTTP/1.1\r\nHost: n\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        "4\r\n1234\r\n0\r\n\r\n".encode()
    )
    assert chunked.startswith(b"HTTP/1.1 413")
    assert await status(nas, "POST", url, b"123") == 200


@pytest_twisted.ensureDeferred
async def test_any_byte_of_a_link_that_is_changed_voids_it(nas: Nas) -> None:
    url = await link(nas)
    path, _, text = url.partition("?link=")
    for place, was in enumerate(text):
        for other in {"A", "b", "0", "_", ".", chr(ord(was) ^ 1), ""} - {was}:
            if not re.fullmatch("[ -~]?", other) or other in "#&%+":
                continue
            changed = f"{path}?link={text[:place]}{other}{text[place + 1 :]}"
            got = await nas.fetch("GET", changed)
            assert (got[0], b"link-refused" in got[1]) == (403, True), (place, other)
    for more in ("x", "=", ".", "&link=" + text, "%00"):
        assert await status(nas, "GET", f"{url}{more}") == 403


@pytest_twisted.ensureDeferred
async def test_a_signature_is_compared_in_constant_time(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = await link(nas), []

    def compared(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compared)
    assert await status(nas, "GET", url[:-2]) == 403
    assert await status(nas, "GET", url) == 200
    assert seen[-1][0] == seen[-1][1] == url.rpartition(".")[2].encode()


@pytest_twisted.ensureDeferred
async def test_a_link_expires(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    _, answer = await ask(nas, seconds=60)
    at = time.time()
    for later, expected in ((58, 200), (61, 403)):
        monkeypatch.setattr(time, "time", lambda later=later: at + later)
        assert await status(nas, "GET", answer["url"]) == expected
    ends = time.strptime(answer["expires"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(ends) - time.timezone - at - 60) < 3


@pytest_twisted.ensureDeferred
async def test_keys_are_turned_one_after_the_other(nas: Nas, tmp_path: Path) -> None:
    assert nas.authentication is not None
    urls = [await link(nas)]
    seen = []
    for keys in ((NEW, OLD), (NEW,), ()):
        files.write(tmp_path, *keys, *RULES)
        await nas.authentication.reload()
        if keys:
            urls.append(await link(nas))
        seen.append([await status(nas, "GET", url) for url in urls])
    assert seen == [[200, 200], [403, 200, 200], [403, 403, 403]]
    assert (await ask(nas))[0] == 404


@pytest.mark.parametrize(
    "tables",
    [
        (token("ci"), rule("ci", "/", ["sign"])),
        (token("other"), rule("ci", "/", EVERYTHING)),
        (token("ci", "2001-01-01T00:00:00Z"), rule("ci", "/", EVERYTHING)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_link_does_no_more_than_its_signer_may_now(
    nas: Nas, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    url = await link(nas)
    files.write(tmp_path, OLD, *tables)
    assert nas.authentication is not None
    await nas.authentication.reload()
    assert await status(nas, "GET", url) == 403


@pytest_twisted.ensureDeferred
async def test_nobody_signs_what_he_may_not_do(nas: Nas, tmp_path: Path) -> None:
    for path in ("/secret/s", "secret", "//secret/./s"):
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert (await ask(nas, method=method, path=path))[0] == 403
    assert (await ask(nas, {"X": "anonymous"}))[0] == 401
    files.write(tmp_path, OLD, token("ci"), rule("ci", "/", ["sign", "create"]))
    assert nas.authentication is not None
    await nas.authentication.reload()
    asked: list[tuple[dict[str, Any], int]] = [
        ({"method": "GET"}, 403),
        ({"method": "POST"}, 403),
        ({"method": "POST", "create_only": True}, 200),
    ]
    for members, expected in asked:
        assert (await ask(nas, **members))[0] == expected, members
    files.write(tmp_path, OLD, token("ci"), rule("ci", "/d", ["sign"]), rule("ci", "/", ["read"]))
    await nas.authentication.reload()
    assert [(await ask(nas, path=path))[0] for path in ("d/f", "f")] == [200, 403]


@pytest.mark.parametrize(
    "members",
    [
        {"method": "HEAD"},
        {"method": None},
        {"path": 1},
        {"path": "../f"},
        {"path": "\ud800"},
        {"seconds": 0},
        {"seconds": True},
        {"seconds": 1.5},
        {"seconds": 7 * 86400 + 1},
        {"prefix": "yes"},
        {"create_only": True},
        {"max_bytes": -1},
        {"max_bytes": "1"},
        {"other": 1},
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_good_link_is_not_made(nas: Nas, members: dict[str, Any]) -> None:
    status, answer = await ask(nas, **members)
    assert status == 400
    assert re.search("#(not-a-link|bad-name)$", answer["type"])


@pytest_twisted.ensureDeferred
async def test_a_body_that_is_no_json_makes_no_link(nas: Nas) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b" " * 70000, b"[" * 60000):
        assert await status(nas, "POST", "/links", body, headers=CI) == 400


@pytest_twisted.ensureDeferred
async def test_a_link_counts_before_credentials_that_come_along(nas: Nas) -> None:
    """A browser sends those that it knows; the right of a link is the smaller one."""
    url = await link(nas)
    for headers in (CI, {"Authorization": "Bearer wrong"}):
        assert await status(nas, "GET", url, headers=headers) == 200
        changed = url.replace("/file/f", "/file/d/f")
        assert await status(nas, "GET", changed, headers=headers) == 403


@pytest_twisted.ensureDeferred
async def test_a_link_is_in_no_log_trace_or_referer(nas: Nas) -> None:
    with logged() as events:
        url = await link(nas, path="/", prefix=True)
        got = [
            await nas.fetch("GET", url),
            await nas.fetch("GET", url.replace("/file/", "/file/f")),
            await nas.fetch("GET", url.replace("/file/", "/file/secret/s")),
            await nas.fetch("GET", url + "x"),
            await nas.fetch("GET", "/file/d%zz?" + query_of(url)),
            await nas.fetch("GET", "/nothing?" + query_of(url)),
        ]
    assert [each[0] for each in got] == [200, 200, 403, 403, 400, 404]
    assert all(
        headers.getRawHeaders("Referrer-Policy") == ["no-referrer"] for _, _, headers in got[:5]
    )
    told = repr(events) + json.dumps(nas.engine.trace.record()) + repr([each[1] for each in got])
    assert query_of(url)[len("link=") :] not in told
    assert not re.search(r"link=\w", told)
    requests = [event["request"] for event in events if "request" in event]
    assert [each.get("principal") for each in requests] == [
        "ci",
        "ci",
        "ci",
        "ci",
        None,
        "ci",
        None,
    ]
    audits = [event for event in events if "audit" in (event.get("log_format") or "")]
    assert [str(event["error"]) for event in audits] == [
        "This needs the right 'read' or 'list' here.",
        "This is no link, or its key does not count any more.",
    ]


def test_what_a_link_says_is_what_was_granted() -> None:
    key = links.LinkKey("k", b"s" * 32)
    grant = links.Grant("POST", "d/é".encode(), True, int(time.time()) + 9, True, 5)
    signer = Principal("oidc/bob", "jwt", frozenset({"oidc/red", "team", "authenticated"}))
    text = links.sign(key, grant, signer)
    found, who = links.verify([key], text.encode(), b"POST")
    assert found == grant
    assert (who.name, who.kind, who.groups) == ("oidc/bob", "jwt", frozenset({"oidc/red"}))
    payload = base64.urlsafe_b64decode(text.split(".")[1] + "==")
    assert key.secret not in payload
