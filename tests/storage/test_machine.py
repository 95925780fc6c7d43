"""Two storages on one root against a model: a dict of names, in which a folder is ``None``."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from httpnas.storage.errors import (
    IntoItself,
    IsFolder,
    NameTaken,
    NoSuchFile,
    NotAFolder,
    WrongOffset,
)
from httpnas.storage.facts import Facts
from httpnas.storage.listing import Folder
from httpnas.storage.store import Storage, StoredFile
from httpnas.storage.version import Check, Version
from tests.harness import wait_until
from tests.lock_files import SpareLockFiles
from tests.storage.steps import (
    Refused,
    anything,
    content_of,
    leftovers,
    names,
    only,
    opened,
    outcome,
    read,
    upload,
)

#: HTTPNAS_EXAMPLES in the environment says how many runs of steps are tried.
EXAMPLES = int(os.environ.get("HTTPNAS_EXAMPLES", "60"))
#: Bytes of an append that are kept in memory here.
IN_MEMORY = 64
#: Few and short, so that they meet often.
NAMES = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(b"/".join)
SMALL = st.sampled_from([b"", b"1", b"2\n", b"\n\n\n"])
CONTENTS = st.one_of(SMALL, st.sampled_from([b"x" * IN_MEMORY, b"\ny" * (IN_MEMORY // 2 + 1)]))
KEYS = st.sampled_from([None, None, b"key", b"other key"])
#: Which of the storages a step is taken by.
ON = st.sampled_from([0, 1])
CONDITIONS = st.sampled_from(["any", "any", "any", "present", "stale"])

Outcome = type[Exception] | None


def append(
    storage: Storage,
    name: bytes,
    content: bytes,
    check: Check,
    expected: int | None,
    key: bytes | None,
) -> Version:
    begun = storage.begin_append(name, check, expected=expected, key=key)
    if isinstance(begun, Version):
        return begun
    try:
        begun.write([content])
        return begun.commit()
    finally:
        begun.close()


def parents(name: bytes) -> list[bytes]:
    """Return the folders on the way to *name*, the highest first."""
    parts = name.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


class Model:
    """What names there must be, with the content of each file."""

    def __init__(self) -> None:
        self.tree: dict[bytes, bytes | None] = {}

    def is_file(self, name: bytes) -> bool:
        return self.tree.get(name) is not None

    def is_folder(self, name: bytes) -> bool:
        return name in self.tree and self.tree[name] is None

    def blocked(self, name: bytes) -> bool:
        """Tell whether a file stands on the way to *name*."""
        return any(self.is_file(parent) for parent in parents(name))

    def below(self, name: bytes) -> list[bytes]:
        return [other for other in self.tree if other.startswith(name + b"/")]

    def put(self, name: bytes, content: bytes | None) -> None:
        for parent in parents(name):
            self.tree[parent] = None
        self.tree[name] = content

    def children(self, name: bytes) -> list[bytes]:
        prefix = name + b"/" if name else b""
        rests = [other[len(prefix) :] for other in self.tree if other.startswith(prefix)]
        return sorted(rest for rest in rests if b"/" not in rest)


def small_storage(path: str) -> Storage:
    """Return a storage that stages in files what is not very small."""
    storage = Storage(path, durable=False)
    storage.in_memory = IN_MEMORY
    return storage


class StorageMachine(RuleBasedStateMachine):
    """Two storages on a new folder.

    :param roots: where to make it, as each of the hosts that have it sees that.
    :param spare: has lock files for it.
    """

    def __init__(self, roots: Sequence[Path], spare: SpareLockFiles) -> None:
        super().__init__()
        name = uuid.uuid4().hex
        self.root = roots[0] / name
        self.root.mkdir()
        self.lent = contextlib.ExitStack()
        self.lent.enter_context(spare.lent(self.root))
        self.model = Model()
        self.tags: dict[bytes, str] = {}
        self.every_tag: set[str] = set()
        #: The outcomes of the appends with a key that each file has taken.
        self.taken: dict[bytes, dict[bytes, Version]] = {}
        #: The files whose lines somebody has counted.
        self.counted: set[bytes] = set()
        #: What each storage has set aside.
        self.aside: list[list[bytes]] = [[], []]
        #: The folder, as each of the storages sees it.
        self.seen_at = [str(roots[on % len(roots)] / name) for on in range(len(self.aside))]
        self.storages = [small_storage(path) for path in self.seen_at]

    def teardown(self) -> None:
        for storage in self.storages:
            storage.close()
        self.lent.close()
        shutil.rmtree(self.root)

    def pick(self, data: st.DataObject) -> bytes:
        """Draw a name: mostly of a file, else any."""
        files = sorted(self.tags)
        present = st.sampled_from(files) if files else NAMES
        return data.draw(st.one_of(present, present, NAMES), label="name")

    def check(self, condition: str, name: bytes) -> Check:
        """Return the check of *condition* for the present version of *name*."""
        if condition == "any":
            return anything
        return only(self.tags.get(name, "none") if condition == "present" else "stale")

    def refused(self, condition: str, name: bytes) -> bool:
        return condition == "stale" or (condition == "present" and not self.model.is_file(name))

    def expect(self, wanted: Outcome, call: Callable[[], Any]) -> Any:
        result = outcome(call)
        got = type(result) if isinstance(result, Exception) else None
        assert got is wanted, f"{result!r} instead of {wanted}"
        return result

    def changed(self, name: bytes, result: Version, content: bytes) -> None:
        """Note that *name* has a new content, under a tag that no content had before."""
        self.model.put(name, content)
        assert result.size == len(content)
        assert result.tag not in self.every_tag
        self.every_tag.add(result.tag)
        self.tags[name] = result.tag

    def forget(self, name: bytes) -> None:
        """Note that the file *name* is not there any more."""
        self.tags.pop(name, None)
        self.taken.pop(name, None)
        self.counted.discard(name)

    @initialize(wanted=st.lists(NAMES, min_size=2, max_size=4))
    def begin(self, wanted: list[bytes]) -> None:
        for name in wanted:
            self.upload(0, name, b"begun\n", "any", create_only=False)

    @rule(on=ON, name=NAMES, content=SMALL, condition=CONDITIONS, create_only=st.booleans())
    def upload(
        self, on: int, name: bytes, content: bytes, condition: str, create_only: bool
    ) -> None:
        wanted: Outcome = None
        if self.model.blocked(name):
            wanted = NotAFolder
        elif self.model.is_folder(name):
            wanted = IsFolder
        elif self.refused(condition, name):
            wanted = Refused
        elif create_only and self.model.is_file(name):
            wanted = NameTaken
        check = self.check(condition, name)
        result = self.expect(
            wanted, lambda: upload(self.storages[on], name, content, check, create_only)
        )
        if wanted is None:
            self.forget(name)
            self.changed(name, result, content)
            self.counted.add(name)

    @rule(
        on=ON,
        data=st.data(),
        content=CONTENTS,
        condition=CONDITIONS,
        off=st.sampled_from([None, None, 0, 1]),
        key=KEYS,
    )
    def append(
        self,
        on: int,
        data: st.DataObject,
        content: bytes,
        condition: str,
        off: int | None,
        key: bytes | None,
    ) -> None:
        name = self.pick(data)
        old = self.model.tree.get(name)
        expected = None if off is None else len(old or b"") + off
        check = self.check(condition, name)
        done = self.taken.get(name, {}).get(key or b"")
        if done is not None:
            again = append(self.storages[on], name, content, check, expected, key)
            assert (again.size, again.tag) == (done.size, done.tag)
            return
        wanted: Outcome = None
        if name not in self.model.tree:
            wanted = NoSuchFile
        elif old is None:
            wanted = IsFolder
        elif self.refused(condition, name):
            wanted = Refused
        elif off:
            wanted = WrongOffset
        result = self.expect(
            wanted, lambda: append(self.storages[on], name, content, check, expected, key)
        )
        if wanted is WrongOffset:
            assert result.actual == len(old or b"")
        elif wanted is None and (content or key):
            self.changed(name, result, (old or b"") + content)
            if key:
                self.taken.setdefault(name, {})[key] = result

    @precondition(lambda self: self.taken)
    @rule(on=ON, data=st.data(), content=CONTENTS)
    def repeat(self, on: int, data: st.DataObject, content: bytes) -> None:
        """An append comes again, with conditions that held before the first."""
        name = data.draw(st.sampled_from(sorted(self.taken)), label="name")
        key = data.draw(st.sampled_from(sorted(self.taken[name])), label="key")
        done = self.taken[name][key]
        again = append(self.storages[on], name, content, only("stale"), 1 << 40, key)
        assert (again.size, again.tag) == (done.size, done.tag)

    @rule(data=st.data())
    def others_append(self, data: st.DataObject) -> None:
        """Somebody writes to a file without the daemon; its lines are not known any more."""
        name = self.pick(data)
        old = self.model.tree.get(name)
        if old is None:
            return
        with (self.root / name.decode()).open("ab") as file:
            file.write(b"others\n")
        self.model.put(name, old + b"others\n")
        self.tags[name] = self._tag(0, name)
        self.counted.discard(name)

    @rule(on=ON, data=st.data(), late=st.booleans())
    def count(self, on: int, data: st.DataObject, late: bool) -> None:
        """Somebody has counted the lines of a file, which may have changed meanwhile."""
        name = self.pick(data)
        content = self.model.tree.get(name)
        if content is None:
            return
        file = opened(self.storages[on], name)
        file.close()
        if late:
            result = append(self.storages[1 - on], name, b"late\n", anything, None, None)
            self.changed(name, result, content + b"late\n")
        self.storages[on].remember(name, file.version, Facts(content.count(b"\n")))
        if self.tags[name] == file.version.tag:
            self.counted.add(name)

    @rule(on=ON, data=st.data(), new_name=NAMES, condition=CONDITIONS, create_only=st.booleans())
    def move(
        self, on: int, data: st.DataObject, new_name: bytes, condition: str, create_only: bool
    ) -> None:
        model, name = self.model, self.pick(data)
        if model.is_folder(name):
            condition = "any"  # what version a folder has is no promise
        wanted = self._refusal_of_move(name, new_name, condition, create_only)
        check = self.check(condition, name)
        self.expect(wanted, lambda: self.storages[on].move(name, new_name, check, create_only))
        if wanted is None:
            for parent in parents(new_name):
                model.tree[parent] = None
        if wanted is None and name != new_name:
            for old in [*model.below(name), name]:
                moved = new_name + old[len(name) :]
                model.put(moved, model.tree.pop(old))
                if old in self.tags:
                    taken, counted = self.taken.get(old), old in self.counted
                    self.forget(moved)
                    self.tags[moved] = self.tags[old]
                    self.forget(old)
                    if taken is not None:
                        self.taken[moved] = taken
                    if counted:
                        self.counted.add(moved)

    def _refusal_of_move(
        self, name: bytes, new_name: bytes, condition: str, create_only: bool
    ) -> Outcome:
        model = self.model
        if name not in model.tree:
            return NoSuchFile
        if self.refused(condition, name):
            return Refused
        if new_name.startswith(name + b"/"):
            return IntoItself
        if model.blocked(new_name):
            return NotAFolder
        onto_file = model.is_file(new_name) and (create_only or model.is_folder(name))
        return NameTaken if model.is_folder(new_name) or onto_file else None

    @rule(on=ON, data=st.data(), condition=CONDITIONS, reclaim=st.booleans())
    def remove(self, on: int, data: st.DataObject, condition: str, reclaim: bool) -> None:
        model, name = self.model, self.pick(data)
        if model.is_folder(name):
            condition = "any"
        wanted: Outcome = None
        if name not in model.tree:
            wanted = NoSuchFile
        elif self.refused(condition, name):
            wanted = Refused
        check = self.check(condition, name)
        aside = self.expect(wanted, lambda: self.storages[on].remove(name, check))
        if wanted is not None:
            return
        assert (aside is not None) == model.is_folder(name)
        for gone in [*model.below(name), name]:
            del model.tree[gone]
            self.forget(gone)
        if aside is not None:
            self.aside[on].append(aside)
            if reclaim:
                self.reclaim()

    @precondition(lambda self: any(self.aside))
    @rule()
    def reclaim(self) -> None:
        for storage, set_aside in zip(self.storages, self.aside, strict=True):
            for aside in set_aside:
                for _ in storage.reclaim(aside):
                    pass
            set_aside.clear()
        assert leftovers(self.root) == []

    @rule(on=ON, name=NAMES, content=SMALL)
    def give_up_an_upload_and_an_append(self, on: int, name: bytes, content: bytes) -> None:
        begins: list[Callable[[bytes, Check], object]]
        begins = [self.storages[on].begin_upload, self.storages[on].begin_append]
        for begin in begins:
            begun = outcome(partial(begin, name, anything))
            if not isinstance(begun, Exception):
                begun.write([content])
                begun.close()

    @rule(on=ON, data=st.data(), cached=st.booleans())
    def read(self, on: int, data: st.DataObject, cached: bool) -> None:
        name, storage = self.pick(data), self.storages[on]
        file = outcome(lambda: storage.open(name))
        if cached and (from_cache := outcome(lambda: storage.open_cached(name))) is not None:
            assert type(from_cache) is type(file)
            if not isinstance(file, Exception):
                file.close()
            file = from_cache
        if self.model.is_file(name):
            assert isinstance(file, StoredFile)
            assert content_of(file) == self.model.tree[name]
            assert file.version.tag == self.tags[name]
            content = self.model.tree[name] or b""
            lines = content.count(b"\n") if name in self.counted else None
            assert storage.recall(file) == Facts(lines)
        elif self.model.is_folder(name):
            assert isinstance(file, Folder)
        else:
            assert type(file) is NoSuchFile
            return
        file.close()

    @rule(on=ON, name=NAMES)
    def look(self, on: int, name: bytes) -> None:
        wanted: Outcome = None
        if self.model.blocked(name):
            wanted = NotAFolder
        elif self.model.is_folder(name):
            wanted = IsFolder
        version = self.expect(wanted, lambda: self.storages[on].version_of(name))
        if wanted is None:
            assert (version and version.tag) == self.tags.get(name)

    @rule(on=ON, by=ON)
    def restart(self, on: int, by: int) -> None:
        """One storage ends and begins anew; either frees what it has left."""
        self.storages[on].close()
        self.storages[on] = small_storage(self.seen_at[on])
        self.aside[on].clear()

        def is_reclaimed() -> bool:
            for _ in self.storages[by].reclaim_abandoned():
                pass
            return len(leftovers(self.root)) == len(self.aside[1 - on])

        # Other hosts may hear a little later that a lock was given back.
        wait_until(is_reclaimed, "what was left to be reclaimed")

    @invariant()
    def the_tree_is_that_of_the_model(self) -> None:
        found: dict[bytes, bytes | None] = {}
        pending = [b""]
        while pending:
            folder = pending.pop()
            inside = names(self.storages[0], folder)
            assert inside == self.model.children(folder)
            for leaf in inside:
                name = folder + b"/" + leaf if folder else leaf
                path = self.root / name.decode()
                found[name] = None if path.is_dir() else read(self.storages[1], name)
                if found[name] is None:
                    pending.append(name)
                else:
                    assert self._tag(0, name) == self._tag(1, name) == self.tags[name]
        assert found == self.model.tree

    def _tag(self, on: int, name: bytes) -> str:
        file = opened(self.storages[on], name)
        file.close()
        return file.version.tag

    @invariant()
    def nothing_is_left_over_but_what_was_set_aside(self) -> None:
        assert len(leftovers(self.root)) == sum(map(len, self.aside))


@pytest.fixture
def roots(root: Path) -> list[Path]:
    """A folder to store in, as each of the hosts that have it sees it: here is but one."""
    return [root]


def test_two_storages_do_as_the_model_does(roots: list[Path]) -> None:
    (roots[0] / "spare").mkdir()
    spare = SpareLockFiles(roots[0] / "spare")
    run_state_machine_as_test(
        lambda: StorageMachine(roots, spare),  # type: ignore[arg-type]  # it may be a function
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
