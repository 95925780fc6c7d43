"""What the machine can do without HTTP: the same bytes and syncs, by as little as possible."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.loads import MIB, SMALL, Moved, in_threads
from bench.peers import NotThere, program


def dd(source: Path, target: Path, size: int) -> Moved:
    """Copy *size* bytes, and sync them once at the end (``dd conv=fsync``)."""
    command = ["dd", f"if={source}", f"of={target}", "bs=1M", f"count={size // MIB}", "conv=fsync"]
    began = time.perf_counter()
    subprocess.run([*command, "status=none"], check=True, timeout=120)
    return Moved(size, time.perf_counter() - began)


def sendfile_pair(source: Path, size: int, most: float = 4) -> Moved:
    """Send *size* bytes from a file over loopback to a reader that drops them in the kernel."""
    room = bytearray(4 * MIB)
    with socket.create_server(("127.0.0.1", 0)) as listening, source.open("rb") as file:
        reader = socket.create_connection(listening.getsockname())
        writer, _ = listening.accept()
        writer.settimeout(10)

        def send() -> None:
            with contextlib.suppress(OSError), writer:  # the reader leaves when its time is over
                writer.sendfile(file, 0, size)

        sender = threading.Thread(target=send)
        began = time.perf_counter()
        sender.start()
        got = 0
        with reader:
            while got < size and time.perf_counter() < began + most:
                got += reader.recv_into(room, len(room), socket.MSG_TRUNC)
        seconds = time.perf_counter() - began
        sender.join()
    return Moved(got, seconds)


def stored_files(folder: Path, threads: int, seconds: float, most: int = 100_000) -> float:
    """Write, sync and rename files of 4 KiB and sync their folder; return how many a second."""
    body, done, end = os.urandom(SMALL), [0] * threads, time.perf_counter() + seconds
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def store(number: int) -> None:
        while time.perf_counter() < end and done[number] < most // threads:
            name = folder / f"{number}-{done[number]}"
            file = os.open(f"{name}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, body)
            os.fsync(file)
            os.close(file)
            os.rename(f"{name}.part", name)
            os.fsync(above)
            done[number] += 1

    began = time.perf_counter()
    try:
        in_threads(threads, store)
    finally:
        os.close(above)
    return sum(done) / (time.perf_counter() - began)


def synced_appends(file: Path, seconds: float, most: int = 100_000) -> float:
    """Write 100 bytes at the end of a file and sync them, one by one; return how many a second."""
    line, done = b"x" * 99 + b"\n", 0
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.perf_counter()
    while done < most and time.perf_counter() < began + seconds:
        os.write(handle, line)
        os.fsync(handle)
        done += 1
    os.close(handle)
    return done / (time.perf_counter() - began)


def count_lines(file: Path) -> float:
    """Return the seconds that ``wc -l`` takes."""
    began = time.perf_counter()
    subprocess.run(["wc", "-l", str(file)], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - began


@contextlib.contextmanager
def ext4(place: Path, size: int = 512 * MIB) -> Iterator[Path]:
    """Mount an ext4 with a journal for the block: a loop device with direct I/O over a file.

    A sync costs what it costs there. It needs root.
    """
    image, mounted = Path(tempfile.mkstemp(prefix="ext4-", dir=place)[1]), place / "mounted"
    mounted.mkdir()
    with image.open("wb") as blank:
        os.posix_fallocate(blank.fileno(), 0, size)
    try:
        program("losetup")
        _run(program("mkfs.ext4"), "-q", "-F", "-O", "has_journal", str(image))
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
        try:
            _run("mount", device, str(mounted))
            try:
                yield mounted
            finally:
                _run("umount", str(mounted))
        finally:
            _run("losetup", "--detach", device)
    except subprocess.CalledProcessError as error:
        raise NotThere(f"{error.cmd[0]}: {error.stderr}") from error
    finally:
        image.unlink()
        shutil.rmtree(mounted)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
