"""Every command that the documents show is run, and prints what they say it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment

from tests.harness import twistd

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.M | re.S)
DOCUMENTS = [
    document
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```sh" in document.read_text() and document.name != "security.md"
]
RECIPES = [
    section
    for section in (ROOT / "docs" / "security.md").read_text().split("\n## ")
    if "```sh" in section
]


def scenes(text: str) -> list[tuple[str, str | None]]:
    """Return each shell block, and the text block behind it if there is one."""
    blocks = BLOCK.findall(text)
    following = [*blocks, ("", "")][1:]
    return [
        (code, output if after == "text" else None)
        for (kind, code), (after, output) in zip(blocks, following, strict=True)
        if kind == "sh"
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_the_commands_of_a_document_work_when_pasted(document: Path, tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon:
        for code, output in scenes(document.read_text()):
            play(code.replace("http://localhost:3000", daemon.url), output, tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.partition("\n")[0])
def test_a_recipe_for_rights_works_when_pasted(recipe: str, tmp_path: Path) -> None:
    """What it does before the first request makes the files that the daemon is started with."""
    acts = scenes(recipe)
    first = next(n for n, (code, _) in enumerate(acts) if "://localhost:3000" in code)
    command = re.search(r"`twistd -n httpnas ([^`]*)`", recipe)
    options = command[1].split() if command else ["--auth=auth.toml"]
    for code, output in acts[:first]:
        play(code, output, tmp_path)
    with twistd(tmp_path / "root", *options, cwd=tmp_path) as daemon:
        for code, output in acts[first:]:
            here = code.replace("http://localhost:3000", daemon.url)
            play(here.replace("localhost:3000", f"localhost:{daemon.port}"), output, tmp_path)


def play(code: str, output: str | None, folder: Path) -> None:
    """Run *code* in *folder*; it must print *output* if that is given."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
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
