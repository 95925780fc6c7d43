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


NEW, CHANGED, REMOVED = Effect.NEW, Effect.CHANGED, Effect.REMOVED
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
    of_opened_files = {"download", "send", "list", "digest", "refuse_full"}
    assert operations - of_opened_files == {"open", "lines", "replace", "append", "move", "remove"}


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
    assert {(verb, name, effect) for name, effect in effects.items()} == set(points.intents)


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
    assert seen == [(Verb.UPLOAD, b"new", NEW), (Verb.UPLOAD, b"new", CHANGED)]


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
