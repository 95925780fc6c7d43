"""Log events as lines: of JSON for programs, of text for people at a terminal."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from queue import SimpleQueue

from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from twisted.logger import formatEventAsClassicLogText as _classic
from twisted.python import logfile
from zope.interface import implementer

#: Bytes of lines that may wait until they are written; what comes then is dropped.
BOUND = 1 << 20
#: Characters of lines that are written together: a pipe that other processes write to as well takes
#: about so much in one piece (PIPE_BUF of pipe(7)).
TOGETHER = 3 << 10
#: Seconds for which lines gather. A thread that is woken for each one holds up the reactor.
_GATHERING = 0.005

_encode = json.JSONEncoder(default=str).encode


class _File(logfile.LogFile):
    """A log file that is rotated, and that others may move, remove or cut.

    Twisted's own overwrites what was cut, and sets the umask of all threads for a moment.
    """

    def _openFile(self) -> None:
        mode = 0o666 if self.defaultMode is None else self.defaultMode
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self.path, flags, mode), "ab", 0)
        self.size = self._file.tell()
        self.closed = False

    def rotate(self) -> None:
        """Begin another file, and number the old ones; if that cannot be, go on as before."""
        with contextlib.suppress(OSError):
            if os.path.exists(self.path):
                for number in reversed([0, *self.listLogs()]):
                    os.rename(self._numbered(number), self._numbered(number + 1))
            self.reopen()

    def _numbered(self, number: int) -> str:
        return f"{self.path}.{number}" if number else self.path

    def reopen(self) -> None:
        """Go on in the file that now has the name; if it cannot be opened, in the old one."""
        old = self._file
        self._openFile()
        old.close()


@implementer(ILogObserver)
class Log:
    """Writes events as lines, in a thread of its own.

    Whoever logs never waits for a reader or a disk. What finds :data:`BOUND` bytes waiting is
    dropped, and so is what cannot be written.

    :param path: of a log file, None for standard output.
    :param dropped: is called for each line that is dropped, from any thread.
    :raises OSError: if the file cannot be opened.
    """

    _log = Logger()

    def __init__(self, path: str | None, dropped: Callable[[], object]) -> None:
        self._file = None if path is None else _File.fromFullPath(path)
        self.is_terminal = path is None and sys.stdout.isatty()
        self._form = as_text if self.is_terminal else as_json
        self._dropped = dropped
        self._lock = threading.Lock()
        self._waiting = self._untold = 0
        self._todo: SimpleQueue[str | Callable[[], object]] = SimpleQueue()

    @property
    def has_file(self) -> bool:
        """Whether lines go to a file that this process rotates."""
        return self._file is not None

    def __call__(self, event: LogEvent) -> None:
        """Let *event* be written."""
        line = self._form(event)
        if line is not None:
            self.take(line)

    def take(self, line: str) -> None:
        """Let *line*, or several, each with its newline, be written."""
        cost = sys.getsizeof(line)
        with self._lock:
            fits = self._waiting + cost <= BOUND
            if fits:
                self._waiting += cost
        if fits:
            self._todo.put(line)
        else:
            self._drop()

    def start(self) -> None:
        """Begin to write: lines wait until then. At the end of the process, the rest is written.

        SIGUSR1 begins another log file, as with ``twistd``, and SIGHUP opens it anew.
        """
        threading.Thread(target=self._work, name="log", daemon=True).start()
        atexit.register(self.flush)
        signal.signal(signal.SIGUSR1, lambda *_: self._change_file(_File.rotate))
        signal.signal(signal.SIGHUP, lambda *_: self._change_file(_File.reopen))

    def flush(self, seconds: float = 1.0) -> None:
        """Wait until everything is written, for *seconds* at most."""
        flushed = threading.Event()
        self._todo.put(flushed.set)
        flushed.wait(seconds)

    def _change_file(self, change: Callable[[_File], object]) -> None:
        if (file := self._file) is not None:
            self._todo.put(lambda: change(file))

    def _work(self) -> None:
        lines: list[str] = []
        while True:
            todo = self._todo.get()
            if isinstance(todo, str):
                lines.append(todo)
                if not self._todo.empty() and sum(map(len, lines)) < TOGETHER:
                    continue
            if lines:
                self._write(lines)
                lines = []
            if isinstance(todo, str):
                if self._todo.empty():
                    time.sleep(_GATHERING)
                continue
            try:
                todo()
            except OSError:
                self._log.failure("the log file could not be opened anew")

    def _write(self, lines: Sequence[str]) -> None:
        text = "".join(lines)
        try:
            if self._file is not None:
                self._file.write(text)
            else:
                _write_out(text.encode(errors="backslashreplace"))
        except OSError:
            self._drop(len(lines))
        else:
            self._tell_of_dropped()
        finally:
            with self._lock:
                self._waiting -= sum(map(sys.getsizeof, lines))

    def _drop(self, count: int = 1) -> None:
        for _ in range(count):
            self._dropped()
        with self._lock:
            self._untold += count

    def _tell_of_dropped(self) -> None:
        """Log how many lines are missing, now that lines are taken again."""
        if self._untold and self._todo.empty():
            with self._lock:
                count, self._untold = self._untold, 0
            self._log.warn("{count} lines were dropped here: nobody took them", count=count)


def _write_out(line: bytes) -> None:
    # Not by sys.stdout: what waits in its buffer would hold up the end of the process.
    while line:
        line = line[os.write(1, line) :]


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
    return _encode(record) + "\n"


def as_text(event: LogEvent) -> str | None:
    """Return *event* as a line for people."""
    if "request" not in event:
        return _classic(event)
    shown = {key: _shown(value) for key, value in event["request"].items()}
    return (
        "{time} {status} {method} {name} in={bytes_in} out={bytes_out} {seconds}s "
        "{client} {ended} {verb} {id}{who}\n"
    ).format(
        time=_time(event), who=f" {shown['principal']}" if "principal" in shown else "", **shown
    )


def _shown(value: object) -> object:
    """Return *value* with the characters escaped that would control a terminal."""
    if not isinstance(value, str):
        return "-" if value is None else value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event["log_time"], timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
