"""What clients of two replicas see when a part of the storage below is killed, frozen or full.

In all cases: what was acknowledged is there afterwards, once and whole, through both replicas;
every request ends, with an answer, in bounded time; a replica that can not reach its volume says
so at ``/ready`` and in 503 with ``Retry-After``, and serves again by itself when the volume is
back; and the other one goes on, where the fault is not in what both need.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from httpnas.storage.locks import _bucket
from tests.cephfs.cluster import Cluster, Mount
from tests.cephfs.conftest import CACHE, SHORT
from tests.cephfs.load import Load, check, summary
from tests.crash.herd import Unanswered, Wire
from tests.harness import ROOT, TWISTD, Twistd, connect, receive_answer, twistd, wait_until
from tests.private import LOCKS

pytestmark = pytest.mark.cephfs

#: Seconds that the daemons wait for a storage that does not answer; their default is longer.
PATIENCE = 10
#: Seconds more than that in which a request has to end: a look once a second, and the grace for
#: those who find out by themselves.
MARGIN = 12
#: Seconds after which the MDS takes back what a client holds that says nothing.
SESSION = 30
#: Seconds in which all must be well again when the fault is over.
RECOVERY = 75
A, B = 0, 1


class Replicas:
    """Two daemons, each with a mount of its own, on one folder."""

    def __init__(self, cluster: Cluster, mounts: list[Mount], daemons: list[Twistd]) -> None:
        self.cluster = cluster
        self.mounts = mounts
        self.daemons = daemons
        self.ports = [daemon.port for daemon in daemons]

    @contextmanager
    def under_load(self, what: str, longest: float = PATIENCE) -> Iterator[Load]:
        """Have clients at both replicas; then look for all that they were promised.

        :param longest: seconds in which each request must have ended, give or take some.
        """
        load = Load(self.ports)
        with load:
            load.await_answers(time.monotonic(), (A, B), 30)
            began = time.monotonic()
            yield load
        print(f"\n{what}\n{summary(load.ledger, began, 2)}")
        for port in self.ports:
            check(load.ledger, port)
        for answer in load.ledger.answers:
            assert answer.seconds < longest + MARGIN, f"too long: {answer}"
            assert answer.status in (200, 503, None), answer
            assert answer.status != 503 or answer.again, answer


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> list[Mount]:
    """Two mounts for whatever comes."""
    return [cluster.mount(name, CACHE) for name in ("a", "b")]


@pytest.fixture
def replicas(cluster: Cluster, pair: list[Mount], tmp_path: Path) -> Iterator[Replicas]:
    mounts, folder = pair, f"faults-{time.time_ns()}"
    with ExitStack() as stack:
        (mounts[A].path / folder).mkdir()
        daemons = [
            stack.enter_context(twistd(m.path / folder, f"--patience={PATIENCE}", cwd=tmp_path))
            for m in mounts
        ]
        yield Replicas(cluster, mounts, daemons)


def is_ready(daemon: Twistd) -> bool:
    with connect(daemon.port) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
        return receive_answer(client)[0] == 200


@contextmanager
def half_received(daemon: Twistd) -> Iterator[threading.Event]:
    """Have the first half of an upload sent, and the rest when the event is set.

    Afterwards it must be stored whole and acknowledged, or refused and not be there.
    """
    go_on = threading.Event()
    outcome: list[int | None] = []
    half = b"h" * (3 << 20)

    def send() -> None:
        with connect(daemon.port) as client:
            client.settimeout(PATIENCE + MARGIN + 60)
            head = b"POST /file/half HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            with suppress(OSError):
                client.sendall(head % (2 * len(half)) + half)
                go_on.wait(300)
                client.sendall(half)
            try:
                outcome.append(receive_answer(client)[0])
            except (OSError, AssertionError):
                outcome.append(None)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield go_on
    finally:
        go_on.set()
        sender.join()
    print(f"  an upload that was half received: {outcome[0] or 'cut'}")
    wire = Wire(daemon.port, 60)
    status, _, content = wire.ask("GET", "/file/half")
    wire.close()
    if outcome[0] == 200:
        assert (status, content) == (200, 2 * half)
    else:
        assert status == 404 or content == 2 * half, f"{status}, {len(content)} bytes"


DOWN = [3, 16] if SHORT else [3, 16, 45]


@pytest.mark.parametrize("seconds", DOWN)
@pytest.mark.parametrize("part", ["osd", "mds"])
def test_a_daemon_of_ceph_is_killed_and_started_again(
    replicas: Replicas, part: str, seconds: int
) -> None:
    with (
        replicas.under_load(f"{part.upper()} killed, {seconds} s down") as load,
        half_received(replicas.daemons[A]) as go_on,
    ):
        replicas.cluster.kill(part)
        go_on.set()
        time.sleep(seconds)
        replicas.cluster.restart(part)
        load.await_answers(time.monotonic(), (A, B), RECOVERY)


@pytest.mark.parametrize("seconds", [4, 18])
def test_a_client_of_ceph_is_frozen_and_thawed(replicas: Replicas, seconds: int) -> None:
    with (
        replicas.under_load(f"client of A frozen for {seconds} s") as load,
        half_received(replicas.daemons[A]) as go_on,
    ):
        replicas.mounts[A].freeze()
        go_on.set()
        time.sleep(seconds)
        replicas.mounts[A].thaw()
        load.await_answers(time.monotonic(), (A, B), RECOVERY)


def test_a_client_of_ceph_is_killed_and_mounted_again(replicas: Replicas) -> None:
    with (
        replicas.under_load("client of A killed, mounted again after 3 s", SESSION) as load,
        half_received(replicas.daemons[A]) as go_on,
    ):
        replicas.mounts[A].kill()
        go_on.set()
        time.sleep(3)
        replicas.mounts[A].remount()
        load.await_answers(time.monotonic(), (A, B), RECOVERY)


def test_a_client_of_ceph_is_killed_while_its_daemon_holds_a_lock(replicas: Replicas) -> None:
    """The one who waits for the lock gets it once the MDS has evicted the client that is gone."""
    mine, theirs = Wire(replicas.ports[A], 60), Wire(replicas.ports[B], 60)
    assert mine.ask("POST", "/file/held", b"first\n")[0] == 200
    big = b"big\n" * (64 << 20)
    sender = threading.Thread(target=lambda: _send(mine, big))
    sender.start()
    # First all of it has to come through a cluster that a slow machine makes slow.
    wait_until(lambda: is_locked(replicas.daemons[B].root, b"held"), "the commit to begin", 120)
    replicas.mounts[A].kill()
    killed = time.monotonic()
    statuses: list[int] = []
    while not statuses or statuses[-1] != 200:
        began = time.monotonic()
        status, headers, _ = theirs.ask(
            "PUT", "/file/held", b"second\n", Idempotency_Key='"second"'
        )
        assert status in (200, 503), status
        assert status == 200 or headers["retry-after"]
        assert time.monotonic() - began < 30 + MARGIN
        statuses.append(status)
        assert time.monotonic() - killed < RECOVERY
    waited = time.monotonic() - killed
    sender.join()
    content = theirs.ask("GET", "/file/held")[2]
    assert content in (b"first\nsecond\n", b"first\n" + big + b"second\n")
    assert int(theirs.ask("GET", "/file/held/wc")[2]) == content.count(b"\n")
    replicas.mounts[A].remount()
    remounted = time.monotonic()
    wait_until(lambda: is_ready(replicas.daemons[A]), "A to be ready")
    print(
        f"\nclient of A killed in the commit of an append: B has the lock after {waited:.1f} s "
        f"({statuses}); A ready {time.monotonic() - remounted:.1f} s after its mount was back"
    )
    mine.close()
    assert Wire(replicas.ports[A]).ask("GET", "/file/held")[2] == content


def _send(wire: Wire, body: bytes) -> None:
    with suppress(Unanswered):
        wire.ask("PUT", "/file/held", body)


def is_locked(root: Path, name: bytes) -> bool:
    """Tell whether somebody holds the lock of the name *name* at *root*, or of its file.

    Of a large append it is the first for a moment, and the second as long as it is copied.
    """
    folder = os.open(root, os.O_RDONLY)
    lock = os.open(f"{LOCKS}/{_bucket(folder, name):03x}", os.O_RDWR, dir_fd=folder)
    file = os.open(name, os.O_RDWR, dir_fd=folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        for each in (file, lock, folder):
            os.close(each)
    return False


def test_a_client_of_ceph_is_evicted(replicas: Replicas) -> None:
    """It says of all files that they do not exist; the daemon must not."""
    with (
        replicas.under_load("client of A evicted, mounted again after 3 s") as load,
        half_received(replicas.daemons[A]) as go_on,
    ):
        replicas.mounts[A].evict()
        go_on.set()
        time.sleep(3)
        assert not is_ready(replicas.daemons[A])
        replicas.mounts[A].remount()
        load.await_answers(time.monotonic(), (A, B), RECOVERY)


@pytest.mark.skipif(SHORT, reason="it takes more than a minute: not in the short form")
def test_a_client_of_ceph_is_frozen_until_it_is_evicted(replicas: Replicas) -> None:
    with replicas.under_load(
        "client of A frozen for 70 s, evicted, mounted again", SESSION
    ) as load:
        replicas.mounts[A].freeze()
        time.sleep(70)
        load.await_answers(time.monotonic() - 20, (B,), 1)
        replicas.mounts[A].thaw()
        time.sleep(2)
        assert not is_ready(replicas.daemons[A])
        replicas.mounts[A].remount()
        load.await_answers(time.monotonic(), (A, B), RECOVERY)


def test_the_pool_is_full(replicas: Replicas) -> None:
    wires = [Wire(port, 60) for port in replicas.ports]
    for wire in wires:
        assert wire.ask("POST", f"/file/before-{wire.port}", b"kept\n")[0] == 200
    statuses: list[int] = []
    with replicas.cluster.full():
        for wire in wires:
            for other in wires:
                assert wire.ask("GET", f"/file/before-{other.port}")[2] == b"kept\n"
            for verb in ("POST", "PUT"):
                began = time.monotonic()
                status = wire.ask(verb, f"/file/before-{wire.port}", b"more\n" * 1000)[0]
                assert time.monotonic() - began < PATIENCE + MARGIN
                statuses.append(status)
            assert wire.ask("GET", "/ready")[0] == 200
            assert wire.ask("GET", f"/file/before-{wire.port}")[2] == b"kept\n"
        assert wires[A].ask("DELETE", f"/file/before-{wires[B].port}")[0] == 200
        assert wires[B].ask("GET", f"/file/before-{wires[B].port}")[0] == 404
    print(f"\npool full: {statuses}")
    assert set(statuses) == {507}
    for wire in wires:
        assert wire.ask("POST", f"/file/after-{wire.port}", b"new\n")[0] == 200
        wire.close()


def test_a_daemon_does_not_wait_for_ever_for_a_mount_that_hangs_to_start_or_to_stop(
    replicas: Replicas, tmp_path: Path
) -> None:
    running = replicas.daemons[A]
    replicas.mounts[A].freeze()
    try:
        options = [f"--storage={running.root}", "--listen=tcp:0:interface=127.0.0.1"]
        starting = subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", "httpnas", "--patience=10", *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
        )
        connect(running.port).sendall(b"GET /file/any HTTP/1.1\r\nHost: a\r\n\r\n")
        running.terminate()
        wait_until(lambda: "draining" in running.log(), "the daemon to stop")
        running.terminate()
        _, said = starting.communicate(timeout=30)
        assert starting.returncode == 1
        assert said == f"httpnas: --storage {running.root}: it does not answer\n"
        wait_until(lambda: "ended without waiting for it" in running.log(), "the end")
    finally:
        replicas.mounts[A].thaw()
    # Until then the kernel keeps what is left of a process of which ceph-fuse has taken a request.
    assert running.process.wait(30) == 1
