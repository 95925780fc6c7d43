"""The servers that are measured: how each is started, where its files are, and how it is ended.

All of them listen on loopback and serve one folder, so they send the same pages of memory. Each is
ended by the number of the process that was started here. Whatever is not installed raises
:class:`NotThere`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.harness import ROOT, TWISTD, wait_until

SERVERS = Path(__file__).parent / "servers"
#: Descriptors that a server and a load may have: enough for 1,000 connections with a file each.
DESCRIPTORS = 8192
NGINX = """
daemon off; user root; worker_processes {workers}; worker_rlimit_nofile 8192;
pid {place}/pid; error_log {place}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000000; client_max_body_size 0;
  client_body_temp_path {place}/body;
  server {{
    listen 127.0.0.1:{port}; {tls}
    root {root}; dav_methods PUT; create_full_put_path on;
  }}
}}
"""
NGINX_TLS = "listen 127.0.0.1:{port} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};"
CADDY = """
{{
  admin off
  auto_https off
}}
http://:{port} {{
  bind 127.0.0.1
  root * {root}
  file_server
}}
"""


class NotThere(Exception):
    """What is to be measured is not installed, or cannot do it."""


@dataclass(frozen=True)
class Peer:
    """A server that runs.

    :param pid: its first process.
    :param tls_port: where it speaks TLS, 0 if nowhere.
    :param door: what stands before a name in its paths.
    :param store: the method that stores a body under a name; empty if it has none.
    :param takes_forms: whether it stores the files of forms only.
    """

    name: str
    pid: int
    port: int
    tls_port: int = 0
    door: str = "/"
    store: str = "PUT"
    takes_forms: bool = False

    def path(self, name: str) -> str:
        """Return the path of the file *name*."""
        return self.door + name

    def processes(self) -> list[Path]:
        """Return the folders in /proc of its first process and of all below that (proc(5))."""
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(stat.parent.name))
        found = [self.pid]
        for pid in found:
            found += parents.get(pid, [])
        return [Path(f"/proc/{pid}") for pid in found]

    def processor(self) -> float:
        """Return the seconds of processor time that it has used since it began."""
        spent = 0
        for process in self.processes():
            for task in process.glob("task/*/schedstat"):
                with contextlib.suppress(OSError):  # a thread that has just ended
                    spent += int(task.read_text().split()[0])
        return spent / 1e9

    def memory(self) -> float:
        """Return its resident set size (RSS, proc(5)), in MiB, with the files that it has mapped.

        Its proportional set size (PSS) would depend on how many others have mapped them as well.
        """
        found = (process / "smaps_rollup" for process in self.processes())
        shown = "".join(path.read_text() for path in found)
        return sum(int(kib) for kib in re.findall(r"^Rss:\s+(\d+) kB", shown, re.M)) / 1024


def free_port() -> int:
    """Return a port on loopback that nobody listens on at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise NotThere(name)
    return found


@contextlib.contextmanager
def running(
    command: list[str], port: int, place: Path, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run *command* for the block, from the moment when it listens at *port*; return its pid."""
    log_path = place / f"{Path(command[0]).name}-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            cwd=place,
        )

    def listens() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{command[0]} ended: {log_path.read_text()}")
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        wait_until(listens, f"{command[0]} to listen")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def httpnas(root: Path, place: Path, *options: str, pem: Path | None = None) -> Iterator[Peer]:
    """Run this tree's daemon on *root*.

    :param pem: key and certificate for a port with TLS; None if there is to be none.
    """
    port, tls_port = free_port(), free_port() if pem else 0
    listen = [f"--listen=tcp:{port}:interface=127.0.0.1"]
    if pem:
        listen.append(f"--listen=ssl:{tls_port}:privateKey={pem}:certKey={pem}:interface=127.0.0.1")
    command = [*TWISTD, "-n", "--pidfile=", "httpnas", *listen, f"--storage={root}"]
    command += ["--drain=1", *options]
    with running(command, port, place, {"PYTHONPATH": str(ROOT)}) as pid:
        yield Peer("httpnas", pid, port, tls_port, "/file/", "POST")


@contextlib.contextmanager
def nginx(root: Path, place: Path, pem: Path | None = None) -> Iterator[Peer]:
    """Run nginx with one worker, and its DAV module for PUT, which syncs nothing."""
    port, tls_port = free_port(), free_port() if pem else 0
    tls = NGINX_TLS.format(port=tls_port, pem=pem) if pem else ""
    with tempfile.TemporaryDirectory(prefix="nginx-", dir=place) as own:
        config = Path(own) / "nginx.conf"
        config.write_text(NGINX.format(workers=1, place=own, port=port, root=root, tls=tls))
        with running([program("nginx"), "-c", str(config)], port, place) as pid:
            yield Peer("nginx", pid, port, tls_port)


@contextlib.contextmanager
def rclone(root: Path, place: Path) -> Iterator[Peer]:
    """Run ``rclone serve webdav`` with one thread of Go, as httpnas has one of Python."""
    port = free_port()
    command = [program("rclone"), "serve", "webdav", str(root), f"--addr=127.0.0.1:{port}"]
    env = {"GOMAXPROCS": "1", "RCLONE_CONFIG": "", "HOME": str(place)}
    with running(command, port, place, env) as pid:
        yield Peer("rclone", pid, port)


@contextlib.contextmanager
def caddy(root: Path, place: Path) -> Iterator[Peer]:
    """Run Caddy's file server with one thread of Go. It stores nothing."""
    port = free_port()
    config = place / "Caddyfile"
    config.write_text(CADDY.format(port=port, root=root))
    command = [program("caddy"), "run", "--adapter=caddyfile", f"--config={config}"]
    env = {"GOMAXPROCS": "1", "HOME": str(place), "XDG_DATA_HOME": str(place)}
    with running(command, port, place, env) as pid:
        yield Peer("Caddy", pid, port, store="")


@contextlib.contextmanager
def node(root: Path, place: Path) -> Iterator[Peer]:
    """Run the server of a few lines in Node, one process."""
    port = free_port()
    command = [program("node"), str(SERVERS / "node.js"), str(root), str(port)]
    with running(command, port, place) as pid:
        yield Peer("Node", pid, port, door="/file/", store="POST")


@contextlib.contextmanager
def fastapi(root: Path, place: Path) -> Iterator[Peer]:
    """Run the server of a few lines in FastAPI, with uvicorn, one process."""
    for need in ("fastapi", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(need) is None:
            raise NotThere(need)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.servers.forms:app"]
    command += [f"--port={port}", "--no-access-log", "--log-level=warning"]
    with running(command, port, place, {"PYTHONPATH": str(ROOT), "FOLDER": str(root)}) as pid:
        yield Peer("FastAPI", pid, port, door="/files/", store="", takes_forms=True)


Start = Callable[[Path, Path], contextlib.AbstractContextManager[Peer]]


def others(pem: Path) -> dict[str, Start]:
    """Return how each of the other servers is started, by its name in the tables."""
    return {
        "nginx": partial(nginx, pem=pem),
        "rclone": rclone,
        "Caddy": caddy,
        "Node": node,
        "FastAPI": fastapi,
    }


def make_certificate(place: Path) -> Path:
    """Return a new file in *place* with a key and a certificate that nobody has signed."""
    pem = place / "tls.pem"
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", "-", "-out", "-"]
    pem.write_bytes(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return pem


def versions(started: Mapping[str, Peer]) -> list[str]:
    """Return the names and versions of what was started, and of what makes the load."""
    asked = {
        "nginx": ["nginx", "-v"],
        "rclone": ["rclone", "version"],
        "Caddy": ["caddy", "version"],
        "Node": ["node", "--version"],
        "FastAPI": [sys.executable, "-c", "import fastapi; print(fastapi.__version__)"],
    }
    found = []
    for name, command in asked.items():
        if name in started:
            done = subprocess.run(
                [program(command[0]), *command[1:]],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
            found.append(f"{name} {number[0] if number else ''}".strip())
    return [*found, "wrk" if shutil.which("wrk") else "no wrk: Python asks for small files"]
