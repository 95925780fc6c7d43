"""``python -m bench`` measures all goals, and writes them into the documents.

``--quick`` measures some of them in short, writes nothing, and fails on what has fallen by a third.
``--only=NAME`` runs one measure of :mod:`bench.measures`, and ``--print`` writes to standard output
instead of the documents.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from bench import loads, measures, peers, report
from bench.floors import FLOORS, Floor, fallen
from bench.measures import Measure, Setting
from bench.report import OURS, Report, Row
from tests.harness import ROOT

#: Seconds after which no measure begins any more.
MOST = 570
PEERS = ("nginx", "rclone", "Caddy", "Node", "FastAPI")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--only", action="append")
    parser.add_argument("--size", type=int, help="of a large body, in MiB")
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args(arguments)
    names = PEERS if not given.quick else ("nginx", "rclone", "Node")
    chosen = measures.QUICK if given.quick else measures.ALL
    if given.only:
        chosen = tuple(measure for measure in measures.ALL if measure.__name__ in given.only)
    size = (given.size or (128 if given.quick else 1024)) * loads.MIB
    rounds = given.rounds or (3 if given.quick else 5)
    loads.raise_descriptors()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended by a signal")
    )  # and so end the servers
    with loads.folder_in(ROOT, "httpnas-bench-") as place:
        root = place / "root"
        root.mkdir()
        setting = Setting(place, root, peers.make_certificate(place), size, rounds)
        setting.is_short = given.quick
        with measures.set_up(setting, names) as missing:
            for name in missing:
                print(f"{name} is not there", flush=True)
            found = Report(report.machine(place, peers.versions(setting.peers)))
            failed = run(setting, chosen, found.rows, FLOORS if given.quick else ())
    if given.quick or given.print:
        print(found.table())
    else:
        found.write(ROOT / "docs", ROOT / "README.md", measures.SHORT)
    for line in failed:
        print(line, file=sys.stderr)
    return bool(failed)


def run(
    setting: Setting, chosen: Sequence[Measure], rows: list[Row], floors: Sequence[Floor]
) -> list[str]:
    """Run the measures, and add to *rows* what they found; return what failed.

    What has fallen below its floor is measured once more, and fails if it has fallen again: the
    reason may have been what else the machine did.
    """
    failed, began = [], time.monotonic()
    for measure in chosen:
        start = time.monotonic()
        if start > began + MOST:
            failed.append(f"{measure.__name__}: there was no time left")
            continue
        try:
            made = measure(setting)
            if wrong := fallen(made, floors):
                print("\n".join(["once more:", *wrong.values()]), flush=True)
                made = measure(setting)
                failed += [line for key, line in fallen(made, floors).items() if key in wrong]
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{measure.__name__}: {error}")
            continue
        rows += made
        print(f"{measure.__name__}: {time.monotonic() - start:.0f} s", flush=True)
        for row in made:
            ratios = [f"{goal}: {row.ratio(goal)}" for goal in row.goals]
            print(f"  {row.what}: {'; '.join(ratios) or row.figures.get(OURS)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
