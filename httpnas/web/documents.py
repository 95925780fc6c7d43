"""Short documents that come as bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from httpnas.web.problems import Problem
from httpnas.web.server.body import Body, BodyTooLarge, Collected

#: The most bytes of one.
MOST = 64 << 10


async def json_of(body: Body, refused: Callable[[], Problem]) -> dict[str, Any]:
    """Return the object that *body* is as JSON (RFC 8259).

    :param refused: makes what is raised when it is none, or too long.
    """
    if (body.length or 0) > MOST:
        raise refused()
    body.limit = MOST
    collected = Collected()
    try:
        await body.deliver_to(collected)
        members = json.loads(collected.bytes)
    except (BodyTooLarge, ValueError, RecursionError) as error:
        raise refused() from error
    if not isinstance(members, dict):
        raise refused()
    return members
