"""What every door needs to turn a request into storage operations, and to answer it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from httpnas.fields.conditions import Conditions
from httpnas.storage.facts import Facts
from httpnas.storage.listing import Folder
from httpnas.storage.store import Storage, StoredFile
from httpnas.storage.version import Check, Find, Version
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk
from httpnas.transfer.turns import Turns
from httpnas.transfer.watchdog import Watchdog
from httpnas.web.problems import Problem, busy
from httpnas.web.request import Request
from httpnas.web.trace import Trace

T = TypeVar("T")


class Exchange:
    """What the doors share.

    :param max_upload: bytes a body may have, None for any number.
    :param patience: seconds that a disk is waited for that hangs.
    :ivar watchdog: knows whether the storage answers.
    :ivar probe: looks whether the storage can be written to.
    :ivar space: looks how much there is of what files take.
    """

    def __init__(
        self, storage: Storage, disk: Disk, max_upload: int | None = None, patience: float = inf
    ) -> None:
        self.disk = disk
        self.watchdog = Watchdog(disk, storage, patience)
        self.max_upload = max_upload
        self.turns = Turns()
        self.trace = Trace()
        self.probe = self.watchdog.probe
        self.space = disk.shared(self._space)

    @property
    def storage(self) -> Storage:
        """The storage, which is another object after it has gone and come back."""
        return self.watchdog.storage

    def _space(self) -> Space:
        return self.storage.volume.space()

    async def open(self, name: bytes) -> StoredFile | Folder:
        """Open *name* for reading, without a thread when nothing has to be waited for."""
        opened = self.storage.open_cached(name)
        return await self.disk.run(self.storage.open, name) if opened is None else opened

    async def known(
        self,
        request: Request,
        file: StoredFile,
        pick: Callable[[Facts], T | None],
        find: Callable[[], Coroutine[Deferred[Any], Any, Facts]],
    ) -> T:
        """Return what *pick* takes from the facts about *file*.

        When nobody knows it yet, *find* finds it out, and it is remembered, unless the client has
        gone: then finding out may have ended early.
        """
        remembered = pick(await self.disk.run(self.storage.recall, file))
        if remembered is not None:
            return remembered
        found = await find()
        if not request.gone:
            await self.disk.run(self.storage.remember, request.name or b"", file.version, found)
        picked = pick(found)
        assert picked is not None, "what was to be found out was found out"
        return picked

    def close(self, opened: StoredFile | Folder) -> None:
        """Close what :meth:`open` gave, where that can not hold up the reactor.

        A file that was removed or replaced meanwhile is freed by its last close, block by block.
        """
        if self.storage.opens_at_once and os.fstat(opened.fd).st_nlink:
            opened.close()
        else:
            self.disk.run(opened.close)


def entity_tag(version: Version) -> bytes:
    """Return the strong entity tag of *version* (RFC 9110 section 8.8.3)."""
    return b'"%s"' % version.tag.encode()


def modified(version: Version) -> float:
    """Return when *version* was written, in seconds since the epoch."""
    return version.mtime_ns / 1e9


def conditions_of(request: Request) -> Conditions:
    """Return the preconditions that *request* carries."""
    return Conditions.parse(lambda field: request.requestHeaders.getRawHeaders(field, []))


def write_check(request: Request, conditions: Conditions) -> Check:
    """Return a check that refuses a change with 412 when *conditions* do not hold for it.

    It also refuses it when *request* was given up, whose client has been told to send it again.
    """

    def check(find: Find) -> None:
        if request.given_up:
            raise busy("The storage did not answer in time.")
        if conditions.any_version:
            return
        version = find()
        etag = None if version is None else entity_tag(version)
        when = None if version is None else modified(version)
        if not conditions.for_write(etag, when):
            raise Problem(412, "The file is not the version that the conditions ask for.")

    return check


def answer(
    request: Request,
    body: bytes = b"OK",
    status: int = 200,
    content_type: bytes = b"text/plain; charset=utf-8",
) -> None:
    """Answer *request* with *body*, if there is still somebody to answer."""
    if request.gone or request.finished:
        return
    request.setResponseCode(status)
    if status != 204:
        request.setHeader(b"Content-Type", content_type)
        request.setHeader(b"Content-Length", b"%d" % len(body))
    request.write(body)
    request.finish()


def answer_json(request: Request, document: object, status: int = 200) -> None:
    """Answer *request* with *document* as JSON, if there is still somebody to answer."""
    body = json.dumps(document, ensure_ascii=False).encode()
    answer(request, body, status, b"application/json")
