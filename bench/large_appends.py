"""How long a large append keeps others waiting: those to its file, and those to a name beside it.

``python bench/large_appends.py FOLDER [MIB] [ROUNDS]``, on the storage layer, durability full. With
another tree of httpnas in ``PYTHONPATH``, it measures that one. *FOLDER* is made and stays.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from pathlib import Path
from statistics import median

if not os.environ.get("PYTHONPATH"):
    sys.path.insert(0, str(Path(__file__).parent.parent))

from httpnas.storage.append import Append
from httpnas.storage.locks import BUCKETS
from httpnas.storage.store import Storage
from httpnas.storage.version import Find

MIB = 1 << 20


def anything(find: Find) -> None:
    """Let whatever is there be changed."""


def store(storage: Storage, name: bytes, content: bytes) -> None:
    upload = storage.begin_upload(name, anything)
    upload.write([content])
    upload.publish(anything)
    upload.close()


def neighbour(folder: Path, name: bytes) -> bytes:
    """Return another name in *folder* that has the lock of *name*."""

    def bucket(name: bytes) -> int:
        return zlib.crc32(b"%x/%s" % (folder.stat().st_ino, name)) % BUCKETS

    return next(n for n in (b"n%d" % i for i in range(10_000)) if bucket(n) == bucket(name))


def measure(folder: Path, mib: int) -> tuple[float, float]:
    """Return for how many seconds the append held its file, and what a name beside it took."""
    storage = Storage(str(folder))
    store(storage, b"f", b"o" * 100_003)
    append = storage.begin_append(b"f", anything)
    assert isinstance(append, Append)
    chunk = os.urandom(MIB)
    for _ in range(mib):
        append.write([chunk])
    append.write([b"end\n"])
    append.sync()
    beside, worst, ended = neighbour(folder, b"f"), [0.0], threading.Event()

    def change() -> None:
        while not ended.is_set():
            began = time.monotonic()
            store(storage, beside, b"x")
            worst[0] = max(worst[0], time.monotonic() - began)

    other = threading.Thread(target=change)
    other.start()
    began = time.monotonic()
    append.commit()
    seconds = time.monotonic() - began
    ended.set()
    other.join()
    append.close()
    storage.close()
    return seconds, worst[0]


def main(folder: str, mib: str = "1024", rounds: str = "3") -> None:
    path = Path(folder)
    path.mkdir(exist_ok=True)
    figures = [measure(path, int(mib)) for _ in range(int(rounds))]
    own, others = (median(column) for column in zip(*figures, strict=True))
    print(f"{mib} MiB: {own:.3f} s for the file, at most {others:.3f} s for a name beside it")


if __name__ == "__main__":
    main(*sys.argv[1:4])
