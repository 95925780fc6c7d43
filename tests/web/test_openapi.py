"""``/openapi.json``: that it is OpenAPI, and that the daemon and it say the same."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import pytest_twisted
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from httpnas.web.openapi import document
from httpnas.web.server.deadlines import Limits
from tests.access import files
from tests.harness import Nas, Twistd, twistd

DOCUMENT: dict[str, Any] = json.loads(document())
METHODS = ("get", "head", "post", "put", "delete", "options")
#: Files of pages that the daemon brings along; nobody asks for them but the pages.
ASSETS = ("/page/", "/docs/swagger-ui")
#: A folder as it is reached at its door. What its Allow has for all names below it is refused of
#: it alone: it can be neither replaced nor removed, nor downloaded.
ROOTS = ("/file/", "/files/")
#: Headers that any answer may have, which the document leaves to RFC 9110 and 9112.
FRAMING = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "date",
        "server",
        "transfer-encoding",
        "vary",
    }
)


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Return what *node* refers to, or itself."""
    while "$ref" in node:
        place, node = node["$ref"].removeprefix("#/"), DOCUMENT
        for step in place.split("/"):
            node = node[step]
    return node


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and description of every operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method.upper(), item[method]


def references(node: object) -> Iterator[str]:
    """Yield all that *node* refers to."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    dialect = "https://json-schema.org/draft/2020-12/schema"
    components = {"components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for({"$schema": dialect, **components, **schema})


def untold(response: dict[str, Any], headers: Any) -> set[str]:
    """Return the names that *response* and the *headers* of an answer do not have in common."""
    told = {name.lower(): resolved(header) for name, header in response["headers"].items()}
    came = {name.lower() for name in headers}
    missing = {name for name, header in told.items() if header["required"]} - came
    return missing | (came - told.keys() - FRAMING)


# The document by itself


def test_the_document_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_the_document_defines_exactly_what_it_refers_to() -> None:
    defined = {
        f"#/components/{kind}/{name}"
        for kind, members in DOCUMENT["components"].items()
        for name in members
    }
    # Schemes are referred to by name (OpenAPI 3.1 section 4.8.30).
    named = {name for each in DOCUMENT["security"] for name in each}
    used = {f"#/components/securitySchemes/{name}" for name in named}
    assert set(references(DOCUMENT)) | used == defined


def test_operations_have_names_of_their_own_and_known_tags() -> None:
    every = [operation for _, _, operation in operations()]
    names = [operation["operationId"] for operation in every]
    assert len(set(names)) == len(names)
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    assert {tag for operation in every for tag in operation["tags"]} == set(tags)


def test_examples_are_what_their_schemas_say() -> None:
    parameters = [resolved(p) for p in DOCUMENT["components"]["parameters"].values()]
    schemas = [*DOCUMENT["components"]["schemas"].values(), *(p["schema"] for p in parameters)]
    told = [(schema, example) for schema in schemas for example in schema.get("examples", [])]
    assert len(told) > 20
    for schema, example in told:
        validator(schema).validate(example)


# The document and the routes


def routes(nas: Nas) -> set[tuple[str, str]]:
    """Return rule and method of all that the daemon does."""
    route: Any = nas.site.route
    rules = route.__self__._app.url_map.iter_rules()
    return {
        (rule.rule, method)
        for rule in rules
        if not rule.rule.startswith(ASSETS)
        for method in rule.methods or ()
    }


def serves(rule: str, path: str) -> bool:
    pattern = re.escape(rule).replace(re.escape("<rest:_>"), ".*")
    return re.fullmatch(f"{pattern}/?", path) is not None


@pytest_twisted.ensureDeferred
async def test_every_operation_of_the_document_has_a_route(nas: Nas) -> None:
    served = routes(nas)
    for path, method, _ in operations():
        assert any(serves(rule, path) and method == m for rule, m in served), (method, path)


@pytest_twisted.ensureDeferred
async def test_every_route_is_in_the_document(nas: Nas) -> None:
    told = {(path, method) for path, method, _ in operations()}
    missing = {
        (rule, method)
        for rule, method in routes(nas)
        if not any(serves(rule, path) and method == m for path, m in told)
    }
    # The same rule without a slash, that is the folder itself.
    assert missing == {("/files", "GET"), ("/files", "HEAD")}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
@pytest_twisted.ensureDeferred
async def test_a_path_takes_the_methods_of_the_document_and_no_others(nas: Nas, path: str) -> None:
    told = {method for p, method, _ in operations() if p == path}
    status, _, headers = await nas.fetch("PATCH", path.replace("{name}", "any%2Fname"))
    assert status == 405
    taken = set(headers.getRawHeaders("Allow")[0].split(", "))
    assert told == taken or (path in ROOTS and told < taken)


@pytest_twisted.ensureDeferred
async def test_the_daemon_serves_the_document(nas: Nas) -> None:
    status, body, headers = await nas.fetch("GET", "/openapi.json")
    assert (status, body) == (200, document())
    assert headers.getRawHeaders("Content-Type") == ["application/json"]


# The document and the daemon, explored


API = schemathesis.openapi.from_dict(DOCUMENT)
API.config.phases.coverage.unexpected_methods = set()  # a test of its own looks at Allow

FILES = {
    "demo/numbers.txt": b"1\n2\n3\n4\n5\n" * 20,
    "demo/page.html": b"<p>1\n",
    "demo/table.json": b'{"rows": []}\n',
    "empty.txt": b"",
    "untyped": b"12345\n" * 100,
}
NAMES = (*FILES, *FILES, "demo", "nothing", "untyped/below")
#: Answered with a file, so that it may have any type, or none.
DOWNLOADS = ("GET /file/{name}", "GET /files/{name}")

# The checks that are left out take the schema of a request for the judge of it. Here, a header that
# makes no sense is often to be ignored (RFC 9110), and a good one refused for what is stored.
ALWAYS = [not_a_server_error, status_code_conformance, response_headers_conformance]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twistd]:
    root = tmp_path_factory.mktemp("explored") / "root"
    with twistd(root, "--durability=none") as daemon:
        store_files(root)
        yield daemon


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def seen() -> dict[str, set[int]]:
    """Which statuses which operations have been answered with."""
    return defaultdict(set)


def store_files(root: Path) -> None:
    """Put back what requests have changed."""
    try:
        (root / "demo").mkdir(exist_ok=True)
        for name, content in FILES.items():
            (root / name).write_bytes(content)
    except OSError:  # a file where a folder was, or the other way round
        for entry in root.iterdir():
            if entry.name != ".httpnas":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        store_files(root)


def aim(case: Any, url: str) -> None:
    """Have *case* be about what is stored, and get past what refuses nearly all that is made up."""
    made_up = repr((case.path_parameters, case.headers, case.query, case.body))
    lot = zlib.crc32(made_up.encode("utf-8", "replace"))
    if "name" in case.path_parameters and lot % 8:
        case.path_parameters["name"] = NAMES[lot // 8 % len(NAMES)]
    if case.headers.get("Origin") == "http://localhost:3000":
        case.headers["Origin"] = url
    if lot % 2:
        case.headers = {k: v for k, v in case.headers.items() if not k.startswith("If-")}


def checks_of(operation: str, response: Any) -> list[Any]:
    if operation in DOWNLOADS and "content-type" not in response.headers:
        return ALWAYS  # a file whose type nobody knows has none, which OpenAPI can not say
    if response.status_code == 206:
        return [*ALWAYS, content_type_conformance]  # a piece of JSON is not JSON
    return [*ALWAYS, content_type_conformance, response_schema_conformance]


@API.include(method=["GET", "POST", "PUT", "DELETE"]).exclude(tag=["pages", "links"]).parametrize()
@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_what_the_daemon_answers_is_in_the_document(
    case: Any, daemon: Twistd, session: requests.Session, seen: dict[str, set[int]]
) -> None:
    aim(case, daemon.url)
    response = case.call(base_url=daemon.url, session=session, allow_redirects=False, timeout=20)
    if case.method != "GET":
        store_files(daemon.root)
    seen[case.operation.label].add(response.status_code)
    case.validate_response(response, checks=checks_of(case.operation.label, response))
    told = resolved(case.operation.definition.raw["responses"][str(response.status_code)])
    assert not untold(told, response.headers)


def test_exploring_has_done_everything_and_not_left_the_root(
    daemon: Twistd, seen: dict[str, set[int]]
) -> None:
    if not seen:
        pytest.skip("nothing has been explored in this run")
    assert not {operation for operation, statuses in seen.items() if min(statuses) >= 300}
    assert set(daemon.root.parent.iterdir()) == {daemon.root, daemon.log_path}


# The document and the daemon, answer by answer


@pytest_twisted.async_yield_fixture
async def strict(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon that refuses early: few bytes, little time, one name, much space to be free."""
    limits = Limits(headers=0.5, stall=0.5)
    options: dict[str, Any] = {"hosts": [b"nas"], "headroom": 1 << 62}
    nas = Nas(tmp_path / "root", limits, max_upload=1000, **options)
    for name, content in FILES.items():
        path = nas.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (nas.root / "link").symlink_to("empty.txt")
    yield nas
    await nas.stop()


Answer = tuple[int, dict[str, str], bytes]
NAME, COUNT, MOVE = "/file/{name}", "/file/{name}/wc", "/file/{name}/mv"
FORM, SAVE = "/files/", "/files/{name}"
FORM_TYPE = "Content-Type: multipart/form-data; boundary=b"
#: A part of a form, whose file has this name.
A_FILE = '--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\nx\r\n'
#: Status, operation, what stands for its name or behind its path, header lines, body.
Row = tuple[int, str, str, str, list[str], str]
DONE: list[Row] = [
    (200, "GET", "/file", "", [], ""),
    (200, "GET", "/file/", "", ["Accept: application/json"], ""),
    (200, "GET", "/file/", "?sort=size&order=desc&limit=2", ["Accept: application/json"], ""),
    (200, "GET", NAME, "untyped", ["Want-Repr-Digest: sha-512=1"], ""),
    (200, "GET", NAME, "demo", [], ""),
    (206, "GET", NAME, "untyped", ["Range: bytes=0-3", "Want-Repr-Digest: sha-256=1"], ""),
    (206, "GET", NAME, "untyped", ["Range: bytes=0-3,-3"], ""),
    (301, "GET", NAME, "demo", ["Accept: text/html"], ""),
    (304, "GET", NAME, "untyped", ["If-None-Match: *"], ""),
    (200, "POST", NAME, "new", ["Content-MD5: XUFAKrxLKna5cZ2REBfFkg=="], "hello"),
    (200, "PUT", NAME, "empty.txt", ["Upload-Offset: 0", "Idempotency-Key: once"], "x"),
    (200, "PUT", NAME, "empty.txt", ["Content-Type: application/json"], '{"path": "new"}'),
    (200, "PUT", MOVE, "demo", [], '{"path": "new"}'),
    (200, "DELETE", NAME, "demo", [], ""),
    (200, "GET", COUNT, "untyped", [], ""),
    (202, "POST", FORM, "", [FORM_TYPE], A_FILE % "new" + "--b--"),
    (202, "POST", SAVE, "demo", [FORM_TYPE, "Accept: text/html"], A_FILE % "new" + "--b--"),
    (200, "GET", SAVE, "untyped", [], ""),
    (206, "GET", SAVE, "untyped", ["Range: bytes=0-3"], ""),
    (304, "GET", SAVE, "untyped", ["If-None-Match: *"], ""),
    (200, "GET", "/metrics", "", ["Accept: application/openmetrics-text"], ""),
    (200, "GET", "/transfers", "?limit=1", [], ""),
    *((204, "OPTIONS", path, "", [], "") for path in ("/file", "/file/", FORM)),
    *((204, "OPTIONS", path, "any", [], "") for path in (NAME, COUNT, MOVE, SAVE)),
]
REFUSED: list[Row] = [
    (400, "GET", NAME, "%zz", [], ""),
    (400, "GET", NAME, "..", [], ""),
    (400, "GET", NAME, "demo?limit=0", [], ""),
    (400, "GET", NAME, "demo?sort=colour", [], ""),
    (400, "GET", "/file", "", [" folded"], ""),
    (400, "GET", "/transfers", "?limit=x", [], ""),
    (400, "POST", NAME, "new", ["Content-Digest: sha-256=:AAAA:"], "x"),
    (400, "POST", NAME, "new", ["Content-MD5: AAAAAAAAAAAAAAAAAAAAAA=="], "x"),
    (400, "PUT", NAME, "empty.txt", ["Upload-Offset: -1"], "x"),
    (400, "PUT", NAME, "empty.txt", ["Content-Range: bytes 5-5/6"], "x"),
    (400, "PUT", NAME, "empty.txt", ["Idempotency-Key:"], "x"),
    (400, "PUT", NAME, "empty.txt", ["Content-Type: application/json"], "[]"),
    (400, "PUT", MOVE, "empty.txt", [], '{"path": "../up"}'),
    (400, "POST", FORM, "", [FORM_TYPE], "--b--"),
    (400, "POST", SAVE, "demo", ["Content-Type: multipart/form-data"], ""),
    (403, "POST", NAME, "new", ["Origin: http://elsewhere.example"], "x"),
    (403, "POST", NAME, ".httpnas%2Fx", [], "x"),
    (403, "DELETE", NAME, ".httpnas", [], ""),
    (403, "PUT", MOVE, "empty.txt", [], '{"path": ".httpnas/x"}'),
    (403, "POST", FORM, "", ["Sec-Fetch-Site: cross-site", FORM_TYPE], ""),
    (404, "GET", NAME, "link", [], ""),
    (404, "GET", NAME, "empty.txt%2Fbelow", [], ""),
    (404, "GET", COUNT, "nothing", [], ""),
    (404, "GET", SAVE, "nothing", [], ""),
    (404, "PUT", NAME, "nothing", [], "x"),
    (404, "PUT", MOVE, "nothing", [], '{"path": "new"}'),
    (404, "DELETE", NAME, "nothing", [], ""),
    (404, "POST", NAME, "link", [], "x"),
    (405, "POST", NAME, "empty.txt/wc", [], "x"),
    (405, "DELETE", NAME, "empty.txt/mv", [], ""),
    (405, "GET", NAME, "empty.txt/mv", [], ""),
    (408, "POST", NAME, "new", ["Content-Length: 9"], "x"),
    (409, "POST", NAME, "demo", [], "x"),
    (409, "POST", NAME, "empty.txt%2Fbelow", [], "x"),
    (409, "PUT", NAME, "empty.txt", ["Upload-Offset: 9"], "x"),
    (409, "PUT", NAME, "demo", [], "x"),
    (409, "POST", NAME, "new/", [], "x"),
    (409, "DELETE", NAME, "empty.txt/", [], ""),
    (409, "PUT", MOVE, "demo", [], '{"path": "demo/within"}'),
    (409, "GET", COUNT, "demo", [], ""),
    (409, "GET", SAVE, "demo", [], ""),
    (412, "GET", NAME, "empty.txt", ['If-Match: "other"'], ""),
    (412, "GET", SAVE, "empty.txt", ['If-Match: "other"'], ""),
    (412, "POST", NAME, "empty.txt", ["If-None-Match: *"], "x"),
    (412, "PUT", NAME, "empty.txt", ['If-Match: "other"'], "x"),
    (412, "PUT", MOVE, "untyped", ["If-None-Match: *"], '{"path": "empty.txt"}'),
    (412, "DELETE", NAME, "empty.txt", ['If-Match: "other"'], ""),
    (413, "POST", NAME, "new", [], "x" * 1001),
    (413, "PUT", NAME, "empty.txt", [], "x" * 1001),
    (413, "POST", FORM, "", [FORM_TYPE], "x" * 1001),
    (414, "GET", NAME, "x" * 9000, [], ""),
    (414, "GET", NAME, "%2F".join(["x" * 200] * 21), [], ""),
    (415, "POST", NAME, "new", ["Content-Encoding: gzip"], "x"),
    (415, "PUT", NAME, "empty.txt", ["Content-Encoding: br"], "x"),
    (415, "PUT", MOVE, "empty.txt", ["Content-Encoding: gzip"], "{}"),
    (415, "POST", NAME, "new", [FORM_TYPE], A_FILE % "new" + "--b--"),
    (415, "PUT", NAME, "empty.txt", [FORM_TYPE], A_FILE % "new" + "--b--"),
    (415, "POST", FORM, "", ["Content-Type: text/plain"], "x"),
    (415, "POST", FORM, "", [FORM_TYPE, "Content-Encoding: gzip"], "x"),
    (416, "GET", NAME, "untyped", ["Range: bytes=1000-"], ""),
    (416, "GET", SAVE, "untyped", ["Range: bytes=1000-"], ""),
    (417, "POST", NAME, "new", ["Expect: the unexpected"], "x"),
    (431, "GET", "/", "", ["X: y"] * 101, ""),
    (431, "GET", "/metrics", "", ["X: " + "y" * 16384], ""),
    (501, "POST", NAME, "new", ["Transfer-Encoding: gzip"], ""),
    (503, "GET", "/ready", "", [], ""),
]


def request_of(method: str, path: str, name: str, lines: list[str], body: str) -> bytes:
    target = path.replace("{name}", name) if "{name}" in path else path + name
    head = [f"{method} {target} HTTP/1.0", *lines, "Host: nas"]  # whose answers are not chunked
    if body and not any(line.startswith("Content-Length") for line in lines):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", body]).encode()


async def answered(nas: Nas, sent: bytes) -> Answer:
    """Return status, headers (lower case) and body of what *sent* is answered."""
    head, _, body = (await nas.talk(sent)).partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status_line.split()[1]), headers, body


def told_of(method: str, path: str, answer: Answer) -> dict[str, Any]:
    """Return what the document has for *answer*, whose status and headers must be those in it."""
    told = resolved(DOCUMENT["paths"][path][method.lower()]["responses"][str(answer[0])])
    assert not untold(told, answer[1])
    return told


def refusal_is_told(method: str, path: str, answer: Answer) -> None:
    """Check a refusal against the document, all that it says and all that is answered."""
    status, headers, body = answer
    told = told_of(method, path, answer)
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    validator(told["content"]["application/problem+json"]["schema"]).validate(problem)
    assert problem["status"] == status
    assert problem["title"] == HTTPStatus(status).phrase
    assert problem["instance"] == "#" + headers["x-request-id"]
    extended = {"stored"} if path in (FORM, SAVE) else {"reasons"} if path == "/ready" else set()
    extended |= {"rights"} if problem["type"].endswith("#missing-right") else set()
    assert set(problem) - extended == {"type", "title", "status", "detail", "instance"}


def rows(table: list[Row]) -> pytest.MarkDecorator:
    names = [f"{status}-{method}-{path}" for status, method, path, *_ in table]
    return pytest.mark.parametrize("row", table, ids=names)


@rows(DONE)
@pytest_twisted.ensureDeferred
async def test_what_is_done_is_answered_as_the_document_tells(strict: Nas, row: Row) -> None:
    status, method, path, *_ = row
    answer = await answered(strict, request_of(*row[1:]))
    assert answer[0] == status
    kind = answer[1].get("content-type", "*/*").partition(";")[0]
    content = told_of(method, path, answer).get("content", {"*/*": {}})
    assert {kind, "*/*"} & content.keys()
    if kind == "application/json":
        validator(content[kind]["schema"]).validate(json.loads(answer[2]))


@pytest_twisted.ensureDeferred
async def test_a_key_for_another_body_is_refused_as_the_document_tells(strict: Nas) -> None:
    for body, status in (("x", 200), ("y", 422)):
        sent = request_of("PUT", NAME, "empty.txt", ["Idempotency-Key: once"], body)
        answer = await answered(strict, sent)
        assert answer[0] == status
    refusal_is_told("PUT", NAME, answer)


@rows(REFUSED)
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_as_the_document_tells(strict: Nas, row: Row) -> None:
    status, method, path, *_ = row
    answer = await answered(strict, request_of(*row[1:]))
    assert answer[0] == status
    refusal_is_told(method, path, answer)


@pytest_twisted.ensureDeferred
async def test_who_may_not_is_refused_as_the_document_tells(tmp_path: Path) -> None:
    may_sign = files.rule("signer", "/", ["sign", "read"])
    auth = files.write(
        tmp_path, files.link_key("k"), files.token("nobody"), files.token("signer"), may_sign
    )
    known = f"Authorization: Bearer {files.token_of('nobody')}"
    nas = Nas(tmp_path / "root", auth=auth)
    try:
        for path, method, operation in operations():
            if method in ("OPTIONS", "HEAD") or operation["tags"] == ["pages"]:
                continue
            lines = [FORM_TYPE] if path in (FORM, SAVE) else []
            for more, status in (([], 401), ([known], 403)):
                name, body = "any" * ("{name}" in path), "{}" * (method != "GET")
                sent = request_of(method, path, name, lines + more, body)
                answer = await answered(nas, sent)
                if path not in ("/file", "/health", "/ready", "/rights"):
                    assert answer[0] == status, path
                    refusal_is_told(method, path, answer)
        lines = [f"Authorization: Bearer {files.token_of('signer')}"]
        for body, status in (('{"method": "GET", "path": "f", "seconds": 9}', 200), ("{}", 400)):
            answer = await answered(nas, request_of("POST", "/links", "", lines, body))
            assert answer[0] == status
            told = told_of("POST", "/links", answer)["content"]
            content = told[answer[1]["content-type"]]
            validator(content["schema"]).validate(json.loads(answer[2]))
    finally:
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_another_host_is_refused_as_the_document_tells(strict: Nas) -> None:
    answer = await answered(
        strict, b"GET /file/ HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
    )
    assert answer[0] == 421
    refusal_is_told("GET", "/file/", answer)


@pytest_twisted.ensureDeferred
async def test_headers_that_do_not_come_are_refused_as_the_document_tells(strict: Nas) -> None:
    answer = await answered(strict, b"GET /file/ HTTP/1.1\r\nHost: nas\r\n")
    assert answer[0] == 408
    refusal_is_told("GET", "/file/", answer)


@pytest_twisted.ensureDeferred
async def test_a_form_that_breaks_off_tells_what_is_stored_as_the_document_does(
    strict: Nas,
) -> None:
    sent = request_of("POST", SAVE, "demo", [FORM_TYPE], A_FILE % "first" + A_FILE % "..")
    answer = await answered(strict, sent)
    assert (answer[0], json.loads(answer[2])["stored"]) == (400, ["demo/first"])
    refusal_is_told("POST", SAVE, answer)


@pytest.mark.parametrize(
    ("code", "status"), [(errno.EIO, 500), (errno.ESTALE, 503), (errno.ENOSPC, 507)]
)
@pytest_twisted.ensureDeferred
async def test_a_failing_storage_is_told_of_as_the_document_does(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for step in ("begin_upload", "begin_append", "begin_move", "remove"):
        monkeypatch.setattr(nas.storage, step, fail)
    for method, path in (("POST", NAME), ("PUT", NAME), ("PUT", MOVE), ("DELETE", NAME)):
        answer = await answered(nas, request_of(method, path, "any", [], "{}"))
        assert answer[0] == status
        refusal_is_told(method, path, answer)


@pytest_twisted.ensureDeferred
async def test_get_and_head_have_the_headers_that_the_document_tells(strict: Nas) -> None:
    for path, item in DOCUMENT["paths"].items():
        if "head" not in item:
            continue
        for name in ("untyped", "demo", "demo/", "nothing", "..") if "{name}" in path else ("",):
            for line in ("Accept: text/html", "If-None-Match: *", 'If-Match: "other"'):
                got = await answered(strict, request_of("GET", path, name, [line], ""))
                head = await answered(strict, request_of("HEAD", path, name, [line], ""))
                assert (head[0], head[2]) == (got[0], b""), (path, name, line)
                assert head[1].keys() == got[1].keys(), (path, name, line)
                told_of("GET", path, got)
                told_of("HEAD", path, head)
