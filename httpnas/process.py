"""What runs under ``twistd``: the log, standard error and the signals of a process; workers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from httpnas import __version__
from httpnas.launch import give_up, keep_stderr, open_log
from httpnas.log import Log
from httpnas.options import Options
from httpnas.workers import Workers


class Process(Service):
    """A process under ``twistd``: its log, its standard error and its signals.

    :param reactor: the reactor.
    :param options: parsed :class:`Options`.
    :param line_dropped: is called for each line that the log does not have.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, options: Options, line_dropped: Callable[[], object] = lambda: None
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._line_dropped = line_dropped
        self._let_stderr_go: Callable[[], object] = lambda: None
        self._signals = 0

    def setServiceParent(self, parent: Any) -> None:
        """Set up the log of *parent*, while there is still a standard error."""
        twistd: Mapping[str, Any] = self._options.parent or {}
        self._lines = open_log(twistd, parent, self._line_dropped)
        if not twistd.get("nodaemon"):
            self._let_stderr_go = keep_stderr()
        super().setServiceParent(parent)

    def take_signals(self, *ends: signal.Signals) -> None:
        """Stop with status 0 at a signal; those of ``twistd`` end with the signal."""
        for number in ends:
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._signalled))

    def at_hangup(self, call: Callable[[], object]) -> None:
        """Let *call* be made at SIGHUP, besides what the log does then."""
        before = signal.getsignal(signal.SIGHUP)

        def hung_up(number: int, frame: FrameType | None) -> None:
            if callable(before):
                before(number, frame)
            self._reactor.callFromThread(call)

        signal.signal(signal.SIGHUP, hung_up)

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._reactor.stop()
        else:
            self._log.warn("second signal: the running transfers are cut off")
            self._cut_off()

    def _cut_off(self) -> None:
        """End what still runs."""

    def say_that_it_runs(self, ports: Sequence[IListeningPort]) -> None:
        """Log what is served at *ports*, and warn when everybody may do everything there."""
        if not self._options["auth"] and (open_to_others := _beyond_loopback(ports)):
            self._log.warn(
                "everybody who can connect to {addresses} may do everything: --auth says who may "
                "do what (docs/security.md)",
                addresses=", ".join(_address(port, False) for port in open_to_others),
            )
        workers = self._options["workers"]
        secure = len(self._options["listen"]) if self._options["tls-cert"] else 0
        self._log.info(
            "httpnas {version} serves {folder} at {addresses} (durability: {durability}{workers})",
            version=__version__,
            folder=os.path.abspath(self._options["storage"]),
            addresses=", ".join(_address(port, n < secure) for n, port in enumerate(ports)),
            durability=self._options["durability"],
            workers=f", workers: {workers}" if workers > 1 else "",
        )


class Parent(Process):
    """The process that opens the sockets for its workers, and ends with them."""

    def __init__(self, reactor: Any, options: Options) -> None:
        super().__init__(reactor, options)
        number = options["workers"]
        memory = options["memory"] // number
        arguments = [*options.arguments, "--workers=1", f"--memory={memory}"]
        try:
            self._workers = Workers(
                reactor, number, arguments, places_of(options), options["drain"]
            )
        except Exception as error:
            raise give_up(f"--listen: {error}") from error
        self._has_failed = False

    def privilegedStartService(self) -> None:
        """Open the sockets, while ports below 1024 can still be opened."""
        self._lines.start()
        self._workers.listen(cannot_listen)

    def startService(self) -> None:
        """Start the workers."""
        super().startService()
        if self._lines.has_file:
            self._workers.takes_lines = self._lines.take
        self._workers.started.addCallbacks(self._are_running, self._cannot_start)
        self._reactor.callWhenRunning(self._is_running)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._leave)
        self._let_stderr_go()

    def _is_running(self) -> None:
        ends = ends_of(self._lines)
        self.take_signals(*ends)
        if signal.SIGHUP not in ends:
            self.at_hangup(lambda: self._workers.signal(signal.SIGHUP))
        self._workers.startService()

    def _are_running(self, _: None) -> None:
        self.say_that_it_runs(self._workers.ports)

    def _cannot_start(self, _: Failure) -> None:
        """End: the worker has said why."""
        self._has_failed = True
        self._reactor.stop()

    def _leave(self) -> None:
        if self._has_failed:
            with contextlib.suppress(OSError):
                twistd: Mapping[str, Any] = self._options.parent or {}
                os.unlink(twistd.get("pidfile") or "")
            self._lines.flush()
            os._exit(1)

    def _cut_off(self) -> None:
        self._workers.signal(signal.SIGTERM)

    def stopService(self) -> Deferred[Any]:
        """Let the workers drain, and close the sockets when all have ended."""
        super().stopService()
        stopped: Deferred[Any] = self._workers.stopService()
        return stopped.addCallback(
            lambda _: gatherResults(maybeDeferred(p.stopListening) for p in self._workers.ports)
        )


def ends_of(lines: Log) -> list[signal.Signals]:
    """Return the signals that end the daemon: the terminal may have gone."""
    ends = [signal.SIGTERM, signal.SIGINT]
    return [*ends, signal.SIGHUP] if lines.is_terminal else ends


def cannot_listen(description: str, failure: Failure) -> Exception:
    """Return what ends a daemon that cannot listen on the endpoint *description*."""
    return give_up(f"cannot listen on {description}: {_reason(failure.value)}")


def _reason(error: BaseException | None) -> object:
    return error.socketError if isinstance(error, CannotListenError) else error


def places_of(options: Mapping[str, Any]) -> list[str]:
    """Return the descriptions of all endpoints, those for TLS first."""
    return [*options["listen"], *options["plain-listen"]]


def _beyond_loopback(ports: Iterable[IListeningPort]) -> list[IListeningPort]:
    """Return those of *ports* that other machines may reach."""
    hosts = [(port, getattr(port.getHost(), "host", None)) for port in ports]
    return [port for port, host in hosts if host and not ip_address(host).is_loopback]


def _address(port: IListeningPort, is_secure: bool) -> str:
    address: Any = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        return str(address)
    scheme = "https" if is_secure else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"
