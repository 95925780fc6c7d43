from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.origins import host_of, is_at, origin_of
from tests.fields.growth import LENGTH, must_end


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"http://nas.lan", b"nas.lan"),
        (b"http://nas.lan", b"nas.lan:80"),
        (b"http://nas.lan", b"nas.lan:"),
        (b"http://nas.lan", b"NAS.lan"),
        (b"HTTP://NAS.lan:80", b"nas.lan"),
        (b"http://nas.lan:080", b"nas.lan:80"),
        (b"https://nas.lan", b"nas.lan"),
        (b"https://nas.lan", b"nas.lan:443"),
        (b"http://nas.lan:3000", b"Nas.Lan:3000"),
        (b"http://[::1]:3000", b"[::1]:3000"),
        (b"http://[::AB]", b"[::ab]:80"),
    ],
)
def test_these_are_one_origin(origin: bytes, host: bytes) -> None:
    assert is_at(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"http://nas.lan", b"nas.lan:443"),
        (b"https://nas.lan", b"nas.lan:80"),
        (b"http://nas.lan:3000", b"nas.lan"),
        (b"http://nas.lan", b"nas.lan:3000"),
        (b"http://nas.lan.foe", b"nas.lan"),
        (b"http://nas.lan@foe", b"nas.lan"),
        (b"http://foe/nas.lan", b"nas.lan"),
        (b"http://nas.lan/", b"nas.lan"),
        (b"http://nas.lan:", b"nas.lan"),
        (b"null", b"null"),
        (b"null", b""),
        (b"http://", b""),
        (b"", b""),
        (b"ftp://nas.lan", b"nas.lan"),
        (b"http://[nas.lan", b"[nas.lan"),
    ],
)
def test_these_are_not(origin: bytes, host: bytes) -> None:
    assert not is_at(origin, host)


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        (b"HTTPS://Example.ORG:443", b"https://example.org"),
        (b"https://example.org:80", b"https://example.org:80"),
        (b"http://example.org:80", b"http://example.org"),
        (b"null", None),
        (b"https://a b", None),
        (b"https://example.org/x", None),
    ],
)
def test_an_origin_is_spelled_as_browsers_do(value: bytes, canonical: bytes | None) -> None:
    assert origin_of(value) == canonical


@pytest.mark.parametrize(
    ("field", "host"),
    [(b"NAS.lan:3000", b"nas.lan"), (b"[::1]:", b"[::1]"), (b"", None), (b"a:b", None)],
)
def test_a_host_has_a_name(field: bytes, host: bytes | None) -> None:
    assert host_of(field) == host


@given(st.binary(), st.binary())
def test_nothing_makes_the_comparison_raise(origin: bytes, field: bytes) -> None:
    is_at(origin, field)
    is_at(b"http://" + origin, field)
    host_of(field)


def test_reading_an_origin_takes_no_more_than_its_length() -> None:
    for unit in (b"a", b"[", b"[::", b"0", b":"):
        with must_end():
            origin_of(b"http://" + unit * LENGTH)
            is_at(b"http://a:" + unit * LENGTH, unit * LENGTH)
