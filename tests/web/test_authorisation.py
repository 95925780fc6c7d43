"""Who may do what, through every door: one table of requests, and the rights that each needs."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import pytest_twisted

from httpnas.access.admission import NEEDED
from httpnas.access.rules import Right
from httpnas.files.points import Verb
from tests.access import files
from tests.access.files import link_key, rule, token, token_of
from tests.harness import Nas, logged

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"Content-Type": "application/json"}


LINK = b'{"method": "GET", "path": "/d/f", "seconds": 60}'


def form(filename: str) -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{filename}"'
    return f"--b\r\n{head}\r\n\r\nx\r\n--b--".encode()


class Row(NamedTuple):
    """A request, and the rights that it needs.

    :ivar needs: sets of rights, of which each is enough; with nothing in it, everybody may.
    :ivar rule: the route that it takes, as the router has it.
    """

    rule: str
    method: str
    path: str
    needs: tuple[str, ...]
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


BELOW, FORMS = "/file/<rest:_>", "/files/<rest:_>"
#: What is stored: the files d/f and d/g, and the folder d. A dot stands for no right at all.
TABLE = [
    Row(BELOW, "GET", "/file/d/f", ("read",)),
    Row(BELOW, "HEAD", "/file/d/f", ("read",)),
    Row(BELOW, "GET", "/file/d/f", ("read",), {"Want-Repr-Digest": "sha-256=1"}),
    Row(BELOW, "GET", "/file/d/f/wc", ("read",)),
    Row(BELOW, "GET", "/file/d/", ("list",)),
    Row(BELOW, "GET", "/file/d", ("list",), {"Accept": "application/json"}),
    Row(BELOW, "HEAD", "/file/d", ("list",)),
    Row(BELOW, "GET", "/file/", ("list",)),
    Row(BELOW, "POST", "/file/d/new", ("create",), {}, b"x"),
    Row(BELOW, "POST", "/file/new/new", ("create",), {}, b"x"),
    Row(BELOW, "POST", "/file/d/f", ("replace",), {}, b"x"),
    Row(BELOW, "PUT", "/file/d/f", ("append",), {}, b"x"),
    Row(BELOW, "PUT", "/file/d/f", ("append",), {"Idempotency-Key": "k"}, b"x"),
    Row(BELOW, "PUT", "/file/d/f", ("delete create", "replace create"), JSON, b'{"path": "new"}'),
    Row(BELOW, "PUT", "/file/d/f", ("delete replace", "replace"), JSON, b'{"path": "d/g"}'),
    Row(BELOW, "PUT", "/file/d/f/mv", ("delete create", "replace create"), {}, b'{"path": "new"}'),
    Row(BELOW, "PUT", "/file/d", ("delete create", "replace create"), JSON, b'{"path": "new"}'),
    Row(BELOW, "PUT", "/file/d/", ("delete create", "replace create"), JSON, b'{"path": "new"}'),
    Row(BELOW, "DELETE", "/file/d/f", ("delete",)),
    Row(BELOW, "DELETE", "/file/d", ("delete",)),
    Row(BELOW, "DELETE", "/file/d/", ("delete",)),
    Row(FORMS, "GET", "/files/d/f", ("read",)),
    Row(FORMS, "HEAD", "/files/d/f", ("read",)),
    Row("/files", "POST", "/files", ("create",), FORM, form("new")),
    Row(FORMS, "POST", "/files/d/", ("create",), FORM, form("new")),
    Row(FORMS, "POST", "/files/d", ("replace",), FORM, form("f")),
    Row("/transfers", "GET", "/transfers", ("see-transfers",)),
    Row("/transfers", "HEAD", "/transfers", ("see-transfers",)),
    Row("/metrics", "GET", "/metrics", ("see-metrics",)),
    Row("/metrics", "HEAD", "/metrics", ("see-metrics",)),
    Row("/links", "POST", "/links", ("sign read",), {}, LINK),
    *(
        Row(rule, method, path, ("",))
        for rule, path in [
            ("/", "/"),
            ("/docs", "/docs"),
            ("/docs/problems", "/docs/problems"),
            ("/openapi.json", "/openapi.json"),
            ("/rights", "/rights"),
            ("/health", "/health"),
            ("/ready", "/ready"),
        ]
        for method in ("GET", "HEAD", "OPTIONS")
    ),
    Row("/file", "GET", "/file", ("",)),
    Row("/file", "HEAD", "/file", ("",)),
    *(
        Row(rule, "OPTIONS", path, ("",))
        for rule, path in [
            ("/file", "/file"),
            (BELOW, "/file/d/f"),
            ("/files", "/files"),
            (FORMS, "/files/d"),
            ("/links", "/links"),
            ("/transfers", "/transfers"),
            ("/metrics", "/metrics"),
        ]
    ),
]
#: Routes that say nothing but that there is nothing: the door of forms does not list.
ELSEWHERE = {("/files", "GET"), ("/files", "HEAD")}
ALL = frozenset(right.value for right in Right)


def sets_to_try(row: Row) -> list[frozenset[str]]:
    """Return the sets of rights that are tried: none, each, all, all but one, and all pairs of
    those that play a part."""
    parts = {right for needs in row.needs for right in needs.split()}
    pairs = itertools.combinations(sorted(parts), 2)
    return [
        *{
            frozenset(),
            ALL,
            *(frozenset({right}) for right in ALL),
            *(ALL - {right} for right in ALL),
            *map(frozenset, pairs),
        }
    ]


def name_of(rights: frozenset[str]) -> str:
    """Return the name of the principal that has *rights*."""
    return "has-" + "-".join(sorted(rights))


EVERY_SET = sorted({rights for row in TABLE for rights in sets_to_try(row)}, key=sorted)


@pytest_twisted.async_yield_fixture(scope="module")
async def nas(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nas]:
    folder = tmp_path_factory.mktemp("nas")
    numbers = {rights: f"p{number}" for number, rights in enumerate(EVERY_SET)}
    tables = [token(name) + (rule(name, "/", r) if r else "") for r, name in numbers.items()]
    nas = Nas(folder / "root", auth=files.write(folder, link_key("k"), *tables))
    nas.names = numbers  # type: ignore[attr-defined]
    yield nas
    await nas.stop()


def lay_out(root: Path) -> None:
    for entry in root.iterdir():
        if entry.name != ".httpnas":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"1\n")
    (root / "d" / "g").write_bytes(b"2\n")


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
        if ".httpnas" not in path.parts
    }


def bearing(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(name)}"}


IDS = [f"{row.method} {row.path} {row.needs}" for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=IDS)
@pytest_twisted.ensureDeferred
async def test_a_request_needs_the_rights_of_the_table_and_no_others(nas: Nas, row: Row) -> None:
    names: dict[frozenset[str], str] = nas.names  # type: ignore[attr-defined]
    for rights in sets_to_try(row):
        lay_out(nas.root)
        before = contents(nas.root)
        headers = {**row.headers, **bearing(names[rights])}
        status, body, _ = await nas.fetch(row.method, row.path, headers=headers, data=row.body)
        if any(rights >= set(needs.split()) for needs in row.needs):
            assert status < 300, (sorted(rights), body)
        else:
            assert status == 403, (sorted(rights), status, body)
            assert contents(nas.root) == before, sorted(rights)
            if row.method != "HEAD":
                problem = json.loads(body)
                assert problem["type"] == "/docs/problems#missing-right"
                assert rights.isdisjoint(problem["rights"])
                assert any({*problem["rights"]} & {*needs.split()} for needs in row.needs)


@pytest.mark.parametrize("row", TABLE, ids=IDS)
@pytest_twisted.ensureDeferred
async def test_who_has_no_credentials_is_asked_for_them(nas: Nas, row: Row) -> None:
    lay_out(nas.root)
    before = contents(nas.root)
    got = await nas.fetch(row.method, row.path, headers=dict(row.headers), data=row.body)
    if "" in row.needs:
        assert got[0] < 300
        return
    assert got[0] == 401
    assert got[2].getRawHeaders("WWW-Authenticate") == [
        'Basic realm="httpnas", charset="UTF-8", Bearer realm="httpnas"'
    ]
    assert contents(nas.root) == before


@pytest_twisted.ensureDeferred
async def test_every_route_is_in_the_table(nas: Nas) -> None:
    """A door that is added needs its rows here."""
    route: Any = nas.site.route
    assets = ("/page/", "/docs/swagger-ui")
    served = {
        (found.rule, method)
        for found in route.__self__._app.url_map.iter_rules()
        for method in found.methods or ()
        if not found.rule.startswith(assets) and "refuse" not in found.endpoint
    }
    assert served - ELSEWHERE == {(row.rule, row.method) for row in TABLE}


def test_every_verb_and_right_is_in_the_table() -> None:
    assert {verb for verb, _ in NEEDED} == set(Verb)
    needed = {right for row in TABLE for needs in row.needs for right in needs.split()}
    assert needed == ALL


# What a name that may not be seen tells


@pytest_twisted.ensureDeferred
async def test_who_has_no_right_does_not_learn_what_there_is(nas: Nas) -> None:
    names: dict[frozenset[str], str] = nas.names  # type: ignore[attr-defined]
    nobody = names[frozenset()]
    lay_out(nas.root)
    (nas.root / "link").symlink_to("d")
    requests = [
        ("GET", "", b""),
        ("GET", "/wc", b""),
        ("GET", "/mv", b""),
        ("POST", "", b"x"),
        ("PUT", "", b"x"),
        ("PUT", "/mv", b'{"path": "d/new"}'),
        ("DELETE", "", b""),
        ("DELETE", "/", b""),
    ]
    for method, tail, body in requests:
        answers = set()
        for name in ("d/f", "d", "nothing", "d/f/below", "link"):
            got = await nas.fetch(method, f"/file/{name}{tail}", headers=bearing(nobody), data=body)
            problem = json.loads(got[1])
            del problem["instance"]
            answers.add((got[0], json.dumps(problem)))
        assert len(answers) == 1, (method, tail, answers)
        assert answers.pop()[0] == 403


# Credentials


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest_twisted.async_yield_fixture
async def team(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon with a user, a team, somebody else, and something for everybody."""
    everything = ["list", "read", "create", "append", "replace", "delete"]
    auth = files.write(
        tmp_path,
        '[groups]\nteam = ["alice"]\n',
        token("bob"),
        token("late", "2001-01-01T00:00:00Z"),
        token("operator"),
        rule("alice", "/team/secret", deny=everything),
        rule("@team", "/team", everything),
        rule("bob", "/other", everything),
        rule("anonymous", "/public", ["read", "list"]),
        rule("anonymous", "/inbox", ["create"]),
        rule("operator", "/", ["see-transfers", "see-metrics"]),
    )
    nas = Nas(tmp_path / "root", auth=auth)
    for name in ("team/a", "team/secret/b", "other/c", "public/d", "inbox/e"):
        (nas.root / name).parent.mkdir(parents=True, exist_ok=True)
        (nas.root / name).write_bytes(b"x")
    yield nas
    await nas.stop()


ALICE = basic("alice", "secret")
BOB = bearing("bob")


@pytest_twisted.ensureDeferred
async def test_passwords_and_tokens_tell_who_asks(team: Nas) -> None:
    for headers, statuses in ((ALICE, (200, 403, 403)), (BOB, (403, 403, 200))):
        got = [
            (await team.fetch("GET", f"/file/{name}", headers=headers))[0]
            for name in ("team/a", "team/secret/b", "other/c")
        ]
        assert tuple(got) == statuses


@pytest.mark.parametrize(
    "credentials",
    [
        basic("alice", "wrong"),
        basic("alice", ""),
        basic("nobody", "secret"),
        basic("anonymous", ""),
        basic("bob", token_of("bob")),
        bearing("late"),
        bearing("nobody"),
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Digest username=alice"},
        {"Authorization": ""},
        {"Authorization": token_of("bob")},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/file/public/d", "/transfers", "/"])
@pytest_twisted.ensureDeferred
async def test_wrong_credentials_are_refused_even_where_none_are_needed(
    team: Nas, credentials: dict[str, str], path: str
) -> None:
    status, body, headers = await team.fetch("GET", path, headers=credentials)
    assert status == 401
    assert json.loads(body)["type"] == "/docs/problems#unauthenticated"
    assert "Basic" in headers.getRawHeaders("WWW-Authenticate")[0]


@pytest_twisted.ensureDeferred
async def test_schemes_are_spelled_in_any_case(team: Nas) -> None:
    for headers, path in ((ALICE, "team/a"), (BOB, "other/c")):
        lower = {"Authorization": headers["Authorization"].replace("B", "b", 1)}
        assert (await team.fetch("GET", f"/file/{path}", headers=lower))[0] == 200


@pytest_twisted.ensureDeferred
async def test_orchestrators_need_no_credentials_and_wrong_ones_do_no_harm(team: Nas) -> None:
    for path in ("/health", "/ready", "/file"):
        for headers in ({}, basic("alice", "wrong")):
            assert (await team.fetch("GET", path, headers=headers))[0] == 200


# Where the answer comes before the body


@pytest.mark.parametrize(
    "method, path, more",
    [
        ("POST", "/file/team/new", ""),
        ("POST", "/file/team/a", ""),
        ("PUT", "/file/team/a", ""),
        ("PUT", "/file/team/a", "Content-Type: application/json\r\n"),
        ("POST", "/files/team", "Content-Type: multipart/form-data; boundary=b\r\n"),
    ],
)
@pytest.mark.parametrize("who", ["nobody", "bob", "wrong"])
@pytest_twisted.ensureDeferred
async def test_a_refusal_comes_before_the_body_is_asked_for(
    team: Nas, method: str, path: str, more: str, who: str
) -> None:
    credentials = "" if who == "nobody" else f"Authorization: Bearer {token_of(who)}\r\n"
    sent = (
        f"{method} {path} HTTP/1.1\r\nHost: nas\r\nExpect: 100-continue\r\n"
        f"Content-Length: 1000000\r\n{more}{credentials}\r\n"
    )
    got = await team.talk(sent.encode())
    assert got.startswith(b"HTTP/1.1 403" if who == "bob" else b"HTTP/1.1 401")


@pytest_twisted.ensureDeferred
async def test_what_a_body_names_is_asked_about_too(team: Nas) -> None:
    """Both names of a move, and each part of a form."""
    for target in ("other/new", "team/secret/new", "team/secret/b", "inbox/new"):
        body = json.dumps({"path": target}).encode()
        got = await team.fetch("PUT", "/file/team/a", headers={**ALICE, **JSON}, data=body)
        assert got[0] == 403, target
    # Behind a part that is stored.
    body = form("new")[:-4] + form("secret/new")[1:]
    body = b"--b" + form("new")[3:-5] + b"\r\n" + form("secret/new")
    status, answer, _ = await team.fetch(
        "POST", "/files/team", headers={**ALICE, **FORM}, data=body
    )
    assert (status, json.loads(answer)["stored"]) == (403, ["team/new"])
    assert not (team.root / "team/secret/new").exists()


@pytest_twisted.ensureDeferred
async def test_a_folder_does_not_take_along_what_may_not_be_touched(team: Nas) -> None:
    for method, headers, body in (
        ("DELETE", ALICE, b""),
        ("PUT", {**ALICE, **JSON}, b'{"path": "team2"}'),
    ):
        for path in ("/file/team", "/file/team/"):
            assert (await team.fetch(method, path, headers=headers, data=body))[0] == 403
    assert (team.root / "team/secret/b").exists()


# Listings


@pytest_twisted.ensureDeferred
async def test_a_listing_shows_what_may_be_listed_and_what_leads_there(team: Nas) -> None:
    cases: list[tuple[dict[str, str], str, list[str]]] = [
        (ALICE, "/file/", ["team"]),
        (ALICE, "/file/team/", ["a"]),
        (BOB, "/file/", ["other"]),
        ({}, "/file/", ["public"]),
        ({}, "/file/public/", ["d"]),
    ]
    for headers, path, names in cases:
        assert (await team.fetch("GET", path, headers=headers))[1].decode().split() == names
        for query in ("", "?sort=size", "?sort=mtime&order=desc", "?limit=1"):
            accept = {**headers, "Accept": "application/json"}
            listed = json.loads((await team.fetch("GET", path + query, headers=accept))[1])
            assert [entry["name"] for entry in listed["entries"]] == names, (path, query)
            assert listed["next"] is None
    assert (await team.fetch("GET", "/file/team/secret/", headers=ALICE))[0] == 403
    assert (await team.fetch("GET", "/file/inbox/"))[0] == 401


@pytest_twisted.ensureDeferred
async def test_a_drop_box_takes_what_is_new_and_gives_nothing(team: Nas) -> None:
    statuses = [
        (await team.fetch(method, "/file/inbox/" + name, data=b"x"))[0]
        for method, name in [
            ("POST", "mine"),
            ("POST", "mine"),
            ("POST", "e"),
            ("PUT", "mine"),
            ("GET", "mine"),
            ("GET", "mine/wc"),
            ("DELETE", "mine"),
        ]
    ]
    assert statuses == [200, 401, 401, 401, 401, 401, 401]


# Who did it


@pytest_twisted.ensureDeferred
async def test_who_asks_is_in_the_log_and_the_trace_and_no_secret_is(team: Nas) -> None:
    with logged() as events:
        await team.fetch("GET", "/file/team/a", headers=ALICE)
        await team.fetch("GET", "/file/other/c", headers=BOB)
        await team.fetch("GET", "/file/team/a", headers=BOB)
        await team.fetch("GET", "/file/team/a", headers=basic("alice", "guessed"))
        await team.fetch("GET", "/file/public/d")
        await team.fetch("GET", "/file/public/d?token=" + token_of("bob"))
    requests = [event["request"] for event in events if "request" in event]
    assert [request.get("principal") for request in requests] == [
        "alice", "bob", "bob", None, "anonymous", "anonymous",
    ]  # fmt: skip
    audits = [event for event in events if "audit" in (event.get("log_format") or "")]
    assert [(event["who"], event["name"]) for event in audits] == [
        ("bob", "/team/a"),
        ("nobody known", "/file/team/a"),
    ]
    operator = bearing("operator")
    trace = json.loads((await team.fetch("GET", "/transfers", headers=operator))[1])
    assert [each["principal"] for each in trace["ended"]] == [
        "anonymous", "anonymous", "bob", "alice",
    ]  # fmt: skip
    metrics = (await team.fetch("GET", "/metrics", headers=operator))[1].decode()
    for kind, count in (("password", 1), ("token", 3), ("anonymous", 2)):
        assert f'httpnas_identified_requests_total{{identity="{kind}"}} {count}.0' in metrics
    everything = repr(events) + json.dumps(trace) + metrics
    secrets = ["secret", "guessed", token_of("bob"), token_of("operator")]
    secrets += [headers["Authorization"].split()[1] for headers in (ALICE, BOB)]
    everything = everything.replace("team/secret", "")
    assert not [secret for secret in secrets if secret in everything]
    assert "alice" not in metrics


@pytest_twisted.ensureDeferred
async def test_a_daemon_without_a_file_of_rules_asks_nobody(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root")
    try:
        (nas.root / "f").write_bytes(b"x")
        with logged() as events:
            assert (await nas.fetch("GET", "/file/f", headers=basic("alice", "wrong")))[0] == 200
        assert "principal" not in next(e["request"] for e in events if "request" in e)
        trace = json.loads((await nas.fetch("GET", "/transfers"))[1])
        assert "principal" not in trace["ended"][0]
        assert "identified_requests_total{" not in (await nas.fetch("GET", "/metrics"))[1].decode()
    finally:
        await nas.stop()
