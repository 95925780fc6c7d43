from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.digests import (
    HASHES,
    BadDigestField,
    expected_digests,
    format_digest,
    wanted_digest,
)
from tests.fields.growth import LENGTH, must_end

CONTENT = b"hello\n"
SHA256 = hashlib.sha256(CONTENT).digest()
SHA512 = hashlib.sha512(CONTENT).digest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).digest()
OTHER = hashlib.sha256(b"").digest()
S256, S512, O256 = (
    format_digest("sha-256", SHA256),
    format_digest("sha-512", SHA512),
    format_digest("sha-256", OTHER),
)
UNPADDED = b"sha-256=:" + b64encode(SHA256).rstrip(b"=") + b":"


def expected(**fields: bytes | list[bytes]) -> dict[str, bytes]:
    lines = {name.replace("_", "-").lower().encode(): value for name, value in fields.items()}

    def get(name: bytes) -> list[bytes]:
        value = lines.get(name.lower(), [])
        return value if isinstance(value, list) else [value]

    return expected_digests(get)


@pytest.mark.parametrize("field", ["Repr_Digest", "Content_Digest"])
@pytest.mark.parametrize(
    ("value", "digests"),
    [
        (b"", {}),
        (S256, {"sha-256": SHA256}),
        (S512, {"sha-512": SHA512}),
        (b" " + S256 + b" ,\t" + S512 + b" ", {"sha-256": SHA256, "sha-512": SHA512}),
        ([S256, S512], {"sha-256": SHA256, "sha-512": SHA512}),
        ([S256, S256], {"sha-256": SHA256}),
        (UNPADDED, {"sha-256": SHA256}),
        (S256 + b";a;b=1; c=?0", {"sha-256": SHA256}),
        (S256 + b';s="a,\\";";t=to/ken:x;n=-1.5;d=@1;u=%"f%c3%bc"', {"sha-256": SHA256}),
        (b"md5=:AAAA:, sha=:AA==:, unixsum=30637, id-sha-256=:AAAA:", {}),
        (b"adler=tok, crc32c, x=?1," + S256, {"sha-256": SHA256}),
        (b"*a.b-c_1=1", {}),
    ],
)
def test_known_digests_are_read_and_unknown_ones_left_out(
    field: str, value: bytes | list[bytes], digests: dict[str, bytes]
) -> None:
    assert expected(**{field: value}) == digests


@pytest.mark.parametrize("field", ["Repr_Digest", "Content_Digest"])
@pytest.mark.parametrize(
    "value",
    [
        b"sha-256",
        b"sha-256=",
        b"sha-256=?1",
        b'sha-256="' + b64encode(SHA256) + b'"',
        b"sha-256=" + b64encode(SHA256).rstrip(b"="),
        b"sha-256=::",
        b"sha-256=:AAAA:",
        b"sha-256=:" + b64encode(SHA512) + b":",
        b"sha-512=:" + b64encode(SHA256) + b":",
        b"sha-256=:" + b64encode(SHA256)[:-3] + b":",
        b"sha-256=:" + b64encode(SHA256) + b"AAAA:",
        b"sha-256=:" + b64encode(SHA256).replace(b"=", b"==") + b"=:",
        b"sha-256=:-" + b64encode(SHA256)[1:] + b":",
        b"sha-256=: " + b64encode(SHA256) + b":",
        b"sha-256=:A===" + b64encode(SHA256) + b":",
        b"sha-256 =:" + b64encode(SHA256) + b":",
        b"sha-256= :" + b64encode(SHA256) + b":",
        b"SHA-256=:" + b64encode(SHA256) + b":",
        S256[:-1],
        S256 + b",",
        b"," + S256,
        S256 + b",," + S512,
        S256 + b" " + S512,
        S256 + b";",
        S256 + b" ;a",
        S256 + b";A",
        S256 + b";a=",
        S256 + b'x="',
        S256 + b"\n",
        b"x=(1 2)",
        b"x=1234567890123456",
        b"\xff",
        S256 + b"," + O256,
        [S256, O256],
    ],
)
def test_a_malformed_digest_is_refused(field: str, value: bytes | list[bytes]) -> None:
    with pytest.raises(BadDigestField):
        expected(**{field: value})


def test_all_fields_count() -> None:
    given_digests = expected(Repr_Digest=S256, Content_Digest=S512, Content_MD5=b64encode(MD5))
    assert given_digests == {"sha-256": SHA256, "sha-512": SHA512, "md5": MD5}


def test_two_fields_may_agree_and_must_not_differ() -> None:
    assert expected(Repr_Digest=S256, Content_Digest=S256) == {"sha-256": SHA256}
    with pytest.raises(BadDigestField, match="two different sha-256"):
        expected(Repr_Digest=S256, Content_Digest=O256)


def test_md5_is_taken_from_its_own_field_only() -> None:
    assert expected(Content_Digest=format_digest("md5", MD5)) == {}
    assert expected(Content_MD5=b" " + b64encode(MD5)) == {"md5": MD5}
    assert expected(Content_MD5=[b64encode(MD5)] * 2) == {"md5": MD5}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"AAAA",
        MD5.hex().encode(),
        b64encode(SHA256),
        b":" + b64encode(MD5) + b":",
        b"-" + b64encode(MD5),
        b64encode(MD5) + b"\n",
        b"\xff" * 24,
        [b64encode(MD5), b64encode(OTHER[:16])],
    ],
)
def test_a_malformed_content_md5_is_refused(value: bytes | list[bytes]) -> None:
    with pytest.raises(BadDigestField):
        expected(Content_MD5=value)


@pytest.mark.parametrize(
    ("field", "algorithm"),
    [
        (None, None),
        (b"", None),
        (b"sha-256=10", "sha-256"),
        (b"sha-256=1", "sha-256"),
        (b"sha-512=3", "sha-512"),
        (b"sha-256=10, sha-512=3", "sha-256"),
        (b"sha-256=3,sha-512=10", "sha-512"),
        (b"sha-512=5, sha-256=5", "sha-256"),
        (b"sha-256=0", None),
        (b"sha-256=0, sha-512=1", "sha-512"),
        (b"sha-512=0, md5=10", None),
        (b"md5=9, unixsum=x, sha-512=1", "sha-512"),
        (b"sha-256=1;q=2", "sha-256"),
        (b"sha-256=9, sha-256=0", None),  # RFC 9651: the last one counts
        (b"sha-256", None),
        (b"sha-256=11", None),
        (b"sha-256=-1", None),
        (b"sha-256=1.5", None),
        (b"sha-256=a", None),
        (b"sha-256=1, sha-512=11", None),
        (b"sha-256=1,", None),
        (b"sha-256=" + b"9" * 5000, None),
        (b"\xff", None),
    ],
)
def test_the_known_digest_of_the_highest_preference_is_wanted(
    field: bytes | None, algorithm: str | None
) -> None:
    assert wanted_digest(field) == algorithm


@given(st.integers(-3, 13), st.integers(-3, 13))
def test_preferences_are_as_a_plain_model_has_them(first: int, second: int) -> None:
    field = b"sha-512=%d, md5=99, sha-256=%d" % (second, first)
    valid = 0 <= first <= 10 and 0 <= second <= 10
    best = "sha-256" if first >= second else "sha-512"
    assert wanted_digest(field) == (best if valid and max(first, second) > 0 else None)


@given(st.sampled_from(["sha-256", "sha-512"]), st.binary())
def test_a_written_digest_is_read_back(algorithm: str, content: bytes) -> None:
    digest = hashlib.new(HASHES[algorithm], content).digest()
    assert expected(Repr_Digest=format_digest(algorithm, digest)) == {algorithm: digest}


def test_a_digest_is_written_as_a_byte_sequence() -> None:
    assert format_digest("sha-256", SHA256) == b"sha-256=:" + b64encode(SHA256) + b":"


def test_every_algorithm_is_known_to_hashlib() -> None:
    for name in HASHES.values():
        hashlib.new(name, usedforsecurity=False)


fields = st.one_of(st.binary(), st.text('sha-25612md=:A/;, "\\?@%.*\t').map(str.encode))


@given(fields, fields, fields)
def test_any_field_is_understood_or_refused(repr_: bytes, content: bytes, md5: bytes) -> None:
    wanted_digest(repr_)
    try:
        digests = expected(Repr_Digest=repr_, Content_Digest=content, Content_MD5=md5)
    except BadDigestField:
        return
    assert digests.keys() <= HASHES.keys()


@pytest.mark.parametrize(
    "unit",
    [b"a", b"a,", b"a, ", b" ", b";a", b"; a=1", b'="', b"a=:AAAA", b"a;b=c:/", b'\\"', b"1"],
)
@pytest.mark.parametrize("start", [b"", b"a", b"a=", b'a="', b"a=:", b"a;"])
def test_parsing_a_field_takes_no_more_than_its_length(start: bytes, unit: bytes) -> None:
    with must_end():
        wanted_digest(start + unit * (LENGTH // len(unit)) + b"\xff")
