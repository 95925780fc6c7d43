"""The form of a folder's listing, chosen by the Accept field (RFC 9110 section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ListingFormat = Literal["text", "json", "html"]

_TYPES: dict[ListingFormat, bytes] = {
    "text": b"text/plain",
    "json": b"application/json",
    "html": b"text/html",
}

# White space is matched in one place only between two other things, so that these patterns
# cannot backtrack far.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_PARAMETER = rb";[ \t]*(?:(%b)=(%b|%b)[ \t]*)?" % (_TOKEN, _TOKEN, _QUOTED)
_PARAMETERS = rb"(?:;[ \t]*(?:%b=(?:%b|%b)[ \t]*)?)*" % (_TOKEN, _TOKEN, _QUOTED)
_MEMBER = re.compile(
    rb"[ \t]*(?:(?P<type>%b/%b)[ \t]*(?P<parameters>%b))?(?P<next>,|\Z)"
    % (_TOKEN, _TOKEN, _PARAMETERS)
)
_EACH_PARAMETER = re.compile(_PARAMETER)
_WEIGHT = re.compile(rb"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True, order=True)
class _Rank:
    """How welcome a format is: the fields in the order they decide in."""

    weight: float = 0.0
    specificity: int = 0
    is_default: bool = False
    earliness: int = 0


def listing_format(accept: bytes | None) -> ListingFormat:
    """Choose the format of a listing.

    The highest weight wins; among equals the type that is named more specifically, then text,
    then the one that is named first. Parameters of a media type other than its weight make no
    difference.

    :param accept: the value of the Accept field, None if there is none.
    :return: ``"text"`` too if nothing is acceptable or the field is malformed.
    """
    try:
        members = list(_members(accept or b""))
    except ValueError:
        return "text"
    ranks = {name: _rank(name, members) for name in _TYPES}
    best = max(_TYPES, key=ranks.__getitem__)
    return best if ranks[best].weight > 0 else "text"


def _rank(name: ListingFormat, members: list[tuple[bytes, float]]) -> _Rank:
    exact = _TYPES[name]
    ranges = (b"*/*", exact.partition(b"/")[0] + b"/*", exact)
    matches = [
        _Rank(weight, ranges.index(media_range), name == "text", -position)
        for position, (media_range, weight) in enumerate(members)
        if media_range in ranges
    ]
    # The most specific range speaks for a type, even where it weighs less.
    return max(matches, key=lambda rank: (rank.specificity, rank.weight), default=_Rank())


def _members(accept: bytes) -> Iterator[tuple[bytes, float]]:
    """The media ranges in small letters, with their weights."""
    position, more = 0, True
    while more:
        member = _MEMBER.match(accept, position)
        if member is None:
            raise ValueError("not a list of media ranges")
        if member["type"] is not None:
            yield member["type"].lower(), _weight(member["parameters"])
        position, more = member.end(), member["next"] == b","


def _weight(parameters: bytes) -> float:
    weights = [p[2] for p in _EACH_PARAMETER.finditer(parameters) if p[1] in (b"q", b"Q")]
    if not all(_WEIGHT.fullmatch(weight) for weight in weights):
        raise ValueError("not a weight from 0 to 1")
    return float(weights[0]) if weights else 1.0
