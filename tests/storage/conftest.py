from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from httpnas.storage.store import Storage
from tests.lock_files import SpareLockFiles
from tests.private import keep_records
from tests.storage.steps import KINDS, choose


@pytest.fixture(scope="session")
def spare_lock_files(tmp_path_factory: pytest.TempPathFactory) -> SpareLockFiles:
    return SpareLockFiles(tmp_path_factory.mktemp("spare"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder to store in; what lies beside it is outside."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where files have their records: a test that has this runs for both."""
    chosen: str = request.param
    choose(chosen, monkeypatch, tmp_path)
    return chosen


@pytest.fixture
def prepared(
    request: pytest.FixtureRequest, root: Path, spare_lock_files: SpareLockFiles
) -> Iterator[Path]:
    """The root, in which a storage has been before, on a file system of the test's kind.

    HTTPNAS_RECORDS in the environment says where other tests have the records of files.
    """
    if "kind" in request.fixturenames:
        request.getfixturevalue("kind")
    with spare_lock_files.lent(root):
        if "kind" not in request.fixturenames and "HTTPNAS_RECORDS" in os.environ:
            keep_records(root, "beside" if os.environ["HTTPNAS_RECORDS"] == "beside" else "xattr")
        yield root


@pytest.fixture
def storage(prepared: Path) -> Iterator[Storage]:
    """A storage without durability: what it syncs is a matter of tests of its own."""
    storage = Storage(str(prepared), durable=False)
    yield storage
    storage.close()


@pytest.fixture
def durable(prepared: Path) -> Iterator[Storage]:
    """A storage that syncs."""
    storage = Storage(str(prepared))
    yield storage
    storage.close()
