"""Other users: what they may do is tried by processes that are theirs."""

from __future__ import annotations

import codecs
import ctypes
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from httpnas.storage import acl
from tests.storage.steps import outcome

T = TypeVar("T")

#: _LINUX_CAPABILITY_VERSION_3 of capset(2).
_CAPABILITIES_3 = 0x20080522

codecs.lookup("ascii")  # other users may not be able to read where Python has it

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become other users")


@dataclass(frozen=True)
class User:
    """A user of the system, who need not have a name there."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def does(self, folder: Path, call: Callable[[], T]) -> T:
        """Return what *call* returns to this user, in a process whose working folder is *folder*.

        :raises Exception: what *call* raises.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, pickle.dumps(outcome(lambda: self._do(folder, call))))
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            found = pipe.read()
        os.waitpid(child, 0)
        result = pickle.loads(found)
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    def _do(self, folder: Path, call: Callable[[], T]) -> T:
        os.chdir(folder)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.umask(self.umask)
        return call()


def without_privileges() -> None:
    """Let root be a user like others in this process, for good (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("=Ii", _CAPABILITIES_3, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def listed(*entries: tuple[int, int, int]) -> bytes:
    """Return an access control list of *entries*: tag, permissions, and whom it is about."""
    packed = [tag.to_bytes(2, "little") + p.to_bytes(2, "little") for tag, p, _ in entries]
    whom = [(who & 0xFFFFFFFF).to_bytes(4, "little") for _, _, who in entries]
    return (2).to_bytes(4, "little") + b"".join(a + b for a, b in zip(packed, whom, strict=True))


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def plain(owner: int, group: int, other: int) -> bytes:
    """Return a list that says no more than permission bits do."""
    return listed((USER_OBJ, owner, -1), (GROUP_OBJ, group, -1), (OTHER, other, -1))


def shared_with(uid: int, owner: int = 7, group: int = 0, mask: int = 7, other: int = 0) -> bytes:
    """Return a list in which the user *uid* may do everything that the mask allows."""
    return listed(
        (USER_OBJ, owner, -1),
        (USER, 7, uid),
        (GROUP_OBJ, group, -1),
        (MASK, mask, -1),
        (OTHER, other, -1),
    )


def need_lists(folder: Path) -> None:
    """Skip the test where the file system keeps no access control lists."""
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, acl.ACCESS, shared_with(1234))
    except OSError as error:
        pytest.skip(f"this file system keeps no access control lists ({error.strerror})")
    finally:
        probe.unlink()
