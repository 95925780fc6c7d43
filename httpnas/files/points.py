"""The points that every operation passes, whichever door it comes through.

*Admission* is asked before anything is done, and may refuse it by raising. What has been
*committed* is told afterwards, once it has become true in the storage. What a listing *shows* is
asked once for each folder that is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from httpnas.files.job import Job
from httpnas.storage.version import Version


class Verb(str, Enum):
    """What an operation does, in the words of the trace and the metrics."""

    DOWNLOAD = "download"
    LIST = "list"
    COUNT = "count"
    UPLOAD = "upload"
    APPEND = "append"
    MOVE = "move"
    DELETE = "delete"
    SEE_TRANSFERS = "transfers"
    SEE_METRICS = "metrics"
    SIGN = "sign"


class Effect(Enum):
    """What becomes of a name.

    ``UNKNOWN`` stands for what only the disk can tell, which has not been asked: whether an upload
    or the target of a move is new, and whether what is opened is a file or a folder.
    """

    UNKNOWN = "unknown"
    NONE = "none"
    NEW = "new"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done with a name. A move has one intent for each of its two names.

    :ivar find_effect: finds out what would become of the name; this may ask the disk.
    :ivar below: whether it is about names below this one, which are not known yet.
    """

    verb: Verb
    name: bytes
    find_effect: Callable[[], Effect] = lambda: Effect.NONE
    below: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """What has become true.

    :ivar version: the file's new version, None for a move or a removal.
    :ivar to: the new name, of a move.
    """

    verb: Verb
    name: bytes
    version: Version | None = None
    to: bytes | None = None


#: Refuses an intent by raising. An operation is asked about before the disk is, so that who may not
#: do it does not learn what is there. A change is asked about again before its content is asked
#: for, and once more under the name's lock. Called in any thread, so it must not block.
Admit = Callable[[Job, Intent], None]
#: Returns what tells of an entry of a folder, by its last component, whether a listing shows it;
#: None when it shows all. Called on the reactor thread; what is returned, in any.
Show = Callable[[Job, bytes], Callable[[bytes], bool] | None]
#: Is told of a commit, on the reactor thread, before the client is answered.
Tell = Callable[[Job, Commit], None]


def admit_all(job: Job, intent: Intent) -> None:
    """Refuse nothing."""


def show_all(job: Job, folder: bytes) -> None:
    """Hide nothing."""


def tell_nobody(job: Job, commit: Commit) -> None:
    """Do nothing."""
