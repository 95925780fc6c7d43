"""Forms taken apart while they come, with no network and no disk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.web.multipart import (
    MAX_HEADER,
    MAX_HEADERS,
    MAX_PARTS,
    BadForm,
    Parts,
    boundary_of,
    filename_of,
)
from httpnas.web.server.body import HELD, Body, BodyCutShort, BodyTooLarge, BodyTooSlow

BOUNDARY = "gc0pJq0M:08jU534c0p"


@implementer(IPushProducer)
class Network:
    """Knows whether anything may be read."""

    paused = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        raise AssertionError("nobody stops the network")


@implementer(IConsumer)
class Taker:
    """Takes a part.

    :param most: bytes at which it stops the part, None for all of it.
    """

    def __init__(self, most: int | None = None, chance: random.Random | None = None) -> None:
        self.taken = b""
        self.paused = False
        self.producer: Any = None
        self._most = most
        self._stopped = False
        self._chance = chance

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming and self.producer is None
        self.producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert self.producer is not None and not self.paused and not self._stopped and data
        self.taken += data
        if self._most is not None and len(self.taken) >= self._most:
            self._stopped = True
            self.producer.stopProducing()
        elif self._chance is not None and self._chance.random() < 0.4:
            self.pause()

    def pause(self) -> None:
        self.paused = True
        self.producer.pauseProducing()

    def resume(self) -> None:
        self.paused = False
        self.producer.resumeProducing()


class Form:
    """A form on its way in, to a handler that does with each part what it is told to.

    :param chance: decides when consumers pause and when the handler is busy between two parts;
        without it nobody ever waits.
    :ivar got: file name and what was taken of each part, None for a part that was skipped.
    """

    def __init__(self, boundary: str = BOUNDARY, chance: random.Random | None = None) -> None:
        self.network = Network()
        self.invited = 0
        self.body = Body(None, self.network, self._invite)
        self.got: list[tuple[str | None, bytes | None]] = []
        self.takers: list[Taker] = []
        self.parts: Parts
        self.error: BaseException | None = None
        self.ended = False
        self._boundary = boundary
        self._chance = chance
        self._busy: Deferred[None] | None = None

    def _invite(self) -> None:
        self.invited += 1

    def start(self, wishes: Iterable[int | str | None] = ()) -> Form:
        """Begin to take the parts; *wishes* are "skip", a number of bytes, or None for all."""
        self.parts = Parts(self.body, self._boundary)
        handled = Deferred.fromCoroutine(self._handle(iter(wishes)))
        handled.addCallbacks(self._note_end, self._note_error)
        return self

    async def _handle(self, wishes: Iterator[int | str | None]) -> None:
        while (part := await self.parts.next()) is not None:
            await self._be_busy()
            wish = next(wishes, None)
            if wish == "skip":
                self.got.append((part.filename, None))
                continue
            assert not isinstance(wish, str)
            taker = Taker(wish, self._chance)
            self.takers.append(taker)
            await part.deliver_to(taker)
            assert taker.producer is None
            assert part.received == len(taker.taken)
            self.got.append((part.filename, taker.taken))

    async def _be_busy(self) -> None:
        if self._chance is not None and self._chance.random() < 0.5:
            self._busy = Deferred()
            await self._busy

    def _note_end(self, _: None) -> None:
        self.ended = True

    def _note_error(self, failure: Failure) -> None:
        self.error = failure.value

    def let_go_on(self) -> None:
        """Let whoever waits, but the network, go on."""
        if self._busy is not None:
            busy, self._busy = self._busy, None
            busy.callback(None)
        elif self.takers and self.takers[-1].paused:
            self.takers[-1].resume()
        else:
            raise AssertionError("the network is paused, and nobody will resume it")

    def feed(self, chunk: bytes) -> None:
        """Let *chunk* come as soon as the network may be read; nothing, once all is lost."""
        self._let_read()
        if self.error is not None:
            return
        self.body.data_received(chunk)
        assert self._held() <= len(chunk) + len(self._boundary) + 4
        if self._held():
            assert self.network.paused

    def _let_read(self) -> None:
        while self.network.paused and self.error is None:
            self.let_go_on()

    def _held(self) -> int:
        return sum(len(event) for event in self.parts._events if isinstance(event, bytes))

    def end(self) -> None:
        """Let the body end, and everybody come to an end."""
        self._let_read()
        self.body.end()
        while not self.ended and self.error is None:
            self.let_go_on()


def field(disposition: str, content: bytes, *more: bytes) -> bytes:
    lines = [f"Content-Disposition: {disposition}".encode(), *more]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + content


def file(name: str, content: bytes) -> bytes:
    return field(f'form-data; name="file"; filename="{name}"', content)


def form(*parts: bytes, boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    delimiter = f"--{boundary}".encode()
    return b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in parts) + delimiter + end


def cut(whole: bytes, size: int) -> Iterator[bytes]:
    return (whole[at : at + size] for at in range(0, len(whole), size))


# Any form


BOUNDARIES = st.from_regex(r"[0-9A-Za-z'()+_,./:=?-]{1,60}", fullmatch=True)
#: What can be spelled between quotes; what would mean a quote or a line's end is no name.
FILENAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters='"\r\n\x00'), min_size=1, max_size=40),
    st.builds(str.__add__, st.sampled_from(["C:\\", "\\\\", "a\\", "%", "'"]), st.text(";=\\b")),
).filter(lambda name: not any(escape in name for escape in ("%22", "%0D", "%0A")))


@st.composite
def contents(draw: st.DrawFn, boundary: str) -> bytes:
    """Anything that a part may have in it, and best what looks like its end."""
    delimiter = f"\r\n--{boundary}".encode()
    starts = st.integers(0, len(delimiter) - 1).map(lambda length: delimiter[:length])
    ends = st.integers(1, len(delimiter) - 1).map(lambda at: delimiter[at:])
    special = st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"--", b"\r\r\n--", b"\x00"])
    pieces = st.one_of(st.binary(max_size=50), starts, ends, special)
    return b"".join(draw(st.lists(pieces, max_size=12))).replace(delimiter, b"")


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, list[tuple[str | None, bytes]]]:
    boundary = draw(BOUNDARIES)
    part = st.tuples(st.none() | FILENAMES, contents(boundary))
    delimiter = f"\r\n--{boundary}".encode()
    parts = [p for p in draw(st.lists(part, max_size=6)) if delimiter not in p[1]]
    return boundary, parts


def spelled(boundary: str, parts: list[tuple[str | None, bytes]], epilogue: bytes) -> bytes:
    encoded = [
        field('form-data; name="a b"', content, b"Content-Type: text/plain;charset=x")
        if filename is None
        else file(filename, content)
        for filename, content in parts
    ]
    return form(*encoded, boundary=boundary, end=b"--" + epilogue)


@given(
    forms(),
    st.sampled_from([b"", b"\r\n", b"\r\nepilogue"]),
    st.one_of(st.just(1), st.integers(2, 100), st.just(1 << 20)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_any_form_cut_anywhere_gives_its_parts_in_order_to_consumers_that_pause_at_will(
    written: tuple[str, list[tuple[str | None, bytes]]],
    epilogue: bytes,
    size: int,
    chance: random.Random,
) -> None:
    boundary, parts = written
    coming = Form(boundary, chance).start()
    for chunk in cut(spelled(boundary, parts, epilogue), size):
        coming.feed(chunk)
    coming.end()
    assert coming.error is None
    assert coming.got == parts


@given(forms(), st.integers(1, 200), st.randoms(use_true_random=False), st.data())
@settings(max_examples=150, deadline=None)
def test_parts_that_are_skipped_or_stopped_in_the_middle_do_not_disturb_the_others(
    written: tuple[str, list[tuple[str | None, bytes]]],
    size: int,
    chance: random.Random,
    data: st.DataObject,
) -> None:
    boundary, parts = written
    wish = st.one_of(st.none(), st.just("skip"), st.integers(1, 60))
    wishes = data.draw(st.lists(wish, min_size=len(parts), max_size=len(parts)))
    coming = Form(boundary, chance).start(wishes)
    for chunk in cut(spelled(boundary, parts, b"\r\n"), size):
        coming.feed(chunk)
    coming.end()
    assert coming.error is None
    for (filename, content), wished, (named, taken) in zip(parts, wishes, coming.got, strict=True):
        assert named == filename
        if wished == "skip":
            assert taken is None
        elif wished is None:
            assert taken == content
        else:
            assert isinstance(wished, int) and taken is not None
            assert content.startswith(taken)
            assert len(taken) >= min(wished, len(content))
            assert len(taken) < wished + size + len(boundary) + 4


@given(forms(), st.integers(1, 100), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_what_came_before_anybody_asked_is_not_lost(
    written: tuple[str, list[tuple[str | None, bytes]]], size: int, before: int
) -> None:
    boundary, parts = written
    whole = spelled(boundary, parts, b"\r\n")
    coming = Form(boundary)
    for chunk in cut(whole[:before], size):
        coming.body.data_received(chunk)
    if before >= len(whole):
        coming.body.end()
    coming.start()
    if before < len(whole):
        coming.feed(whole[before:])
        coming.end()
    assert coming.got == parts


# How it flows


def test_the_body_is_asked_for_once() -> None:
    coming = Form().start()
    for chunk in cut(form(file("a", b"x"), file("b", b"y")), 10):
        coming.feed(chunk)
    coming.end()
    assert coming.invited == 1


def test_while_a_consumer_is_paused_nothing_is_read_and_nothing_given() -> None:
    coming = Form().start()
    coming.feed(form(file("a", b"0123456789"), end=b"")[: -len(BOUNDARY) - 4])
    (taker,) = coming.takers
    assert taker.taken == b"0123456789" and not coming.network.paused
    taker.pause()
    assert coming.network.paused
    coming.body.data_received(b"abc")  # what had been read already
    assert taker.taken == b"0123456789" and coming.network.paused
    taker.resume()
    assert taker.taken == b"0123456789abc" and not coming.network.paused


def test_a_part_does_not_end_while_its_consumer_is_paused() -> None:
    whole, last = form(file("a", b"x"), file("b", b"y")), b"x\r\n--"
    coming = Form().start()
    coming.feed(whole[: whole.index(last) + 1])
    (taker,) = coming.takers
    taker.pause()
    coming.body.data_received(whole[whole.index(last) + 1 :])
    coming.body.end()
    assert taker.taken == b"x" and taker.producer is not None
    assert coming.got == [] and not coming.ended
    taker.resume()
    assert coming.got == [("a", b"x"), ("b", b"y")] and coming.ended


def test_a_part_that_is_stopped_while_it_is_paused_does_not_hold_up_the_next() -> None:
    coming = Form().start()
    coming.feed(form(file("a", b"x"))[: -len(BOUNDARY) - 8])
    (taker,) = coming.takers
    taker.pause()
    taker.producer.stopProducing()
    assert not coming.network.paused
    coming.feed(b"more\r\n" + form(file("b", b"y")))
    coming.end()
    assert coming.got == [("a", b"x"), ("b", b"y")]


def test_between_two_parts_nothing_is_read_once_something_has_come() -> None:
    coming = Form()
    parts = coming.parts = Parts(coming.body, BOUNDARY)
    whole = form(file("a", b"x"), file("b", b"y" * 100))
    asked: list[Any] = []
    parts.next().addCallback(asked.append)
    coming.body.data_received(whole[:-60])
    taker = Taker()
    asked[0].deliver_to(taker).addCallback(asked.append)
    assert asked[1:] == [None] and taker.taken == b"x"
    assert coming.network.paused
    parts.next().addCallback(asked.append)
    assert asked[2].filename == "b"
    assert coming.network.paused
    other = Taker()
    asked[2].deliver_to(other)
    assert other.taken.startswith(b"yyyy") and not coming.network.paused


def test_what_is_abandoned_is_not_read_any_more() -> None:
    coming = Form().start()
    coming.feed(form(file("a", b"x"))[:-30])
    coming.parts.abandon()
    assert coming.network.paused
    coming.body.data_received(b"more")
    assert all(b"more" not in taker.taken for taker in coming.takers)


def test_more_than_is_held_for_a_late_handler_stops_the_network() -> None:
    coming = Form()
    coming.body.data_received(form(file("a", bytes(HELD)))[:HELD])
    assert coming.network.paused
    coming.start()
    assert not coming.network.paused


# What is wrong with it


GOOD = [("a", b"first"), ("b", b"")]
START = form(file("a", b"first"), file("b", b""), end=b"")
TOO_LONG = b"X: " + b"x" * MAX_HEADER
DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="c"\r\n'
BROKEN: dict[str, tuple[bytes, str]] = {
    "no end": (b"", "end"),
    "no end in a header": (b"\r\nContent-Disp", "end"),
    "no end behind the headers": (b"\r\n" + DISPOSITION, "end"),
    "half an end": (b"-", "end"),
    "something behind a boundary": (b"garbage", "boundary"),
    "a blank behind a boundary": (b" \r\n" + DISPOSITION, "boundary"),
    "a header that is too long": (b"\r\n" + TOO_LONG + b"\r\n\r\n", "length"),
    "a header without an end": (b"\r\n" + TOO_LONG * 2, "length"),
    "a header that is folded": (b"\r\n" + DISPOSITION + b" x\r\n", "folded"),
    "too many headers": (b"\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", "count"),
    "no Content-Disposition": (b"\r\nContent-Type: text/plain\r\n\r\nx", "Content-Disposition"),
    "no headers": (b"\r\n\r\nx", "Content-Disposition"),
    "the wrong type": (b'\r\nContent-Disposition: attachment; filename="c"\r\n\r\n', "type"),
    "a header that is not UTF-8": (
        b'\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n',
        "failed to decode.",
    ),
    "a header without a colon": (b"\r\nContent-Disposition\r\n\r\n", "header"),
    "bare line feeds": (b"\r\n" + DISPOSITION[:-2] + b"\n\nx", "line break"),
    "a name of which the end is not known": (
        b'\r\nContent-Disposition: form-data; name="file"; filename="c"d"\r\n\r\n',
        "Content-Disposition is malformed",
    ),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told_behind_the_parts_that_had_ended(what: str, size: int) -> None:
    tail, told = BROKEN[what]
    coming = Form(chance=random.Random(size)).start()
    for chunk in cut(START + tail, size):
        coming.feed(chunk)
    coming.end()
    # A part has ended when the line behind it has.
    assert coming.got == (GOOD if tail.startswith(b"\r\n") else GOOD[:1])
    assert isinstance(coming.error, BadForm)
    assert told in str(coming.error)
    assert "Error" not in str(coming.error) and "\\x" not in str(coming.error)


IN_A_PART: dict[str, tuple[bytes, bytes, str]] = {
    "no end": (b"", b"third", "end"),
    "no end within a delimiter": (b"", b"third\r\n--" + BOUNDARY.encode()[:-1], "end"),
    "no end behind a delimiter": (b"", b"third\r\n--" + BOUNDARY.encode(), "end"),
    "something behind the delimiter": (b"", b"third\r\n--%bxy" % BOUNDARY.encode(), "boundary"),
    "more than announced": (b"Content-Length: 4\r\n", b"third", "Content-Length"),
    "less than announced": (
        b"Content-Length: 6\r\n",
        b"third\r\n--%b--\r\n" % BOUNDARY.encode(),
        "Content-Length",
    ),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("what", IN_A_PART)
def test_what_is_broken_within_a_part_fails_that_part(what: str, size: int) -> None:
    header, tail, told = IN_A_PART[what]
    coming = Form(chance=random.Random(size)).start()
    for chunk in cut(START + b"\r\n" + DISPOSITION + header + b"\r\n" + tail, size):
        coming.feed(chunk)
    coming.end()
    assert coming.got == GOOD
    assert isinstance(coming.error, BadForm)
    assert told in str(coming.error)
    assert b"third".startswith(coming.takers[-1].taken)
    assert coming.takers[-1].producer is None


@pytest.mark.parametrize("whole", [b"", b"not a form", b"\r\n" * 100, b"--other\r\n\r\n--other--"])
def test_what_is_no_form_at_all_is_broken(whole: bytes) -> None:
    coming = Form().start()
    if whole:
        coming.feed(whole)
    coming.end()
    assert isinstance(coming.error, BadForm) and coming.got == []


def test_no_more_parts_are_taken_than_there_may_be() -> None:
    for count, broken in ((MAX_PARTS, False), (MAX_PARTS + 1, True)):
        coming = Form().start()
        for chunk in cut(form(*[file("a", b"x")] * count), 1 << 16):
            coming.feed(chunk)
        coming.end()
        assert isinstance(coming.error, BadForm) == broken
        assert len(coming.got) == MAX_PARTS


def test_a_broken_form_stays_broken() -> None:
    coming = Form().start()
    coming.feed(form(file("a", b"x"), end=b"garbage"))
    failures: list[Failure] = []
    for _ in range(2):
        coming.parts.next().addErrback(failures.append)
    assert [failure.type for failure in failures] == [BadForm, BadForm]
    assert coming.network.paused


def test_behind_the_last_part_there_is_none_however_often_one_asks() -> None:
    coming = Form().start()
    coming.feed(form(file("a", b"x")))
    coming.end()
    asked: list[object] = []
    for _ in range(2):
        coming.parts.next().addCallback(asked.append)
    assert asked == [None, None]


# When the body fails


@pytest.mark.parametrize("reason", [BodyCutShort(), BodyTooSlow()])
@pytest.mark.parametrize("paused", [False, True])
def test_a_body_that_fails_in_a_part_fails_that_part_behind_what_had_come(
    reason: Exception, paused: bool
) -> None:
    coming = Form().start()
    coming.feed(START + b"\r\n" + DISPOSITION + b"\r\nthi")
    taker = coming.takers[-1]
    if paused:
        taker.pause()
        coming.body.data_received(b"rd")
    coming.body.fail(reason)
    if paused:
        assert coming.error is None
        taker.resume()
    assert coming.got == GOOD
    assert coming.error is reason
    assert taker.taken == (b"third" if paused else b"thi")
    assert taker.producer is None


def test_a_body_that_fails_between_two_parts_fails_whoever_asks_for_the_next() -> None:
    coming = Form()
    parts = coming.parts = Parts(coming.body, BOUNDARY)
    coming.body.data_received(START)
    coming.body.fail(BodyCutShort())
    for filename, content in GOOD:
        asked: list[Any] = []
        parts.next().addCallback(asked.append)
        assert asked[0].filename == filename
        taker = Taker()
        asked[0].deliver_to(taker)
        assert taker.taken == content
    failures: list[Failure] = []
    parts.next().addErrback(failures.append)
    assert failures[0].type is BodyCutShort


def test_a_body_that_had_failed_before_fails_the_first() -> None:
    coming = Form()
    coming.body.fail(BodyCutShort())
    coming.start()
    assert isinstance(coming.error, BodyCutShort)


def test_a_form_that_is_too_large_fails_behind_the_parts_within_the_limit() -> None:
    coming = Form()
    coming.body.limit = len(START) + 100
    coming.start()
    coming.feed(START)
    coming.feed(b"\r\n" + DISPOSITION + b"\r\nthird")
    coming.feed(bytes(100))
    assert coming.got == GOOD
    assert isinstance(coming.error, BodyTooLarge)
    assert coming.takers[-1].taken == b"third"


# What the headers say


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (None, None),
        (b"", None),
        (b"text/plain", None),
        (b"multipart/mixed; boundary=x", None),
        (b"application/x-www-form-urlencoded", None),
        (b"multipart/form-datax; boundary=x", None),
        (b"multipart/form-data; boundary=x", "x"),
        (b"Multipart/Form-Data;BOUNDARY=x", "x"),
        (b"multipart/form-data; charset=utf-8; boundary=x", "x"),
        (b"multipart/form-data; boundary=x; charset=utf-8", "x"),
        (b'multipart/form-data; boundary="a b:c?"', "a b:c?"),
        (b"multipart/form-data; boundary=----WebKitFormBoundaryAa0", "----WebKitFormBoundaryAa0"),
        (b"multipart/form-data; boundary=" + b"x" * 70, "x" * 70),
    ],
)
def test_the_boundary_is_that_of_the_content_type(
    content_type: bytes | None, boundary: str | None
) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data;",
        b"multipart/form-data; boundary",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b'multipart/form-data; boundary="\xe9"',
        b'multipart/form-data; boundary="x',
    ],
)
def test_a_form_without_a_good_boundary_is_broken(content_type: bytes) -> None:
    with pytest.raises(BadForm, match="boundary"):
        boundary_of(content_type)


@pytest.mark.parametrize(
    ("parameters", "filename"),
    [
        ("", None),
        ('; name="file"', None),
        ("; filename*=UTF-8''x", "x"),
        ("; filename=\"=?utf-8?B?w6kudHh0?=\"; filename*=utf-8''%C3%A9.txt", "é.txt"),
        ('; name="a; filename=b"', None),
        ('; filename=""', ""),
        ("; filename=", ""),
        ('; name="file"; filename="a b;c=d.txt"', "a b;c=d.txt"),
        ('; filename="x"; name="file"', "x"),
        ('; FileName = "x" ; name=file ;', "x"),
        ("; filename=x.txt", "x.txt"),
        ("; filename=naïve file.txt; name=file", "naïve file.txt"),
        ('; filename="气"', "气"),
        ('; filename="a%22b"', 'a"b'),
        ('; filename="50%"', "50%"),
        (r'; filename="a\"b"', 'a"b'),
        (r'; filename="a\"; filename=b"', 'a"; filename=b'),
        (r'; filename="a\b"', r"a\b"),
        (r'; filename="a:\b"', r"a:\b"),
        (r'; filename="\\a\b"', r"\\a\b"),
        ('; filename="a\\"', "a\\"),
        ('; filename="a\\"; name="file"', "a\\"),
    ],
)
def test_a_filename_is_taken_as_the_client_has_it(parameters: str, filename: str | None) -> None:
    assert filename_of("form-data" + parameters) == filename


@pytest.mark.parametrize("parameters", ['; filename="a', '; filename="a"b"', "; filename", ";=x"])
def test_a_filename_of_which_the_end_is_not_known_is_refused(parameters: str) -> None:
    with pytest.raises(BadForm):
        filename_of("form-data" + parameters)
