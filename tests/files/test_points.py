"""Every operation passes both points: admission before anything is done, and what was committed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer

from httpnas.files.files import Files
from httpnas.files.job import Job
from httpnas.files.points import Commit, Effect, Intent, Verb
from httpnas.storage.listing import Folder, Order
from httpnas.storage.store import Storage
from httpnas.tap import make_engine
from httpnas.transfer.disk import Disk
from tests.files.jobs import FakeJob


class Text:
    """Content that is there already; an :class:`httpnas.files.job.Incoming`."""

    ended = True

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length: int | None = len(content)
        self.received = 0

    def deliver_to(self, consumer: IConsumer) -> Deferred[None]:
        self.received = len(self._content)
        consumer.write(self._content)
        return succeed(None)


class Forbidden(Exception):
    pass


class Points:
    """Writes down what comes by."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.intents: list[tuple[Verb, bytes, Effect]] = []
        self.commits: list[Commit] = []
        self.forbidden: Verb | None = None

    def admit(self, job: Job, intent: Intent) -> None:
        if intent.verb is self.forbidden:
            raise Forbidden
        self.intents.append((intent.verb, intent.name, intent.find_effect()))

    def tell(self, job: Job, commit: Commit) -> None:
        assert job.id == "job"
        self.commits.append(commit)


@pytest.fixture
def points(tmp_path: Path) -> Points:
    root = tmp_path / "root"
    root.mkdir()
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"1\n")
    return Points(root)


@pytest_twisted.async_yield_fixture
async def files(points: Points) -> AsyncIterator[Files]:
    storage, disk = Storage(str(points.root), durable=False), Disk(reactor)
    disk.start()
    yield make_engine(reactor, disk, storage, 60, points.admit, points.tell).files
    disk.stop()
    storage.close()


Operation = Callable[[Files], Coroutine[Any, Any, Any]]
JOB = FakeJob()


async def opened(files: Files) -> None:
    async with files.open(JOB, b"d/f"):
        pass


async def listed(files: Files) -> None:
    async with files.open(JOB, b"d"):
        pass


async def counted(files: Files) -> None:
    assert await files.lines(JOB, b"d/f") == 1


async def made(files: Files) -> None:
    await files.replace(JOB, b"new", Text(b"2\n"))


async def replaced(files: Files) -> None:
    await files.replace(JOB, b"d/f", Text(b"2\n"))


async def appended(files: Files) -> None:
    await files.append(JOB, b"d/f", Text(b"2\n"))


async def target(name: bytes) -> bytes:
    return name


async def moved(files: Files) -> None:
    await files.move(JOB, b"d/f", lambda: target(b"new"))


async def removed(files: Files) -> None:
    await files.remove(JOB, b"d")


async def expected(files: Files) -> None:
    await files.expect(JOB, b"d", None)


NEW, CHANGED, REMOVED = Effect.NEW, Effect.CHANGED, Effect.REMOVED
UNKNOWN = Effect.UNKNOWN
READS: list[tuple[Operation, Verb, bytes]] = [
    (opened, Verb.DOWNLOAD, b"d/f"),
    (listed, Verb.LIST, b"d"),
    (counted, Verb.COUNT, b"d/f"),
]
CHANGES: list[tuple[Operation, Verb, dict[bytes, Effect]]] = [
    (made, Verb.UPLOAD, {b"new": NEW}),
    (replaced, Verb.UPLOAD, {b"d/f": CHANGED}),
    (appended, Verb.APPEND, {b"d/f": CHANGED}),
    (moved, Verb.MOVE, {b"d/f": REMOVED, b"new": NEW}),
    (removed, Verb.DELETE, {b"d": REMOVED}),
    (expected, Verb.UPLOAD, {}),
]


def contents(root: Path) -> dict[str, bytes]:
    """Return what clients can see below *root*."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
        if ".httpnas" not in path.parts
    }


def test_every_operation_is_in_one_of_the_tables() -> None:
    """One that is added needs its row here, or nobody is asked about it."""
    operations = {
        name for name, value in vars(Files).items() if callable(value) and not name.startswith("_")
    }
    of_opened_files = {"download", "send", "list", "digest"}
    asked = {"open", "lines", "replace", "append", "move", "remove", "expect"}
    assert operations - of_opened_files == asked


@pytest.mark.parametrize(
    "operation",
    [operation for operation, *_ in (*READS, *CHANGES)],
    ids=lambda operation: operation.__name__,
)
@pytest_twisted.ensureDeferred
async def test_what_may_not_be_done_is_refused_before_the_disk_is_asked(
    files: Files, points: Points, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise whoever may do nothing learns which names there are."""
    asked = []
    for name, call in vars(Storage).items():
        if callable(call) and not name.startswith("_"):
            monkeypatch.setattr(Storage, name, lambda *args, name=name, **_: asked.append(name))
    points.forbidden = {op: verb for op, verb, _ in (*READS, *CHANGES)}[operation]
    if operation is listed:
        points.forbidden = Verb.DOWNLOAD  # that it is a folder, only the disk can tell
    with pytest.raises(Forbidden):
        await operation(files)
    assert asked == []


@pytest_twisted.ensureDeferred
async def test_the_target_of_a_move_is_asked_about_before_the_disk_is(
    files: Files, points: Points
) -> None:
    before = [(Verb.MOVE, b"d/f", REMOVED), (Verb.MOVE, b"d/f", REMOVED)]
    await moved(files)
    assert points.intents[:3] == [*before, (Verb.MOVE, b"new", UNKNOWN)]


@pytest_twisted.ensureDeferred
async def test_a_folder_shows_what_its_client_may_see(points: Points) -> None:
    for name in ("a", "b", "c"):
        (points.root / "d" / name).write_bytes(b"")
    storage, disk = Storage(str(points.root), durable=False), Disk(reactor)
    disk.start()
    asked = []

    def show(job: Job, folder: bytes) -> Callable[[bytes], bool]:
        asked.append((job, folder))
        return lambda leaf: leaf in (b"a", b"c")

    files = make_engine(reactor, disk, storage, 60, show=show).files
    try:
        async with files.open(JOB, b"d") as folder:
            assert isinstance(folder, Folder)
            assert list(folder.names()) == [b"a", b"c"]
            for by in ("name", "size", "mtime"):
                shown = sorted(place.name for place in folder.places(Order(by), None, 1))
                assert shown == [b"a", b"c"], by
            assert folder.entry(b"b") is None
            assert folder.entry(b"a") is not None
    finally:
        disk.stop()
        storage.close()
    assert asked == [(JOB, b"d")]


@pytest.mark.parametrize("operation, verb, name", READS, ids=lambda x: getattr(x, "__name__", ""))
@pytest_twisted.ensureDeferred
async def test_admission_is_asked_before_anything_is_read(
    files: Files, points: Points, operation: Operation, verb: Verb, name: bytes
) -> None:
    await operation(files)
    assert (verb, name, Effect.NONE) in points.intents
    assert points.commits == []
    points.forbidden = verb
    with pytest.raises(Forbidden):
        await operation(files)


@pytest.mark.parametrize(
    "operation, verb, effects", CHANGES, ids=lambda x: getattr(x, "__name__", "")
)
@pytest_twisted.ensureDeferred
async def test_admission_is_asked_about_each_name_and_what_becomes_of_it(
    files: Files, points: Points, operation: Operation, verb: Verb, effects: dict[bytes, Effect]
) -> None:
    await operation(files)
    certain = {intent for intent in points.intents if intent[2] is not UNKNOWN}
    assert {(verb, name, effect) for name, effect in effects.items()} == certain


@pytest.mark.parametrize(
    "operation, verb, effects", CHANGES, ids=lambda x: getattr(x, "__name__", "")
)
@pytest_twisted.ensureDeferred
async def test_what_admission_refuses_changes_nothing_and_is_not_told(
    files: Files, points: Points, operation: Operation, verb: Verb, effects: dict[bytes, Effect]
) -> None:
    points.forbidden = verb
    before = contents(points.root)
    with pytest.raises(Forbidden):
        await operation(files)
    assert contents(points.root) == before
    assert points.commits == []


@pytest_twisted.ensureDeferred
async def test_admission_decides_once_more_under_the_lock(files: Files, points: Points) -> None:
    """Whoever may create only must not replace what has come in the meantime."""

    class Late(Text):
        ended = False

        def deliver_to(self, consumer: IConsumer) -> Deferred[None]:
            (points.root / "new").write_bytes(b"of somebody else")
            return super().deliver_to(consumer)

    seen = points.intents
    await files.replace(JOB, b"new", Late(b""))
    assert [effect for _, _, effect in seen] == [UNKNOWN, NEW, CHANGED]


@pytest_twisted.ensureDeferred
async def test_what_has_become_true_is_told_with_its_version(files: Files, points: Points) -> None:
    made = await files.replace(JOB, b"a", Text(b"1\n"))
    longer = await files.append(JOB, b"a", Text(b"2\n"))
    await files.move(JOB, b"a", lambda: target(b"b"))
    await files.remove(JOB, b"b")
    assert points.commits == [
        Commit(Verb.UPLOAD, b"a", made),
        Commit(Verb.APPEND, b"a", longer),
        Commit(Verb.MOVE, b"a", to=b"b"),
        Commit(Verb.DELETE, b"b"),
    ]


@pytest_twisted.ensureDeferred
async def test_a_repeat_that_changes_nothing_is_not_told(files: Files, points: Points) -> None:
    for _ in range(2):
        await files.append(JOB, b"d/f", Text(b"2\n"), key=b"k")
    assert [commit.verb for commit in points.commits] == [Verb.APPEND]


@pytest_twisted.ensureDeferred
async def test_admission_is_asked_about_a_repeat(files: Files, points: Points) -> None:
    await files.append(JOB, b"d/f", Text(b"2\n"), key=b"k")
    points.forbidden = Verb.APPEND
    with pytest.raises(Forbidden):
        await files.append(JOB, b"d/f", Text(b"2\n"), key=b"k")


@pytest_twisted.ensureDeferred
async def test_what_is_no_longer_wanted_changes_nothing(files: Files, points: Points) -> None:
    before = contents(points.root)
    with pytest.raises(Exception, match="did not answer in time"):
        await files.replace(FakeJob(given_up=True), b"new", Text(b""))
    assert contents(points.root) == before
