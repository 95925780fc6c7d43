"""What was measured: one row for each thing, the goals it has, and the table and plots of all."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median

#: The colours of a plot: ground, text, reached, missed, lines.
LIGHT = ("#ffffff", "#1f2328", "#1a7f37", "#bc4c00", "#8c959f")
DARK = ("#0d1117", "#e6edf3", "#3fb950", "#f0883e", "#7d8590")
OURS = "httpnas"


@dataclass(frozen=True)
class Goal:
    """What a row has to reach: *factor* of what another column shows.

    :param of: that column; empty if *factor* itself is the bound, in the unit of the row.
    :param at_most: whether less is better.
    """

    factor: float
    of: str = ""
    at_most: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.factor:g}" + (f" × {self.of}" if self.of else "")


@dataclass
class Row:
    """A thing that was measured.

    :param figures: what each round found, without warm-up, by the name of what was measured.
    :param note: what has to be said about it.
    """

    key: str
    what: str
    unit: str
    figures: dict[str, list[float]]
    goals: Sequence[Goal] = ()
    note: str = ""

    def ratio(self, goal: Goal) -> float | None:
        """Return the ratio of the medians, None if one of the two is not there."""
        ours = self.figures.get(OURS)
        if not goal.of:
            return median(ours) if ours else None
        theirs = self.figures.get(goal.of)
        return median(ours) / median(theirs) if ours and theirs else None

    def is_reached(self, goal: Goal) -> bool | None:
        ratio = self.ratio(goal)
        if ratio is None:
            return None
        return ratio <= goal.factor if goal.at_most else ratio >= goal.factor


@dataclass
class Report:
    """All rows, and what they were measured on."""

    machine: list[str]
    rows: list[Row] = field(default_factory=list)

    def table(self) -> str:
        """Return all rows in Markdown."""
        lines = ["| | unit | httpnas | beside it | goal | reached |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            beside = [f"{name} {_shown(row.figures[name])}" for name in row.figures if name != OURS]
            cells = [
                row.what,
                row.unit,
                _shown(row.figures.get(OURS, [])),
                ", ".join(beside) or "–",
                "; ".join(str(goal) for goal in row.goals) or "–",
                "; ".join(_verdict(row, goal) for goal in row.goals) or "–",
            ]
            if row.note:
                cells[0] += f" ({row.note})"
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*(f"- {line}" for line in self.machine), "", *lines])

    def short_table(self, keys: Collection[str]) -> str:
        """Return the rows with *keys* in Markdown, and how many goals of all are reached."""
        verdicts = [row.is_reached(goal) for row in self.rows for goal in row.goals]
        lines = ["| | beside | ratio | goal | |", "|---|---|---|---|---|"]
        for row in self.rows:
            for goal in row.goals if row.key in keys else ():
                sign, ratio = ("≤" if goal.at_most else "≥"), row.ratio(goal)
                found = "not there" if ratio is None else _number(ratio)
                verdict = {None: "", True: "reached", False: "**missed**"}[row.is_reached(goal)]
                beside = goal.of or row.unit
                lines.append(
                    f"| {row.what} | {beside} | {found} | {sign} {goal.factor:g} | {verdict} |"
                )
        counted = (
            f"Of {len(verdicts)} goals, {verdicts.count(True)} are reached, "
            f"{verdicts.count(False)} are missed, and {verdicts.count(None)} could not be measured."
        )
        return "\n".join([*lines, "", counted])

    def plot(self, colours: tuple[str, str, str, str, str]) -> str:
        """Return a bar for each goal (SVG 1.1): how far it was reached, on a logarithmic scale."""
        ground, text, reached, missed, lines = colours
        goals = [(row, goal, row.ratio(goal)) for row in self.rows for goal in row.goals]
        bars = [(row, goal, ratio) for row, goal, ratio in goals if ratio]
        step, top, left, half = 22, 44, 430, 190
        height = top + step * len(bars) + 16
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13">',
            "<title>What httpnas reaches of each goal</title>",
            f'<rect width="1000" height="{height}" fill="{ground}"/>',
        ]
        for times in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8):
            x = left + half + half * _log8(times)
            label = "goal" if times == 1 else f"{times:g} ×" if times > 1 else f"1/{1 / times:g}"
            parts += [
                f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{top - 8}" y2="{height - 12}" '
                f'stroke="{lines}" stroke-width="{2 if times == 1 else 0.5}"/>',
                f'<text x="{x:.0f}" y="{top - 16}" fill="{text}" text-anchor="middle">'
                f"{label}</text>",
            ]
        for place, (row, goal, ratio) in enumerate(bars):
            share = goal.factor / ratio if goal.at_most else ratio / goal.factor
            length = half * _log8(share)
            start, end = sorted((left + half, left + half + length))
            y = top + step * place
            what = f"{row.what}: {goal}" + ("" if goal.of else f" {row.unit}")
            shown = f"{_number(ratio)}" + (f" × {goal.of}" if goal.of else f" {row.unit}")
            parts += [
                f'<text x="{left - 8}" y="{y + 13}" fill="{text}" text-anchor="end">'
                f"{escape(_cut(what))}</text>",
                f'<rect x="{start:.0f}" y="{y + 2}" width="{max(end - start, 1):.0f}" height="14" '
                f'fill="{reached if share >= 1 else missed}"/>',
                f'<text x="{left + 2 * half + 12}" y="{y + 13}" fill="{text}">'
                f"{escape(shown)}</text>",
            ]
        return "\n".join([*parts, "</svg>", ""])

    def write(self, docs: Path, readme: Path, short: Collection[str]) -> None:
        """Put the tables between the markers of ``performance.md`` and *readme*; draw the plots."""
        put(docs / "performance.md", self.table())
        put(readme, self.short_table(short))
        (docs / "performance-light.svg").write_text(self.plot(LIGHT))
        (docs / "performance-dark.svg").write_text(self.plot(DARK))


def put(document: Path, text: str) -> None:
    """Replace what is between the markers of *document*.

    :raises ValueError: it has no markers.
    """
    begin, end = "<!-- make bench writes this -->\n", "\n<!-- up to here -->"
    before, found, rest = document.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"{document} has no place for what was measured")
    document.write_text(before + begin + text + end + after)


def machine(place: Path, versions: Iterable[str]) -> list[str]:
    """Return what the measuring ran on.

    :param place: a folder on the file system that was measured.
    """
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal: +(\d+)", Path("/proc/meminfo").read_text(), re.M)
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(m, kind) for m, kind in mounts if place.resolve().is_relative_to(m)]
    kind = max(above, key=lambda pair: len(pair[0]))[1] if above else "unknown"
    return [
        f"{os.cpu_count()} processors ({cpu[1] if cpu else platform.machine()}), "
        f"{int(memory[1]) >> 20 if memory else 0} GiB of memory, "
        f"Linux {platform.release().split('-')[0]}, file system {kind}",
        ", ".join([f"Python {platform.python_version()}", *versions]),
    ]


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _shown(samples: list[float]) -> str:
    """Return the median and the spread."""
    if not samples:
        return "not there"
    if len(samples) == 1:
        return _number(samples[0])
    return f"{_number(median(samples))} ({_number(min(samples))}–{_number(max(samples))})"


def _verdict(row: Row, goal: Goal) -> str:
    ratio = row.ratio(goal)
    if ratio is None:
        return "not there"
    return f"{_number(ratio)}, yes" if row.is_reached(goal) else f"**{_number(ratio)}, no**"


def _log8(value: float) -> float:
    """Return the logarithm to the base of 8, from -1 to 1."""
    return max(-1.0, min(1.0, math.log(max(value, 1e-9), 8)))


def _cut(text: str, most: int = 62) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
