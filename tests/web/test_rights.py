"""``/rights``: what a client is told about itself."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.access.rules import Right
from tests.access import files
from tests.access.files import link_key, rule, token, token_of
from tests.harness import Nas

ALICE = {"Authorization": "Basic " + base64.b64encode(b"alice:secret").decode()}
BOB = {"Authorization": f"Bearer {token_of('bob')}"}
NOBODY: dict[str, str] = {}


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    auth = files.write(
        tmp_path,
        link_key("k"),
        token("bob"),
        rule("alice", "/team/secret", deny=["list", "read", "sign"]),
        rule("alice", "/team", ["list", "read", "create", "sign"]),
        rule("bob", "/", ["see-metrics"]),
        rule("bob", "/in/box", ["create"]),
        rule("anonymous", "/public", ["list"]),
    )
    nas = Nas(tmp_path / "root", auth=auth)
    yield nas
    await nas.stop()


async def told(nas: Nas, headers: dict[str, str], path: str) -> dict[str, Any]:
    status, body, _ = await nas.fetch("GET", f"/rights?path={path}", headers=headers)
    assert status == 200
    answer: dict[str, Any] = json.loads(body)
    return answer


@pytest.mark.parametrize(
    ("headers", "path", "rights"),
    [
        (ALICE, "", ["list", "read", "create", "sign"]),
        (ALICE, "team", ["list", "read", "create", "sign"]),
        (ALICE, "/team//new/", ["list", "read", "create", "sign"]),
        (ALICE, "team/secret", ["create"]),
        (ALICE, "other", []),
        (BOB, "", ["create", "see-metrics"]),
        (BOB, "in", ["create", "see-metrics"]),
        (BOB, "public", ["see-metrics"]),
        (NOBODY, "", ["list"]),
        (NOBODY, "team", []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_rights_are_those_at_a_path_or_somewhere_below_it(
    nas: Nas, headers: dict[str, str], path: str, rights: list[str]
) -> None:
    assert (await told(nas, headers, path))["rights"] == rights


@pytest_twisted.ensureDeferred
async def test_it_says_who_asks(nas: Nas) -> None:
    for headers, principal in (
        (ALICE, {"name": "alice", "kind": "password"}),
        (BOB, {"name": "bob", "kind": "token"}),
        (NOBODY, {"name": "anonymous", "kind": "anonymous"}),
    ):
        answer = await told(nas, headers, "team")
        assert (answer["principal"], answer["path"]) == (principal, "team")


@pytest_twisted.ensureDeferred
async def test_a_page_can_have_its_browser_ask(nas: Nas) -> None:
    status, _, headers = await nas.fetch("GET", "/rights?anonymous=no")
    assert status == 401
    assert headers.getRawHeaders("WWW-Authenticate")[0].startswith("Basic ")
    assert (await nas.fetch("GET", "/rights?anonymous=no", headers=ALICE))[0] == 200
    assert (await nas.fetch("GET", "/rights?anonymous=maybe"))[0] == 400
    assert (await nas.fetch("GET", "/rights?path=a%00b"))[0] == 400
    assert (await nas.fetch("GET", "/rights", headers={"Authorization": "Bearer x"}))[0] == 401


@pytest_twisted.ensureDeferred
async def test_a_link_tells_what_it_gives(nas: Nas) -> None:
    wish = json.dumps({"method": "GET", "path": "team/f", "seconds": 60}).encode()
    link = json.loads((await nas.fetch("POST", "/links", headers=ALICE, data=wish))[1])["url"]
    link = link.partition("?")[2]
    answer = json.loads((await nas.fetch("GET", f"/rights?path=team/f&{link}"))[1])
    assert answer["rights"] == ["list", "read"]
    answer = json.loads((await nas.fetch("GET", f"/rights?path=team&{link}"))[1])
    assert (answer["principal"]["kind"], answer["rights"]) == ("link", [])


@pytest_twisted.ensureDeferred
async def test_without_rules_everything_is_allowed_but_there_are_no_links(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root")
    try:
        answer = await told(nas, ALICE, "a")
        every = [right.value for right in Right if right is not Right.SIGN]
        assert answer == {"principal": None, "path": "a", "rights": every}
    finally:
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_without_a_key_nobody_may_sign(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", auth=files.write(tmp_path, rule("alice", "/", ["sign", "list"])))
    try:
        assert (await told(nas, ALICE, ""))["rights"] == ["list"]
    finally:
        await nas.stop()
