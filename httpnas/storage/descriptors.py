"""Who closes a descriptor: the ``with`` statement that opens it, unless it hands it over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def owned(fd: int) -> Iterator[int]:
    """Close *fd* when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def handed_over(fd: int) -> Iterator[int]:
    """Close *fd* only when the block fails: otherwise it belongs to whom the block gave it."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise
