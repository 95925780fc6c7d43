"""Pages of other sites: which may use the daemon, and what a browser is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.harness import Nas, Twistd, talk, twistd

FRIEND = "https://friend.example"


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    options: dict[str, Any] = {"cors-origins": [FRIEND.encode(), b"http://x.example:81"]}
    daemon = Nas(tmp_path / "root", **options)
    yield daemon
    await daemon.stop()


async def headers_of(nas: Nas, method: str, path: str, **sent: str) -> tuple[int, dict[str, str]]:
    fields = {name.replace("_", "-"): value for name, value in sent.items()}
    status, _, headers = await nas.fetch(method, path, headers=fields, data=b"")
    return status, {k.decode().lower(): v[0].decode() for k, v in headers.getAllRawHeaders()}


@pytest.mark.parametrize("origin", [FRIEND, "http://x.example:81"])
@pytest_twisted.ensureDeferred
async def test_a_page_of_a_named_site_may_change_things_and_read_the_answer(
    nas: Nas, origin: str
) -> None:
    status, headers = await headers_of(
        nas, "POST", "/file/f", Origin=origin, Sec_Fetch_Site="cross-site"
    )
    assert status == 200
    assert headers["access-control-allow-origin"] == origin
    assert headers["vary"] == "Origin"
    assert {"etag", "upload-offset", "x-request-id", "repr-digest", "content-range"} <= {
        field.strip().lower() for field in headers["access-control-expose-headers"].split(",")
    }


@pytest.mark.parametrize("origin", ["https://foe.example", FRIEND + ".example", "null", "http://"])
@pytest_twisted.ensureDeferred
async def test_a_page_of_another_site_may_not(nas: Nas, origin: str) -> None:
    status, headers = await headers_of(
        nas, "POST", "/file/f", Origin=origin, Sec_Fetch_Site="cross-site"
    )
    assert status == 403
    assert "access-control-allow-origin" not in headers
    assert not (nas.root / "f").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/file/f",
        "/file/",
        "/files/f",
        "/file/f/mv",
        "/transfers",
        "/metrics",
        "/ready",
        "/",
        "/docs",
        "/docs/problems",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_preflight_is_answered(nas: Nas, path: str) -> None:
    status, headers = await headers_of(
        nas,
        "OPTIONS",
        path,
        Origin=FRIEND,
        Access_Control_Request_Method="PUT",
        Access_Control_Request_Headers="if-match,content-type",
    )
    assert status == 204
    assert headers["access-control-allow-origin"] == FRIEND
    assert "PUT" in headers["access-control-allow-methods"].split(", ")
    assert headers["access-control-allow-headers"] == "if-match,content-type"
    assert int(headers["access-control-max-age"]) > 0


@pytest_twisted.ensureDeferred
async def test_a_refusal_can_be_read_by_a_page_of_a_named_site(nas: Nas) -> None:
    status, headers = await headers_of(nas, "GET", "/file/none", Origin=FRIEND)
    assert (status, headers["access-control-allow-origin"]) == (404, FRIEND)


@pytest_twisted.ensureDeferred
async def test_answers_differ_by_origin_beside_what_else_they_differ_by(nas: Nas) -> None:
    _, _, headers = await nas.fetch("GET", "/file/", headers={"Origin": FRIEND})
    assert {"Origin", "Accept"} == set(", ".join(headers.getRawHeaders("Vary")).split(", "))
    _, _, headers = await nas.fetch("GET", "/file/none")
    assert headers.getRawHeaders("Vary") == ["Origin"], "it could be kept for one with an Origin"


@pytest_twisted.ensureDeferred
async def test_without_the_option_no_other_site_is_told_anything(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "plain")
    try:
        for method, path in (("GET", "/file/"), ("OPTIONS", "/file/f"), ("GET", "/file/none")):
            _, headers = await headers_of(
                nas, method, path, Origin=FRIEND, Access_Control_Request_Method="PUT"
            )
            assert not [name for name in headers if name.startswith("access-control")]
            assert "Origin" not in headers.get("vary", "")
    finally:
        await nas.stop()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"nas.example", 200),
        (b"nas.example:3000", 200),
        (b"NAS.Example:", 200),
        (b"[::1]:3000", 200),
        (b"foe.example", 421),
        (b"foe.example:3000", 421),
        (b"nas.example.foe.example", 421),
        (b"[::2]", 421),
        (b"", 421),
    ],
)
@pytest_twisted.ensureDeferred
async def test_only_named_hosts_are_answered_to_when_there_are_any(
    tmp_path: Path, host: bytes, status: int
) -> None:
    nas = Nas(tmp_path / "root", hosts=[b"nas.example", b"[::1]"])
    try:
        for target in (b"/file/", b"/", b"/transfers", b"/metrics"):
            answer = await nas.talk(
                b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (target, host)
            )
            assert answer.startswith(b"HTTP/1.1 %d " % status), target
        for target in (b"/health", b"/ready", b"/file"):  # probes ask by address
            answer = await nas.talk(
                b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (target, host)
            )
            assert answer.startswith(b"HTTP/1.1 200 "), target
    finally:
        await nas.stop()


def test_the_options_reach_the_daemon(tmp_path: Path) -> None:
    with twistd(
        tmp_path / "root",
        f"--cors-origins={FRIEND} http://x.example:81",
        "--headroom=9000T",
        env={"HTTPNAS_HOSTS": "Nas.Example 127.0.0.1"},
    ) as daemon:
        request = (
            b"GET %s HTTP/1.1\r\nHost: %s\r\nOrigin: http://x.example:81\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = talk(daemon.port, [request % (b"/ready", b"127.0.0.1")])
        assert b"Access-Control-Allow-Origin: http://x.example:81\r\n" in answer
        assert b"bytes are free, and 9895604649984000 should be." in answer
        assert talk(daemon.port, [request % (b"/", b"foe")]).startswith(b"HTTP/1.1 421 ")


REBOUND = (b"nas.foe.example", b"foe.example:3000", b"localhost.foe.example", b"0.0.0.0", b"")
OWN = (b"localhost", b"LocalHost:3000", b"127.0.0.1:1", b"[::1]:3000", b"127.0.0.2")


def answers(daemon: Twistd, host: bytes) -> list[int]:
    """Return the statuses of an upload to *host*, and of a probe."""
    upload = b"POST /file/f HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
    probe = b"GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
    told = [talk(daemon.port, [request % host]) for request in (upload, probe)]
    return [int(answer.split()[1]) for answer in told]


def test_a_site_whose_name_leads_to_loopback_can_not_use_the_daemon(tmp_path: Path) -> None:
    more = "--listen=tcp:0:interface=127.0.0.2"
    with twistd(tmp_path / "root", more, env={"HTTPNAS_HOSTS": ""}) as daemon:
        assert {host: answers(daemon, host) for host in REBOUND} == {
            key: [421, 200] for key in REBOUND
        }
        assert not (daemon.root / "f").exists()
        assert {host: answers(daemon, host) for host in OWN} == {key: [200, 200] for key in OWN}


@pytest.mark.parametrize(
    "options", [("--hosts=*",), ("--listen=tcp:0:interface=0.0.0.0",), ("--listen=unix:socket",)]
)
def test_where_more_than_loopback_leads_here_any_name_may(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with twistd(tmp_path / "root", *options, env={"HTTPNAS_HOSTS": ""}) as daemon:
        assert answers(daemon, b"nas.example") == [200, 200]


def test_named_hosts_are_the_only_ones_on_loopback_too(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--hosts=nas.example", env={"HTTPNAS_HOSTS": ""}) as daemon:
        assert answers(daemon, b"nas.example") == [200, 200]
        assert answers(daemon, b"localhost") == [421, 200]
