"""The measures: each runs its loads against httpnas and what stands beside it, and returns rows.

What is compared runs in turn, so that what else the machine does meets all of it. The first run of
each is a warm-up and does not count. A measure ends after its rounds, or when its time is over.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench import limits, loads, peers
from bench.loads import MIB, SMALL, Moved, Wrong
from bench.peers import NotThere, Peer
from bench.report import OURS, Goal, Row
from tests.harness import TWISTD

T = TypeVar("T")
GIB = 1024 * MIB
LINE = b"%015d\n"


@dataclass
class Setting:
    """What is measured, and how long.

    :param place: a folder for everything; *root* in it is what all servers serve.
    :param size: bytes of a large body.
    :param rounds: of each measure, after the warm-up.
    :param most: seconds after which no more than three rounds are made.
    :param seconds: of each load of small requests.
    :param transfers: uploads, and as many downloads, that run at once when memory is measured.
    :param is_short: whether only what has goals is measured.
    :param full: an httpnas that syncs; *peers* has one that does not, as the other servers.
    """

    place: Path
    root: Path
    pem: Path
    size: int = GIB
    rounds: int = 5
    most: float = 8
    seconds: float = 1
    peers: dict[str, Peer] = field(default_factory=dict)
    full: Peer | None = None
    transfers: int = 500
    is_short: bool = False

    @property
    def big(self) -> Path:
        return self.root / "big"

    @property
    def large(self) -> str:
        return f"{self.size // GIB} GiB" if self.size >= GIB else f"{self.size // MIB} MiB"

    def fresh(self) -> str:
        """Return a name that nobody has used."""
        return f"new-{time.monotonic_ns()}"

    def in_turn(self, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Run *sides* round by round, after a warm-up; one that cannot do it is left out.

        :raises Wrong: httpnas itself cannot do it.
        """
        samples: dict[str, list[T]] = {}
        for name, run in sides.items():
            try:
                run()
            except Wrong as error:
                if name == OURS:
                    raise
                print(f"  {name} is left out: {error}"[:200], flush=True)
            else:
                samples[name] = []
        end = time.monotonic() + self.most
        for turn in range(self.rounds):
            for name in [*samples][:: -1 if turn % 2 else 1]:
                samples[name].append(sides[name]())
            if turn >= 2 and time.monotonic() > end:
                break
        return samples

    def beside(self, *names: str, also: tuple[str, ...] = ()) -> list[Peer]:
        """Return httpnas, *names*, and *also* those if time is not short, as far as they run."""
        wanted = (OURS, *names, *(() if self.is_short else also))
        return [self.peers[name] for name in wanted if name in self.peers]


@contextlib.contextmanager
def set_up(setting: Setting, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Start all servers for the block, and make the files; return the names that are not there."""
    for number in range(0, setting.size, 4 * MIB):
        with setting.big.open("ab") as file:
            first = number // len(LINE % 0)
            count = min(4 * MIB, setting.size - number) // len(LINE % 0)
            file.write(b"".join(LINE % (first + i) for i in range(count)))
    (setting.root / "small").write_bytes(os.urandom(SMALL))
    missing = []
    with ExitStack() as stack:
        start = {OURS: partial(peers.httpnas, pem=setting.pem)}
        none = start[OURS](setting.root, setting.place, "--durability=none")
        setting.peers[OURS] = stack.enter_context(none)
        for name in names:
            starts = peers.others(setting.pem)[name]
            try:
                setting.peers[name] = stack.enter_context(starts(setting.root, setting.place))
            except NotThere:
                missing.append(name)
        own = setting.place / "full"
        own.mkdir()
        setting.full = stack.enter_context(peers.httpnas(own, setting.place))
        yield missing


def speeds(samples: dict[str, list[tuple[Moved, float]]]) -> dict[str, list[float]]:
    return {name: [moved.speed for moved, _ in runs] for name, runs in samples.items()}


def processor(samples: dict[str, list[tuple[Moved, float]]]) -> dict[str, list[float]]:
    """Return seconds of processor time for each GiB."""
    return {
        name: [spent * GIB / moved.size for moved, spent in runs] for name, runs in samples.items()
    }


def costs(peer: Peer, load: Callable[[], Moved]) -> tuple[Moved, float]:
    """Return what *load* moved, and the seconds of processor time that *peer* spent on it."""
    before = peer.processor()
    moved = load()
    return moved, peer.processor() - before


def downloads(setting: Setting) -> list[Row]:
    """GET of a large file by one client and by eight, a range of it, and TLS."""
    size, part = setting.size, min(64 * MIB, setting.size // 2)
    span = f"Range: bytes={MIB}-{MIB + part - 1}"

    def get(peer: Peer, clients: int) -> tuple[Moved, float]:
        load = partial(loads.download, peer.port, peer.path("big"), size, clients=clients, most=2)
        return costs(peer, load)

    def ranges(peer: Peer) -> tuple[Moved, float]:
        load = partial(loads.download, peer.port, peer.path("big"), part, span, times=8, most=2)
        return costs(peer, load)

    def tls(peer: Peer) -> tuple[Moved, float]:
        load = partial(loads.download_by_tls, peer.tls_port, peer.path("big"), size, most=2)
        return costs(peer, load)

    all_peers = setting.beside("nginx", also=("rclone", "Caddy", "Node", "FastAPI"))
    three, two = setting.beside("nginx", also=("Node",)), setting.beside("nginx")
    one = setting.in_turn({p.name: partial(get, p, 1) for p in all_peers})
    eight = setting.in_turn({p.name: partial(get, p, 8) for p in three})
    some = setting.in_turn({p.name: partial(ranges, p) for p in three})
    safe = setting.in_turn({p.name: partial(tls, p) for p in two if p.tls_port})
    bare = setting.in_turn({"bare sendfile": lambda: limits.sendfile_pair(setting.big, size).speed})
    as_fast, speed = (Goal(1.0, "nginx"),), "MiB/s"
    return [
        Row("get-1", f"GET {setting.large}", speed, {**speeds(one), **bare}, as_fast),
        Row("get-8", f"GET {setting.large}, 8 clients", speed, speeds(eight), as_fast),
        Row("range", f"GET a range of {part // MIB} MiB", speed, speeds(some), as_fast),
        Row("tls", f"GET {setting.large}, TLS", speed, speeds(safe), (Goal(0.7, "nginx"),)),
        Row(
            "cpu-sent",
            "processor time for what is sent",
            "s/GiB",
            processor(one),
            (Goal(1.2, "nginx", at_most=True),),
        ),
        Row("cpu-tls", "the same over TLS", "s/GiB", processor(safe)),
    ]


def uploads(setting: Setting) -> list[Row]:
    """POST of a large body, with its length and in chunks, not synced and synced."""
    durable = setting.full
    assert durable is not None

    def post(peer: Peer, chunked: bool, folder: Path) -> tuple[Moved, float]:
        size = setting.size // 4 if peer.takes_forms else setting.size
        name = setting.fresh()
        load = partial(
            loads.upload,
            peer.port,
            peer.store,
            peer.path(name),
            setting.big,
            size,
            chunked,
            peer.takes_forms,
        )
        try:
            moved = costs(peer, load)
            if (folder / name).stat().st_size != size:
                raise Wrong(f"{peer.name} has not stored all of an upload")
            return moved
        finally:
            (folder / name).unlink(missing_ok=True)

    def copy() -> Moved:
        target = setting.place / "full" / "dd"
        try:
            return limits.dd(setting.big, target, setting.size)
        finally:
            target.unlink(missing_ok=True)

    beside = setting.beside("nginx", also=("rclone", "Node", "FastAPI"))
    able = [peer for peer in beside if peer.store or peer.takes_forms]
    plain = setting.in_turn({p.name: partial(post, p, False, setting.root) for p in able})
    two = setting.beside("nginx")
    chunked = setting.in_turn({p.name: partial(post, p, True, setting.root) for p in two})
    own = setting.place / "full"
    synced: dict[str, Callable[[], Moved]] = {
        "dd conv=fsync": copy,
        OURS: lambda: post(durable, False, own)[0],
    }
    full = {name: [m.speed for m in runs] for name, runs in setting.in_turn(synced).items()}
    post_large, speed = f"POST {setting.large}", "MiB/s"
    as_fast = (Goal(1.0, "nginx"),)
    return [
        Row("post", f"{post_large}, not synced", speed, speeds(plain), as_fast),
        Row("post-chunked", f"{post_large} in chunks", speed, speeds(chunked), as_fast),
        Row("post-full", f"{post_large}, synced", speed, full, (Goal(0.9, "dd conv=fsync"),)),
        Row(
            "cpu-received",
            "processor time for what is received",
            "s/GiB",
            processor(plain),
            (Goal(1.2, "nginx", at_most=True),),
        ),
    ]


def small_requests(setting: Setting) -> list[Row]:
    """4 KiB GET, HEAD, a range of 64 KiB, a known line count and 304, on 16 kept connections."""
    Rate = tuple[float, float]  # requests a second, and microseconds of processor time for each

    def costs(peer: Peer, load: Callable[[], float]) -> Rate:
        before, began = peer.processor(), time.perf_counter()
        rate = load()
        seconds = time.perf_counter() - began
        return rate, (peer.processor() - before) / seconds / rate * 1e6

    def gets(peer: Peer, path: str, *fields: str) -> Rate:
        load = partial(loads.wrk, peer.port, peer.path(path), *fields, seconds=setting.seconds)
        return costs(peer, load)

    def heads(peer: Peer) -> Rate:
        request = loads.head("HEAD", peer.path("small"))
        return costs(
            peer,
            lambda: (
                loads.requests(
                    peer.port, lambda _: request, 16, setting.seconds, has_body=False
                ).rate
            ),
        )

    def unchanged(peer: Peer) -> Rate:
        tag = loads.ask(peer.port, "HEAD", peer.path("small"))[1].get("etag")
        condition = f"If-None-Match: {tag}"
        if loads.ask(peer.port, "GET", peer.path("small"), condition)[0] != 304:
            raise Wrong(f"{peer.name} does not answer 304")
        return gets(peer, "small", condition)

    span = f"Range: bytes={MIB}-{MIB + 16 * SMALL - 1}"
    beside_both, beside_node = (Goal(1.0, "rclone"), Goal(2.0, "Node")), (Goal(2.0, "Node"),)
    four = setting.beside("rclone", "Node", also=("nginx",))
    six = setting.beside("rclone", "Node", also=("nginx", "Caddy", "FastAPI"))
    two = setting.beside("Node")
    small = setting.in_turn({p.name: partial(gets, p, "small") for p in six})
    head = setting.in_turn({p.name: partial(heads, p) for p in four})
    ranges = setting.in_turn({p.name: partial(gets, p, "big", span) for p in four})
    counts = setting.in_turn({p.name: partial(gets, p, "small/wc") for p in two})
    same = setting.in_turn({p.name: partial(unchanged, p) for p in four})

    def rates(samples: dict[str, list[Rate]]) -> dict[str, list[float]]:
        return {name: [rate for rate, _ in runs] for name, runs in samples.items()}

    spent = {name: [each for _, each in runs] for name, runs in small.items()}
    return [
        Row("get-small", "GET 4 KiB", "1/s", rates(small), beside_both),
        Row("cpu-small", "processor time for a GET of 4 KiB", "µs", spent),
        Row("head", "HEAD", "1/s", rates(head), beside_both),
        Row("range-small", "GET a range of 64 KiB", "1/s", rates(ranges), beside_both),
        Row("wc-small", "/wc of 4 KiB", "1/s", rates(counts), beside_node),
        Row("304", "GET that ends in 304", "1/s", rates(same), beside_both),
    ]


def small_uploads(setting: Setting) -> list[Row]:
    """POST of 4 KiB under new names, not synced and synced."""
    full, own, written = setting.full, setting.place / "full", setting.place / "bare"
    assert full is not None
    written.mkdir(exist_ok=True)
    for folder in (setting.root, own):
        (folder / "posted").mkdir(exist_ok=True)

    def post(peer: Peer) -> float:
        path = peer.path("posted/new" if peer.name == OURS else "posted-new")
        return loads.stores(peer.port, peer.store, path, setting.seconds)

    def bare() -> float:
        with loads.folder_in(written, "round-") as folder:
            return limits.stored_files(folder, 16, setting.seconds)

    beside = setting.beside("Node", also=("nginx",))
    plain = setting.in_turn({p.name: partial(post, p) for p in beside})
    both: dict[str, Callable[[], float]] = {"16 threads": bare, OURS: partial(post, full)}
    synced = setting.in_turn(both)
    for leftover in setting.root.glob("posted-new*"):
        leftover.unlink()
    return [
        Row("post-small", "POST 4 KiB, not synced", "1/s", plain, (Goal(2.0, "Node"),)),
        Row("post-small-full", "POST 4 KiB, synced", "1/s", synced, (Goal(0.8, "16 threads"),)),
    ]


def line_counts(setting: Setting) -> list[Row]:
    """The line count of a large file, known and not known."""
    ours = setting.peers[OURS]

    def count(is_known: bool) -> float:
        if not is_known:
            os.utime(setting.big)  # another change time: what was known of the file is void
        began = time.perf_counter()
        status, _, body = loads.ask(ours.port, "GET", ours.path("big/wc"))
        seconds = time.perf_counter() - began
        if status != 200 or int(body) != setting.size // len(LINE % 0):
            raise Wrong(f"/wc: {status}, {body[:80]!r}")
        return seconds * 1000

    sides: dict[str, Callable[[], float]] = {
        OURS: partial(count, False),
        "wc -l": lambda: limits.count_lines(setting.big) * 1000,
    }
    unknown = setting.in_turn(sides)
    known = setting.in_turn({OURS: partial(count, True)})
    return [
        Row("wc-known", f"/wc of {setting.large}, known", "ms", known, (Goal(5, at_most=True),)),
        Row(
            "wc-unknown",
            f"/wc of {setting.large}, not known",
            "ms",
            unknown,
            (Goal(1.0, "wc -l", at_most=True),),
        ),
    ]


def appends(setting: Setting) -> list[Row]:
    """Appends of 100 bytes to one file, synced, on an ext4 of its own."""
    with ExitStack() as stack:
        try:
            mounted = stack.enter_context(limits.ext4(setting.place))
        except NotThere as error:
            print(f"  no ext4 to append on: {error}", flush=True)
            return [Row("append-1", "append, 1 client", "1/s", {}, (Goal(0.5, "bare loop"),))]
        peer = stack.enter_context(peers.httpnas(mounted / "root", setting.place))
        seconds = setting.seconds if setting.is_short else 2 * setting.seconds
        file = setting.place / "nothing"
        file.touch()
        loads.upload(peer.port, "POST", "/file/f", file, 0)

        def over_http(clients: int) -> float:
            return loads.appends(peer.port, "/file/f", clients, seconds)

        sides = {
            "bare loop": partial(limits.synced_appends, mounted / "bare", seconds),
            "1 client": partial(over_http, 1),
            "8": partial(over_http, 8),
            "64": partial(over_http, 64),
        }
        found = setting.in_turn(sides)
    one = found["1 client"]
    return [
        Row(
            "append-1",
            "append 100 bytes, synced, 1 client",
            "1/s",
            {OURS: one, "bare loop": found["bare loop"]},
            (Goal(0.5, "bare loop"),),
        ),
        Row(
            "append-8",
            "the same, 8 clients",
            "1/s",
            {OURS: found["8"], "1 client": one},
            (Goal(3.0, "1 client"),),
        ),
        Row(
            "append-64",
            "the same, 64 clients",
            "1/s",
            {OURS: found["64"], "1 client": one},
            (Goal(6.0, "1 client"),),
        ),
    ]


def workers(setting: Setting) -> list[Row]:
    """Two workers beside one: small GETs and eight large ones."""
    known = subprocess.run(
        [*TWISTD, "httpnas", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    one, goal, figures = "1 worker", (Goal(1.7, "1 worker"),), [dict[str, list[float]](), {}]
    if "--workers" in known:
        options = ("--durability=none", "--workers=2")
        with peers.httpnas(setting.root, setting.place, *options) as two:
            sides = {OURS: two, one: setting.peers[OURS]}

            def small(peer: Peer) -> float:
                return loads.wrk(peer.port, peer.path("small"), connections=32, threads=2)

            def large(peer: Peer) -> float:
                path = peer.path("big")
                return loads.download(peer.port, path, setting.size, clients=8, most=2).speed

            figures = [
                setting.in_turn({name: partial(load, peer) for name, peer in sides.items()})
                for load in (small, large)
            ]
    return [
        Row("workers-small", "GET 4 KiB, --workers 2", "1/s", figures[0], goal),
        Row("workers-large", "8 large GETs, --workers 2", "MiB/s", figures[1], goal),
    ]


def memory(setting: Setting) -> list[Row]:
    """The memory of a daemon of its own: idle, with 1,000 connections, and 1,000 transfers."""
    root = setting.place / "memory"
    transfers, size = setting.transfers, 2 * MIB
    with peers.httpnas(root, setting.place, "--durability=none") as peer:
        loads.ask(peer.port, "GET", "/health")
        time.sleep(0.5)
        alone = peer.memory()
        with loads.idle(peer.port, "/health", 2 * transfers):
            connected = peer.memory()
        with loads.most_memory(peer.memory) as seen:
            whole = loads.slow_transfers(
                peer.port, peer.door, root, transfers, size, 6 * setting.seconds
            )
    slow = f"{transfers} slow uploads and {transfers} slow downloads of {size // MIB} MiB"
    return [
        Row("memory-idle", "memory, idle", "MiB", {OURS: [alone]}, (Goal(60, at_most=True),)),
        Row(
            "memory-idle-1000",
            f"memory, {2 * transfers:,} idle connections",
            "MiB",
            {OURS: [connected]},
            (Goal(100, at_most=True),),
        ),
        Row(
            "memory-slow",
            f"memory, {slow}",
            "MiB",
            {OURS: [max(seen)]},
            (Goal(256, at_most=True),),
        ),
        Row(
            "whole",
            "transfers of those that were whole",
            f"of {2 * transfers:,}",
            {OURS: [float(whole)]},
            (Goal(2 * transfers),),
        ),
    ]


def fairness(setting: Setting) -> list[Row]:
    """How long a small GET takes, at the 99th percentile, alone and beside 8 large transfers."""

    def small(peer: Peer) -> float:
        request = loads.head("GET", peer.path("small"))
        return loads.requests(peer.port, lambda _: request, 1, 1.5 * setting.seconds).p99

    def busy(peer: Peer) -> float:
        target = peer.path("busy-")
        with loads.large_transfers(
            peer.port, peer.store, peer.path("big"), setting.size, target, setting.big
        ):
            return small(peer)

    sides: dict[str, Callable[[], float]] = {}
    for peer in setting.beside("nginx"):
        sides[peer.name] = partial(busy, peer)
        sides["alone" if peer.name == OURS else f"{peer.name} alone"] = partial(small, peer)
    found = setting.in_turn(sides)
    for leftover in setting.root.glob("busy-*"):
        leftover.unlink()
    what = "p99 of GET 4 KiB beside 8 large transfers"
    return [Row("fair", what, "ms", found, (Goal(10, "alone", at_most=True),))]


def growth(setting: Setting) -> list[Row]:
    """What a request costs in larger folders and for more clients, and a byte of larger files."""
    ours = setting.peers[OURS]
    counts = (10, 1000, 1_000_000 if setting.size >= GIB else 10_000)
    made = [_folder(setting.root / f"folder-{count}", count) for count in counts]
    names = [f"{count:,} files" for count in made]
    folders = dict(zip(names, counts, strict=True))

    def get(count: int) -> float:
        return loads.wrk(ours.port, ours.path(f"folder-{count}/small"))

    def post(count: int) -> float:
        path = ours.path(f"folder-{count}/new-")
        return loads.stores(ours.port, ours.store, path, setting.seconds)

    gets = setting.in_turn({name: partial(get, count) for name, count in folders.items()})
    posts = setting.in_turn({name: partial(post, count) for name, count in folders.items()})
    subprocess.run(["rm", "-rf", *setting.root.glob("folder-*")], check=True, timeout=120)
    (setting.root / "mebibyte").write_bytes(os.urandom(MIB))
    huge, end = 16 * setting.size, f"end of {16 * setting.size // GIB} GiB"
    with (setting.root / "huge").open("wb") as sparse:
        sparse.truncate(huge)
    span = f"Range: bytes={huge - setting.size}-{huge - 1}"

    def read(name: str, size: int, times: int, *fields: str) -> float:
        return loads.download(ours.port, ours.path(name), size, *fields, times=times, most=2).speed

    sizes = setting.in_turn(
        {
            "1 MiB": partial(read, "mebibyte", MIB, setting.size // MIB),
            setting.large: partial(read, "big", setting.size, 1),
            end: partial(read, "huge", setting.size, 1, span),
        }
    )
    (setting.root / "huge").unlink()
    clients = setting.in_turn(
        {
            f"{count:,} clients": partial(
                loads.wrk, ours.port, ours.path("small"), connections=count
            )
            for count in (1, 16, 1000)
        }
    )
    rows = [
        ("grow-get", "GET 4 KiB from a folder of {}", "1/s", gets, names[2], names[0]),
        ("grow-post", "POST 4 KiB into a folder of {}", "1/s", posts, names[2], names[0]),
        ("grow-small", "GET {}, again and again", "MiB/s", sizes, "1 MiB", setting.large),
        ("grow-size", "GET the {}, which is sparse", "MiB/s", sizes, end, setting.large),
        ("grow-clients", "GET 4 KiB by {}", "1/s", clients, "1,000 clients", "16 clients"),
    ]
    return [
        Row(
            key,
            what.format(largest),
            unit,
            {OURS: found[largest], **{n: found[n] for n in found if n != largest}},
            (Goal(0.8, base),),
        )
        for key, what, unit, found, largest, base in rows
    ]


def _folder(folder: Path, count: int, most: float = 25) -> int:
    """Make a folder with the file ``small`` and links to some files; return how many names it has.

    :param most: seconds after which it has enough.
    """
    folder.mkdir()
    (folder / "small").write_bytes(os.urandom(SMALL))
    end, made, handle = time.monotonic() + most, 1, os.open(folder, os.O_RDONLY)
    try:
        while made < count and time.monotonic() < end:
            if made % 50_000 == 1:  # no file of an ext4 has more than 65,000 links
                first = f"{made:07}"
                os.close(os.open(first, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
            else:
                os.link(first, f"{made:07}", src_dir_fd=handle, dst_dir_fd=handle)
            made += 1
    finally:
        os.close(handle)
    return made


Measure = Callable[[Setting], list[Row]]
#: All measures, in the order of the table.
ALL: tuple[Measure, ...] = (
    downloads,
    uploads,
    small_requests,
    small_uploads,
    appends,
    workers,
    line_counts,
    memory,
    fairness,
    growth,
)
#: Those of ``make bench-quick``.
QUICK: tuple[Measure, ...] = (
    downloads,
    uploads,
    small_requests,
    small_uploads,
    appends,
    line_counts,
)
#: The keys of the rows of the short table.
SHORT = (
    "get-1",
    "get-8",
    "tls",
    "post",
    "post-full",
    "cpu-sent",
    "cpu-received",
    "get-small",
    "post-small",
    "post-small-full",
    "append-1",
    "append-64",
    "workers-small",
    "wc-unknown",
    "memory-idle",
    "memory-slow",
    "fair",
)
