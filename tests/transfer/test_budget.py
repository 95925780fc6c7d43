"""Shared amounts, and memory that goes back to the system."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from httpnas.transfer import budget
from httpnas.transfer.budget import Budget, Memory


def test_no_more_is_shared_out_than_there_is() -> None:
    shared = Budget(8)
    assert shared.take(4, keep=0.5)
    assert not shared.take(1, keep=0.5), "half is left to others"
    assert shared.take(4)
    assert not shared.take(1)
    shared.give_back(1)
    assert shared.take(1)


def test_the_system_gets_memory_back_once_after_much_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(budget, "_C", SimpleNamespace(malloc_trim=trimmed.append))
    memory = Memory()
    much = 64 << 20
    assert memory.take(much)
    memory.trim()
    assert trimmed == [], "it is still in use"
    memory.give_back(much)
    for _ in range(3):
        memory.trim()
    assert trimmed == [0]
    assert memory.take(1 << 20)
    memory.give_back(1 << 20)
    memory.trim()
    assert trimmed == [0], "little is not worth it"
