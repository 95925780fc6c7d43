from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from email.utils import formatdate
from typing import Any

import pytest
import pytest_twisted
from twisted.web.http_headers import Headers

from httpnas.storage.store import Storage
from tests.harness import Nas, wait_until

ALL = "DELETE, GET, HEAD, OPTIONS, POST, PUT"
JSON = {"Content-Type": "application/json"}


def tree(nas: Nas) -> dict[str, bytes | None]:
    """Everything that clients can see: files with their content, folders with None."""
    visible = [top for top in nas.root.iterdir() if top.name != ".httpnas"]
    return {
        str(path.relative_to(nas.root)): path.read_bytes() if path.is_file() else None
        for top in visible
        for path in [top, *top.rglob("*")]
    }


def one(headers: Headers, name: str) -> str | None:
    """The value of a header that comes once, or None when it does not come."""
    values = headers.getRawHeaders(name, [None])
    assert len(values) == 1
    return values[0]


def check_problem(status: int, body: bytes, headers: Any) -> dict[str, Any]:
    assert one(headers, "Content-Type") == "application/problem+json"
    assert b"Traceback" not in body and b"httpnas/" not in body
    problem: dict[str, Any] = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert problem["title"] and len(problem["detail"]) > 10
    assert problem["instance"] == "#" + str(one(headers, "X-Request-ID"))
    assert uuid.UUID(problem["instance"].removeprefix("#"))
    return problem


async def refused(nas: Nas, status: int, method: str, path: str, **kwargs: Any) -> Any:
    """Send a request that must be refused and must change nothing; return the headers."""
    before = tree(nas)
    code, body, headers = await nas.fetch(method, path, **kwargs)
    assert code == status, body
    if method != "HEAD":
        check_problem(status, body, headers)
    assert tree(nas) == before
    assert nas.leftovers() == []
    return headers


# Health


@pytest.mark.parametrize(("method", "body"), [("GET", b"OK"), ("HEAD", b"")])
@pytest_twisted.ensureDeferred
async def test_a_writable_storage_is_healthy(nas: Nas, method: str, body: bytes) -> None:
    status, answered, _ = await nas.fetch(method, "/file")
    assert (status, answered) == (200, body)
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_storage_that_can_not_be_written_to_is_not_healthy(nas: Nas) -> None:
    shutil.rmtree(nas.root)
    status, body, headers = await nas.fetch("GET", "/file")
    assert status == 503
    check_problem(503, body, headers)
    assert int(one(headers, "Retry-After") or "") > 0


# POST


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/file/new.txt", "new.txt"),
        ("/file/d/e/f/new.txt", "d/e/f/new.txt"),
        ("/file/d%2Fe%2fnew.txt", "d/e/new.txt"),
        ("/file//d//new.txt", "d/new.txt"),
        ("//file/d/new.txt", "d/new.txt"),
        ("///file/d/new.txt", "d/new.txt"),
        ("/file/a%20b%25%3F%23%5C.txt", "a b%?#\\.txt"),
        ("/file/%252e%252e%252f", "%2e%2e%2f"),
        ("/file/%E6%B0%94", "气"),
        ("/file/wc", "wc"),
        ("/file/d%2Fwc", "d/wc"),
        ("/file/d%2Fmv", "d/mv"),
        ("/file/d/%77c", "d/wc"),
        ("/file/" + "n" * 255, "n" * 255),
    ],
)
@pytest_twisted.ensureDeferred
async def test_post_creates_the_file_and_its_parents(nas: Nas, path: str, name: str) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nnew\n"
    answer = await nas.talk(head % path.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nOK")
    assert {k: v for k, v in tree(nas).items() if v is not None} == {name: b"new\n"}
    assert nas.leftovers() == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("old", [None, b"", b"old content, longer than the new one" * 9])
@pytest.mark.parametrize("new", [b"", b"new", bytes(range(256)) * 8192])
@pytest_twisted.ensureDeferred
async def test_post_replaces_the_whole_content(
    nas: Nas, old: bytes | None, new: bytes, chunked: bool
) -> None:
    if old is not None:
        (nas.root / "f").write_bytes(old)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(new)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(new), new) if chunked and new else new
    if chunked and not new:
        body = b"0\r\n\r\n"
    head = b"POST /file/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n\r\n" % framing
    answer = await nas.talk(head, body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert tree(nas) == {"f": new}
    assert nas.leftovers() == []


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=b",
        "text/plain; charset=utf-16",
        "nonsense",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_posted_body_is_data_whatever_its_type(nas: Nas, kind: str | None) -> None:
    data = b'{"path": "elsewhere"}&a=b\r\n--b\r\n\r\nx\r\n--b--\r\n'
    headers = {} if kind is None else {"Content-Type": kind}
    status, body, _ = await nas.fetch("POST", "/file/f", data=data, headers=headers)
    assert (status, body) == (200, b"OK")
    assert tree(nas) == {"f": data}


@pytest_twisted.ensureDeferred
async def test_the_etag_of_a_change_is_the_one_of_the_next_read(nas: Nas) -> None:
    for method in ("POST", "PUT"):
        _, _, written = await nas.fetch(method, "/file/f", data=b"x")
        _, _, read = await nas.fetch("GET", "/file/f")
        assert one(written, "ETag") == one(read, "ETag") is not None


# PUT


@pytest_twisted.ensureDeferred
async def test_put_appends_and_tells_the_new_length(nas: Nas) -> None:
    content = b""
    (nas.root / "f").touch()
    for body in (b"one\n", b"", b"two", bytes(3 << 20), b"\n"):
        content += body
        status, answer, headers = await nas.fetch("PUT", "/file/f", data=body)
        assert (status, answer) == (200, b"OK")
        assert one(headers, "Upload-Offset") == str(len(content))
    assert tree(nas) == {"f": content}
    assert nas.leftovers() == []


@pytest.mark.parametrize(
    ("offset", "status"),
    [
        ("3", 200),
        ("003", 200),
        ("0", 409),
        ("2", 409),
        ("4", 409),
        ("9999999999999999999", 409),
        ("-3", 400),
        ("3.0", 400),
        ("x", 400),
        ("", 400),
        ("9" * 20, 400),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_append_may_say_where_it_expects_the_end(
    nas: Nas, offset: str, status: int
) -> None:
    (nas.root / "f").write_bytes(b"old")
    request = nas.fetch("PUT", "/file/f", data=b"new", headers={"Upload-Offset": offset})
    code, body, headers = await request
    assert code == status
    assert one(headers, "Upload-Offset") == {200: "6", 409: "3", 400: None}[status]
    assert tree(nas) == {"f": b"oldnew" if status == 200 else b"old"}
    if status != 200:
        check_problem(status, body, headers)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/json", "application/json-seq"])
@pytest_twisted.ensureDeferred
async def test_json_of_another_type_is_appended(nas: Nas, kind: str) -> None:
    (nas.root / "f").touch()
    data = b'{"path": "elsewhere"}\n'
    status, _, _ = await nas.fetch("PUT", "/file/f", data=data, headers={"Content-Type": kind})
    assert status == 200
    assert tree(nas) == {"f": data}


# Moves


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/file/old%20d/f", JSON),
        ("/file/old%20d/f", {"Content-Type": "Application/JSON ; charset=utf-8"}),
        ("/file/old%20d/f/mv", JSON),
        ("/file/old%20d/f/mv", {}),
        ("/file/old%20d/f/mv", {"Content-Type": "text/plain"}),
    ],
)
@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("new", "new"),
        ("/new/", "new"),
        ("a/b//new", "a/b/new"),
        ("dir%2Fname", "dir/name"),
        ("a%252Fb", "a%2Fb"),
        ("50%25", "50%"),
        ("a+b", "a+b"),
        ("气", "气"),
        ("%E6%B0%94", "气"),
        ("taken", "taken"),
        ("x/wc", "x/wc"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file_is_moved(
    nas: Nas, path: str, headers: dict[str, str], target: str, name: str
) -> None:
    (nas.root / "old d").mkdir()
    (nas.root / "old d/f").write_bytes(b"content")
    (nas.root / "taken").write_bytes(b"replaced")
    body = json.dumps({"path": target, "other": 1}).encode()
    status, answer, _ = await nas.fetch("PUT", path, data=body, headers=headers)
    assert (status, answer) == (200, b"OK")
    files = {k: v for k, v in tree(nas).items() if v is not None}
    assert files == {"taken": b"replaced"} | {name: b"content"}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_folder_is_moved_with_all_in_it(nas: Nas) -> None:
    (nas.root / "d/e").mkdir(parents=True)
    (nas.root / "d/e/f").write_bytes(b"x")
    status, _, _ = await nas.fetch("PUT", "/file/d", data=b'{"path": "x/y"}', headers=JSON)
    assert status == 200
    assert tree(nas) == {"x": None, "x/y": None, "x/y/e": None, "x/y/e/f": b"x"}


@pytest_twisted.ensureDeferred
async def test_a_refused_move_makes_no_folders(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")
    (nas.root / "g").write_bytes(b"y")
    move = b'{"path": "new/folder/f"}'
    for headers in [
        {"If-Match": '"other"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ]:
        assert (await nas.fetch("PUT", "/file/f/mv", data=move, headers=headers))[0] == 412
    assert not (nas.root / "new").exists()


@pytest_twisted.ensureDeferred
async def test_a_file_moved_onto_itself_stays(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")
    status, _, _ = await nas.fetch("PUT", "/file/f", data=b'{"path": "f"}', headers=JSON)
    assert status == 200
    assert tree(nas) == {"f": b"x"}


@pytest.mark.parametrize(
    ("source", "target", "status"),
    [
        ("f", "d", 409),
        ("f", "/", 409),
        ("f", "f/below", 409),
        ("f", "g/below", 409),
        ("d", "d", 409),
        ("d", "d/e/below", 409),
        ("d", "empty", 409),
        ("d", "f", 409),
        ("empty", "d", 409),
        ("f", "..", 400),
        ("f", "../x", 400),
        ("f", "%2e%2e/x", 400),
        ("f", "a/../x", 400),
        ("f", "a%00b", 400),
        ("f", "a\0b", 400),
        ("f", "a\nb", 400),
        ("f", "100%", 400),
        ("f", "%zz", 400),
        ("f", "%ff", 400),
        ("f", "\udcff", 400),
        ("f", "n" * 256, 400),
        ("f", "n/" * 2100, 414),
        ("missing", "x", 404),
        ("f/below", "x", 404),
        ("link", "x", 404),
        ("link-to-d/e", "x", 404),
        ("fifo", "x", 404),
        ("", "x", 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_can_not_be_moved_stays(nas: Nas, source: str, target: str, status: int) -> None:
    (nas.root / "d/e").mkdir(parents=True)
    (nas.root / "empty").mkdir()
    (nas.root / "f").write_bytes(b"x")
    (nas.root / "g").write_bytes(b"y")
    (nas.root / "link").symlink_to("f")
    (nas.root / "link-to-d").symlink_to("d")
    os.mkfifo(nas.root / "fifo")
    body = json.dumps({"path": target}).encode()
    for path in (f"/file/{source}", f"/file/{source}/mv"):
        if source or not path.endswith("mv"):
            await refused(nas, status, "PUT", path, data=body, headers=JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"null",
        b'"path"',
        b'["path"]',
        b"{}",
        b'{"path": null}',
        b'{"path": ""}',
        b'{"path": 1}',
        b'{"path": ["x"]}',
        b'{"Path": "x"}',
        b'{"path": "x"',
        b"\xff",
        b"[" * 60000,
        b'{"path": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"path": "x", "pad": "' + b"x" * 70000 + b'"}',
    ],
)
@pytest_twisted.ensureDeferred
async def test_json_that_is_no_move_is_refused_and_told_how_to_append(
    nas: Nas, body: bytes
) -> None:
    (nas.root / "f").write_bytes(b"x")
    for path in ("/file/f", "/file/f/mv"):
        await refused(nas, 400, "PUT", path, data=body, headers=JSON)
        _, answer, _ = await nas.fetch("PUT", path, data=body, headers=JSON)
        assert "application/x-ndjson" in json.loads(answer)["detail"]


@pytest.mark.parametrize("length", [10, 70000])
@pytest.mark.parametrize("path", ["/file/missing", "/file/missing/mv", "/file/f/below"])
@pytest_twisted.ensureDeferred
async def test_a_missing_source_is_told_before_the_body_is_looked_at(
    nas: Nas, path: str, length: int
) -> None:
    (nas.root / "f").touch()
    await refused(nas, 404, "PUT", path, data=b"[" * length, headers=JSON)
    head = b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path.encode()
    rest = b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % length
    answer = await nas.talk(head + rest)
    assert answer.startswith(b"HTTP/1.1 404 ")


# What is not there, or is something else


@pytest.mark.parametrize(
    ("method", "name", "status"),
    [
        ("GET", "missing", 404),
        ("HEAD", "missing", 404),
        ("PUT", "missing", 404),
        ("DELETE", "missing", 404),
        ("GET", "missing/wc", 404),
        ("HEAD", "missing/wc", 404),
        ("GET", "f/below", 404),
        ("PUT", "f/below", 404),
        ("DELETE", "f/below", 404),
        ("GET", "f/below/wc", 404),
        ("POST", "f/below", 409),
        ("POST", "f/below/deeper", 409),
        ("POST", "d", 409),
        ("POST", "d/", 409),
        ("POST", "", 409),
        ("PUT", "d", 409),
        ("PUT", "", 409),
        ("GET", "d/wc", 409),
        ("DELETE", "", 403),
        ("DELETE", "/", 403),
        ("DELETE", "%2F", 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_can_not_be_done_is_refused(
    nas: Nas, method: str, name: str, status: int
) -> None:
    (nas.root / "d").mkdir()
    (nas.root / "d/in").write_bytes(b"x")
    (nas.root / "f").write_bytes(b"x")
    data = b"data" if method in ("POST", "PUT") else None
    await refused(nas, status, method, f"/file/{name}", data=data)


# GET and HEAD


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("A.HTML", "text/html; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("a.pdf", "application/pdf"),
        ("a.csv.gz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a", None),
        ("a.unknown", None),
        (".txt", None),
        ("txt", None),
        ("d.txt/a", None),
        ("data:,a.png", "image/png"),
        ("ab:c.txt#x.png", "image/png"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file_is_answered_with_all_that_describes_it(
    nas: Nas, name: str, kind: str | None
) -> None:
    content = os.urandom(300000)
    path = nas.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9 + 0.75))
    target = "/file/" + name.replace("#", "%23")
    status, body, headers = await nas.fetch("GET", target)
    assert (status, body) == (200, content)
    assert one(headers, "Content-Type") == kind
    assert one(headers, "Last-Modified") == formatdate(1e9, usegmt=True)
    assert one(headers, "Accept-Ranges") == "bytes"
    assert one(headers, "X-Content-Type-Options") == "nosniff"
    policy = one(headers, "Content-Security-Policy") or ""
    assert policy.startswith("sandbox") and "default-src 'none'" in policy.split("; ")
    etag = one(headers, "ETag") or ""
    assert etag[0] == etag[-1] == '"' and len(etag) > 2
    heads = [await head_of(nas, method, target) for method in (b"GET", b"HEAD")]
    assert heads[0] == heads[1]
    assert b"Content-Length: 300000" in heads[0]
    assert (await nas.fetch("HEAD", target))[:2] == (200, b"")


async def head_of(nas: Nas, method: bytes, target: str) -> list[bytes]:
    """The lines of an answer's head, but for those that are the request's own."""
    request = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await nas.talk(request % (method, target.encode()))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert method == b"GET" or body == b""
    lines = head.split(b"\r\n")
    return [line for line in lines if not line.startswith((b"Date: ", b"X-Request-ID: "))]


@pytest.mark.parametrize("size", [0, 1, 65536, (5 << 20) + 1])
@pytest_twisted.ensureDeferred
async def test_a_file_is_sent_whole(nas: Nas, size: int) -> None:
    content = os.urandom(size)
    (nas.root / "f").write_bytes(content)
    raw = await nas.talk(b"GET /file/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: %d" % size in head
    assert body == content


@pytest_twisted.ensureDeferred
async def test_every_change_gives_another_etag(nas: Nas) -> None:
    tags = []
    for method, data in [("POST", b"same"), ("POST", b"same"), ("PUT", b"x"), ("POST", b"other")]:
        await nas.fetch(method, "/file/f", data=data)
        tags.append(one((await nas.fetch("HEAD", "/file/f"))[2], "ETag"))
    assert len(set(tags)) == 4
    again = one((await nas.fetch("GET", "/file/f"))[2], "ETag")
    assert again == tags[-1]


# Counting lines


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"one\n", b"one\ntwo", b"\r\n\r\n", b"no end", b"a\0\nb\n", b"x\n" * 200000],
)
@pytest_twisted.ensureDeferred
async def test_lines_are_counted_exactly_like_wc_does(nas: Nas, content: bytes) -> None:
    await nas.fetch("POST", "/file/f", data=content)
    counted = subprocess.run(["wc", "-l"], input=content, capture_output=True, check=True)
    expected = counted.stdout.strip()
    status, body, headers = await nas.fetch("GET", "/file/f/wc")
    assert (status, body) == (200, expected)
    status, body, headers = await nas.fetch("HEAD", "/file/f/wc")
    assert (status, body, one(headers, "Content-Length")) == (200, b"", str(len(expected)))
    await nas.fetch("PUT", "/file/f", data=b"\nmore\n")
    assert (await nas.fetch("GET", "/file/f/wc"))[1] == b"%d" % (int(expected) + 2)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/file/d%2Fwc", b"file d/wc\n"),
        ("/file/d/%77c", b"file d/wc\n"),
        ("/file/d/%2Fwc", b"file d/wc\n"),
        ("/file/d/wc/wc", b"1"),
        ("/file/wc", b"file wc\n\n"),
        ("/file/wc/wc", b"2"),
        ("/file//wc", b"file wc\n\n"),
        ("/file/d/WC", b"file d/WC\n"),
        ("/file/d/f/wc/", b"3"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_verbs_are_written_literally(nas: Nas, path: str, content: bytes) -> None:
    (nas.root / "d").mkdir()
    (nas.root / "d/wc").write_bytes(b"file d/wc\n")
    (nas.root / "d/WC").write_bytes(b"file d/WC\n")
    (nas.root / "wc").write_bytes(b"file wc\n\n")
    if path.endswith("/"):
        (nas.root / "d/f").mkdir()
        (nas.root / "d/f/wc").write_bytes(b"3")
    status, body, _ = await nas.fetch("GET", path)
    assert (status, body) == (200, content)


# DELETE


@pytest_twisted.ensureDeferred
async def test_a_file_is_deleted(nas: Nas) -> None:
    (nas.root / "d").mkdir()
    (nas.root / "d/f").write_bytes(b"x")
    (nas.root / "d/g").write_bytes(b"y")
    status, body, _ = await nas.fetch("DELETE", "/file/d%2Ff")
    assert (status, body) == (200, b"OK")
    assert tree(nas) == {"d": None, "d/g": b"y"}


@pytest_twisted.ensureDeferred
async def test_a_folder_is_deleted_with_all_in_it(nas: Nas) -> None:
    outside = nas.root.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"stays")
    for folder in ("d/e/f", "d/g", "keep"):
        (nas.root / folder).mkdir(parents=True)
        for number in range(20):
            (nas.root / folder / f"{number}").write_bytes(b"x")
    (nas.root / "d/link").symlink_to(outside)
    os.mkfifo(nas.root / "d/fifo")
    status, body, _ = await nas.fetch("DELETE", "/file/d/")
    assert (status, body) == (200, b"OK")
    assert {name.split("/")[0] for name in tree(nas)} == {"keep"}
    assert (outside / "f").read_bytes() == b"stays"
    await nas.in_thread(wait_until, lambda: not nas.leftovers(), "all of it to be reclaimed")


@pytest.mark.parametrize("target", ["kept", "folder", "missing", "/etc/passwd"])
@pytest_twisted.ensureDeferred
async def test_deleting_a_link_removes_the_link_alone(nas: Nas, target: str) -> None:
    (nas.root / "kept").write_bytes(b"x")
    (nas.root / "folder").mkdir()
    (nas.root / "folder/f").write_bytes(b"x")
    before = tree(nas)
    (nas.root / "link").symlink_to(target)
    status, body, _ = await nas.fetch("DELETE", "/file/link")
    assert (status, body) == (200, b"OK")
    assert not (nas.root / "link").is_symlink()
    assert tree(nas) == before


# Other methods


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/file", "GET, HEAD, OPTIONS"),
        ("/file/", ALL),
        ("/file/f", ALL),
        ("/file/missing", ALL),
        ("/file/wc", ALL),
        ("/file/d%2Fwc", ALL),
        ("/file/f/wc", "GET, HEAD, OPTIONS"),
        ("/file/f/mv", "OPTIONS, PUT"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_resource_tells_what_can_be_done(nas: Nas, path: str, allow: str) -> None:
    (nas.root / "f").write_bytes(b"x")
    status, body, headers = await nas.fetch("OPTIONS", path)
    assert (status, body, one(headers, "Allow")) == (204, b"", allow)
    others = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "TRACE"}
    for method in sorted(others - set(allow.split(", "))):
        headers = await refused(nas, 405, method, path)
        assert one(headers, "Allow") == allow


@pytest.mark.parametrize("path", ["/page/x", "/filex", "/fil", "/File/f", "/x/file/f", "/file%2Ff"])
@pytest_twisted.ensureDeferred
async def test_beside_the_doors_there_is_nothing(nas: Nas, path: str) -> None:
    (nas.root / "f").write_bytes(b"x")
    for method in ("GET", "POST", "DELETE"):
        await refused(nas, 404, method, path)


# Errors


@pytest_twisted.ensureDeferred
async def test_an_error_of_ours_is_a_problem_without_its_traceback(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret of ours")

    monkeypatch.setattr(Storage, "remove", broken)
    status, body, headers = await nas.fetch("DELETE", "/file/f")
    assert status == 500
    check_problem(500, body, headers)
    assert b"secret" not in body
    assert (await nas.fetch("GET", "/file"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_content_encoding_is_refused_and_nothing_inflated(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")
    for method in ("POST", "PUT"):
        for coding in ("gzip", "identity, gzip", "br"):
            headers = await refused(
                nas, 415, method, "/file/f", data=b"x", headers={"Content-Encoding": coding}
            )
            assert one(headers, "Accept-Encoding") == "identity"
    status, _, _ = await nas.fetch(
        "PUT", "/file/f", data=b"y", headers={"Content-Encoding": "Identity"}
    )
    assert status == 200
    assert tree(nas) == {"f": b"xy"}
