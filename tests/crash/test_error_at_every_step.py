"""Each of the system calls of each operation fails, in each of the ways it can.

What has to hold: the operation fails with the status that fits and a problem document, the old
content is there, nothing new, and no temporary is left; or it succeeds all the same, and the new
content is there, whole. Either way the daemon goes on, and its next operations succeed.

Where an outcome is ambiguous by nature it is said in :data:`DONE_ALREADY`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.store import Storage
from tests.crash.sweep import (
    CHANGES,
    HEALTHY,
    LONG,
    LOOKS,
    OLD,
    VERBS,
    Call,
    Patient,
    Request,
    Verb,
    Ward,
    Wards,
    beside,
    build,
    exhaust,
    leftovers,
    let_twistd_be_traced,
    on_disk,
    seen,
    strace,
    telling,
)
from tests.harness import Client, Twistd, twistd
from tests.private import RECORDS, RUNS

pytestmark = pytest.mark.crash

#: What each error is to a client.
STATUS = {
    "EIO": 500,
    "ENOSPC": 507,
    "EDQUOT": 507,
    "EROFS": 403,
    "ESTALE": 503,
    "EMFILE": 503,
}
_ENTRIES = "EIO ENOSPC EDQUOT EROFS ESTALE"
#: In which ways a call can fail.
ERRORS = {
    "openat": "EIO ESTALE EMFILE",
    "openat2": "EIO ESTALE EMFILE",
    "O_CREAT": _ENTRIES + " EMFILE",
    "O_RDWR": "EIO EROFS ESTALE EMFILE",
    "write": "EIO ENOSPC EDQUOT ESTALE",
    "writev": "EIO ENOSPC EDQUOT ESTALE",
    "pwrite64": "EIO ENOSPC EDQUOT ESTALE",
    "pwritev": "EIO ENOSPC EDQUOT ESTALE",
    "pwritev2": "EIO ENOSPC EDQUOT ESTALE",
    "copy_file_range": "ENOSPC EDQUOT ESTALE",
    "ioctl": "EIO ENOSPC EINVAL",
    "ftruncate": "EIO ESTALE",
    "fsync": "EIO ENOSPC EDQUOT ESTALE",
    "renameat": _ENTRIES,
    "renameat2": _ENTRIES,
    "linkat": _ENTRIES,
    "unlinkat": "EIO EROFS ESTALE",
    "unlink": "EIO EROFS ESTALE",
    "mkdirat": _ENTRIES,
    "rmdir": "EIO EROFS ESTALE",
    "fsetxattr": _ENTRIES,
    "flock": "EIO ESTALE",
    "fstat": "EIO ESTALE",
    "newfstatat": "EIO ESTALE",
    "fgetxattr": "EIO ESTALE",
    "statx": "EIO ESTALE",
    "getdents64": "EIO ESTALE",
    "fstatfs": "EIO ESTALE",
    "pread64": "EIO ESTALE",
}
#: Calls that fail when what the client asked for is done already, or partly. The answer is an
#: error, as it is not known whether the change will outlast a power cut; the change is visible.
#: The sync of a folder follows the rename, link or unlink in it.
DONE_ALREADY = ("fsync",)
#: An operation that succeeds although a call of these failed: it was to tidy up, and what it left
#: is reclaimed by the next start; or it was to note what is appended to.
TIDYING = (
    "unlinkat",
    "rmdir",
    "openat",
    "newfstatat",
    "fstat",
    "statx",
    "getdents64",
    "renameat",
    "pwrite64",
)
#: Calls that fail for good rather than once, in the short form.
LASTING = "writev pwritev pwritev2 copy_file_range fsync ftruncate fsetxattr unlinkat renameat"


def steps_of(ward: Ward, name: str) -> list[Call]:
    """Let *name* run to its end, and return its calls but for those that tell us of it."""
    verb = VERBS[name]
    with (
        ward.root(verb) as root,
        ward.patient(root, verb) as patient,
        strace(patient.pid, f"{CHANGES},{LOOKS}", *verb.lacking) as made,
    ):
        assert patient.ask(f"verb {name}") == verb.status
    ours = [s for s in made if not (s.name == "write" and "/.httpnas/" not in s.text)]
    return telling([step for step in ours if step.name != verb.lacks])


def errors_of(step: Call) -> list[str]:
    flags = [flag for flag in ("O_CREAT", "O_RDWR") if flag in step.text]
    return ERRORS[flags[0] if flags else step.name].split()


def failed_at(ward: Ward, name: str, step: Call, error: str, lasts: bool) -> str:
    """Let *step* of *name* fail, and return what came of it."""
    verb = VERBS[name]
    with ward.root(verb) as root, ward.patient(root, verb) as patient:
        injections = [*verb.lacking, step.inject(f"error={error}", lasts)]
        with strace(patient.pid, f"{CHANGES},{LOOKS}", *injections) as made:
            patient.ask(f"verb {name}")
        failed = [c for c in made if c.name == step.name and "(INJECTED)" in c.text][-1]
        late = any(is_publishing(call) for call in made[: made.index(failed)])
        return judged(ward.from_afar(root), verb, name, patient, failed, error, late)


def is_publishing(call: Call) -> bool:
    """Tell whether *call* gives a name that clients see."""
    return call.name.startswith("rename") and call.text.count("/.httpnas/") < 2


def judged(
    root: Path,
    verb: Verb,
    name: str,
    patient: Patient,
    step: Call,
    error: str,
    late: bool,
) -> str:
    storage = Storage(str(root))
    try:
        outcome = verb.judge(seen(storage))
        tidying = step.name in TIDYING and f"/{RUNS}/" in step.text
        if patient.status == verb.status:
            assert tidying or is_passed_over(step, error, late), (
                "the failure of this call must not be passed over"
            )
            assert outcome == ("new" if verb.after != verb.before else "old")
            result = "succeeded"
        else:
            assert patient.status == STATUS[error]
            assert patient.problem()["status"] == STATUS[error]
            result = "refused"
            if outcome != "old":
                assert step.name in DONE_ALREADY
                assert os.path.isdir(path_of(step))
                result = "done already"
        # The set-aside tree of a removal that is not known to be durable waits for a start, too.
        if not tidying and outcome == "old":
            assert leftovers(root) == []
        goes_on(root, storage, verb, name, patient, outcome)
    finally:
        storage.close()
    return result


def is_passed_over(step: Call, error: str, late: bool) -> bool:
    """Tell whether an operation may succeed although *step* failed.

    What cannot be shared is copied. A record that does not fit is written with less. What is
    written down behind a rename, only so that the version keeps its tag, need not be. A record
    that is to go may stay. A lock that is not given back goes when its file is closed.

    :param late: whether the change was visible by then.
    """
    if step.name == "fsetxattr":
        is_behind_a_rename = path_of(step).endswith("/g")  # as all moves call it
        return is_behind_a_rename or error in ("ENOSPC", "EDQUOT", "EROFS")
    if step.name == "ioctl" or "LOCK_UN" in step.text:
        return True
    if f"/{RECORDS}" in step.text:
        return late or step.name == "unlinkat" or error in ("ENOSPC", "EDQUOT")
    return step.name in ("fstat", "newfstatat") and "AT_EMPTY_PATH" in step.text


def goes_on(
    root: Path, storage: Storage, verb: Verb, name: str, patient: Patient, outcome: str
) -> None:
    """See that the daemon works, and that a start reclaims what is left."""
    for index, (_, wanted) in enumerate(HEALTHY):
        assert patient.ask(f"healthy {index}") == wanted
    if outcome == "old":
        assert patient.ask(f"verb {name}") == verb.status
        assert verb.judge(seen(storage)) == ("new" if verb.after != verb.before else "old")
    if verb.crashed is None:
        assert on_disk(root) == seen(storage), "something lies behind what clients see"
    patient.end()
    found = seen(storage)
    exhaust(storage.reclaim_abandoned())
    assert leftovers(root) == []
    assert seen(storage) == found


def path_of(step: Call) -> str:
    return step.text.partition("<")[2].partition(">")[0]


def attempts(steps: list[Call]) -> Iterator[tuple[Call, str, bool]]:
    """Yield what to try: all of it in the long form, and each step in some way in the short."""
    for index, step in enumerate(steps):
        errors = errors_of(step)
        for error in errors if LONG else [errors[index % len(errors)]]:
            yield step, error, False
            if LONG or step.name in LASTING.split():
                yield step, error, True


def explained(call: Any, ward: Ward, name: str, *attempt: Any) -> str:
    """Say in a failure which call failed."""
    try:
        result: str = call(ward, name, *attempt)
    except AssertionError as error:
        raise AssertionError(f"{name}, {', '.join(map(str, attempt))}: {error}") from error
    return result


def report(name: str, steps: int, results: Counter[str], began: float) -> None:
    told = ", ".join(f"{what} {count}" for what, count in sorted(results.items()))
    seconds = time.monotonic() - began
    print(f"\n  {name}: {steps} steps, {results.total()} errors: {told}; {seconds:.1f} s", end="")


ALONE = [name for name, verb in VERBS.items() if not verb.together]


@pytest.mark.parametrize("name", ALONE)
def test_error_at_each_call(wards: Wards, name: str) -> None:
    began = time.monotonic()
    steps = wards.once(steps_of, name)
    columns = zip(*attempts(steps), strict=True)
    results = wards.map(lambda ward, *row: explained(failed_at, ward, name, *row), *columns)
    report(name, len(steps), Counter(results), began)
    assert "refused" in results


@pytest.mark.parametrize("name", ["append together", beside("append together")])
def test_error_at_each_call_of_appends_together(wards: Wards, name: str) -> None:
    """Each has an answer of its own, and what is there is what was answered with success."""
    began = time.monotonic()
    verb = VERBS[name]

    def work(ward: Ward, step: Call, error: str, lasts: bool) -> str:
        with ward.root(verb) as root, ward.patient(root, verb) as patient:
            with strace(patient.pid, f"{CHANGES},{LOOKS}", step.inject(f"error={error}", lasts)):
                patient.ask(f"verb {name}")
            answers = patient.statuses[1:]
            assert set(answers) <= {200, STATUS[error]}, f"{step}: {error}"
            made = list(zip(verb.together, answers, strict=True))
            added = b"".join(request.body for request, status in made if status == 200)
            missing = b"".join(request.body for request, status in made if status != 200)
            storage = Storage(str(ward.from_afar(root)))
            assert seen(storage).files["d/f"] == OLD + added, f"{step}: {error}, {answers}"
            for index, (_, wanted) in enumerate(HEALTHY):
                assert patient.ask(f"healthy {index}") == wanted
            patient.ask(f"verb {name}")
            assert patient.statuses[1:] == [200] * len(verb.together)
            assert seen(storage).files["d/f"] == OLD + added + missing, "each is made once"
            assert on_disk(root) == seen(storage)
            storage.close()
        return f"{answers.count(200)} of {len(answers)} made"

    steps = wards.once(steps_of, name)
    columns = zip(*attempts(steps), strict=True)
    results = wards.map(work, *columns)
    report(name, len(steps), Counter(results), began)
    assert len(set(results)) > 1


@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_error_at_each_close(wards: Wards, code: str) -> None:
    """A close that reports an error has given the descriptor back all the same.

    What was written is synced before, so that it tells nothing new: either answer will do, and
    after either of them there is old or new, whole, and no temporary.
    """

    def work(ward: Ward, name: str) -> None:
        began, results = time.monotonic(), Counter[str]()
        verb = VERBS[name]
        for number in range(1, 100):
            close = (number, getattr(errno, code))
            with ward.root(verb) as root, ward.patient(root, verb, close=close) as patient:
                status = patient.ask(f"verb {name}")
                if not patient.failed:
                    break
                storage = Storage(str(root))
                outcome = verb.judge(seen(storage))
                assert outcome in ("old", "new")
                assert status in (verb.status, STATUS[code]), f"{name}, close {number}"
                if status == 200:
                    assert outcome == "new", f"{name}, close {number}"
                if name != "delete a folder" or outcome == "old":
                    assert leftovers(root) == [], f"{name}, close {number}"
                goes_on(root, storage, verb, name, patient, outcome)
                storage.close()
                results[f"{status}, {outcome}"] += 1
        report(f"close, {code}: {name}", number - 1, results, began)

    names = [n for n in ALONE if LONG or not any(w in n for w in ("pieces", "crash", "beside"))]
    wards.map(work, names)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("replace", (1, 100, 4095)),
        ("append", (1, 100, 4095)),
        ("append after a crash", (1, 4999)),
        ("replace in pieces", (65_537, 1 << 20)),
        ("append large", (65_537, (1 << 20) + 1)),
        ("append large on a network in pieces", (65_537, 1 << 20)),
        ("append large on a network, no copy_file_range", (65_537, 1 << 20)),
    ],
)
def test_short_writes(wards: Wards, name: str, sizes: tuple[int, ...]) -> None:
    """A disk that takes less than it is given gets the rest afterwards."""

    def work(ward: Ward, size: int) -> None:
        verb = replace(VERBS[name], pieces=size)
        with ward.root(verb) as root, ward.patient(root, verb) as patient:
            with strace(patient.pid, "copy_file_range", *verb.lacking):
                assert patient.ask(f"verb {name}") == verb.status
            assert verb.judge(on_disk(root)) == "new"

    began = time.monotonic()
    wards.map(work, sizes)
    report(f"short writes: {name}", len(sizes), Counter(succeeded=len(sizes)), began)


_XATTRS = "fsetxattr,fgetxattr,fremovexattr"


@pytest.mark.parametrize(
    ("name", "lack"),
    [
        *(
            ("append large on a network in pieces", f"copy_file_range:error={code}:when={when}+")
            for code in ("ENOSYS", "EXDEV", "EINVAL", "EOPNOTSUPP")
            for when in (1, 2)
        ),
        *((name, f"{_XATTRS}:error=EOPNOTSUPP") for name in ("append", "append large", "replace")),
        *(
            ("create only", f"renameat2:error={code}")
            for code in ("ENOSYS", "EINVAL", "EPERM", "EOPNOTSUPP")
        ),
        ("move a folder", "renameat2:error=EINVAL"),
    ],
)
def test_what_a_file_system_lacks(wards: Wards, name: str, lack: str) -> None:
    """There is another way for what some file systems do not know."""

    def work(ward: Ward) -> None:
        verb = VERBS[name]
        with ward.root(verb) as root, ward.patient(root, verb, stopped=True) as patient:
            shutil.rmtree(root / ".httpnas")  # where records are has not been chosen yet
            with strace(patient.pid, f"{CHANGES},{LOOKS}", lack) as made:
                patient.ask("start")  # which may see what there is
                assert patient.ask(f"verb {name}") == verb.status
            assert any("(INJECTED)" in call.text for call in made)
            assert verb.judge(on_disk(root)) == "new"
            assert leftovers(root) == []

    wards.once(work)


def send(daemon: Twistd, request: Request) -> tuple[int, bytes]:
    with Client(daemon.port) as client:
        client.send(request.head + request.body)
        status, headers, body = client.answer()
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == status
        assert b"Traceback" not in body
    return status, body


def test_errors_in_a_whole_daemon(wards: Wards, monkeypatch: pytest.MonkeyPatch) -> None:
    """``twistd``, HTTP, threads and all: one daemon takes all errors, and is never restarted.

    Calls are numbered in threads, and which thread makes which call is not the same each time,
    so that some errors do not come about.
    """
    let_twistd_be_traced(monkeypatch)
    steps = {n: wards.once(steps_of, n) for n in ("replace", "append", "append large", "move")}

    def work(ward: Ward, name: str) -> None:
        began, results, verb = time.monotonic(), Counter[str](), VERBS[name]
        with ward.root(verb) as root, twistd(root) as daemon:
            storage = Storage(str(root))
            for step, error, lasts in list(attempts(steps[name]))[:: 1 if LONG else 3]:
                build(root, verb.before)
                kind = step.inject(f"error={error}", lasts)
                pid = daemon.process.pid
                with strace(pid, f"{CHANGES},{LOOKS}", kind, threads=True) as made:
                    status, _ = send(daemon, verb.request)
                outcome = verb.judge(seen(storage))
                if any("(INJECTED)" in call.text for call in made):
                    assert status in (STATUS[error], verb.status), str(step)
                    results[f"{status}, {outcome}"] += 1
                else:
                    results["no error"] += 1
                assert outcome == "new" or status != verb.status, str(step)
                for request, wanted in HEALTHY:
                    assert send(daemon, request)[0] == wanted, str(step)
            storage.close()
            assert daemon.process.poll() is None
        report(f"twistd: {name}", len(steps[name]), results, began)

    wards.map(work, steps)
