"""The units for systemd: what it says of them, and that the daemon lives with what they allow."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.harness import PATIENCE, ROOT, TWISTD, connect, receive_answer, wait_until

pytestmark = pytest.mark.deploy

UNITS = ROOT / "deploy" / "systemd"
CLIENT = ROOT / "k8s" / "test_client.py"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def tool(name: str, package: str) -> str:
    """Return the path of *name*, or skip the test."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"not there: {name} (apt-get install {package})")
    return found


def setting(name: str, unit: str = "httpnas.service") -> list[str]:
    """Return the values that *unit* gives to *name*."""
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.M)


def environment(storage: Path) -> dict[str, str]:
    """Return the variables that systemd and the unit set, with a storage folder of our own.

    Without HOME, Python would ask the system's databases for it, by a socket.
    """
    found = dict(line.split("=", 1) for line in setting("Environment"))
    assert found["STORAGE_PATH"] == "/var/lib/" + setting("StateDirectory")[0]
    return {"HOME": "/", **found, "STORAGE_PATH": str(storage), "PYTHONPATH": str(ROOT)}


def command() -> list[str]:
    """Return what the unit starts, of this tree."""
    (line,) = setting("ExecStart")
    program, *options = shlex.split(line)
    assert program == "/opt/httpnas/bin/twistd"
    return [*TWISTD, *options]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of the units that start a program which is there."""
    program = tmp_path / "twistd"
    program.touch(0o755)
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/httpnas/bin/twistd", str(program))
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def verify(units: Path) -> str:
    """Return what systemd complains of."""
    analyze = tool("systemd-analyze", "systemd")
    names = ["httpnas.service", "httpnas.socket"]
    run = subprocess.run(
        [analyze, "verify", "--man=no", *(str(units / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in run.stderr.splitlines() if "httpnas" in line]
    return "\n".join(lines) or (run.stderr if run.returncode else "")


def exposure(units: Path) -> float:
    """Return how much the service could reach, from 0 to 10, as systemd reckons."""
    analyze = tool("systemd-analyze", "systemd")
    run = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", str(units / "httpnas.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"Overall exposure level for httpnas.service: ([\d.]+)", run.stdout)
    assert found, run.stdout + run.stderr
    return float(found[1])


def test_systemd_takes_the_units(units: Path) -> None:
    assert verify(units) == ""


@pytest.mark.parametrize(
    "unit, old, new",
    [
        ("httpnas.service", "ProtectSystem=", "ProtectSytem="),
        ("httpnas.service", "Type=exec", "Type=execute"),
        ("httpnas.service", "=@system-service", "=@system-services"),
        ("httpnas.socket", "ListenStream=127.0.0.1:3000", "ListenStream=127.0.0.1:300000"),
    ],
)
def test_a_mistake_in_a_unit_is_seen(units: Path, unit: str, old: str, new: str) -> None:
    text = (units / unit).read_text()
    assert old in text
    (units / unit).write_text(text.replace(old, new))
    assert verify(units) != ""


def test_the_service_can_reach_next_to_nothing(units: Path) -> None:
    assert exposure(units) <= 1.0


@pytest.mark.parametrize("line", ["CapabilityBoundingSet=", "PrivateNetwork=yes"])
def test_a_door_left_open_counts(units: Path, line: str) -> None:
    before = exposure(units)
    unit = units / "httpnas.service"
    text = unit.read_text()
    assert f"\n{line}\n" in text
    unit.write_text(text.replace(f"\n{line}\n", "\n"))
    assert exposure(units) > before


def test_systemd_waits_longer_than_the_daemon_drains() -> None:
    assert int(setting("TimeoutStopSec")[0]) > 30


def test_the_socket_has_the_name_that_the_service_asks_for() -> None:
    (name,) = setting("FileDescriptorName", "httpnas.socket")
    listen = environment(Path("/a"))["HTTPNAS_LISTEN"]
    assert listen == f"systemd:domain=INET:name={name}"
    (place,) = setting("ListenStream", "httpnas.socket")
    assert place.startswith("127.0.0.1:")


def answer(port: int) -> int:
    """Return the status of ``/health``."""
    with connect(port) as client:
        client.sendall(GET)
        return receive_answer(client)[0]


@contextlib.contextmanager
def running(arguments: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program for as long as the block; what it says is in *log*."""
    with log.open("w") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, text=True, **options)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("network", ["shared", "private"])
def test_systemd_starts_the_daemon_with_the_first_request(network: str, tmp_path: Path) -> None:
    activate = tool("systemd-socket-activate", "systemd")
    alone = []
    if network == "private":  # as PrivateNetwork= has it
        alone = [tool("unshare", "util-linux"), "--user", "--map-current-user", "--net", "--"]
        if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
            pytest.skip("namespaces are not allowed here")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    variables = [f"-E{name}={value}" for name, value in environment(tmp_path / "root").items()]
    (name,) = setting("FileDescriptorName", "httpnas.socket")
    arguments = [f"--listen=127.0.0.1:{port}", f"--fdname={name}", *variables]
    log = tmp_path / "log"
    with running([activate, *arguments, *alone, *command()], log, cwd=tmp_path) as process:
        wait_until(lambda: f"127.0.0.1:{port}" in log.read_text(), "systemd to listen")
        assert not (tmp_path / "root").exists()
        assert answer(port) == 200
        wait_until(lambda: f"at http://127.0.0.1:{port}" in log.read_text(), "the log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def with_socket(listening: socket.socket, *before: str) -> list[str]:
    """Return what starts the daemon with *listening* as systemd would hand it over."""
    (name,) = setting("FileDescriptorName", "httpnas.socket")
    handed = f"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name}"
    script = f'exec 3<&{listening.fileno()}; {handed} exec "$@"'
    return [*before, "bash", "-c", script, "bash", *command()]


def test_who_connects_while_it_is_restarted_waits(tmp_path: Path) -> None:
    env = {**os.environ, **environment(tmp_path / "root")}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        options = {"env": env, "cwd": tmp_path, "pass_fds": [listening.fileno()]}
        with running(with_socket(listening), tmp_path / "first", **options) as first:
            assert answer(port) == 200
            first.send_signal(signal.SIGTERM)
            assert first.wait(PATIENCE) == 0
        with connect(port) as client:
            client.sendall(GET)
            with running(with_socket(listening), tmp_path / "second", **options):
                assert receive_answer(client)[0] == 200


@cache
def system_calls(group: str) -> frozenset[str]:
    """Return the system calls of a group of systemd's."""
    analyze = tool("systemd-analyze", "systemd")
    run = subprocess.run(
        [analyze, "syscall-filter", group], capture_output=True, text=True, timeout=30, check=True
    )
    members = [line.strip() for line in run.stdout.splitlines()[1:]]
    named = {name for name in members if re.fullmatch(r"\w+", name)}
    groups = [name for name in members if name.startswith("@")]
    return frozenset(named.union(*map(system_calls, groups)))


def allowed() -> set[str]:
    """Return the system calls that the unit allows."""
    found: set[str] = set()
    for line in setting("SystemCallFilter"):
        for group in line.lstrip("~").split():
            calls = system_calls(group) if group.startswith("@") else {group}
            found = found - calls if line.startswith("~") else found | calls
    return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The system calls of a daemon that has all of its doors used, and stops."""
    strace = tool("strace", "strace")
    folder = tmp_path_factory.mktemp("traced")
    trace = folder / "trace"
    env = {**os.environ, **environment(folder / "root")}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        start = with_socket(listening, strace, "-f", "-qq", "-s0", "-o", str(trace))
        log = folder / "log"
        pass_fds = [listening.fileno()]
        with running(start, log, env=env, cwd=folder, pass_fds=pass_fds) as process:
            port = listening.getsockname()[1]
            assert answer(port) == 200, log.read_text()
            url = f"http://127.0.0.1:{port}"
            subprocess.run(
                [sys.executable, CLIENT, "--url", url], check=True, timeout=120, capture_output=True
            )
            for path in ("/metrics", "/transfers", "/", "/openapi.json"):
                with connect(port) as client:
                    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                    client.recv(1)
            # strace keeps signals from itself; the daemon is its only child.
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGTERM)
            process.wait(PATIENCE)
    # What the shell of with_socket asks for before (the name of its user, say) is not the daemon's.
    before, started, after = trace.read_text().partition(f'execve("{command()[0]}"')
    assert started, before
    return started + after


def calls(trace: str) -> set[str]:
    return set(re.findall(r"^\d+ +(\w+)\(", trace, re.M))


def test_every_system_call_of_the_daemon_is_allowed(traced: str) -> None:
    # "close" and "exit" show that groups are read; the rest, that the daemon was really used.
    assert {"close", "exit_group", "openat"} <= allowed()
    assert {"accept4", "renameat", "fsync", "flock", "sendto"} & calls(traced)
    assert calls(traced) - allowed() == set()


def test_what_is_not_allowed_would_be_seen() -> None:
    assert calls("12  clock_settime(CLOCK_REALTIME, NULL) = -1\n") - allowed() == {"clock_settime"}


def test_the_daemon_makes_no_memory_that_is_written_and_run(traced: str) -> None:
    assert "PROT_READ" in traced
    mapped = re.findall(r"^\d+ +(?:mmap|pkey_mprotect|mprotect)\(.*$", traced, re.M)
    assert [m for m in mapped if "PROT_WRITE|PROT_EXEC" in m] == []
    assert [m for m in mapped if "mprotect(" in m and "PROT_EXEC" in m] == []


def families(trace: str) -> set[str]:
    """Return the families of the sockets that were made."""
    return set(re.findall(r"^\d+ +socket(?:pair)?\((AF_\w+)", trace, re.M))


def test_the_daemon_makes_no_sockets_beside_the_one_it_is_given(traced: str) -> None:
    assert setting("RestrictAddressFamilies") == ["none"]
    assert families(traced) == set()
    assert families("12  socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 5\n") == {
        "AF_INET"
    }
