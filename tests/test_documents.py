"""Every command that the documents show is run, and prints what they say it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from jinja2 import Environment

from tests.harness import twistd

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.M | re.S)
DOCUMENTS = [
    document
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```sh" in document.read_text()
]


def scenes(document: Path) -> list[tuple[str, str | None]]:
    """Return each shell block, and the text block behind it if there is one."""
    blocks = BLOCK.findall(document.read_text())
    following = [*blocks, ("", "")][1:]
    return [
        (code, output if after == "text" else None)
        for (kind, code), (after, output) in zip(blocks, following, strict=True)
        if kind == "sh"
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_the_commands_of_a_document_work_when_pasted(document: Path, tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon:
        for code, output in scenes(document):
            script = code.replace("http://localhost:3000", daemon.url)
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert run.returncode == 0, f"{code}\n{run.stdout}{run.stderr}"
            if output is not None:
                assert run.stdout.rstrip("\n") == output.rstrip("\n"), code


def test_the_readme_opens_with_the_two_commands() -> None:
    first = re.search(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert first
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make run",
        "make test",
    ]


def test_a_template_of_airflow_loses_its_last_newline_unless_told_otherwise() -> None:
    assert '{"keep_trailing_newline": True}' in (ROOT / "docs" / "clients.md").read_text()
    assert Environment().from_string("a line\n").render() == "a line"
    told = Environment(keep_trailing_newline=True)
    assert told.from_string("a line\n").render() == "a line\n"
