"""How often each request goes to the metadata server: what limits many replicas first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cephfs.cluster import Cluster
from tests.crash.herd import Wire
from tests.harness import Client, twistd

pytestmark = pytest.mark.cephfs

#: How often each request is sent.
TIMES = 20
JSON = {"Content_Type": "application/json"}
#: What was counted, rounded up. Which capabilities a client has makes a difference of some; a
#: change that needs half as many more had better know why.
MOST = {
    "upload, new name": 14,
    "upload, replacing": 10,
    "append": 5,
    "append with a key": 5,
    "append, replicas in turn": 10,
    "download": 2,
    "download, other replica": 3,
    "download again": 0,
    "line count": 0,
    "list 21 entries": 3,
    "move": 13,
    "delete": 5,
    # Of each lock file it is asked whether the daemon may use it.
    "readiness": 13,
}


class Counted:
    """Two replicas on a file system that nobody else uses, and what its servers are asked."""

    def __init__(self, cluster: Cluster, ports: list[int]) -> None:
        self._cluster = cluster
        self.ports = ports
        self.wires = [Wire(port, 60) for port in ports]

    def ask(self, on: int, method: str, path: str, body: bytes = b"", **fields: str) -> None:
        status = self.wires[on].ask(method, path, body, None, **fields)[0]
        assert status == 200, f"{method} {path}: {status}"

    def _look(self) -> Counter[str]:
        server = self._cluster.performance("mds")["mds_server"]
        requests = {
            name.removeprefix("req_").removesuffix("_latency"): latency["avgcount"]
            for name, latency in server.items()
            if name.startswith("req_") and isinstance(latency, dict)
        }
        store = self._cluster.performance("osd")["osd"]
        return Counter({**requests, "OSD reads": store["op_r"], "OSD writes": store["op_w"]})

    def count(self, what: str, call: Callable[[int], None]) -> float:
        """Return how many requests the metadata server had of each *call*."""
        before = self._look()
        for number in range(TIMES):
            call(number)
        asked = {name: n / TIMES for name, n in (self._look() - before).items()}
        reads, writes = asked.pop("OSD reads", 0), asked.pop("OSD writes", 0)
        shown = ", ".join(f"{name} {n:.1f}" for name, n in sorted(asked.items()) if n > 0.2)
        total = sum(asked.values())
        print(f"  {what:28} {total:5.1f} ({shown}); OSD: {reads:.1f} reads, {writes:.1f} writes")
        return total


@pytest.fixture
def counted(cluster: Cluster, roots: list[Path], tmp_path: Path) -> Iterator[Counted]:
    with ExitStack() as stack:
        daemons = [stack.enter_context(twistd(root, cwd=tmp_path)) for root in roots]
        yield Counted(cluster, [daemon.port for daemon in daemons])


def test_each_request_asks_the_metadata_server_as_rarely_as_it_can(
    counted: Counted,
) -> None:
    print()
    for on in (0, 1):
        counted.ask(on, "POST", "/file/d/f", b"x\n")
    ask, count = counted.ask, counted.count
    found = {
        "upload, new name": count(
            "upload, new name", lambda n: ask(0, "POST", f"/file/d/{n}", b"x\n" * 2048)
        ),
        "upload, replacing": count(
            "upload, replacing", lambda n: ask(0, "POST", "/file/d/f", b"y\n")
        ),
        "append": count("append", lambda n: ask(0, "PUT", "/file/d/f", b"z\n")),
        "append with a key": count(
            "append with a key",
            lambda n: ask(0, "PUT", "/file/d/f", b"z\n", Idempotency_Key=f'"{n}"'),
        ),
        "append, replicas in turn": count(
            "append, replicas in turn", lambda n: ask(n % 2, "PUT", "/file/d/f", b"z\n")
        ),
        "download": count("download", lambda n: ask(0, "GET", f"/file/d/{n}")),
        "download, other replica": count(
            "download, other replica", lambda n: ask(1, "GET", f"/file/d/{n}")
        ),
        "download again": count("download again", lambda n: ask(1, "GET", f"/file/d/{n}")),
        "line count": count("line count", lambda n: ask(1, "GET", f"/file/d/{n}/wc")),
        "list 21 entries": count("list 21 entries", lambda n: list_folder(counted.ports[1])),
        "move": count(
            "move", lambda n: ask(0, "PUT", f"/file/d/{n}", b'{"path": "e/%d"}' % n, **JSON)
        ),
        "delete": count("delete", lambda n: ask(0, "DELETE", f"/file/e/{n}")),
        "readiness": count("readiness", lambda n: ask(0, "GET", "/ready")),
    }
    assert {what: n for what, n in found.items() if n > 1.5 * MOST[what] + 1} == {}


def list_folder(port: int) -> None:
    with Client(port) as client:
        client.send(b"GET /file/d/ HTTP/1.0\r\nHost: a\r\nAccept: application/json\r\n\r\n")
        assert b'"entries"' in client.rest()
