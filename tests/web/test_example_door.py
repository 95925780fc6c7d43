"""A door is a module that parses, calls an operation and answers. This one reads, and is short."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted

from httpnas.fields.names import decode_name
from httpnas.files.content import entity_tag
from httpnas.files.files import Files
from httpnas.storage.listing import Folder
from httpnas.web.answers import answer_json
from httpnas.web.downloads import send_file
from httpnas.web.job import RequestJob
from httpnas.web.request import Request
from httpnas.web.routing import Router
from tests.harness import Nas


class RawDoor:
    """``/raw``: files as they are, and what is known of them as JSON at ``?info``."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def mount(self, router: Router) -> None:
        router.add_page("raw", "/raw/<rest:_>", self.download)

    async def download(self, request: Request) -> None:
        request.name = name = decode_name(request.path[len(b"/raw") :])
        async with self._files.open(RequestJob(request), name) as opened:
            if isinstance(opened, Folder):
                answer_json(request, {"type": "folder"})
            elif request.query == b"info":
                tag = entity_tag(opened.version).decode()
                answer_json(request, {"size": opened.version.size, "etag": tag})
            else:
                await send_file(self._files, request, name, opened)


@pytest_twisted.ensureDeferred
async def test_a_door_of_one_module_has_all_that_doors_have(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", more_doors=lambda engine: [RawDoor(engine.files)])
    try:
        (nas.root / "f.txt").write_bytes(b"0123456789")
        status, body, headers = await nas.fetch("GET", "/raw/f.txt", headers={"Range": "bytes=2-4"})
        assert (status, body) == (206, b"234")
        assert (await nas.fetch("GET", "/raw/f.txt?info"))[1].startswith(b'{"size": 10, "etag": ')
        etag = headers.getRawHeaders("ETag")
        assert (await nas.fetch("GET", "/raw/f.txt", headers={"If-None-Match": etag}))[0] == 304
        assert (await nas.fetch("GET", "/raw/"))[1] == b'{"type": "folder"}'
        status, body, _ = await nas.fetch("GET", "/raw/missing")
        assert status == 404
        assert b"/docs/problems#no-such-file" in body
        assert (await nas.fetch("GET", "/raw/%2e%2e/f.txt"))[0] == 400
        assert (await nas.fetch("PUT", "/raw/f.txt"))[0] == 405
        record = nas.engine.trace.record()["ended"]
        assert [transfer["verb"] for transfer in record] == ["download"]
    finally:
        await nas.stop()
