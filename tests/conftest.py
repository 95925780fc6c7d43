from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted

from tests.harness import Nas


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon with default limits, without durability, on an empty folder."""
    nas = Nas(tmp_path / "root")
    yield nas
    await nas.stop()
