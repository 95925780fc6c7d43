"""The form of log events: lines of JSON for programs, text for people at a terminal."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TextIO, cast

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, formatEvent
from twisted.logger import formatEventAsClassicLogText as _classic


def observer(out: TextIO) -> ILogObserver:
    """Return an observer that writes each event to *out* as one line."""
    isatty = getattr(out, "isatty", None)  # the log file of twistd has none
    form = as_text if isatty is not None and isatty() else as_json
    return cast(ILogObserver, FileLogObserver(out, form))


def as_json(event: LogEvent) -> str:
    """Return *event* as one line of JSON.

    The members of a request are at the top level, beside ``time``. Every other event has
    ``level`` and ``message``, and also ``traceback`` if it reports an error.
    """
    record: dict[str, object] = {"time": _time(event)}
    if "request" in event:
        record.update(event["request"])
    else:
        record["level"] = getattr(event.get("log_level"), "name", "info")
        record["message"] = formatEvent(event)
        if "log_failure" in event:
            record["traceback"] = event["log_failure"].getTraceback()
    return json.dumps(record, default=str) + "\n"


def as_text(event: LogEvent) -> str | None:
    """Return *event* as a line for people."""
    if "request" not in event:
        return _classic(event)
    return (
        "{time} {status} {method} {name} in={bytes_in} out={bytes_out} {seconds}s "
        "{client} {ended} {verb} {id}\n"
    ).format(time=_time(event), **{key: _shown(value) for key, value in event["request"].items()})


def _shown(value: object) -> object:
    """Return *value* with the characters escaped that would control a terminal."""
    if not isinstance(value, str):
        return "-" if value is None else value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event["log_time"], timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
