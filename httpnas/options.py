"""The options of ``twistd httpnas``: from the command line, the environment or a default."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from twisted.python import usage

from httpnas import __version__
from httpnas.fields.clients import Network, network_of
from httpnas.fields.origins import origin_of
from httpnas.launch import check_pid_file, give_up, keep_umask

_PORT = 3000
#: Bytes of memory that each process must have.
LEAST_MEMORY = 128 << 20
_HOST = re.compile(rb"(?:[^:/?#@\s]+|\[[0-9a-f:.]+\])\Z")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _bytes(value: str) -> int | None:
    if not value:
        return None
    number, unit = value.strip(), ""
    if number[-1:].upper() in _UNITS:
        number, unit = number[:-1], number[-1].upper()
    if not number.isascii() or not number.isdigit() or len(number) > 19:
        raise ValueError(f"{value!r} is not a number of bytes (such as 1048576, 512M or 10G)")
    return int(number) * _UNITS[unit]


def _memory(value: str) -> int:
    size = _bytes(value) or 0
    if size < LEAST_MEMORY:
        raise ValueError("it must be at least 128M: the daemon takes half of that when idle")
    return size


#: As many workers as there are cores and memory for.
_AUTO = 0


def _workers(value: str) -> int:
    if value == "auto":
        return _AUTO
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:5]) <= 256:
        raise ValueError(f"{value!r} is neither auto nor a number from 1 to 256")
    return int(value)


def cores() -> int:
    """Return how many cores this process may use at once (sched_getaffinity(2), cgroups(7))."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def _headroom(value: str) -> int:
    return _bytes(value) or 0


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
        raise ValueError("it must be more than 0 seconds")
    return seconds


def _patience(value: str) -> float:
    seconds = _seconds(value)
    if seconds < 10:
        raise ValueError("it must be at least 10 seconds: a check of the storage may take 5")
    return seconds


def _names(value: str) -> list[bytes]:
    if not value.isascii():
        raise ValueError(f"{value!r} is not ASCII")
    return [name.lower().encode() for name in value.split()]


def _connections(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise ValueError(f"{value!r} is not a number of connections")
    return int(value)


def _proxies(value: str) -> list[Network]:
    try:
        return [network_of(text) for text in value.split()]
    except ValueError as error:
        raise ValueError(f"{error} (such as 10.1.2.3 or 10.1.0.0/16)") from None


def _hosts(value: str) -> list[bytes]:
    hosts = [
        b"[%b]" % name if name.count(b":") > 1 and name[:1] != b"[" else name
        for name in _names(value)
    ]
    for host in hosts:
        if not _HOST.match(host):
            raise ValueError(f"{host.decode()!r} is not a host name without a port")
    return hosts


def _origins(value: str) -> list[bytes]:
    origins = []
    for name in _names(value):
        origin = origin_of(name)
        if origin is None:
            raise ValueError(f"{name.decode()!r} is not an origin (such as https://example.org)")
        origins.append(origin)
    return origins


def _port(value: str) -> int | None:
    if not value:
        return None
    if not re.fullmatch("[0-9]{1,5}", value) or not 0 < int(value) <= 65535:
        raise ValueError(f"{value!r} is not the number of a port")
    return int(value)


def _resource_policy(value: str) -> str:
    if value not in ("same-origin", "same-site", "cross-origin"):
        raise ValueError(f"{value!r} is none of same-origin, same-site and cross-origin")
    return value


def _durability(value: str) -> str:
    if value not in ("full", "none"):
        raise ValueError(f"{value!r} is neither full nor none")
    return value


def _shared_by(value: str) -> str:
    if value not in ("user", "group"):
        raise ValueError(f"{value!r} is neither user nor group")
    return value


@dataclass(frozen=True)
class _Option:
    """An option that takes a value: where the value comes from, and how its text is read."""

    name: str
    short: str | None
    variable: str
    default: str
    coerce: Callable[[str], object]
    help: str
    without: str = "any"

    def parameter(self) -> list[str | None]:
        """Return the entry of ``optParameters`` for it."""
        return [
            self.name,
            self.short,
            None,
            f"{self.help} [{self.variable}; default: {self.default or self.without}]",
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
        "storage",
        "s",
        "STORAGE_PATH",
        "./storage",
        str,
        "The folder to serve. It is created if it is missing.",
    ),
    _Option(
        "auth",
        None,
        "HTTPNAS_AUTH",
        "",
        str,
        "A TOML file that says who may do what. Without it, everybody may do everything.",
        without="none",
    ),
    _Option(
        "tls-cert",
        None,
        "HTTPNAS_TLS_CERT",
        "",
        str,
        "The certificate in PEM, and those between it and its root. With it and --tls-key, "
        "--listen is for HTTPS.",
        without="none",
    ),
    _Option(
        "tls-key",
        None,
        "HTTPNAS_TLS_KEY",
        "",
        str,
        "The key of the certificate, in PEM, without a password.",
        without="none",
    ),
    _Option(
        "tls-client-ca",
        None,
        "HTTPNAS_TLS_CLIENT_CA",
        "",
        str,
        "Certificates in PEM by which those of clients are verified. Clients may show one then, "
        "and the file of --auth says whom it is for.",
        without="none",
    ),
    _Option(
        "plain-listen",
        None,
        "HTTPNAS_PLAIN_LISTEN",
        "",
        str.split,
        "Where to listen without TLS besides; several separated by spaces, each as of --listen.",
        without="nowhere",
    ),
    _Option(
        "plain-redirect",
        None,
        "HTTPNAS_PLAIN_REDIRECT",
        "",
        _port,
        "Who comes without TLS is sent to HTTPS at this port; only /health, /ready and GET /file "
        "are answered.",
        without="no redirect",
    ),
    _Option(
        "durability",
        None,
        "HTTPNAS_DURABILITY",
        "full",
        _durability,
        "full: whatever was answered with 200 survives a power cut. none: it may be lost.",
    ),
    _Option(
        "shared-by",
        None,
        "HTTPNAS_SHARED_BY",
        "user",
        _shared_by,
        "Whose daemons may use the storage: user: those of this user. group: those of the folder's "
        "group.",
    ),
    _Option(
        "max-upload",
        None,
        "HTTPNAS_MAX_UPLOAD",
        "",
        _bytes,
        "Largest body that is accepted, in bytes or with K, M, G or T.",
    ),
    _Option(
        "memory",
        None,
        "HTTPNAS_MEMORY",
        "512M",
        _memory,
        "Memory that the daemon may take, in bytes or with K, M, G or T.",
    ),
    _Option(
        "workers",
        None,
        "HTTPNAS_WORKERS",
        "1",
        _workers,
        "How many processes serve; auto: as many as there are cores, and 128M of --memory, for "
        "them.",
    ),
    _Option(
        "stall",
        None,
        "HTTPNAS_STALL",
        "300",
        _positive_seconds,
        "A transfer that moves less than 64 KiB in this many seconds is ended.",
    ),
    _Option(
        "idle",
        None,
        "HTTPNAS_IDLE",
        "75",
        _positive_seconds,
        "Seconds for which a connection without a request is kept open.",
    ),
    _Option(
        "connections-per-client",
        None,
        "HTTPNAS_CONNECTIONS_PER_CLIENT",
        "0",
        _connections,
        "How many connections one address (of IPv6, a /64) may have; 0 for any number.",
    ),
    _Option(
        "proxies",
        None,
        "HTTPNAS_PROXIES",
        "",
        _proxies,
        "Addresses and networks that stand for many clients, separated by spaces: limits for each "
        "client do not hold for them.",
        without="none",
    ),
    _Option(
        "patience",
        None,
        "HTTPNAS_PATIENCE",
        "45",
        _patience,
        "Seconds to wait for a storage that does not answer, before requests get 503.",
    ),
    _Option(
        "drain",
        None,
        "HTTPNAS_DRAIN",
        "30",
        _seconds,
        "Seconds that running transfers have to finish after SIGTERM.",
    ),
    _Option(
        "headroom",
        None,
        "HTTPNAS_HEADROOM",
        "0",
        _headroom,
        "/ready answers 503 when fewer than this many bytes are free.",
    ),
    _Option(
        "cors-origins",
        None,
        "HTTPNAS_CORS_ORIGINS",
        "",
        _origins,
        "Web sites whose pages may use the daemon, separated by spaces.",
        without="none",
    ),
    _Option(
        "resource-policy",
        None,
        "HTTPNAS_RESOURCE_POLICY",
        "same-origin",
        _resource_policy,
        "Whose pages may show stored pictures, media, styles and the like: same-origin (the "
        "daemon's own), same-site or cross-origin (all).",
    ),
    _Option(
        "hosts",
        None,
        "HTTPNAS_HOSTS",
        "",
        _hosts,
        "Host names that the daemon answers to, without ports, separated by spaces; * for any.",
        without="any; on loopback only localhost, 127.0.0.1 and [::1]",
    ),
)


class Options(usage.Options):
    """The options of ``twistd httpnas``. The environment supplies those that are not given.

    :ivar given: the names of those that have a value that is not the default.
    :ivar arguments: what was parsed.
    """

    synopsis = "[options]"
    longdesc = (
        "Serves the files below one folder over HTTP. Each option can also be set by the "
        "environment variable in its brackets; the command line takes precedence."
    )
    optParameters: ClassVar[list[list[str | None]]] = [option.parameter() for option in _OPTIONS]
    compData = usage.Completions(
        optActions={
            "auth": usage.CompleteFiles("*.toml"),
            "storage": usage.CompleteDirs(),
            "tls-cert": usage.CompleteFiles(),
            "tls-client-ca": usage.CompleteFiles(),
            "tls-key": usage.CompleteFiles(),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self.given: set[str] = set()
        self.arguments: list[str] = []

    def opt_listen(self, description: str) -> None:
        self["listen"].append(description)

    opt_listen.__doc__ = (
        "Where to listen: a port on loopback, *:PORT for all addresses of IPv4 and IPv6, or a "
        "Twisted endpoint description. Can be repeated. "
        "[HTTPNAS_LISTEN, several separated by spaces, or PORT for another port; default: "
        f"tcp:{_PORT}:interface=127.0.0.1]"
    )
    opt_l = opt_listen

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(f"httpnas {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse *options* and the environment; an error ends the daemon with one line."""
        try:
            self.arguments = list(options or [])
            super().parseOptions(options)
            self.given = {
                option.name
                for option in _OPTIONS
                if self[option.name] is not None or os.environ.get(option.variable)
            }
            for option in _OPTIONS:
                self[option.name] = option.value(self[option.name], os.environ)
            self["listen"] = self["listen"] or _default_listen(os.environ)
            self._share_memory()
            self._check_tls()
        except usage.UsageError as error:
            raise give_up(error) from None
        if self.parent is not None:
            check_pid_file(self.parent["pidfile"])
            keep_umask(self.parent)

    def _share_memory(self) -> None:
        if self["workers"] == _AUTO:
            self["workers"] = min(cores(), self["memory"] // LEAST_MEMORY)
        if self["memory"] // self["workers"] < LEAST_MEMORY:
            raise usage.UsageError(
                f"--memory: {self['workers']} workers need at least "
                f"{self['workers'] * (LEAST_MEMORY >> 20)}M"
            )

    def _check_tls(self) -> None:
        for needed, options in (
            ("tls-cert", ("tls-key", "tls-client-ca", "plain-listen")),
            ("tls-key", ("tls-cert",)),
            ("plain-listen", ("plain-redirect",)),
            ("auth", ("tls-client-ca",)),
        ):
            for option in options:
                if self[option] and not self[needed]:
                    raise usage.UsageError(f"--{option}: it needs --{needed}")

    def parseArgs(self, *arguments: str) -> None:
        """Take no arguments."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")


def _default_listen(environment: Mapping[str, str]) -> list[str]:
    if given := environment.get("HTTPNAS_LISTEN", "").split():
        return given
    port = environment.get("PORT") or str(_PORT)
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise usage.UsageError(f"PORT: {port!r} is not the number of a port")
    return [f"tcp:{port}:interface=127.0.0.1"]
