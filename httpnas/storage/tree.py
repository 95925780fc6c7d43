"""Moving and removing names, each as one step for everybody who looks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from httpnas.storage import version
from httpnas.storage.errors import (
    IntoItself,
    NameTaken,
    NoSuchFile,
    Reserved,
    translated,
)
from httpnas.storage.rename import rename_new
from httpnas.storage.root import refuse_private, split
from httpnas.storage.upload import Check

if TYPE_CHECKING:
    from httpnas.storage.store import Storage


def begin_move(storage: Storage, name: bytes, check: Check) -> None:
    """See :meth:`httpnas.storage.store.Storage.begin_move`."""
    if not name:
        raise Reserved("the storage root can not be moved")
    refuse_private(name)
    with translated():
        folder = storage.open_holder(name)
        try:
            leaf = split(name)[1]
            status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
            if not (version.is_file(status) or version.is_folder(status)):
                raise NoSuchFile("neither a file nor a folder")
            check(lambda: storage.current(folder, leaf))
        finally:
            os.close(folder)


def move(storage: Storage, name: bytes, target: bytes, check: Check, create_only: bool) -> None:
    """See :meth:`httpnas.storage.store.Storage.move`."""
    begin_move(storage, name, check)
    if not target:
        raise NameTaken("the destination is the storage root")
    refuse_private(target)
    if target.startswith(name + b"/"):
        raise IntoItself("a folder can not be moved into itself")
    # Whether it may be replaced is decided under the locks: whoever made it may have taken the
    # source for it, and then that is what is missing.
    status = None if create_only else storage.root.stat(target)
    if status is not None and not (version.is_file(status) or version.is_folder(status)):
        raise NoSuchFile("the destination is neither a file nor a folder")
    with translated():
        source = storage.open_holder(name)
        try:
            destination = storage.root.make_parent(target, storage.durable)
            try:
                old, new = (source, split(name)[1]), (destination, split(target)[1])
                with storage.hold(old, new):
                    _rename(storage, old, new, check, create_only)
                storage.sync(destination)
                storage.sync(source)
            finally:
                os.close(destination)
        finally:
            os.close(source)


def _rename(
    storage: Storage,
    old: tuple[int, bytes],
    new: tuple[int, bytes],
    check: Check,
    create_only: bool,
) -> None:
    """Rename one entry of a folder to another; each is a descriptor and a name."""
    (source, name), (destination, new_name) = old, new
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    check(lambda: version.committed_at(source, name, storage.records))
    if create_only or version.is_folder(status):
        rename_new(source, name, destination, new_name)
        return
    replaced = _inode(destination, new_name)
    doomed = storage.sole_inode(destination, new_name)
    try:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=destination)
    except IsADirectoryError as error:
        raise NameTaken("the destination is a folder") from error
    if replaced is None:
        return
    if replaced != status.st_ino:
        if doomed is not None:
            storage.records.forget(doomed)
    elif status.st_nlink > 1:
        # Two links to one file: rename(2) leaves both. They may also be one and the same, by two
        # names of its folder (which is moved in this moment) or on a file system for which upper
        # and lower case are one.
        one_folder = os.path.samestat(os.fstat(source), os.fstat(destination))
        if name != new_name or not one_folder:
            os.unlink(name, dir_fd=source)


def _inode(folder: int, leaf: bytes) -> int | None:
    try:
        return os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def remove(storage: Storage, name: bytes, check: Check) -> bytes | None:
    """See :meth:`httpnas.storage.store.Storage.remove`."""
    if not name:
        raise Reserved("the storage root can not be removed")
    refuse_private(name)
    with translated():
        folder = storage.open_holder(name)
        try:
            leaf = split(name)[1]
            with storage.hold((folder, leaf)):
                aside = _take_out(storage, folder, leaf, check)
            try:
                storage.sync(folder)
            except OSError:
                if aside is not None:
                    for _ in storage.reclaim(aside):  # nobody else will ever hear of it
                        pass
                raise
        finally:
            os.close(folder)
    return aside


def _take_out(storage: Storage, folder: int, leaf: bytes, check: Check) -> bytes | None:
    status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    if not (version.is_file(status) or version.is_folder(status) or version.is_link(status)):
        raise NoSuchFile("neither a file nor a folder")
    check(lambda: version.committed_at(folder, leaf, storage.records))
    if version.is_folder(status):
        return storage.workspace.set_aside(folder, leaf)
    os.unlink(leaf, dir_fd=folder)
    if status.st_nlink == 1:
        storage.records.forget(status.st_ino)
    return None
