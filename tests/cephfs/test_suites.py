"""The tests of single operations, with their temporary folders on CephFS."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

from tests.cephfs.cluster import Mount
from tests.cephfs.conftest import SHORT
from tests.harness import ROOT

pytestmark = pytest.mark.cephfs

#: Each new root takes 130 new files, most of a second here, so that it is these modules only.
SUITES = ["storage/test_append.py", "web/test_idempotency.py"]
if not SHORT:
    SUITES += [
        "storage/test_idempotency.py",
        "storage/test_upload.py",
        "web/test_conditional_requests.py",
        "web/test_file_door.py",
    ]


@pytest.mark.parametrize("suite", SUITES)
def test_suite_holds_here(mounts: list[Mount], suite: str) -> None:
    place = mounts[0].path / uuid.uuid4().hex
    arguments = ["-q", "-m", "not memory and not crash", f"--basetemp={place}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, f"tests/{suite}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
    print(f"\n  {suite}: {done.stdout.splitlines()[-1]}", end="")
