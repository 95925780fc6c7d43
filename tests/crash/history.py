"""Whether what clients saw can be explained by one order of their calls (linearizability).

Each call takes effect at one moment between its start and its answer. One without an answer may
have taken effect at any time from its start on, or never. The search for an order is that of Wing
and Gong, with Lowe's memory: which calls are in the order already, and what they have led to, says
all that matters of a beginning, so that none is gone into twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

#: Beginnings of an order that are looked at before a history counts as too hard.
MOST = 2_000_000
#: The same while a bad history is made shorter, where it is enough to have tried.
MOST_TO_SHORTEN = 20_000

#: Calls that concern a folder with all in it, which are files of these names.
FOLDERS = ("move folder", "delete folder")
LEAVES = ("f", "g")
#: What a file holds: the values written to it, in order.
Content = tuple[str, ...]
#: What each of some names holds; None: there is nothing of this name.
State = tuple[Content | None, ...]


@dataclass(frozen=True)
class Call:
    """A call of a client, as it was sent and as it was answered.

    :ivar kind: ``read``, ``write``, ``append``, ``delete`` or ``move``, or one of :data:`FOLDERS`.
    :ivar target: the new name, of a move.
    :ivar value: what is written or appended; every value is written once.
    :ivar restored: what is written, if those are values that have been written before.
    :ivar length: of the value, in bytes.
    :ivar create: only if nothing is replaced.
    :ivar expects: only if the file holds just this.
    :ivar offset: only if the file has just this length.
    :ivar status: of the answer, None when there was none.
    :ivar seen: what a read has read, or the length that the answer to an append told.
    """

    kind: str
    name: str
    start: float
    end: float = inf
    status: int | None = None
    seen: Content | int | None = None
    value: str = ""
    restored: Content | None = None
    length: int = 1
    target: str | None = None
    create: bool = False
    expects: Content | None = None
    offset: int | None = None
    client: int = 0

    @property
    def names(self) -> list[str]:
        """The files that it concerns."""
        names = [name for name in (self.name, self.target) if name is not None]
        return [f"{n}/{leaf}" for n in names for leaf in LEAVES] if self.kind in FOLDERS else names

    def unanswered(self) -> Call:
        return replace(self, end=inf, status=None, seen=None)

    def __str__(self) -> str:
        words = [f"client {self.client}: {self.kind} {self.name}"]
        words += [f"to {self.target}"] * (self.target is not None)
        words += [_shown(self.restored)] * (self.restored is not None)
        words += [self.value] * bool(self.value) + ["create only"] * self.create
        words += [f"if it is {_shown(self.expects)}"] * (self.expects is not None)
        words += [f"at {self.offset}"] * (self.offset is not None)
        if self.status is None:
            return f"[{self.start:.6f}, ...       ] {' '.join(words)} -> no answer"
        seen = "" if self.seen is None else f" {_shown(self.seen)}"
        return f"[{self.start:.6f}, {self.end:.6f}] {' '.join(words)} -> {self.status}{seen}"


def _shown(seen: Content | int | None) -> str:
    return "+".join(seen) or "empty" if isinstance(seen, tuple) else str(seen)


class TooHard(Exception):
    """A history with too many orders to look at."""


class Model:
    """What each call does to the names of one history."""

    def __init__(self, calls: Iterable[Call]) -> None:
        calls = list(calls)
        names = {name for call in calls for name in call.names}
        self._place = {name: place for place, name in enumerate(sorted(names))}
        self._lengths = {call.value: call.length for call in calls}
        self.start: State = (None,) * len(names)

    def apply(self, call: Call, state: State) -> tuple[int, Content | int | None, State]:
        """Return status and what is seen if *call* comes at *state*, and the state after it."""
        if call.kind in FOLDERS:
            return self._apply_to_folder(call, state)
        place = self._place[call.name]
        present = state[place]
        refused = self._refused(call, state, present)
        if refused:
            seen = self._length(present) if refused == 409 else None
            return refused, seen, state
        if call.kind == "read":
            return 200, present, state
        after = list(state)
        seen = None
        if call.kind == "write":
            after[place] = call.restored or (call.value,)
        elif call.kind == "append":
            after[place] = appended = (*(present or ()), call.value)
            seen = self._length(appended)
        elif call.kind == "delete":
            after[place] = None
        else:
            assert call.kind == "move" and call.target is not None
            after[place] = None
            after[self._place[call.target]] = present
        return 200, seen, tuple(after)

    def _apply_to_folder(self, call: Call, state: State) -> tuple[int, None, State]:
        """Do what *call* was answered with, if that can be: empty folders are not in the state."""
        places = [self._place[name] for name in call.names]
        source, target = places[: len(LEAVES)], places[len(LEAVES) :]
        if call.status == 404:
            return (
                (404 if not any(state[place] is not None for place in source) else 0),
                None,
                state,
            )
        if call.status not in (200, None) or any(state[place] is not None for place in target):
            return (0 if call.status == 200 else call.status or 0), None, state
        after = list(state)
        for old, new in zip(source, target, strict=False):
            after[new] = state[old]
        for old in source:
            after[old] = None
        return 200, None, tuple(after)

    def _refused(self, call: Call, state: State, present: Content | None) -> int:
        if present is None and call.kind != "write":
            return 404
        if call.expects is not None and call.expects != present:
            return 412
        if call.create:
            taken = present if call.target is None else state[self._place[call.target]]
            if taken is not None:
                return 412
        if call.offset is not None and call.offset != self._length(present):
            return 409
        return 0

    def _length(self, content: Content | None) -> int:
        return sum(self._lengths.get(value, 0) for value in content or ())


def is_linearizable(calls: Sequence[Call], most: int | None = None) -> bool:
    """Tell whether there is an order of *calls* that explains all answers.

    :param most: beginnings of an order to look at.
    :raises TooHard: when that could not be found out.
    """
    calls = sorted(
        (c for c in calls if c.status is not None or c.kind != "read"), key=lambda c: c.start
    )
    most = MOST if most is None else most
    model = Model(calls)
    answered = sum(1 << n for n, call in enumerate(calls) if call.status is not None)
    pending = [(0, model.start)]
    known = {pending[0]}
    while pending:
        done, state = pending.pop()
        done, steps = _steps(calls, model, done, state)
        if done & answered == answered:
            return True
        for step in steps:
            if step not in known:
                known.add(step)
                pending.append(step)
        if len(known) > most:
            raise TooHard(f"{len(calls)} calls have more than {most} orders to look at")
    return False


def _steps(
    calls: Sequence[Call], model: Model, done: int, state: State
) -> tuple[int, list[tuple[int, State]]]:
    """Return *done* with what changes nothing added to it, and what can come next.

    A call whose answer fits and that changes nothing comes best at once: that closes no way.
    """
    while True:
        steps: list[tuple[float, int, State]] = []
        earliest_end = inf
        added = False
        for n, call in enumerate(calls):
            if done >> n & 1:
                continue
            if call.start > earliest_end:
                break
            earliest_end = min(earliest_end, call.end)
            status, seen, after = model.apply(call, state)
            if call.status is None:
                fits = after != state
            elif call.status == 200 and call.kind == "read":
                fits = status == 200 and call.seen == seen
            else:
                fits = call.status == status and call.seen in (None, seen)
            if not fits:
                continue
            # What moves or removes an empty folder now might do more later.
            if after == state and not (call.kind in FOLDERS and call.status == 200):
                done |= 1 << n
                added = True
                break
            steps.append((call.end, done | 1 << n, after))
        if not added:
            steps.sort(key=lambda step: -step[0])  # what ended first is tried first
            return done, [step[1:] for step in steps]


def components(calls: Iterable[Call]) -> list[list[Call]]:
    """Part *calls* into histories that have no name in common; names joined by a move stay so."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    calls = list(calls)
    for call in calls:
        first, *others = call.names
        for name in others:
            leader[find(name)] = find(first)
    parts: dict[str, list[Call]] = {}
    for call in calls:
        parts.setdefault(find(call.names[0]), []).append(call)
    return list(parts.values())


def shortest_bad(calls: Sequence[Call]) -> list[Call]:
    """Return a short piece of the bad history *calls* that is still bad.

    What happened after the first contradiction goes. Then calls that changed nothing are left
    out, and others lose their answer, one by one, as long as the rest can not be explained: none
    of that makes a good history bad. What is left without an answer may matter or not.
    """
    ends = sorted(call.end for call in calls if call.status is not None)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if is_linearizable(_until(calls, ends[middle])):
            low = middle + 1
        else:
            high = middle
    piece = _until(calls, ends[low])
    for call in sorted(piece, key=lambda c: -c.start):
        others = [c for c in piece if c is not call]
        keeps_state = call.kind == "read" or call.status not in (200, None)
        weaker = others if keeps_state else [*others, call.unanswered()]
        if call.status is not None and _is_surely_bad(weaker):
            piece = weaker
    return sorted(piece, key=lambda c: c.start)


def _is_surely_bad(calls: Sequence[Call]) -> bool:
    try:
        return not is_linearizable(calls, MOST_TO_SHORTEN)
    except TooHard:
        return False


def _until(calls: Iterable[Call], end: float) -> list[Call]:
    """Return what was known of *calls* at the time *end*."""
    known = (call for call in calls if call.start <= end)
    return [call if call.end <= end else call.unanswered() for call in known]


def shown(calls: Iterable[Call]) -> str:
    return "\n".join(map(str, calls))
