"""/health, /ready, /metrics and /transfers: what operators and their tools ask."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent

from httpnas.storage.errors import NotPermitted, StorageAway, StorageBroken, StorageFull
from httpnas.storage.locks import NameLocks
from httpnas.storage.store import Storage
from httpnas.storage.volume import Space
from httpnas.transfer import disk as disk_module
from httpnas.web.server.deadlines import Limits
from tests.harness import Nas, connect, logged, receive_all, wait_until
from tests.private import own

DASHBOARD = Path(__file__).parents[2] / "k8s" / "grafana-dashboard.json"


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    daemon = Nas(tmp_path / "root")
    yield daemon
    await daemon.stop()


async def ask(nas: Nas, path: str) -> tuple[int, Any]:
    status, body, _ = await nas.fetch("GET", path)
    return status, json.loads(body)


async def series(nas: Nas) -> dict[str, float]:
    """Return every sample of /metrics, by its name and labels as they are written."""
    _, body, _ = await nas.fetch("GET", "/metrics")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Hung:
    """A call of the disk that does not come back before it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self._let_go = threading.Event()

    def __call__(self, *_: object) -> None:
        self.calls += 1
        self._let_go.wait(20)

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
def hung() -> Iterator[Hung]:
    call = Hung()
    yield call
    call.let_go()


# Health and readiness


@pytest_twisted.ensureDeferred
async def test_health_is_told_as_simple_fs_told_it(nas: Nas) -> None:
    assert await ask(nas, "/health") == (200, {"status": "alive"})


@pytest_twisted.ensureDeferred
async def test_health_does_not_depend_on_the_storage(nas: Nas) -> None:
    shutil.rmtree(nas.root)
    assert (await ask(nas, "/health"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_can_serve_is_ready(nas: Nas) -> None:
    assert await ask(nas, "/ready") == (200, {"status": "ready"})


async def refusal(nas: Nas) -> list[str]:
    """Return the reasons for which *nas* is not ready."""
    status, body, headers = await nas.fetch("GET", "/ready")
    problem = json.loads(body)
    assert (status, problem["status"]) == (503, 503)
    assert headers.getRawHeaders("Retry-After") == ["5"]
    assert problem["detail"] == " ".join(problem["reasons"])
    reasons: list[str] = problem["reasons"]
    return reasons


@pytest_twisted.ensureDeferred
async def test_a_daemon_whose_root_is_gone_is_not_ready_until_it_is_back(nas: Nas) -> None:
    aside = nas.root.with_name("aside")
    nas.root.rename(aside)
    (reason,) = await refusal(nas)
    assert "cannot be written to" in reason
    aside.rename(nas.root)
    assert (await ask(nas, "/ready"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_drains_is_not_ready(nas: Nas) -> None:
    nas.site.draining = True
    assert await refusal(nas) == ["The daemon is stopping."]


@pytest.mark.parametrize(("headroom", "status"), [(301, 503), (300, 200), (0, 200)])
@pytest_twisted.ensureDeferred
async def test_a_daemon_with_less_than_its_headroom_is_not_ready(
    tmp_path: Path, headroom: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = Nas(tmp_path / "root", headroom=headroom)
    monkeypatch.setattr(nas.engine.watchdog.space, "_call", lambda: Space(1000, 400, 300, 50, 20))
    try:
        if status == 503:
            assert await refusal(nas) == [f"300 bytes are free, and {headroom} should be."]
        else:
            assert (await ask(nas, "/ready"))[0] == 200
    finally:
        await nas.stop()


@pytest.mark.parametrize("error", [StorageAway("x"), StorageBroken("x"), OSError(5, "x")])
@pytest_twisted.ensureDeferred
async def test_a_daemon_whose_storage_fails_repeatedly_is_not_ready_for_a_while(
    nas: Nas, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    for failures in range(3):
        assert (await ask(nas, "/ready"))[0] == 200, failures
        with pytest.raises(type(error)):
            await nas.disk.run(fail)
    assert "failed repeatedly" in (await refusal(nas))[0]
    monkeypatch.setattr(disk_module, "_LATELY", 0)
    assert (await ask(nas, "/ready"))[0] == 200


@pytest.mark.parametrize("error", [StorageFull("x"), NotPermitted("x")])
@pytest_twisted.ensureDeferred
async def test_errors_that_concern_one_request_do_not_make_a_daemon_unready(
    nas: Nas, error: Exception
) -> None:
    def fail() -> None:
        raise error

    for _ in range(9):
        with pytest.raises(type(error)):
            await nas.disk.run(fail)
    assert (await ask(nas, "/ready"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_is_told_in_time_and_holds_one_thread_of_all_who_ask(
    nas: Nas, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "PROBE_TIMEOUT", 0.05)
    monkeypatch.setattr(nas.engine.watchdog.probe, "_call", hung)
    for _ in range(20):
        assert await refusal(nas) == ["The storage cannot be written to: it does not answer."]
    assert (await nas.fetch("GET", "/file"))[0] == 503
    assert (await ask(nas, "/health"))[0] == 200
    assert hung.calls == 1
    hung.let_go()
    assert (await ask(nas, "/ready"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_of_two_who_ask_the_same_the_one_who_still_waits_is_told(
    nas: Nas, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nas.engine.watchdog.probe, "_call", hung)
    monkeypatch.setattr(disk_module, "PROBE_TIMEOUT", 0.05)
    with pytest.raises(StorageAway):
        await nas.engine.watchdog.probe.ask()
    monkeypatch.setattr(disk_module, "PROBE_TIMEOUT", 20)
    waiting = Deferred.fromCoroutine(nas.engine.watchdog.probe.ask())
    hung.let_go()
    await waiting
    assert hung.calls == 1
    await nas.engine.watchdog.probe.ask()


@pytest_twisted.ensureDeferred
async def test_a_name_that_others_hold_does_not_make_a_daemon_unready(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"x")
    monkeypatch.setattr(nas.storage.locks, "_timeout", 0.01)
    folder = os.open(nas.root, os.O_RDONLY)
    others = NameLocks(nas.storage.workspace.locks)
    with others.hold((folder, b"f")):
        for _ in range(4):
            assert (await nas.fetch("DELETE", "/file/f"))[0] == 503
    os.close(folder)
    assert (await ask(nas, "/ready"))[0] == 200
    found = await series(nas)
    assert not [key for key in found if key.startswith("httpnas_storage_errors_total{")]
    assert found['httpnas_storage_step_seconds_count{step="lock_wait"}'] == 4


@pytest_twisted.ensureDeferred
async def test_a_full_storage_is_ready_as_it_can_still_be_emptied(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise StorageFull("no inodes left")

    monkeypatch.setattr(nas.storage.workspace, "create", fail)
    assert (await ask(nas, "/ready"))[0] == 200
    assert (await nas.fetch("GET", "/file"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_may_not_take_locks_is_not_ready_and_says_why(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the lock files belong to another user, and every change is 403."""
    await nas.fetch("POST", "/file/f", data=b"x")
    real = os.access
    locks = {lock.name for lock in own(nas.root, "locks").iterdir()}
    monkeypatch.setattr(
        os, "access", lambda name, *a, **k: name not in locks and real(name, *a, **k)
    )
    status, answer = await ask(nas, "/ready")
    assert status == 503
    assert "lock files of another user" in answer["reasons"][0]


@pytest_twisted.ensureDeferred
async def test_a_failure_of_the_storage_is_in_the_log(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("httpnas.storage.upload.next_stamp", fail)
    with logged() as events:
        assert (await nas.fetch("POST", "/file/f", data=b"x"))[0] == 503
    assert "the storage failed: Stale file handle" in map(formatEvent, events)


@pytest_twisted.ensureDeferred
async def test_what_a_removed_folder_keeps_is_in_the_log_and_in_the_metrics(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "d").mkdir()
    (nas.root / "d" / "stuck").touch()
    real = os.unlink

    def unlink(name: Any, **kwargs: Any) -> None:
        if name == b"stuck":
            raise PermissionError(1, "not permitted")
        real(name, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    with logged() as events:
        assert (await nas.fetch("DELETE", "/file/d"))[0] == 200
        await nas.in_thread(wait_until, lambda: nas.disk.faults, "the folder to be reclaimed")
    assert any("'stuck': not permitted); the next start" in formatEvent(e) for e in events)
    assert (await series(nas))['httpnas_storage_errors_total{error="NotFreed"}'] == 1
    assert (await ask(nas, "/ready"))[0] == 200


# Metrics


@pytest_twisted.ensureDeferred
async def test_requests_are_counted_by_door_verb_and_status(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"12345")
    await nas.fetch("PUT", "/file/f", data=b"678")
    await nas.fetch("GET", "/file/f")
    await nas.fetch("GET", "/file/f/wc")
    await nas.fetch("GET", "/file/")
    await nas.fetch("GET", "/files/f")
    await nas.fetch("PUT", "/file/f/mv", data=b'{"path": "g"}')
    await nas.fetch("DELETE", "/file/g")
    await nas.fetch("GET", "/file/none")
    await nas.fetch("GET", "/nowhere")
    await nas.fetch("BREW", "/file/f")
    found = await series(nas)
    counted = {
        tuple(re.findall('"(.*?)"', key)): value
        for key, value in found.items()
        if key.startswith("httpnas_requests_total")
    }
    assert counted == {
        ("file", "200", "upload"): 1,
        ("file", "200", "append"): 1,
        ("file", "200", "download"): 1,
        ("file", "200", "count"): 1,
        ("file", "200", "list"): 1,
        ("files", "200", "download"): 1,
        ("file", "200", "move"): 1,
        ("file", "200", "delete"): 1,
        ("file", "404", "download"): 1,
        ("none", "404", "none"): 1,
        ("file", "405", "refuse"): 1,
    }
    assert found['httpnas_received_bytes_total{door="file",verb="upload"}'] == 5
    assert found['httpnas_received_bytes_total{door="file",verb="append"}'] == 3
    assert found['httpnas_sent_bytes_total{door="files",verb="download"}'] == 8
    assert found['httpnas_request_duration_seconds_count{door="file",verb="move"}'] == 1
    assert found['httpnas_time_to_first_byte_seconds_count{door="file",verb="list"}'] == 1


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_is_counted_without_a_status(nas: Nas) -> None:
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"POST /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
    await nas.in_thread(wait_until, lambda: any(r.body.received for r in nas.site.running()))
    client.close()
    await nas.at_rest()
    found = await series(nas)
    assert found['httpnas_requests_total{door="file",status="none",verb="upload"}'] == 1
    assert found['httpnas_received_bytes_total{door="file",verb="upload"}'] == 4
    assert found['httpnas_time_to_first_byte_seconds_count{door="file",verb="upload"}'] == 0


@pytest_twisted.ensureDeferred
async def test_a_transfer_is_counted_while_it_runs_and_its_bytes_once(nas: Nas) -> None:
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"POST /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
    await nas.in_thread(wait_until, lambda: any(r.body.received for r in nas.site.running()))
    received = 'httpnas_received_bytes_total{door="file",verb="upload"}'
    for _ in range(2):
        found = await series(nas)
        assert found['httpnas_transfers_running{verb="upload"}'] == 1
        assert found[received] == 4
        assert found["httpnas_connections"] >= 2
    client.sendall(b"half")
    await nas.in_thread(client.recv, 1000)
    await nas.at_rest()
    found = await series(nas)
    assert found['httpnas_transfers_running{verb="upload"}'] == 0
    assert found[received] == 8
    client.close()


@pytest_twisted.ensureDeferred
async def test_no_name_that_a_client_chooses_becomes_a_series(nas: Nas) -> None:
    await nas.fetch("GET", "/file/warm")
    before = set(await series(nas))
    for path in ("/file/secret-a", "/nowhere/secret-b", "/files/secret-c", "/page/secret-d"):
        await nas.fetch("GET", path, headers={"X-Request-ID": "secret-e"})
    await nas.fetch("SECRET", "/file/x")
    added = set(await series(nas)) - before
    assert added and not any("secret" in key.lower() for key in added)


@pytest_twisted.ensureDeferred
async def test_refusals_are_counted_by_their_cause(nas: Nas) -> None:
    await nas.fetch("GET", "/file/nothing")
    await nas.fetch("DELETE", "/file/nothing")
    await nas.talk(b"this is no request\r\n\r\n")
    found = await series(nas)
    assert found['httpnas_problems_total{code="no-such-file"}'] == 2
    assert found['httpnas_problems_total{code="malformed-request"}'] == 1


@pytest_twisted.ensureDeferred
async def test_the_steps_of_changes_are_timed(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", durable=True)
    try:
        await nas.fetch("POST", "/file/f", data=b"1")
        found = await series(nas)
        assert found['httpnas_storage_step_seconds_count{step="fsync"}'] == 2
        assert found['httpnas_storage_step_seconds_count{step="lock_wait"}'] == 1
        assert 'httpnas_storage_step_seconds_count{step="append_commit"}' not in found
        await nas.fetch("PUT", "/file/f", data=b"2")
        found = await series(nas)
        assert found['httpnas_storage_step_seconds_count{step="fsync"}'] == 3
        assert found['httpnas_storage_step_seconds_count{step="lock_wait"}'] == 2
        assert found['httpnas_storage_step_seconds_count{step="append_commit"}'] == 1
    finally:
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_the_disk_s_queue_is_shown(nas: Nas, hung: Hung) -> None:
    for _ in range(disk_module.THREADS + 3):
        nas.disk.run(hung)
    await nas.in_thread(wait_until, lambda: hung.calls == disk_module.THREADS)
    assert (nas.disk.running, nas.disk.queued) == (disk_module.THREADS, 3)
    hung.let_go()
    found = await series(nas)
    assert found["httpnas_disk_calls_queued"] == 0


@pytest_twisted.ensureDeferred
async def test_the_storage_is_measured(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas.engine.watchdog.space, "_call", lambda: Space(1000, 400, 300, 50, 20))
    found = await series(nas)
    assert found["httpnas_storage_size_bytes"] == 1000
    assert found["httpnas_storage_free_bytes"] == 300
    assert found["httpnas_storage_inodes"] == 50
    assert found["httpnas_storage_free_inodes"] == 20
    assert found["disk_used"] == 0.6
    monkeypatch.setattr(nas.engine.watchdog.space, "_call", lambda: Space(0, 0, 0, 0, 0))
    assert (await series(nas))["disk_used"] == 0


def test_the_storage_is_measured_as_df_does(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    space, status = storage.volume.space(), os.statvfs(tmp_path)
    storage.close()
    unit = status.f_frsize
    assert (space.size, space.inodes) == (status.f_blocks * unit, status.f_files)
    assert space.free <= space.unused <= space.size
    assert abs(space.free - status.f_bavail * unit) < 1 << 30


@pytest_twisted.ensureDeferred
async def test_metrics_are_shown_while_the_disk_hangs(
    nas: Nas, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "PROBE_TIMEOUT", 0.05)
    monkeypatch.setattr(nas.engine.watchdog.space, "_call", hung)
    assert (await series(nas))["httpnas_disk_calls_running"] == 1


@pytest_twisted.ensureDeferred
async def test_errors_on_the_way_to_disk_are_counted(nas: Nas) -> None:
    def fail() -> None:
        raise StorageFull("x")

    for count in (1, 2):
        with pytest.raises(StorageFull):
            await nas.disk.run(fail)
        found = await series(nas)
        assert found['httpnas_storage_errors_total{error="StorageFull"}'] == count


@pytest_twisted.ensureDeferred
async def test_what_prometheus_wants_to_know_of_a_process_is_there(nas: Nas) -> None:
    found = await series(nas)
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_open_fds"] > 3
    assert any(key.startswith("python_gc_") for key in found)
    assert any(key.startswith("python_gc_collections_total{") for key in found)
    assert found["httpnas_draining"] == 0


@pytest_twisted.ensureDeferred
async def test_metrics_come_in_the_form_that_is_asked_for(nas: Nas) -> None:
    _, body, headers = await nas.fetch("GET", "/metrics")
    assert headers.getRawHeaders("Content-Type")[0].startswith("text/plain; version=")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    _, body, headers = await nas.fetch("GET", "/metrics", headers=accept)
    assert headers.getRawHeaders("Content-Type")[0].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=x",
        "application/openmetrics-text;version=abc",
        "text/plain;version=\u00b2.0",
        "text/plain;version=",
        ";;;,,,",
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_odd_accept_field_gets_the_usual_form(nas: Nas, accept: str) -> None:
    sent = f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
    answer = await nas.talk(sent.encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nContent-Type: text/plain; version=" in answer


@pytest_twisted.ensureDeferred
async def test_what_a_client_announces_is_no_error_of_the_storage(nas: Nas) -> None:
    answer = await nas.talk(
        b"POST /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000000000000\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 507 ")
    found = await series(nas)
    assert not [key for key in found if key.startswith("httpnas_storage_errors_total{")]


@pytest_twisted.ensureDeferred
async def test_the_time_to_the_first_byte_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, go_on = Clock(), threading.Event()
    nas = Nas(tmp_path / "root", clock=clock)
    (nas.root / "f").write_bytes(bytes(30 << 20))
    open_file = nas.storage.open

    def open_late(*args: Any) -> Any:
        assert go_on.wait(20)
        return open_file(*args)

    nas.storage.opens_at_once = False
    monkeypatch.setattr(nas.storage, "open", open_late)
    try:
        client = await nas.in_thread(connect, nas.port)
        client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await nas.in_thread(wait_until, lambda: any(nas.site.running()))
        clock.advance(2)
        go_on.set()
        await nas.in_thread(client.recv, 1000)
        clock.advance(5)
        await nas.in_thread(receive_all, client)
        await nas.at_rest()
        found = await series(nas)
    finally:
        go_on.set()
        await nas.stop()
    total = found['httpnas_request_duration_seconds_sum{door="file",verb="download"}']
    first = found['httpnas_time_to_first_byte_seconds_sum{door="file",verb="download"}']
    assert (first, total) == (2, 7)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
@pytest_twisted.ensureDeferred
async def test_promtool_finds_nothing_to_say_of_the_metrics(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"12345")
    _, body, _ = await nas.fetch("GET", "/metrics")

    def check() -> subprocess.CompletedProcess[bytes]:
        command = ["promtool", "check", "metrics"]
        return subprocess.run(command, input=body, capture_output=True, check=False)

    checked = await nas.in_thread(check)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest_twisted.ensureDeferred
async def test_the_dashboard_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", durable=True)
    try:
        await nas.fetch("POST", "/file/f", data=b"1")
        await nas.fetch("PUT", "/file/f", data=b"1")

        def fail() -> None:
            raise StorageFull("x")

        with pytest.raises(StorageFull):
            await nas.disk.run(fail)
        there = {key.partition("{")[0] for key in await series(nas)}
    finally:
        await nas.stop()
    names = {
        name
        for expression in expressions()
        for name in re.findall(r"\b(?:httpnas|process|disk)_\w+", expression)
    }
    assert names <= there, names - there


def expressions() -> list[str]:
    """Return what the dashboard asks Prometheus."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(asked) >= 12
    return asked


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
def test_promtool_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "rules.json"  # YAML takes JSON
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# The trace of transfers


@pytest_twisted.ensureDeferred
async def test_ended_transfers_are_told_the_latest_first(nas: Nas) -> None:
    await nas.fetch("POST", "/file/d/f", data=b"12345", headers={"X-Request-ID": "first"})
    await nas.fetch("PUT", "/file/d/f", data=b"678")
    await nas.fetch("GET", "/file/d/f")
    await nas.fetch("GET", "/file/d/f", headers={"Range": "bytes=0-1"})
    await nas.fetch("PUT", "/file/d/f/mv", data=b'{"path": "g"}')
    await nas.fetch("DELETE", "/file/g")
    _, trace = await ask(nas, "/transfers")
    assert trace["running"] == []
    told = [(t["verb"], t["name"], t["bytes"], t["outcome"]) for t in trace["ended"]]
    assert told == [
        ("delete", "/g", 0, "done"),
        ("move", "/d/f", 0, "done"),
        ("download", "/d/f", 2, "done"),
        ("download", "/d/f", 8, "done"),
        ("append", "/d/f", 3, "done"),
        ("upload", "/d/f", 5, "done"),
    ]
    first = trace["ended"][-1]
    assert (first["id"], first["client"]) == ("first", "127.0.0.1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["since"])
    assert 0 <= first["seconds"] < 10 and first["bytes_per_second"] >= 0
    assert trace["ended"][1]["to"] == "/g"


@pytest_twisted.ensureDeferred
async def test_what_moves_nothing_is_no_transfer(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")
    _, _, headers = await nas.fetch("HEAD", "/file/f")
    etag = headers.getRawHeaders("ETag")[0]
    await nas.fetch("GET", "/file/f", headers={"If-None-Match": etag})
    await nas.fetch("GET", "/file/f/wc")
    await nas.fetch("GET", "/file/")
    await nas.fetch("GET", "/")
    assert (await ask(nas, "/transfers"))[1] == {"running": [], "ended": []}


@pytest_twisted.ensureDeferred
async def test_a_running_upload_is_told_with_its_bytes(nas: Nas) -> None:
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"POST /file/f HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
    await nas.in_thread(wait_until, lambda: any(r.body.received for r in nas.site.running()))
    _, trace = await ask(nas, "/transfers")
    (running,) = trace["running"]
    assert (running["verb"], running["name"], running["bytes"]) == ("upload", "/f", 4)
    assert "outcome" not in running
    client.close()
    await nas.at_rest()
    _, trace = await ask(nas, "/transfers")
    assert trace["running"] == []
    assert [(t["outcome"], t["bytes"]) for t in trace["ended"]] == [("client gone", 4)]


@pytest_twisted.ensureDeferred
async def test_a_refused_upload_is_told_with_its_status(nas: Nas) -> None:
    await nas.fetch(
        "POST", "/file/f", data=b"x", headers={"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
    )
    _, trace = await ask(nas, "/transfers")
    assert [(t["outcome"], t["status"]) for t in trace["ended"]] == [("refused", 400)]


@pytest.mark.parametrize(
    ("method", "path", "headers", "told"),
    [
        ("POST", "/file/f", {"If-None-Match": "*"}, ("upload", "refused", 412)),
        ("POST", "/file/f/below", {}, ("upload", "refused", 409)),
        ("PUT", "/file/none", {}, ("append", "refused", 404)),
        ("PUT", "/file/none/mv", {}, ("move", "refused", 404)),
        ("DELETE", "/file/none", {}, ("delete", "refused", 404)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_refused_from_its_headers_is_told(
    nas: Nas, method: str, path: str, headers: dict[str, str], told: tuple[str, str, int]
) -> None:
    (nas.root / "f").write_bytes(b"x")
    await nas.fetch(method, path, data=b"x", headers=headers)
    _, trace = await ask(nas, "/transfers")
    assert [(t["verb"], t["outcome"], t["status"]) for t in trace["ended"]] == [told]


@pytest_twisted.ensureDeferred
async def test_who_does_not_move_on_is_told_as_too_slow(tmp_path: Path) -> None:
    nas = Nas(tmp_path / "root", Limits(stall=0.1))
    (nas.root / "f").write_bytes(bytes(30 << 20))
    try:
        up, down = [await nas.in_thread(connect, nas.port) for _ in range(2)]
        up.sendall(b"POST /file/g HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        down.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n")
        await nas.in_thread(wait_until, lambda: len(nas.engine.trace.record()["ended"]) == 2)
        _, trace = await ask(nas, "/transfers")
        assert {(t["verb"], t["outcome"], t.get("status")) for t in trace["ended"]} == {
            ("upload", "client too slow", 408),
            ("download", "client too slow", None),
        }
        up.close(), down.close()
    finally:
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_an_upload_that_fails_on_disk_is_told_as_failed(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("httpnas.storage.upload.next_stamp", fail)
    await nas.fetch("POST", "/file/f", data=b"x")
    _, trace = await ask(nas, "/transfers")
    assert [(t["outcome"], t["status"]) for t in trace["ended"]] == [("failed", 500)]


@pytest_twisted.ensureDeferred
async def test_a_download_that_is_broken_off_is_told_as_such(nas: Nas) -> None:
    (nas.root / "f").write_bytes(bytes(30 << 20))
    client = await nas.in_thread(connect, nas.port)
    client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n")
    await nas.in_thread(client.recv, 1000)
    _, trace = await ask(nas, "/transfers")
    assert [(t["verb"], t["name"]) for t in trace["running"]] == [("download", "/f")]
    client.close()
    await nas.at_rest()
    _, trace = await ask(nas, "/transfers")
    (ended,) = trace["ended"]
    assert ended["outcome"] == "client gone" and 0 < ended["bytes"] < 30 << 20


@pytest_twisted.ensureDeferred
async def test_the_latest_thousand_are_remembered(nas: Nas) -> None:
    def download_often() -> None:
        with connect(nas.port) as client:
            client.sendall(b"GET /file/f HTTP/1.1\r\nHost: x\r\n\r\n" * 1010)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            receive_all(client)

    (nas.root / "f").write_bytes(b"x")
    await nas.fetch("POST", "/file/first", data=b"x")
    await nas.in_thread(download_often)
    _, trace = await ask(nas, "/transfers")
    assert len(trace["ended"]) == 1000
    assert {t["verb"] for t in trace["ended"]} == {"download"}
    assert len((await ask(nas, "/transfers?limit=3"))[1]["ended"]) == 3
    assert (await ask(nas, "/transfers?limit=x"))[0] == 400
