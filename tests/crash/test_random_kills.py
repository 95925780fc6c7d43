"""SIGKILL at random moments, hundreds of times: what was answered 200 is there, whole and once.

Eight writers work on one folder through two daemons (two for each host that has it), of which one
after the other is killed and replaced by the next. HTTPNAS_KILLS in the environment says how many
(by default 200): half of them with records in xattrs, half with records beside the files. Where
there is one host, another program appends to a file as well, and gives files away.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import pytest

from httpnas.storage.descriptors import owned
from tests.crash.herd import PATIENCE, Herd, Unanswered, Wire, herd
from tests.outside import give_away
from tests.private import runs_of

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("HTTPNAS_KILLS", "200")) // 2
WRITERS = 8
#: Kills between two looks at all logs while everything goes on; the logs only grow.
LOOK_EVERY = max(20, KILLS // 10)
#: All records of this log are small. What a kill leaves of a larger one stays when others append.
COMMON_LOG = "common-log"
LOGS = ["log-0", "log-1", "deep/er/log-2", COMMON_LOG]
SHARED = ["shared-0", "shared-1", "deep/shared-2"]
#: Payloads are cut from this.
NOISE = random.Random(0).randbytes(2 << 20)


def record(identity: str, length: int) -> bytes:
    """Return bytes that tell their own identity, length and checksum."""
    at = zlib.crc32(identity.encode()) % (len(NOISE) - length)
    payload = NOISE[at : at + length]
    return b"R %s %d %d\n%b\n" % (identity.encode(), length, zlib.crc32(payload), payload)


def parse(content: bytes) -> list[tuple[str, int]]:
    """Return identity and end of each record in *content*, which must be whole records only."""
    found: list[tuple[str, int]] = []
    at = 0
    while at < len(content):
        head_end = content.find(b"\n", at, at + 100)
        fields = content[at : max(head_end, at)].split(b" ")
        whole = len(fields) == 4 and fields[0] == b"R"
        if whole:
            end = head_end + 1 + int(fields[2])
            payload = content[head_end + 1 : end]
            whole = zlib.crc32(payload) == int(fields[3]) and content[end : end + 1] == b"\n"
        if not whole:
            last = found[-1] if found else None
            raise AssertionError(
                f"torn at byte {at} of {len(content)}, behind {last}: {content[at : at + 60]!r}"
            )
        at = end + 1
        found.append((fields[1].decode(), at))
    return found


@dataclass
class Write:
    """One attempt to change a name.

    :ivar identity: of the record appended or stored, None for a deletion.
    :ivar serial: its place among what its writer did.
    :ivar end: when it was answered; inf when it was not.
    :ivar offset: what the answer to an append said the new length was.
    """

    identity: str | None
    writer: int
    serial: int
    start: float
    end: float = inf
    offset: int | None = None

    @property
    def answered(self) -> bool:
        return self.end < inf


class Ledger:
    """What was attempted and what was answered, kept by all writers."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.writes: dict[str, list[Write]] = defaultdict(list)
        self.own: dict[str, set[str | None]] = {}
        self.counts: Counter[str] = Counter()
        self.bytes = 0

    def begin(self, name: str, write: Write) -> Write:
        with self.lock:
            self.writes[name].append(write)
        return write

    def of(self, name: str) -> list[Write]:
        with self.lock:
            return list(self.writes[name])


class Writer(threading.Thread):
    """One client, which does this and that until it is told to stop."""

    def __init__(self, number: int, daemons: Herd, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{number}")
        self._number = number
        self._daemons = daemons
        self._ledger = ledger
        self._stop_now = stop
        self._rng = random.Random(number)
        self._serial = 0
        self._wire = Wire(daemons.serving[number % len(daemons.serving)].port)
        self.failure: BaseException | None = None

    def run(self) -> None:
        acts: list[Callable[[], None]] = [self._append, self._break_off, self._keyed_append]
        acts += [self._own_file, self._replace, self._move_over, self._remove, self._read]
        acts += [self._own_folder]
        weights = [40, 4, 12, 12, 14, 6, 3, 9, 4]
        try:
            while not self._stop_now.is_set():
                self._rng.choices(acts, weights)[0]()
                time.sleep(self._rng.random() * 0.004)
                if self._rng.random() < 0.05:
                    self._change_daemon()
        except BaseException as error:
            self.failure = error
        finally:
            self._wire.close()

    def _change_daemon(self) -> None:
        self._wire.close()
        self._wire = Wire(self._rng.choice(self._daemons.serving).port)

    def _ask(
        self, what: str, method: str, path: str, body: bytes = b"", **fields: str
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Return the answer, or None when there was none; it is 200 or, for some, 404."""
        pieces = self._rng.choice([None, None, 1, 7]) if body else None
        try:
            answer = self._wire.ask(method, path, body, pieces, **fields)
        except Unanswered:
            with self._ledger.lock:
                self._ledger.counts[f"{what} unanswered"] += 1
            self._change_daemon()
            return None
        missing = answer[0] == 404 and what in ("move", "delete", "read")
        assert answer[0] == 200 or missing, f"{what} {path}: {answer}"
        with self._ledger.lock:
            self._ledger.counts[f"{what} {'missed' if missing else 'answered'}"] += 1
            self._ledger.bytes += len(body)
        return answer

    def _fresh(self) -> str:
        self._serial += 1
        return f"{self._number}-{self._serial}"

    def _some_record(self, name: str = "") -> tuple[str, bytes]:
        identity = self._fresh()
        if name == COMMON_LOG:
            return identity, record(identity, self._rng.randrange(100))
        draw = self._rng.random()
        most = 3_000 if draw < 0.9 else 200_000
        length = self._rng.randrange(most) if draw < 0.96 else self._rng.randrange(1 << 20, 3 << 19)
        return identity, record(identity, length)

    def _write(self, identity: str | None) -> Write:
        return Write(identity, self._number, self._serial, time.monotonic())

    def _append(self) -> None:
        name = self._rng.choice(LOGS)
        identity, body = self._some_record(name)
        write = self._ledger.begin(name, self._write(identity))
        self._settle_append(write, self._ask("append", "PUT", f"/file/{name}", body))

    def _settle_append(
        self, write: Write, answer: tuple[int, dict[str, str], bytes] | None
    ) -> None:
        if answer is not None:
            write.offset = int(answer[1]["upload-offset"])
            write.end = time.monotonic()

    def _keyed_append(self) -> None:
        """Append under a key, and again, through any daemon, until there is an answer."""
        name = self._rng.choice(LOGS)
        identity, body = self._some_record(name)
        write = self._ledger.begin(name, self._write(identity))
        answer = None
        while answer is None and not self._stop_now.is_set():
            answer = self._ask(
                "keyed append", "PUT", f"/file/{name}", body, Idempotency_Key=f'"{identity}"'
            )
        self._settle_append(write, answer)

    def _break_off(self) -> None:
        name = self._rng.choice(LOGS)
        _, body = self._some_record(name)
        self._wire.break_off(f"/file/{name}", body, self._rng.choice([None, 3]))
        with self._ledger.lock:
            self._ledger.counts["append broken off"] += 1

    def _own_file(self) -> None:
        """Store a file that nobody else touches; maybe move it; maybe delete it."""
        own = self._ledger.own
        identity, body = self._some_record()
        name = f"own/{self._number}/{identity}"
        own[name] = {identity, None}
        if self._ask("upload", "POST", f"/file/{name}", body) is None:
            return
        own[name] = {identity}
        if self._rng.random() < 0.5:
            moved = f"moved/{self._rng.randrange(3)}/{identity}"
            own[name] = own[moved] = {identity, None}
            if self._ask_move(name, moved) is None:
                return
            own[name], own[moved] = {None}, {identity}
            name = moved
        if self._rng.random() < 0.4:
            own[name] = {identity, None}
            if (answer := self._ask("delete", "DELETE", f"/file/{name}")) is not None:
                assert answer[0] == 200, f"{name} was gone"
                own[name] = {None}

    def _own_folder(self) -> None:
        """Store two files in a folder that nobody else touches, move it, and maybe delete it."""
        own, folder = self._ledger.own, f"own/{self._number}/folder-{self._serial}"
        identities = []
        for leaf in ("a", "b/c"):
            identity, body = self._some_record()
            own[f"{folder}/{leaf}"] = {identity, None}
            if self._ask("upload", "POST", f"/file/{folder}/{leaf}", body) is None:
                return
            own[f"{folder}/{leaf}"] = {identity}
            identities.append(identity)
        moved = f"own/{self._number}/moved/{identities[0]}"
        self._know(folder, moved, identities, [None, *identities], [None, *identities])
        if self._ask_move(folder, moved) is None:
            return
        self._know(folder, moved, identities, [None], identities)
        answer = self._ask("list", "GET", f"/file/own/{self._number}/moved")
        listed = None if answer is None else answer[2].decode().split()
        assert listed is None or identities[0] in listed, f"{identities[0]} is not in {listed}"
        if self._rng.random() < 0.5:
            self._know(folder, moved, identities, [None], [None, *identities])
            if self._ask("delete", "DELETE", f"/file/{moved}") is not None:
                self._know(folder, moved, identities, [None], [None])

    def _know(
        self,
        folder: str,
        moved: str,
        identities: Sequence[str],
        old: Sequence[str | None],
        new: Sequence[str | None],
    ) -> None:
        """Note what the files of a folder may be by its *old* and by its *new* name."""
        for leaf, identity in zip(("a", "b/c"), identities, strict=True):
            for name, chances in ((folder, old), (moved, new)):
                self._ledger.own[f"{name}/{leaf}"] = {c for c in chances if c in (identity, None)}

    def _ask_move(self, name: str, target: str) -> tuple[int, dict[str, str], bytes] | None:
        document = f'{{"path": "{target}"}}'.encode()
        answer = self._ask(
            "move", "PUT", f"/file/{name}", document, Content_Type="application/json"
        )
        assert answer is None or answer[0] == 200, f"{name} was gone"
        return answer

    def _replace(self) -> None:
        name = self._rng.choice(SHARED)
        identity, body = self._some_record()
        write = self._ledger.begin(name, self._write(identity))
        if self._ask("replace", "POST", f"/file/{name}", body) is not None:
            write.end = time.monotonic()

    def _move_over(self) -> None:
        """Replace a shared file by moving another one over it."""
        name = self._rng.choice(SHARED)
        identity, body = self._some_record()
        if self._ask("upload", "POST", f"/file/coming/{identity}", body) is not None:
            write = self._ledger.begin(name, self._write(identity))
            if self._ask_move(f"coming/{identity}", name) is not None:
                write.end = time.monotonic()

    def _remove(self) -> None:
        name = self._rng.choice(SHARED)
        self._fresh()
        write = self._ledger.begin(name, self._write(None))
        answer = self._ask("delete", "DELETE", f"/file/{name}")
        if answer is not None:
            write.end = time.monotonic()

    def _read(self) -> None:
        look_at_shared(
            self._ledger, self._rng.choice(SHARED), lambda p: self._ask("read", "GET", p)
        )


class Outsider(threading.Thread):
    """Another program, which appends to the common log with O_APPEND, and gives files away."""

    def __init__(self, root: Path, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(name="outsider")
        self._root = root
        self._ledger = ledger
        self._stop_now = stop
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with owned(os.open(self._root / COMMON_LOG, os.O_WRONLY | os.O_APPEND)) as fd:
                for serial in itertools.count(1):
                    if self._stop_now.wait(0.005):
                        break
                    identity = f"outside-{serial}"
                    body = record(identity, serial % 100)
                    write = self._ledger.begin(
                        COMMON_LOG, Write(identity, WRITERS, serial, time.monotonic())
                    )
                    assert os.write(fd, body) == len(body)
                    write.end = time.monotonic()
                    if serial % 50 == 0:
                        give_away(self._root / LOGS[serial // 50 % len(LOGS)])
        except BaseException as error:
            self.failure = error


Answer = tuple[int, dict[str, str], bytes] | None


def look_at_shared(ledger: Ledger, name: str, get: Callable[[str], Answer]) -> None:
    """Read *name*: it must be one whole version, and none that was replaced before we asked."""
    start = time.monotonic()
    answer = get(f"/file/{name}")
    if answer is None:
        return
    found: str | None = None
    if answer[0] == 200:
        records = parse(answer[2])
        assert len(records) == 1, f"{name} is {len(records)} versions in one"
        found = records[0][0]
    writes = ledger.of(name)
    chances = [w for w in writes if w.identity == found]
    latest_start = max((w.start for w in writes if w.end < start), default=-inf)
    if found is None:
        chances.append(Write(None, -1, 0, -inf, -inf))  # at first it was not there
    assert any(w.end >= latest_start for w in chances), f"{name}: {found} is stale or never was"


def look_at_log(ledger: Ledger, name: str, get: Callable[[str], Answer]) -> int:
    """Read the log *name*; return how many records without an answer are in it."""
    answered = [w for w in ledger.of(name) if w.answered]
    answer = get(f"/file/{name}")
    assert answer is not None and answer[0] == 200, f"{name}: {answer}"
    records = parse(answer[2])
    ends = dict(records)
    assert len(ends) == len(records), f"{name}: {Counter(i for i, _ in records).most_common(3)}"
    lost = [w for w in answered if w.identity not in ends]
    assert not lost, f"{name}: {len(lost)} of {len(answered)} answered records lost: {lost[:3]}"
    attempted = {w.identity: w for w in ledger.of(name)}
    last: dict[int, int] = {}
    for identity, end in records:
        assert identity in attempted, f"{name}: {identity} was broken off or never sent"
        write = attempted[identity]
        assert write.offset in (None, end), f"{write} ends at {end}"
        assert last.get(write.writer, 0) < write.serial, f"{name}: {write} is out of order"
        last[write.writer] = write.serial
    return len(records) - len(answered)


class LastLook:
    """After all kills: one more daemon is started, and everything is looked at through it."""

    def __init__(self, daemons: Herd, root: Path, ledger: Ledger) -> None:
        self._runs = runs_of(root)
        self._root = root
        self._ledger = ledger
        self.leftovers = len(self._left())
        self._wire = Wire(daemons.start().port)

    def _left(self) -> list[Path]:
        walked = os.walk(self._runs)  # which does not mind what is being removed
        return [Path(at, n) for at, dirs, files in walked for n in [*dirs, *files] if n != "lease"]

    def _get(self, path: str, **fields: str) -> tuple[int, dict[str, str], bytes]:
        return self._wire.ask("GET", path, b"", None, **fields)

    def leftovers_go(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(left := self._left()) > 1:  # the folder of the daemon that runs
            assert time.monotonic() < deadline, f"not reclaimed: {left}"
            time.sleep(0.01)

    def logs_are_right(self) -> int:
        """Check them, append to each once more, and check again."""
        unanswered = 0
        for name in LOGS:
            unanswered += look_at_log(self._ledger, name, self._get)
            write = self._ledger.begin(name, Write(f"last-{name}", -1, 1, time.monotonic()))
            body = record(f"last-{name}", 100)
            write.offset = int(self._wire.ask("PUT", f"/file/{name}", body)[1]["upload-offset"])
            write.end = time.monotonic()
            look_at_log(self._ledger, name, self._get)
            self._facts_are_right(name)
        return unanswered

    def _facts_are_right(self, name: str) -> None:
        """Check what may be remembered of a file against its content."""
        _, headers, content = self._get(f"/file/{name}", Want_Repr_Digest="sha-256=10")
        assert content == (self._root / name).read_bytes()
        assert int(self._get(f"/file/{name}/wc")[2]) == content.count(b"\n")
        if told := headers.get("repr-digest"):
            digest = b64encode(hashlib.sha256(content).digest()).decode()
            assert f"sha-256=:{digest}:" in told

    def files_are_right(self) -> None:
        for name in SHARED:
            look_at_shared(self._ledger, name, self._get)
        for name, chances in self._ledger.own.items():
            status, _, content = self._get(f"/file/{name}")
            found = parse(content)[0][0] if status == 200 else None
            assert found in chances, f"{name} is {found}, and not of {chances}"
            assert found is None or len(parse(content)) == 1
        for name in self._ledger.own:
            if name.startswith("moved/"):
                identity = name.rpartition("/")[2]
                old = f"own/{identity.partition('-')[0]}/{identity}"
                both = [self._get(f"/file/{path}")[0] for path in (old, name)]
                assert both != [200, 200], f"{identity} has two names"
                gone = None in self._ledger.own[name] and self._ledger.own[old] == {None}
                assert gone or 200 in both, f"{identity} was lost in a move"


def rampage(daemons: Herd, ledger: Ledger, writers: list[Writer | Outsider]) -> int:
    """Kill daemons until it is enough, with a look at everything now and then."""
    rng = random.Random(99)
    looks = 0
    for kill in range(1, KILLS + 1):
        time.sleep(min(rng.expovariate(20), 0.3))
        daemons.replace(rng.choice(daemons.serving))
        if kill % 10 == 0:
            daemons.kill_one_that_starts()
        if kill % LOOK_EVERY == 0:
            wire = Wire(rng.choice(daemons.serving).port)
            for name in LOGS:
                if name != COMMON_LOG:  # readers see what others append when our appends have ended
                    look_at_log(ledger, name, partial(wire.ask, "GET"))
            looks += 1
            wire.close()
        for writer in writers:
            if writer.failure is not None:
                raise writer.failure
    return looks


@pytest.mark.parametrize("records", ["xattr", "beside"])
def test_nothing_acknowledged_is_lost_or_torn_by_kills(
    roots: list[Path], tmp_path: Path, records: str
) -> None:
    began = time.monotonic()
    ledger, stop = Ledger(), threading.Event()
    with herd(roots, tmp_path / "logs", random.Random(7), records=records) as daemons:
        first = Wire(daemons.serving[0].port)
        for name in LOGS:
            first.ask("POST", f"/file/{name}")
        first.close()
        writers: list[Writer | Outsider] = [
            Writer(number, daemons, ledger, stop) for number in range(WRITERS)
        ]
        if len(roots) == 1:  # on a network, other programs have to leave a file alone
            writers.append(Outsider(roots[0], ledger, stop))
        for writer in writers:
            writer.start()
        try:
            looks = rampage(daemons, ledger, writers)
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        for writer in writers:
            if writer.failure is not None:
                raise writer.failure
        daemons.close()
        killed = time.monotonic()
        last = LastLook(daemons, roots[0], ledger)
        last.leftovers_go()
        uncertain = last.logs_are_right()
        last.files_are_right()
        assert not daemons.complaints, daemons.complaints[0]
    _report(ledger, looks, uncertain, last.leftovers, killed - began, time.monotonic() - killed)
    shutil.rmtree(roots[0])


def _report(
    ledger: Ledger, looks: int, uncertain: int, leftovers: int, killing: float, looking: float
) -> None:
    counts = ledger.counts
    total = {
        kind: sum(n for what, n in counts.items() if what.endswith(kind))
        for kind in (" answered", " missed", " unanswered")
    }
    appends = [w for name in LOGS for w in ledger.writes[name]]
    attempted = sum(not w.answered for w in appends)
    print(
        f"\n{KILLS} kills of serving daemons and {KILLS // 10} of starting ones in "
        f"{killing:.1f} s, {looks} looks in between, the last one {looking:.1f} s\n"
        f"{total[' answered'] + total[' missed']} operations answered "
        f"({total[' missed']} of them 404), {total[' unanswered']} not; "
        f"{ledger.bytes / 1e6:.0f} MB acknowledged\n"
        f"{sum(w.answered for w in appends)} records acknowledged, all there once and whole; "
        f"{attempted} not, of which {uncertain} are there; {leftovers} leftovers reclaimed\n"
        + ", ".join(f"{what}: {n}" for what, n in sorted(counts.items()))
    )
