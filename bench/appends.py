"""Appends of 100 bytes to one file, by many clients and by one, beside another tree of httpnas.

``python bench/appends.py TREE [SECONDS] [ROUNDS]``, as root: on an ext4 with a journal on a loop
device with direct I/O over a file on disk, where a sync costs what it costs; durability full. It
prints the medians of ROUNDS, in which both trees are measured in turn: over HTTP with 1, 8 and 64
clients on connections that they keep, and of the storage layer alone, one by one and, where the
tree can, in groups of 8.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench import limits, loads  # noqa: E402
from tests.harness import twistd  # noqa: E402

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


def over_http(tree: str, folder: Path, seconds: float, clients: int) -> float:
    """Return how many appends a second *clients* make together."""
    with twistd(folder, env={"PYTHONPATH": tree}) as daemon:
        with loads.connect(daemon.port) as client:
            client.sendall(loads.head("POST", "/file/f", "Content-Length: 0"))
            loads.answer(client)
        rate = loads.appends(daemon.port, "/file/f", clients, seconds)
        daemon.terminate()
        daemon.wait()
    return rate


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
                with (
                    loads.folder_in(ROOT, "httpnas-bench-") as place,
                    limits.ext4(place) as mounted,
                ):
                    folder = mounted / "root"
                    folder.mkdir()
                    rates.setdefault((what, name), []).append(measure(tree, folder))
    for what in measures:
        mine, theirs = (median(rates[what, name]) for name in trees)
        print(f"{what}: {mine:.0f}/s beside {theirs:.0f}/s: {mine / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
