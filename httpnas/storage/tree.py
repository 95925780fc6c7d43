"""Moving and removing names, each in one step for everybody who reads them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from httpnas.storage import commits, version
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import (
    IntoItself,
    NameTaken,
    NoSuchFile,
    NotFreed,
    OtherFileSystem,
    Reserved,
    translated,
)
from httpnas.storage.locks import Claim, all_buckets
from httpnas.storage.mounts import has_mount_below
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import KEYS
from httpnas.storage.recovery import open_file, recover, recovered_at
from httpnas.storage.rename import rename_new
from httpnas.storage.root import WRITE, refuse_private, split
from httpnas.storage.version import Check


def begin_move(namespace: Namespace, name: bytes, check: Check) -> bool:
    """See :meth:`httpnas.storage.store.Storage.begin_move`.

    :return: whether it is a folder.
    """
    if not name:
        raise Reserved("the storage root cannot be moved")
    refuse_private(name)
    with translated(), owned(namespace.open_holder(name)) as folder:
        leaf = split(name)[1]
        status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
        if not (version.is_file(status) or version.is_folder(status)):
            raise NoSuchFile("neither a file nor a folder")
        check(lambda: namespace.current(folder, leaf))
        return version.is_folder(status)


def move(
    namespace: Namespace,
    name: bytes,
    target: bytes,
    check: Check,
    create_only: bool,
    claim: Claim,
) -> None:
    """See :meth:`httpnas.storage.store.Storage.move`."""
    is_folder = begin_move(namespace, name, check)
    if not target:
        raise NameTaken("the destination is the storage root")
    refuse_private(target)
    if target.startswith(name + b"/"):
        raise IntoItself("a folder cannot be moved into itself")
    # Whether it may be replaced is decided under the locks: whoever made it may have moved the
    # source there, and then it is the source that is missing.
    status = None if create_only else namespace.root.stat(target)
    if status is not None and not (version.is_file(status) or version.is_folder(status)):
        raise NoSuchFile("the destination is neither a file nor a folder")
    with (
        translated(),
        owned(namespace.open_holder(name)) as source,
        owned(namespace.make_parent(target, claim)) as destination,
    ):
        old, new = (source, name), (destination, target)
        with namespace.hold(claim, old, new, below=is_folder):
            try:
                _rename(namespace, old, new, check, create_only, claim)
            except FileNotFoundError:
                if namespace.leads_to(target, destination):
                    raise
                claim.begin_again()  # somebody has removed the new folder again
            claim.undoing.clear()
        namespace.sync_folder(destination)
        namespace.sync_folder(source)


def _rename(
    namespace: Namespace,
    old: tuple[int, bytes],
    new: tuple[int, bytes],
    check: Check,
    create_only: bool,
    claim: Claim,
) -> None:
    """Rename one entry of a folder to another; each is the folder's descriptor and a name."""
    (source, name), (destination, new_name) = ((fd, split(path)[1]) for fd, path in (old, new))
    status = _held_entry(source, name, claim)
    check(lambda: commits.version_at(source, name, namespace.records))
    if version.is_folder(status):
        _refuse_mounts(source, name)
        rename_new(source, name, destination, new_name)
        return
    at, to = (source, name), (destination, new_name)
    with _keeping_its_record(namespace, at, to):
        if create_only:
            rename_new(source, name, destination, new_name)
        else:
            _replace(namespace, at, to, status)


def _replace(
    namespace: Namespace, old: tuple[int, bytes], new: tuple[int, bytes], status: os.stat_result
) -> None:
    (source, name), (destination, new_name) = old, new
    replaced = _inode(destination, new_name)
    with namespace.doomed(destination, new_name) as doomed:
        try:
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=destination)
        except IsADirectoryError as error:
            raise NameTaken("the destination is a folder") from error
        if doomed not in (None, status.st_ino):
            namespace.records.forget(doomed)
    if replaced == status.st_ino and status.st_nlink > 1:
        # Both names are links to one file, and rename(2) leaves both. They may also be a single
        # link: by two names of its folder (which another program moves in this moment), or on a
        # file system that takes upper and lower case for the same.
        one_folder = os.path.samestat(os.fstat(source), os.fstat(destination))
        if name != new_name or not one_folder:
            os.unlink(name, dir_fd=source)


@contextmanager
def _keeping_its_record(
    namespace: Namespace, old: tuple[int, bytes], new: tuple[int, bytes]
) -> Iterator[None]:
    """Let a file keep its version and what is known of it, whose new name the block makes.

    A new name sets the change time of a file (rename(2)), so the record has to be written again.
    To the appends that the file has taken come those of the file that it replaces: their keys
    belong to the name.
    """
    (source, name), (destination, new_name) = old, new
    fd = open_file(source, name, WRITE)
    if fd is None:
        yield
        return
    with owned(fd):
        if not commits.lock(fd):  # it is appended to by another name that it has
            yield
            return
        ledger = recover(namespace, fd)
        replaced = recovered_at(namespace, destination, new_name)
        base = ledger.base
        yield
        keys = () if replaced is None else replaced.inherited_keys
        if ledger.record is not None or keys:
            with suppress(OSError):  # a rename that is done is no failure
                ledger.settle(replace(base, keys=(*keys, *base.keys)[-KEYS:]))


def _held_entry(folder: int, leaf: bytes, claim: Claim) -> os.stat_result:
    """Return the status of *leaf*, which is locked, and if it is a folder with all below it.

    :raises Locked: when it is a folder only by now.
    """
    status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    if version.is_folder(status) and not claim.covers(all_buckets()):
        claim.begin_again()
    return status


def _refuse_mounts(folder: int, leaf: bytes) -> None:
    """Refuse to rename a folder that holds a mount: that would go along, out of sight.

    :raises OtherFileSystem: when it does.
    """
    if has_mount_below(folder, leaf):
        raise OtherFileSystem("something is mounted in this folder")


def _inode(folder: int, leaf: bytes) -> int | None:
    try:
        return os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def remove(namespace: Namespace, name: bytes, check: Check, claim: Claim) -> bytes | None:
    """See :meth:`httpnas.storage.store.Storage.remove`."""
    if not name:
        raise Reserved("the storage root cannot be removed")
    refuse_private(name)
    with translated(), owned(namespace.open_holder(name)) as folder:
        leaf = split(name)[1]
        is_folder = version.is_folder(os.stat(leaf, dir_fd=folder, follow_symlinks=False))
        with namespace.hold(claim, (folder, name), below=is_folder):
            aside = _take_out(namespace, folder, leaf, check, claim)
        try:
            namespace.sync_folder(folder)
        except OSError:
            if aside is not None:
                with suppress(NotFreed):
                    for _ in namespace.workspace.reclaim(aside):  # nobody else will ever hear of it
                        pass
            raise
    return aside


def _take_out(
    namespace: Namespace, folder: int, leaf: bytes, check: Check, claim: Claim
) -> bytes | None:
    status = _held_entry(folder, leaf, claim)
    if not (version.is_file(status) or version.is_folder(status) or version.is_link(status)):
        raise NoSuchFile("neither a file nor a folder")
    check(lambda: commits.version_at(folder, leaf, namespace.records))
    if version.is_folder(status):
        _refuse_mounts(folder, leaf)
        try:
            return namespace.workspace.set_aside(folder, leaf)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        # It is of a lower layer (overlayfs) or has a quota of its own (CephFS).
        namespace.workspace.remove_at_once(folder, leaf)
        return None
    if version.is_file(status) and not namespace.has_xattrs:
        recovered_at(namespace, folder, leaf)  # whoever reads it yet finds no record any more
    with namespace.doomed(folder, leaf) as doomed:
        os.unlink(leaf, dir_fd=folder)
        if doomed is not None:
            namespace.records.forget(doomed)
    return None
