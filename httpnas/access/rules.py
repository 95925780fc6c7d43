"""Rules: what which principal may do where. The first that applies decides; without one, nothing.

A rule applies to a principal, a right and a name when it names the principal or a group of it, when
its path is the name or leads to it, and when it has the right among those that it allows or denies.

What a file of rules allows, its beginning does not exceed: the rules that are cut off decide
nothing any more, and those before them decide as before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from httpnas.files.job import Principal

#: The name of the principal that has no credentials.
ANONYMOUS = "anonymous"
#: The group of all principals but that one.
AUTHENTICATED = "authenticated"


class Right(str, Enum):
    """What a rule allows or denies."""

    LIST = "list"
    READ = "read"
    CREATE = "create"
    APPEND = "append"
    REPLACE = "replace"
    DELETE = "delete"
    SEE_TRANSFERS = "see-transfers"
    SEE_METRICS = "see-metrics"
    SIGN = "sign"


#: Rights that are about the daemon as a whole, and not about a name.
OF_THE_DAEMON = frozenset({Right.SEE_TRANSFERS, Right.SEE_METRICS})


@dataclass(frozen=True, slots=True)
class Rule:
    """What some principals may do, and may not, at a path and below it.

    :ivar who: names of principals, and of groups behind an ``@``.
    :ivar path: a name as :func:`httpnas.fields.names.check_name` makes it; ``b""`` is the root.
    :ivar line: where it begins in the file.
    """

    who: frozenset[str]
    path: bytes
    allow: frozenset[Right]
    deny: frozenset[Right]
    line: int

    def applies_at(self, name: bytes) -> bool:
        """Tell whether :attr:`path` is *name* or leads to it."""
        path = self.path
        return not path or name == path or name.startswith(path + b"/")


class Rules:
    """Rules in their order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._paths = sorted({rule.path for rule in rules})

    def __len__(self) -> int:
        return len(self._rules)

    def of(self, principal: Principal) -> Rules:
        """Return those that name *principal* or a group of it."""
        names = {principal.name, *(f"@{group}" for group in principal.groups)}
        return Rules([rule for rule in self._rules if not names.isdisjoint(rule.who)])

    def decides(self, right: Right, name: bytes) -> Rule | None:
        """Return which rule decides about *right* at *name*, None when none does."""
        for rule in self._rules:
            if rule.applies_at(name) and (right in rule.allow or right in rule.deny):
                return rule
        return None

    def allow(self, right: Right, name: bytes) -> bool:
        """Tell whether *right* is allowed at *name*."""
        rule = self.decides(right, name)
        return rule is not None and right in rule.allow

    # Below a name, another rule can only begin to apply at the path of one. So what holds at the
    # name and at each of these paths holds at all names below it.

    def below(self, name: bytes) -> Collection[bytes]:
        """Return the paths of rules below *name*."""
        return [path for path in self._paths if path and (not name or path.startswith(name + b"/"))]

    def allow_throughout(self, right: Right, name: bytes) -> bool:
        """Tell whether *right* is allowed at *name* and at every name below it."""
        return all(self.allow(right, each) for each in (name, *self.below(name)))

    def allow_somewhere(self, right: Right, name: bytes) -> bool:
        """Tell whether *right* is allowed at *name* or at some name below it."""
        return any(self.allow(right, each) for each in (name, *self.below(name)))

    def shown(self, folder: bytes) -> Callable[[bytes], bool] | None:
        """Return what tells of the last component of a name whether a listing of *folder* shows it.

        That is what may be listed, and what leads there; None for all.
        """
        by_default = self.allow(Right.LIST, folder)
        start = len(folder) + 1 if folder else 0
        special = {path[start:].partition(b"/")[0] for path in self.below(folder)}
        at = folder + b"/" if folder else b""
        other = {
            leaf
            for leaf in special
            if self.allow_somewhere(Right.LIST, at + leaf) is not by_default
        }
        if by_default:
            return (lambda leaf: leaf not in other) if other else None
        return lambda leaf: leaf in other


NO_RULES = Rules(())
