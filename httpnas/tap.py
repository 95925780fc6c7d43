"""``twistd httpnas``: the only place where everything is put together."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from httpnas.access import admission
from httpnas.access.authentication import Authentication
from httpnas.access.config import ConfigError
from httpnas.endpoints import endpoint
from httpnas.fields.clients import Clients
from httpnas.files.files import Files
from httpnas.files.points import Admit, Show, Tell, admit_all, show_all, tell_nobody
from httpnas.files.trace import Trace
from httpnas.launch import give_up
from httpnas.options import Options
from httpnas.process import Parent, Process, cannot_listen, ends_of, places_of
from httpnas.storage.errors import StorageError
from httpnas.storage.store import Storage
from httpnas.tls import CertificateError, ServerCertificate
from httpnas.transfer.budget import Budget, Memory, descriptors_left
from httpnas.transfer.disk import Disk
from httpnas.transfer.turns import Turns
from httpnas.transfer.watchdog import Watchdog
from httpnas.web.application import NasApplication
from httpnas.web.doors.file import FileDoor
from httpnas.web.doors.files import FilesDoor
from httpnas.web.doors.links import LinksDoor
from httpnas.web.doors.operations import Colleagues, Operations
from httpnas.web.doors.pages import Pages
from httpnas.web.doors.rights import RightsDoor
from httpnas.web.metrics import Metrics
from httpnas.web.request import Request
from httpnas.web.routing import Door, Router
from httpnas.web.server.deadlines import Limits
from httpnas.web.server.places import EXTRA, Places, Share
from httpnas.web.server.site import StreamingSite
from httpnas.workers import Inheritance, inheritance

__all__ = ["Options", "makeService"]

#: Seconds that the last calls of the disk may take after everything else has ended.
_LAST = 5.0
#: Seconds between two searches for what dead daemons have left.
_RECLAIM = 300.0
#: Seconds between two looks whether memory can be given back.
_TRIM = 5.0


def _use_monotonic_clock(reactor: Any) -> None:
    """Let *reactor* measure time by a clock that nobody can set (CLOCK_MONOTONIC).

    Twisted's own is the wall clock: all that waits would be late, or cut off, when that is set.
    """
    reactor.seconds = time.monotonic


def _endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    try:
        return endpoint(reactor, description)
    except Exception as error:
        raise give_up(f"--listen {description}: {error}") from error


@dataclass(frozen=True)
class Engine:
    """What stands behind every door."""

    disk: Disk
    watchdog: Watchdog
    trace: Trace
    admit: Admit
    files: Files


def make_engine(
    reactor: Any,
    disk: Disk,
    storage: Storage,
    patience: float,
    admit: Admit = admit_all,
    tell: Tell = tell_nobody,
    show: Show = show_all,
) -> Engine:
    """Return what does the work on *storage*.

    :param patience: seconds that a storage is waited for that does not answer.
    :param admit: as :class:`Files` has it, and *tell* and *show* as well.
    """
    watchdog = Watchdog(disk, storage, patience)
    disk.verify = watchdog.verify
    trace = Trace(reactor)
    files = Files(disk, watchdog, Turns(), trace, admit, tell, show)
    return Engine(disk, watchdog, trace, admit, files)


def make_doors(
    engine: Engine,
    metrics: Metrics,
    options: Mapping[str, Any],
    colleagues: Colleagues | None = None,
    authentication: Authentication | None = None,
) -> list[Door]:
    """Return every door.

    :param options: as :class:`Options` has them.
    :param colleagues: the other workers, if there are any.
    :param authentication: as of :class:`Router`.
    """
    files, watchdog, max_upload = engine.files, engine.watchdog, options["max-upload"]
    return [
        FileDoor(files, watchdog, max_upload),
        FilesDoor(files, max_upload),
        LinksDoor(engine.admit, authentication),
        RightsDoor(authentication),
        Operations(
            engine.disk,
            watchdog,
            engine.trace,
            engine.admit,
            metrics,
            options["headroom"],
            colleagues,
            authentication,
        ),
        Pages(),
    ]


def make_site(
    reactor: Any,
    doors: Iterable[Door],
    watchdog: Watchdog,
    limits: Limits,
    metrics: Metrics,
    options: Mapping[str, Any],
    places: Places | None = None,
    authentication: Authentication | None = None,
) -> StreamingSite:
    """Return a site in which *doors* stand open; options as in :func:`make_doors`.

    :param places: room for connections and requests, None for any number.
    :param authentication: as of :class:`Router`.
    """
    clients = Clients(options["proxies"])
    router = Router(
        options["cors-origins"],
        options["hosts"],
        authentication,
        options["plain-redirect"],
        clients,
    )
    for door in doors:
        door.mount(router)
    application = NasApplication(metrics, options["resource-policy"])
    places = places or Places(Budget(), Budget())
    share = Share(options["connections-per-client"], clients)
    return StreamingSite(
        router.route, Request, reactor, limits, watchdog, application, places, share
    )


class Daemon(Process):
    """Everything that is running: the pool of threads, the storage, the site and its ports.

    :param storage: is closed at the end.
    :param metrics: the same that observe the steps of the storage.
    :param inherited: what a worker has from its parent; None if this is the only process.
    :param certificate: what makes the addresses of ``--listen`` speak TLS, None to leave them.
    """

    def __init__(
        self,
        reactor: Any,
        options: Options,
        storage: Storage,
        metrics: Metrics,
        inherited: Inheritance | None = None,
        certificate: ServerCertificate | None = None,
    ) -> None:
        super().__init__(reactor, options, metrics.line_dropped)
        self._metrics = metrics
        self._inherited = inherited
        self._certificate = certificate
        memory = Memory(options["memory"] // 2)  # the rest is for the daemon itself
        disk = Disk(reactor, memory=memory)
        self._authentication = authentication = _authentication(reactor, options["auth"])
        points = () if authentication is None else (admission.admit, tell_nobody, admission.show)
        patience = options["patience"]
        self._engine = engine = make_engine(reactor, disk, storage, patience, *points)
        limits = Limits(stall=options["stall"], idle=options["idle"])
        doors = make_doors(engine, metrics, options, inherited, authentication)
        places = Places(memory, Budget(descriptors_left() - EXTRA))
        watchdog = engine.watchdog
        self.site = make_site(
            reactor, doors, watchdog, limits, metrics, options, places, authentication
        )
        self._endpoints: list[tuple[str, IStreamServerEndpoint, IProtocolFactory]] = []
        for number, text in enumerate(places_of(options)):
            place = inherited.endpoint(number, text) if inherited else _endpoint(reactor, text)
            is_plain = number >= len(options["listen"]) or text.startswith("ssl:")
            factory: Any = self.site
            if certificate is not None and not is_plain:
                factory = TLSMemoryBIOFactory(certificate, False, self.site, reactor)
            self._endpoints.append((text, place, factory))
        if inherited is not None:
            self._answers = next(d for d in doors if isinstance(d, Operations)).answers(self.site)
        self.ports: list[IListeningPort] = []
        self._reclaiming = LoopingCall(self._reclaim)
        self._reclaiming.clock = reactor
        self._trimming = LoopingCall(memory.trim)
        self._trimming.clock = reactor

    def privilegedStartService(self) -> None:
        """Begin to listen, while ports below 1024 can still be opened."""
        self._lines.start()
        for description, place, factory in self._endpoints:
            failures: list[Failure] = []
            place.listen(factory).addCallbacks(self.ports.append, failures.append)
            if failures:
                raise cannot_listen(description, failures[0])
        if not self._options["hosts"]:
            self._options["hosts"] += _names_of_loopback(self.ports)

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()
        self._engine.disk.start()
        if self._authentication is not None:
            self._authentication.start()
        if self._certificate is not None:
            self._certificate.start()
        self._reclaiming.start(_RECLAIM)
        self._trimming.start(_TRIM, now=False)
        # What exists now stays: searching it for garbage would hold up the reactor.
        gc.collect()
        gc.freeze()
        if not self._engine.watchdog.storage.has_xattrs:
            self._log.warn(
                "the records of files are kept beside them and not in user xattrs, which makes "
                "uploads and appends slower"
            )
        if not self._engine.watchdog.storage.syncs_folders:
            self._log.warn(
                "this file system does not sync folders: after a power cut of its server, names "
                "may be as they were before the latest uploads, moves and deletes"
            )
        self._reactor.callWhenRunning(self._is_running)
        self._let_stderr_go()

    def _is_running(self) -> None:
        """Tell that the daemon is running, once a signal would stop it properly."""
        ends = ends_of(self._lines) if self._inherited is None else [signal.SIGTERM]
        self.take_signals(*ends)
        for each in (self._authentication, self._certificate):
            if each is not None and signal.SIGHUP not in ends:
                self._reload_at_hangup(each)
        if self._inherited is None:
            self.say_that_it_runs(self.ports)
        else:
            self._inherited.connect(self._answers, self._orphaned)

    def _orphaned(self) -> None:
        if not self._signals:
            self._signalled()

    def _reclaim(self) -> Deferred[None]:
        return self._engine.disk.chore(self._engine.watchdog.storage.reclaim_abandoned())

    def _cut_off(self) -> None:
        self.site.abort()
        _leave_after(_LAST, self._tell_of_hang)

    def _reload_at_hangup(self, configured: Authentication | ServerCertificate) -> None:
        """Read the files of *configured* again at SIGHUP, besides what the log does then."""

        def reload() -> None:
            Deferred.fromCoroutine(configured.reload())

        self.at_hangup(reload)

    async def _stop(self) -> None:
        drain = self._options["drain"]
        self._log.info("draining for up to {seconds} seconds", seconds=drain)
        leaving = _leave_after(drain + _LAST, self._tell_of_hang)
        await self.site.drain(drain, self._stop_listening)
        leaving.cancel()
        leaving = _leave_after(_LAST, self._tell_of_hang)
        self._reclaiming.stop()
        self._trimming.stop()
        if self._authentication is not None:
            self._authentication.stop()
        if self._certificate is not None:
            self._certificate.stop()
        self._engine.disk.stop()
        self._engine.watchdog.storage.close()
        leaving.cancel()

    def _tell_of_hang(self) -> None:
        self._log.critical("the disk does not answer: ended without waiting for it")
        self._lines.flush()

    def _stop_listening(self) -> Deferred[Any]:
        if self._inherited is not None:  # they are the parent's
            for port in self.ports:
                port.stopReading()  # type: ignore[attr-defined]
            return succeed(None)
        return gatherResults([maybeDeferred(port.stopListening) for port in self.ports])

    def stopService(self) -> Deferred[None]:
        """Refuse new requests, let the running ones end, and release everything.

        The ports stay open until then, so that others can see that the daemon is stopping.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def _names_of_loopback(ports: Iterable[IListeningPort]) -> list[bytes]:
    """Return the names that requests may be for when all *ports* are on loopback, else none.

    A browser reaches loopback by the name of any site that points there (DNS rebinding).
    """
    names = ["localhost", "127.0.0.1", "[::1]"]
    for port in ports:
        host = getattr(port.getHost(), "host", None)
        if host is None or not ip_address(host).is_loopback:
            return []
        names.append(f"[{host}]" if ":" in host else host)
    return [name.encode() for name in names]


def _leave_after(seconds: float, say_why: Callable[[], object]) -> threading.Timer:
    """End the process after *seconds*, by a thread of its own: all others may wait for the disk."""

    def leave() -> None:
        say_why()
        os._exit(1)

    leaving = threading.Timer(seconds, leave)
    leaving.daemon = True
    leaving.start()
    return leaving


def _authentication(reactor: Any, path: str) -> Authentication | None:
    """Return what finds out who asks, as the file *path* says; None without a file."""
    if not path:
        return None
    try:
        return Authentication(reactor, os.path.abspath(path))
    except ConfigError as error:
        raise give_up(f"--auth: {error}") from None


def _certificate(reactor: Any, options: Options) -> ServerCertificate | None:
    """Return what makes TLS, as *options* say; None if they ask for none."""
    paths = {f"--{each}": options[each] for each in ("tls-cert", "tls-key", "tls-client-ca")}
    if not options["tls-cert"]:
        return None
    try:
        return ServerCertificate(reactor, {each: path for each, path in paths.items() if path})
    except CertificateError as error:
        raise give_up(error) from None


def _open_storage(options: Options, metrics: Metrics) -> Storage:
    path = options["storage"]
    leaving = _leave_after(
        options["patience"], lambda: give_up(f"--storage {path}: it does not answer")
    )
    try:
        if not os.path.isdir(path):
            os.makedirs(path)
            Daemon._log.info("made the folder {path}", path=os.path.abspath(path))
        storage = Storage(
            path,
            options["durability"] == "full",
            metrics.step,
            shared=options["shared-by"] == "group",
        )
    except FileExistsError:
        raise give_up(f"--storage {path}: it is not a folder") from None
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise give_up(f"--storage {path}: {reason}") from error
    finally:
        leaving.cancel()
    if "durability" in options.given and not storage.syncs_folders:
        storage.close()
        raise give_up(
            f"--storage {path}: this file system does not sync folders, which --durability full "
            "asks for: without that option, the daemon syncs what it can"
        )
    return storage


def makeService(options: Options) -> IService:
    """Return the service that ``twistd httpnas`` runs."""
    twistd: Mapping[str, Any] = options.parent or {}
    if twistd.get("uid") is not None or twistd.get("gid") is not None:
        raise give_up(
            "start it as the user who should own the files: --uid and --gid take effect too late"
        )
    from twisted.internet import reactor  # noqa: PLC0415  (importing it installs it)

    _use_monotonic_clock(reactor)
    inherited = inheritance(reactor)
    if inherited is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent acts
    metrics = Metrics()
    certificate = _certificate(reactor, options)
    storage = _open_storage(options, metrics)
    if options["workers"] > 1:
        storage.close()  # what is wrong with it has been said
        return Parent(reactor, options)
    return Daemon(reactor, options, storage, metrics, inherited, certificate)
