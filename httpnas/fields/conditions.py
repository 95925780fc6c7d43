"""Conditional requests (RFC 9110 section 13). Entity tags are held as written, with quotes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import formatdate
from enum import Enum

_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG_LIST = re.compile(rb"[ \t]*(?:%b[ \t]*)?(?:,[ \t]*(?:%b[ \t]*)?)*" % (_TAG, _TAG))

_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = rb"(?P<month>%b)" % b"|".join(_MONTHS)
_DAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = (
    re.compile(rb"%b, (?P<day>\d\d) %b (?P<year>\d{4}) %b GMT" % (_DAY, _MONTH, _TIME)),
    re.compile(rb"%b, (?P<day>\d\d)-%b-(?P<year>\d\d) %b GMT" % (_LONG_DAY, _MONTH, _TIME)),
    re.compile(rb"%b %b (?P<day>[ \d]\d) %b (?P<year>\d{4})" % (_DAY, _MONTH, _TIME)),
)

# The first second of the year 1 and the last one of 9999: what four digits of a year can say.
_FIRST_SECOND, _LAST_SECOND = -62135596800, 253402300799


class Verdict(Enum):
    """What the conditions of a GET or HEAD ask for."""

    PROCEED = "proceed"
    NOT_MODIFIED = "not modified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EntityTags:
    """The value of If-Match or If-None-Match.

    :ivar tags: the tags listed, none of them if the value is ``*`` or malformed.
    :ivar star: whether the value is ``*``.
    :ivar malformed: whether the value is neither ``*`` nor a list of tags.
    """

    tags: frozenset[bytes] = frozenset()
    star: bool = False
    malformed: bool = False

    @classmethod
    def parse(cls, value: bytes) -> EntityTags:
        """Parse ``*`` or a list of entity tags (RFC 9110 sections 5.6.1 and 8.8.3)."""
        if value == b"*":
            return cls(star=True)
        if not _TAG_LIST.fullmatch(value):
            return cls(malformed=True)
        return cls(frozenset(re.findall(_TAG, value)))

    def has_strong(self, etag: bytes) -> bool:
        """Whether ``etag`` is among the tags by strong comparison (RFC 9110 section 8.8.3.2)."""
        return self.star or (etag in self.tags and not etag.startswith(b"W/"))

    def has_weak(self, etag: bytes) -> bool:
        """Whether ``etag`` is among the tags by weak comparison (RFC 9110 section 8.8.3.2)."""
        opaque = {tag.removeprefix(b"W/") for tag in self.tags}
        return self.star or etag.removeprefix(b"W/") in opaque


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a request; a date that is invalid counts as absent.

    Its methods take the entity tag of the file as ``etag``, and its last modification in seconds
    since the epoch as ``modified``.

    :ivar if_range: the value of If-Range as sent.
    """

    if_match: EntityTags | None = None
    if_none_match: EntityTags | None = None
    if_modified_since: int | None = None
    if_unmodified_since: int | None = None
    if_range: bytes | None = None

    @classmethod
    def parse(
        cls, get: Callable[[bytes], Sequence[bytes]], clock: Callable[[], float] = time.time
    ) -> Conditions:
        """Read the conditions of a request. Nothing is raised for what is malformed.

        :param get: gives the values of all field lines of a name, none if there are none.
        An If-Modified-Since of the future is as good as none: nobody can have got it from a server
        whose clock is right, and it would hide all changes until then.

        :param clock: the present in seconds since the epoch, for that and for dates with a
            two-digit year.
        """
        now = clock()

        def value(name: bytes) -> bytes | None:
            lines = get(name)
            return b", ".join(lines).strip(b" \t") if lines else None

        def tags(name: bytes) -> EntityTags | None:
            return None if (field := value(name)) is None else EntityTags.parse(field)

        def date(name: bytes) -> int | None:
            return parse_http_date(value(name) or b"", now)

        since = date(b"If-Modified-Since")
        return cls(
            if_match=tags(b"If-Match"),
            if_none_match=tags(b"If-None-Match"),
            if_modified_since=None if since is None or since > now else since,
            if_unmodified_since=date(b"If-Unmodified-Since"),
            if_range=value(b"If-Range"),
        )

    @property
    def create_only(self) -> bool:
        """Whether the request may only create (``If-None-Match: *``)."""
        return self.if_none_match is not None and self.if_none_match.star

    @property
    def any_version(self) -> bool:
        """Whether a change may be made whatever there is."""
        return (self.if_match, self.if_none_match, self.if_unmodified_since) == (None, None, None)

    def for_read(self, etag: bytes, modified: float) -> Verdict:
        """Evaluate the conditions of a GET or HEAD in the order of RFC 9110 section 13.2.2."""
        if not self._unchanged(etag, modified):
            return Verdict.FAILED
        if self.if_none_match is not None:
            held = self.if_none_match.has_weak(etag)
        else:
            since = self.if_modified_since
            held = since is not None and math.floor(modified) <= since
        return Verdict.NOT_MODIFIED if held else Verdict.PROCEED

    def for_write(self, etag: bytes | None, modified: float | None) -> bool:
        """Evaluate the conditions of a change in the order of RFC 9110 section 13.2.2.

        A list that cannot be parsed is never met: who sent it wanted some protection.

        :param etag: None, like ``modified``, if the file does not exist.
        :return: False for 412.
        """
        unwanted = self.if_none_match or EntityTags()
        held = unwanted.malformed or (etag is not None and unwanted.has_weak(etag))
        return self._unchanged(etag, modified) and not held

    def range_applies(self, etag: bytes) -> bool:
        """Whether If-Range lets the Range apply (RFC 9110 section 13.1.5).

        No date does: it would have to be strong, that is, the file must not have changed twice
        within that second, which nobody knows (section 8.8.2.2).
        """
        return self.if_range is None or (self.if_range == etag and not etag.startswith(b"W/"))

    def _unchanged(self, etag: bytes | None, modified: float | None) -> bool:
        """Evaluate If-Match, and only in its absence If-Unmodified-Since."""
        if self.if_match is not None:
            return etag is not None and self.if_match.has_strong(etag)
        since = self.if_unmodified_since
        return since is None or modified is None or math.floor(modified) <= since


def format_http_date(seconds: float) -> bytes:
    """Write a time as an IMF-fixdate (RFC 9110 section 5.6.7).

    :param seconds: since the epoch; fractions are cut off, and what lies beyond the years 1 to
        9999 is moved to their edge (a file's time can be anything).
    """
    whole = min(max(math.floor(seconds), _FIRST_SECOND), _LAST_SECOND)
    return formatdate(whole, usegmt=True).encode("ascii")


def parse_http_date(value: bytes, now: float) -> int | None:
    """Read a date in any of the three forms of RFC 9110 section 5.6.7.

    :param now: seconds since the epoch, to tell the century of an RFC 850 date.
    :return: seconds since the epoch, or None if it is not a valid date.
    """
    match = next((match for form in _DATES if (match := form.fullmatch(value))), None)
    if match is None:
        return None
    numbers = match.group("year", "day", "hour", "minute", "second")
    year, day, hour, minute, second = map(int, numbers)
    month = _MONTHS.index(match["month"]) + 1
    if len(match["year"]) == 2:
        today = datetime.fromtimestamp(now, timezone.utc)
        year += today.year // 100 * 100
        # What lies more than 50 years ahead is of the century before.
        if (year, month, day) > (today.year + 50, today.month, today.day):
            year -= 100
    try:
        start = datetime(year, month, day, hour, minute, tzinfo=timezone.utc)
    except ValueError:
        return None
    # 60 is a leap second, which datetime does not know.
    return int(start.timestamp()) + second if second <= 60 else None
