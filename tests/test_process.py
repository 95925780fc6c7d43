"""A real ``twistd httpnas``: options, start, use, stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from httpnas.storage.store import Storage
from tests.harness import (
    ROOT,
    TWISTD,
    connect,
    receive_all,
    receive_answer,
    talk,
    twistd,
    wait_until,
)
from tests.private import runs_of

OPTIONS = [
    "--listen",
    "--storage",
    "--auth",
    "--durability",
    "--shared-by",
    "--max-upload",
    "--stall",
    "--idle",
    "--drain",
    "--headroom",
    "--cors-origins",
    "--hosts",
    "--resource-policy",
]
VARIABLES = [
    "HTTPNAS_LISTEN",
    "PORT",
    "STORAGE_PATH",
    "HTTPNAS_AUTH",
    "HTTPNAS_DURABILITY",
    "HTTPNAS_SHARED_BY",
    "HTTPNAS_MAX_UPLOAD",
    "HTTPNAS_STALL",
    "HTTPNAS_IDLE",
    "HTTPNAS_DRAIN",
    "HTTPNAS_HEADROOM",
    "HTTPNAS_CORS_ORIGINS",
    "HTTPNAS_HOSTS",
    "HTTPNAS_RESOURCE_POLICY",
]


def run(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run twistd with *arguments*, which must end by itself."""
    return subprocess.run(
        [*TWISTD, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(port) as client:
        client.sendall(request)
        return receive_answer(client)


def test_twistd_lists_the_daemon(tmp_path: Path) -> None:
    assert "httpnas" in run(tmp_path, "--help").stdout


def test_help_explains_every_option_and_its_variable(tmp_path: Path) -> None:
    shown = run(tmp_path, "httpnas", "--help").stdout
    assert [word for word in [*OPTIONS, *VARIABLES] if word not in shown] == []


@pytest.mark.parametrize(
    "arguments, env, said",
    [
        (["--nonsense"], {}, "nonsense"),
        (["--listen", "nonsense:1"], {}, "nonsense"),
        (["--listen", "tcp:99999"], {}, "99999"),
        (["--storage", "/dev/null/x"], {}, "/dev/null/x"),
        ([], {"HTTPNAS_DRAIN": "long"}, "HTTPNAS_DRAIN"),
        ([], {"PORT": "65536"}, "PORT: '65536'"),
    ],
)
def test_what_is_wrong_ends_the_daemon_with_one_line_and_status_1(
    tmp_path: Path, arguments: list[str], env: dict[str, str], said: str
) -> None:
    ended = run(tmp_path, "-n", "--pidfile=", "httpnas", *arguments, **env)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_root_that_can_not_be_written_to_ends_the_daemon(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    ended = run(tmp_path, "-n", "--pidfile=", "httpnas", "--storage", str(root))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)


def _without_synced_folders(folder: Path) -> dict[str, str]:
    """Return an environment in which Python meets a file system that does not sync folders."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import errno, os, stat\n"
        "real = os.fsync\n"
        "def fsync(fd):\n"
        "    if stat.S_ISDIR(os.fstat(fd).st_mode):\n"
        "        raise OSError(errno.EINVAL, 'Invalid argument')\n"
        "    real(fd)\n"
        "os.fsync = fsync\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_where_folders_are_not_synced_it_warns_and_changes_are_made(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", env=_without_synced_folders(tmp_path / "python")) as daemon:
        assert "does not sync folders" in daemon.log()
        request = b"POST /file/new/f HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        assert ask(daemon.port, request)[0] == 200
    assert (tmp_path / "root/new/f").read_bytes() == b"x"


def test_where_folders_are_not_synced_full_durability_is_refused_with_one_line(
    tmp_path: Path,
) -> None:
    env = _without_synced_folders(tmp_path / "python")
    (tmp_path / "root").mkdir()
    listen = "--listen=tcp:0:interface=127.0.0.1"
    arguments = ["-n", "--pidfile=", "httpnas", listen, f"--storage={tmp_path / 'root'}"]
    ended = run(tmp_path, *arguments, "--durability=full", **env)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "does not sync folders" in ended.stderr
    assert run(tmp_path, *arguments, **env, HTTPNAS_DURABILITY="full").stderr == ended.stderr
    assert list(runs_of(tmp_path / "root").iterdir()) == []


def test_a_missing_storage_folder_is_made_and_said_in_the_log(tmp_path: Path) -> None:
    with twistd(tmp_path / "deep" / "root", cwd=tmp_path) as daemon:
        assert (tmp_path / "deep" / "root").is_dir()
        assert f"made the folder {tmp_path / 'deep' / 'root'}" in daemon.log()


def test_the_environment_sets_options_and_the_command_line_comes_first(tmp_path: Path) -> None:
    env = {"HTTPNAS_MAX_UPLOAD": "3", "STORAGE_PATH": "/nonexistent"}
    with twistd(tmp_path / "root", env=env) as daemon:
        request = b"POST /file/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nabcd"
        assert ask(daemon.port, request % 4)[0] == 413
    with twistd(tmp_path / "root", "--max-upload=1K", env=env) as daemon:
        assert ask(daemon.port, request % 4)[0] == 200


def test_port_alone_means_that_port_on_loopback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {"PORT": str(port)}
    with twistd(tmp_path / "root", listen=None, env=env) as daemon:
        assert f"http://127.0.0.1:{port} " in daemon.log()


def test_it_listens_in_several_places(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with twistd(tmp_path / "root", f"--listen=unix:{path}") as daemon:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /file HTTP/1.0\r\n\r\n")
            assert receive_all(client).endswith(b"OK")
        assert ask(daemon.port, b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")[2] == b"OK"


def test_every_line_of_the_log_is_json_when_it_goes_to_a_file(tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon:
        ask(daemon.port, b"GET /file/none HTTP/1.1\r\nHost: x\r\n\r\n")
        daemon.terminate()
        assert daemon.wait() == 0
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert [(line["name"], line["status"]) for line in lines if "method" in line] == [
        ("/none", 404)
    ]


def test_the_log_is_text_at_a_terminal(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", terminal=True) as daemon:
        ask(daemon.port, b"GET /file/none HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: " 404 GET /none " in daemon.log(), "a line of text")


@pytest.mark.parametrize("kernel", ["with IPv6", "without IPv6"])
def test_a_star_means_all_addresses_of_both_families(tmp_path: Path, kernel: str) -> None:
    env, reached = {}, ["127.0.0.1", "::1"]
    if kernel == "without IPv6":
        (tmp_path / "sitecustomize.py").write_text(
            "import socket\nsocket.has_dualstack_ipv6 = lambda: False\n"
        )
        env, reached = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, ["127.0.0.1"]
    port, log = free_port(), tmp_path / "log"
    with started(tmp_path, "-n", "--logfile=log", listen=f"*:{port}", port=port, env=env):
        for address in reached:
            with socket.create_connection((address, port)) as client:
                client.sendall(b"GET /file/none HTTP/1.0\r\n\r\n")
                assert b" 404 " in receive_all(client)
        if len(reached) == 1:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", port))
        wait_until(lambda: log.read_text().count("/none") == len(reached), "lines of the log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["client"] for line in lines if line.get("name") == "/none"] == reached


def test_an_idle_connection_is_closed_after_the_idle_time(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--idle=0.1") as daemon, connect(daemon.port) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive_answer(client)[0] == 200
        assert client.recv(1) == b""


def _begin_upload(port: int) -> socket.socket:
    client = connect(port)
    client.sendall(
        b"POST /file/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"
    )
    assert client.recv(100).startswith(b"HTTP/1.1 100 ")
    client.sendall(b"half")
    return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_transfer_that_runs_at_a_signal_is_finished(
    tmp_path: Path, number: signal.Signals
) -> None:
    with twistd(tmp_path / "root") as daemon:
        idle = connect(daemon.port)
        with _begin_upload(daemon.port) as client:
            daemon.process.send_signal(number)
            wait_until(lambda: "draining" in daemon.log())
            for path, told in (
                ("/file/other", b"stopping"),
                ("/file", b"stopping"),
                ("/ready", b"The daemon is stopping."),
                ("/metrics", b"httpnas_draining 1.0"),
                ("/health", b"alive"),
            ):
                answer = talk(daemon.port, [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()])
                refused = path not in ("/metrics", "/health")
                assert answer.startswith(b"HTTP/1.1 503 " if refused else b"HTTP/1.1 200 ")
                assert told in answer and b"\r\nConnection: close\r\n" in answer
                assert (b"\r\nRetry-After: " in answer) == refused
            assert idle.recv(1) == b"", "an idle connection is closed at once"
            client.sendall(b"half")
            status, headers, _ = receive_answer(client)
            assert (status, headers["connection"]) == (200, "close")
            assert receive_all(client) == b""
        assert daemon.wait() == 0
    assert (tmp_path / "root" / "slow").read_bytes() == b"halfhalf"


def test_a_transfer_that_outlasts_the_drain_time_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with twistd(root, "--drain=0.2") as daemon, _begin_upload(daemon.port) as client:
        daemon.terminate()
        assert daemon.wait() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert os.listdir(root) == [".httpnas"]
    assert os.listdir(runs_of(root)) == []


def test_a_second_signal_cuts_off_what_still_runs(tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon, _begin_upload(daemon.port):
        daemon.terminate()
        wait_until(lambda: "draining" in daemon.log())
        daemon.terminate()
        assert daemon.wait() == 0


def test_a_download_that_runs_at_sigterm_is_finished(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    content = os.urandom(8 << 20)
    (root / "big").write_bytes(content)
    with twistd(root) as daemon:
        with connect(daemon.port) as client:
            client.sendall(b"GET /file/big HTTP/1.1\r\nHost: x\r\n\r\n")
            received = client.recv(100)
            daemon.terminate()
            wait_until(lambda: "draining" in daemon.log())
            received += receive_all(client)
        assert daemon.wait() == 0
    assert received.endswith(content)


def test_what_a_killed_daemon_leaves_is_reclaimed_and_what_a_living_one_has_is_kept(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    runs = runs_of(root)
    with twistd(root) as living, _begin_upload(living.port) as client:
        with twistd(root) as killed, _begin_upload(killed.port):
            assert len(list(runs.glob("*/*"))) == 4
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait()
        with twistd(root):
            wait_until(lambda: len(list(runs.iterdir())) == 2, "the leftovers to be reclaimed")
            client.sendall(b"half")
            assert receive_answer(client)[0] == 200


def test_two_daemons_append_to_one_file_without_tearing_records(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "log").write_bytes(b"")
    records = [f"{n:03d}".encode() * 2000 + b"\n" for n in range(60)]

    def append(port: int, mine: list[bytes]) -> None:
        for record in mine:
            head = b"PUT /file/log HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            assert ask(port, head % len(record) + record)[0] == 200

    with twistd(root) as one, twistd(root) as two:
        threads = [
            threading.Thread(target=append, args=((one, two)[n % 2].port, records[n::4]))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted((root / "log").read_bytes().splitlines(keepends=True)) == records


def test_the_plugin_is_found_without_an_init_file_beside_it() -> None:
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()
    assert not (ROOT / "twisted" / "__init__.py").exists()


def test_twistds_own_log_file_gets_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "own.log"
    command = [
        *TWISTD,
        "-n",
        "--pidfile=",
        f"--logfile={path}",
        "httpnas",
        "--listen=tcp:0:interface=127.0.0.1",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env) as process:
        wait_until(lambda: path.exists() and " serves " in path.read_text(), "the daemon to start")
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("option", ["--uid=1", "--gid=1"])
def test_another_user_is_refused_as_it_comes_too_late(tmp_path: Path, option: str) -> None:
    ended = run(tmp_path, "-n", "--pidfile=", option, "httpnas")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert not (tmp_path / "storage").exists()


def test_a_daemon_that_is_asked_without_pause_stops_all_the_same(tmp_path: Path) -> None:
    stopped = threading.Event()

    def ask_on(port: int) -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                talk(port, [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])

    with twistd(tmp_path / "root", "--drain=9") as daemon, _begin_upload(daemon.port) as client:
        askers = [threading.Thread(target=ask_on, args=(daemon.port,)) for _ in range(4)]
        for asker in askers:
            asker.start()
        try:
            daemon.terminate()
            wait_until(lambda: "draining" in daemon.log())
            client.sendall(b"half")
            assert receive_answer(client)[0] == 200
            assert daemon.process.wait(timeout=5) == 0, "well before the drain time is over"
        finally:
            stopped.set()
            for asker in askers:
                asker.join()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_disk_that_hangs_does_not_keep_a_daemon_from_stopping(
    tmp_path: Path, signals: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, stat, time, httpnas.tap\n"
        "def fsync(fd):\n"
        "    time.sleep(60 if stat.S_ISREG(os.fstat(fd).st_mode) else 0)\n"
        "os.fsync = fsync\n"
        "httpnas.tap._LAST = 0.5\n"
    )
    (tmp_path / "root").mkdir()
    Storage(str(tmp_path / "root")).close()  # its format is synced, however durable the daemon is
    drain = "0.2" if signals == 1 else "40"
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with (
        twistd(tmp_path / "root", f"--drain={drain}", env={"PYTHONPATH": path}) as daemon,
        connect(daemon.port) as client,
    ):
        client.sendall(b"POST /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        wait_until(runs_of(tmp_path / "root").exists)
        wait_until(
            lambda: (
                b"httpnas_disk_calls_running 1.0"
                in talk(
                    daemon.port, [b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
                )
            )
        )
        for _ in range(signals):
            daemon.terminate()
            wait_until(lambda: "draining" in daemon.log())
        assert daemon.process.wait(timeout=15) == 1
        assert "the disk does not answer" in daemon.log()


def test_two_signals_at_once_are_two(tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon, _begin_upload(daemon.port):
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            daemon.process.send_signal(number)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log() and "critical" not in daemon.log()


def test_an_empty_headroom_is_none(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--headroom=") as daemon:
        ready = talk(daemon.port, [b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
        assert ready.startswith(b"HTTP/1.1 200 ")


# In the background


@contextlib.contextmanager
def started(
    cwd: Path,
    *twistd_options: str,
    port: int | None = None,
    listen: str | None = None,
    stdout: int | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[tuple[int, int]]:
    """Start a daemon, in the background unless told otherwise; yield its port and process."""
    port = port or free_port()
    run = subprocess.Popen(
        [*TWISTD, *twistd_options, "httpnas", f"--listen={listen or port}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HTTPNAS_HOSTS": "*", **(env or {})},
        stdout=stdout,
    )
    pid_file = cwd / "twistd.pid"
    try:
        if "-n" not in twistd_options:
            assert run.wait(timeout=20) == 0
        wait_until(lambda: pid_file.exists() and answers(port), "the daemon to listen")
        yield port, int(pid_file.read_text())
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        run.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/health").startswith(b"HTTP/1.1 200 ")
    return False


def get(port: int, path: str) -> bytes:
    return talk(port, [f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()])


def test_files_have_the_same_rights_in_the_background_as_in_the_foreground(tmp_path: Path) -> None:
    with started(tmp_path, "--logfile=log") as (port, _):
        talk(port, [b"POST /file/d/f HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"])
    umask = os.umask(0)
    os.umask(umask)
    for path, mode in (("storage/d", 0o777), ("storage/d/f", 0o666), ("log", 0o666)):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode & ~umask, path


def test_a_umask_that_twistd_was_given_is_the_umask(tmp_path: Path) -> None:
    with started(tmp_path, "--umask=027") as (port, _):
        talk(port, [b"POST /file/f HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"])
    assert stat.S_IMODE((tmp_path / "storage" / "f").stat().st_mode) == 0o640


def test_the_log_in_the_background_has_lines_of_json_and_begins_anew_at_sigusr1(
    tmp_path: Path,
) -> None:
    log, old = tmp_path / "twistd.log", tmp_path / "twistd.log.1"
    with started(tmp_path) as (port, pid):
        os.kill(pid, signal.SIGUSR1)
        wait_until(old.exists)
        get(port, "/file/none")
        wait_until(lambda: '"/none"' in log.read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not (tmp_path / "twistd.pid").exists(), "the daemon to end")
        wait_until(lambda: "Shut Down" in log.read_text())
    lines = [json.loads(line) for path in (old, log) for line in path.read_text().splitlines()]
    assert "/none" in [line.get("name") for line in lines]


@pytest.mark.parametrize("auth", ["", "auth.toml"])
def test_a_log_file_that_was_moved_is_opened_anew_at_sighup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: str
) -> None:
    (tmp_path / "auth.toml").touch()
    monkeypatch.setenv("HTTPNAS_AUTH", auth)
    log = tmp_path / "log"
    with started(tmp_path, "-n", "--logfile=log") as (port, pid):
        for n, number in enumerate([signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP]):
            log.rename(tmp_path / f"old{n}")
            os.kill(pid, number)
            wait_until(log.exists, f"a new log file at {number}")
            get(port, "/file/none")
            wait_until(lambda: "/none" in log.read_text())
    assert all("/none" in (tmp_path / f"old{n}").read_text() for n in (1, 2))


def test_signals_about_log_files_do_not_end_a_daemon_that_has_none(tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon:
        for number in (signal.SIGHUP, signal.SIGUSR1):
            daemon.process.send_signal(number)
            assert answers(daemon.port)
        daemon.terminate()
        assert daemon.wait() == 0


def test_a_daemon_at_a_terminal_stops_properly_when_that_is_closed(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", terminal=True) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait() == 0


# What cannot start


@pytest.mark.parametrize("foreground", [["-n"], []], ids=["foreground", "background"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("port", "Address already in use"),
        ("PORT", "PORT: 'abc' is not the number of a port"),
        ("storage", "--storage file: it is not a folder"),
        ("instance", "which runs. Another daemon needs another one (twistd --pidfile=NAME)"),
        ("log", "--logfile nowhere/log: No such file or directory"),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_ends_with_status_1(
    tmp_path: Path, what: str, said: str, foreground: list[str]
) -> None:
    (tmp_path / "file").touch()
    twistd_options, options, env = list(foreground), [f"--listen={free_port()}"], {}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if what == "port":
            options = [f"--listen={taken.getsockname()[1]}"]
        elif what == "PORT":
            options, env = [], {"PORT": "abc"}
        elif what == "storage":
            options.append("--storage=file")
        elif what == "instance":
            (tmp_path / "twistd.pid").write_text(str(os.getpid()))
        else:
            twistd_options.append("--logfile=nowhere/log")
        ended = run(tmp_path, *twistd_options, "httpnas", *options, **env)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("httpnas: ") and said in ended.stderr
    assert "Traceback" not in ended.stdout
    assert (tmp_path / "twistd.pid").exists() == (what == "instance")


def test_what_twistd_itself_cannot_do_in_the_background_is_still_said(tmp_path: Path) -> None:
    ended = run(tmp_path, "--pidfile=nowhere/pid", "httpnas", f"--listen={free_port()}")
    assert ended.returncode == 1
    assert "No such file or directory" in ended.stderr


def test_a_daemon_in_the_background_lets_standard_error_go(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(read, "rb") as stderr:
        command = [*TWISTD, "httpnas", f"--listen={free_port()}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=env, stderr=write, timeout=20, check=True)
        os.close(write)
        try:
            assert select.select([stderr], [], [], 20)[0], "it ends although the daemon runs"
            assert stderr.read() == b""
        finally:
            os.kill(int((tmp_path / "twistd.pid").read_text()), signal.SIGKILL)


# A log that nobody reads


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_daemon_whose_standard_output_nobody_reads_serves_and_stops(
    tmp_path: Path, terminal: bool
) -> None:
    reading, writing = os.openpty() if terminal else os.pipe()
    path = "/file/" + "n" * 8000
    with open(reading, "rb", 0) as out, started(tmp_path, "-n", stdout=writing) as (port, pid):
        for _ in range(200):
            assert get(port, path).startswith(b"HTTP/1.1 414 ")
        found = re.search(rb"^httpnas_log_lines_dropped_total (\d+)", get(port, "/metrics"), re.M)
        assert found and 50 < int(found[1]) < 200
        if not terminal:
            os.close(writing)
            received = b""
            while b"lines were dropped here" not in received:
                received += out.read(1 << 16)
            lines = [json.loads(line) for line in received.splitlines()]
            kept = sum(line.get("name") == path for line in lines)
            dropped = re.search(r"\d+(?= lines were dropped)", str(lines[-1]["message"]))
            assert dropped and 0 <= int(dropped[0]) - int(found[1]) < 10
            assert 200 - 10 < kept + int(dropped[0]) < 210
            get(port, "/file/later")
            assert b"/later" in out.read(1 << 16)
        for _ in range(200):
            get(port, path)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not (tmp_path / "twistd.pid").exists(), "the daemon to end")


def test_a_daemon_whose_standard_output_is_closed_goes_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with started(tmp_path, "-n", stdout=writing) as (port, _):
        os.close(writing)
        os.close(reading)
        for _ in range(3):
            get(port, "/file/none")
        wait_until(lambda: b"httpnas_log_lines_dropped_total 0.0" not in get(port, "/metrics"))
        assert answers(port)
