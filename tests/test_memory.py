"""Gigabytes up and down move the daemon's memory by less than 40 MiB over its idle size."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Twistd, twistd

MIB = 1 << 20
SIZE = 1024 * MIB
MOST = 40 * MIB

pytestmark = pytest.mark.memory


def peak_during(daemon: Twistd, work: Callable[[], None]) -> int:
    """Return the most memory that *daemon* had in use while *work* was done, in bytes."""
    done = threading.Event()
    seen = [daemon.memory()]

    def look() -> None:
        while not done.wait(0.01):
            seen.append(daemon.memory())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(seen)


def curl(command: str) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=300)


def test_a_gibibyte_up_and_down_takes_little_memory(tmp_path: Path) -> None:
    with twistd(tmp_path / "root") as daemon:
        curl(f"curl -sS {daemon.url}/file")
        idle = daemon.memory()
        upload = f"head -c {SIZE} /dev/zero | curl -sSf -X POST -T - {daemon.url}/file/big"
        up = peak_during(daemon, lambda: curl(upload)) - idle
        assert (tmp_path / "root" / "big").stat().st_size == SIZE
        download = f"curl -sSf {daemon.url}/file/big | cmp -n {SIZE} - /dev/zero"
        down = peak_during(daemon, lambda: curl(download)) - idle
        append = f"head -c {SIZE} /dev/zero | curl -sSf -T - {daemon.url}/file/big"
        appended = peak_during(daemon, lambda: curl(append)) - idle
        print(
            f"\nidle {idle / MIB:.0f} MiB; over that: upload {up / MIB:.1f}, download "
            f"{down / MIB:.1f}, append {appended / MIB:.1f} MiB, for {SIZE / MIB:.0f} MiB each"
        )
        assert max(up, down, appended) < MOST


def test_a_form_of_600_mebibytes_takes_little_memory(tmp_path: Path) -> None:
    sizes = {"small": 50 * MIB, "big": 500 * MIB, "last": 50 * MIB}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    fields = " ".join(f"-F 'file=@{tmp_path / name}'" for name in sizes)
    with twistd(tmp_path / "root") as daemon:
        curl(f"curl -sS {daemon.url}/file")
        idle = daemon.memory()
        took = peak_during(daemon, lambda: curl(f"curl -sSf {fields} {daemon.url}/files/")) - idle
        for name, size in sizes.items():
            assert (tmp_path / "root" / name).stat().st_size == size
        total = sum(sizes.values())
        print(
            f"\nidle {idle / MIB:.0f} MiB; over that: {took / MIB:.1f} MiB, for {total / MIB:.0f}"
        )
        assert took < MOST
