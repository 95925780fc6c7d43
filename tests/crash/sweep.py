"""Stopping an operation at each of its system calls, one after the other.

Run as a program this is the *patient*: for each root it is given it forks a child, which handles
requests as the daemon does, from the bytes on the wire to the bytes of the answer, but one at a
time, in one thread and without a socket: so its system calls come in the same order each time,
and strace(1) can be told to kill it, or to let a call fail, at the Nth of them. The child says on
its standard output what it would send to the client, at the moment it would send it.

Imported, it is the rest: requests to try, starting patients and strace, and telling what a
storage root holds.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.threadpool import ThreadPool

from httpnas.fields.digests import format_digest
from httpnas.storage.format import Place
from httpnas.storage.listing import Folder
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from httpnas.tap import make_doors, make_engine, make_site
from httpnas.transfer.disk import Disk
from httpnas.web.metrics import Metrics
from httpnas.web.server.deadlines import Limits
from tests import harness
from tests.outside import give_away
from tests.private import keep_records, runs_of
from tests.storage.users import without_privileges

#: Set in the environment for the long form: on the disk of the temporary folder, with all errors.
LONG = bool(os.environ.get("HTTPNAS_CRASH_LONG"))
WORKERS = os.cpu_count() or 1

T = TypeVar("T")


# What is tried


@dataclass(frozen=True)
class Tree:
    """What clients can see: files with their content, and folders."""

    files: Mapping[str, bytes]
    folders: frozenset[str]


def tree(*folders: str, **files: bytes) -> Tree:
    """Return a tree with *files*, the folders they lie in, and empty *folders*."""
    above = {str(p) for name in [*files, *(f"{f}/-" for f in folders)] for p in Path(name).parents}
    return Tree(dict(files), frozenset(above - {"."}))


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode()


@dataclass(frozen=True)
class Verb:
    """A request, what is there before it, and what is there after it.

    :ivar status: of its answer, when nothing goes wrong.
    :ivar pieces: bytes that are written at a time, as if the disk took no more.
    :ivar lacks: a system call that the file system does not know.
    :ivar network: whether the file system is to count as one on a network.
    :ivar crashed: a verb and a call of it at which a daemon was killed before.
    :ivar records: where files have their records, as in :mod:`httpnas.storage.format`.
    :ivar others: what other programs have done before, to the folder of the storage.
    :ivar together: requests that come in the same moment, behind the first one.
    """

    before: Tree
    request: Request
    after: Tree
    status: int = 200
    pieces: int | None = None
    lacks: str | None = None
    network: bool = False
    crashed: tuple[str, str] | None = None
    records: Place = "xattr"
    others: Callable[[Path], None] | None = None
    together: tuple[Request, ...] = ()

    @property
    def requests(self) -> tuple[Request, ...]:
        return (self.request, *self.together)

    @property
    def lacking(self) -> list[str]:
        """What to inject so that the file system lacks what it is to lack."""
        return [f"{self.lacks}:error=EINVAL"] if self.lacks else []

    def judge(self, seen: Tree) -> str:
        """Return ``old`` or ``new``, or fail because *seen* is neither."""
        if seen.files == self.after.files and seen.folders == self.after.folders:
            return "new" if self.after != self.before else "old"
        # Folders that were made on the way to the new name may be there already, empty.
        made = self.before.folders | self.after.folders
        assert shown(seen.files) == shown(self.before.files)
        assert self.before.folders <= seen.folders <= made
        return "old"


def shown(files: Mapping[str, bytes]) -> dict[str, object]:
    """Return *files* in a form that does not fill the screen."""
    return {k: v if len(v) < 100 else (len(v), hash(v), v[:20]) for k, v in files.items()}


def data(length: int, seed: int) -> bytes:
    """Return bytes that are not the same anywhere."""
    return b"".join(b"%d-%d\n" % (seed, i) for i in range(length // 4))[:length]


def _move(name: str, target: str, **headers: str) -> Request:
    document = json.dumps({"path": target}).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(
        "PUT", f"/file/{name}", document, {"Content-Type": "application/json", **headers}
    )


def _digest(content: bytes, announced: bytes | None = None) -> dict[str, str]:
    import hashlib  # noqa: PLC0415

    digest = hashlib.sha256(content if announced is None else announced).digest()
    return {"Repr-Digest": format_digest("sha-256", digest).decode()}


OLD, BODY, LARGE = data(3000, 1), data(9000, 2), data(2_500_000, 3)
#: Names that no verb touches.
_OTHERS = {"other": b"other", "d/other": b"other in d", "tree.d/other": b"other in tree.d"}
_TREE = {"tree/a": b"a", "tree/b/c": data(2000, 4), "tree/b/d/e": b"e", "tree/b/f": b""}
_MOVED = {"moved" + name.removeprefix("tree"): content for name, content in _TREE.items()}
_NEW_ONLY = {"If-None-Match": "*"}


#: Verbs that are tried also with records beside the files. The others take the same steps there.
WITH_RECORDS_BESIDE = (
    "replace",
    "append",
    "append large in pieces",
    "append with key",
    "append together",
    "append to a hard link",
    "append after a crash in its middle",
    "replace after a crash",
    "move after a crash",
    "move over a file",
    "delete",
    "delete a folder",
)


def beside(name: str) -> str:
    """Return the name that the verb *name* has with records beside the files."""
    return f"{name}, records beside"


def _key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def _given_away(root: Path) -> None:
    give_away(root / "d/f")


def _linked(root: Path) -> None:
    (root / "n/link").unlink()
    os.link(root / "d/f", root / "n/link")


def _verbs() -> dict[str, Verb]:
    nothing = tree(**_OTHERS)
    f = tree(**_OTHERS, **{"d/f": OLD})
    longer = tree(**_OTHERS, **{"d/f": OLD + BODY})
    much_longer = tree(**_OTHERS, **{"d/f": OLD + LARGE})
    replaced = tree(**_OTHERS, **{"d/f": BODY})
    created = tree(**_OTHERS, new=BODY)
    two = tree(**_OTHERS, **{"d/f": OLD, "g": b"g"})
    moved, replaced_g = tree(**_OTHERS, **{"n/m/g": OLD}), tree(**_OTHERS, g=OLD)
    trees = tree("tree/empty", **_OTHERS, **_TREE)
    moved_tree = tree("moved/empty", **_OTHERS, **_MOVED)
    in_folders = tree(**_OTHERS, **{"n/m/new": BODY})
    post, post_new = Request("POST", "/file/d/f", BODY), Request("POST", "/file/new", BODY)
    only_new = Request("POST", "/file/new", BODY, _NEW_ONLY)
    post_large, append_large = (Request(m, "/file/d/f", LARGE) for m in ("POST", "PUT"))
    append = Request("PUT", "/file/d/f", BODY)
    with_key = Request("PUT", "/file/d/f", BODY, _key("once"))
    more = [Request("PUT", "/file/d/f", data(n * 2000, n), _key(f"{n}")) for n in (4, 5, 6)]
    added = b"".join(request.body for request in more)
    linked = tree(**_OTHERS, **{"d/f": OLD, "n/link": OLD})
    longer_links = tree(**_OTHERS, **{"d/f": OLD + BODY, "n/link": OLD + BODY})
    replaced_link = tree(**_OTHERS, **{"d/f": BODY, "n/link": OLD})
    verbs = {
        "create": Verb(nothing, post_new, created),
        "create in new folders": Verb(nothing, Request("POST", "/file/n/m/new", BODY), in_folders),
        "create only": Verb(nothing, only_new, created),
        "create only, no renameat2": Verb(nothing, only_new, created, lacks="renameat2"),
        "create with digest": Verb(
            nothing, Request("POST", "/file/new", BODY, _digest(BODY)), created
        ),
        "create with wrong digest": Verb(
            nothing, Request("POST", "/file/new", BODY, _digest(BODY, b"?")), nothing, 400
        ),
        "replace": Verb(f, post, replaced),
        "replace in pieces": Verb(f, post_large, tree(**_OTHERS, **{"d/f": LARGE}), pieces=400_000),
        "append": Verb(f, append, longer),
        "append in pieces": Verb(f, append, longer, pieces=PAGE),
        "append large": Verb(f, append_large, much_longer),
        "append large in pieces": Verb(f, append_large, much_longer, pieces=700_000),
        "append large on a network in pieces": Verb(
            f, append_large, much_longer, pieces=700_000, network=True
        ),
        "append large on a network, no copy_file_range": Verb(
            f, append_large, much_longer, lacks="copy_file_range", network=True
        ),
        "append with key": Verb(f, with_key, longer, pieces=PAGE),
        "append together": Verb(
            f,
            # It is refused when it has its turn, and the others wait for theirs behind it.
            Request("PUT", "/file/d/f", BODY, _digest(BODY, b"?")),
            tree(**_OTHERS, **{"d/f": OLD + added}),
            pieces=PAGE,
            together=tuple(more),
        ),
        "append to a file of another owner": Verb(f, append, longer, others=_given_away),
        "append to a hard link": Verb(linked, append, longer_links, others=_linked),
        "append with digest": Verb(f, Request("PUT", "/file/d/f", BODY, _digest(BODY)), longer),
        "append with wrong digest": Verb(
            f, Request("PUT", "/file/d/f", BODY, _digest(BODY, b"?")), f, 400
        ),
        "append after a crash": Verb(f, append, longer, crashed=("append in pieces", "writev 2")),
        "append after a crash in its middle": Verb(
            f, append, longer, crashed=("append in pieces", "writev 3")
        ),
        "replace after a crash": Verb(f, post, replaced, crashed=("append in pieces", "writev 2")),
        "replace a file of another owner": Verb(f, post, replaced, others=_given_away),
        "replace a hard link": Verb(linked, post, replaced_link, others=_linked),
        "move after a crash": Verb(
            f, _move("d/f", "n/m/g"), moved, crashed=("append in pieces", "writev 2")
        ),
        "move": Verb(f, _move("d/f", "n/m/g"), moved),
        "move over a file": Verb(two, _move("d/f", "g"), replaced_g),
        "move only to a new name": Verb(f, _move("d/f", "g", If_None_Match="*"), replaced_g),
        "move only to a new name, no renameat2": Verb(
            f, _move("d/f", "g", If_None_Match="*"), replaced_g, lacks="renameat2"
        ),
        "move a folder": Verb(trees, _move("tree", "moved"), moved_tree),
        "delete": Verb(f, Request("DELETE", "/file/d/f"), nothing),
        "delete a folder": Verb(trees, Request("DELETE", "/file/tree"), nothing),
    }
    for name in WITH_RECORDS_BESIDE:
        verbs[beside(name)] = replace(verbs[name], records="beside")
    return verbs


VERBS = _verbs()
#: What any daemon in good health does.
HEALTHY: tuple[tuple[Request, int], ...] = (
    (Request("POST", "/file/healthy", b"one"), 200),
    (Request("PUT", "/file/healthy", b"two"), 200),
    (_move("healthy", "still healthy"), 200),
    (Request("GET", "/file/still%20healthy"), 200),
    (Request("DELETE", "/file/still%20healthy"), 200),
)


def build(root: Path, wanted: Tree) -> None:
    """Make *wanted* all that is below *root*, but for what daemons keep there."""
    root.mkdir(exist_ok=True)
    for path in root.iterdir():
        if path.name != ".httpnas":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in sorted(wanted.folders):
        (root / folder).mkdir()
    for name, content in wanted.files.items():
        (root / name).write_bytes(content)


# What is there


def seen(storage: Storage) -> Tree:
    """Return what clients can read at this moment."""
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    pending = [b""]
    while pending:
        name = pending.pop()
        opened = storage.open(name)
        try:
            if isinstance(opened, Folder):
                folders.add(name.decode())
                pending += [name + b"/" + n if name else n for n in opened.names()]
            else:
                content = os.pread(opened.fd, opened.version.size + 1, 0)
                assert len(content) >= opened.version.size, "a file is shorter than it says"
                files[name.decode()] = content[: opened.version.size]
        finally:
            opened.close()
    return Tree(files, frozenset(folders - {""}))


def on_disk(root: Path) -> Tree:
    """Return what lies there for anybody who looks at the disk without the daemon."""
    visible = [top for top in root.iterdir() if top.name != ".httpnas"]
    found = [path for top in visible for path in [top, *top.rglob("*")]]
    files = {str(p.relative_to(root)): p.read_bytes() for p in found if not p.is_dir()}
    return Tree(files, frozenset(str(p.relative_to(root)) for p in found if p.is_dir()))


def leftovers(root: Path) -> list[str]:
    """Return what lies in the working folders of daemons, living or dead, but for their leases."""
    found = []
    for folder, _, files in os.walk(runs_of(root)):  # others may be removing it
        here = os.path.relpath(folder, runs_of(root))
        found += [os.path.join(here, name) for name in files if name != "lease"]
        found += [here] if "/" in here else []
    return found


def exhaust(steps: Iterator[None]) -> None:
    """Take all *steps*."""
    for _ in steps:
        pass


# The patient's side


class _InTurn(Disk):
    """Runs the calls of a daemon in this thread, each when the reactor would be idle."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self._calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def run_in(self, pool: ThreadPool, call: Callable[[], Any]) -> Deferred[Any]:
        done = Deferred[Any]()
        self._calls.append((done, call))
        return done

    def nap(self, seconds: float) -> Deferred[None]:
        return succeed(None)

    def pump(self) -> None:
        while self._calls:
            done, call = self._calls.pop(0)
            maybeDeferred(call).addBoth(done.callback)


class _Wire(StringTransport):
    """Says at once what is sent to the client who has this *number*."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, data: bytes) -> None:
        _say(sent=data.decode("latin-1"), to=self._number)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


class _Daemon:
    def __init__(self, root: str, network: bool = False) -> None:
        self.storage = Storage(root)
        self.storage.volume.is_local &= not network
        self._disk = _InTurn()
        engine = make_engine(Clock(), self._disk, self.storage, inf)
        metrics = Metrics()
        doors = make_doors(engine, metrics, harness.DEFAULTS)
        self._site = make_site(Clock(), doors, engine.watchdog, Limits(), metrics, harness.DEFAULTS)

    def handle(self, *requests: Request, is_told: bool = True) -> None:
        channels = [self._site.buildProtocol(None) for _ in requests]
        for number, (channel, request) in enumerate(zip(channels, requests, strict=True)):
            channel.makeConnection(_Wire(number) if is_told else StringTransport())
            channel.dataReceived(request.head)
        self._disk.pump()
        for start in range(0, max(len(request.body) for request in requests), 256 << 10):
            for channel, request in zip(channels, requests, strict=True):
                if part := request.body[start : start + (256 << 10)]:
                    channel.dataReceived(part)
            self._disk.pump()


def _say(**told: Any) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _write_in_pieces(size: int) -> None:
    """Let the disk take *size* bytes at a time, whole pages of the file if it is that many.

    It is where a page of the file ends that a process can be killed in the middle of a write.
    """
    writev, pwritev, copy = os.writev, os.pwritev, os.copy_file_range

    def most(at: int) -> int:
        return size if size < PAGE else size // PAGE * PAGE - at % PAGE

    def in_pieces(fd: int, buffers: Any) -> int:
        return writev(fd, [b"".join(buffers)[: most(os.lseek(fd, 0, os.SEEK_END))]])

    def in_pieces_at(fd: int, buffers: Any, at: int, flags: int = 0) -> int:
        return pwritev(fd, [b"".join(buffers)[: most(at)]], at, flags)

    os.writev = in_pieces
    os.pwritev = in_pieces_at
    os.copy_file_range = lambda i, o, count, *at: copy(i, o, min(count, most(at[1])), *at)


def _fail_at_close(number: int, code: int) -> None:
    """Let the close(2) of that number report an error, after which the descriptor is gone."""
    real, calls = os.close, itertools.count(1)

    def close(fd: int) -> None:
        real(fd)
        if next(calls) == number:
            _say(failed="close")
            raise OSError(code, os.strerror(code))

    os.close = close


def _live(job: dict[str, Any]) -> None:
    exec(_LET_TRACE)
    without_privileges()
    if job["pieces"]:
        _write_in_pieces(job["pieces"])
    daemon = None if job["stopped"] else _Daemon(job["root"], job["network"])
    _say(done="ready")
    if job["close"]:
        _fail_at_close(*job["close"])
    while line := os.read(0, 4096).decode():
        word, _, what = line.rstrip("\n").partition(" ")
        if word == "end":
            return
        if word == "start":
            daemon = _Daemon(job["root"], job["network"])
            exhaust(daemon.storage.reclaim_abandoned())
        elif daemon is not None:
            daemon.handle(*(VERBS[what].requests if word == "verb" else [HEALTHY[int(what)][0]]))
        _say(done=word)


def _serve() -> None:
    """Fork a child for each line, which is a job, and tell its identity and its end."""
    with tempfile.TemporaryDirectory() as place:
        # What is imported when it is first needed must not be imported under strace.
        warm = Path(place) / "root"
        build(warm, VERBS["append"].before)
        daemon = _Daemon(str(warm))
        for request in (VERBS["append large"].request, *(request for request, _ in HEALTHY)):
            daemon.handle(request, is_told=False)
        daemon.storage.close()
    while line := os.read(0, 4096):
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            _say(ended=os.waitstatus_to_exitcode(status))
            continue
        try:
            _say(pid=os.getpid())
            _live(json.loads(line))
        except BaseException as error:
            _say(broken=repr(error))
            os._exit(1)
        os._exit(0)


# The other side


class Patient:
    """One child of a :class:`Ward`: a daemon on *root*, under the eyes of strace when told so."""

    def __init__(self, pipe: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
        self._pipe = pipe
        self._sent: dict[int, bytes] = defaultdict(bytes)
        self._clients = 1
        self.failed = False
        self._tell(json.dumps(job))
        self.pid: int = self._hear()["pid"]
        self.ended: int | None = None
        self._until_done()

    def _tell(self, line: str) -> None:
        assert self._pipe.stdin is not None
        self._pipe.stdin.write(line.encode() + b"\n")
        self._pipe.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._pipe.stdout is not None
        line = self._pipe.stdout.readline()
        assert line, "the ward is closed"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _until_done(self) -> None:
        while self.ended is None:
            heard = self._hear()
            assert "broken" not in heard, heard
            self._sent[heard.get("to", 0)] += heard.get("sent", "").encode("latin-1")
            self.failed |= "failed" in heard
            self.ended = heard.get("ended")
            if "done" in heard:
                return

    def ask(self, line: str) -> int | None:
        """Let it do what *line* says; return the status it has answered with, if it has."""
        word, _, name = line.partition(" ")
        self._clients = len(VERBS[name].requests) if word == "verb" else 1
        self._sent.clear()
        self._tell(line)
        self._until_done()
        return self.status

    @property
    def statuses(self) -> list[int | None]:
        """The status of each answer; None when its client has not got all of it."""
        return [_status(self._sent[number]) for number in range(self._clients)]

    @property
    def status(self) -> int | None:
        """The status of the answer; None when the client has not got all of it.

        Of several requests, the first is there to let the others wait, and any of these counts.
        """
        return next((s for s in self.statuses[self._clients > 1 :] if s is not None), None)

    def problem(self) -> dict[str, Any]:
        """Return the problem document that the answer is."""
        head, _, body = self._sent[0].partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head, head
        document: dict[str, Any] = json.loads(body)
        return document

    def end(self) -> None:
        """Let it go, without giving anything back, like a daemon that is killed."""
        if self.ended is None:
            self._tell("end")
            while self.ended is None:
                self._until_done()


def _status(sent: bytes) -> int | None:
    head, end, body = sent.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
    if not end or length is None or len(body) < int(length[1]):
        return None
    return int(head.split()[1])


class Ward:
    """A process that forks patients, and where their roots are.

    :param place: a folder for roots.
    :param afar: the same folder as another host sees it.
    """

    def __init__(self, place: Path, afar: Path) -> None:
        self.place = place
        self._afar = afar
        self._serial = itertools.count()
        self._log = (place / "log").open("wb")
        self._pipe = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.crash.sweep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=harness.ROOT,
        )

    def close(self) -> None:
        self._pipe.kill()
        self._pipe.communicate()
        self._log.close()

    def from_afar(self, root: Path) -> Path:
        """Return *root* as another host sees it."""
        return self._afar / root.relative_to(self.place)

    @contextlib.contextmanager
    def root(self, verb: Verb) -> Iterator[Path]:
        """Make what is there before *verb*, in a new root, for as long as the block."""
        root = self.place / str(next(self._serial))
        build(root, verb.before)
        keep_records(root, verb.records)
        if verb.others is not None:
            verb.others(root)
        try:
            if verb.crashed is not None:
                name, call = verb.crashed
                kind, _, number = call.partition(" ")
                first = Call(kind, int(number or 1))
                with self.patient(root, VERBS[name]) as patient:
                    with strace(patient.pid, CHANGES, first.inject("signal=SIGKILL")):
                        patient.ask(f"verb {name}")
                    assert patient.ended == -signal.SIGKILL
            yield root
        finally:
            shutil.rmtree(root)

    @contextlib.contextmanager
    def patient(
        self,
        root: Path,
        verb: Verb,
        stopped: bool = False,
        close: tuple[int, int] | None = None,
    ) -> Iterator[Patient]:
        """Start a daemon on *root*.

        :param stopped: begin before it has opened the storage.
        :param close: the number of a close(2) that fails, and the error.
        """
        job = {"root": str(root), "stopped": stopped, "close": close}
        job |= {"pieces": verb.pieces, "network": verb.network}
        patient = Patient(self._pipe, job)
        try:
            yield patient
        finally:
            patient.end()


class Wards:
    """A ward for each processor.

    :param places: one folder, as each of several hosts sees it.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._idle: queue.SimpleQueue[Ward] = queue.SimpleQueue()
        self.all = []
        for index in range(WORKERS):
            here, afar = (places[n % len(places)] / str(index) for n in (index, index + 1))
            here.mkdir()
            self.all.append(Ward(here, afar))
            self._idle.put(self.all[-1])
        self._threads = ThreadPoolExecutor(WORKERS)

    def once(self, call: Callable[..., T], *row: Any) -> T:
        """Call ``call(ward, *row)``."""
        ward = self._idle.get()
        try:
            return call(ward, *row)
        finally:
            self._idle.put(ward)

    def map(self, call: Callable[..., T], *columns: Any) -> list[T]:
        """Call ``call(ward, *row)`` for each row, as many at a time as there are wards."""
        return list(self._threads.map(functools.partial(self.once, call), *columns))

    def close(self) -> None:
        self._threads.shutdown()
        for ward in self.all:
            ward.close()


@contextlib.contextmanager
def open_wards(places: Sequence[Path]) -> Iterator[Wards]:
    """Open wards, or skip where nothing can be traced."""
    opened = Wards(places)
    try:
        skip_unless_traceable(opened.all[0])
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """Make a folder for roots: in memory, where syncs cost nothing, if user xattrs are kept there.

    What a kill or an error leaves is the same on any file system; the long form uses a disk.
    """
    with tempfile.TemporaryDirectory(dir=None if LONG or not _in_memory() else "/dev/shm") as made:
        yield Path(made)


def _in_memory() -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            os.setxattr(file.name, "user.test", b"test")
    except OSError:
        return False
    return True


# strace

#: Calls that change or sync something, or open it.
CHANGES = (
    "openat,openat2,open,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,"
    "copy_file_range,ioctl,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,utimensat,setxattr,fsetxattr,removexattr,fremovexattr,"
    "flock"
)
#: Calls that look.
LOOKS = "fstat,newfstatat,statx,getdents64,fgetxattr,getxattr,fstatfs,pread64"
_CALL = re.compile(r"^(?:(\d+) +)?(\w+)\((.*)$")


@dataclass(frozen=True)
class Call:
    """The Nth call of its name.

    :ivar text: what strace shows of it.
    """

    name: str
    number: int = 1
    text: str = ""

    def inject(self, what: str, ever_after: bool = False) -> str:
        return f"{self.name}:{what}:when={self.number}{'+' if ever_after else ''}"

    def __str__(self) -> str:
        return f"{self.name} {self.number} ({self.text})"


def _calls(log: Path) -> list[Call]:
    """Return the calls in *log*, in their order, numbered in each thread."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if match := _CALL.match(line):
            thread, name, text = match.groups()
            counts[thread, name] += 1
            found.append(Call(name, counts[thread, name], text))
    return found


def telling(steps: Sequence[Call]) -> list[Call]:
    """Return *steps* without most of those that take the locks of all names, which are alike."""
    locks = [step for step in steps if "/.httpnas/locks" in step.text]
    alike = {id(step) for step in locks[4:-4]}
    return [step for step in steps if id(step) not in alike]


class CanNotTrace(Exception):
    """strace(1) is not there, or may not do its work here."""


@contextlib.contextmanager
def strace(
    pid: int,
    traced: str,
    *injections: str,
    threads: bool = False,
    visit: Callable[[], None] | None = None,
) -> Iterator[list[Call]]:
    """Trace a process as long as the block (or the process) lasts.

    What is given has the calls in it when the block has ended.

    :param injections: as behind ``-e inject=``.
    :param visit: is called when an injected SIGSTOP has stopped the process, which then goes on.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = ["strace", "-y", "-s", "40", "-o", str(log), "-e", "signal=SIGSTOP"]
        # A question mark: a call that this processor does not know is no error.
        command += ["-e", "trace=?" + traced.replace(",", ",?")]
        command += [arg for what in injections for arg in ("-e", f"inject={what}")]
        command += ["-f"] * threads + ["-p", str(pid)]
        try:
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise CanNotTrace("strace is not installed") from error
        assert tracer.stderr is not None
        try:
            said = tracer.stderr.readline()
            if b" attached" not in said:
                raise CanNotTrace(f"strace can not attach: {said.decode().strip()}")
            made: list[Call] = []
            with _visited(pid, log, visit) if visit else contextlib.nullcontext():
                yield made
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
            if visit:  # it may have stopped behind all that it was asked for
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        made += _calls(log)


@contextlib.contextmanager
def _visited(pid: int, log: Path, visit: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.001):
            if "--- stopped by SIGSTOP" in log.read_text(errors="replace"):
                try:
                    return visit()
                finally:
                    os.kill(pid, signal.SIGCONT)

    with ThreadPoolExecutor(1) as threads:
        visited = threads.submit(wait)
        try:
            yield
        finally:
            over.set()
        visited.result()


#: Lets a strace attach that is no ancestor, where the Yama module is in force.
_LET_TRACE = "import ctypes; ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)"


def let_twistd_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the daemons of a test such that strace may attach to them."""
    *python, run = harness.TWISTD
    monkeypatch.setattr(harness, "TWISTD", [*python, f"{_LET_TRACE}; {run}"])


def skip_unless_traceable(ward: Ward) -> None:
    """Skip where strace is missing, or where it may not attach or inject."""
    verb = VERBS["create"]
    try:
        with (
            ward.root(verb) as root,
            ward.patient(root, verb) as patient,
            strace(patient.pid, CHANGES, "fsync:error=EIO"),
        ):
            status = patient.ask("verb create")
    except CanNotTrace as error:
        pytest.skip(str(error))
    if status == 200:
        pytest.skip("strace can attach, and not inject errors")


if __name__ == "__main__":
    _serve()
