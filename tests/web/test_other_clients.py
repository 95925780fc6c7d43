"""What clients of other servers send, as bytes: it works, or is refused in words."""

from __future__ import annotations

import json

import pytest
import pytest_twisted

from tests.harness import Nas


async def asked(nas: Nas, target: str, *lines: str, body: bytes = b"") -> tuple[int, str, bytes]:
    """Send a request; return the status, the code of the problem if it is one, and the body."""
    head = [f"{target} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
    answer = await nas.talk("\r\n".join([*head, *lines, "", ""]).encode() + body)
    status, content = int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
    code = json.loads(content)["type"].partition("#")[2] if status >= 400 else ""
    return status, code, content


@pytest.mark.parametrize("range_", ["bytes 5-9/10", "bytes 0-9/10", "bytes */10", ""])
@pytest.mark.parametrize(
    "target", ["PUT /file/f", "POST /file/f", "PUT /file/f/mv", "POST /files/"]
)
@pytest_twisted.ensureDeferred
async def test_a_body_that_says_where_it_belongs_is_not_put_elsewhere(
    nas: Nas, target: str, range_: str
) -> None:
    """``curl -C 5 -T f`` sends the rest of a file, and where it begins."""
    (nas.root / "f").write_bytes(b"01234")
    field = "Content-Type: multipart/form-data; boundary=b" if "files" in target else "X: y"
    lines = [f"Content-Range: {range_}", field]
    status, code, body = await asked(nas, target, *lines, body=b"56789")
    assert (status, code) == (400, "partial-body")
    assert b"Upload-Offset" in body
    assert (nas.root / "f").read_bytes() == b"01234"


FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nnew\r\n--b--\r\n'


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "Multipart/Form-Data"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest_twisted.ensureDeferred
async def test_the_envelope_of_a_form_is_not_stored_as_a_file(
    nas: Nas, method: str, kind: str
) -> None:
    """``curl -F file=@x http://nas/file/NAME``."""
    (nas.root / "f").write_bytes(b"old")
    target = f"{method} /file/f"
    status, code, body = await asked(nas, target, f"Content-Type: {kind}", body=FORM)
    assert (status, code) == (415, "form-for-file")
    assert b"/files/" in body
    assert (nas.root / "f").read_bytes() == b"old"
    status, _, _ = await asked(nas, target, "Content-Type: multipart/mixed; boundary=b", body=FORM)
    assert status == 200


@pytest.mark.parametrize(
    "target",
    [
        "POST /file/inbox/",
        "POST /file/inbox%2F",
        "POST /file/inbox//",
        "POST /file/repo/?create=true",
        "PUT /file/f/",
        "PUT /file/inbox/",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_name_with_a_slash_at_its_end_is_not_made_a_file(nas: Nas, target: str) -> None:
    """``curl -T f http://nas/file/inbox/`` with a method of its own, and restic."""
    (nas.root / "f").write_bytes(b"old")
    status, code, body = await asked(nas, target, body=b"new")
    assert (status, code) == (409, "is-folder")
    assert b"slash" in body
    assert [entry.name for entry in nas.root.iterdir() if entry.name != ".httpnas"] == ["f"]
    assert (nas.root / "f").read_bytes() == b"old"


@pytest.mark.parametrize("target", ["DELETE /file/f/", "PUT /file/f//mv"])
@pytest_twisted.ensureDeferred
async def test_a_file_is_not_changed_as_if_it_were_a_folder(nas: Nas, target: str) -> None:
    (nas.root / "f").write_bytes(b"old")
    status, code, words = await asked(nas, target, body=b'{"path": "g"}')
    assert (status, code) == (409, "not-a-folder")
    assert b"slash" in words
    assert (nas.root / "f").read_bytes() == b"old"


@pytest_twisted.ensureDeferred
async def test_a_folder_may_be_named_with_a_slash_at_its_end(nas: Nas) -> None:
    (nas.root / "d").mkdir()
    assert (await asked(nas, "PUT /file/d//mv", body=b'{"path": "e"}'))[0] == 200
    assert (nas.root / "e").is_dir()
    assert (await asked(nas, "DELETE /file/e/"))[0] == 200
    assert (await asked(nas, "DELETE /file/e/"))[1] == "no-such-file"


@pytest.mark.parametrize("name", ["x/", "x//", "d/x/"])
@pytest_twisted.ensureDeferred
async def test_a_file_in_a_form_is_not_named_like_a_folder(nas: Nas, name: str) -> None:
    form = FORM.replace(b'"x"', f'"{name}"'.encode())
    kind = "Content-Type: multipart/form-data; boundary=b"
    assert (await asked(nas, "POST /files/", kind, body=form))[:2] == (400, "bad-name")
    assert [entry.name for entry in nas.root.iterdir()] == [".httpnas"]


@pytest_twisted.ensureDeferred
async def test_dots_that_lead_nowhere_are_dropped(nas: Nas) -> None:
    """apt's flat repositories: ``deb http://nas/file/apt ./``, and ``Filename: ./x.deb``."""
    for target in ("/file/apt/./Packages", "/file/./apt/%2E%2Fx.deb"):
        assert (await asked(nas, f"POST {target}", body=b"new"))[0] == 200
        assert (await asked(nas, f"GET {target}"))[2] == b"new"
    assert sorted(entry.name for entry in (nas.root / "apt").iterdir()) == ["Packages", "x.deb"]
    for target in ("/file/apt/../f", "/file/apt/%2e%2e", "/file/./../apt"):
        assert (await asked(nas, f"GET {target}"))[:2] == (400, "bad-name")
    assert (await asked(nas, "GET /file/./.httpnas/format"))[0] == 404
    assert (await asked(nas, "POST /file/./.httpnas/./x", body=b"x"))[0] == 403
    assert (await asked(nas, "DELETE /file/."))[0] == 403


@pytest.mark.parametrize(
    ("disposition", "agent"),
    [
        # .NET's MultipartFormDataContent
        ('form-data; name=file; filename="=?utf-8?B?w6kudHh0?="', ""),
        (
            "form-data; name=file; filename=\"=?utf-8?B?w6kudHh0?=\"; filename*=utf-8''%C3%A9.txt",
            "",
        ),
        # urllib3 before 2.0
        ("form-data; name=\"file\"; filename*=utf-8''%C3%A9.txt", "python-requests/2.25.1"),
        ('form-data; name="file"; filename="%C3%A9.txt"', "Python/3.12 aiohttp/3.13.2"),
        ('form-data; name="file"; filename="é.txt"', "Mozilla/5.0"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file_in_a_form_has_the_name_that_its_client_means(
    nas: Nas, disposition: str, agent: str
) -> None:
    form = f"--b\r\nContent-Disposition: {disposition}\r\n\r\nnew\r\n--b--\r\n".encode()
    kind = "Content-Type: multipart/form-data; boundary=b"
    status, _, body = await asked(nas, "POST /files/", kind, f"User-Agent: {agent}", body=form)
    assert (status, json.loads(body)) == (202, {"message": "é.txt upload task submitted."})
    assert (nas.root / "é.txt").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["filename*=UTF-16''%00x", 'filename="=?utf-8?B?_?="'])
@pytest_twisted.ensureDeferred
async def test_a_name_that_can_not_be_decoded_is_refused_in_words(nas: Nas, name: str) -> None:
    form = f"--b\r\nContent-Disposition: form-data; {name}\r\n\r\nnew\r\n--b--\r\n".encode()
    kind = "Content-Type: multipart/form-data; boundary=b"
    status, code, body = await asked(nas, "POST /files/", kind, body=form)
    assert (status, code) == (400, "bad-form")
    assert b"name of a file" in body
