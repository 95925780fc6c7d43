"""``twistd httpnas``: options, and the one place where everything is put together."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from httpnas import __version__
from httpnas.log import observer
from httpnas.storage.errors import StorageError
from httpnas.storage.store import Storage
from httpnas.transfer.disk import Disk
from httpnas.web.access_log import log_request
from httpnas.web.exchange import Exchange
from httpnas.web.file_door import FileDoor
from httpnas.web.routing import make_app
from httpnas.web.streaming import Limits, StreamingSite

_PORT = 3000
#: Seconds from one look for what dead daemons have left to the next.
_RECLAIM = 300.0
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CannotStart(SystemExit, Exception):
    """The daemon can not run, and has said why.

    A :exc:`SystemExit`, so that Python ends with status 1 and without a traceback; and an
    :exc:`Exception`, so that ``twistd`` removes its pid file on the way.
    """


def _give_up(why: object) -> CannotStart:
    print(f"httpnas: {why}", file=sys.__stderr__, flush=True)
    return CannotStart(1)


def _bytes(value: str) -> int | None:
    if not value:
        return None
    number, unit = value.strip(), ""
    if number[-1:].upper() in _UNITS:
        number, unit = number[:-1], number[-1].upper()
    if not number.isascii() or not number.isdigit() or len(number) > 19:
        raise ValueError(f"{value!r} is not a number of bytes (such as 1048576, 512M or 10G)")
    return int(number) * _UNITS[unit]


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{value!r} is not a number of seconds")
    return seconds


def _positive_seconds(value: str) -> float:
    seconds = _seconds(value)
    if not seconds:
        raise ValueError("0 seconds are too few")
    return seconds


def _durability(value: str) -> str:
    if value not in ("full", "none"):
        raise ValueError(f"{value!r} is neither full nor none")
    return value


@dataclass(frozen=True)
class _Option:
    """An option that takes a value: where it comes from, and what makes it of text."""

    name: str
    short: str | None
    variable: str
    default: str
    coerce: Callable[[str], object]
    help: str

    def parameter(self) -> list[str | None]:
        """Return what :class:`usage.Options` takes for it."""
        return [
            self.name,
            self.short,
            None,
            f"{self.help} [{self.variable}; default: {self.default or 'any'}]",
        ]

    def value(self, given: str | None, environment: Mapping[str, str]) -> object:
        """Return its value, from the command line, the environment or the default."""
        source = f"--{self.name}"
        if given is None and environment.get(self.variable):
            given, source = environment[self.variable], self.variable
        try:
            return self.coerce(self.default if given is None else given)
        except ValueError as error:
            raise usage.UsageError(f"{source}: {error}") from error


_OPTIONS = (
    _Option(
        "storage", "s", "STORAGE_PATH", "./storage", str, "Folder to serve, made when missing."
    ),
    _Option(
        "durability",
        None,
        "HTTPNAS_DURABILITY",
        "full",
        _durability,
        "full: what is answered 200 survives a power cut; none: it may not.",
    ),
    _Option(
        "max-upload",
        None,
        "HTTPNAS_MAX_UPLOAD",
        "",
        _bytes,
        "Largest body taken, in bytes, or with K, M, G or T.",
    ),
    _Option(
        "stall",
        None,
        "HTTPNAS_STALL",
        "300",
        _positive_seconds,
        "Seconds in which a transfer must move 64 KiB, or it is ended.",
    ),
    _Option(
        "drain",
        None,
        "HTTPNAS_DRAIN",
        "30",
        _seconds,
        "Seconds that running transfers have after SIGTERM.",
    ),
)


class Options(usage.Options):
    """The options of ``twistd httpnas``. What is not given is taken from the environment."""

    synopsis = "[options]"
    longdesc = (
        "Serves the files below one folder over HTTP. Each option can be set by the environment "
        "variable named with it; the option itself comes first."
    )
    optParameters: ClassVar[list[list[str | None]]] = [option.parameter() for option in _OPTIONS]
    compData = usage.Completions(optActions={"storage": usage.CompleteDirs()})

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, description: str) -> None:
        self["listen"].append(description)

    opt_listen.__doc__ = (
        "Where to listen, as a Twisted endpoint description or a port on loopback; repeatable. "
        "[HTTPNAS_LISTEN, several separated by blanks, or PORT for another port; default: "
        f"tcp:{_PORT}:interface=127.0.0.1]"
    )
    opt_l = opt_listen

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(f"httpnas {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse *options* and the environment; what is wrong ends the daemon with one line."""
        try:
            super().parseOptions(options)
            for option in _OPTIONS:
                self[option.name] = option.value(self[option.name], os.environ)
        except usage.UsageError as error:
            raise _give_up(error) from None
        self["listen"] = self["listen"] or _default_listen(os.environ)

    def parseArgs(self, *arguments: str) -> None:
        """Take no arguments."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")


def _default_listen(environment: Mapping[str, str]) -> list[str]:
    given = environment.get("HTTPNAS_LISTEN", "").split()
    return given or [f"tcp:{environment.get('PORT') or _PORT}:interface=127.0.0.1"]


def _endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that *description* means; a port alone is that port on loopback."""
    if description.isdigit():
        description = f"tcp:{description}:interface=127.0.0.1"
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as error:
        raise _give_up(f"--listen {description}: {error}") from error
    return endpoint


def make_site(reactor: Any, exchange: Exchange, limits: Limits) -> StreamingSite:
    """Return a site in which every door stands open."""
    app = make_app()
    FileDoor(exchange).mount(app)
    return StreamingSite(app.resource(), reactor, limits, log_request)


class Daemon(Service):
    """Everything that runs: the pool of threads, the storage, the site and its ports.

    :param reactor: the reactor.
    :param options: parsed :class:`Options`.
    :param storage: is closed in the end.
    """

    _log = Logger()

    def __init__(self, reactor: Any, options: Options, storage: Storage) -> None:
        self._reactor = reactor
        self._options = options
        self._storage = storage
        self._disk = Disk(reactor)
        limits = Limits(stall=options["stall"])
        self.site = make_site(reactor, Exchange(storage, self._disk, options["max-upload"]), limits)
        self._endpoints = [(text, _endpoint(reactor, text)) for text in options["listen"]]
        self.ports: list[IListeningPort] = []
        self._reclaiming = LoopingCall(lambda: self._disk.chore(storage.reclaim_abandoned()))
        self._reclaiming.clock = reactor

    def setServiceParent(self, parent: Any) -> None:
        """Let ``twistd`` log in our form, unless it was told to log elsewhere or otherwise."""
        twistd: Mapping[str, Any] = self._options.parent or {}
        if not twistd.get("syslog") and (twistd.get("nodaemon") or twistd.get("logfile")):
            path = twistd.get("logfile") or "-"
            out = sys.stdout if path == "-" else LogFile.fromFullPath(path)
            parent.setComponent(ILogObserver, observer(out))
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Begin to listen, while ports below 1024 can still be had."""
        for description, endpoint in self._endpoints:
            failures: list[Failure] = []
            endpoint.listen(self.site).addCallbacks(self.ports.append, failures.append)
            if failures:
                raise _give_up(f"can not listen on {description}: {_reason(failures[0].value)}")

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()
        self._disk.start()
        self._reclaiming.start(_RECLAIM)
        if not self._storage.has_xattrs:
            self._log.warn(
                "the file system keeps no user xattrs: records of files are kept beside them, "
                "which makes uploads and appends slower"
            )
        self._reactor.callWhenRunning(self._take_signals)
        self._log.info(
            "httpnas {version} serves {folder} at {addresses} (durability: {durability})",
            version=__version__,
            folder=os.path.abspath(self._options["storage"]),
            addresses=", ".join(_address(port) for port in self.ports),
            durability=self._options["durability"],
        )

    def _take_signals(self) -> None:
        """Stop at a signal with status 0; ``twistd``'s own handlers end with the signal's."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._signalled))

    def _signalled(self) -> None:
        if self.site.draining:
            self._log.warn("a second signal: what still runs is cut off")
            self.site.abort()
        else:
            self._reactor.stop()

    async def _stop(self) -> None:
        await gatherResults([maybeDeferred(port.stopListening) for port in self.ports])
        self._log.info("draining for up to {seconds} seconds", seconds=self._options["drain"])
        await self.site.drain(self._options["drain"])
        self._reclaiming.stop()
        self._disk.stop()
        self._storage.close()

    def stopService(self) -> Deferred[None]:
        """Stop to accept, let what runs come to its end, and give everything back."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def _reason(error: BaseException | None) -> object:
    return error.socketError if isinstance(error, CannotListenError) else error


def _address(port: IListeningPort) -> str:
    address: Any = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        return str(address)
    return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"


def _open_storage(options: Options) -> Storage:
    path = options["storage"]
    try:
        if not os.path.isdir(path):
            os.makedirs(path)
            Daemon._log.info("made the folder {path}", path=os.path.abspath(path))
        return Storage(path, durable=options["durability"] == "full")
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _give_up(f"--storage {path}: {reason}") from error


def makeService(options: Options) -> IService:
    """Return the service that ``twistd httpnas`` runs."""
    twistd: Mapping[str, Any] = options.parent or {}
    if twistd.get("uid") is not None or twistd.get("gid") is not None:
        raise _give_up("start as the user that is to own the files; --uid and --gid come too late")
    from twisted.internet import reactor  # noqa: PLC0415  (importing it installs it)

    return Daemon(reactor, options, _open_storage(options))
