"""Several workers behind one socket: real processes, which are killed, stopped and drained."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpnas.options import Options
from httpnas.web.metrics import Metrics
from tests.harness import Client, Twistd, twistd, wait_until
from tests.test_process import started


def workers_of(daemon: Twistd) -> list[int]:
    """Return the processes of the workers."""
    pid = daemon.process.pid
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ask(
    daemon: Twistd, method: str, path: str, body: bytes | None = None, **fields: str
) -> tuple[int, bytes]:
    """Return the answer to a request on a connection of its own."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)) as client:
        client.request(method, path, body, headers)
        answer = client.getresponse()
        return answer.status, answer.read()


def metric(daemon: Twistd, name: str) -> float:
    """Return the sum of all series of a metric."""
    document = ask(daemon, "GET", "/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", document, re.M))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Twistd]:
    with twistd(tmp_path / "root", "--workers=2", "--drain=5") as daemon:
        yield daemon


def both_busy(daemon: Twistd) -> list[Client]:
    """Return connections with uploads that have begun, some with each worker."""
    clients: list[Client] = []
    while len({pid for pid in workers_of(daemon) if connections_of(pid)}) < 2:
        assert len(clients) < 50, "one worker takes all connections"
        clients.append(Client(daemon.port))
        head = f"POST /file/up-{len(clients)} HTTP/1.1\r\nHost: nas\r\nContent-Length: 4\r\n\r\n"
        clients[-1].send(head.encode() + b"bo")
        wait_until(lambda: running_in(daemon) == len(clients), "the upload to begin")
    return clients


def running_in(daemon: Twistd) -> int:
    """Return how many transfers run."""
    return len(json.loads(ask(daemon, "GET", "/transfers")[1])["running"])


def connections_of(pid: int) -> int:
    """Return how many connections over TCP a process has."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = entry.split()
        if fields[3] == "01":
            inodes.add(fields[9])
    names = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return sum(name.removeprefix("socket:[").removesuffix("]") in inodes for name in names)


def test_what_operators_ask_is_answered_for_all_workers(daemon: Twistd) -> None:
    clients = both_busy(daemon)
    transfers = json.loads(ask(daemon, "GET", "/transfers")[1])["running"]
    assert {each["name"] for each in transfers} == {
        f"/up-{number}" for number in range(1, len(clients) + 1)
    }
    assert metric(daemon, "httpnas_transfers_running") == len(clients)
    assert metric(daemon, "httpnas_workers") == 2
    for client in clients:
        client.send(b"dy")
        assert client.answer()[0] == 200
    uploads = ask(daemon, "GET", "/metrics")[1].decode()
    assert f'door="file",status="200",verb="upload"}} {len(clients)}.0' in uploads
    ended = json.loads(ask(daemon, "GET", "/transfers?limit=1")[1])["ended"]
    assert len(ended) == 1
    assert ask(daemon, "GET", "/ready")[0] == 200


def test_a_worker_that_does_not_answer_is_told_of(daemon: Twistd) -> None:
    stopped, awake = workers_of(daemon)
    os.kill(stopped, signal.SIGSTOP)
    try:
        # Whatever the stopped one has accepted waits; the other one takes the rest.
        status, document = ask(daemon, "GET", "/ready")
        assert (status, json.loads(document)["reasons"]) == (503, ["A worker does not answer."])
        assert metric(daemon, "httpnas_workers") == 1
        assert is_running(awake)
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: ask(daemon, "GET", "/ready")[0] == 200, "all to be ready")


def test_a_worker_that_is_killed_loses_nothing_that_was_acknowledged(
    daemon: Twistd, tmp_path: Path
) -> None:
    assert ask(daemon, "POST", "/file/log", b"")[0] == 200
    acknowledged: list[str] = []
    stop = threading.Event()

    def has(number: int) -> bool:
        return len(acknowledged) >= number

    def append(number: int) -> None:
        serial = 0
        while not stop.is_set():
            line = f"{number}-{serial}"
            try:
                status = ask(daemon, "PUT", "/file/log", line.encode() + b"\n")[0]
            except (OSError, http.client.HTTPException):
                status = 0  # it went with its worker
            if status == 200:
                acknowledged.append(line)
            serial += 1

    threads = [threading.Thread(target=append, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    killed = []
    for _ in range(3):
        wanted = len(acknowledged) + 20
        wait_until(partial(has, wanted), "appends to go on")
        killed.append(workers_of(daemon)[0])
        os.kill(killed[-1], signal.SIGKILL)
        wait_until(
            lambda: len(workers_of(daemon)) == 2 and killed[-1] not in workers_of(daemon),
            "another worker",
        )
    stop.set()
    for thread in threads:
        thread.join()
    lines = ask(daemon, "GET", "/file/log")[1].decode().split()
    assert set(acknowledged) <= set(lines)
    assert len(lines) == len(set(lines))
    assert "worker 0 has ended" in daemon.log()


def test_modules_in_the_working_directory_are_not_loaded(daemon: Twistd) -> None:
    """Whoever can store files there could run code in the next worker."""
    (daemon.root.parent / "json.py").write_text("raise SystemExit('run')")
    (killed, _) = workers_of(daemon)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: metric(daemon, "httpnas_workers") == 2, "another worker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_workers_finish_what_runs_and_the_daemon_ends_with_status_0(
    daemon: Twistd, number: signal.Signals
) -> None:
    clients = both_busy(daemon)
    daemon.process.send_signal(number)
    wait_until(lambda: daemon.log().count("draining") == 2, "both to drain")
    for client in clients:
        client.send(b"dy")
        assert client.answer()[0] == 200
    assert daemon.wait() == 0
    assert len(list(daemon.root.glob("up-*"))) == len(clients)


def test_an_interrupt_of_the_whole_group_is_one_signal(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--workers=2", under=["setsid"]) as daemon:
        pids = [daemon.process.pid, *workers_of(daemon)]
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        assert daemon.wait() == 0
        assert "second signal" not in daemon.log()


def test_a_second_signal_cuts_off_what_still_runs(daemon: Twistd) -> None:
    clients = both_busy(daemon)
    daemon.terminate()
    wait_until(lambda: daemon.log().count("draining") == 2, "both to drain")
    began = time.monotonic()
    daemon.terminate()
    assert daemon.wait() == 0
    assert time.monotonic() - began < 4, "it has waited for the drain to end"
    for client in clients:
        client.socket.close()


def test_workers_end_when_their_parent_was_killed(daemon: Twistd) -> None:
    pids = workers_of(daemon)
    daemon.process.kill()
    wait_until(lambda: not any(map(is_running, pids)), "the workers to end")

    def is_closed() -> bool:
        with closing(socket.socket()) as client:
            return client.connect_ex(("127.0.0.1", daemon.port)) == errno.ECONNREFUSED

    wait_until(is_closed, "the socket to be closed")


def test_workers_that_cannot_start_end_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'HTTPNAS_WORKER' in os.environ:\n"
        "    os.write(2, b'httpnas: no worker starts here\\n')\n"
        "    os._exit(1)\n"
    )
    path = f"{tmp_path}:{Path(__file__).parent.parent}"
    with pytest.raises(AssertionError, match=r"the daemon ended: (?s:.*)no worker starts here"):
        twistd(tmp_path / "root", "--workers=2", env={"PYTHONPATH": path}).__enter__()


def test_the_log_file_has_the_lines_of_all_workers_and_begins_anew_at_sigusr1(
    tmp_path: Path,
) -> None:
    with started(tmp_path, env={"HTTPNAS_WORKERS": "2"}) as (port, pid):

        def get(path: str) -> int:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
                client.request("GET", path)
                return client.getresponse().status

        log = tmp_path / "twistd.log"
        for number in range(20):
            assert get(f"/health?{number}") == 200
        wait_until(lambda: log.read_text().count('"/health"') >= 20, "the lines")
        os.kill(pid, signal.SIGUSR1)
        wait_until((tmp_path / "twistd.log.1").exists, "another file")
        assert get("/health") == 200
        wait_until(lambda: log.read_text().count('"/health"') == 1, "the line")
        for line in log.with_suffix(".log.1").read_text().splitlines():
            json.loads(line)


def test_a_unix_socket_is_shared_and_removed_in_the_end(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with twistd(tmp_path / "root", "--workers=2", f"--listen=unix:{place}") as daemon:
        for _ in range(4):
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.connect(str(place))
                client.sendall(b"GET /health HTTP/1.1\r\nHost: nas\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        daemon.terminate()
        assert daemon.wait() == 0
        assert not place.exists()
        assert "Traceback" not in daemon.log()


def options(*arguments: str) -> Options:
    parsed = Options()
    parsed.parseOptions(arguments)
    return parsed


def test_auto_is_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert 1 <= options("--workers=auto", "--memory=1G")["workers"] <= 3
    assert options("--workers=auto", "--memory=128M")["workers"] == 1


@pytest.mark.parametrize("arguments", [["--workers=0"], ["--workers=many"], ["--workers=8"]])
def test_what_is_no_number_of_workers_is_refused(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(*arguments, "--memory=512M")


def test_figures_add_up_unless_all_tell_the_same() -> None:
    workers = [Metrics(), Metrics()]
    for number, each in enumerate(workers, 1):
        each.step("fsync", number)
        each.line_dropped()
        values: Any = each
        values._connections.set(number)
        values._free.set(100)
    document = workers[0].render(None, [workers[1].families()])[0].decode()
    assert 'httpnas_storage_step_seconds_sum{step="fsync"} 3.0' in document
    assert 'httpnas_storage_step_seconds_bucket{le="1.0",step="fsync"} 1.0' in document
    assert "httpnas_log_lines_dropped_total 2.0" in document
    assert "httpnas_connections 3.0" in document
    assert "httpnas_storage_free_bytes 100.0" in document
