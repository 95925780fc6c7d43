"""Lock files that one test leaves to the next: making them is most of the work of a new storage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from httpnas.storage.locks import BUCKETS
from tests.private import own


class SpareLockFiles:
    """Folders of lock files that no storage has just now.

    Lock files are empty and say nothing once nobody holds them, so that any storage may have them.

    :param place: a folder to keep them in, on the file system of the roots.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._numbers = count()
        self._spare: list[Path] = []

    @contextlib.contextmanager
    def lent(self, root: Path) -> Iterator[None]:
        """Let the folder *root* have lock files for the block, unless it has some."""
        locks = own(root, "locks")
        if self._spare and not locks.exists():
            locks.parent.mkdir(exist_ok=True)
            self._spare.pop().rename(locks)
        yield
        with contextlib.suppress(OSError):
            if len(os.listdir(locks)) == BUCKETS:
                kept = self._place / str(next(self._numbers))
                locks.rename(kept)
                self._spare.append(kept)
