"""httpnas on CephFS beside programs on the same mount, and two replicas beside one.

``python bench/cephfs.py [none|client|full]``: what the mounts cache is named as in
``tests/cephfs/cluster.py``. It starts a CephFS of its own, as root, from Debian's packages.
Medians of ROUNDS; each round measures both sides one after the other, so that what else the
machine does meets both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cephfs.cluster import Cluster, missing
from tests.crash.herd import Wire
from tests.harness import twistd

ROUNDS = 5
LARGE = 256 << 20
SMALL = 50
#: Seconds of each measurement of appends.
APPENDING = 4


def seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def compare(
    what: str, unit: str, amount: float, ours: Callable[[], object], theirs: Callable[[], object]
) -> None:
    """Print how fast *ours* does *amount* of *unit*, and as what share of *theirs*."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    mine, other = (amount / median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(other_time / my_time for my_time, other_time in pairs)
    print(
        f"{what:34} {mine:8.1f} {unit}, {other:8.1f} without HTTP: {mine / other:.2f} "
        f"(from {ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def shell(command: str) -> None:
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True, capture_output=True)


def store(folder: Path, name: str, content: bytes) -> None:
    """Publish a file as whoever wants it whole and durable does."""
    temporary = folder / f".{name}"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / name)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def appends(ports: list[int], clients: int) -> list[list[float]]:
    """Return how long each append took, by replica."""
    took: list[list[float]] = [[] for _ in ports]
    until = time.monotonic() + APPENDING

    def work(replica: int) -> None:
        wire = Wire(ports[replica], 60)
        while time.monotonic() < until:
            began = time.monotonic()
            status = wire.ask("PUT", "/file/log", b"x" * 199 + b"\n")[0]
            assert status == 200, status
            took[replica].append(time.monotonic() - began)
        wire.close()

    threads = [
        threading.Thread(target=work, args=(replica,))
        for replica in range(len(ports))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def rate(what: str, ports: list[int], clients: int) -> None:
    runs = [appends(ports, clients) for _ in range(ROUNDS)]
    totals = sorted(sum(map(len, took)) / APPENDING for took in runs)
    every = sorted(t for took in runs for replica in took for t in replica)
    print(
        f"{what:34} {median(totals):6.0f} appends/s (from {totals[0]:.0f} to {totals[-1]:.0f}); "
        f"half of them within {median(every) * 1000:.0f} ms, 99 of 100 within "
        f"{every[len(every) * 99 // 100] * 1000:.0f} ms, all within {every[-1] * 1000:.0f} ms",
        flush=True,
    )


def main(cache: str) -> None:
    if reason := missing():
        raise SystemExit(reason)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        cluster = stack.enter_context(Cluster(place / "c"))
        mounts = [cluster.mount(name, cache) for name in ("a", "b")]
        (mounts[0].path / "root").mkdir()
        roots = [mount.path / "root" for mount in mounts]
        daemons = [stack.enter_context(twistd(root, cwd=place)) for root in roots]
        ports = [daemon.port for daemon in daemons]
        url, root, wire = daemons[0].url, roots[0], Wire(ports[0], 60)
        source = place / "source"
        shell(f"head -c {LARGE} /dev/urandom > {source}")
        print(f"mounts cache: {cache}")
        megabytes = LARGE / 1e6
        compare(
            "upload",
            "MB/s",
            megabytes,
            lambda: shell(f"curl -sSf -X POST -T {source} {url}/file/large"),
            lambda: shell(f"dd if={source} of={root}/plain bs=1M conv=fsync"),
        )
        compare(
            "download by the other replica",
            "MB/s",
            megabytes,
            lambda: shell(f"curl -sSf {daemons[1].url}/file/large > /dev/null"),
            lambda: shell(f"cat {roots[1]}/plain > /dev/null"),
        )
        content, serial = b"x" * 4096, iter(range(1 << 30))

        def store_all() -> None:
            for _ in range(SMALL):
                store(root / "s", str(next(serial)), content)

        compare(
            "upload of 4 KiB",
            "/s",
            SMALL,
            lambda: [wire.ask("POST", f"/file/s/{next(serial)}", content) for _ in range(SMALL)],
            store_all,
        )
        names = sorted(path.name for path in (root / "s").iterdir())[:SMALL]
        compare(
            "download of 4 KiB",
            "/s",
            SMALL,
            lambda: [wire.ask("GET", f"/file/s/{name}") for name in names],
            lambda: [(root / "s" / name).read_bytes() for name in names],
        )
        wire.ask("POST", "/file/log")
        rate("1 replica, 1 client", ports[:1], 1)
        rate("1 replica, 8 clients", ports[:1], 8)
        rate("1 replica, 64 clients", ports[:1], 64)
        rate("2 replicas, 1 client each", ports, 1)
        rate("2 replicas, 4 clients each", ports, 4)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["none"])
