"""The second of the two old systems in a few lines: FastAPI with forms at ``/files/``.

``FOLDER=... uvicorn bench.servers.forms:app``. It syncs nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastapi import FastAPI, UploadFile
from fastapi.responses import FileResponse

FOLDER = Path(os.environ["FOLDER"])


def store(file: UploadFile) -> dict[str, str]:
    """Store the file of a form; FastAPI runs this in a thread of its pool."""
    name = Path(file.filename or "unnamed").name
    with (FOLDER / name).open("wb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)
    return {"stored": name}


def send(name: str) -> FileResponse:
    """Send a file as it is, or the range that was asked for."""
    return FileResponse(FOLDER / Path(name).name)


app = FastAPI()
app.add_api_route("/files/", store, methods=["POST"], status_code=202)
app.add_api_route("/files/{name}", send, methods=["GET", "HEAD"], response_model=None)
