from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from httpnas.fields.names import (
    MAX_COMPONENT,
    MAX_NAME,
    BadName,
    NameTooLong,
    decode_name,
    is_of_folder,
    path_of,
    quote_component,
    split_verb,
)

VERBS = frozenset({b"wc", b"mv"})


def is_component(text: str) -> bool:
    return text not in (".", "..") and len(text.encode()) <= MAX_COMPONENT


components = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\x7f", min_codepoint=0x20),
    min_size=1,
    max_size=80,
).filter(is_component)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A name, and a raw path that spells it."""
    name = "/".join(draw(st.lists(components, max_size=5))).encode()
    raw = b"".join(draw(st.sampled_from(spellings_of(byte))) for byte in name)
    slashes = st.lists(st.sampled_from([b"/", b"%2f", b"%2F"]), min_size=1, max_size=3)
    dots = st.lists(st.tuples(slashes, st.sampled_from([b".", b"%2e"])), max_size=2)
    nothing = dots.map(lambda pairs: b"".join(b"".join(some) + dot for some, dot in pairs))
    front = draw(st.one_of(st.just(b""), st.tuples(nothing, slashes).map(joined)))
    return name, front + raw + draw(st.tuples(nothing, st.one_of(st.just([]), slashes)).map(joined))


def joined(pair: tuple[bytes, list[bytes]]) -> bytes:
    return pair[0] + b"".join(pair[1])


def spellings_of(byte: int) -> list[bytes]:
    escaped = [b"%%%02x" % byte, b"%%%02X" % byte]
    return escaped if byte == ord("%") else [*escaped, bytes([byte])]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"", b""),
        (b"/", b""),
        (b"///%2F%2f/", b""),
        (b"/a", b"a"),
        (b"a/b", b"a/b"),
        (b"a%2Fb", b"a/b"),
        (b"a%2fb", b"a/b"),
        (b"//a///b//", b"a/b"),
        (b"a%2F/%2Fb%2F", b"a/b"),
        (b".", b""),
        (b"/./", b""),
        (b"%2e", b""),
        (b"./a", b"a"),
        (b"a/./b", b"a/b"),
        (b"a/%2E%2F./b/.", b"a/b"),
        (b"%252e%252e%252f", b"%2e%2e%2f"),
        (b"%252e", b"%2e"),
        (b"%25", b"%"),
        (b"...", b"..."),
        (b".a/..b/c.", b".a/..b/c."),
        (b"a\\b", b"a\\b"),
        (b"..\\..", b"..\\.."),
        (b"a+b", b"a+b"),
        (b"a%20b", b"a b"),
        (b"a%3Fb%23c", b"a?b#c"),
        (b"%C3%A9", "é".encode()),
        ("é".encode(), "é".encode()),
        (b"%c3\xa9", "é".encode()),
        (b"%C2%85", b"\xc2\x85"),
        (b"C:", b"C:"),
        (b".httpnas", b".httpnas"),
    ],
)
def test_a_path_spells_one_name(raw: bytes, name: bytes) -> None:
    assert decode_name(raw) == name


@pytest.mark.parametrize("byte", [*range(0x20), 0x7F])
def test_a_control_character_is_refused_escaped_or_not(byte: int) -> None:
    for raw in (b"a%%%02xb" % byte, b"a%cb" % byte):
        with pytest.raises(BadName, match="control"):
            decode_name(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"..",
        b"../a",
        b"/../a",
        b"%2E%2E/a",
        b"a/../../b",
        b"a%2f..%2f..%2fb",
        b"a/..",
        b"a/../b",
        b"%2e%2E",
        b"./..",
        b".%2e/a",
        b"a%2F..%2Fb",
        b"..%2f",
        b"a/%2e%2e%2fb",
    ],
)
def test_a_component_that_leads_upwards_is_refused(raw: bytes) -> None:
    with pytest.raises(BadName, match=r"'\.\.'"):
        decode_name(raw)


@pytest.mark.parametrize(
    "raw", [b"%", b"a%", b"%2", b"%zz", b"%2/f", b"%+1", b"% 1", b"%%20", b"%2g", b"%u002e"]
)
def test_a_bad_escape_is_refused(raw: bytes) -> None:
    with pytest.raises(BadName, match="hexadecimal"):
        decode_name(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"%ff",
        b"\xff",
        b"%c3",
        b"%c3/%a9",
        b"%E6%B0",  # two bytes of three
        b"%e0%80%ae",  # an overlong dot
        b"%a9",
        b"%c0%ae%c0%ae",  # overlong dots
        b"%c0%af",  # overlong slash
        b"%e0%80%af",
        b"%c0%80",  # overlong NUL
        b"%ed%a0%80",  # surrogate
        b"%f4%90%80%80",  # past the last code point
    ],
)
def test_invalid_utf8_is_refused(raw: bytes) -> None:
    with pytest.raises(BadName, match="UTF-8"):
        decode_name(raw)


def test_a_component_may_have_255_decoded_bytes_and_no_more() -> None:
    longest = b"%C3%A9" * 127 + b"a"
    assert len(decode_name(longest)) == MAX_COMPONENT == 255
    for longer in (longest + b"a", b"%E6%B0%94" * 86):
        with pytest.raises(BadName, match="255"):
            decode_name(b"a/" + longer)


def test_a_name_may_have_4096_decoded_bytes_and_no_more() -> None:
    longest = b"/".join([b"a" * 127] * 31 + [b"a" * 128])
    escaped = b"".join(b"%%%02x" % byte for byte in longest)
    assert len(longest) == MAX_NAME == 4096
    assert decode_name(longest) == longest
    assert decode_name(b"/" + escaped + b"/") == longest
    with pytest.raises(NameTooLong, match="4096"):
        decode_name(longest + b"/b")


@pytest.mark.parametrize("raw", [b"%41" * 10_000, b"/" * 13_000, b"\xff" * 13_000])
def test_a_path_longer_than_any_name_is_refused_before_it_is_worked_on(raw: bytes) -> None:
    with pytest.raises(NameTooLong):
        decode_name(raw)


@given(spellings())
def test_every_spelling_of_a_name_decodes_to_it(spelling: tuple[bytes, bytes]) -> None:
    name, raw = spelling
    assume(len(raw) <= 3 * MAX_NAME)
    assert decode_name(raw) == name


@given(st.one_of(st.binary(), st.text("/.%2eEfFcC0a5\\\0\x7f\r\n").map(str.encode)))
def test_nothing_escapes_the_root(raw: bytes) -> None:
    try:
        name = decode_name(raw)
    except (BadName, NameTooLong):
        return
    assert len(name) <= MAX_NAME
    for component in name.decode("utf-8").split("/") if name else []:
        assert component not in ("", ".", "..")
        assert len(component.encode()) <= MAX_COMPONENT
        assert not any(ord(char) < 0x20 or ord(char) == 0x7F for char in component)


@given(components)
def test_a_quoted_component_is_unreserved_and_decodes_to_itself(component: str) -> None:
    quoted = quote_component(component.encode())
    assert decode_name(quoted.encode("ascii")) == component.encode()
    assert all(char.isalnum() or char in "-._~%" for char in quoted)


@pytest.mark.parametrize(
    ("component", "quoted"),
    [
        (b"a:b", "a%3Ab"),
        (b"a/b", "a%2Fb"),
        (b"a b", "a%20b"),
        (b"a?b#c", "a%3Fb%23c"),
        (b"100%", "100%25"),
        (b'"><', "%22%3E%3C"),
        ("é".encode(), "%C3%A9"),
    ],
)
def test_a_component_is_quoted(component: bytes, quoted: str) -> None:
    assert quote_component(component) == quoted


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a/wc", (b"a", b"wc")),
        (b"/a/b/mv", (b"/a/b", b"mv")),
        (b"wc/wc", (b"wc", b"wc")),
        (b"a%2Fb/wc", (b"a%2Fb", b"wc")),
        (b"a//wc", (b"a/", b"wc")),
        (b"wc", (b"wc", None)),
        (b"/wc", (b"/wc", None)),
        (b"//wc", (b"//wc", None)),
        (b"%2F/wc", (b"%2F/wc", None)),
        (b"/%2f/wc", (b"/%2f/wc", None)),
        (b"d%2Fwc", (b"d%2Fwc", None)),
        (b"c/d%2Fwc", (b"c/d%2Fwc", None)),
        (b"d/%77c", (b"d/%77c", None)),
        (b"./wc", (b"./wc", None)),
        (b"/%2E/wc", (b"/%2E/wc", None)),
        (b"d/./wc", (b"d/.", b"wc")),
        (b"a/WC", (b"a/WC", None)),
        (b"a/wc/", (b"a/wc/", None)),
        (b"a/wcx", (b"a/wcx", None)),
        (b"a/rm", (b"a/rm", None)),
        (b"a/", (b"a/", None)),
        (b"", (b"", None)),
    ],
)
def test_a_verb_is_the_last_literal_segment_behind_a_name(
    raw: bytes, expected: tuple[bytes, bytes | None]
) -> None:
    assert split_verb(raw, VERBS) == expected


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"/file/a", b"/file/a"),
        (b"/file/a?limit=1", b"/file/a"),
        (b"/file/a?b?c", b"/file/a"),
        (b"/file/a%3Fb", b"/file/a%3Fb"),
        (b"/file/http://host/x", b"/file/http://host/x"),
        (b"//host/x", b"//host/x"),
        (b"http://host/file/a%2Fb?x", b"/file/a%2Fb"),
        (b"HTTPS://user@host:80/x", b"/x"),
        (b"http://[::1]:80/x", b"/x"),
        (b"http://host", b"/"),
        (b"http://host?a=/b", b"/"),
        (b"http://host//x", b"//x"),
        (b"*", b"*"),
        (b"http:///x", b"http:///x"),
        (b"ftp://host/x", b"ftp://host/x"),
        (b"host:443", b"host:443"),
        (b"file/a", b"file/a"),
        (b"", b""),
    ],
)
def test_the_path_is_taken_raw_out_of_the_target(target: bytes, path: bytes) -> None:
    assert path_of(target) == path


@given(st.binary())
def test_any_target_has_a_path_without_a_query(target: bytes) -> None:
    assert b"?" not in path_of(target)


@pytest.mark.parametrize("raw", [b"a/", b"a%2F", b"a//", b"a/.", b"a%2f%2e"])
def test_a_path_with_a_slash_at_its_end_is_of_a_folder(raw: bytes) -> None:
    assert is_of_folder(raw)


@pytest.mark.parametrize("raw", [b"a", b"/a", b"a.", b"a/b.", b"a/%252e"])
def test_other_paths_may_be_of_files(raw: bytes) -> None:
    assert not is_of_folder(raw)
