"""What clients send that were made for other servers, as bytes: it works, or is refused in words."""

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
