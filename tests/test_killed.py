"""A real daemon that is killed in the middle of an append, and what others do to its file then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from httpnas.storage.append import IN_MEMORY
from tests.harness import ROOT, Client, Twistd, twistd

#: Lets a daemon kill itself at a call of a function of os, once its storage is open.
_DIE = """
import os, signal
real = os.{function}

def dying(*args, **kwargs):
    if os.path.exists({armed!r}):
        if os.readlink(f"/proc/self/fd/{{args[0]}}").endswith("/f"):
            if {function!r} == "writev" and len(args[1][0]) > 100_000:
                real(args[0], [args[1][0][:8192 - os.fstat(args[0]).st_size % 4096]])
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

os.{function} = dying
"""
OLD = b"old-1\nold-2\n"
SMALL, LARGE = b"new\n" * 3000, b"new\n" * (IN_MEMORY // 2)


def ask(daemon: Twistd, method: str, body: bytes = b"", **fields: str) -> tuple[int, str, bytes]:
    """Send a request for ``f``; return status, tag and body of the answer, 0 when it is none."""
    lines = [f"{method} /file/f HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    try:
        with Client(daemon.port) as client:
            client.send("\r\n".join([*lines, "", ""]).encode() + body)
            status, headers, content = client.answer()
            return status, headers.get("etag", ""), content
    except (OSError, AssertionError):
        return 0, "", b""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def killed(root: Path, function: str, body: bytes) -> str:
    """Kill a daemon at *function* while it appends *body* to ``f``; return the tag before."""
    patch = root.parent / "patch"
    patch.mkdir()
    armed = root.parent / "armed"
    script = _DIE.format(function=function, armed=str(armed))
    (patch / "sitecustomize.py").write_text(script)
    with twistd(root, env={"PYTHONPATH": f"{patch}:{ROOT}"}) as daemon:
        assert ask(daemon, "POST", OLD)[0] == 200
        tag = ask(daemon, "GET")[1]
        armed.touch()
        assert ask(daemon, "PUT", body, Idempotency_Key="key")[0] == 0
        assert daemon.wait() == -9
    return tag


CHANGES: dict[str, str] = {
    "echo": "echo external-1 >> f; echo external-2 >> f",
    "cp": "printf 'good-A\ngood-B\ngood-C\n' > ../good; cp ../good f",
    "open": "printf 'completely new content\n%.0s' 1 2 3 4 5 > f",
    "as long": "printf 'OLD-1\nOLD-2\n' > f",
    "cp -a": "cp -a f g; echo from-the-copy >> g; mv g f",
}


@pytest.mark.parametrize(
    "function, body", [("fsync", SMALL), ("writev", LARGE)], ids=["all", "torn"]
)
@pytest.mark.parametrize("change", CHANGES)
def test_what_others_do_to_the_file_of_a_killed_daemon_is_served_and_kept(
    root: Path, function: str, body: bytes, change: str
) -> None:
    tag = killed(root, function, body)
    subprocess.run(["bash", "-ec", CHANGES[change]], check=True, cwd=root)
    content = (root / "f").read_bytes()
    with twistd(root) as daemon:
        status, seen, served = ask(daemon, "GET", If_None_Match=tag)
        assert (status, served) == (200, content)
        assert seen != tag
        assert ask(daemon, "PUT", b"next\n", If_Match=seen)[0] == 200
    assert (root / "f").read_bytes() == content + b"next\n"


@pytest.mark.parametrize(
    "function, body, whole",
    [("fsync", SMALL, True), ("writev", SMALL, False), ("writev", LARGE, False)],
    ids=["all", "none", "torn"],
)
def test_the_next_daemon_completes_or_undoes_what_a_killed_one_was_appending(
    root: Path, function: str, body: bytes, whole: bool
) -> None:
    killed(root, function, body)
    content = OLD + body * whole
    with twistd(root) as daemon:
        assert ask(daemon, "GET")[2] == content
        assert ask(daemon, "PUT", body, Idempotency_Key="key")[0] == 200
        assert ask(daemon, "GET")[2] == OLD + body
        assert ask(daemon, "PUT", body, Idempotency_Key="key")[0] == 200
    assert (root / "f").read_bytes() == OLD + body
