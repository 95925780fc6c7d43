"""Admission: which right each intent needs, and whether the rules give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from httpnas.access.errors import MissingRight, Unauthenticated
from httpnas.access.rules import ANONYMOUS, NO_RULES, Right, Rules
from httpnas.files.job import Job, Principal
from httpnas.files.points import Effect, Intent, Verb

#: The rights of which one is needed, by verb and what becomes of the name. What only the disk can
#: tell (``UNKNOWN``) is refused to who has none of the rights that may be needed.
NEEDED: dict[tuple[Verb, Effect], tuple[Right, ...]] = {
    (Verb.DOWNLOAD, Effect.UNKNOWN): (Right.READ, Right.LIST),
    (Verb.DOWNLOAD, Effect.NONE): (Right.READ,),
    (Verb.COUNT, Effect.UNKNOWN): (Right.READ,),
    (Verb.COUNT, Effect.NONE): (Right.READ,),
    (Verb.LIST, Effect.UNKNOWN): (Right.LIST,),
    (Verb.LIST, Effect.NONE): (Right.LIST,),
    (Verb.UPLOAD, Effect.UNKNOWN): (Right.CREATE, Right.REPLACE),
    (Verb.UPLOAD, Effect.NEW): (Right.CREATE,),
    (Verb.UPLOAD, Effect.CHANGED): (Right.REPLACE,),
    (Verb.APPEND, Effect.CHANGED): (Right.APPEND,),
    (Verb.MOVE, Effect.REMOVED): (Right.DELETE, Right.REPLACE),
    (Verb.MOVE, Effect.UNKNOWN): (Right.CREATE, Right.REPLACE),
    (Verb.MOVE, Effect.NEW): (Right.CREATE,),
    (Verb.MOVE, Effect.CHANGED): (Right.REPLACE,),
    (Verb.DELETE, Effect.REMOVED): (Right.DELETE,),
    (Verb.SEE_TRANSFERS, Effect.NONE): (Right.SEE_TRANSFERS,),
    (Verb.SEE_METRICS, Effect.NONE): (Right.SEE_METRICS,),
    (Verb.SIGN, Effect.NONE): (Right.SIGN,),
}


@dataclass(frozen=True, eq=False)
class Subject(Principal):
    """A principal, with the rules about it at the time when its request came.

    So what was admitted runs on when the rules change.

    :ivar rules: those that name it.
    :ivar challenges: as of :class:`Unauthenticated`.
    """

    rules: Rules = NO_RULES
    challenges: tuple[str, ...] = ()

    def allows(self, right: Right, intent: Intent) -> bool:
        """Tell whether *right* is given for *intent*."""
        rules, name = self.rules, intent.name
        if intent.below or right is Right.LIST:  # a listing shows what may be listed
            return rules.allow_somewhere(right, name)
        if intent.verb in (Verb.MOVE, Verb.DELETE):  # it may be a folder, and then all goes along
            return rules.allow_throughout(right, name)
        return rules.allow(right, name)


def admit(job: Job, intent: Intent) -> None:
    """Refuse *intent* unless the rules allow it; an :data:`httpnas.files.points.Admit`.

    :raises Unauthenticated: when it is not known who asks.
    :raises MissingRight: when it is.
    """
    subject = job.principal
    if intent.verb is Verb.UPLOAD and isinstance(subject, Subject):
        either = NEEDED[Verb.UPLOAD, Effect.UNKNOWN]
        if all(subject.allows(right, intent) for right in either):
            return  # whatever becomes of the name, so the disk need not be asked
    needed = NEEDED[intent.verb, intent.find_effect()]
    if not isinstance(subject, Subject):
        raise MissingRight([right.value for right in needed])
    if not any(subject.allows(right, intent) for right in needed):
        if subject.name == ANONYMOUS:
            raise Unauthenticated(
                "Tell who you are: this is not for everybody.", subject.challenges
            )
        raise MissingRight([right.value for right in needed])


def show(job: Job, folder: bytes) -> Callable[[bytes], bool] | None:
    """Return what tells what is shown of *folder*; an :data:`httpnas.files.points.Show`."""
    subject = job.principal
    return subject.rules.shown(folder) if isinstance(subject, Subject) else lambda leaf: False
