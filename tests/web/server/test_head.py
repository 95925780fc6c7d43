"""Heads alone: whole and in pieces, and what is the same either way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.web.server.head import (
    HEADER_BLOCK,
    HEADER_LINES,
    REQUEST_LINE,
    Head,
    HeadReader,
    HeadRefused,
)

LINE = b"GET /a?b HTTP/1.1\r\n"


def read(*pieces: bytes) -> tuple[Head, bytes] | int:
    """Return the head that *pieces* begin with and the rest, or the status of the refusal."""
    reader, buffer = HeadReader(), b""
    try:
        for number, piece in enumerate(pieces, 1):
            head, buffer = reader.take(buffer + piece)
            if head is not None:
                return head, buffer + b"".join(pieces[number:])
    except HeadRefused as refusal:
        return refusal.status
    raise AssertionError(f"not whole: {buffer!r}")


def test_a_head_is_taken_apart() -> None:
    sent = b"PUT /a?b HTTP/1.0\r\nHost: x\r\nA:\t 1, 2 \r\nHOST:y\r\nempty:\r\n\r\nbehind"
    fields = {b"host": [b"x", b"y"], b"a": [b"1, 2"], b"empty": [b""]}
    assert read(sent) == (Head(b"PUT", b"/a?b", b"HTTP/1.0", fields), b"behind")


TOKEN = st.text("!#$%&'*+.^_`|~-09azAZ", min_size=1, max_size=8).map(str.encode)
VALUE = st.binary(max_size=8)
PIECE = st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"HTTP/1.1", b"GET /", b"\x00"])
FIELDS = st.lists(st.tuples(TOKEN, VALUE).map(lambda field: b"%b: %b\r\n" % field), max_size=3)
HEADS = (
    FIELDS.map(lambda fields: LINE + b"".join(fields))
    | st.lists(PIECE | TOKEN | VALUE, max_size=12).map(b"".join)
    | st.lists(PIECE | TOKEN | VALUE, max_size=8).map(lambda pieces: LINE + b"".join(pieces))
)


@given(HEADS, st.data())
def test_a_head_in_pieces_is_the_same_as_the_whole(sent: bytes, data: st.DataObject) -> None:
    sent += b"\r\n\r\n\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    whole, cut = read(sent), read(*pieces)
    if isinstance(whole, int) or isinstance(cut, int):
        assert whole == cut
    else:
        assert whole == cut


@given(HEADS)
def test_what_is_taken_has_no_control_characters_and_no_strange_names(sent: bytes) -> None:
    taken = read(sent + b"\r\n\r\n\r\n\r\n")
    if isinstance(taken, int):
        return
    head = taken[0]
    assert not any(byte < 33 or byte == 127 for byte in head.method + head.target)
    for name, values in head.fields.items():
        assert not set(name) & set(b" \t:\r\n\x00"), name
        for value in values:
            assert not any((byte < 32 and byte != 9) or byte == 127 for byte in value)


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * (REQUEST_LINE - 14) + b" HTTP/1.1\r\n\r\n", None),
        (b"GET /" + b"a" * (REQUEST_LINE - 13) + b" HTTP/1.1\r\n\r\n", 414),
        (LINE + b"A: b\r\n" * HEADER_LINES + b"\r\n", None),
        (LINE + b"A: b\r\n" * (HEADER_LINES + 1) + b"\r\n", 431),
        (LINE + b"A: " + b"b" * (HEADER_BLOCK - 5) + b"\r\n\r\n", None),
        (LINE + b"A: " + b"b" * (HEADER_BLOCK - 4) + b"\r\n\r\n", 431),
    ],
)
def test_the_limits_hold_to_the_byte(sent: bytes, status: int | None, in_pieces: bool) -> None:
    pieces = [sent[at : at + 1000] for at in range(0, len(sent), 1000)] if in_pieces else [sent]
    taken = read(*pieces)
    assert taken == status if status is not None else isinstance(taken, tuple)


@pytest.mark.parametrize(
    ("version", "connection", "persists"),
    [
        (b"HTTP/1.1", None, True),
        (b"HTTP/1.1", b"close", False),
        (b"HTTP/1.1", b"keep-alive, Close", False),
        (b"HTTP/1.0", None, False),
        (b"HTTP/1.0", b"Keep-Alive", True),
        (b"HTTP/1.0", b"keep-alive, close", False),
    ],
)
def test_a_connection_persists_as_its_version_and_options_say(
    version: bytes, connection: bytes | None, persists: bool
) -> None:
    fields = {} if connection is None else {b"connection": [connection]}
    assert Head(b"GET", b"/", version, fields).is_persistent is persists
