"""Forms with files, part by part while they stream in (RFC 7578).

A form is one body that contains several others, one after the other. :class:`Parts` consumes the
form and produces each part for a consumer of its own. Between two parts, and while a consumer
has enough, the form is paused. Only what was already read from the socket is held meanwhile.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    content_disposition_unquote,
    parse_options_header,
)
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.fields.filenames import BadFileName, decode_filename
from httpnas.web.server.body import Body

#: Parts in one form, and bytes and number of a part's header lines.
MAX_PARTS = 10_000
MAX_HEADER = 8 << 10
MAX_HEADERS = 16

#: A parameter of Content-Disposition. Between quotes browsers write a backslash as it is, and other
#: clients one that escapes: it escapes the quote if the value goes on behind that.
_PARAMETER = re.compile(
    r';[ \t]*(?:([^\s=;"]+)[ \t]*=[ \t]*'
    r'("(?:[^"\\]|\\.)*"(?=[ \t]*(?:;|\Z))|"[^"]*"|[^\s;"][^;"]*|)[ \t]*)?'
)


class BadForm(ValueError):
    """The body is not the form that its header fields announce; the message says why."""


def boundary_of(content_type: bytes | None) -> str | None:
    """Return the boundary of a form (RFC 2046 section 5.1.1), None when it is something else.

    :param content_type: the value of the Content-Type field, None if there is none.
    :raises BadForm: when it is a form without a good boundary.
    """
    kind, parameters = parse_options_header((content_type or b"").decode("latin-1"))
    if kind != "multipart/form-data":
        return None
    boundary: str = parameters.get("boundary", "")
    if not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise BadForm("The form's Content-Type has no boundary of 1 to 70 characters.")
    return boundary


def filename_of(disposition: str, agent: bytes = b"") -> str | None:
    """Return the file name in a Content-Disposition, None when there is none.

    Nothing is cut off it, not even a Windows path: another name would be another file.

    :param disposition: the value of the field, in a part of a form.
    :param agent: the User-Agent that wrote it.
    :raises BadForm: when it is not clear where the name ends, or what it means.
    """
    plain = extended = None
    at = len(disposition.partition(";")[0])
    while at < len(disposition):
        parameter = _PARAMETER.match(disposition, at)
        if parameter is None:
            raise BadForm("The form is broken: a part's Content-Disposition is malformed.")
        name = (parameter[1] or "").lower()
        if name == "filename":
            plain = content_disposition_unquote(parameter[2].rstrip())
        elif name == "filename*":
            extended = parameter[2].strip('" \t')
        at = parameter.end()
    try:
        return decode_filename(plain, extended, agent)
    except BadFileName as error:
        raise BadForm(str(error)) from error


class _Parser(PushMultipartParser):  # type: ignore[misc]
    """A parser that refuses folded header lines, whose cost grows with their number squared."""

    def _on_segment_headerline(self, line: bytes) -> None:
        if line[:1] in b" \t":
            raise MultipartError("A header line is folded")
        super()._on_segment_headerline(line)


class Part:
    """One part of a form.

    :ivar filename: the name of its file on the client, None when it is not a file.
    :ivar length: None, as no part announces it.
    :ivar received: how many bytes of it have come so far.
    :ivar ended: False, as nobody knows where it ends before it is delivered.
    """

    length = None
    ended = False

    def __init__(self, parts: Parts, filename: str | None) -> None:
        self.filename = filename
        self.received = 0
        self._parts = parts

    def deliver_to(self, consumer: IConsumer) -> Deferred[None]:
        """Give this part, which must be the current one, to *consumer* as it comes.

        :return: fires when the consumer has been given all of it, or has stopped it.
        :raises BadForm: through the Deferred, when the form is broken; and what
            :meth:`Body.deliver_to` raises.
        """
        return self._parts.deliver(self, consumer)


_END = object()


@implementer(IConsumer, IPushProducer)
class Parts:
    """The parts of a form.

    The parts that came before an error are given out before the error is raised.

    :param body: the form; its client is asked to send it.
    :param boundary: as :func:`boundary_of` returns it.
    :param agent: the User-Agent of the client.
    """

    def __init__(self, body: Body, boundary: str, agent: bytes = b"") -> None:
        self._body = body
        self._agent = agent
        self._parser = _Parser(
            boundary,
            max_header_size=MAX_HEADER,
            max_header_count=MAX_HEADERS,
            max_segment_count=MAX_PARTS,
        )
        #: Parts, bytes, None after each part; then _END, or an error.
        self._events: deque[Any] = deque()
        self._waiting: Deferred[Any] | None = None
        self._part: Part | None = None
        self._consumer: IConsumer | None = None
        self._paused = False
        body.deliver_to(self).addCallbacks(self._body_ended, self._add)

    # For the handler

    def next(self) -> Deferred[Part | None]:
        """Return the next part, None after the last; the rest of the current one is dropped.

        :raises BadForm: through the Deferred; and what :meth:`Body.deliver_to` raises.
        """
        return self._wait()

    def deliver(self, part: Part, consumer: IConsumer) -> Deferred[None]:
        """See :meth:`Part.deliver_to`."""
        self._part, self._consumer, self._paused = part, consumer, False
        consumer.registerProducer(self, True)
        return self._wait()

    def abandon(self) -> None:
        """Take nothing more of the body."""
        self._body.stopProducing()

    # For the body

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take the form from *producer*, which is the body."""

    def unregisterProducer(self) -> None:
        """Take nothing more."""

    def write(self, data: bytes) -> None:
        """Take the next bytes of the form."""
        try:
            for event in self._parser.parse(data):
                self._events.append(self._part_or(event))
        except (MultipartError, BadForm) as error:
            self._break(error)
        self._pump()

    def _part_or(self, event: Any) -> Any:
        if not isinstance(event, MultipartSegment):
            return event
        return Part(self, filename_of(event["Content-Disposition"], self._agent))

    def _body_ended(self, _: None) -> None:
        try:
            self._parser.close()
        except MultipartError as error:
            self._break(error)
        self._add(_END)

    def _break(self, error: MultipartError | BadForm) -> None:
        if not isinstance(error, BadForm):
            error = BadForm(f"The form is broken: {error.args[0]}.")
        self._events.append(Failure(error))

    def _add(self, event: object) -> None:
        self._events.append(event)
        self._pump()

    # For the consumer of a part

    def pauseProducing(self) -> None:
        """Give no more of the part for now."""
        self._paused = True
        self._hold()

    def resumeProducing(self) -> None:
        """Give more of the part."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Give no more of the part at all."""
        self._end_part()

    # Between them

    def _wait(self) -> Deferred[Any]:
        self._waiting = waiting = Deferred[Any]()
        self._pump()
        return waiting

    def _pump(self) -> None:
        while self._events and self._waiting is not None and not self._paused:
            event = self._events[0]
            if event is _END or isinstance(event, Failure):
                self._end(event)
                break
            self._events.popleft()
            if isinstance(event, Part):
                self._settle(event)
            elif event is not None:
                self._give(event)
            elif self._consumer is not None:
                self._end_part()
        self._hold()

    def _give(self, chunk: bytes) -> None:
        if self._consumer is not None and self._part is not None:
            self._part.received += len(chunk)
            self._consumer.write(chunk)

    def _end_part(self) -> None:
        if self._consumer is not None:
            self._consumer.unregisterProducer()
            self._consumer, self._paused = None, False
            self._settle(None)

    def _end(self, event: object) -> None:
        """End the wait with *event*, which stays for the next who asks."""
        if self._consumer is not None:
            self._consumer.unregisterProducer()
            self._consumer = None
        self._settle(None if event is _END else event)

    def _settle(self, result: object) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(result)  # a Failure takes the way of failures

    def _hold(self) -> None:
        """Pause the body while what has come is not taken yet."""
        if self._body.ended:
            return
        if self._paused or self._events:
            self._body.pauseProducing()
        else:
            self._body.resumeProducing()
