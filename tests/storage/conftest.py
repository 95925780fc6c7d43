from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from httpnas.storage.store import Storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder to store in; what lies beside it is outside."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def storage(root: Path) -> Iterator[Storage]:
    """A storage without durability: what it syncs is a matter of tests of its own."""
    storage = Storage(str(root), durable=False)
    yield storage
    storage.close()
