"""The example for Airflow: parsed by a stand-in, and its tasks' commands run against a daemon."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.access import files
from tests.deploy.peers import served
from tests.harness import twistd

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not shutil.which("curl"), reason="not there: curl"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "airflow" / "shared_files.py"
#: As Airflow makes them.
RUN = "manual__2026-01-01T00:00:00+00:00"
#: Of KubernetesPodOperator's parameters, those of which the stand-in knows what they mean.
PARAMETERS = {"task_id", "name", "image", "cmds", "arguments", "env_vars"}
PARAMETERS |= {"volumes", "volume_mounts"}


class Operator:
    """Stands in for ``KubernetesPodOperator``: keeps what it was given, and what comes before."""

    made: list[Operator]

    def __init__(self, **given: Any) -> None:
        assert set(given) == PARAMETERS
        self.task_id: str = given["task_id"]
        self.given = given
        self.upstream: set[Operator] = set()
        self.made.append(self)

    def __rshift__(self, after: Any) -> Any:
        for operator in after if isinstance(after, list) else [after]:
            operator.upstream.add(self)
        return after

    def __rrshift__(self, before: list[Operator]) -> Operator:
        self.upstream.update(before)
        return self


class Models(ModuleType):
    """Stands in for ``kubernetes.client.models``: keeps what an object was given."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("V1"):
            raise AttributeError(name)
        return lambda **given: given


class Dag:
    def __init__(self, dag_id: str, **_: Any) -> None:
        assert re.fullmatch(r"[\w.-]+", dag_id)

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Operator]:
    """The tasks of the example."""
    names = ["airflow"]
    for part in ("providers", "cncf", "kubernetes", "operators", "pod"):
        names.append(f"{names[-1]}.{part}")
    modules = {name: ModuleType(name) for name in names}
    modules["airflow"].DAG = Dag  # type: ignore[attr-defined]
    modules[names[-1]].KubernetesPodOperator = Operator  # type: ignore[attr-defined]
    modules["kubernetes"] = ModuleType("kubernetes")
    client = modules["kubernetes.client"] = ModuleType("kubernetes.client")
    client.models = Models("models")  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Operator, "made", [], raising=False)
    runpy.run_path(str(EXAMPLE))
    return Operator.made


def start(task: Operator, nas: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Run what the pod of *task* would, with the daemon at *nas*."""
    shell, *options = task.given["cmds"]
    assert shell == "sh"  # of the image, which knows pipefail
    (script,) = task.given["arguments"]
    script = re.sub(r"{{ *run_id *}}", RUN, script)
    assert "{{" not in script
    assert set(task.given["env_vars"]) == {"NAS", "TOKEN"}
    token = tmp_path / "token"
    if not token.exists():
        token.write_text("")
    return subprocess.Popen(
        ["bash", *options, script],
        env={**os.environ, "NAS": nas, "TOKEN": str(token), "TMPDIR": str(tmp_path)},
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def stages(tasks: list[Operator]) -> Iterator[list[Operator]]:
    """Yield the tasks that may run at the same time, in the order of their dependencies."""
    done: set[Operator] = set()
    while len(done) < len(tasks):
        ready = [task for task in tasks if task not in done and task.upstream <= done]
        assert ready, "tasks wait for each other"
        yield ready
        done.update(ready)


def run(stage: list[Operator], nas: str, tmp_path: Path) -> None:
    """Run the tasks of *stage* at the same time."""
    running = [(task, start(task, nas, tmp_path)) for task in stage]
    for task, process in running:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{task.task_id}: {said}"


def test_the_tasks_share_their_files(tasks: list[Operator], tmp_path: Path) -> None:
    root = tmp_path / "root"
    with twistd(root, "--durability=none") as daemon:
        order = []
        for stage in stages(tasks):
            run(stage, daemon.url, tmp_path)
            order.append([task.task_id for task in stage])
    parts = range(1, 5)
    append = [f"append_{part}" for part in parts]
    assert order == [["dump"], append, ["count"], ["move"], ["summarize"]]
    folder = root / "airflow" / RUN
    assert sorted(p.name for p in folder.iterdir()) == ["complete"]
    numbers = [int(line) for line in (folder / "complete/numbers.txt").read_text().split()]
    pieces = {part: list(range(part * 1000 + 1, part * 1000 + 251)) for part in parts}
    assert numbers[:1000] == list(range(1, 1001))
    landed = [numbers[start : start + 250] for start in range(1000, len(numbers), 250)]
    assert sorted(landed) == sorted(pieces.values())
    summary = (folder / "complete/summary.txt").read_text()
    assert summary == f"{len(numbers)} {sum(numbers)}\n"


def test_a_pod_s_token_is_for_the_daemon_alone_and_is_read_where_it_is_mounted(
    tasks: list[Operator],
) -> None:
    for task in tasks:
        (volume,), (mount,) = task.given["volumes"], task.given["volume_mounts"]
        (source,) = volume["projected"]["sources"]
        token = source["service_account_token"]
        assert token["audience"] == "httpnas"
        assert mount["name"] == volume["name"]
        assert f"{mount['mount_path']}/{token['path']}" == task.given["env_vars"]["TOKEN"]


def test_the_tasks_show_the_token_that_is_there_at_each_request(
    tasks: list[Operator], tmp_path: Path
) -> None:
    rights = ["list", "read", "create", "append", "replace", "delete"]
    names = [f"pod-{number}" for number in range(5)]
    tables = [files.token(name) + files.rule(name, "/airflow", rights) for name in names]
    auth = files.write(tmp_path, *tables)
    with twistd(tmp_path / "root", "--durability=none", f"--auth={auth}") as daemon:
        for name, stage in zip(names, stages(tasks), strict=True):
            (tmp_path / "token").write_text(files.token_of(name) + "\n")
            run(stage, daemon.url, tmp_path)
        (tmp_path / "token").write_text("expired")
        process = start(tasks[0], daemon.url, tmp_path)
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0 and "401" in said


def test_every_task_may_run_again(tasks: list[Operator], tmp_path: Path) -> None:
    root = tmp_path / "root"
    with twistd(root, "--durability=none") as daemon:
        for stage in stages(tasks):
            run(stage, daemon.url, tmp_path)
            run(stage, daemon.url, tmp_path)
    numbers = (root / "airflow" / RUN / "complete/numbers.txt").read_text().split()
    assert len(numbers) == len(set(numbers)) == 2000


@pytest.fixture
def away() -> Iterator[tuple[str, Counter[str]]]:
    """What is always about to stop: its URL, and how often it was asked by which method."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.command] += 1
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url, asked


@pytest.mark.parametrize("task_id, method", [("dump", "POST"), ("summarize", "GET")])
def test_what_goes_through_a_pipe_is_not_sent_again_without_what_is_gone(
    task_id: str,
    method: str,
    tasks: list[Operator],
    away: tuple[str, Counter[str]],
    tmp_path: Path,
) -> None:
    url, asked = away
    (task,) = [task for task in tasks if task.task_id == task_id]
    process = start(task, url, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert asked[method] == 1


def test_a_wrong_count_fails(tasks: list[Operator], tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--durability=none") as daemon:
        folder = tmp_path / "root" / "airflow" / RUN
        folder.mkdir(parents=True)
        (folder / "numbers.txt").write_text("1\n" * 1999)
        (count,) = [task for task in tasks if task.task_id == "count"]
        process = start(count, daemon.url, tmp_path)
        process.communicate(timeout=60)
    assert process.returncode != 0
