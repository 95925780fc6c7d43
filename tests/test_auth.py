"""``--auth`` of a real daemon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from tests.access import files
from tests.access.files import rule, token, token_of
from tests.harness import PATIENCE, TWISTD, twistd, wait_until

ALICE = ("alice", "secret")


def bearing(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(name)}"}


def test_a_daemon_asks_who_it_is(tmp_path: Path) -> None:
    auth = files.write(
        tmp_path,
        token("ci"),
        rule("alice", "/", ["list", "read", "create"]),
        rule("ci", "/in", ["create"]),
    )
    with twistd(tmp_path / "root", f"--auth={auth}") as daemon:
        url = daemon.url + "/file/in/a"
        assert requests.post(url, data=b"x", timeout=PATIENCE).status_code == 401
        posted = requests.post(url, data=b"x", headers=bearing("ci"), timeout=PATIENCE)
        assert posted.status_code == 200
        assert requests.get(url, headers=bearing("ci"), timeout=PATIENCE).status_code == 403
        got = requests.get(url, auth=ALICE, timeout=PATIENCE)
        assert (got.status_code, got.content) == (200, b"x")
        assert requests.get(url, auth=("alice", "x"), timeout=PATIENCE).status_code == 401
        daemon.terminate()
        assert daemon.wait() == 0
        log = daemon.log()
    assert '"principal": "ci"' in log and '"principal": "alice"' in log
    assert "audit: request" in log
    assert "secret" not in log and token_of("ci") not in log


def test_a_relative_path_and_the_environment_will_do(tmp_path: Path) -> None:
    files.write(tmp_path, rule("anonymous", "/", ["list"]))
    with twistd(tmp_path / "root", env={"HTTPNAS_AUTH": "auth.toml"}) as daemon:
        assert requests.get(daemon.url + "/file/", timeout=PATIENCE).status_code == 200
        assert requests.get(daemon.url + "/file/x", timeout=PATIENCE).status_code == 404
        assert requests.delete(daemon.url + "/file/x", timeout=PATIENCE).status_code == 401


@pytest.mark.parametrize(
    "text, told",
    [
        ("realm = 1\n", "auth.toml:1: realm: this must be a string"),
        ("x", "auth.toml:1: "),
        (None, "auth.toml: No such file or directory"),
    ],
)
def test_a_wrong_file_ends_the_daemon_with_one_line(
    tmp_path: Path, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / "auth.toml").write_text(text)
    options = [f"--storage={tmp_path}/root", f"--auth={tmp_path}/auth.toml", "--listen=tcp:0"]
    run = subprocess.run(
        [*TWISTD, "-n", "--pidfile=", "httpnas", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"httpnas: --auth: {tmp_path}/{told}")
    assert run.stderr.count("\n") == 1 and run.stdout == ""


def test_a_hangup_reads_the_file_again_though_it_has_not_changed(tmp_path: Path) -> None:
    auth = files.write(tmp_path)
    with twistd(tmp_path / "root", f"--auth={auth}") as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "was read again: 0 rules" in daemon.log(), "the file to be read again")


def test_a_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    auth = files.write(tmp_path, rule("anonymous", "/", ["list"]))
    with twistd(tmp_path / "root", f"--auth={auth}") as daemon:
        url = daemon.url + "/file/"
        assert requests.get(url, timeout=PATIENCE).status_code == 200
        files.write(tmp_path)
        wait_until(lambda: "was read again: 0 rules" in daemon.log(), "the file to be read again")
        assert requests.get(url, timeout=PATIENCE).status_code == 401
        auth.write_text("realm = 1")
        wait_until(lambda: f"{auth}:1: realm" in daemon.log(), "the error to be logged")
        assert requests.get(url, timeout=PATIENCE).status_code == 401
        files.write(tmp_path, rule("anonymous", "/", ["list"]))
        wait_until(
            lambda: requests.get(url, timeout=PATIENCE).status_code == 200, "the change to count"
        )


def mount(folder: Path, number: int, *tables: str) -> None:
    """Show a Secret in *folder* as the kubelet does: all files change by one rename of a link."""
    (folder / f"..{number}").mkdir()
    files.write(folder / f"..{number}", *tables)
    (folder / "..data_tmp").symlink_to(f"..{number}")
    (folder / "..data_tmp").rename(folder / "..data")
    for name in ("auth.toml", "htpasswd"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_a_change_of_a_secret_is_noticed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    mount(secret, 1, rule("alice", "/", ["list"]))
    with twistd(tmp_path / "root", f"--auth={secret}/auth.toml") as daemon:
        url = daemon.url + "/file/"
        assert requests.get(url, auth=ALICE, timeout=PATIENCE).status_code == 200
        mount(secret, 2)
        shutil.rmtree(secret / "..1")
        wait_until(lambda: "was read again: 0 rules" in daemon.log(), "the Secret to be read again")
        assert requests.get(url, auth=ALICE, timeout=PATIENCE).status_code == 403


def test_who_asks_is_in_the_lines_for_people_too(tmp_path: Path) -> None:
    auth = files.write(tmp_path, rule("alice", "/", ["list"]))
    with twistd(tmp_path / "root", f"--auth={auth}", terminal=True) as daemon:
        url = daemon.url + "/file/"
        assert requests.get(url, auth=ALICE, timeout=PATIENCE).status_code == 200
        assert requests.get(daemon.url + "/health", timeout=PATIENCE).status_code == 200
        wait_until(lambda: "GET /health" in daemon.log(), "the lines")
        (line,) = [line for line in daemon.log().splitlines() if "GET / in=" in line]
        assert line.rstrip().endswith(" alice")
