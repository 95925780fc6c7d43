from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.sweep import Wards, open_wards, place


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """An empty folder to store in, as each of the hosts that have it sees it: here is but one."""
    root = tmp_path / "root"
    root.mkdir()
    return [root]


@pytest.fixture(scope="module")
def wards() -> Iterator[Wards]:
    with place() as folder, open_wards([folder]) as opened:
        yield opened
