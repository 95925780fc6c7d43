"""What clients of two daemons see, while daemons are killed and stopped, has one explanation.

In every other window another program works beside them, on the folder itself: it appends, replaces
files, restores copies, and gives files away. Readers through httpnas see what it has appended at
the latest when the appends of that moment have ended.

HTTPNAS_HISTORIES in the environment is the number of seconds in which calls are made (15), and
HTTPNAS_HISTORIES_PATIENCE how many times as long as usual clients wait for an answer (1), for a
storage that is slow: a history with too many calls that nobody waited for can not be judged.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.descriptors import owned
from tests.crash.herd import Daemon, Herd, Unanswered, Wire, herd
from tests.crash.history import (
    Call,
    Content,
    TooHard,
    components,
    is_linearizable,
    shortest_bad,
    shown,
)
from tests.outside import give_away

pytestmark = pytest.mark.crash

SECONDS = float(os.environ.get("HTTPNAS_HISTORIES", "15"))
PATIENCE = float(os.environ.get("HTTPNAS_HISTORIES_PATIENCE", "1"))
CLIENTS = 8
#: Of so many histories, one may have more orders than can be looked at.
TOO_HARD = 50
#: Calls of each client in a window. Each window has names of its own, so that histories are short.
CALLS = 16
#: Files in folders that are moved and removed.
IN_FOLDERS = ("x/f", "x/g", "y/f", "y/g")
IN_FOLDER_KINDS = (
    ["read", "write", "append", "create", "move_folder", "remove_folder"],
    [5, 5, 5, 1, 3, 1],
)
NAMES = ("a", "log", "p", "q", *IN_FOLDERS)
_VALUE = re.compile(rb"<(\w+) (\d+) (\.*)>")


def value_bytes(value: str, length: int) -> bytes:
    return b"<%b %d %b>" % (value.encode(), length, b"." * length)


def content_of(body: bytes) -> Content:
    """Return the values in *body*; what is not a whole value is called a torn one."""
    values: list[str] = []
    at = 0
    while at < len(body):
        found = _VALUE.match(body, at)
        if not found or len(found[3]) != int(found[2]):
            return (*values, f"torn-at-{at}-of-{len(body)}")
        values.append(found[1].decode())
        at = found.end()
    return tuple(values)


@dataclass
class Window:
    """Some names and all calls that concern them.

    :ivar seen: tags and contents that somebody has seen last, by name.
    :ivar tags: what content each tag has been seen with.
    :ivar is_shared: whether other programs work on it too. All values are small then: what a kill
        leaves of a larger one stays when others append behind it.
    """

    number: int
    calls: list[Call] = field(default_factory=list)
    seen: dict[str, tuple[str, Content]] = field(default_factory=dict)
    tags: dict[tuple[str, str], Content] = field(default_factory=dict)
    clashes: list[str] = field(default_factory=list)

    @property
    def is_shared(self) -> bool:
        return self.number % 2 == 0

    def name(self, short: str) -> str:
        return f"window-{self.number}/{short}"

    def note(self, name: str, tag: str, content: Content) -> None:
        self.seen[name] = tag, content
        if self.tags.setdefault((name, tag), content) != content:
            self.clashes.append(f"{name}: {tag} is {content} and {self.tags[name, tag]}")


class Client(threading.Thread):
    """Makes calls, one after the other, and writes down what it sees."""

    def __init__(
        self, number: int, daemons: Herd, windows: list[Window], gate: threading.Barrier
    ) -> None:
        super().__init__(name=f"client-{number}")
        self._number = number
        self._daemons = daemons
        self._windows = windows
        self._gate = gate
        self._rng = random.Random(1000 + number)
        self._serial = 0
        self._choose_daemon()
        self.failure: BaseException | None = None

    def _choose_daemon(self) -> None:
        port = self._rng.choice(self._daemons.serving).port
        self._wire = Wire(port, PATIENCE * self._rng.uniform(0.4, 1.5))

    def run(self) -> None:
        try:
            while True:
                self._gate.wait()
                self._window = self._windows[-1]
                for _ in range(CALLS):
                    self._call()
                self._gate.wait()
                self._read_all()
                self._gate.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self.failure = error
            self._gate.abort()
        finally:
            self._wire.close()

    def _call(self) -> None:
        if self._rng.random() < 0.1:
            self._wire.close()
            self._choose_daemon()
        short = self._rng.choice([*["a", "a", "log", "log", "p", "q"] * 2, *IN_FOLDERS])
        kinds = {
            "a": (["read", "write", "create", "swap", "append", "remove"], [5, 2, 3, 5, 4, 2]),
            "log": (["read", "append", "create", "at", "keyed"], [4, 8, 3, 2, 4]),
        }.get(short, (["read", "write", "create", "move", "append", "swap"], [5, 4, 2, 5, 3, 2]))
        if short in IN_FOLDERS:
            kinds = IN_FOLDER_KINDS
        kind = self._rng.choices(*kinds)[0]
        getattr(self, f"_{kind}")(short)

    def _value(self) -> tuple[str, int]:
        self._serial += 1
        draw = self._rng.random()
        most = 200 if draw < 0.85 or self._window.is_shared else 100_000
        is_large = draw >= 0.93 and not self._window.is_shared
        length = self._rng.randrange(1 << 20, 5 << 18) if is_large else self._rng.randrange(most)
        return f"c{self._number}v{self._serial}", length

    def _read_all(self) -> None:
        """Have the last word on every name."""
        for short in [NAMES[self._number], *NAMES[self._number + CLIENTS :]]:
            for _ in range(3):
                if self._read(short):
                    break

    # Calls: what is sent, and what it means

    def _read(self, short: str) -> bool:
        return self._record("GET", "read", short)

    def _write(self, short: str, **more: Any) -> bool:
        return self._with_value("POST", "write", short, **more)

    def _create(self, short: str) -> bool:
        return self._write(short, fields={"If_None_Match": "*"}, create=True)

    def _swap(self, short: str) -> bool:
        """Change a file only if it is still what somebody saw last."""
        tag, content = self._window.seen.get(self._window.name(short), ("", ()))
        if not tag:
            return self._read(short)
        condition: dict[str, Any] = {"fields": {"If_Match": tag}, "expects": content}
        draw = self._rng.random()
        if draw < 0.6:
            return self._write(short, **condition)
        if draw < 0.9:
            return self._append(short, **condition)
        return self._record("DELETE", "delete", short, **condition)

    def _append(self, short: str, **more: Any) -> bool:
        return self._with_value("PUT", "append", short, **more)

    def _at(self, short: str) -> bool:
        """Append only where somebody has seen the end last."""
        name = self._window.name(short)
        ends = [c.seen for c in self._window.calls[-20:] if c.name == name and c.kind == "append"]
        offset = max((end for end in ends if isinstance(end, int)), default=0)
        return self._append(short, fields={"Upload_Offset": str(offset)}, offset=offset)

    def _keyed(self, short: str) -> bool:
        """Append under a key, through any daemon, until there is an answer: it is one call."""
        key = f'"{self._number}-{self._serial}-{self._window.number}"'
        return self._append(short, fields={"Idempotency_Key": key}, tries=4)

    def _remove(self, short: str) -> bool:
        return self._record("DELETE", "delete", short)

    def _move_folder(self, short: str) -> bool:
        folder = short[0]
        other = self._window.name("y" if folder == "x" else "x")
        document = f'{{"path": "{other}"}}'.encode()
        fields = {"Content_Type": "application/json"}
        return self._record("PUT", "move folder", folder, document, fields=fields, target=other)

    def _remove_folder(self, short: str) -> bool:
        return self._record("DELETE", "delete folder", short[0])

    def _move(self, short: str) -> bool:
        other = self._window.name("q" if short == "p" else "p")
        create = self._rng.random() < 0.3
        fields = {"Content_Type": "application/json"}
        if create:
            fields["If_None_Match"] = "*"
        document = f'{{"path": "{other}"}}'.encode()
        return self._record(
            "PUT", "move", short, document, fields=fields, target=other, create=create
        )

    def _with_value(self, method: str, kind: str, short: str, **more: Any) -> bool:
        value, length = self._value()
        body = value_bytes(value, length)
        return self._record(method, kind, short, body, value=value, length=len(body), **more)

    def _record(
        self,
        method: str,
        kind: str,
        short: str,
        body: bytes = b"",
        fields: dict[str, str] | None = None,
        tries: int = 1,
        **more: Any,
    ) -> bool:
        """Make the call and write it down; tell whether it was answered."""
        name = self._window.name(short)
        pieces = self._rng.choice([None, 1, 4]) if body and "move" not in kind else None
        status: int | None = None
        headers: dict[str, str] = {}
        content = b""
        start = time.monotonic()
        for attempt in range(tries):
            try:
                status, headers, content = self._wire.ask(
                    method, f"/file/{name}", body, pieces, **(fields or {})
                )
                if attempt and status != 200:
                    status = None  # this one was refused; an earlier one may still be done
                break
            except Unanswered:
                self._wire.close()
                self._choose_daemon()
        end = inf if status is None else time.monotonic()
        assert status in (200, 404, 409, 412, None), f"{kind} {name}: {status} {content!r}"
        seen: Content | int | None = None
        if kind == "read" and status == 200:
            seen = content_of(content)
            self._window.note(name, headers["etag"], seen)
        elif kind == "append" and status in (200, 409):
            seen = int(headers["upload-offset"])
        elif kind == "write" and status == 200:
            self._window.note(name, headers["etag"], (more["value"],))
        call = Call(kind, name, start, end, status, seen, client=self._number, **more)
        self._window.calls.append(call)
        return status is not None


class Outsider(threading.Thread):
    """Another program, which knows nothing of httpnas, and works on the folder *root*."""

    def __init__(self, root: Path, windows: list[Window], gate: threading.Barrier) -> None:
        super().__init__(name="outsider")
        self._root = root
        self._windows = windows
        self._gate = gate
        self._rng = random.Random(17)
        self._serial = 0
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self._gate.wait()
                done = self._work(self._windows[-1]) if self._windows[-1].is_shared else []
                self._gate.wait()
                end = time.monotonic()
                self._windows[-1].calls += [
                    replace(call, end=end) if call.kind == "append" else call for call in done
                ]
                self._gate.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self.failure = error
            self._gate.abort()

    def _work(self, window: Window) -> list[Call]:
        done = []
        for _ in range(CALLS):
            time.sleep(self._rng.uniform(0, 0.01))
            short = self._rng.choice(["a", "log"])
            kinds: list[Callable[[Path], dict[str, Any] | None]] = [self._append, self._append]
            kinds += [self._give_away] if short == "log" else [self._replace, self._restore]
            start, kind = time.monotonic(), self._rng.choice(kinds)
            with contextlib.suppress(FileNotFoundError):
                told = kind(self._root / window.name(short))
                self.counts[kind.__name__[1:]] += 1
                if told:
                    call = Call(name=window.name(short), start=start, status=200, **told)
                    done.append(replace(call, end=time.monotonic(), client=-1))
        return done

    def _value(self) -> tuple[bytes, dict[str, Any]]:
        self._serial += 1
        body = value_bytes(f"o{self._serial}", self._rng.randrange(100))
        return body, {"value": f"o{self._serial}", "length": len(body)}

    def _append(self, file: Path) -> dict[str, Any]:
        body, told = self._value()
        with owned(os.open(file, os.O_WRONLY | os.O_APPEND)) as fd:
            assert os.write(fd, body) == len(body)
        return {"kind": "append", **told}

    def _replace(self, file: Path) -> dict[str, Any]:
        body, told = self._value()
        made = file.with_name("made-by-others")
        made.write_bytes(body)
        made.rename(file)
        return {"kind": "write", **told}

    def _restore(self, file: Path) -> dict[str, Any] | None:
        """Put back a copy, with all that the daemon has written down about the file.

        Something is appended to it, because the same content has another tag then.
        """
        body, told = self._value()
        copy = file.with_name("copied-by-others")
        if subprocess.run(["cp", "-a", file, copy], check=False, capture_output=True).returncode:
            return None
        content = content_of(copy.read_bytes())
        if content and content[-1].startswith("torn"):
            return None
        with copy.open("ab") as opened:
            opened.write(body)
        copy.rename(file)
        return {"kind": "write", **told, "restored": (*content, told["value"])}

    def _give_away(self, file: Path) -> None:
        give_away(file)


def trouble(daemons: Herd, rng: random.Random, over: threading.Event, counts: Counter[str]) -> None:
    """Kill and stop daemons until it is over."""
    while not over.wait(rng.uniform(0.01, 0.12)):
        victim: Daemon = rng.choice(daemons.serving)
        draw = rng.random()
        if draw < 0.6:
            victim.send(signal.SIGSTOP)
            counts["stops"] += 1
            time.sleep(rng.uniform(0.02, 0.2) if draw < 0.57 else rng.uniform(1, 1.6))
        if 0.15 < draw < 0.6:
            victim.send(signal.SIGCONT)
        else:
            daemons.replace(victim)
            counts["kills"] += 1


def record(daemons: Herd, seconds: float, shared: Path | None) -> tuple[list[Window], Counter[str]]:
    """Let clients make calls for some time; return what they saw, and what befell the daemons.

    :param shared: the folder, if other programs may work on it as well.
    """
    windows: list[Window] = []
    gate = threading.Barrier(CLIENTS + (1 if shared is None else 2))
    clients: list[Client | Outsider] = [
        Client(number, daemons, windows, gate) for number in range(CLIENTS)
    ]
    if shared is not None:
        clients.append(Outsider(shared, windows, gate))
    counts: Counter[str] = Counter()
    over = threading.Event()
    failures: list[BaseException] = []

    def make_trouble() -> None:
        try:
            trouble(daemons, random.Random(5), over, counts)
        except BaseException as error:
            failures.append(error)

    troublemaker = threading.Thread(target=make_trouble)
    troublemaker.start()
    for client in clients:
        client.start()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not failures:
            windows.append(Window(len(windows)))
            for _ in range(3):  # begin, read all, end
                gate.wait()
    except threading.BrokenBarrierError:
        pass
    finally:
        over.set()
        gate.abort()
        troublemaker.join()
        for client in clients:
            client.join()
    for failure in [*failures, *(c.failure for c in clients if c.failure)]:
        raise failure
    return windows, counts + clients[-1].counts if isinstance(clients[-1], Outsider) else counts


def promised(part: Sequence[Call]) -> list[Call]:
    """Return *part* without what is not promised (docs/promises.md).

    Other programs, and a kill in an append or just when a file got its name, may change the entity
    tag of what is the same. And what others put in the place of a file in the moment in which it is
    replaced, or removed, was not there when the condition was checked. An append at an offset stays
    behind what others have appended meanwhile if there is more of theirs behind it, or its daemon
    was killed.
    """
    outside = [call for call in part if call.client < 0]
    tags_change = bool(outside) or any(
        call.status is None and call.kind in ("write", "append", "move", "move folder")
        for call in part
    )
    kept = []
    for call in part:
        if call.expects is not None:
            if call.status == 412 and tags_change:
                continue
            if any(_meet(call, other) for other in outside):
                kept.append(replace(call, expects=None))
                continue
        beside = sum(_meet(call, other) for other in outside if other.kind == "append")
        if call.offset is not None and beside > (call.status is not None) and call.status != 409:
            kept.append(replace(call, offset=None))
            continue
        kept.append(call)
    return kept


def _meet(call: Call, other: Call) -> bool:
    return other.start < call.end and call.start < other.end and call.name in other.names


@pytest.mark.parametrize("records", ["xattr", "beside"])
def test_what_clients_see_has_one_explanation(
    roots: list[Path], tmp_path: Path, records: str
) -> None:
    began = time.monotonic()
    chance = random.Random(11)
    with herd(roots, tmp_path / "logs", chance, full=0.5, records=records) as daemons:
        # On a network file system, other programs have to leave files alone.
        shared = roots[0] if len(roots) == 1 else None
        windows, counts = record(daemons, SECONDS, shared)
        daemons.close()
    recorded = time.monotonic()
    calls = [call for window in windows for call in window.calls]
    parts = [promised(part) for part in components(calls)]
    too_hard = 0
    for number, part in enumerate(parts):
        try:
            is_explained = is_linearizable(part)
        except TooHard:
            too_hard += 1
            continue
        if not is_explained:
            pytest.fail(
                f"part {number} of {len(parts)}, {min(c.start for c in part) - began:.1f} s from "
                f"the start, has no explanation. A piece of it:\n{shown(shortest_bad(part))}\n"
                f"All of it:\n{shown(sorted(part, key=lambda call: call.start))}"
            )
    assert too_hard <= len(parts) // TOO_HARD, f"{too_hard} of {len(parts)} were too hard to judge"
    clashes = [clash for window in windows for clash in window.clashes]
    assert not clashes
    assert not daemons.complaints, daemons.complaints[0]
    answers = Counter(str(call.status) for call in calls)
    kinds = Counter(call.kind for call in calls)
    print(
        f"\n{len(calls)} calls of {CLIENTS} clients in {recorded - began:.1f} s, "
        f"{answers['None']} without an answer; "
        f"{', '.join(f'{n} {what}' for what, n in counts.items())}; records: {records}\n"
        f"{len(parts)} histories, the longest of {max(map(len, parts))} calls, "
        f"checked in {time.monotonic() - recorded:.1f} s; {too_hard} were too hard\n"
        + ", ".join(f"{what}: {n}" for what, n in sorted((answers + kinds).items()))
    )
    shutil.rmtree(roots[0])
