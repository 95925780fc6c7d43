"""The start under ``twistd``, which is to be the same in the foreground and in the background."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from httpnas.log import Log


class CannotStart(SystemExit, Exception):
    """The daemon cannot run, and has said why.

    A :exc:`SystemExit`, so that Python ends with status 1 and without a traceback; and an
    :exc:`Exception`, so that ``twistd`` removes its pid file on the way.
    """


def give_up(why: object) -> CannotStart:
    """Print *why* the daemon cannot run, and return the exception to raise."""
    print(f"httpnas: {why}", file=sys.__stderr__, flush=True)
    return CannotStart(1)


def check_pid_file(path: str | None) -> None:
    """Refuse to start beside the process that *path* names; ``twistd`` says that in five lines.

    :raises CannotStart: if that process runs.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int(Path(path or "").read_text())
        os.kill(pid, 0)
        raise give_up(
            f"{path}: this pid file is that of process {pid}, which runs. Another daemon needs "
            "another one (twistd --pidfile=NAME), or none (--pidfile=)"
        )


def keep_umask(twistd: MutableMapping[str, Any]) -> None:
    """Let a daemon in the background have the umask of who starts it, and not 0077.

    :param twistd: the options of ``twistd``.
    """
    if twistd["umask"] is None:
        twistd["umask"] = umask = os.umask(0)
        os.umask(umask)


class _Complaints(io.TextIOWrapper):
    """Standard error for the time in which ``twistd`` puts a daemon into the background.

    The daemon itself has none any more, and the process that waits for its start knows nothing but
    the class of the error.
    """

    def write(self, text: str) -> int:
        return len(text) if CannotStart.__name__ in text else super().write(text)


def keep_stderr() -> Callable[[], object]:
    """Let a daemon in the background say why it cannot start; return what to call when it has."""
    kept = _Complaints(os.fdopen(os.dup(2), "wb", 0), write_through=True)
    sys.__stderr__ = kept  # type: ignore[misc]
    return lambda: os.dup2(2, kept.fileno())


def open_log(
    twistd: Mapping[str, Any], application: Componentized, dropped: Callable[[], object]
) -> Log:
    """Return the log, which *application* has unless ``twistd`` was told to log otherwise.

    :param twistd: the options of ``twistd``.
    :param dropped: as :class:`Log` has it.
    """
    if twistd.get("syslog") or twistd.get("logger"):
        return Log(None, dropped)
    in_background = not twistd.get("nodaemon")
    path = twistd.get("logfile") or ("twistd.log" if in_background else "-")
    if path == "-" and in_background:
        raise give_up("--logfile -: a daemon in the background has no standard output")
    try:
        log = Log(None if path == "-" else path, dropped)
    except OSError as error:
        raise give_up(f"--logfile {path}: {error.strerror or error}") from error
    application.setComponent(ILogObserver, log)
    return log
