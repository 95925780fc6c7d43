"""The compose file by its schema, and its balancer's configuration in front of real daemons."""

from __future__ import annotations

import contextlib
import http.client
import importlib.resources
import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from httpnas import __version__
from tests.harness import ROOT, Client, Twistd, talk, twistd, wait_until

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.deploy

COMPOSE = ROOT / "docker-compose.yaml"
RIGHTS = ROOT / "deploy" / "compose-auth.yaml"
BALANCER = ROOT / "deploy" / "haproxy.cfg"
REPLICAS = ("httpnas", "httpnas-2")
MIB = 1 << 20


@pytest.fixture(scope="module")
def compose() -> Any:
    """What the compose file says."""
    return yaml.safe_load(COMPOSE.read_text())


def violations(compose: Any) -> list[str]:
    """Return what the schema of the Compose Specification says against *compose*."""
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("check_jsonschema", reason="not there: check-jsonschema (pip install)")
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    found = jsonschema.Draft202012Validator(schema).iter_errors(compose)
    return [f"{error.json_path}: {error.message}" for error in found]


def twice(node: Any) -> list[str]:
    """Return the keys that the YAML *node* gives twice."""
    if isinstance(node, yaml.SequenceNode):
        return [key for item in node.value for key in twice(item)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    own = [key for key in set(keys) if keys.count(key) > 1]
    return own + [key for _, value in node.value for key in twice(value)]


def test_the_file_is_one_of_the_compose_specification(compose: Any) -> None:
    assert violations(compose) == []
    assert twice(yaml.compose(COMPOSE.read_text())) == []


def test_secrets_say_who_may_do_what() -> None:
    rights = yaml.safe_load(RIGHTS.read_text())
    assert violations(rights) == []
    assert twice(yaml.compose(RIGHTS.read_text())) == []
    assert set(rights["services"]) == set(REPLICAS)
    for service in rights["services"].values():
        folder, _, name = service["environment"]["HTTPNAS_AUTH"].rpartition("/")
        assert folder == "/run/secrets"
        assert name in service["secrets"]
    assert rights["secrets"] == {n: {"file": f"./{n}"} for n in ("auth.toml", "htpasswd")}


def test_compose_joins_both_files(compose: Any, tmp_path: Path) -> None:
    """Nothing of the first file is lost: paths begin where it is."""
    docker = shutil.which("docker")
    if (
        not docker
        or subprocess.run(
            [docker, "compose", "version"], capture_output=True, timeout=30, check=False
        ).returncode
    ):
        pytest.skip("not there: docker compose")
    run = subprocess.run(
        [docker, "compose", "-f", COMPOSE, "-f", RIGHTS, "config"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    joined = yaml.safe_load(run.stdout)
    daemon = joined["services"]["httpnas"]
    assert daemon["read_only"] is True and daemon["environment"]["HTTPNAS_AUTH"]
    assert joined["secrets"]["htpasswd"]["file"] == str(ROOT / "htpasswd")


def test_a_word_that_compose_does_not_know_is_seen(compose: Any) -> None:
    text = COMPOSE.read_text().replace("read_only:", "readonly:")
    assert any("readonly" in what for what in violations(yaml.safe_load(text)))
    assert twice(yaml.compose("a: {b: 1, c: [{d: 1, d: 2}]}")) == ["d"]


def test_without_a_profile_there_is_one_daemon(compose: Any) -> None:
    profiles = {name: service.get("profiles", []) for name, service in compose["services"].items()}
    assert profiles == {"httpnas": [], "httpnas-2": ["replicas"], "balancer": ["replicas"]}


def test_only_this_machine_can_connect(compose: Any) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert ports == {
        "httpnas": ["127.0.0.1:3000:3000"],
        "httpnas-2": [],
        "balancer": ["127.0.0.1:3080:3000"],
    }


def test_the_daemons_are_alike_and_share_a_named_volume(compose: Any) -> None:
    first, second = (dict(compose["services"][name]) for name in REPLICAS)
    for service in (first, second):
        service.pop("ports", None)
        service.pop("profiles", None)
    assert first == second
    assert first["volumes"] == ["storage:/mnt/storage"]
    assert "storage" in compose["volumes"]
    assert first["image"] == f"httpnas:{__version__}"


def test_nothing_is_allowed_that_is_not_needed(compose: Any) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "network_mode", "pid", "user"} & set(service)


def test_the_health_check_is_the_images_own(compose: Any) -> None:
    assert all("healthcheck" not in service for service in compose["services"].values())
    prod = (ROOT / "Dockerfile").read_text().rpartition("FROM ")[2]
    assert "AS prod" in prod
    assert "\nHEALTHCHECK " in prod
    assert "STORAGE_PATH=/mnt/storage" in prod
    assert "HTTPNAS_LISTEN='*:3000'" in prod


def test_a_daemon_has_the_time_to_drain(compose: Any) -> None:
    assert all(s["stop_grace_period"] == "45s" for s in compose["services"].values())


def test_the_balancer_knows_every_replica(compose: Any) -> None:
    servers = dict(re.findall(r"^ +server (\S+) (\S+)$", BALANCER.read_text(), re.M))
    assert servers == {name: f"{name}:3000" for name in REPLICAS}
    balancer = compose["services"]["balancer"]
    assert set(balancer["depends_on"]) == set(REPLICAS)
    (mount,) = balancer["volumes"]
    source, target, mode = mount.split(":")
    assert (ROOT / source, mode) == (BALANCER, "ro")
    assert target == "/usr/local/etc/haproxy/haproxy.cfg"


@pytest.fixture(scope="module")
def haproxy() -> str:
    """The path of haproxy."""
    found = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if not found:
        pytest.skip("not there: haproxy (apt-get install haproxy)")
    return found


def test_haproxy_takes_the_configuration(haproxy: str) -> None:
    run = subprocess.run(
        [haproxy, "-c", "-f", str(BALANCER)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    warnings = [line for line in run.stderr.splitlines() if "[WARNING]" in line]
    assert all("could not resolve address" in line for line in warnings), warnings


@contextlib.contextmanager
def balancer(haproxy: str, *ports: int) -> Iterator[int]:
    """Run the balancer before what listens at *ports*; its own port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        tempfile.NamedTemporaryFile("w", suffix=".cfg") as config,
        tempfile.TemporaryFile("w+") as log,
    ):
        text = BALANCER.read_text().replace("bind :3000", f"bind fd@{listening.fileno()}")
        for name, port in zip(REPLICAS, ports, strict=True):
            assert f" {name}:3000" in text
            text = text.replace(f" {name}:3000", f" 127.0.0.1:{port}")
        config.write(text)
        config.flush()
        process = subprocess.Popen(
            [haproxy, "-db", "-f", config.name],
            pass_fds=[listening.fileno()],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield listening.getsockname()[1]
        finally:
            process.kill()
            process.wait()


class Pair:
    """Two daemons on one folder, and a balancer before them."""

    def __init__(self, port: int, daemons: list[Twistd]) -> None:
        self.port = port
        self.daemons = daemons

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def running(self) -> list[Any]:
        """Return the transfers that run in one of the daemons."""
        found = []
        for daemon in self.daemons:
            answer = talk(daemon.port, [b"GET /transfers HTTP/1.0\r\n\r\n"])
            found += json.loads(answer.partition(b"\r\n\r\n")[2])["running"]
        return found


@pytest.fixture
def pair(haproxy: str, tmp_path: Path) -> Iterator[Pair]:
    root = tmp_path / "root"
    with (
        twistd(root, "--durability=none") as one,
        twistd(root, "--durability=none") as two,
        balancer(haproxy, one.port, two.port) as port,
    ):
        pair = Pair(port, [one, two])
        wait_until(lambda: pair.ask("GET", "/ready")[0] == 200, "the balancer")
        yield pair


def test_an_upload_streams_through_the_balancer(pair: Pair) -> None:
    block = b"x" * MIB
    with Client(pair.port) as client:
        head = f"POST /file/big HTTP/1.1\r\nHost: a\r\nContent-Length: {32 * MIB}\r\n\r\n"
        client.send(head.encode())
        for _ in range(16):
            client.socket.sendall(block)
        # Half of it is at the daemon while the other half has not been sent.
        wait_until(lambda: any(t["bytes"] >= 15 * MIB for t in pair.running()), "the first half")
        for _ in range(16):
            client.socket.sendall(block)
        assert client.answer()[0] == 200
    assert pair.ask("GET", "/file/big") == (200, block * 32)


def test_a_chunked_upload_goes_through_the_balancer(pair: Pair) -> None:
    blocks = [bytes([number]) * 100_000 for number in range(80)]
    assert pair.ask("POST", "/file/chunked", iter(blocks)) == (200, b"OK")
    assert pair.ask("GET", "/file/chunked") == (200, b"".join(blocks))


def test_who_waits_for_100_is_told_by_the_daemon(pair: Pair) -> None:
    with Client(pair.port) as client:
        head = "POST /file/{} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
        client.send((head + "\r\n").format("a").encode())
        assert client.answer()[0] == 100
        client.send(b"abc")
        assert client.answer()[0] == 200
    with Client(pair.port) as client:
        client.send((head + "\r\n").format(".httpnas/a").encode())
        assert client.answer()[0] == 403


def test_names_are_left_as_they_were_sent(pair: Pair) -> None:
    assert pair.ask("POST", "/file/d%2Fwc", b"a")[0] == 200
    assert pair.ask("POST", "/file/a//b%20c%252F", b"b")[0] == 200
    assert pair.ask("GET", "/file/d/") == (200, b"wc\n")
    assert pair.ask("GET", "/file/a/") == (200, b"b c%2F\n")


def test_an_append_finds_the_other_replica_when_one_is_dead(pair: Pair) -> None:
    assert pair.ask("POST", "/file/lines", b"") == (200, b"OK")
    pair.daemons[0].process.kill()
    pair.daemons[0].wait()
    for number in range(20):
        assert pair.ask("PUT", "/file/lines", b"%d\n" % number) == (200, b"OK")
    assert pair.ask("GET", "/file/lines/wc")[1].strip() == b"20"


def test_a_replica_that_stops_finishes_and_nobody_reads_of_it(pair: Pair) -> None:
    with Client(pair.port) as client:
        client.send(b"POST /file/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf")

        def busy() -> list[Twistd]:
            both = pair.daemons
            return [d for d in both if Pair(0, [d]).running()]

        (daemon,) = wait_until(busy, "the upload to begin")
        daemon.terminate()
        wait_until(
            lambda: talk(daemon.port, [b"GET /ready HTTP/1.0\r\n\r\n"])[9:12] == b"503", "draining"
        )
        assert [pair.ask("GET", "/file/")[0] for _ in range(20)] == [200] * 20
        client.send(b"half")
        assert client.answer()[0] == 200
    assert daemon.wait() == 0
    assert pair.ask("GET", "/file/slow") == (200, b"halfhalf")


class Mute:
    """Takes connections, is ready, and closes every other request without an answer."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._answer(self._listening.accept()[0])

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            received = b""
            while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
                received += chunk
            line = received.partition(b"\r\n")[0].decode()
            if "/ready" in line:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                self._note(line.split(" ")[0])

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.mark.parametrize("method, sent", [("PUT", 1), ("POST", 1), ("DELETE", 1), ("GET", 4)])
def test_only_what_changes_nothing_is_sent_again(haproxy: str, method: str, sent: int) -> None:
    seen: list[str] = []
    mutes = [Mute(seen.append) for _ in REPLICAS]
    threads = [Thread(target=mute.serve) for mute in mutes]
    for thread in threads:
        thread.start()
    try:
        with balancer(haproxy, *(mute.port for mute in mutes)) as port:
            status, _ = Pair(port, []).ask(method, "/file/a", b"line\n" if sent == 1 else None)
    finally:
        for mute in mutes:
            mute.stop()
        for thread in threads:
            thread.join()
    assert status == 502
    assert seen == [method] * sent
