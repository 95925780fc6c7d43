"""A writer for power cuts: changes a storage as the daemon does, and tells what it was promised.

It prints one line before each operation and one after it returned. Whoever reads them knows what
was acknowledged and what was in flight. Each thread changes names of its own, and all of them
append to one log. Run it as ``python -m tests.crash.power_writer``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.errors import NameTaken
from httpnas.storage.store import Storage
from httpnas.storage.upload import Upload
from httpnas.storage.version import Find

#: The file all threads append to.
LOG = "log"
#: What can be left out, to see that a power cut shows it.
FAULTS = ("folder", "file", "parents", "last")

_SLAB = 1 << 20
_CHUNK = 64 << 10
#: Files of a thread at which it only removes.
_MOST = 24

#: What is in which file: the tags of the pieces it is made of.
Files = dict[str, tuple[str, ...]]
Operation = list[Any]


def piece(tag: str, size: int) -> bytes:
    """Return *size* bytes (or a few more, at the least a head) that tell where they belong."""
    head = b"%s %d\n" % (tag.encode(), size)
    body = b"%s." % tag.encode()
    return head + (body * (size // len(body) + 1))[: max(0, size - len(head))]


def pieces(content: bytes) -> tuple[str, ...] | None:
    """Return the tags of the pieces *content* is made of, or None when it is not all whole."""
    tags = []
    at = 0
    while at < len(content):
        try:
            tag, size = content[at : content.index(b"\n", at)].decode().split(" ")
            whole = piece(tag, int(size))
        except ValueError:
            return None
        if content[at : at + len(whole)] != whole:
            return None
        tags.append(tag)
        at += len(whole)
    return tuple(tags) or None


def applied(operation: Operation, files: Files) -> Files:
    """Return what *files* are after *operation*."""
    verb, name, *rest = operation
    if verb == "upload":
        tag, _, create_only = rest
        return files if create_only and name in files else {**files, name: (tag,)}
    if verb == "append":
        return {**files, name: (*files[name], rest[0])}
    below = {old: old[len(name) :] for old in files if old == name or old.startswith(f"{name}/")}
    left = {old: tags for old, tags in files.items() if old not in below}
    if verb == "move":
        left |= {rest[0] + suffix: files[old] for old, suffix in below.items()}
    return left


def plan(thread: str, seed: str) -> Iterator[Operation]:
    """Yield operations without end for the names of *thread*, all below a folder of this name."""
    chance = random.Random(seed)
    files: Files = {}
    for serial in range(1 << 30):
        operation = _operation(chance, thread, f"{thread}.{serial}", files)
        if operation[1] != LOG:
            files = applied(operation, files)
        yield operation


def _operation(chance: random.Random, thread: str, tag: str, files: Files) -> Operation:
    size = chance.choice((40, 700, 4096, 20_000, 150_000))
    name = chance.choice(list(files)) if files else None
    if name is None or (len(files) < 4 and chance.random() < 0.5):
        return ["upload", _new_name(chance, thread, tag), tag, size, False]
    if len(files) > _MOST:
        return ["remove", name.rpartition("/")[0] if name.count("/") > 1 else name]
    if chance.random() < 0.05:
        size = IN_MEMORY + chance.randrange(1, 1 << 20)
    choices: dict[str, Operation] = {
        "create": ["upload", _new_name(chance, thread, tag), tag, size, False],
        "replace": ["upload", name, tag, size, False],
        "create only": ["upload", _new_name(chance, thread, tag), tag, size, True],
        "create only in vain": ["upload", name, tag, size, True],
        "append": ["append", name, tag, size],
        "append to log": ["append", LOG, tag, min(size, 20_000)],
        "move": ["move", name, _new_name(chance, thread, tag)],
        "move over": ["move", name, chance.choice(list(files))],
        "move folder": ["move", name.rpartition("/")[0], f"{thread}/moved-{tag}/there"],
        "remove": ["remove", name],
        "remove folder": ["remove", name.rpartition("/")[0]],
    }
    what = chance.choices(list(choices), (4, 3, 2, 1, 5, 3, 2, 1, 1, 1, 0.3))[0]
    if "folder" in what and name.count("/") < 2:
        what = "create"
    return choices[what]


def _new_name(chance: random.Random, thread: str, tag: str) -> str:
    folders = chance.choice(("", "", "folder/", f"new-{tag}/", f"new-{tag}/a/b/"))
    return f"{thread}/{folders}f-{tag}"


def perform(storage: Storage, operation: Operation, before_commit: Callable[[], None]) -> None:
    """Do *operation* by the calls the daemon makes for it; return when it would answer 200."""
    verb, name = operation[0], operation[1].encode()
    if verb == "upload":
        _, _, tag, size, create_only = operation
        content = piece(tag, size)
        with closing(storage.begin_upload(name, _unconditionally, len(content))) as upload:
            _stream(upload, content)
            try:
                upload.publish(_unconditionally, create_only)
            except NameTaken:
                if not create_only:
                    raise
    elif verb == "append":
        content = piece(*operation[2:])
        key = content[:64]
        begun = storage.begin_append(name, _unconditionally, len(content), key=key)
        assert isinstance(begun, Append), "this key was never used"
        with closing(begun) as append:
            _stream(append, content)
            append.sync()
            before_commit()
            append.commit()
    elif verb == "move":
        storage.begin_move(name, _unconditionally)
        storage.move(name, operation[2].encode(), _unconditionally)
    else:
        aside = storage.remove(name, _unconditionally)
        if aside is not None:
            for _ in storage.reclaim(aside):
                pass


def _unconditionally(_: Find) -> None:
    """Allow the change, whatever is there."""


def _stream(target: Upload | Append, content: bytes) -> None:
    for at in range(0, len(content), _SLAB):
        slab = content[at : at + _SLAB]
        target.write([slab[i : i + _CHUNK] for i in range(0, len(slab), _CHUNK)])


class Forgetful:
    """Leaves out one kind of sync from now on, in this process.

    :param fault: one of :data:`FAULTS`: of folders, of files, of a folder in which a folder was
        made just before, or the last sync of an append.
    """

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._mine = threading.local()
        self._syncs = 0
        self._sync, self._mkdir = os.fsync, os.mkdir
        os.fsync = self._sometimes  # type: ignore[assignment]
        os.mkdir = self._noted

    def learn(self) -> None:
        """Take the append that this thread made last as an example of how many syncs one has."""
        self._syncs = self._mine.syncs

    def before_commit(self) -> None:
        """Note that the syncs of an append come now."""
        self._mine.syncs = 0

    def _noted(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._mkdir(path, mode, dir_fd=dir_fd)
        self._mine.made_in = dir_fd

    def _sometimes(self, fd: int) -> None:
        if not self._is_left_out(fd):
            self._sync(fd)

    def _is_left_out(self, fd: int) -> bool:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        if self._fault == "last":
            if is_folder:
                return False
            self._mine.syncs = getattr(self._mine, "syncs", 0) + 1
            return bool(self._mine.syncs == self._syncs)
        if self._fault == "parents":
            made_in, self._mine.made_in = getattr(self._mine, "made_in", None), None
            return is_folder and made_in == fd
        return is_folder == (self._fault == "folder")


def main() -> None:
    """Change the storage until somebody ends this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", default="")
    parser.add_argument("--fault", choices=FAULTS)
    options = parser.parse_args()
    storage = Storage(options.root, durable=True)
    forgetful = Forgetful(options.fault) if options.fault else None
    before_commit = forgetful.before_commit if forgetful else lambda: None

    def tell(*words: object) -> None:
        os.write(1, json.dumps(words).encode() + b"\n")  # one write: lines are never mixed

    def do(thread: str, operation: Operation) -> None:
        tell("begin", thread, operation)
        perform(storage, operation, before_commit)
        tell("done", thread)

    def work(thread: str, operations: Iterable[Operation]) -> None:
        try:
            for operation in operations:
                do(thread, operation)
        except Exception as error:
            tell("failed", thread, repr(error))

    work("main", [["upload", LOG, "log", 40, False], ["append", LOG, "first", 40]])
    if forgetful:
        forgetful.learn()
    for number in range(options.threads):
        thread = f"t{number}"
        operations = plan(thread, options.seed + thread)
        threading.Thread(target=work, args=(thread, operations)).start()


if __name__ == "__main__":
    main()
