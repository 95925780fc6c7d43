"""This tree beside another one of httpnas, in turn, as ratios.

``python bench/versus.py TREE [MIB] [ROUNDS]``: uploads with ``--durability none``, of lines of
text, which is what counting them costs most for, and of random bytes.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness import twistd  # noqa: E402


def main(other: str, mib: int = 512, rounds: int = 9) -> None:
    folder = Path(tempfile.mkdtemp(prefix="httpnas-bench-", dir=ROOT))
    sources = {"text": "seq -w 100000000", "random": "cat /dev/urandom"}
    try:
        for name, source in sources.items():
            make = f"set +o pipefail; {source} | head -c {mib << 20} > {folder / name}"
            subprocess.run(["bash", "-c", make], check=True)
        env = {"PYTHONPATH": str(Path(other).resolve())}
        with (
            twistd(folder / "this", "--durability=none") as this,
            twistd(folder / "other", "--durability=none", env=env) as that,
        ):
            for name in sources:
                compare(name, f"curl -sSf -X POST -T {folder / name}", this.url, that.url, rounds)
    finally:
        shutil.rmtree(folder)


def seconds(command: str) -> float:
    began = time.monotonic()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - began


def compare(name: str, curl: str, this: str, that: str, rounds: int) -> None:
    taken = []
    for round_ in range(rounds):
        urls = [this, that] if round_ % 2 else [that, this]
        spent = {url: seconds(f"{curl} {url}/file/x") for url in urls}
        taken.append((spent[this], spent[that]))
    ratios = [other / own for own, other in taken]
    own, other = (statistics.median(column) for column in zip(*taken, strict=True))
    print(
        f"upload of {name}: {own:.2f} s beside {other:.2f} s; speed {other / own:.3f} of the other,"
    )
    print(f"  median of the {rounds} pairs' ratios {statistics.median(ratios):.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:4]))
