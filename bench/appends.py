"""Appends of 100 bytes to one file, by many clients and by one, beside another tree of httpnas.

``python bench/appends.py TREE [SECONDS] [ROUNDS]``, as root: on an ext4 with a journal on a loop
device with direct I/O over a file on disk, where a sync costs what it costs; durability full. It
prints the medians of ROUNDS, in which both trees are measured in turn: over HTTP with 1, 8 and 64
clients on connections that they keep, and of the storage layer alone, one by one and, where the
tree can, in groups of 8.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness import twistd  # noqa: E402

RECORD = b"x" * 99 + b"\n"
REQUEST = b"PUT /file/f HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n" % len(RECORD) + RECORD
CLIENTS = (1, 8, 64)
#: Appends without HTTP, in a process of its own; argv: root, seconds, size of a group.
ALONE = """
import sys, time
from httpnas.storage.store import Storage
root, seconds, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
storage, anything, record = Storage(root), lambda find: None, b"x" * 99 + b"\\n"
upload = storage.begin_upload(b"alone", anything)
upload.publish(anything)
upload.close()
end, done = time.monotonic() + seconds, 0
while time.monotonic() < end:
    group = [storage.begin_append(b"alone", anything) for _ in range(size)]
    for append in group:
        append.write([record])
    if hasattr(storage, "commit"):
        outcomes = storage.commit(b"alone", group)
        assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    else:
        for append in group:
            append.commit(anything)
    for append in group:
        append.close()
    done += size
print(done / seconds)
storage.close()
"""


@contextlib.contextmanager
def ext4() -> Iterator[Path]:
    """An ext4 with a journal on a loop device with direct I/O, mounted for the block."""
    place = Path(tempfile.mkdtemp(prefix="httpnas-bench-", dir=ROOT))
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    with image.open("wb") as blank:
        os.posix_fallocate(blank.fileno(), 0, 512 << 20)
    run("mkfs.ext4", "-q", "-F", "-O", "has_journal", str(image))
    device = run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    try:
        run("mount", device, str(mounted))
        try:
            yield mounted
        finally:
            run("umount", str(mounted))
    finally:
        run("losetup", "--detach", device)
        shutil.rmtree(place)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def over_http(tree: str, folder: Path, seconds: float, clients: int) -> float:
    """Return how many appends a second *clients* make together."""
    with twistd(folder, env={"PYTHONPATH": tree}) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            client.sendall(b"POST /file/f HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n")
            client.recv(65536)
        done = [0] * clients
        end = time.monotonic() + seconds

        def append(number: int) -> None:
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as client:
                while time.monotonic() < end:
                    client.sendall(REQUEST)
                    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
                    done[number] += 1

        threads = [threading.Thread(target=append, args=[n]) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        daemon.terminate()
        daemon.wait()
    return sum(done) / seconds


def alone(tree: str, folder: Path, seconds: float, group: int) -> float:
    """Return how many appends a second the storage layer makes, in groups of *group*."""
    command = [sys.executable, "-c", ALONE, str(folder), str(seconds), str(group)]
    env = {**os.environ, "PYTHONPATH": tree}
    made = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=folder)
    return float(made.stdout)


def main(other: str, seconds: str = "4", rounds: str = "3") -> None:
    trees = {"this": str(ROOT), "other": str(Path(other).resolve())}
    measures: dict[str, Callable[[str, Path], float]] = {
        f"over HTTP, {count} clients": partial(over_http, seconds=float(seconds), clients=count)
        for count in CLIENTS
    }
    for size in (1, 8):
        measures[f"storage alone, groups of {size}"] = partial(
            alone, seconds=float(seconds), group=size
        )
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(int(rounds)):
        for what, measure in measures.items():
            for name, tree in trees.items():
                with ext4() as mounted:
                    folder = mounted / "root"
                    folder.mkdir()
                    rates.setdefault((what, name), []).append(measure(tree, folder))
    for what in measures:
        mine, theirs = (median(rates[what, name]) for name in trees)
        print(f"{what}: {mine:.0f}/s beside {theirs:.0f}/s: {mine / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
