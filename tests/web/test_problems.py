"""Problem documents: a kind for everything that goes wrong, and one table of kinds everywhere."""

from __future__ import annotations

import ast
import errno
import html
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.fields.digests import BadDigestField
from httpnas.fields.names import BadName, NameTooLong
from httpnas.fields.ranges import RangeNotSatisfiable
from httpnas.storage import errors
from httpnas.storage.errors import StorageError, WrongOffset
from httpnas.web.multipart import BadForm
from httpnas.web.openapi import document
from httpnas.web.problems import Kind, Problem, problem_of
from httpnas.web.server.body import BodyTooLarge, BodyTooSlow
from tests.harness import Nas

ROOT = Path(__file__).parent.parent.parent
SERVER = ROOT / "httpnas" / "web" / "server"
#: What needs more than its text to be made.
MADE = {WrongOffset: WrongOffset(5), RangeNotSatisfiable: RangeNotSatisfiable(5)}


def below(base: type[Exception]) -> Iterator[type[Exception]]:
    """Yield all subclasses of *base*."""
    for subclass in base.__subclasses__():
        yield subclass
        yield from below(subclass)


def kind_of(error: BaseException) -> Kind | None:
    problem = problem_of(error)
    return None if problem is None else problem.kind


# Errors and kinds


def test_no_two_kinds_have_one_code() -> None:
    assert len(Kind.__members__) == len({kind.code for kind in Kind})
    for kind in Kind:
        assert re.fullmatch("[a-z]+(-[a-z]+)*", kind.code)
        assert kind.name.lower().replace("_", "-") == kind.code
        assert 400 <= kind.status <= 599


@pytest.mark.parametrize("cause", list(below(StorageError)))
def test_every_error_of_the_storage_has_a_kind(cause: type[Exception]) -> None:
    assert kind_of(MADE[cause] if cause in MADE else cause("why")) is not None


def test_special_errors_of_the_storage_are_not_taken_for_general_ones() -> None:
    kinds = {cause: kind_of(MADE.get(cause) or cause("why")) for cause in below(StorageError)}
    same = {
        errors.StorageGone: errors.StorageAway,
        errors.NoRoom: errors.StorageFull,
        errors.OtherFormat: errors.StorageBroken,
        errors.NotFreed: errors.StorageBroken,
    }
    for special, general in same.items():
        assert kinds.pop(special) is kinds[general]
    bad_name = kinds.pop(errors.BadNameForFileSystem)
    assert bad_name is Kind.BAD_NAME
    assert len(set(kinds.values())) == len(kinds)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadName("why"), Kind.BAD_NAME),
        (NameTooLong("why"), Kind.NAME_TOO_LONG),
        (BadDigestField("why"), Kind.BAD_DIGEST_FIELD),
        (BadForm("why"), Kind.BAD_FORM),
        (BodyTooSlow(), Kind.BODY_TOO_SLOW),
        (BodyTooLarge(), Kind.BODY_TOO_LARGE),
        (errors.FileCutShort("shorter"), Kind.FILE_CUT_SHORT),
        (RangeNotSatisfiable(5), Kind.RANGE_NOT_SATISFIABLE),
        (OSError(errno.ENOSPC, "full"), Kind.STORAGE_FULL),
        (OSError(errno.EIO, "broken"), Kind.STORAGE_BROKEN),
        (TimeoutError(errno.ETIMEDOUT, "away"), Kind.STORAGE_AWAY),
        (Problem(Kind.CROSS_SITE, "why"), Kind.CROSS_SITE),
        (ValueError("an error of ours"), None),
    ],
    ids=str,
)
def test_an_error_has_its_kind(error: Exception, kind: Kind | None) -> None:
    assert kind_of(error) is kind


def test_what_may_succeed_later_says_when() -> None:
    for cause in below(StorageError):
        problem = problem_of(MADE.get(cause) or cause("why"))
        assert problem is not None
        assert ("Retry-After" in problem.headers) == (problem.status == 503)


def test_every_status_that_the_server_refuses_with_has_a_kind() -> None:
    statuses = {
        node.args[0].value
        for path in SERVER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        if isinstance(node.args[0].value, int) and 400 <= node.args[0].value <= 599
    }
    assert {400, 405, 408, 414, 417, 431, 500, 501} <= statuses
    for status in statuses:
        assert Kind.of_status(status).status == status


def test_every_kind_is_raised_somewhere() -> None:
    kinds_py = Path(inspect.getfile(Kind))
    sources = [p.read_text() for p in (ROOT / "httpnas").rglob("*.py") if "openapi" not in p.parts]
    told = set(re.findall(r"\bKind\.([A-Z_]+)", "\n".join(sources)))
    assert kinds_py.is_file() and told == set(Kind.__members__)


# The table, wherever it is shown


def test_the_documents_table_is_that_of_the_kinds() -> None:
    lines = (ROOT / "docs" / "api.md").read_text().splitlines()
    start = lines.index("| code | status | what it means | what to do |") + 2
    told = lines[start : lines.index("", start)]
    assert told == [
        f"| `{kind.code}` | {kind.status} | {kind.meaning} | {kind.remedy} |" for kind in Kind
    ]


def test_openapi_has_every_kind_under_its_status() -> None:
    told: dict[str, Any] = json.loads(document())["components"]
    assert told["schemas"]["Problem"]["properties"]["type"]["enum"] == [kind.type for kind in Kind]
    types = set()
    for answer in told["responses"].values():
        for content in answer.get("content", {}).values():
            types |= set(content["schema"].get("properties", {}).get("type", {}).get("enum", ()))
    assert types == {kind.type for kind in Kind}


@pytest_twisted.ensureDeferred
async def test_a_type_leads_to_a_section_of_the_page(nas: Nas) -> None:
    status, body, headers = await nas.fetch("GET", "/docs/problems")
    assert status == 200
    assert headers.getRawHeaders("Content-Type") == ["text/html; charset=utf-8"]
    assert "script-src 'nonce-" in headers.getRawHeaders("Content-Security-Policy")[0]
    sections = re.findall('<section id="([^"]+)">(.*?)</section>', body.decode(), re.S)
    assert [f"/docs/problems#{anchor}" for anchor, _ in sections] == [kind.type for kind in Kind]
    for kind, (_, section) in zip(Kind, sections, strict=True):
        shown = html.unescape(re.sub("<[^>]*>", "", section))
        assert kind.meaning.replace("`", "") in shown
        assert kind.remedy.replace("`", "") in shown


# On the wire


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "kind"),
    [
        ("GET", "/file/none", {}, b"", Kind.NO_SUCH_FILE),
        ("GET", "/none", {}, b"", Kind.NO_SUCH_PATH),
        ("GET", "/file/%zz", {}, b"", Kind.BAD_NAME),
        ("GET", "/file/folder?limit=0", {}, b"", Kind.BAD_QUERY),
        ("GET", "/file/folder?sort=colour", {}, b"", Kind.BAD_QUERY),
        ("GET", "/file/folder/wc", {}, b"", Kind.IS_FOLDER),
        ("GET", "/file/f", {"If-Match": '"other"'}, b"", Kind.PRECONDITION_FAILED),
        ("GET", "/file/f", {"Range": "bytes=9-"}, b"", Kind.RANGE_NOT_SATISFIABLE),
        ("PATCH", "/file/f", {}, b"", Kind.METHOD_NOT_ALLOWED),
        ("PATCH", "/docs/problems", {}, b"", Kind.METHOD_NOT_ALLOWED),
        ("POST", "/file/f", {"If-None-Match": "*"}, b"x", Kind.ALREADY_EXISTS),
        ("POST", "/file/f", {"Content-Digest": "?"}, b"x", Kind.BAD_DIGEST_FIELD),
        ("POST", "/file/f", {"Content-MD5": "A" * 22 + "=="}, b"x", Kind.DIGEST_MISMATCH),
        ("POST", "/file/f", {"Content-Encoding": "gzip"}, b"x", Kind.ENCODED_BODY),
        ("POST", "/file/f", {"Sec-Fetch-Site": "cross-site"}, b"x", Kind.CROSS_SITE),
        ("POST", "/file/f/below", {}, b"x", Kind.NOT_A_FOLDER),
        ("POST", "/file/.httpnas/x", {}, b"x", Kind.RESERVED),
        ("POST", "/files/", {"Content-Type": "text/plain"}, b"x", Kind.NOT_A_FORM),
        ("PUT", "/file/f", {"Upload-Offset": "9"}, b"x", Kind.WRONG_OFFSET),
        ("PUT", "/file/f", {"Upload-Offset": "x"}, b"x", Kind.BAD_FIELD),
        ("PUT", "/file/f/mv", {}, b"[]", Kind.NOT_A_MOVE),
        ("PUT", "/file/f/mv", {}, b'{"path": "folder"}', Kind.NAME_TAKEN),
        ("PUT", "/file/folder/mv", {}, b'{"path": "folder/in"}', Kind.INTO_ITSELF),
    ],
    ids=lambda value: value.code if isinstance(value, Kind) else None,
)
@pytest_twisted.ensureDeferred
async def test_the_type_on_the_wire_names_the_cause(
    nas: Nas, method: str, path: str, headers: dict[str, str], body: bytes, kind: Kind
) -> None:
    (nas.root / "f").write_bytes(b"x")
    (nas.root / "folder").mkdir()
    status, answer, _ = await nas.fetch(method, path, headers=headers, data=body)
    problem = json.loads(answer)
    assert (status, problem["status"]) == (kind.status, kind.status)
    assert problem["type"] == f"/docs/problems#{kind.code}"


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", Kind.MALFORMED_REQUEST),
        (b"PUT * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", Kind.METHOD_NOT_ALLOWED),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", Kind.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: else\r\n\r\n", Kind.UNKNOWN_EXPECTATION),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101, Kind.HEADERS_TOO_LARGE),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: br\r\n\r\n", Kind.UNKNOWN_CODING),
        (
            b"get / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            Kind.UNKNOWN_METHOD,
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Kind) else None,
)
@pytest_twisted.ensureDeferred
async def test_what_the_server_refuses_by_itself_has_a_type_as_well(
    nas: Nas, sent: bytes, kind: Kind
) -> None:
    head, _, body = (await nas.talk(sent)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % kind.status)
    assert json.loads(body)["type"] == kind.type
