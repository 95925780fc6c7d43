"""``python -m httpnas.access``."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from httpnas.access.__main__ import main
from httpnas.access.config import load
from httpnas.access.passwords import is_right, read_passwords
from tests.access import files
from tests.access.files import rule


def test_a_new_token_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "ci", "--days", "1"]) == 0
    token, table = capsys.readouterr().out.split("\n", 1)
    found = load(str(files.write(tmp_path, table))).tokens.find(token.encode())
    assert found is not None and found.name == "ci"


def test_a_new_password_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("so secret\n"))
    assert main(["password", "carol"]) == 0
    (kept,) = read_passwords(capsys.readouterr().out).values()
    assert is_right(kept, b"so secret")


@pytest.mark.parametrize(
    "who, what, name, status, told",
    [
        ("alice", "read", "/team/a", 0, ["read /team/a: allowed by the rule at {}:7"]),
        ("alice", "download", "/other", 1, ["read /other: denied, as no rule", "list /other"]),
        ("alice", "read", "/team/secret/x", 1, ["denied by the rule at {}:2"]),
        ("alice", "delete", "/team", 0, ["allowed", "/team/secret: denied by the rule at {}:2"]),
        ("anonymous", "read", "//team/./a", 1, ["read /team/a: denied"]),
        ("anonymous", "read", "/team/../a", 2, []),
    ],
)
def test_which_rule_decides_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    who: str,
    what: str,
    name: str,
    status: int,
    told: list[str],
) -> None:
    everything = ["read", "delete"]
    path = files.write(
        tmp_path, rule("alice", "/team/secret", [], everything), rule("alice", "/team", everything)
    )
    assert main(["check", str(path), who, what, name]) == status
    printed = capsys.readouterr().out
    for each in told:
        assert each.format(path) in printed


def test_a_broken_file_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "auth.toml").write_text("x = 1\n")
    assert main(["check", str(tmp_path / "auth.toml"), "alice", "read", "/"]) == 2
    assert "auth.toml:1: x: there is no such key" in capsys.readouterr().err
