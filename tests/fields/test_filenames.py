from __future__ import annotations

import contextlib
from base64 import b64encode
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.filenames import BadFileName, decode_filename
from tests.fields.growth import LENGTH, must_end

AIOHTTP = b"Python/3.12 aiohttp/3.13.2"
BROWSER = b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
CURL = b"curl/8.5.0"
REQUESTS = b"python-requests/2.32.5"


@pytest.mark.parametrize(
    ("plain", "extended", "agent", "name"),
    [
        (None, None, b"", None),
        ("x", None, b"", "x"),
        ("é", None, BROWSER, "é"),
        ("=?utf-8?B?w6kudHh0?=", None, b"", "é.txt"),
        ("=?UTF-8?b?w6k=?= =?utf-8?B?LnR4dA==?=", None, b"", "é.txt"),
        ("=?iso-8859-1?Q?=E9_x.txt?=", None, b"", "é x.txt"),
        ("=?utf-8*en?Q?a?=", None, b"", "a"),
        ("=?utf-8?B?w6kudHh0?=", "utf-8''%C3%A9.txt", b"", "é.txt"),
        (None, "UTF-8''%E6%B0%94%20x", b"", "气 x"),
        (None, "utf-8'en'x", b"", "x"),
        (None, "iso-8859-1''%e9", b"", "é"),
        ("e.txt", "UTF-8''%C3%A9.txt", BROWSER, "é.txt"),
        ("%C3%A9.txt", None, AIOHTTP, "é.txt"),
        ("a%20b.txt", None, AIOHTTP, "a b.txt"),
        ("100%25.txt", None, AIOHTTP, "100%.txt"),
        ("%C3%A9.txt", None, b"", "é.txt"),
        # What is sent as it is
        ("%C3%A9.txt", None, BROWSER, "%C3%A9.txt"),
        ("%C3%A9.txt", None, CURL, "%C3%A9.txt"),
        ("My%20Document.pdf", None, REQUESTS, "My%20Document.pdf"),
        ("100%.txt", None, AIOHTTP, "100%.txt"),
        ("%zz", None, AIOHTTP, "%zz"),
        ("%c3%a9", None, b"", "%c3%a9"),
        ("%FF", None, AIOHTTP, "%FF"),
        ("=?utf-8?B?w6k=?=.txt", None, b"", "=?utf-8?B?w6k=?=.txt"),
        ("=?utf-8?X?w6k=?=", None, b"", "=?utf-8?X?w6k=?="),
        ("a =?utf-8?B?w6k=?=", None, b"", "a =?utf-8?B?w6k=?="),
    ],
)
def test_a_name_is_decoded_as_its_client_means_it(
    plain: str | None, extended: str | None, agent: bytes, name: str | None
) -> None:
    assert decode_filename(plain, extended, agent) == name


@pytest.mark.parametrize(
    ("plain", "extended"),
    [
        ("=?utf-8?B?w6k?=", None),
        ("=?utf-8?B?/w==?=", None),
        ("=?utf-7?Q?a?=", None),
        ("=?rot13?Q?a?=", None),
        (None, "x"),
        (None, ""),
        (None, "UTF-8''%"),
        (None, "UTF-8''%FF"),
        (None, "UTF-16''%00x"),
        (None, "UTF-8''a b"),
        ("x", "UTF-8''é"),
    ],
)
def test_what_means_nothing_is_refused(plain: str | None, extended: str | None) -> None:
    with pytest.raises(BadFileName):
        decode_filename(plain, extended)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(names)
def test_what_clients_encode_is_decoded(name: str) -> None:
    assert decode_filename(quote(name, safe=""), None, AIOHTTP) == name
    assert decode_filename(None, f"UTF-8''{quote(name, safe='')}") == name
    assert decode_filename(f"=?utf-8?B?{b64encode(name.encode()).decode()}?=", None) == name


@given(
    st.text(), st.one_of(st.none(), st.text("UTF8-'%c3A9x=?B ")), st.sampled_from([AIOHTTP, b""])
)
def test_nothing_but_a_refusal_is_raised(plain: str, extended: str | None, agent: bytes) -> None:
    for each in (plain, f"=?utf-8?Q?{plain}?=", f"=?utf-8?B?{plain}?="):
        with contextlib.suppress(BadFileName):
            decode_filename(each, extended, agent)


def test_decoding_takes_no_more_than_the_length_of_a_name() -> None:
    for unit in ("=?a?Q?a?=", "=?", "%C3%A9", "=?utf-8?B?", "''", "=?a*a?Q?", " "):
        with must_end():
            for agent in (AIOHTTP, b""):
                try:
                    decode_filename(unit * (LENGTH // len(unit)) + "x", None, agent)
                    decode_filename(None, unit * (LENGTH // len(unit)), agent)
                except BadFileName:
                    pass
