from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cephfs.cluster import Cluster, Mount, missing
from tests.crash.sweep import Wards, beside, open_wards

#: What the mounts keep in memory, and how often the MDS flushes its journal (see ``cluster.py``).
#: Ceph's own are ``full`` and 5.
CACHE = os.environ.get("HTTPNAS_CEPHFS_CACHE", "none")
TICK = float(os.environ.get("HTTPNAS_CEPHFS_TICK", "0.1"))
#: Set in the environment for the short form.
SHORT = bool(os.environ.get("HTTPNAS_CEPHFS_SHORT"))
#: The operations and starts that are stopped at each of their calls in the short form: those that
#: go another way on CephFS, or whose state between two calls is the most delicate.
CHOSEN = (
    "create only",
    "append with key",
    beside("append with key"),
    "move only to a new name",
    "after a large append",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the short form does without."""

    def is_left_out(item: pytest.Item) -> bool:
        if not SHORT or item.path.name != "test_promises.py":
            return False
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return not {"name", "start"}.isdisjoint(parameters) and not any(
            chosen in CHOSEN for chosen in parameters.values()
        )

    left_out = [item for item in items if is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not is_left_out(item)]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A CephFS for all tests."""
    if reason := missing():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="cephfs-", ignore_cleanup_errors=True) as folder,
        Cluster(Path(folder), mds_tick=TICK) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def mounts(cluster: Cluster) -> list[Mount]:
    """Two clients of the file system, as on two hosts."""
    return [cluster.mount(name, CACHE) for name in ("one", "two")]


@pytest.fixture
def roots(mounts: list[Mount]) -> list[Path]:
    """An empty folder to store in, as each of two hosts sees it."""
    return fresh(mounts)


@pytest.fixture(scope="module")
def wards(mounts: list[Mount]) -> Iterator[Wards]:
    """Where operations are stopped on one host, and looked at on the other."""
    with open_wards(fresh(mounts)) as opened:
        yield opened


def fresh(mounts: list[Mount]) -> list[Path]:
    """Make a folder; return it as each mount sees it."""
    name = uuid.uuid4().hex
    (mounts[0].path / name).mkdir()
    return [mount.path / name for mount in mounts]
