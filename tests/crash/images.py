"""File systems of a test's own: small images on loop devices, and file systems in memory.

All of them lie in one temporary folder a process, named after the process, so that what a killed
test run has left mounted is found and taken away by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "httpnas-images-"
_BACKING = "backing"
#: Of loop(4): LOOP_GET_STATUS64 and LOOP_SET_STATUS64, the bytes of what they take, and where in
#: that the bytes stand that the device has.
_GET_STATUS, _SET_STATUS, _STATUS, _SIZE_LIMIT = 0x4C05, 0x4C04, 232, 32
#: Bytes of a device that takes nothing any more.
_NEXT_TO_NOTHING = 4096
_MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


def why_not(kind: str) -> str | None:
    """Return why there can be no file system *kind* here, or None."""
    if os.geteuid() != 0:
        return "only root may mount file systems"
    maker = _MKFS.get(kind.partition(" ")[0])
    if maker is not None:
        if not Path("/dev/loop-control").exists():
            return "there are no loop devices"
        missing = [tool for tool in (maker[0], "losetup") if shutil.which(tool) is None]
        if missing:
            return f"{missing[0]} is not installed"
    with folder() as place:
        try:
            if maker is None:
                with in_memory(place, kind):
                    return None
            with image(place, kind):
                return None
        except subprocess.CalledProcessError as error:
            return f"{kind} can not be mounted: {error.stderr.strip()}"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for images and mounts, gone afterwards with all that is mounted in it."""
    _sweep()
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()
    try:
        yield path
    finally:
        _clear(path)


class Image:
    """A file system on a loop device over a sparse file.

    :ivar mount_point: the folder it is mounted at.
    """

    def __init__(self, place: Path, kind: str, size: int, *mkfs: str) -> None:
        self._kind, _, options = kind.partition(" ")
        self._options = options or "defaults"
        # The file lies in memory: flushes then take no time, and hardly any memory as it is sparse.
        backing = place / _BACKING
        backing.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size + (1 << 20)}", "tmpfs", str(backing))
        file = backing / self._kind
        with file.open("wb") as blank:
            blank.truncate(size)
        _run(*_MKFS[self._kind], *mkfs, str(file))
        self._device = _run("losetup", "--find", "--show", str(file)).strip()
        self.mount_point = place / "mount"
        self.mount_point.mkdir()

    def mount(self) -> None:
        """Mount it, replaying its log when it was cut off."""
        options = ("-t", self._kind, "-o", self._options)
        _run("mount", *options, self._device, str(self.mount_point))

    def remount(self, options: str) -> None:
        """Change how it is mounted."""
        _run("mount", "-o", f"remount,{options}", str(self.mount_point))

    def cut(self) -> None:
        """Cut the power: nothing reaches the device any more, as most of it is not there."""
        self._limit(_NEXT_TO_NOTHING)

    def _limit(self, size: int) -> None:
        """Let the device have *size* bytes, or all for 0."""
        status = bytearray(_STATUS)
        with open(self._device, "rb") as device:
            fcntl.ioctl(device, _GET_STATUS, status)
            struct.pack_into("=Q", status, _SIZE_LIMIT, size)
            fcntl.ioctl(device, _SET_STATUS, status)

    def unmount(self) -> None:
        """Take it off its mount point; nobody may have anything open on it."""
        _run("umount", str(self.mount_point))
        self._limit(0)


@contextlib.contextmanager
def image(place: Path, kind: str, size: int = 320 << 20, *mkfs: str) -> Iterator[Image]:
    """A new image, mounted, in the folder *place* made by :func:`folder`.

    :param kind: ``ext4`` or ``xfs``, and behind a space how it is mounted. XFS takes no less than
        300 MiB.
    :param mkfs: more options for the maker of the file system.
    """
    try:
        made = Image(place, kind, size, *mkfs)
        made.mount()
        yield made
    finally:
        _take_down(place)


@contextlib.contextmanager
def in_memory(place: Path, kind: str, options: str = "defaults") -> Iterator[Path]:
    """A mounted ``tmpfs`` or ``ramfs`` in the folder *place* made by :func:`folder`."""
    mount_point = place / kind
    mount_point.mkdir()
    try:
        _run("mount", "-t", kind, "-o", options, kind, str(mount_point))
        yield mount_point
    finally:
        _take_down(mount_point)


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """*source*, a file or folder, mounted at *target* as well, which exists."""
    _run("mount", "--bind", str(source), str(target))
    try:
        yield
    finally:
        _unmount(str(target))


@contextlib.contextmanager
def overlay(place: Path) -> Iterator[tuple[Path, Path]]:
    """An overlay in the folder *place* made by :func:`folder`: its lower layer, and what is seen.

    Both are empty. What is made in the lower layer before anything else is seen in the overlay.
    """
    with in_memory(place, "tmpfs") as layers:
        for name in ["lower", "upper", "work", "seen"]:
            (layers / name).mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        _run("mount", "-t", "overlay", "-o", options, "overlay", str(layers / "seen"))
        yield layers / "lower", layers / "seen"


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _tried(*command: str) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _mounted_below(path: Path) -> list[str]:
    """Return what is mounted at *path* and below, the innermost and last first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mountinfo:
        points = [line.split()[4] for line in mountinfo]
    return [p for p in reversed(points) if p == str(path) or p.startswith(f"{path}/")]


def _take_down(path: Path) -> None:
    """Unmount all at and below *path*, and free the loop devices whose files lie there."""
    # A loop device keeps the file system busy that its file lies on: that one goes last.
    for point in [p for p in _mounted_below(path) if Path(p).name != _BACKING]:
        _unmount(point)
    _free_loop_devices(path)
    for point in _mounted_below(path):
        _unmount(point)


def _unmount(point: str) -> None:
    if not _tried("umount", point):
        _tried("umount", "--lazy", point)


def _free_loop_devices(path: Path) -> None:
    for device in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            backing = (device / "loop" / "backing_file").read_text().strip()
            if backing.startswith(f"{path}/"):
                _tried("losetup", "--detach", f"/dev/{device.name}")


def _clear(path: Path) -> None:
    _take_down(path)
    if not _mounted_below(path):
        shutil.rmtree(path)


def _sweep() -> None:
    """Take away what processes that are gone have left."""
    for path in Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            _clear(path)
