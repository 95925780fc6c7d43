"""The simple-fs dialect over real sockets: forms in, attachments out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import pytest_twisted
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from httpnas.storage.store import Storage
from httpnas.storage.upload import Upload
from httpnas.transfer.sink import HIGH_WATER
from httpnas.transfer.turns import Turns
from tests.harness import PATIENCE, Client, Nas, let_daemon_read, wait_until
from tests.web.test_multipart import BOUNDARY, BROKEN, FILENAMES, field, file, form

MIB = 1 << 20
LIMIT = 1 << 20
HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
EXPECT = b"Expect: 100-continue"
IS_FORM = f'Content-Type: multipart/form-data; boundary="{BOUNDARY}"'.encode()
OLD = b"old content\n"

Answer = tuple[int, dict[str, str], bytes]


@pytest_twisted.async_yield_fixture
async def small(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon that takes no bodies of more than a MiB."""
    nas = Nas(tmp_path / "root", max_upload=LIMIT)
    yield nas
    await nas.stop()


def head(length: int | None, *fields: bytes, path: bytes = b"", kind: bytes = IS_FORM) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    lines = [b"POST /files/%b HTTP/1.1" % path, b"Host: nas", framing, kind, *fields]
    return b"".join(line + b"\r\n" for line in lines if line) + b"\r\n"


def post(body: bytes, *fields: bytes, path: bytes = b"") -> bytes:
    return head(len(body), *fields, path=path) + body


def get(name: str, *fields: bytes) -> bytes:
    lines = [b"GET /files/%b HTTP/1.1" % quote(name).encode(), b"Host: nas", *fields]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def ask(nas: Nas, *segments: bytes) -> Answer:
    """Send a request and return its answer, from a thread."""
    with Client(nas.port) as client:
        client.send(*segments)
        return client.answer()


def assert_is_accepted(answer: Answer, *names: str) -> None:
    status, headers, body = answer
    assert (status, headers["content-type"]) == (202, "application/json"), answer
    assert json.loads(body) == {"message": f"{', '.join(names)} upload task submitted."}


def assert_is_problem(answer: Answer, status: int, stored: Sequence[str] | None = None) -> None:
    """Assert that *answer* is a refusal, which tells that *stored* have been stored."""
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/problem+json"
    problem = json.loads(answer[2])
    assert problem["status"] == status
    assert problem.get("stored") == (None if stored is None else list(stored))
    assert "Error" not in problem["detail"]


def stored(nas: Nas) -> dict[str, bytes]:
    return {
        str(path.relative_to(nas.root)): path.read_bytes()
        for path in nas.root.rglob("*")
        if path.is_file() and ".httpnas" not in path.parts
    }


def furnish(nas: Nas) -> dict[str, bytes]:
    (nas.root / "folder").mkdir()
    (nas.root / "f").write_bytes(OLD)
    return {"f": OLD}


# Clients as they are


AWKWARD = [
    "plain.txt",
    "two words.txt",
    "气.txt",
    'a "quoted".txt',
    "50%.txt",
    "back\\slash;x=y",
    "C:\\folder\\file.txt",
    "\\\\host\\end\\",
]


@pytest_twisted.ensureDeferred
async def test_the_client_of_simple_fs_works_unchanged(nas: Nas, tmp_path: Path) -> None:
    def upload_and_read(name: str) -> None:
        path = tmp_path / "sent"
        path.write_text(f"content of {name}\n")
        with path.open("rb") as sent:
            answer = requests.post(
                f"{nas.url}/files/",
                files={"file": (name, sent, "multipart/form-data")},
                data={"Button": "Submit"},
                timeout=PATIENCE,
            )
        assert answer.status_code == 202
        assert answer.json() == {"message": f"{name} upload task submitted."}
        answer = requests.get(f"{nas.url}/files/{quote(name)}", timeout=PATIENCE)
        assert answer.status_code == 200
        assert answer.text == path.read_text()

    for name in AWKWARD:
        await nas.in_thread(upload_and_read, name)
    assert set(stored(nas)) == set(AWKWARD)


@pytest_twisted.ensureDeferred
async def test_curl_uploads_files_and_pipes(nas: Nas, tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    folder.mkdir()
    large = bytes(range(256)) * 8192  # curl waits for a 100 with that
    for name in AWKWARD:
        (folder / name).write_bytes(name.encode() + large)

    def curl(*arguments: str, given: bytes = b"") -> object:
        done = subprocess.run(
            ["curl", "-sSf", *arguments, f"{nas.url}/files/"],
            input=given,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        return json.loads(done.stdout)

    def upload() -> None:
        forms = []
        for name in AWKWARD:
            escaped = str(folder / name).replace("\\", "\\\\").replace('"', '\\"')
            forms += ["-F", f'file=@"{escaped}"']
        told = curl("-F", "Button=Submit", *forms)
        assert told == {"message": f"{', '.join(AWKWARD)} upload task submitted."}
        told = curl("-F", "file=@-;filename=piped", given=large)
        assert told == {"message": "piped upload task submitted."}

    await nas.in_thread(upload)
    assert stored(nas) == {
        **{name: name.encode() + large for name in AWKWARD},
        "piped": large,
    }


WEBKIT = b"""POST /files/ HTTP/1.1
Host: nas
Content-Length: %d
Content-Type: multipart/form-data; boundary=----WebKitFormBoundaryePkpFF7tjBAqx29L
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Sec-Fetch-Site: same-origin
Origin: http://nas

""".replace(b"\n", b"\r\n")
WEBKIT_BODY = """------WebKitFormBoundaryePkpFF7tjBAqx29L
Content-Disposition: form-data; name="file"; filename="a %22b%22 é.txt"
Content-Type: text/plain

one
------WebKitFormBoundaryePkpFF7tjBAqx29L
Content-Disposition: form-data; name="file"; filename="a'\\<b>&c"
Content-Type: application/octet-stream


------WebKitFormBoundaryePkpFF7tjBAqx29L
Content-Disposition: form-data; name="Button"

Submit
------WebKitFormBoundaryePkpFF7tjBAqx29L--
""".replace("\n", "\r\n").encode()
GECKO = WEBKIT.replace(b"----WebKitFormBoundaryePkpFF7tjBAqx29L", b"----geckoformboundary1a2b")
GECKO_BODY = WEBKIT_BODY.replace(
    b"----WebKitFormBoundaryePkpFF7tjBAqx29L", b"----geckoformboundary1a2b"
)


@pytest.mark.parametrize(
    ("request_head", "body"), [(WEBKIT, WEBKIT_BODY), (GECKO, GECKO_BODY)], ids=["webkit", "gecko"]
)
@pytest_twisted.ensureDeferred
async def test_a_browser_without_scripts_uploads_and_sees_a_page(
    nas: Nas, request_head: bytes, body: bytes
) -> None:
    status, headers, page = await nas.in_thread(ask, nas, request_head % len(body) + body)
    assert status == 202
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    shown = "a &quot;b&quot; é.txt, a&#x27;\\&lt;b&gt;&amp;c upload task submitted."
    assert shown in page.decode() and b"<b>" not in page
    assert stored(nas) == {'a "b" é.txt': b"one", "a'\\<b>&c": b""}


@pytest_twisted.ensureDeferred
async def test_the_document_for_one_file_is_exactly_that_of_simple_fs(nas: Nas) -> None:
    sent = post(form(field('form-data; name="Button"', b"Submit"), file("气.txt", b"x")))
    status, _, body = await nas.in_thread(ask, nas, sent)
    assert status == 202
    assert body == '{"message": "气.txt upload task submitted."}'.encode()


@pytest_twisted.ensureDeferred
async def test_what_is_uploaded_under_any_name_is_downloaded_under_that_name(nas: Nas) -> None:
    names = FILENAMES.filter(
        lambda name: (
            not re.search(r"[\x00-\x1f\x7f]", name)
            and len(name.encode()) < 256
            and not {".", "..", ".httpnas"} & set(name.split("/"))
            and name.strip("/") == re.sub("//+", "/", name) == name
        )
    )

    def check(client: Client) -> None:
        count = 0

        @given(names, st.binary(max_size=100))
        @settings(max_examples=100, deadline=None)
        def upload_and_read(name: str, content: bytes) -> None:
            # Below a number of its own, as one name may be the folder of another.
            nonlocal count
            count += 1
            client.send(post(form(file(name, content)), path=b"%d/" % count))
            assert_is_accepted(client.answer(), f"{count}/{name}")
            client.send(get(f"{count}/{name}"))
            status, headers, body = client.answer()
            assert (status, body) == (200, content)
            leaf = name.rpartition("/")[2]
            assert saved_as(headers["content-disposition"]).endswith("_" + leaf)

        upload_and_read()

    with Client(nas.port) as client:
        await nas.in_thread(check, client)


# Uploads


@pytest_twisted.ensureDeferred
async def test_every_part_with_a_filename_is_stored_whatever_its_field_is_called(nas: Nas) -> None:
    body = form(
        field('form-data; name="file"', b"not a file"),
        file("a", b"first"),
        field('form-data; name="other"; filename="b"', b"second", b"Content-Type: image/png"),
        file("", b"nothing was chosen here"),
        field('form-data; filename="c"', b""),
    )
    assert_is_accepted(await nas.in_thread(ask, nas, post(body)), "a", "b", "c")
    assert stored(nas) == {"a": b"first", "b": b"second", "c": b""}
    assert nas.leftovers() == []


@pytest.mark.parametrize(
    ("path", "filename", "name"),
    [
        (b"folder/", "a", "folder/a"),
        (b"folder", "a", "folder/a"),
        (b"new/deep%2F/x/", "a", "new/deep/x/a"),
        (b"", "tree/sub/a", "tree/sub/a"),
        (b"folder/", "/a", "folder/a"),
        (b"folder/", "f/wc", "folder/f/wc"),
        (b"folder/", "%2e%2e", "folder/%2e%2e"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_files_go_into_the_folder_that_is_named(
    nas: Nas, path: bytes, filename: str, name: str
) -> None:
    before = furnish(nas)
    answer = await nas.in_thread(ask, nas, post(form(file(filename, b"x")), path=path))
    assert_is_accepted(answer, name)
    assert stored(nas) == {**before, name: b"x"}


@pytest_twisted.ensureDeferred
async def test_a_file_is_replaced_and_of_two_with_one_name_the_last_remains(nas: Nas) -> None:
    furnish(nas)
    body = form(file("f", b"first"), file("f", b"second"))
    assert_is_accepted(await nas.in_thread(ask, nas, post(body)), "f", "f")
    assert stored(nas) == {"f": b"second"}


TRICKY = form(
    field('form-data; name="x"', b"\r\n--" + BOUNDARY[:-1].encode()),
    file("a", b"\r\n--" + BOUNDARY[:5].encode() + b"\r\n\r\n--\r\n" * 3),
    file("b", b""),
    file("c", b"--" + BOUNDARY.encode() + b"--"),
)
TRICKY_FILES = {
    "a": b"\r\n--" + BOUNDARY[:5].encode() + b"\r\n\r\n--\r\n" * 3,
    "b": b"",
    "c": b"--" + BOUNDARY.encode() + b"--",
}


def chunked(body: bytes, size: int) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 17, 1 << 20, None])
@pytest_twisted.ensureDeferred
async def test_a_form_in_pieces_of_any_size_is_the_same(nas: Nas, size: int | None) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            if size is None:
                client.send(head(len(TRICKY)), *(bytes([byte]) for byte in TRICKY))
            else:
                client.send(head(None) + chunked(TRICKY, size))
            assert_is_accepted(client.answer(), "a", "b", "c")
            client.send(HEALTH)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == TRICKY_FILES


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("alone", [2, 12])
@pytest_twisted.ensureDeferred
async def test_a_form_of_which_the_end_comes_alone_is_answered(
    nas: Nas, alone: int, length: bool
) -> None:
    body = form(file("a", b"x"))
    if length:
        sent, upto = head(len(body)) + body, -alone
    else:
        sent, upto = (
            head(None) + chunked(body, len(body) - alone),
            -alone - len(b"2\r\n\r\n0\r\n\r\n"),
        )

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(sent[:upto])
            if alone == 2:
                wait_until((nas.root / "a").exists, "the file")
                wait_until(lambda: not nas.engine.trace.running(), "the file to be done")
            client.send(sent[upto:] + HEALTH)
            assert_is_accepted(client.answer(), "a")
            assert client.answer()[0] == 200

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_many_files_that_come_at_once_with_the_next_requests_are_all_stored(nas: Nas) -> None:
    names = [f"file-{number}" for number in range(300)]
    body = form(*(file(name, name.encode()) for name in names))

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(body) + post(form(file("last", bytes(100_000)))) + HEALTH)
            assert_is_accepted(client.answer(), *names)
            assert_is_accepted(client.answer(), "last")
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == {**{name: name.encode() for name in names}, "last": bytes(100_000)}


@pytest_twisted.ensureDeferred
async def test_what_stands_behind_the_end_of_the_form_is_ignored(nas: Nas) -> None:
    body = form(file("a", b"x"), end=b"--\r\n" + file("b", b"y") + b"\r\n--" + BOUNDARY.encode())
    assert_is_accepted(await nas.in_thread(ask, nas, post(body)), "a")
    assert stored(nas) == {"a": b"x"}


@pytest_twisted.ensureDeferred
async def test_the_answer_comes_when_all_is_published_and_on_stable_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = Nas(tmp_path / "root", durable=True)
    order: list[str] = []
    reached, go_on = threading.Event(), threading.Event()
    sync, sync_folder, publish = Storage.sync, Storage.sync_folder, Upload.publish

    def noted_sync(storage: Storage, fd: int) -> None:
        sync(storage, fd)
        order.append("content")

    def noted_sync_folder(storage: Storage, fd: int) -> None:
        sync_folder(storage, fd)
        if (tmp_path / "root" / "b").exists():
            reached.set()
            assert go_on.wait(PATIENCE)
            order.append("entry of b")

    def noted_publish(upload: Upload, *args: Any) -> Any:
        version = publish(upload, *args)
        order.append("published " + upload._name.decode())
        return version

    monkeypatch.setattr(Storage, "sync", noted_sync)
    monkeypatch.setattr(Storage, "sync_folder", noted_sync_folder)
    monkeypatch.setattr(Upload, "publish", noted_publish)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(form(file("a", b"x"), file("b", b"y"))))
            assert reached.wait(PATIENCE)
            let_daemon_read()
            client.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            client.socket.settimeout(PATIENCE)
            go_on.set()
            assert_is_accepted(client.answer(), "a", "b")

    try:
        await nas.in_thread(talk)
        assert order == ["content", "published a", "content", "entry of b", "published b"]
    finally:
        go_on.set()
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_a_file_is_there_as_soon_as_its_part_has_ended(nas: Nas) -> None:
    furnish(nas)
    body = form(file("a", b"first"), file("f", bytes(100_000)))

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(len(body)) + body[:-50_000])
            wait_until((nas.root / "a").exists, "the first file")
            assert (nas.root / "a").read_bytes() == b"first"
            wait_until(nas.leftovers, "the second file to be begun")
            assert (nas.root / "f").read_bytes() == OLD
            client.send(body[-50_000:])
            assert_is_accepted(client.answer(), "a", "f")

    await nas.in_thread(talk)
    assert stored(nas) == {"a": b"first", "f": bytes(100_000)}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_many_forms_at_once_do_not_mix(nas: Nas) -> None:
    crowd = 24

    def contents(number: int) -> dict[str, bytes]:
        return {
            f"{number}-{part}": (b"%d %d|" % (number, part)) * 20_000 * part for part in range(3)
        }

    def upload(client: Client, number: int) -> None:
        body = form(*(file(name, content) for name, content in contents(number).items()))
        client.send(post(body, path=b"%d" % (number % 5)))
        names = [f"{number % 5}/{name}" for name in contents(number)]
        assert_is_accepted(client.answer(), *names)

    def talk() -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(nas.port)) for _ in range(crowd)]
            threads = [
                threading.Thread(target=upload, args=[client, number])
                for number, client in enumerate(clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    await nas.in_thread(talk)
    assert stored(nas) == {
        f"{number % 5}/{name}": content
        for number in range(crowd)
        for name, content in contents(number).items()
    }
    assert nas.leftovers() == []


# Backpressure


@pytest_twisted.ensureDeferred
async def test_a_disk_that_takes_nothing_stops_the_client_and_nothing_is_kept_elsewhere(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    write = Upload.write

    def stuck(upload: Upload, chunks: Sequence[bytes]) -> None:
        assert go_on.wait(PATIENCE)
        write(upload, chunks)

    def open_files() -> set[str]:
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.stat(f"/proc/self/fd/{fd}").st_mode):
                    found.add(os.readlink(f"/proc/self/fd/{fd}"))
        return found

    monkeypatch.setattr(Upload, "write", stuck)
    large = bytes(range(256)) * (32 * MIB // 256)
    body = form(file("a", large), file("b", b"second"))
    before = open_files()

    def talk() -> None:
        with Client(nas.port, buffer=MIB) as client:
            sender = threading.Thread(target=client.socket.sendall, args=[post(body)])
            sender.start()
            wait_until(lambda: nas.site.handlers.running)
            (channel,) = nas.site.channels
            request_body = channel.requests[0].body
            wait_until(lambda: request_body.received >= HIGH_WATER, "the first mebibytes")
            wait_until(lambda: request_body.paused, "the daemon to stop reading")
            let_daemon_read()
            assert request_body.received < HIGH_WATER + MIB
            assert sender.is_alive()
            assert len(nas.leftovers()) == 1
            assert all(path.startswith(str(nas.root)) for path in open_files() - before)
            go_on.set()
            assert_is_accepted(client.answer(), "a", "b")
            sender.join()

    try:
        await nas.in_thread(talk)
    finally:
        go_on.set()
    assert stored(nas) == {"a": large, "b": b"second"}


@pytest_twisted.ensureDeferred
async def test_while_one_file_is_published_little_of_the_next_is_read(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    publish = Upload.publish

    def stuck(upload: Upload, *args: Any) -> Any:
        reached.set()
        assert go_on.wait(PATIENCE)
        return publish(upload, *args)

    monkeypatch.setattr(Upload, "publish", stuck)
    large = bytes(range(256)) * (16 * MIB // 256)
    body = form(file("a", b"first"), file("b", large))

    def talk() -> None:
        with Client(nas.port, buffer=MIB) as client:
            sender = threading.Thread(target=client.socket.sendall, args=[post(body)])
            sender.start()
            assert reached.wait(PATIENCE)
            (channel,) = nas.site.channels
            wait_until(lambda: channel.requests[0].body.paused, "the daemon to stop reading")
            let_daemon_read()
            assert channel.requests[0].body.received < MIB
            go_on.set()
            assert_is_accepted(client.answer(), "a", "b")
            sender.join()

    try:
        await nas.in_thread(talk)
    finally:
        go_on.set()
    assert stored(nas) == {"a": b"first", "b": large}


# What the headers tell


DIGEST = b"Content-Digest: sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
EARLY: dict[str, tuple[int, bytes]] = {
    "no type": (415, head(10, kind=b"")),
    "another type": (415, head(10, kind=b"Content-Type: text/plain")),
    "another kind of form": (
        415,
        head(10, kind=b"Content-Type: application/x-www-form-urlencoded"),
    ),
    "no boundary": (400, head(10, kind=b"Content-Type: multipart/form-data")),
    "packed": (415, head(10, b"Content-Encoding: gzip")),
    "a digest": (400, head(10, DIGEST)),
    "a bad digest": (400, head(10, b"Content-MD5: x")),
    "too large": (413, head(LIMIT + 1)),
    "upwards": (400, head(10, path=b"../x/")),
    "a bad escape": (400, head(10, path=b"%zz/")),
    "a control character": (400, head(10, path=b"%00/")),
    "too long a name": (414, head(10, path=b"x/" * 2500)),
    "the daemon's own": (403, head(10, path=b".httpnas/")),
    "in the daemon's own": (403, head(10, path=b".httpnas/run")),
    "from another site": (403, head(10, b"Sec-Fetch-Site: cross-site")),
    "from a sibling": (403, head(10, b"Sec-Fetch-Site: same-site")),
    "from another origin": (403, head(10, b"Origin: http://other")),
    "from nowhere": (403, head(10, b"Origin: null")),
    "another method": (405, head(10).replace(b"POST", b"PUT", 1)),
}


@pytest.mark.parametrize("what", EARLY)
@pytest_twisted.ensureDeferred
async def test_what_the_headers_tell_is_refused_without_asking_for_the_form(
    small: Nas, what: str
) -> None:
    status, sent = EARLY[what]
    before = furnish(small)

    def talk() -> None:
        with Client(small.port) as client:
            client.send(sent.replace(b"\r\n\r\n", b"\r\n" + EXPECT + b"\r\n\r\n"))
            assert_is_problem(client.answer(), status)
            assert client.rest() == b""

    await small.in_thread(talk)
    assert stored(small) == before
    assert small.leftovers() == []


@pytest.mark.parametrize("what", [what for what in EARLY if what != "too large"])
@pytest_twisted.ensureDeferred
async def test_after_an_early_refusal_the_connection_goes_on_behind_the_form(
    small: Nas, what: str
) -> None:
    status, sent = EARLY[what]
    furnish(small)

    def talk() -> None:
        with Client(small.port) as client:
            client.send(sent + b"DELETE /fi" + post(form(file("a", b"x"))) + HEALTH)
            assert_is_problem(client.answer(), status)
            assert_is_accepted(client.answer(), "a")
            assert client.answer()[0] == 200

    await small.in_thread(talk)
    assert stored(small) == {"f": OLD, "a": b"x"}


@pytest_twisted.ensureDeferred
async def test_more_than_there_is_space_for_is_refused_without_asking_for_it(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = form(file("a", b"x"))
    monkeypatch.setattr(nas.storage.volume, "free_bytes", lambda: len(body))

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(len(body) + 1, EXPECT))
            assert_is_problem(client.answer(), 507)
            assert client.rest() == b""
        with Client(nas.port) as client:
            client.send(head(len(body), EXPECT))
            assert client.answer()[0] == 100
            client.send(body)
            assert_is_accepted(client.answer(), "a")

    await nas.in_thread(talk)
    assert stored(nas) == {"a": b"x"}


@pytest_twisted.ensureDeferred
async def test_a_form_is_not_asked_for_before_the_space_is_known_and_then_once(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = threading.Event()
    refuse_full = nas.storage.volume.refuse_full

    def slow(length: int | None) -> None:
        assert ready.wait(PATIENCE)
        refuse_full(length)

    monkeypatch.setattr(nas.storage.volume, "refuse_full", slow)
    body = form(file("a", b"x"), file("b", b"y"))

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(len(body), EXPECT))
            wait_until(lambda: nas.site.handlers.running)
            let_daemon_read()
            client.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            client.socket.settimeout(PATIENCE)
            ready.set()
            assert client.answer() == (100, {}, b"")
            client.send(body[:50], body[50:])
            assert_is_accepted(client.answer(), "a", "b")

    await nas.in_thread(talk)


@pytest.mark.parametrize("fields", [(b"Sec-Fetch-Site: same-origin",), (b"Origin: http://nas",)])
@pytest_twisted.ensureDeferred
async def test_the_daemons_own_page_may_send_forms(nas: Nas, fields: tuple[bytes, ...]) -> None:
    answer = await nas.in_thread(ask, nas, post(form(file("a", b"x")), *fields))
    assert_is_accepted(answer, "a")


# What is wrong with a form


@pytest.mark.parametrize(
    "body",
    [
        form(),
        form(field('form-data; name="file"', b"x")),
        form(file("", b"x")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_form_without_a_file_is_refused(nas: Nas, body: bytes) -> None:
    assert_is_problem(await nas.in_thread(ask, nas, post(body)), 400)
    assert stored(nas) == {}


@pytest.mark.parametrize("what", BROKEN)
@pytest_twisted.ensureDeferred
async def test_of_a_broken_form_the_parts_that_had_ended_are_stored_and_told(
    nas: Nas, what: str
) -> None:
    tail, _ = BROKEN[what]
    names = ["a", "b"] if tail.startswith(b"\r\n") else ["a"]
    body = form(file("a", b"first"), file("b", b"second"), end=tail)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(body) + HEALTH)
            assert_is_problem(client.answer(), 400, names)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == {name: {"a": b"first", "b": b"second"}[name] for name in names}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_nothing_of_a_part_that_does_not_end_is_stored(nas: Nas) -> None:
    furnish(nas)
    body = form(file("a", b"first"), file("f", bytes(3 * MIB)))[: -len(BOUNDARY)]
    assert_is_problem(await nas.in_thread(ask, nas, post(body)), 400, ["a"])
    assert stored(nas) == {"a": b"first", "f": OLD}
    assert nas.leftovers() == []


BAD_NAMES: dict[str, tuple[int, str]] = {
    "upwards": (400, "../x"),
    "upwards within": (400, "x/../../y"),
    "itself": (400, "."),
    "nothing but slashes": (400, "//"),
    "a control character": (400, "a\tb"),
    "a line's end": (400, "a%0D%0Ab"),
    "a zero": (400, "a\x00b"),
    "a long component": (400, "x" * 256),
    "a long name": (414, "x/" * 2500 + "x"),
    "the daemon's own": (403, ".httpnas/x"),
    "the daemon's folder": (403, "/.httpnas"),
    "a folder": (409, "folder"),
    "below a file": (409, "f/x"),
}


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("what", BAD_NAMES)
@pytest_twisted.ensureDeferred
async def test_a_name_that_can_not_be_is_refused_and_what_came_before_is_told(
    nas: Nas, what: str, at: int
) -> None:
    status, name = BAD_NAMES[what]
    before = furnish(nas)
    parts = [*[file("first", b"1")][:at], file(name, b"x"), file("last", b"2")]

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(form(*parts)) + HEALTH)
            assert_is_problem(client.answer(), status, ["first"][:at])
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == {**before, **({"first": b"1"} if at else {})}
    assert nas.leftovers() == []


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(("name", "status"), [("..", 400), ("folder", 409), ("f", 412)])
@pytest_twisted.ensureDeferred
async def test_what_is_refused_in_the_middle_is_told_at_once_and_the_rest_is_dropped(
    nas: Nas, name: str, status: int, length: bool
) -> None:
    furnish(nas)
    body = form(file("first", b"1"), file(name, bytes(100_000)), file("last", b"2"))
    if not length:
        body = chunked(body, 50_000)

    def talk() -> None:
        with Client(nas.port) as client:
            top = head(len(body) if length else None, b"If-None-Match: *")
            client.send(top + body[:60_000])
            assert_is_problem(client.answer(), status, ["first"])
            client.send(body[60_000:80_000], body[80_000:] + HEALTH)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == {"f": OLD, "first": b"1"}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_name_of_nothing_but_slashes_does_not_stand_for_the_folder(nas: Nas) -> None:
    answer = await nas.in_thread(ask, nas, post(form(file("/", b"x")), path=b"new/folder/"))
    assert_is_problem(answer, 400, [])
    assert stored(nas) == {}


@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails_in_the_second_part_is_told_with_what_was_stored(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Upload.write

    def full(upload: Upload, chunks: Sequence[bytes]) -> None:
        if upload._name == b"b" and chunks:
            raise OSError(28, "No space left on device")
        write(upload, chunks)

    monkeypatch.setattr(Upload, "write", full)

    def talk() -> None:
        for size in (10, 8 * MIB):
            body = form(file("a", b"first"), file("b", bytes(size)), file("c", b"third"))
            with Client(nas.port) as client:
                sender = threading.Thread(target=client.socket.sendall, args=[post(body)])
                sender.start()
                assert_is_problem(client.answer(), 507, ["a"])
                sender.join()

    await nas.in_thread(talk)
    await nas.at_rest()
    assert stored(nas) == {"a": b"first"}
    assert nas.leftovers() == []


CONDITIONS: dict[str, tuple[tuple[bytes, ...], list[str], int, list[str]]] = {
    "create only": ((b"If-None-Match: *",), ["new", "f", "last"], 412, ["new"]),
    "create only, twice the same": ((b"If-None-Match: *",), ["new", "new"], 412, ["new"]),
    "create only, at first": ((b"If-None-Match: *",), ["f", "new"], 412, []),
    "replace only": ((b"If-Match: *",), ["f", "new"], 412, ["f"]),
    "another version": ((b'If-Match: "x"',), ["f"], 412, []),
    "unchanged": ((b"If-Unmodified-Since: Thu, 01 Jan 1970 00:00:01 GMT",), ["f"], 412, []),
}


@pytest.mark.parametrize("what", CONDITIONS)
@pytest_twisted.ensureDeferred
async def test_conditions_hold_for_each_file(nas: Nas, what: str) -> None:
    fields, names, status, done = CONDITIONS[what]
    before = furnish(nas)
    body = form(*(file(name, b"%d" % number) for number, name in enumerate(names)))
    assert_is_problem(await nas.in_thread(ask, nas, post(body, *fields)), status, done)
    assert stored(nas) == {**before, **{name: b"%d" % n for n, name in enumerate(done)}}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_of_two_forms_that_only_create_one_wins(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    write = Upload.write

    def together(upload: Upload, chunks: Sequence[bytes]) -> None:
        both.wait(PATIENCE)
        write(upload, chunks)

    def upload(content: bytes) -> Answer:
        body = form(file("a", content))
        return ask(nas, post(body, b"If-None-Match: *"))

    def talk() -> list[Answer]:
        answers: list[Answer] = []
        contents = [b"1" * MIB, b"2" * MIB]
        threads = [
            threading.Thread(target=lambda content=content: answers.append(upload(content)))
            for content in contents
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(answers)

    monkeypatch.setattr(Upload, "write", together)
    monkeypatch.setattr(Turns, "take", lambda self, name: contextlib.AsyncExitStack())
    won, lost = await nas.in_thread(talk)
    assert_is_accepted(won, "a")
    assert_is_problem(lost, 412, [])


@pytest.mark.parametrize("length", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_form_over_the_limit_is_refused_and_what_had_ended_is_told(
    small: Nas, length: bool
) -> None:
    body = form(file("a", b"first"), file("b", bytes(LIMIT)))

    def talk() -> Answer:
        with Client(small.port) as client:
            if length:
                client.send(head(len(body)))
            else:
                client.send(head(None) + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
            return client.answer()

    answer = await small.in_thread(talk)
    assert_is_problem(answer, 413, None if length else ["a"])
    await small.at_rest()
    assert stored(small) == ({} if length else {"a": b"first"})
    assert small.leftovers() == []


# Clients that go away


@pytest.mark.parametrize("ending", ["end", "reset"])
@pytest.mark.parametrize("size", [10, 5 * MIB])
@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_in_the_second_part_has_stored_the_first(
    nas: Nas, size: int, ending: str
) -> None:
    furnish(nas)
    body = form(file("a", b"first"), file("f", bytes(size)), file("c", b"third"))
    upto = body.index(bytes(size)) + size - 5

    def vanish() -> None:
        with Client(nas.port) as client:
            client.send(head(len(body)) + body[:upto])
            wait_until(nas.leftovers, "the second file to be begun")
            if ending == "reset":
                linger = struct.pack("ii", 1, 0)
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    await nas.in_thread(vanish)
    await nas.at_rest()
    assert stored(nas) == {"a": b"first", "f": OLD}
    assert nas.leftovers() == []
    ended = nas.engine.trace.record()["ended"]
    assert [(each["name"], each["outcome"]) for each in ended] == [
        ("/f", "client gone"),
        ("/a", "done"),
    ]


@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_anywhere_leaves_whole_files_only(nas: Nas) -> None:
    sent = post(TRICKY)

    def vanish(at: int) -> None:
        with Client(nas.port) as client:
            client.send(sent[:at])
            if at % 2:
                let_daemon_read()

    seen: set[frozenset[str]] = set()
    for at in range(0, len(sent), 9):
        await nas.in_thread(vanish, at)
        await nas.at_rest()
        left = stored(nas)
        assert left.items() <= TRICKY_FILES.items(), at
        assert nas.leftovers() == []
        seen.add(frozenset(left))
    assert frozenset() in seen and frozenset("ab") in seen


# The trace


@pytest_twisted.ensureDeferred
async def test_every_part_is_a_transfer_of_its_own(nas: Nas) -> None:
    body = form(file("a", b"first"), field('form-data; name="x"', b"y"), file("b", bytes(70_000)))
    broken = form(file("c", b"third"), file("d", b"fourth"))[:-20]

    def talk() -> Any:
        with Client(nas.port) as client:
            client.send(post(body, path=b"in/") + post(broken))
            assert client.answer()[0] == 202
            assert client.answer()[0] == 400
            client.send(b"GET /transfers HTTP/1.1\r\n" + HOST + b"\r\n")
            return json.loads(client.answer()[2])

    trace = await nas.in_thread(talk)
    assert trace["running"] == []
    assert [(t["verb"], t["name"], t["bytes"], t["outcome"]) for t in trace["ended"]] == [
        ("upload", "/d", 6, "refused"),
        ("upload", "/c", 5, "done"),
        ("upload", "/in/b", 70_000, "done"),
        ("upload", "/in/a", 5, "done"),
    ]
    assert trace["ended"][0]["status"] == 400
    assert trace["ended"][2]["id"] == trace["ended"][3]["id"] != trace["ended"][1]["id"]


@pytest_twisted.ensureDeferred
async def test_a_part_that_runs_is_in_the_trace(nas: Nas) -> None:
    body = form(file("a", b"first"), file("b", bytes(70_000)))

    def second_part() -> list[dict[str, object]]:
        with Client(nas.port) as operator:
            operator.send(b"GET /transfers HTTP/1.1\r\nHost: x\r\n\r\n")
            running = json.loads(operator.answer()[2])["running"]
        # The file of the first may still be there, and the second's may be there before its bytes.
        return [transfer for transfer in running if transfer["name"] == "/b" and transfer["bytes"]]

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(len(body)) + body[:-40_000])
            (running,) = wait_until(second_part, "the second part")
            assert running["verb"] == "upload"
            assert 0 < running["bytes"] < 40_000
            client.send(body[-40_000:])
            assert client.answer()[0] == 202

    await nas.in_thread(talk)


# Downloads


def saved_as(disposition: str) -> str:
    """Return the name under which a client saves what has this Content-Disposition."""
    message = Message()
    message["Content-Disposition"] = disposition
    assert message.get_content_disposition() == "attachment"
    extended = re.search(r"filename\*=UTF-8''(\S+)\Z", disposition)
    plain = re.search(r'filename="([^"\\%]*)"', disposition)
    assert plain and plain[1].isascii(), disposition
    return unquote(extended[1], errors="strict") if extended else plain[1]


@pytest.mark.parametrize(
    ("name", "plain", "is_extended"),
    [
        ("a.txt", "a.txt", False),
        ("deep/er/b c;d=e.txt", "b c;d=e.txt", False),
        ("气.txt", "_.txt", True),
        ('a "b"', "a _b_", True),
        ("back\\slash", "back_slash", True),
        ("50%41", "50_41", True),
        ("it's", "it's", False),
        ("x" * 255, "x" * 255, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_download_is_an_attachment_with_the_time_in_its_name(
    nas: Nas, name: str, plain: str, is_extended: bool
) -> None:
    path = nas.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    before = datetime.now() - timedelta(seconds=1)
    status, headers, body = await nas.in_thread(ask, nas, get(name))
    after = datetime.now()
    assert (status, body) == (200, b"content")
    disposition = headers["content-disposition"]
    found = re.match(r'attachment; filename="download_(\d{14})_([^"]*)"(;|\Z)', disposition)
    assert found and found[2] == plain
    assert before <= datetime.strptime(found[1], "%Y%m%d%H%M%S") <= after
    assert ("filename*=" in disposition) == is_extended
    assert saved_as(disposition) == f"download_{found[1]}_{path.name}"


@pytest_twisted.ensureDeferred
async def test_ranges_and_conditions_hold_for_attachments(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"0123456789")

    def talk() -> None:
        with Client(nas.port) as client:

            def answer(*fields: bytes) -> Answer:
                client.send(get("f", *fields))
                return client.answer()

            status, headers, body = answer()
            assert (status, body) == (200, b"0123456789")
            etag = headers["etag"].encode()
            assert headers["x-content-type-options"] == "nosniff"
            status, headers, body = answer(b"Range: bytes=2-3")
            assert (status, body) == (206, b"23")
            assert headers["content-range"] == "bytes 2-3/10"
            assert "content-disposition" in headers
            assert answer(b'If-Range: "x"', b"Range: bytes=2-3")[::2] == (200, b"0123456789")
            for status, fields in (
                (416, (b"Range: bytes=10-",)),
                (412, (b'If-Match: "x"',)),
            ):
                refused = answer(*fields)
                assert_is_problem(refused, status)
                assert "content-disposition" not in refused[1]
            client.send(get("f", b"If-None-Match: " + etag))
            assert client.answer()[0] == 304
            client.send(get("f").replace(b"GET", b"HEAD"))
            client.send(HEALTH)

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_head_tells_of_the_attachment_and_sends_nothing(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"0123456789")
    sent = get("f", b"Connection: close").replace(b"GET", b"HEAD")
    top, _, rest = (await nas.talk(sent)).partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200 ") and rest == b""
    assert b"\r\nContent-Length: 10\r\n" in top + b"\r\n"
    assert b"\r\nContent-Disposition: attachment;" in top


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", 409),
        ("folder", 409),
        ("folder/", 409),
        ("none", 404),
        ("f/x", 404),
        ("../f", 400),
        (".httpnas/run", 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_file_can_not_be_downloaded(nas: Nas, name: str, status: int) -> None:
    furnish(nas)
    answer = await nas.in_thread(ask, nas, get(name))
    assert_is_problem(answer, status)
    assert "content-disposition" not in answer[1]


@pytest.mark.parametrize("path", [b"/files", b"/files/", b"/files/folder/x"])
@pytest_twisted.ensureDeferred
async def test_options_tell_the_methods(nas: Nas, path: bytes) -> None:
    status, headers, body = await nas.in_thread(
        ask, nas, b"OPTIONS %b HTTP/1.1\r\n%b\r\n" % (path, HOST)
    )
    assert (status, body) == (204, b"")
    assert headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"PATCH"])
@pytest_twisted.ensureDeferred
async def test_other_methods_are_refused(nas: Nas, method: bytes) -> None:
    before = furnish(nas)
    status, headers, _ = await nas.in_thread(
        ask, nas, b"%b /files/f HTTP/1.1\r\n%b\r\n" % (method, HOST)
    )
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    assert stored(nas) == before


@pytest_twisted.ensureDeferred
async def test_files_without_a_slash_takes_forms_too(nas: Nas) -> None:
    sent = post(form(file("a", b"x"))).replace(b"/files/", b"/files", 1)
    assert_is_accepted(await nas.in_thread(ask, nas, sent), "a")
    assert stored(nas) == {"a": b"x"}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (b"*/*", "application/json"),
        (b"application/json", "application/json"),
        (b"text/html", "text/html; charset=utf-8"),
        (b"text/html;q=0.1,application/json", "application/json"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_page_is_for_those_who_prefer_it(nas: Nas, accept: bytes, kind: str) -> None:
    sent = post(form(file("a", b"x")), b"Accept: " + accept)
    status, headers, _ = await nas.in_thread(ask, nas, sent)
    assert (status, headers["content-type"]) == (202, kind)


@pytest_twisted.ensureDeferred
async def test_the_names_in_one_form_are_bounded(nas: Nas) -> None:
    folder = "/".join(["x" * 200] * 19)
    parts = "".join(
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{folder}/{number}"\r\n\r\n'
        f"{number}\r\n"
        for number in range(120)
    )
    status, body, _ = await nas.fetch(
        "POST",
        "/files/",
        data=f"{parts}--b--\r\n".encode(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    problem = json.loads(body)
    assert (status, len(problem["stored"])) == (413, 69)
    assert sum(map(len, problem["stored"])) < (256 << 10) + 4096
    assert (nas.root / problem["stored"][-1]).read_bytes() == b"68"


@pytest_twisted.ensureDeferred
async def test_folded_header_lines_in_a_form_are_refused(nas: Nas) -> None:
    status, _, _ = await nas.fetch(
        "POST",
        "/files/",
        data=b'--b\r\nContent-Disposition: form-data; name="file";\r\n filename="f"\r\n\r\n1\r\n'
        b"--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert status == 400
    assert not (nas.root / "f").exists()
