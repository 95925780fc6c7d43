from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.negotiation import listing_format
from tests.fields.growth import LENGTH, must_end

FIREFOX = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
CHROME = FIREFOX + b",application/signed-exchange;v=b3;q=0.7"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text"),
        (b"", "text"),
        (b"*/*", "text"),
        (b"text/plain", "text"),
        (b"text/*", "text"),
        (b"application/json", "json"),
        (b"application/*", "json"),
        (b"text/html", "html"),
        (b"TEXT/HTML", "html"),
        (FIREFOX, "html"),
        (CHROME, "html"),
        (b"image/png", "text"),
        (b"image/png, application/xml", "text"),
        (b"text/html;q=0", "text"),
        (b"text/html;q=0, application/json;q=0.000", "text"),
        # the weight decides first
        (b"text/html;q=0.5, application/json", "json"),
        (b"text/html;q=0.501, application/json;q=0.5, text/plain;q=0.1", "html"),
        (b"text/plain;q=0.2, application/json;q=0.1", "text"),
        (b"text/html ; q=0.1 , application/json\t;\tq=0.2", "json"),
        (b"text/html;Q=0.1, application/json;q=0.2", "json"),
        (b"text/html;q=0., application/json;q=1.", "json"),
        # a type has the weight of the most specific range, not of the best one
        (b"*/*, text/plain;q=0.5", "json"),
        (b"text/*;q=0.3, */*;q=0.5", "json"),
        (b"text/html;q=0.3, text/*;q=0.4, */*;q=0.1", "text"),
        (b"text/plain;q=0, text/*", "html"),
        (b"text/*;q=0, */*", "json"),
        # among equals the one named more specifically
        (b"*/*, application/json", "json"),
        (b"*/*, text/html", "html"),
        (b"text/*, application/json", "json"),
        (b"*/*, application/*", "json"),
        (b"text/*, text/html", "html"),
        # then text
        (b"text/html, text/plain", "text"),
        (b"application/json, text/plain, */*", "text"),
        # then the first
        (b"text/html, application/json", "html"),
        (b"application/json, text/html", "json"),
        (b"image/png, text/html, application/json", "html"),
        # parameters make no difference, whatever is in them
        (b"application/json;indent=2", "json"),
        (b"text/html;charset=utf-8;q=0.5, application/json;q=0.4", "html"),
        (b'text/html;x="a,b;q=0\\"";q=0.5, application/json;q=0.4', "html"),
        (b"text/html;q=0.5;ext=1, application/json;q=0.4", "html"),
        (b"text/html;level=1;q=0.3, text/html;q=0.7, application/json;q=0.5", "html"),
        (b"text/html;;q=0.4;, application/json;q=0.5", "json"),
        (b",, text/html ,,", "html"),
        (b"text/htm", "text"),
        (b"*/html", "text"),
        (b"application/json-seq", "text"),
    ],
)
def test_the_best_accepted_format_is_chosen(accept: bytes | None, expected: str) -> None:
    assert listing_format(accept) == expected


@pytest.mark.parametrize(
    "accept",
    [
        b"html",
        b"text/html, *; q=.2, */*; q=.2",
        b"text/html;q=2",
        b"text/html;q=1.001",
        b"text/html;q=0.1234",
        b"text/html;q=-1",
        b"text/html;q=nan",
        b"text/html;q=1e9",
        b'text/html;q="1"',
        b"text/html;q=",
        b"text/html;q",
        b"text/html;q=1;q=7",
        b"text/html;q = 1",
        b"text/html text/plain",
        b"text /html",
        b"text/html/x",
        b'text/html;x="',
        b'text/html;x="\x00"',
        b"text/html\n",
        b"text/html, \xff",
        b"application/json, (comment)",
    ],
)
def test_a_malformed_field_asks_for_nothing(accept: bytes) -> None:
    assert listing_format(accept) == "text"


weights = st.integers(1, 1000)


@given(weights, weights, weights, st.permutations(["text", "json", "html"]))
def test_three_different_weights_leave_no_choice(
    text: int, json: int, html: int, order: list[str]
) -> None:
    members = {
        "text": b"text/plain;q=%.3f" % (text / 1000),
        "json": b"application/json;q=%.3f" % (json / 1000),
        "html": b"text/html;q=%.3f" % (html / 1000),
    }
    best = max(text, json, html)
    chosen = listing_format(b", ".join(members[name] for name in order))
    equals = [name for name in order if {"text": text, "json": json, "html": html}[name] == best]
    assert chosen == ("text" if "text" in equals else equals[0])


@given(st.one_of(st.binary(), st.text('text/hml*;q=0.1, "\\\t').map(str.encode)))
def test_any_field_gives_a_format(accept: bytes) -> None:
    assert listing_format(accept) in ("text", "json", "html")


@pytest.mark.parametrize(
    "unit", [b"a", b"a/b,", b";", b"; ", b" ;\t", b';a="', b";a=b ", b" ", b",", b'\\"', b";q=1"]
)
@pytest.mark.parametrize("start", [b"", b"a/b", b"a/b;", b"a/b;c=", b'a/b;c="'])
def test_parsing_a_field_takes_no_more_than_its_length(start: bytes, unit: bytes) -> None:
    with must_end():
        listing_format(start + unit * (LENGTH // len(unit)) + b"\xff")
