"""The benchmark in its smallest form, and its report from figures that are made up."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import measures, peers
from bench.floors import FLOORS, Floor, fallen
from bench.loads import MIB, Wrong, requests
from bench.measures import Setting, set_up
from bench.report import DARK, LIGHT, OURS, Goal, Report, Row, put
from tests.harness import Nas

FAST = Row("fast", "GET <fast>", "MiB/s", {OURS: [30, 10, 20], "nginx": [10]}, [Goal(1.5, "nginx")])
SLOW = Row("slow", "POST", "s", {OURS: [4.0], "nginx": [2.0]}, [Goal(1.2, "nginx", at_most=True)])
ALONE = Row("alone", "memory", "MiB", {OURS: [61.5]}, [Goal(60, at_most=True)])
ABSENT = Row("absent", "GET", "1/s", {OURS: [5.0]}, [Goal(2.0, "Node")], note="new")
REPORT = Report(["a machine"], [FAST, SLOW, ALONE, ABSENT])


def test_the_table_has_medians_spread_and_verdicts() -> None:
    assert REPORT.table().splitlines() == [
        "- a machine",
        "",
        "| | unit | httpnas | beside it | goal | reached |",
        "|---|---|---|---|---|---|",
        "| GET <fast> | MiB/s | 20.0 (10.0–30.0) | nginx 10.0 | ≥ 1.5 × nginx | 2.00, yes |",
        "| POST | s | 4.00 | nginx 2.00 | ≤ 1.2 × nginx | **2.00, no** |",
        "| memory | MiB | 61.5 | – | ≤ 60 | **61.5, no** |",
        "| GET (new) | 1/s | 5.00 | – | ≥ 2 × Node | not there |",
    ]


def test_the_short_table_shows_misses_and_counts_all_goals() -> None:
    assert REPORT.short_table({"slow", "absent"}).splitlines() == [
        "| | beside | ratio | goal | |",
        "|---|---|---|---|---|",
        "| POST | nginx | 2.00 | ≤ 1.2 | **missed** |",
        "| GET | Node | not there | ≥ 2 |  |",
        "",
        "Of 4 goals, 1 are reached, 2 are missed, and 1 could not be measured.",
    ]


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_the_plot_has_a_bar_for_each_goal_on_the_right_side_of_the_line(
    colours: tuple[str, str, str, str, str],
) -> None:
    drawn = ElementTree.fromstring(REPORT.plot(colours))
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")[1:]
    assert [bar.get("fill") for bar in bars] == [colours[2], colours[3], colours[3]]
    line = 620
    assert float(bars[0].attrib["x"]) == line
    assert float(bars[1].attrib["x"]) + float(bars[1].attrib["width"]) == line


def test_tables_are_written_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    begin, end = "<!-- make bench writes this -->", "<!-- up to here -->"
    for name in ("performance.md", "README.md"):
        (tmp_path / name).write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):
        REPORT.write(tmp_path, tmp_path / "README.md", {"fast"})
    for name, table in (
        ("performance.md", REPORT.table()),
        ("README.md", REPORT.short_table({"fast"})),
    ):
        assert (tmp_path / name).read_text() == f"before\n{begin}\n{table}\n{end}\nafter\n"
    assert (tmp_path / "performance-dark.svg").read_text() == REPORT.plot(DARK)
    (tmp_path / "README.md").write_text("no place")
    with pytest.raises(ValueError, match="no place"):
        put(tmp_path / "README.md", "x")


def test_a_fall_by_more_than_a_third_is_told_in_both_directions() -> None:
    enough = [Floor("fast", "nginx", 2.9), Floor("slow", "nginx", 1.4, at_most=True)]
    too_little = [Floor("fast", "nginx", 3.1), Floor("slow", "nginx", 1.3, at_most=True)]
    assert fallen([FAST, SLOW], enough) == {}
    told = fallen([FAST, SLOW], too_little)
    assert told == {
        "fast": "GET <fast>: 2.00 × nginx, but it was 3.10 before",
        "slow": "POST: 2.00 × nginx, but it was 1.30 before",
    }
    assert fallen([ABSENT], [Floor("absent", "Node", 9), Floor("none", "Node", 9)]) == {}


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel counts no time")
def test_the_smallest_form_of_the_benchmark_runs(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    pem = peers.make_certificate(tmp_path)
    small = Setting(
        tmp_path, tmp_path / "root", pem, size=2 * MIB, rounds=1, seconds=0.02, transfers=4
    )
    chosen = [
        measures.downloads,
        measures.uploads,
        measures.small_requests,
        measures.small_uploads,
        measures.line_counts,
        measures.memory,
    ]
    with set_up(small, ()) as missing:
        rows = {row.key: row for measure in chosen for row in measure(small)}
    assert missing == []
    assert all(len(row.figures[OURS]) == 1 and row.figures[OURS][0] > 0 for row in rows.values())
    assert rows["whole"].figures[OURS] == [8.0]
    assert {floor.key for floor in FLOORS} <= {*rows, "append-1", "append-8", "append-64"}
    assert set(measures.SHORT) <= {*rows, "append-1", "append-64", "workers-small", "fair"}


def test_a_peer_that_is_not_installed_is_missing_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_there(name: str) -> str:
        raise peers.NotThere(name)

    (tmp_path / "root").mkdir()
    small = Setting(tmp_path, tmp_path / "root", peers.make_certificate(tmp_path), size=MIB)
    monkeypatch.setattr(peers, "program", not_there)
    with set_up(small, ("nginx", "Node")) as missing:
        assert missing == ["nginx", "Node"]
        assert [peer.name for peer in small.beside("nginx", "Node")] == [OURS]


async def test_a_load_fails_when_an_answer_is_not_the_right_one(nas: Nas) -> None:
    request = b"GET /file/missing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with pytest.raises(Wrong, match="404"):
        await nas.in_thread(requests, nas.port, lambda _: request, 2, 0.05)


def test_the_documents_have_a_place_for_what_was_measured() -> None:
    root = Path(__file__).parent.parent
    for document in (root / "README.md", root / "docs" / "performance.md"):
        found = re.findall(
            r"<!-- make bench writes this -->\n.+?\n<!-- up to here -->\n",
            document.read_text(),
            re.S,
        )
        assert len(found) == 1
