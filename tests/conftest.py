from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import settings
from werkzeug.routing import Rule

from httpnas.web import openapi
from tests.harness import Nas

# How long an example takes says something about the machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def what_every_daemon_computes_again() -> Iterator[None]:
    """Compute once what is the same in the daemons of all tests and takes much of their time."""
    compiled: dict[Any, Callable[..., Any]] = {}
    compile_builder = Rule._compile_builder

    def once(rule: Rule, append_unknown: bool = True) -> Callable[..., Any]:
        key = (*rule._trace, append_unknown)
        if rule.defaults or key not in compiled:
            compiled[key] = compile_builder(rule, append_unknown)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", once)
        patch.setattr(openapi, "document", cache(openapi.document))
        yield


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon with default limits, without durability, on an empty folder."""
    nas = Nas(tmp_path / "root")
    yield nas
    await nas.stop()
