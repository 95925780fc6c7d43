from __future__ import annotations

from calendar import timegm
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.conditions import (
    Conditions,
    EntityTags,
    Verdict,
    format_http_date,
    parse_http_date,
)
from tests.fields.growth import LENGTH, must_end

ETAG = b'"a"'
WEAK = b'W/"a"'
MODIFIED = 784111777.9
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = b"Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = b"Sun, 06 Nov 1994 08:49:38 GMT"
NOW = 1_750_000_000.0  # June 2025


def conditions(**fields: bytes | list[bytes]) -> Conditions:
    lines = {name.replace("_", "-").lower().encode(): value for name, value in fields.items()}

    def get(name: bytes) -> list[bytes]:
        value = lines.get(name.lower(), [])
        return value if isinstance(value, list) else [value]

    return Conditions.parse(get, lambda: NOW)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (b'"a"', {b'"a"'}),
        (b'W/"a"', {b'W/"a"'}),
        (b'""', {b'""'}),
        (b'"*"', {b'"*"'}),
        (b'"a","b"', {b'"a"', b'"b"'}),
        (b'"a" ,\tW/"b"', {b'"a"', b'W/"b"'}),
        (b'"a,b", "c"', {b'"a,b"', b'"c"'}),
        (b'"W/", "c"', {b'"W/"', b'"c"'}),
        (b',, "a",, "b",', {b'"a"', b'"b"'}),
        (b'"\\"', {b'"\\"'}),
        (b'"\xe9!"', {b'"\xe9!"'}),
        (b"", set()),
        (b" , ", set()),
    ],
)
def test_entity_tags_are_listed(value: bytes, tags: set[bytes]) -> None:
    assert EntityTags.parse(value) == EntityTags(frozenset(tags))


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b'"a',
        b'a"',
        b'w/"a"',
        b'W/ "a"',
        b'W/a"',
        b'"a" "b"',
        b'"a";"b"',
        b'"a b"',
        b'"a\x7f"',
        b'"a\x00"',
        b'"a\n"',
        b'"a"\n',
        b"**",
        b'*, "a"',
        b'"a", *',
        b'"a\\"b"',
    ],
)
def test_what_is_not_a_list_of_entity_tags_is_malformed(value: bytes) -> None:
    assert EntityTags.parse(value) == EntityTags(malformed=True)


def test_strong_comparison_needs_two_strong_tags_and_weak_comparison_does_not() -> None:
    # RFC 9110 section 8.8.3.2, table 3
    table = {
        (b'W/"1"', b'W/"1"'): (False, True),
        (b'W/"1"', b'W/"2"'): (False, False),
        (b'W/"1"', b'"1"'): (False, True),
        (b'"1"', b'W/"1"'): (False, True),
        (b'"1"', b'"1"'): (True, True),
    }
    for (ours, theirs), (strong, weak) in table.items():
        tags = EntityTags.parse(theirs)
        assert (tags.has_strong(ours), tags.has_weak(ours)) == (strong, weak)


FAILED, NOT_MODIFIED, PROCEED = Verdict.FAILED, Verdict.NOT_MODIFIED, Verdict.PROCEED


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, PROCEED),
        ({"If_Match": ETAG}, PROCEED),
        ({"If_Match": b"*"}, PROCEED),
        ({"If_Match": b'"b", "a"'}, PROCEED),
        ({"If_Match": [b'"b"', b'"a"']}, PROCEED),
        ({"If_Match": b'"b"'}, FAILED),
        ({"If_Match": WEAK}, FAILED),
        ({"If_Match": b""}, FAILED),
        ({"If_Match": b"a"}, FAILED),
        ({"If_Match": b'"a", b'}, FAILED),
        ({"If_None_Match": ETAG}, NOT_MODIFIED),
        ({"If_None_Match": WEAK}, NOT_MODIFIED),
        ({"If_None_Match": b"*"}, NOT_MODIFIED),
        ({"If_None_Match": b" * "}, NOT_MODIFIED),
        ({"If_None_Match": [b'"b"', b'"a"']}, NOT_MODIFIED),
        ({"If_None_Match": b'"b"'}, PROCEED),
        ({"If_None_Match": b'"a", b'}, PROCEED),
        ({"If_Modified_Since": DATE}, NOT_MODIFIED),
        ({"If_Modified_Since": b" " + DATE}, NOT_MODIFIED),
        ({"If_Modified_Since": AFTER}, NOT_MODIFIED),
        ({"If_Modified_Since": BEFORE}, PROCEED),
        ({"If_Modified_Since": b"yesterday"}, PROCEED),
        ({"If_Modified_Since": [DATE, DATE]}, PROCEED),
        ({"If_Unmodified_Since": DATE}, PROCEED),
        ({"If_Unmodified_Since": AFTER}, PROCEED),
        ({"If_Unmodified_Since": BEFORE}, FAILED),
        ({"If_Unmodified_Since": b"yesterday"}, PROCEED),
        ({"If_Unmodified_Since": [BEFORE, BEFORE]}, PROCEED),
        # what goes before what
        ({"If_Match": ETAG, "If_Unmodified_Since": BEFORE}, PROCEED),
        ({"If_Match": b'"b"', "If_None_Match": ETAG}, FAILED),
        ({"If_Match": ETAG, "If_None_Match": ETAG}, NOT_MODIFIED),
        ({"If_Unmodified_Since": BEFORE, "If_Modified_Since": DATE}, FAILED),
        ({"If_Unmodified_Since": DATE, "If_Modified_Since": DATE}, NOT_MODIFIED),
        ({"If_None_Match": b'"b"', "If_Modified_Since": DATE}, PROCEED),
        ({"If_None_Match": b"malformed", "If_Modified_Since": DATE}, PROCEED),
        ({"If_None_Match": ETAG, "If_Modified_Since": BEFORE}, NOT_MODIFIED),
    ],
)
def test_a_read_is_judged_by_its_conditions(
    fields: dict[str, bytes | list[bytes]], verdict: Verdict
) -> None:
    assert conditions(**fields).for_read(ETAG, MODIFIED) is verdict


@pytest.mark.parametrize(
    ("fields", "when_there", "when_missing"),
    [
        ({}, True, True),
        ({"If_None_Match": b"*"}, False, True),
        ({"If_None_Match": ETAG}, False, True),
        ({"If_None_Match": WEAK}, False, True),
        ({"If_None_Match": b'"b"'}, True, True),
        ({"If_None_Match": b""}, True, True),
        ({"If_None_Match": b"a"}, False, False),
        ({"If_None_Match": [b"*", b"*"]}, False, False),
        ({"If_Match": b"*"}, True, False),
        ({"If_Match": ETAG}, True, False),
        ({"If_Match": b'"b"'}, False, False),
        ({"If_Match": WEAK}, False, False),
        ({"If_Match": b""}, False, False),
        ({"If_Match": b"a"}, False, False),
        ({"If_Unmodified_Since": DATE}, True, True),
        ({"If_Unmodified_Since": BEFORE}, False, True),
        ({"If_Unmodified_Since": b"yesterday"}, True, True),
        ({"If_Modified_Since": DATE}, True, True),
        ({"If_Match": ETAG, "If_Unmodified_Since": BEFORE}, True, False),
        ({"If_Match": ETAG, "If_None_Match": b"*"}, False, False),
        ({"If_Unmodified_Since": BEFORE, "If_None_Match": b'"b"'}, False, True),
    ],
)
def test_a_write_is_allowed_by_its_conditions(
    fields: dict[str, bytes | list[bytes]], when_there: bool, when_missing: bool
) -> None:
    asked = conditions(**fields)
    assert asked.for_write(ETAG, MODIFIED) is when_there
    assert asked.for_write(None, None) is when_missing


@pytest.mark.parametrize(
    ("value", "create_only"), [(b"*", True), (b'"*"', False), (b"", False), (b'*, "a"', False)]
)
def test_only_a_star_in_if_none_match_asks_to_create_only(value: bytes, create_only: bool) -> None:
    assert conditions(If_None_Match=value).create_only is create_only
    assert not conditions(If_Match=value).create_only


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        ([], True),
        (ETAG, True),
        (b'"b"', False),
        (WEAK, False),
        (b"*", False),
        (b'"a", "a"', False),
        ([ETAG, ETAG], False),
        (b"a", False),
        (b"", False),
        (DATE, False),
        (BEFORE, False),
        (AFTER, False),
    ],
)
def test_if_range_wants_exactly_this_version(value: bytes | list[bytes], applies: bool) -> None:
    assert conditions(If_Range=value).range_applies(ETAG) is applies


def test_if_range_never_holds_for_a_weak_tag() -> None:
    assert not conditions(If_Range=WEAK).range_applies(WEAK)


def test_a_date_that_has_not_come_yet_hides_no_change() -> None:
    for since, verdict in ((NOW, NOT_MODIFIED), (NOW + 1, PROCEED), (1e11, PROCEED)):
        date = format_http_date(since)
        assert conditions(If_Modified_Since=date).for_read(ETAG, MODIFIED) is verdict


@pytest.mark.parametrize(
    "value",
    [DATE, b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"],
)
def test_a_date_is_read_in_all_three_forms(value: bytes) -> None:
    assert parse_http_date(value, NOW) == 784111777


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Tue, 29 Feb 2000 23:59:59 GMT", (2000, 2, 29, 23, 59, 59)),
        (b"Sat, 31 Dec 2016 23:59:60 GMT", (2017, 1, 1, 0, 0, 0)),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", (1970, 1, 1, 0, 0, 0)),
        (b"Fri Dec 31 23:59:59 9999", (9999, 12, 31, 23, 59, 59)),
        (b"Mon, 01 Jan 0001 00:00:00 GMT", (1, 1, 1, 0, 0, 0)),
        # 50 years from June 2025, and a day more
        (b"Saturday, 15-Jun-75 00:00:00 GMT", (2075, 6, 15, 0, 0, 0)),
        (b"Sunday, 16-Jun-75 00:00:00 GMT", (1975, 6, 16, 0, 0, 0)),
        (b"Friday, 31-Dec-99 23:59:59 GMT", (1999, 12, 31, 23, 59, 59)),
        (b"Saturday, 01-Jan-00 00:00:00 GMT", (2000, 1, 1, 0, 0, 0)),
    ],
)
def test_a_date_is_a_point_in_time(value: bytes, expected: tuple[int, ...]) -> None:
    assert parse_http_date(value, NOW) == timegm(expected)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"784111777",
        b"yesterday",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 06 Nov 1994 08:49:37 GMT\n",
        b"sun, 06 nov 1994 08:49:37 gmt",
        b"06 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Nov 1994 08:49:37 GMT",
        b"Thu, 29 Feb 2001 08:49:37 GMT",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:00 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sun, 06-Nov-94 08:49:37 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun Nov    08:49:37 1994",
        b"Sun Nov 6  08:49:37 1994",
        "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT".encode(),
    ],
)
def test_what_is_not_a_date_is_none(value: bytes) -> None:
    assert parse_http_date(value, NOW) is None


@given(st.integers(-62135596800, 253402300799))
def test_a_written_date_is_read_back(seconds: int) -> None:
    assert parse_http_date(format_http_date(seconds), NOW) == seconds


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (784111777.9999999, DATE),
        (-0.5, b"Wed, 31 Dec 1969 23:59:59 GMT"),
        (1e15, b"Fri, 31 Dec 9999 23:59:59 GMT"),
        (-1e15, b"Mon, 01 Jan 0001 00:00:00 GMT"),
    ],
)
def test_a_date_is_written_in_whole_seconds_of_four_digit_years(
    seconds: float, written: bytes
) -> None:
    assert format_http_date(seconds) == written


def test_the_last_modified_we_send_is_never_older_than_the_file_for_who_sends_it_back() -> None:
    for modified in (0.0, 0.5, -0.5, 784111777.9999999):
        date = format_http_date(modified)
        assert conditions(If_Modified_Since=date).for_read(ETAG, modified) is NOT_MODIFIED
        assert conditions(If_Unmodified_Since=date).for_write(ETAG, modified)


MATCHES: list[bytes | None] = [None, b"*", b'"a"', b'"b"', b'W/"a"', b'"b", "a"', b"x"]
DATES: list[bytes | None] = [None, BEFORE, DATE, AFTER, b"x"]


def test_reads_are_judged_as_the_steps_of_the_rfc_have_it() -> None:
    for fields in product(MATCHES, DATES, MATCHES, DATES):
        names = ("If_Match", "If_Unmodified_Since", "If_None_Match", "If_Modified_Since")
        sent = {name: value for name, value in zip(names, fields, strict=True) if value is not None}
        assert conditions(**sent).for_read(ETAG, MODIFIED) is steps_of_a_read(*fields), sent


def steps_of_a_read(
    match: bytes | None, unmodified: bytes | None, none_match: bytes | None, since: bytes | None
) -> Verdict:
    """RFC 9110 section 13.2.2, for the file with the tag "a"."""
    if match is not None and match not in (b"*", b'"a"', b'"b", "a"'):
        return FAILED
    if match is None and unmodified == BEFORE:
        return FAILED
    if none_match is not None:
        hit = none_match in (b"*", b'"a"', b'W/"a"', b'"b", "a"')
        return NOT_MODIFIED if hit else PROCEED
    return NOT_MODIFIED if since in (DATE, AFTER) else PROCEED


@given(
    st.dictionaries(
        st.sampled_from(
            ["If_Match", "If_None_Match", "If_Range", "If_Modified_Since", "If_Unmodified_Since"]
        ),
        st.one_of(st.binary(), st.lists(st.text('W/"a*, \t').map(str.encode), max_size=3)),
    )
)
def test_no_field_makes_the_conditions_raise(fields: dict[str, bytes | list[bytes]]) -> None:
    asked = conditions(**fields)
    asked.for_read(ETAG, MODIFIED)
    asked.for_write(ETAG, MODIFIED)
    asked.for_write(None, None)
    asked.range_applies(ETAG)


@pytest.mark.parametrize("unit", [b'"', b",", b" ", b", ", b'"a",', b'"a" ', b"W/", b' "a" , '])
def test_parsing_a_list_takes_no_more_than_its_length(unit: bytes) -> None:
    with must_end():
        EntityTags.parse(unit * (LENGTH // len(unit)) + b"x")
