"""One log event for each request, with everything that an operator may ask about it later."""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import LogLevel, globalLogPublisher

from httpnas.web.request import Request


def log_request(request: Request) -> None:
    """Log *request*, which has ended.

    The event is what :class:`twisted.logger.Logger` would make, in a quarter of the time.
    """
    globalLogPublisher(
        {
            "log_time": time.time(),
            "log_level": LogLevel.info,
            "log_namespace": __name__,
            "log_format": "{request[method]} {request[name]}",
            "request": record(request),
        }
    )


def record(request: Request) -> dict[str, Any]:
    """Return the members of the log line of *request*.

    ``id``, ``client`` (address), ``principal`` (who asks, when that is asked), ``method``, ``verb``
    (as in the metrics), ``name`` (of the file or folder; the path as it was sent when it names
    neither), ``status`` (None when there was no answer), ``bytes_in`` and ``bytes_out`` (of the
    bodies), ``seconds`` (from its first line to its end) and ``ended`` (a value of
    :class:`httpnas.web.server.request.Ending`).
    """
    principal = request.principal
    return {
        "id": request.id,
        "client": request.client_address,
        **({} if principal is None else {"principal": principal.name}),
        "method": request.method.decode("ascii", "replace"),
        "verb": request.verb,
        "name": name_of(request),
        "status": request.code if request.answered else None,
        "bytes_in": request.body.received,
        "bytes_out": request.sentLength,
        "seconds": round(request.site.reactor.seconds() - request.began, 6),
        "ended": request.ending.value,
    }


def name_of(request: Request) -> str:
    """Return what *request* is about: a file or folder, else its path. Never its query."""
    name = request.path if request.name is None else b"/" + request.name
    return name.decode("utf-8", "replace")
