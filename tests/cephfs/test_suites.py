"""The tests of single operations, with their temporary folders on CephFS."""

from __future__ import annotations

import os
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
#: Of the append, what is not about xattrs runs also with records beside the files. The suites of
#: idempotency have tests of both.
RUNS = [(suite, "xattr") for suite in SUITES] + [("storage/test_append.py", "beside")]


@pytest.mark.parametrize(("suite", "records"), RUNS)
def test_suite_holds_here(mounts: list[Mount], suite: str, records: str) -> None:
    place = mounts[0].path / uuid.uuid4().hex
    arguments = ["-q", "-m", "not memory and not crash", f"--basetemp={place}"]
    if records == "beside":
        arguments += ["-k", "not xattr and not content_and_record_are_synced_once"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, f"tests/{suite}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HTTPNAS_RECORDS": records},
    )
    assert done.returncode == 0, done.stdout[-10_000:]
    print(f"\n  {suite}, records {records}: {done.stdout.splitlines()[-1]}", end="")
