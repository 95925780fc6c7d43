from __future__ import annotations

from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.ranges import (
    MAX_RANGES,
    PartialContent,
    Range,
    RangeNotSatisfiable,
    choose_ranges,
    partial_content,
)
from tests.fields.growth import LENGTH, must_end

HUGE = b"9" * 8000
Spec = tuple[int | None, int | None]


def spans(field: bytes | None, size: int) -> list[tuple[int, int]] | None:
    chosen = choose_ranges(field, size)
    return None if chosen is None else [(span.first, span.last) for span in chosen]


def body(plan: PartialContent, content: bytes) -> bytes:
    sent = [head + content[span.first : span.last + 1] for head, span in plan.parts]
    return b"".join(sent) + plan.closing


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"bytes=0-", [(0, 99)]),
        (b"bytes=0-0", [(0, 0)]),
        (b"bytes=10-19", [(10, 19)]),
        (b"bytes=99-", [(99, 99)]),
        (b"bytes=99-99", [(99, 99)]),
        (b"bytes=0-1000", [(0, 99)]),
        (b"bytes=007-0010", [(7, 10)]),
        (b"bytes=0-" + HUGE, [(0, 99)]),
        (b"bytes=" + b"0" * 8000 + b"7-8", [(7, 8)]),
        (b"bytes=-1", [(99, 99)]),
        (b"bytes=-10", [(90, 99)]),
        (b"bytes=-010", [(90, 99)]),
        (b"bytes=-100", [(0, 99)]),
        (b"bytes=-101", [(0, 99)]),
        (b"bytes=-" + HUGE, [(0, 99)]),
        (b"Bytes=1-2", [(1, 2)]),
        (b"bytes=1-2,4-5", [(1, 2), (4, 5)]),
        (b"bytes= 1-2 ,\t4-5 ", [(1, 2), (4, 5)]),
        (b"bytes=,1-2,,4-5,", [(1, 2), (4, 5)]),
        (b"bytes=50-59,0-9,-5", [(50, 59), (0, 9), (95, 99)]),
        (b"bytes=0-9,10-19", [(0, 9), (10, 19)]),
        (b"bytes=0-9,100-", [(0, 9)]),
        (b"bytes=-0,0-9," + HUGE + b"-", [(0, 9)]),
    ],
)
def test_the_satisfiable_ranges_are_served_in_the_order_asked(
    field: bytes, expected: list[tuple[int, int]]
) -> None:
    assert spans(field, 100) == expected


@pytest.mark.parametrize(
    "field",
    [
        None,
        b"",
        b"bytes",
        b"bytes=",
        b"bytes=,",
        b"bytes=-",
        b"bytes=5",
        b"bytes=5-4",
        b"bytes=0-1,5-4",
        b"bytes=500-400",
        b"bytes=" + HUGE + b"-5",
        b"bytes=" + HUGE + b"-" + HUGE[1:],
        b"bytes=" + b"9" * 5000 + b"-" + b"9" * 4999 + b"8",
        b"bytes=10-9",
        b"bytes=0-1,x",
        b"bytes=1-2,x",
        b"bytes=a-b",
        b"bytes=1-2-3",
        b"bytes=--1",
        b"bytes=+1-2",
        b"bytes=1 - 2",
        b"bytes=1_0-20",
        b"bytes=0x1-2",
        "bytes=\u0661-\u0662".encode(),
        b"bytes =0-1",
        b"bytes 0-1",
        b"items=0-1",
        b"bytes=0-1\n",
    ],
)
def test_a_range_that_is_not_understood_is_ignored(field: bytes | None) -> None:
    assert choose_ranges(field, 100) is None


@pytest.mark.parametrize(
    "field",
    [b"bytes=0-5,5-9", b"bytes=0-,0-", b"bytes=0-,-1", b"bytes=10-20,12-13", b"bytes=9-9,0-0,9-"],
)
def test_overlapping_ranges_are_ignored(field: bytes) -> None:
    assert choose_ranges(field, 100) is None


def test_at_most_16_ranges_are_served() -> None:
    specs = [b"%d-%d" % (n, n) for n in range(0, 34, 2)]
    assert MAX_RANGES == 16
    assert len(choose_ranges(b"bytes=" + b",".join(specs[:16]), 100) or ()) == 16
    assert choose_ranges(b"bytes=" + b",".join(specs), 100) is None
    assert choose_ranges(b"bytes=0-0" + b",200-" * 16, 100) is None


@pytest.mark.parametrize(
    "field", [b"bytes=100-", b"bytes=100-200", b"bytes=-0", b"bytes=-000", b"bytes=" + HUGE + b"-"]
)
def test_ranges_without_a_byte_in_the_file_are_unsatisfiable(field: bytes) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        choose_ranges(field, 100)
    assert caught.value.size == 100


@pytest.mark.parametrize(
    "field",
    [
        b"bytes=0-",
        b"bytes=0-0",
        b"bytes=5-",
        b"bytes=-0",
        b"bytes=-1",
        b"bytes=0-,-1",
        b"bytes=5-9,0-",
    ],
)
def test_any_range_of_an_empty_file_is_the_whole_file(field: bytes) -> None:
    assert choose_ranges(field, 0) is None


specs = st.one_of(
    st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 40))),
    st.tuples(st.none(), st.integers(0, 40)),
)


def written(spec: Spec, blank: str, zeros: int) -> str:
    digits = ["" if number is None else "0" * zeros + str(number) for number in spec]
    return blank + "-".join(digits) + blank


def positions(spec: Spec, size: int) -> list[int]:
    """The bytes that one range asks for, by definition."""
    first, last = spec
    if first is None:
        return [n for n in range(size) if n >= size - (last or 0)]
    return [n for n in range(size) if n >= first and (last is None or n <= last)]


@given(
    st.lists(specs, min_size=1, max_size=18),
    st.integers(1, 40),
    st.sampled_from(["", " ", "\t "]),
    st.integers(0, 25),
)
def test_ranges_are_as_a_plain_model_has_them(
    asked: list[Spec], size: int, blank: str, zeros: int
) -> None:
    field = b"bytes=" + ",".join(written(spec, blank, zeros) for spec in asked).encode()
    served = [found for spec in asked if (found := positions(spec, size))]
    everything = [n for found in served for n in found]
    invalid = any(None not in spec and spec > spec[::-1] for spec in asked)
    if len(asked) > MAX_RANGES or invalid or len(set(everything)) < len(everything):
        assert spans(field, size) is None
    elif not served:
        with pytest.raises(RangeNotSatisfiable):
            choose_ranges(field, size)
    else:
        assert spans(field, size) == [(found[0], found[-1]) for found in served]


@given(
    st.one_of(st.binary(), st.text("0123456789-, \t").map(lambda text: b"bytes=" + text.encode())),
    st.integers(0, 2**63),
)
def test_any_field_gives_ranges_within_the_file_or_none(field: bytes, size: int) -> None:
    try:
        chosen = choose_ranges(field, size)
    except RangeNotSatisfiable:
        return
    assert all(0 <= span.first <= span.last < size for span in chosen or ())
    assert sum(span.length for span in chosen or ()) <= size


@pytest.mark.parametrize(
    "field",
    [
        b"bytes=" + b"," * LENGTH,
        b"bytes=" + b"1-" * (LENGTH // 2),
        b"bytes=" + b" " * LENGTH + b"-",
        HUGE * 8,
    ],
)
def test_parsing_a_field_takes_no_more_than_its_length(field: bytes) -> None:
    with must_end():
        choose_ranges(field, 100)


def test_a_single_range_is_sent_bare_with_its_content_range() -> None:
    plan = partial_content(b"bytes=10-19", 100, b"text/plain", b"cut")
    assert plan == PartialContent(
        ((b"Content-Type", b"text/plain"), (b"Content-Range", b"bytes 10-19/100")),
        ((b"", Range(10, 19)),),
        b"",
    )
    assert plan.length == 10


def test_a_single_range_of_an_unknown_type_has_no_content_type() -> None:
    plan = partial_content(b"bytes=-1", 100, None, b"cut")
    assert plan is not None
    assert plan.headers == ((b"Content-Range", b"bytes 99-99/100"),)


def test_a_single_satisfiable_range_of_many_is_sent_bare() -> None:
    plan = partial_content(b"bytes=0-1,500-", 100, None, b"cut")
    assert plan is not None
    assert plan.parts == ((b"", Range(0, 1)),)


@pytest.mark.parametrize("content_type", [None, b"text/csv"])
def test_many_ranges_are_framed_as_multipart_byteranges(content_type: bytes | None) -> None:
    content = bytes(range(256)) * 4
    plan = partial_content(b"bytes=300-399,0-9", len(content), content_type, b"cut")
    assert plan is not None
    assert plan.headers == ((b"Content-Type", b"multipart/byteranges; boundary=cut"),)
    sent = body(plan, content)
    assert len(sent) == plan.length
    typed = b"Content-Type: %b\r\n" % content_type if content_type else b""
    assert sent == (
        b"\r\n--cut\r\n"
        + typed
        + b"Content-Range: bytes 300-399/1024\r\n\r\n"
        + content[300:400]
        + b"\r\n--cut\r\n"
        + typed
        + b"Content-Range: bytes 0-9/1024\r\n\r\n"
        + content[:10]
        + b"\r\n--cut--\r\n"
    )


def test_a_multipart_body_is_read_by_the_standard_library() -> None:
    content = b"0123456789" * 30
    plan = partial_content(b"bytes=200-204,0-1", len(content), b"text/csv", b"cut")
    assert plan is not None
    head = b"".join(b"%b: %b\r\n" % field for field in plan.headers) + b"\r\n"
    message = message_from_bytes(head + body(plan, content))
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part.get_payload(decode=True) for part in parts] == [b"01234", b"01"]
    assert [part["Content-Range"] for part in parts] == ["bytes 200-204/300", "bytes 0-1/300"]
    assert [part.get_content_type() for part in parts] == ["text/csv", "text/csv"]


def test_the_whole_file_is_sent_when_the_frame_would_make_the_answer_longer() -> None:
    field, cut = b"bytes=0-0,2-2", b"cut"
    long_enough = next(n for n in range(3, 1000) if partial_content(field, n, None, cut))
    shortest = partial_content(field, long_enough, None, cut)
    assert shortest is not None
    assert shortest.length == long_enough
    assert partial_content(field, long_enough - 1, None, cut) is None
    assert partial_content(field, long_enough, b"text/plain", cut) is None


def test_no_plan_is_made_without_ranges() -> None:
    assert partial_content(None, 100, None, b"cut") is None
    with pytest.raises(RangeNotSatisfiable):
        partial_content(b"bytes=100-", 100, None, b"cut")
