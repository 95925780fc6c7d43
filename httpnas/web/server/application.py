"""What the layers above give to a site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class GivenUp(Exception):
    """A request was given up, because the backend did not answer for too long.

    Its body fails with this, and so does what its route waits for.
    """


class Application(Protocol):
    """What is served, as far as the server has to know.

    :ivar fields: the header fields of every answer, as long as it sets no others.
    """

    fields: Sequence[tuple[bytes, bytes]]

    def refusal(self, status: int, detail: str, identity: str) -> tuple[bytes, bytes]:
        """Return the content of a refusal that the server has decided on.

        :param status: the status code of the answer.
        :param detail: what is wrong with the request, for the client.
        :param identity: what the request is called in the log.
        :return: the value of Content-Type, and the content.
        """

    def request_ended(self, request: Any) -> None:
        """Note that *request* has ended, answered or not; called once for each.

        :param request: of the class that the site makes requests of.
        """

    def is_expected(self, error: BaseException) -> bool:
        """Tell whether *error* needs no log entry when a handler raises it and nobody waits."""


class Backend(Protocol):
    """What handlers wait for when they do not wait for their client."""

    @property
    def away(self) -> bool:
        """Whether it does not answer at the moment."""

    @property
    def hang_timeout(self) -> float:
        """For how many seconds a request may wait for it without a byte being moved."""

    @property
    def now(self) -> float:
        """The time by which :attr:`hang_timeout` is measured, in seconds."""

    def tick(self) -> None:
        """Check whether it answers; called once a second."""
