"""What other programs do to a file that the daemon serves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from httpnas.storage.record import PAGE

#: Something that is done to a file.
Act = Callable[[Path], None]

OLD = b"old-1\nold-2\n"
ADDED = b"".join(b"added-%04d\n" % number for number in range(900))
GOOD = b"good-A\ngood-B\ngood-C\ngood-D\n"
#: An owner, known to nobody, for files of others.
OTHER_OWNER = 4711


def sh(command: str) -> Callable[[Path], None]:
    """Return a call that runs *command* in a folder."""

    def run(folder: Path) -> None:
        subprocess.run(["bash", "-ec", command], check=True, cwd=folder)

    return run


def _act(command: str) -> Act:
    """Return an act of the shell, which finds the file as ``$f`` and other content in ``good``."""

    def act(file: Path) -> None:
        sh(f"f={file.name}; {command}")(file.parent)

    return act


def rewrite(content: bytes) -> Act:
    def write(file: Path) -> None:
        with file.open("wb") as opened:
            opened.write(content)

    return write


def truncate(file: Path) -> None:
    os.truncate(file, 3)


def write_over(file: Path) -> None:
    """Put other content in place, which is as long."""
    file.write_bytes(file.read_bytes().translate(bytes(byte ^ 1 for byte in range(256))))


def give_away(file: Path) -> None:
    """Let the file belong to another user, and its group write to it; root may do the first."""
    file.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(file, OTHER_OWNER, -1)


def changed(file: Path, act: Act) -> bytes:
    """Let others do *act* to *file*; return its content then."""
    good = file.with_name("good")
    good.write_bytes(GOOD)
    act(file)
    good.unlink()
    return file.read_bytes()


#: What adds to the end.
APPENDS: dict[str, Act] = {
    "echo >>": _act("echo external-1 >> $f; echo external-2 >> $f"),
    "one byte >>": _act("printf x >> $f"),
    "zeros >>": _act("head -c 100 /dev/zero >> $f"),
}
#: What puts another file in its place.
REPLACES: dict[str, Act] = {
    "mv": _act("mv good $f; touch good"),
    "cp -a, >>, mv": _act("cp -a $f copy; echo from-the-copy >> copy; mv copy $f"),
    "cp -a, mv": _act("cp -a $f copy; mv copy $f"),
    "cp and mv": _act("cp $f copy; mv copy $f"),
    "sed -i": _act("sed -i s/old/new/ $f"),
}
#: What leaves in the file not only what the daemon wrote.
CHANGES: dict[str, Act] = {
    **APPENDS,
    "cp": _act("cp good $f"),
    "open w": rewrite(b"completely new content, some lines\n" * 5),
    "open w, as long as before": rewrite(OLD.swapcase()),
    "open w, longer by as much": rewrite((OLD + ADDED).swapcase()),
    "open w, longer by a page": rewrite((OLD + ADDED).swapcase()[:PAGE]),
    **REPLACES,
    "write over": write_over,
    "rsync --inplace": _act("rsync --inplace good $f"),
    "truncate": truncate,
    "truncate and >>": _act("truncate -s 3 $f; echo external >> $f"),
}
#: What keeps the end as it is, and may change what lies before it.
HEADS: dict[str, Act] = {
    "nothing": lambda file: None,
    "touch": _act("touch -d 1980-01-01 $f"),
    "dd": _act("printf OLD | dd of=$f conv=notrunc status=none"),
    "chmod and chown": give_away,
    "ln": _act("ln $f link"),
    "cp -a": _act("cp -a $f copy; cmp $f copy; rm copy"),
}
#: A file that is restored may get the inode that it had, and then it is the one that crashed.
TAR = _act("tar --xattrs -cf t $f; rm $f; tar --xattrs --xattrs-include='*' -xf t; rm t")
