"""A power cut at any moment: what was acknowledged is there, and everything is old or new.

A real file system is cut off from its device while a writer changes it, mounted again (which
replays its log), and compared with what the writer had been promised. ``POWER_CUTS`` in the
environment sets how often.

What the device has taken before the cut it keeps, in order; a device that loses or reorders what
it was not told to flush is not played here.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from httpnas.storage import commits, format
from httpnas.storage.append import Append
from httpnas.storage.listing import Folder
from httpnas.storage.store import Storage
from tests.crash import images
from tests.crash.images import Image
from tests.crash.power_writer import (
    LOG,
    Files,
    Forgetful,
    Operation,
    applied,
    perform,
    piece,
    pieces,
)
from tests.private import keep_records, runs_of

pytestmark = pytest.mark.crash

ROOT = Path(__file__).parent.parent.parent
#: Power cuts in all, split over the file systems.
CUTS = int(os.environ.get("POWER_CUTS", "160"))
KINDS = ("ext4", "xfs")
#: The same, and ext4 when it orders or logs data in another way than by default.
MODES = (*KINDS, "ext4 data=writeback", "ext4 data=journal")
PLACES: tuple[format.Place, ...] = ("xattr", "beside")
THREADS = 4
#: Acknowledgements after which the power may go.
EARLIEST, LATEST = 1, 60
#: Cuts within which a sync that is left out must have shown.
PROOF = 40
#: Stands in the writer's words where the power went.
CUT = b'["cut", ""]\n'
#: Seconds after which a writer that says nothing is given up.
PATIENCE = 60.0
TORN = None


@dataclass
class Tally:
    """What power cuts have done."""

    cuts: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    old: int = 0
    new: int = 0
    lost: int = 0
    torn: int = 0
    leftovers: int = 0
    seconds: float = 0.0
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = (f for f in fields(self) if f.name != "details")
        return ", ".join(f"{f.name} {round(getattr(self, f.name), 1)}" for f in shown)

    @property
    def harm(self) -> int:
        return self.lost + self.torn + self.leftovers


class Promises:
    """What a writer has said so far.

    An answer after the cut is none: XFS lets a sync of a folder succeed when it has been shut down.

    :ivar files: what all acknowledged operations come to.
    :ivar log: the tags each thread has put into the log.
    :ivar in_flight: the operations of each thread that were not acknowledged.
    """

    def __init__(self) -> None:
        self.files: Files = {}
        self.log: dict[str, list[str]] = defaultdict(list)
        self.in_flight: dict[str, list[Operation]] = defaultdict(list)
        self.is_cut = False
        self.acknowledged = 0

    def note(self, line: bytes) -> None:
        what, thread, *rest = json.loads(line)
        if what == "begin":
            self.in_flight[thread].append(rest[0])
        elif what == "cut":
            self.is_cut = True
        elif not self.is_cut:
            assert what == "done", f"{thread}: {rest}"
            self.acknowledged += 1
            operation = self.in_flight[thread].pop()
            if operation[1] == LOG:
                self.log[thread].append(operation[2])
            else:
                self.files = applied(operation, self.files)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of file system that can be had here."""
    name: str = request.param
    if reason := images.why_not(name):
        pytest.skip(reason)
    return name


@pytest.fixture(params=PLACES)
def records(request: pytest.FixtureRequest) -> format.Place:
    """Where files have their records."""
    place: format.Place = request.param
    return place


@pytest.fixture
def image(kind: str, records: format.Place) -> Iterator[Image]:
    """A file system that is not mounted."""
    with images.folder() as place, images.image(place, kind) as made:
        keep_records(made.mount_point, records)
        made.unmount()
        yield made


@pytest.mark.xfail(reason="one of some 2,000 cuts, by a cause that is not known", strict=False)
@pytest.mark.parametrize("kind", MODES, indirect=True)
def test_what_was_acknowledged_survives_a_power_cut(
    kind: str, records: format.Place, image: Image
) -> None:
    tally = Tally()
    chance = random.Random()
    while tally.cuts < CUTS / len(MODES) / len(PLACES):
        # Half of the cuts hit the very moment of an acknowledgement, the others any moment.
        delay = chance.choice((0.0, chance.uniform(0, 0.005)))
        cycle(image, tally, chance.randint(EARLIEST, LATEST), delay)
    print(f"\npower cuts on {kind}, records {records}: {tally}")
    assert not tally.harm, "\n".join(tally.details)
    assert tally.in_flight, "no cut hit an operation"
    assert tally.old, "no operation in flight was lost: was there a cut at all?"


@pytest.mark.parametrize("fault", ["folder", "file", "last"])
def test_a_sync_that_is_left_out_is_seen(kind: str, image: Image, fault: str) -> None:
    """One sync less, and the same cycles find losses: so that they prove something."""
    tally = Tally()
    chance = random.Random()
    while not tally.lost + tally.torn and tally.cuts < PROOF:
        cycle(
            image, tally, chance.randint(EARLIEST, LATEST), 0.0, "--threads=1", f"--fault={fault}"
        )
    print(f"\nwithout the sync of: {fault}, on {kind}: {tally}")
    assert tally.lost + tally.torn


_DIES_BEFORE_ITS_SYNC = """
import os, signal, sys
from httpnas.storage.store import Storage
pending = Storage(sys.argv[1]).begin_append(b"f", lambda present: None, key=b"key")
pending.write([b"added"])
file, real = os.stat(sys.argv[1] + "/f").st_ino, os.fsync

def dying(fd):
    if os.fstat(fd).st_ino == file:
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)

os.fsync = dying
pending.commit()
"""


def test_a_repeat_that_is_answered_survives_a_power_cut(image: Image) -> None:
    """Also when what it repeats was written, and not synced, by a daemon that was killed."""
    image.mount()
    try:
        with closing(Storage(str(image.mount_point))) as storage:
            perform(storage, ["upload", "f", "one", 40, False], lambda: None)
            before = read(storage, "f")
            os.sync()
            command = [sys.executable, "-c", _DIES_BEFORE_ITS_SYNC, str(image.mount_point)]
            killed = subprocess.run(command, cwd=ROOT, check=False)
            assert killed.returncode == -signal.SIGKILL
            again = storage.begin_append(b"f", lambda present: None, key=b"key")
            if isinstance(again, Append):
                with closing(again):
                    again.write([b"added"])
                    again.commit()
                assert again.repeats, "all of it was written"
            image.cut()
    finally:
        image.unmount()
    image.mount()
    try:
        with (
            closing(Storage(str(image.mount_point))) as storage,
            mock.patch.object(commits, "boot", lambda: 1),
        ):
            assert read(storage, "f") == before + b"added"
    finally:
        image.unmount()


@pytest.mark.parametrize("fault", [None, "parents", "folder"])
def test_each_folder_that_was_changed_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    """By the letter of fsync(2) a sync of a folder is good for its own entries and no others.

    No power cut shows that on ext4 and XFS: their one log keeps the order of all changes, so that
    the sync of a new file's folder brings the folder's own entry along, and the sync of one end of
    a move the other. Others need not be so kind.
    """
    synced = Synced(tmp_path, monkeypatch)
    if fault:
        Forgetful(fault)
    missed = []
    with closing(Storage(str(tmp_path), durable=True)) as storage:
        for operation in (
            ["upload", "a/b/c/file", "one", 40, False],
            ["upload", "d/file", "two", 40, True],
            ["upload", "d/file", "three", 40, False],
            ["move", "d/file", "a/b/file"],
            ["move", "a/b", "e/f/moved"],
            ["remove", "e/f/moved/file"],
            ["remove", "e/f"],
        ):
            synced.changed.clear()
            perform(storage, operation, lambda: None)
            missed += [(operation, folder) for folder in sorted(synced.changed)]
    assert bool(missed) == bool(fault), missed


class Synced:
    """Watches this process change folders below *root*, the daemon's own aside, and sync them.

    :ivar changed: folders that were changed and not synced since.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changed: set[str] = set()
        self._root = root
        for name, arguments in (
            ("mkdir", ("dir_fd",)),
            ("unlink", ("dir_fd",)),
            ("rename", ("src_dir_fd", "dst_dir_fd")),
        ):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), arguments))
        sync = os.fsync

        def synced(fd: int) -> None:
            sync(fd)
            self.changed.discard(self._path(fd))

        monkeypatch.setattr(os, "fsync", synced)

    def _path(self, fd: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._root)

    def _watched(self, call: Callable[..., None], arguments: Sequence[str]) -> Callable[..., None]:
        def watched(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            folders = {self._path(kwargs[name]) for name in arguments if name in kwargs}
            self.changed |= {f for f in folders if not f.startswith(".httpnas")}

        return watched


def cycle(image: Image, tally: Tally, after: int, delay: float, *options: str) -> None:
    """Cut the power once, and count in *tally* what it did.

    :param after: acknowledgements before the cut.
    :param delay: seconds between the last one and the cut.
    :param options: for the writer.
    """
    began = time.monotonic()
    image.mount()
    try:
        promises = write_until_cut(image, after, delay, options)
    finally:
        image.unmount()
    image.mount()
    try:
        # After a power cut the machine has started anew.
        with mock.patch.object(commits, "boot", lambda: 1):
            details = Check(image.mount_point, promises, tally).run()
    finally:
        image.unmount()
    tally.details += [f"cut {tally.cuts}: {detail}" for detail in details]
    tally.cuts += 1
    tally.acknowledged += promises.acknowledged
    tally.seconds += time.monotonic() - began


def write_until_cut(image: Image, after: int, delay: float, options: tuple[str, ...]) -> Promises:
    """Run a writer, cut the power, and return what it was promised until then."""
    promises = Promises()
    ours, theirs = os.pipe()
    told = lines(ours)
    command = [sys.executable, "-m", "tests.crash.power_writer", str(image.mount_point)]
    seed = f"--seed={random.random()}"
    try:
        writer = subprocess.Popen(
            [*command, f"--threads={THREADS}", seed, *options], stdout=theirs, cwd=ROOT
        )
        try:
            while promises.acknowledged < after:
                promises.note(next(told))
            time.sleep(delay)
            os.write(theirs, CUT)
            image.cut()
        finally:
            writer.kill()
            writer.wait()
            os.close(theirs)
        for line in told:
            promises.note(line)
    finally:
        os.close(ours)
    return promises


def lines(fd: int) -> Iterator[bytes]:
    """Yield what is written into the pipe *fd*, line by line."""
    rest = b""
    while True:
        assert select.select([fd], [], [], PATIENCE)[0], "the writer has stopped"
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


class Check:
    """Compares a storage after a power cut with what its writer was promised, and empties it."""

    def __init__(self, root: Path, promises: Promises, tally: Tally) -> None:
        self._root = root
        self._promises = promises
        self._tally = tally
        self._details: list[str] = []

    def run(self) -> list[str]:
        """Return what is wrong; the figures go to the tally."""
        storage = Storage(str(self._root), durable=True)
        with closing(storage):
            for _ in storage.reclaim_abandoned():
                pass
            found = dict(contents(storage))
            whole = {name: pieces(content) for name, content in found.items()}
            self._check_log(storage, whole.pop(LOG, ()), found.get(LOG, b""))
            for number in range(THREADS):
                self._check_thread(f"t{number}", below(f"t{number}", whole))
            self._check_visible(storage, set(found))
            for name in top(storage):
                for _ in storage.reclaim(storage.remove(name, lambda _: None) or b"none"):
                    pass
        self._check_leftovers()
        return self._details

    def _wrong(self, what: str, detail: str) -> None:
        setattr(self._tally, what, getattr(self._tally, what) + 1)
        self._details.append(f"{what}: {detail}")

    def _count(self, new: int, of: int) -> None:
        self._tally.in_flight += of
        self._tally.new += new
        self._tally.old += of - new

    def _check_thread(self, thread: str, found: dict[str, tuple[str, ...] | None]) -> None:
        states = [below(thread, self._promises.files)]
        operations = [o for o in self._promises.in_flight[thread] if o[1] != LOG]
        for operation in operations:
            states.append(applied(operation, states[-1]))
        if found in states:
            self._count(states.index(found), len(operations))
            return
        harm = self._tally.harm
        for name in sorted(set(found).union(*states)):
            may_be = [state.get(name, ()) for state in states]
            if found.get(name, ()) not in may_be:
                what = "torn" if name in found and found[name] is TORN else "lost"
                self._wrong(
                    what,
                    f"{name} is {found.get(name)}, not {may_be}; {operations}; {self._raw(name)}",
                )
        if self._tally.harm == harm:
            self._wrong("torn", f"half of {operations} was done")

    def _raw(self, name: str) -> str:
        """Say what lies in the file *name*, by a second look."""
        with suppress(OSError):
            content = (self._root / name).read_bytes()
            heads = re.findall(rb"t\d\.\d+ \d+\n", content)
            return f"{len(content)} bytes, {content.count(0)} of them zero, heads {heads}"
        return "no file"

    def _check_log(self, storage: Storage, tags: tuple[str, ...] | None, content: bytes) -> None:
        promises = self._promises
        in_flight = [
            (t, o[2]) for t, begun in promises.in_flight.items() for o in begun if o[1] == LOG
        ]
        if tags is TORN:
            self._wrong("torn", f"the log of {len(content)} bytes")
            return
        for thread, tag in in_flight:
            self._count(tags.count(tag), 1)
            promises.log[thread] += [tag] * (tag in tags)
        expected = [tag for told in promises.log.values() for tag in told]
        for tag in expected:
            if tags.count(tag) != 1:
                self._wrong("lost", f"the log has {tag} {tags.count(tag)} times")
        for told in promises.log.values():
            if [tag for tag in tags if tag in told] != told:
                self._wrong("lost", f"the log is not in order: {tags}")
        if strange := set(tags) - set(expected):
            self._wrong("torn", f"the log has {strange}, which was never sent")
        if tags:
            perform(storage, ["append", LOG, "again", 40], lambda: None)
            if read(storage, LOG) != content + piece("again", 40):
                self._wrong("torn", "an append after the cut went wrong")

    def _check_visible(self, storage: Storage, found: set[str]) -> None:
        """See that nothing lies beside what the storage lists."""
        for folder, folders, files in os.walk(self._root):
            at = os.path.relpath(folder, self._root)
            if at == ".":
                folders[:] = [f for f in folders if f not in (".httpnas", "lost+found")]
            for file in files:
                if os.path.normpath(os.path.join(at, file)) not in found:
                    self._wrong("leftovers", f"{at}/{file}")

    def _check_leftovers(self) -> None:
        """See that nothing is left of transfers and of trees that were being removed."""
        for run in runs_of(self._root).iterdir():
            self._wrong("leftovers", str([run, *run.rglob("*")]))


def below(thread: str, files: dict[str, Any]) -> dict[str, Any]:
    """Return those of *files* that are the thread's own."""
    return {name: what for name, what in files.items() if name.startswith(f"{thread}/")}


def top(storage: Storage) -> list[bytes]:
    """Return the names at the root."""
    folder = storage.open(b"")
    assert isinstance(folder, Folder)
    with closing(folder):
        return [name for name in folder.names() if name != b"lost+found"]


def contents(storage: Storage, name: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of all files in the folder *name*."""
    folder = storage.open(name)
    assert isinstance(folder, Folder)
    with closing(folder):
        for leaf in folder.names():
            entry = folder.entry(leaf)
            path = name + b"/" + leaf if name else leaf
            if entry is not None and entry.is_folder:
                yield from contents(storage, path)
            else:
                yield path.decode(), read(storage, path.decode())


def read(storage: Storage, name: str) -> bytes:
    """Return the content of the file *name*, as a client gets it."""
    file = storage.open(name.encode())
    assert not isinstance(file, Folder)
    with closing(file):
        content = os.pread(file.fd, file.version.size, 0)
        assert len(content) == file.version.size
        return content
