"""What other programs do to a file at each step of an operation, or when it was killed there.

What has to hold: what httpnas did not write is neither hidden nor cut; what was answered with
success is there, unless others have put something else in its place; a part of an append is not
taken for content; and the next operations succeed.

A process that gets SIGSTOP at a system call stops when that has been made. So the others find each
state between two calls, and, where the call fails, the state before that is cleaned up.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from httpnas.storage.store import Storage
from tests import outside
from tests.crash.sweep import (
    BODY,
    CHANGES,
    LONG,
    LOOKS,
    OLD,
    VERBS,
    Call,
    Patient,
    Verb,
    Ward,
    Wards,
    beside,
    exhaust,
    leftovers,
    on_disk,
    seen,
    strace,
)
from tests.crash.test_error_at_every_step import STATUS, errors_of
from tests.crash.test_error_at_every_step import steps_of as steps_that_fail
from tests.crash.test_kill_at_every_step import append, report, steps_of
from tests.outside import APPENDS, HEADS, REPLACES, TAR, changed

pytestmark = pytest.mark.crash

#: All that others do, but for what the machine has no program for.
ACTS = {
    name: act
    for name, act in {**outside.CHANGES, **HEADS, "tar": TAR}.items()
    if not name.startswith("rsync") or shutil.which("rsync")
}
#: Beside a large append others may not write in place, nor without its lock.
_BESIDE_LARGE = [*HEADS, *REPLACES]
_NAMES = (
    "append",
    "append with key",
    "append large in pieces",
    "append to a file of another owner",
    "replace",
    "move over a file",
    "delete",
    beside("append with key"),
    beside("append large in pieces"),
    beside("replace"),
    beside("move over a file"),
)
#: In the short form, one of so many pairs of a step and an act is tried.
_ONE_OF = 1 if LONG else 17


@dataclass
class Visit:
    """What others have done to the file of a verb.

    :ivar file: where they have found it.
    :ivar before: its content just before, and *after*, just after that.
    :ivar in_place: whether it is the same file still.
    :ivar is_torn: whether they have found a part of an append.
    """

    file: Path
    act: str
    before: bytes
    after: bytes
    in_place: bool
    is_torn: bool

    @property
    def undone(self) -> bytes:
        """What is left when an append that nobody has been promised is undone.

        Where others have touched its bytes, they stay.
        """
        return self.after[: len(OLD)] if self.act in HEADS else self.after


def visit(root: Path, verb: Verb, act: str) -> Visit | None:
    """Let others do *act* to what was ``d/f``, if it is there still."""
    file = next((root / name for name in ("d/f", "g") if (root / name).exists()), None)
    if file is None:
        return None
    before, inode = file.read_bytes(), file.stat().st_ino
    after = changed(file, ACTS[act])
    whole = (verb.before.files["d/f"], *verb.after.files.values())
    return Visit(file, act, before, after, file.stat().st_ino == inode, before not in whole)


def pairs(name: str, steps: list[Call]) -> list[tuple[Call, str]]:
    """Return what to try: each step with each act in the long form, some of them in the short.

    All are tried at the sync of the file, where all is written and nothing is settled.
    """
    acts = _BESIDE_LARGE if "large" in name else list(ACTS)
    every = [(step, act) for step in steps for act in acts]
    some = every[_NAMES.index(name) % _ONE_OF :: _ONE_OF]
    return some + [
        (step, act)
        for step, act in every
        if step.name == "fsync" and "/d/f>" in step.text and (step, act) not in some
    ]


def content_of(root: Path, file: Path) -> bytes | None:
    """Return what clients see of *file*, None when there is none."""
    with closing(Storage(str(root))) as storage:
        return seen(storage).files.get(str(file.relative_to(root)))


def goes_on(root: Path, file: Path, what: str, in_place: bool = True) -> None:
    """See that reclaiming changes nothing, and that an append comes behind what clients see.

    :param what: to say where it does not.
    :param in_place: whether it is still the file that the dead daemon was at work on. What that
        has staged is kept for another one, which may be somewhere.
    """
    name = str(file.relative_to(root))
    found = content_of(root, file)
    with closing(Storage(str(root))) as storage:
        exhaust(storage.reclaim_abandoned())
        assert not in_place or leftovers(root) == [], what
        assert seen(storage).files.get(name) == found, "reclaiming has changed what clients see"
        if found is not None:
            append(storage, name.encode(), b"+")
            assert on_disk(root).files[name] == seen(storage).files[name] == found + b"+"


def shown(content: bytes | None) -> str:
    if content is None or len(content) < 60:
        return repr(content)
    return f"{content[:20]!r}...{content[-40:]!r} of {len(content)}"


def compare(found: bytes | None, allowed: Collection[bytes | None], what: str) -> None:
    assert found in allowed, f"{what}: {shown(found)}, and not {[shown(one) for one in allowed]}"


def run(wards: Wards, name: str, steps: list[Call], work: Callable[..., str], what: str) -> None:
    began = time.monotonic()
    outcomes = Counter(wards.map(work, *zip(*pairs(name, steps), strict=True)))
    report(f"{name}, others {what}", len(steps), outcomes, began)
    assert outcomes["all is there"]


def killed(ward: Ward, root: Path, name: str, step: Call) -> int | None:
    """Kill *name* at *step*; return what it has answered."""
    with (
        ward.patient(root, VERBS[name]) as patient,
        strace(patient.pid, CHANGES, step.inject("signal=SIGKILL")),
    ):
        return patient.ask(f"verb {name}")


@pytest.mark.parametrize("name", _NAMES)
def test_what_others_make_of_what_a_kill_has_left_is_all_there(wards: Wards, name: str) -> None:
    verb = VERBS[name]

    def work(ward: Ward, step: Call, act: str) -> str:
        with ward.root(verb) as root:
            status = killed(ward, root, name, step)
            found = visit(root, verb, act)
            if found is None:
                return "nothing is there"
            if status == 200:
                assert found.before in verb.after.files.values(), f"lost at {step}"
            allowed = {found.undone if found.is_torn else found.after}
            if act == "tar":  # what is restored may be the file that crashed or another one
                allowed |= {found.after, found.after[: len(OLD)]}
            now = content_of(ward.from_afar(root), found.file)
            compare(now, allowed, f"{act} after {step}")
            if "Idempotency-Key" in verb.request.headers:
                with ward.patient(root, verb) as patient:
                    assert patient.ask(f"verb {name}") == 200
                again = content_of(ward.from_afar(root), found.file) or b""
                what = f"repeat, {act} after {step}"
                assert again.startswith(now or b"") and BODY in again, f"{what}: it is not stored"
                # A copy that others make does not have the key.
                assert again.count(BODY) == 1 or not found.in_place, f"{what}: it is stored twice"
            goes_on(root, found.file, f"{act} after {step}", found.in_place)
        return "a part was there" if found.is_torn else "all is there"

    run(wards, name, wards.once(steps_of, name), work, "after a kill")


@pytest.mark.parametrize("name", _NAMES)
def test_what_others_do_at_a_call_is_all_there(wards: Wards, name: str) -> None:
    verb = VERBS[name]

    def work(ward: Ward, step: Call, act: str) -> str:
        with ward.root(verb) as root, ward.patient(root, verb) as patient:
            found = stopped_at(patient, root, name, act, step.inject("signal=SIGSTOP"))
            what = f"{act} at {step}"
            if patient.status == 503 and found is not None and found.is_torn:
                # It takes several writes, and others have changed the end in between.
                left = content_of(ward.from_afar(root), found.file) or b""
                assert left.startswith(found.after), f"{what}: what others wrote is not there"
                assert left[len(found.after) :] in verb.request.body, what
                return "refused"
            assert patient.status == verb.status, what
            if found is None:
                return "nothing is there"
            file = root / "g" if verb.request.path != "/file/d/f" or "move" in name else found.file
            now = content_of(ward.from_afar(root), file)
            compare(now, made_by(name, found), what)
            if verb.request.headers.get("Idempotency-Key"):
                assert patient.ask(f"verb {name}") == 200
                again = content_of(ward.from_afar(root), file)
                may_be_gone = act not in HEADS and act not in APPENDS
                compare(again, [now] + [(now or b"") + BODY] * may_be_gone, f"repeat, {what}")
                # What is written in place in the middle of a write mixes with it.
                if act in HEADS or not found.is_torn:
                    assert again is not None and BODY in again, f"repeat, {what}: it is not stored"
            patient.end()
            goes_on(root, file, what, found.in_place)
        return "a part was there" if found.is_torn else "all is there"

    run(wards, name, wards.once(steps_of, name), work, "at a call")


def stopped_at(patient: Patient, root: Path, name: str, act: str, injection: str) -> Visit | None:
    """Let *name* stop as *injection* says, and others do *act* meanwhile."""
    visits: list[Visit | None] = []

    def meanwhile() -> None:
        visits.append(visit(root, VERBS[name], act))

    with strace(patient.pid, f"{CHANGES},{LOOKS}", injection, visit=meanwhile):
        patient.ask(f"verb {name}")
    return visits[0] if visits else None


def made_by(name: str, found: Visit) -> list[bytes | None]:
    """Return what there may be when *name* has succeeded."""
    after = found.after
    if "delete" in name:
        return [None]
    if "move" in name:
        return [after]
    if "replace" in name:
        return [after if found.before == BODY else BODY]
    body = VERBS[name].request.body
    if found.in_place:
        return [after + body[len(found.before) - len(OLD) :]]
    # An append to what was replaced meanwhile came before that, or it comes now.
    return [after, after + body]


@pytest.mark.parametrize("name", _NAMES)
def test_what_others_do_at_a_call_that_fails_is_all_there(wards: Wards, name: str) -> None:
    verb = VERBS[name]

    def work(ward: Ward, step: Call, act: str) -> str:
        error = errors_of(step)[0]
        with ward.root(verb) as root, ward.patient(root, verb) as patient:
            injection = step.inject(f"error={error}:signal=SIGSTOP")
            found = stopped_at(patient, root, name, act, injection)
            assert patient.status in (verb.status, STATUS[error]), f"{act} at {step}"
            if found is None:
                return "nothing is there"
            if patient.status == verb.status:
                file = root / "g" if "move" in name else found.file
                allowed = made_by(name, found)
            else:
                file = found.file
                allowed = [found.undone, found.after] if "replace" in name else [found.undone]
            what = f"{act} at {step}, {error}"
            compare(content_of(ward.from_afar(root), file), allowed, what)
            patient.end()
            goes_on(root, file, what, found.in_place)
        return "a part was there" if found.is_torn else "all is there"

    run(wards, name, wards.once(steps_that_fail, name), work, "at an error")


@pytest.mark.parametrize("name", ["append with key", beside("append with key")])
def test_a_repeat_after_a_kill_is_made_once(wards: Wards, name: str) -> None:
    """It is, before anybody has reclaimed what the kill has left and after that."""
    began, verb = time.monotonic(), VERBS[name]

    def work(ward: Ward, step: Call, is_reclaimed: bool) -> str:
        with ward.root(verb) as root:
            killed(ward, root, name, step)
            with ward.patient(root, verb) as patient:
                if is_reclaimed:
                    patient.ask("start")
                for _ in range(2):
                    assert patient.ask(f"verb {name}") == 200, f"killed at {step}"
                    assert on_disk(root) == verb.after, f"killed at {step}"
            goes_on(root, root / "d/f", f"killed at {step}")
        return "once"

    steps = wards.once(steps_of, name)
    rows = [(step, is_reclaimed) for step in steps for is_reclaimed in (False, True)]
    outcomes = Counter(wards.map(work, *zip(*rows, strict=True)))
    report(f"{name}, repeated after a kill", len(steps), outcomes, began)
