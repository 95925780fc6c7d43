"""The format of a storage: what the daemon's own folder and the records of files look like.

The first daemon on a storage chooses it, together with the place of the records, and writes both to
``.httpnas/format``. All others follow that file. If each asked the file system instead, a mount
with other options would hide the undo record of an append that was not finished.

This is format 2. The folders of format 1 had their names without ``.2``, and it had no such file.
Its daemons are kept out by regular files under these names (:mod:`httpnas.storage.migration`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import Literal

from httpnas.storage.descriptors import owned
from httpnas.storage.durability import sync_folder
from httpnas.storage.errors import OtherFormat
from httpnas.storage.rename import name_new

NUMBER = 2
#: The folders of this format, in the daemon's own folder.
LOCKS, RUNS, RECORDS = b"locks.2", b"run.2", b"records.2"
#: Where files have their records: in user xattrs, or in files in :data:`RECORDS`.
Place = Literal["xattr", "beside"]

#: Its name in the daemon's own folder.
FILE = b"format"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def read(private: int) -> Place | None:
    """Return where files have their records, or None when nobody has chosen yet.

    :param private: descriptor of the daemon's own folder.
    :raises OtherFormat: when this version cannot work with what was chosen.
    """
    try:
        file = os.open(FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=private)
    except FileNotFoundError:
        return None
    with owned(file):
        return _parsed(os.read(file, 4096))


def _parsed(text: bytes) -> Place:
    try:
        found = json.loads(text)
        number, place = found["format"], found["records"] if found["format"] == NUMBER else None
    except (ValueError, KeyError, TypeError) as error:
        raise _broken() from error
    if type(number) is int and number > NUMBER:
        raise OtherFormat(
            f"it has format {number}, and this version of httpnas knows only {NUMBER}: start the "
            "version that has been running on it, or a later one"
        )
    if place not in ("xattr", "beside"):
        raise _broken()
    chosen: Place = place
    return chosen


def _broken() -> OtherFormat:
    return OtherFormat(
        "the file .httpnas/format is broken: restore it, or stop all daemons and remove .httpnas "
        "(docs/operations.md tells what that loses)"
    )


def choose(private: int, temporaries: int, name: bytes, place: Place) -> Place | None:
    """Choose *place* for all who come, unless somebody was faster; return what is chosen.

    It is None when there is no room to write it down. Then the next one chooses.

    :param private: descriptor of the daemon's own folder.
    :param temporaries: descriptor of the folder in which a temporary file can be made.
    :param name: the name for that.
    :raises OSError: when it cannot be written.
    :raises OtherFormat: as :func:`read`.
    """
    text = json.dumps({"format": NUMBER, "records": place}).encode() + b"\n"
    try:
        _write(temporaries, name, text)
        with contextlib.suppress(FileExistsError):
            name_new(temporaries, name, private, FILE)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=temporaries)
    sync_folder(private)
    return read(private)


def _write(folder: int, name: bytes, text: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with owned(os.open(name, flags, 0o666, dir_fd=folder)) as file:
        while text:
            text = text[os.write(file, text) :]
        # Also without durability: after a power cut, an empty file would keep all daemons out.
        os.fsync(file)
