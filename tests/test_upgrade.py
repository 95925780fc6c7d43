"""Real daemons of two formats on one storage: never at the same time, and never back."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import images
from tests.crash.test_full_disk import exhaust
from tests.harness import ROOT, TWISTD, connect, receive_answer, twistd, wait_until
from tests.private import runs_of

#: The last commit whose daemons keep format 1.
FORMER = "a7aa4d1"
NO_XATTRS = (
    "import errno, os\n"
    "def fail(*args, **kwargs): raise OSError(errno.ENOTSUP, 'not supported')\n"
    "os.setxattr = os.getxattr = os.removexattr = fail\n"
)


#: Former daemons answer to any name if they are told none, and know no ``*``.
ANY_HOST = {"HTTPNAS_HOSTS": ""}


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The code of daemons that keep format 1."""
    archived = subprocess.run(
        ["git", "archive", FORMER, "httpnas", "twisted"], cwd=ROOT, capture_output=True, check=False
    )
    if archived.returncode:
        pytest.skip(f"git does not have {FORMER}: {archived.stderr.decode().strip()}")
    place = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as tar:
        tar.extractall(place, filter="data")
    swagger_ui = place / "swagger_ui" / "static"  # of a library that is not needed any more
    swagger_ui.mkdir(parents=True)
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        (swagger_ui / name).touch()
    return str(place)


def ask(port: int, method: str, name: str, body: bytes = b"") -> tuple[int, bytes]:
    with connect(port) as client:
        head = f"{method} /file/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        status, _, answer = receive_answer(client)
    return status, answer


def refused(root: Path, code: str = str(ROOT)) -> str:
    """Start a daemon of *code* on *root*, which has to end at once; return the line it says."""
    ended = subprocess.run(
        [*TWISTD, "-n", "--pidfile=", "httpnas", "--listen=tcp:0", f"--storage={root}"],
        cwd=root.parent,
        env={**os.environ, "PYTHONPATH": code},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "Traceback" not in ended.stdout
    return ended.stderr


@contextlib.contextmanager
def begun_upload(port: int) -> Iterator[None]:
    with connect(port) as client:
        client.sendall(b"POST /file/g HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        yield


def without_xattrs(place: Path) -> str:
    """Return code that runs a daemon as if its file system had no user xattrs."""
    (place / "plain").mkdir(exist_ok=True)
    (place / "plain" / "sitecustomize.py").write_text(NO_XATTRS)
    return f"{place / 'plain'}{os.pathsep}"


def test_daemons_of_two_formats_never_run_at_the_same_time(tmp_path: Path, former: str) -> None:
    root = tmp_path / "root"
    with twistd(root, env={**ANY_HOST, "PYTHONPATH": former}) as old:
        assert ask(old.port, "POST", "f", b"line\n")[0] == 200
        assert "0.1 is running on it" in refused(root)
        assert ask(old.port, "PUT", "f", b"more\n")[0] == 200
        with begun_upload(old.port):
            wait_until(lambda: len(list((root / ".httpnas" / "run").glob("*/*"))) == 2)
            old.process.send_signal(signal.SIGKILL)
            old.process.wait()
    with twistd(root) as new:
        assert ask(new.port, "GET", "f") == (200, b"line\nmore\n")
        assert ask(new.port, "GET", "f/wc") == (200, b"2")
        assert "Not a directory" in refused(root, former)
        assert ask(new.port, "PUT", "f", b"last\n")[0] == 200
        wait_until(lambda: len(list(runs_of(root).glob("*/*"))) == 1, "the reclaiming")
    assert "Not a directory" in refused(root, former)
    with twistd(root) as new, twistd(root) as another:
        for daemon in (new, another):
            assert ask(daemon.port, "GET", "f") == (200, b"line\nmore\nlast\n")


@pytest.mark.crash
@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_does_not_keep_a_daemon_from_upgrading(
    kind: str, blocks: int, former: str
) -> None:
    """It needs no more room than one of its own format would."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount file systems")
    if reason := images.why_not(kind):
        pytest.skip(reason)
    with images.folder() as place, contextlib.ExitStack() as mounted:
        if kind == "tmpfs":
            root = mounted.enter_context(images.in_memory(place, kind, "size=8M,nr_inodes=400"))
        else:
            image = images.image(place, kind, 16 << 20, "-m", "0", "-N", "400")
            root = mounted.enter_context(image).mount_point
        with twistd(root, env={**ANY_HOST, "PYTHONPATH": former}, cwd=place) as old:
            assert ask(old.port, "POST", "f", b"line\n")[0] == 200
        exhaust(root, blocks)
        with twistd(root, cwd=place) as new:
            assert ask(new.port, "GET", "f") == (200, b"line\n")
            for name in [path.name for path in root.iterdir() if path.is_file()]:
                if name != "f":
                    assert ask(new.port, "DELETE", name)[0] == 200
            assert ask(new.port, "PUT", "f", b"more\n")[0] == 200
        with twistd(root, cwd=place) as new:
            assert ask(new.port, "GET", "f") == (200, b"line\nmore\n")
        assert (root / ".httpnas" / "format").exists()
        assert "Not a directory" in refused(root, former)


def test_there_is_a_way_back_without_the_daemons_own_folder(tmp_path: Path, former: str) -> None:
    root = tmp_path / "root"
    with twistd(root) as new:
        assert ask(new.port, "POST", "f", b"line\n")[0] == 200
        new.terminate()
        assert new.wait() == 0
    shutil.rmtree(root / ".httpnas")
    with twistd(root, env={**ANY_HOST, "PYTHONPATH": former}) as old:
        assert ask(old.port, "GET", "f") == (200, b"line\n")
        assert ask(old.port, "PUT", "f", b"more\n")[0] == 200


def test_records_beside_of_a_former_daemon_are_found(tmp_path: Path, former: str) -> None:
    root = tmp_path / "root"
    plain = without_xattrs(tmp_path)
    with twistd(root, env={**ANY_HOST, "PYTHONPATH": plain + former}) as old:
        assert ask(old.port, "POST", "f", b"line\n")[0] == 200
    with twistd(root) as new:
        assert "beside" in new.log()
        assert ask(new.port, "GET", "f/wc") == (200, b"1")


def test_a_storage_whose_xattrs_are_gone_is_refused_with_one_line(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with twistd(root) as daemon:
        assert ask(daemon.port, "POST", "f", b"line\n")[0] == 200
    if '"beside"' in (root / ".httpnas" / "format").read_text():
        pytest.skip("this file system keeps no user xattrs")
    assert "mount it with them" in refused(root, without_xattrs(tmp_path) + str(ROOT))
    with twistd(root) as daemon:
        assert ask(daemon.port, "GET", "f") == (200, b"line\n")


@pytest.mark.parametrize(
    "text, said", [('{"format": 3}', "a later one"), ("{", "restore it")], ids=["newer", "broken"]
)
def test_a_format_that_is_not_known_is_refused_with_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    private = tmp_path / "root" / ".httpnas"
    private.mkdir(parents=True)
    (private / "format").write_text(text)
    line = refused(tmp_path / "root")
    assert line.startswith(f"httpnas: --storage {tmp_path / 'root'}: ")
    assert said in line
