"""What one replica has acknowledged, the other serves at once, whatever the mounts cache."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from tests.cephfs.cluster import CACHES, Cluster
from tests.cephfs.conftest import SHORT, fresh
from tests.crash.herd import Wire
from tests.harness import Client, twistd
from tests.storage.steps import append, crash, read, upload

pytestmark = pytest.mark.cephfs

ROUNDS = 40 if SHORT else 200


class Pair:
    """Two replicas, and what the file must hold by what they have acknowledged."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.wires = [Wire(port, 60) for port in ports]
        self.content = b""
        self.tag = ""
        self.looks = 0
        self.slowest = 0.0

    def change(self, on: int, method: str, body: bytes = b"") -> None:
        status, headers, _ = self.wires[on].ask(method, "/file/d/f", body)
        assert status == 200, headers
        self.content = body if method == "POST" else self.content + body
        self.tag = headers["etag"]

    def look(self, on: int) -> None:
        """See that the replica serves just what was acknowledged."""
        began = time.monotonic()
        wire = self.wires[on]
        status, headers, content = wire.ask("GET", "/file/d/f")
        assert (status, content) == (200, self.content), f"{len(content)}, {len(self.content)}"
        assert (headers["etag"], int(headers["content-length"])) == (self.tag, len(self.content))
        assert int(wire.ask("GET", "/file/d/f/wc")[2]) == self.content.count(b"\n")
        listed = self._listed(on)["f"]
        assert (listed["size"], listed["etag"]) == (len(self.content), self.tag)
        self.looks += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _listed(self, on: int) -> dict[str, dict[str, object]]:
        with Client(self.ports[on]) as client:
            client.send(b"GET /file/d/ HTTP/1.0\r\nHost: a\r\nAccept: application/json\r\n\r\n")
            body = client.rest().partition(b"\r\n\r\n")[2]
        return {entry["name"]: entry for entry in json.loads(body)["entries"]}


@pytest.fixture(params=CACHES)
def cached_roots(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[list[Path]]:
    """A folder as two mounts see it that cache as they are told."""
    with ExitStack() as stack:
        mounts = []
        for side in "xy":
            mounts.append(cluster.mount(f"{side}-{time.time_ns()}", request.param))
            stack.callback(mounts[-1].unmount)
        yield fresh(mounts)


@pytest.fixture
def pair(cached_roots: list[Path], tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        daemons = [stack.enter_context(twistd(root, cwd=tmp_path)) for root in cached_roots]
        yield Pair([daemon.port for daemon in daemons])


def slow_download(port: int) -> Client:
    """Begin a download of a file that is too large to be sent at once, and read no more of it."""
    client = Client(port, buffer=4096)
    client.send(b"GET /file/d/f HTTP/1.1\r\nHost: a\r\n\r\n")
    client.socket.recv(1)
    return client


def test_what_one_replica_has_acknowledged_both_serve_at_once(pair: Pair) -> None:
    """Also where a download at the other one holds the file open that is changed."""
    rng = random.Random(3)
    pair.change(0, "POST", b"x\n" * 2_000_000)
    held = [slow_download(port) for port in pair.ports]
    for round_ in range(ROUNDS):
        on = round_ % 2
        method = "POST" if rng.random() < 0.1 else "PUT"
        pair.change(on, method, b"%d\n" % round_ * rng.randrange(1, 3000))
        if method == "POST":
            for client in held:
                client.socket.close()
            held = [slow_download(port) for port in pair.ports]
        pair.look(1 - on)
        pair.look(on)
    for client in held:
        client.socket.close()
    print(f"\n{pair.looks} looks, none stale; the slowest took {pair.slowest * 1000:.0f} ms")


def test_a_name_is_there_and_gone_on_both_replicas_at_once(pair: Pair) -> None:
    def status(on: int, name: str) -> int:
        return pair.wires[on].ask("GET", f"/file/n/{name}")[0]

    for round_ in range(ROUNDS):
        on = round_ % 2
        assert status(1 - on, f"{round_}") == 404
        assert pair.wires[on].ask("POST", f"/file/n/{round_}", b"1")[0] == 200
        assert status(1 - on, f"{round_}") == 200
        move = b'{"path": "n/moved-%d"}' % round_
        fields = {"Content_Type": "application/json"}
        assert pair.wires[on].ask("PUT", f"/file/n/{round_}", move, None, **fields)[0] == 200
        assert (status(1 - on, f"{round_}"), status(1 - on, f"moved-{round_}")) == (404, 200)
        assert pair.wires[on].ask("DELETE", f"/file/n/moved-{round_}")[0] == 200
        assert status(1 - on, f"moved-{round_}") == 404


def test_what_an_append_that_broke_off_has_left_is_not_taken_for_the_next_one(
    cached_roots: list[Path],
) -> None:
    """The file has the same length then as before, from which caches conclude the same content."""
    ours, theirs = (Storage(str(root)) for root in cached_roots)
    for round_ in range(ROUNDS):
        name = b"%d" % round_
        upload(ours, name, b"old\n")
        fd = os.open(cached_roots[0] / name.decode(), os.O_RDWR)
        crash(ours, name, b"torn\n" * PAGE, PAGE - 4)
        os.fsync(fd)
        assert read(theirs, name) == b"old\n"
        append(ours, name, b"good\n")
        assert read(theirs, name) == b"old\ngood\n"
        os.close(fd)
    ours.close()
    theirs.close()
