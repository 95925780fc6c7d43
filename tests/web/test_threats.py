from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httpnas.storage import content, group, staging, upload
from httpnas.storage.root import Root
from httpnas.storage.store import Storage
from tests.harness import Nas, connect
from tests.private import own

JSON = {"Content-Type": "application/json"}
SECRET = b"a secret outside the root"


class Answer:
    """What came back, which must be one well-formed answer."""

    def __init__(self, raw: bytes) -> None:
        head, separator, self.body = raw.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        assert separator and re.fullmatch(rb"HTTP/1\.1 \d{3} [A-Za-z -]+", status_line), raw
        self.status = int(status_line.split()[1])
        self.headers: dict[str, str] = {}
        for line in lines:
            assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x1f\x7f]*", line), raw
            name, _, value = line.decode("latin-1").partition(": ")
            assert name.lower() not in self.headers, raw
            self.headers[name.lower()] = value


def request(method: bytes, target: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Connection: close", *fields]
    if not any(field.lower().startswith(b"host:") for field in fields):
        lines.append(b"Host: localhost")
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def ask(nas: Nas, method: bytes, target: bytes, *fields: bytes, body: bytes = b"") -> Answer:
    answer = Answer(await nas.talk(request(method, target, *fields, body=body)))
    if answer.status >= 400 and method != b"HEAD":
        problem = json.loads(answer.body)
        assert problem["status"] == answer.status
        assert answer.headers["content-type"] == "application/problem+json"
    return answer


def snapshot(folder: Path) -> dict[str, object]:
    """All that is in a folder, but for the daemon's own; links are told, not followed."""
    found: dict[str, object] = {}
    for at, folders, files in os.walk(folder):
        if ".httpnas" in folders:
            folders.remove(".httpnas")
        for name in folders + files:
            path = Path(at, name)
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


@pytest_twisted.async_yield_fixture
async def world(nas: Nas) -> AsyncIterator[Nas]:
    """A daemon whose root holds what somebody might abuse; around it lies what none may reach."""
    outside = nas.root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (nas.root / "d").mkdir()
    (nas.root / "d/f").write_bytes(b"x")
    (nas.root / "f").write_bytes(b"x")
    (nas.root / "link").symlink_to("f")
    (nas.root / "out").symlink_to(outside)
    (nas.root / "d/up").symlink_to("../..")
    (nas.root / "abs").symlink_to(outside / "secret")
    (nas.root / "dangling").symlink_to("missing")
    (nas.root / "loop").symlink_to("loop")
    (nas.root / "proc").symlink_to("/proc/self/root")
    os.mkfifo(nas.root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(nas.root / "socket"))
    yield nas


EVERY_WAY: list[tuple[bytes, bytes, tuple[bytes, ...], bytes]] = [
    (b"GET", b"", (), b""),
    (b"HEAD", b"", (), b""),
    (b"GET", b"/wc", (), b""),
    (b"GET", b"", (b"Accept: text/html",), b""),
    (b"POST", b"", (), b"data"),
    (b"PUT", b"", (), b"data"),
    (b"PUT", b"", (b"Content-Type: application/json",), b'{"path": "moved"}'),
    (b"PUT", b"/mv", (), b'{"path": "moved"}'),
    (b"DELETE", b"", (), b""),
]


# Names


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (b"../outside/secret", 400),
        (b"%2e%2e%2foutside%2fsecret", 400),
        (b"d%2f..%2f..%2foutside", 400),
        (b"a%00b", 400),
        (b"a%0d%0aSet-Cookie:%20x=y", 400),
        (b"%c0%ae%c0%ae%c0%af", 400),
        (b"%zz", 400),
        (b"\xff", 400),
        (b"n" * 256, 400),
        (b"n/" * 2049, 414),
        (b"n" * 9000, 414),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_name_that_is_none_is_refused(world: Nas, name: bytes, status: int) -> None:
    before = snapshot(world.root.parent)
    for method, verb, fields, body in EVERY_WAY:
        answer = await ask(world, method, b"/file/" + name + verb, *fields, body=body)
        assert answer.status == status, (method, verb)
        assert SECRET not in answer.body
    assert snapshot(world.root.parent) == before
    assert world.leftovers() == []


@pytest.mark.parametrize(
    "name", [b"%252e%252e%252foutside%252fsecret", b"..\\outside", b"...", b"/etc/passwd", b"C:"]
)
@pytest_twisted.ensureDeferred
async def test_a_literal_name_is_only_that(world: Nas, name: bytes) -> None:
    outside = snapshot(world.root.parent / "outside")
    assert (await ask(world, b"GET", b"/file/" + name)).status == 404
    assert (await ask(world, b"POST", b"/file/" + name, body=b"x")).status == 200
    assert (await ask(world, b"GET", b"/file/" + name)).body == b"x"
    assert snapshot(world.root.parent / "outside") == outside


@pytest.mark.parametrize(
    ("raw", "escaped", "status"),
    [(b"\xe6\xb0\x94", b"%E6%B0%94", 200), (b'a|b"<>^`{}', b"a%7Cb%22%3C%3E%5E%60%7B%7D", 200)],
)
@pytest_twisted.ensureDeferred
async def test_bytes_that_should_have_been_escaped_are_taken_as_themselves(
    nas: Nas, raw: bytes, escaped: bytes, status: int
) -> None:
    assert (await ask(nas, b"POST", b"/file/" + raw, body=b"x")).status == status
    assert (await ask(nas, b"GET", b"/file/" + escaped)).body == b"x"
    assert (await ask(nas, b"GET", b"/file/" + raw)).body == b"x"


# Links and special files

LINKS = [b"link", b"abs", b"dangling", b"loop", b"out", b"d/up"]


@pytest.mark.parametrize(
    "name",
    [
        *LINKS,
        b"out/secret",
        b"out/new",
        b"out/new/deeper",
        b"link/x",
        b"loop/x",
        b"dangling/x",
        b"d/up/outside/secret",
        b"proc/etc/passwd",
        b"fifo",
        b"socket",
    ],
)
@pytest_twisted.ensureDeferred
async def test_links_and_special_files_are_not_there(world: Nas, name: bytes) -> None:
    before = snapshot(world.root.parent)
    for method, verb, fields, body in EVERY_WAY:
        answer = await ask(world, method, b"/file/" + name + verb, *fields, body=body)
        assert SECRET not in answer.body
        after = snapshot(world.root.parent)
        path = world.root / os.fsdecode(name)
        if method == b"DELETE" and name in LINKS:
            assert answer.status == 200
            assert set(before) - set(after) == {str(path.relative_to(world.root.parent))}
        else:
            assert answer.status == 404, (method, verb)
            assert after == before


@pytest.mark.parametrize("target", ["out/x", "d/up/x", "loop/x", "proc/tmp/x"])
@pytest_twisted.ensureDeferred
async def test_nothing_is_moved_through_a_link(world: Nas, target: str) -> None:
    before = snapshot(world.root.parent)
    body = json.dumps({"path": target}).encode()
    assert (await world.fetch("PUT", "/file/f", data=body, headers=JSON))[0] == 404
    assert snapshot(world.root.parent) == before


@pytest_twisted.ensureDeferred
async def test_a_device_is_not_there(nas: Nas) -> None:
    try:
        os.mknod(nas.root / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make devices")
    for method, verb, fields, body in EVERY_WAY:
        answer = await ask(nas, method, b"/file/null" + verb, *fields, body=body)
        assert answer.status == 404
    assert (nas.root / "null").is_char_device()


# The daemon's own folder

OWN = [
    b"/file/.httpnas",
    b"/file/.httpnas/",
    b"/file//.httpnas",
    b"/file///.httpnas//",
    b"//file/.httpnas",
    b"///file/.httpnas",
    b"/file/%2ehttpnas",
    b"/file/%2Ehttpnas",
    b"/file/%2e%68%74%74%70%6e%61%73",
    b"/file/%2F.httpnas",
    b"/file/.httpnas%2f",
    b"/file/.httpnas/run",
    b"/file/.httpnas%2Flocks",
    b"/file/.httpnas/new",
    b"/file/.httpnas/new/deeper",
    b"http://localhost/file/.httpnas",
    b"/file/.httpnas?limit=1",
]


@pytest.mark.parametrize("target", OWN)
@pytest_twisted.ensureDeferred
async def test_the_daemons_own_folder_does_not_exist(nas: Nas, target: bytes) -> None:
    private = nas.root / ".httpnas"
    before = sorted(map(str, private.rglob("*")))
    path, question, query = target.partition(b"?")
    for method, verb, fields, body in EVERY_WAY:
        spelled = path + (verb.removeprefix(b"/") if path.endswith(b"/") else verb)
        answer = await ask(nas, method, spelled + question + query, *fields, body=body)
        assert answer.status == (404 if method in (b"GET", b"HEAD") else 403), (method, verb)
        assert sorted(map(str, private.rglob("*"))) == before
    assert (await nas.fetch("GET", "/file/"))[1] == b""


@pytest.mark.parametrize(
    "target",
    [".httpnas", "/.httpnas/", "//.httpnas", "%2ehttpnas", ".httpnas/run/x", "%2F.httpnas%2Fx"],
)
@pytest_twisted.ensureDeferred
async def test_nothing_is_moved_into_the_daemons_own_folder(nas: Nas, target: str) -> None:
    (nas.root / "f").write_bytes(b"x")
    before = sorted(map(str, (nas.root / ".httpnas").rglob("*")))
    body = json.dumps({"path": target}).encode()
    assert (await nas.fetch("PUT", "/file/f", data=body, headers=JSON))[0] == 403
    assert sorted(map(str, (nas.root / ".httpnas").rglob("*"))) == before
    assert (nas.root / "f").read_bytes() == b"x"


# Injection


@pytest.mark.parametrize(
    "target",
    [
        b"/file/d%0d%0aX-Injected:%201",
        b"/file/d?%0d%0aX-Injected:%201",
        b"/file/%E6%B0%94?\xe6\xb0\x94",
        b"/file/a%22%3Cscript%3E",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_redirect_injects_no_header(nas: Nas, target: bytes) -> None:
    for name in ("d", "气", 'a"<script>'):
        (nas.root / name).mkdir()
    answer = await ask(nas, b"GET", target, b"Accept: text/html")
    assert answer.status in (301, 400)
    assert "x-injected" not in answer.headers
    if answer.status == 301:
        location = answer.headers["location"]
        assert location.isascii() and location.startswith("./")
        assert re.fullmatch(r"[!-~]+", location)


@pytest.mark.parametrize(
    "name", ["evil.html", "evil.svg", "evil.pdf", "evil.xhtml", "evil", "evil.xml"]
)
@pytest_twisted.ensureDeferred
async def test_no_stored_content_runs_in_a_browser(nas: Nas, name: str) -> None:
    content = b"<script xmlns='http://www.w3.org/1999/xhtml'>alert(1)</script>"
    await nas.fetch("POST", f"/file/{name}", data=content)
    for fields in ((), (b"Range: bytes=0-9",), (b"Range: bytes=0-0,2-2",), (b"If-None-Match: *",)):
        answer = await ask(nas, b"GET", f"/file/{name}".encode(), *fields)
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert re.match(r"sandbox(?: allow-same-origin)?; default-src 'none'(?:;|\Z)", policy)
        assert "script" not in policy and "form" not in policy
        assert "same-origin" not in policy or name in ("evil.html", "evil.svg", "evil.xhtml")


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.mp3", "x.wav"])
@pytest_twisted.ensureDeferred
async def test_stored_media_may_load_itself_and_nothing_else(nas: Nas, name: str) -> None:
    await nas.fetch("POST", f"/file/{name}", data=b"x")
    answer = await ask(nas, b"GET", f"/file/{name}".encode())
    policy = "sandbox allow-same-origin; default-src 'none'; media-src 'self'"
    assert answer.headers["content-security-policy"] == policy


# Other sites' pages


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ((), True),
        ((b"Sec-Fetch-Site: same-origin",), True),
        ((b"Sec-Fetch-Site: none",), True),
        ((b"Origin: http://nas.example:3000",), True),
        ((b"Sec-Fetch-Site: same-origin", b"Origin: http://nas.example:3000"), True),
        ((b"Sec-Fetch-Site: cross-site",), False),
        ((b"Sec-Fetch-Site: same-site",), False),
        ((b"Origin: http://evil.example",), False),
        ((b"Origin: http://nas.example",), False),
        ((b"Origin: http://nas.example:3001",), False),
        ((b"Origin: http://nas.example:3000.evil.example",), False),
        ((b"Origin: null",), False),
        ((b"Origin:",), False),
        ((b"Origin: http://[",), False),
        ((b"Origin: \xff",), False),
        ((b"Sec-Fetch-Site: same-origin", b"Origin: http://behind-a-proxy.example"), True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_sites_may_read_but_not_change(
    nas: Nas, fields: tuple[bytes, ...], allowed: bool
) -> None:
    for method, verb, more, body in EVERY_WAY:
        if method in (b"GET", b"HEAD"):
            continue
        (nas.root / "f").write_bytes(b"x")
        answer = await ask(
            nas, method, b"/file/f" + verb, b"Host: nas.example:3000", *fields, *more, body=body
        )
        assert answer.status == (200 if allowed else 403)
        assert allowed or (nas.root / "f").read_bytes() == b"x"
        assert allowed or not (nas.root / "moved").exists()
    (nas.root / "f").write_bytes(b"x")
    answer = await ask(nas, b"GET", b"/file/f", b"Host: nas.example:3000", *fields)
    assert (answer.status, answer.body) == (200, b"x")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (b"nas.lan:80", b"http://nas.lan"),
        (b"NAS.lan", b"http://nas.lan"),
        (b"nas.lan:", b"http://nas.lan"),
        (b"nas.lan:443", b"https://nas.lan"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_daemons_own_pages_may_change_things_however_the_host_is_spelled(
    nas: Nas, host: bytes, origin: bytes
) -> None:
    fields = (b"Host: " + host, b"Origin: " + origin)
    answer = await ask(nas, b"POST", b"/file/f", *fields, body=b"x")
    assert answer.status == 200


# Storage in trouble


def failing(code: int, after: int = 0) -> Callable[..., None]:
    """Writes that work *after* times and fail from then on, in the middle."""
    works, left = content.write_all, [after]

    def write_all(fd: int, chunks: Sequence[bytes], *args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.pwrite(fd, b"".join(chunks)[:3], os.fstat(fd).st_size)
            raise OSError(code, os.strerror(code))
        works(fd, chunks, *args)

    return write_all


TROUBLES = [
    (errno.ENOSPC, 507),
    (errno.EDQUOT, 507),
    (errno.EFBIG, 413),
    (errno.EIO, 500),
    (errno.ESTALE, 503),
    (errno.EROFS, 403),
    (errno.EACCES, 403),
    (errno.EMFILE, 503),
    (errno.ENFILE, 503),
    (errno.ENOMEM, 503),
    (errno.EBADMSG, 500),
]


async def check_trouble(nas: Nas, status: int, method: str, **kwargs: Any) -> None:
    code, body, headers = await nas.fetch(method, "/file/f", **kwargs)
    assert code == status
    if method != "HEAD":
        problem = json.loads(body)
        assert problem["status"] == status and problem["detail"]
        assert b"Errno" not in body and b"Traceback" not in body
    assert headers.hasHeader("Retry-After") == (status == 503)


@pytest.mark.parametrize(("code", "status"), TROUBLES)
@pytest.mark.parametrize("after", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_failed_write_is_told_and_leaves_the_old_content(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, code: int, status: int, after: int
) -> None:
    (nas.root / "f").write_bytes(b"old")
    (nas.root / "g").write_bytes(b"g")
    data = bytes(5 << 20) if after else b"data"
    for method in ("POST", "PUT"):
        for module in (upload, group, staging):
            monkeypatch.setattr(module, "write_all", failing(code, after))
        monkeypatch.setattr(group, "append_all", failing(code, after))
        await check_trouble(nas, status, method, data=data)
        assert (await nas.fetch("GET", "/file/f"))[1] == b"old"
        assert (nas.root / "f").read_bytes() == b"old"
        assert nas.leftovers() == []
    (nas.root / "h").write_bytes(b"h")
    assert (await nas.fetch("DELETE", "/file/h"))[0] == 200
    assert not (nas.root / "h").exists()
    monkeypatch.undo()
    assert (await nas.fetch("PUT", "/file/f", data=b"more"))[0] == 200
    assert (nas.root / "f").read_bytes() == b"oldmore"
    assert (await nas.fetch("POST", "/file/f", data=data))[0] == 200
    assert (nas.root / "f").read_bytes() == data


@pytest.mark.parametrize(("code", "status"), TROUBLES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
@pytest_twisted.ensureDeferred
async def test_a_failed_open_is_told(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, method: str, code: int, status: int
) -> None:
    (nas.root / "f").write_bytes(b"old")

    def broken(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Storage, "open_cached", lambda *_: None)
    monkeypatch.setattr(Root, "_open", broken)
    await check_trouble(nas, status, method, data=b"x" if method in ("PUT", "POST") else None)
    monkeypatch.undo()
    assert (await nas.fetch("GET", "/file/f"))[:2] == (200, b"old")


@pytest.mark.parametrize(("code", "status"), TROUBLES)
@pytest_twisted.ensureDeferred
async def test_a_failed_entry_is_told_and_leaves_the_old_content(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    (nas.root / "f").write_bytes(b"old")

    def broken(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", broken)
    await check_trouble(nas, status, "POST", data=b"new")
    await check_trouble(nas, status, "PUT", data=b'{"path": "g"}', headers=JSON)
    monkeypatch.undo()
    assert snapshot(nas.root) == {"f": ((nas.root / "f").stat().st_mode, b"old")}
    assert nas.leftovers() == []


@pytest.mark.parametrize(("code", "status"), TROUBLES)
@pytest_twisted.ensureDeferred
async def test_a_failed_listing_is_told(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "scandir", broken)
    answer = await ask(nas, b"GET", b"/file/")
    monkeypatch.undo()
    assert answer.status == status
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest_twisted.ensureDeferred
async def test_a_body_larger_than_the_free_space_is_refused_before_it_is_sent(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    for method in (b"POST", b"PUT"):
        head = request(method, b"/file/f", b"Content-Length: %d" % (1 << 60))
        answer = Answer(
            await nas.talk(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        )
        assert answer.status == 507
    assert (nas.root / "f").read_bytes() == b"old"
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_body_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", max_upload=1000)
    (nas.root / "f").write_bytes(b"old")
    try:
        for method in (b"POST", b"PUT"):
            assert (await ask(nas, method, b"/file/f", body=bytes(1001))).status == 413
            chunked = request(method, b"/file/f", b"Transfer-Encoding: chunked")
            body = b"1f4\r\n%b\r\n" % bytes(500) * 3 + b"0\r\n\r\n"
            assert Answer(await nas.talk(chunked, body)).status == 413
            assert (nas.root / "f").read_bytes() == b"old"
            assert nas.leftovers() == []
        assert (await ask(nas, b"POST", b"/file/f", body=bytes(1000))).status == 200
    finally:
        await nas.stop()


# Strange requests


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"TRACE", b"/file/f", 405),
        (b"TRACE", b"/", 405),
        (b"CONNECT", b"localhost:443", 404),
        (b"CONNECT", b"/file/f", 405),
        (b"PROPFIND", b"/file/", 405),
        (b"BREW", b"/file/f", 405),
        (b"OPTIONS", b"*", 200),
        (b"GET", b"*", 405),
        (b"DELETE", b"*", 405),
        (b"delete", b"/file/f", 501),
        (b"Get", b"/file/f", 501),
        (b"GET", b"http://localhost/file/f", 200),
        (b"GET", b"HTTP://other.example:80/file/f", 200),
        (b"GET", b"https://user:secret@other.example/file/f", 400),
        (b"GET", b"http://localhost", 200),
        (b"GET", b"http:///file/f", 404),
        (b"GET", b"ftp://localhost/file/f", 404),
        (b"GET", b"file/f", 404),
        (b"GET", b"xfile/f", 404),
        (b"DELETE", b"xfile/f", 404),
        (b"POST", b"xfile/new", 404),
        (b"GET", b"?", 404),
        (b"GET", b"/file/f?", 200),
        (b"GET", b"/file/f?%", 200),
        (b"GET", b"/file/f#x", 404),
        (b"GET", b"/file;x/f", 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_strange_target_or_method_is_answered(
    nas: Nas, method: bytes, target: bytes, status: int
) -> None:
    (nas.root / "f").write_bytes(b"x")
    before = snapshot(nas.root)
    answer = await ask(nas, method, target)
    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)
    assert snapshot(nas.root) == before


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:99999", 200),
        (b"[::1]:3000", 200),
        (b"", 200),
        (b":", 200),
        (b"-", 200),
        (b"a..b", 200),
        (b"." * 300, 200),
        (b"xn--zzzzzz", 200),
        (b"%41", 200),
        (b"a,b", 200),
        (b"a b", 400),
        (b"a/b", 400),
        (b"a@b:c@d", 400),
        (b"[::1", 400),
        (b"\xff", 400),
        (b"\xe6\xb0\x94", 400),
        (b"a:b:c", 400),
        (b"a\tb", 400),
        (b"<script>", 400),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_host_upsets_the_daemon(nas: Nas, host: bytes, status: int) -> None:
    (nas.root / "f").write_bytes(b"x")
    assert (await ask(nas, b"GET", b"/file/f", b"Host: " + host)).status == status
    assert (await ask(nas, b"GET", b"/file/", b"Host: " + host)).status == status


# Anything at all

NAMES = [
    b"f",
    b"d",
    b"d/f",
    b"new",
    b"d/new",
    b"out",
    b"out/secret",
    b"abs",
    b"fifo",
    b"..",
    b"%2e%2e",
    b"%2F",
    b".httpnas",
    b"%2ehttpnas",
    b"wc",
    b"mv",
    b"outside",
    b"secret",
    b"%00",
    b"%ff",
    b"\xff",
    b"\xe6\xb0\x94",
    b"%",
    b"",
    b"?limit=1",
    b"?limit=x&after=%ff",
]
methods = st.one_of(
    st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"]),
    st.sampled_from([b"PATCH", b"TRACE", b"CONNECT", b"X", b"g\xff", b"PRI"]),
)
text = st.binary(max_size=30).map(lambda raw: re.sub(rb"[\x00-\x20\x7f]", b".", raw))
targets = st.one_of(
    st.lists(st.one_of(st.sampled_from(NAMES), text), max_size=5).map(
        lambda parts: b"/file/" + b"/".join(parts)
    ),
    st.tuples(st.sampled_from([b"", b"/", b"//", b"*", b"http://h", b"///file/"]), text).map(
        b"".join
    ),
).map(lambda target: target or b"/")
FIELDS = [
    b"Accept",
    b"Content-Type",
    b"Content-Encoding",
    b"Content-MD5",
    b"Content-Digest",
    b"Repr-Digest",
    b"Want-Repr-Digest",
    b"Range",
    b"If-Range",
    b"If-Match",
    b"If-None-Match",
    b"If-Modified-Since",
    b"If-Unmodified-Since",
    b"Upload-Offset",
    b"Idempotency-Key",
    b"Origin",
    b"Sec-Fetch-Site",
    b"Host",
    b"Expect",
    b"Connection",
    b"Cookie",
    b"X-Request-ID",
    b"X-HTTP-Method-Override",
]
VALUES = [
    b"application/json",
    b"text/html",
    b"*",
    b"*/*",
    b'"x"',
    b"W/",
    b"bytes=0-0,2-",
    b"bytes=-",
    b"0",
    b"-1",
    b"9" * 30,
    b"sha-256=:AAAA:",
    b"sha-256=1",
    b"gzip",
    b"Sat, 21 Nov 2020 14:36:07 GMT",
    b"Sat, 31 Feb 0000 99:99:99 GMT",
    b"http://[",
    b"close",
    b"keep-alive, Upgrade",
    b"100-continue",
]
headers = st.lists(
    st.tuples(st.sampled_from(FIELDS), st.one_of(st.sampled_from(VALUES), text)), max_size=5
)
bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'{"path": "moved"}',
            b'{"path": "d/up/outside/moved"}',
            b'{"path": "../outside/moved"}',
            b'{"path": "%2e%2e%2foutside"}',
            b'{"path": ".httpnas/run"}',
            b'{"path": "\\ud800"}',
            b'{"path": 1e999}',
        ]
    ),
)


def fingerprint(folder: Path) -> str:
    return hashlib.sha256(repr(sorted(snapshot(folder).items())).encode()).hexdigest()


@pytest_twisted.ensureDeferred
async def test_nothing_that_a_client_sends_is_an_error_of_ours(world: Nas) -> None:
    outside = world.root.parent / "outside"
    before = fingerprint(outside)

    @settings(
        max_examples=400,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(methods, targets, headers, bodies)
    def check(method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"%b: %b" % field for field in fields]
        sent = request(method, target, *lines, body=body)
        with connect(world.port) as client:
            # Closing with a reset, or thousands of connections would wait for their ends.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(sent)
            received = b""
            while chunk := client.recv(65536):
                received += chunk
        answer = Answer(received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
        assert answer.status != 500 and 200 <= answer.status < 600
        assert SECRET not in answer.body
        assert b"Traceback" not in answer.body
        assert own(world.root, "locks").is_dir() and own(world.root, "run").is_dir()
        if method != b"HEAD" and "content-length" in answer.headers:
            assert len(answer.body) == int(answer.headers["content-length"])
        (world.root / "f").write_bytes(b"x")

    await world.in_thread(check)
    assert fingerprint(outside) == before
    assert sorted(path.name for path in world.root.parent.iterdir()) == ["outside", "root"]
    assert (await world.fetch("GET", "/file"))[:2] == (200, b"OK")
