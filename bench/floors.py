"""What ``make bench-quick`` fails at: a fall by more than a third, in ratios only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench.report import OURS, Row

#: The share of what was reached that has to be reached again.
SHARE = 2 / 3


@dataclass(frozen=True)
class Floor:
    """A ratio that was reached.

    :param key: of the row.
    :param of: beside what.
    :param at_most: whether less is better.
    """

    key: str
    of: str
    reached: float
    at_most: bool = False


#: The least that was reached in several runs on two shared cores, of what varies least.
FLOORS: tuple[Floor, ...] = (
    Floor("get-8", "nginx", 0.65),
    Floor("cpu-sent", "nginx", 1.8, at_most=True),
    Floor("cpu-received", "nginx", 1.1, at_most=True),
    Floor("get-small", "rclone", 0.65),
    Floor("cpu-small", "rclone", 2.0, at_most=True),
)


def fallen(rows: Iterable[Row], floors: Iterable[Floor] = FLOORS) -> dict[str, str]:
    """Return what has fallen by more than a third: the key of the row, and what to say.

    What could not be measured has not fallen: its peer is not there.
    """
    by_key = {row.key: row for row in rows}
    wrong = {}
    for floor in floors:
        row = by_key.get(floor.key)
        if row is None or not row.figures.get(OURS) or not row.figures.get(floor.of):
            continue
        ratio = median(row.figures[OURS]) / median(row.figures[floor.of])
        share = floor.reached / ratio if floor.at_most else ratio / floor.reached
        if share < SHARE:
            wrong[floor.key] = (
                f"{row.what}: {ratio:.2f} × {floor.of}, but it was {floor.reached:.2f} before"
            )
    return wrong
