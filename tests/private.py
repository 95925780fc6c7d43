"""Where the daemon keeps what is its own below a root."""

from __future__ import annotations

import json
import os
from pathlib import Path

from httpnas.storage import format

_NAMES = {"locks": format.LOCKS, "run": format.RUNS, "records": format.RECORDS}
#: The folders for locks, working folders and records as paths below the root.
LOCKS, RUNS, RECORDS = (f".httpnas/{name.decode()}" for name in _NAMES.values())


def own(root: Path, folder: str) -> Path:
    """Return the daemon's folder for *folder*: ``locks``, ``run`` or ``records``."""
    return root / ".httpnas" / os.fsdecode(_NAMES[folder])


def runs_of(root: Path) -> Path:
    """Return the folder with the working folder of each daemon."""
    return own(root, "run")


def keep_records(root: Path, place: format.Place) -> None:
    """Let the records of files in the storage *root*, which no daemon has seen yet, be at *place*.

    With ``beside`` all is done as where there are no user xattrs.
    """
    (root / ".httpnas").mkdir(exist_ok=True)
    chosen = {"format": format.NUMBER, "records": place}
    (root / ".httpnas/format").write_text(json.dumps(chosen))
