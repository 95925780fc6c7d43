"""What an operation is given by a door: on whose behalf it runs, and content on its way in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer


class Outcome(NamedTuple):
    """How an operation has ended that has failed, as its client sees it.

    :ivar word: ``refused``, ``client gone``, ``client too slow`` or ``failed``.
    :ivar status: the status that the client was answered with, None when there was no answer.
    """

    word: str
    status: int | None = None


@dataclass(frozen=True)
class Principal:
    """Who asks.

    :ivar name: as rules and logs have it.
    :ivar kind: how that is known: ``anonymous``, ``password``, ``token``, ``jwt``,
        ``certificate`` or ``link``.
    :ivar groups: the groups that it belongs to.
    :ivar most: how many bytes a body of it may have, None for any number.
    """

    name: str
    kind: str
    groups: frozenset[str] = frozenset()
    most: int | None = None


class Job(Protocol):
    """On whose behalf an operation runs, and whether it is still wanted."""

    @property
    def id(self) -> str:
        """What the job is called in logs and traces."""

    @property
    def client(self) -> str | None:
        """The client's address, None when it is not known."""

    @property
    def principal(self) -> Principal | None:
        """Who asks for it, None when nobody is asked who he is."""

    @property
    def given_up(self) -> bool:
        """Whether the client was told to try again, so that nothing may change any more."""

    @property
    def client_gone(self) -> bool:
        """Whether nobody waits for an answer any more."""

    def outcome(self, error: BaseException) -> Outcome:
        """Return how the job has ended for its client when *error* has ended it."""


class Incoming(Protocol):
    """Content on its way in: the body of a request, or a part of a form."""

    @property
    def length(self) -> int | None:
        """How many bytes were announced, None when that was left open."""

    @property
    def received(self) -> int:
        """How many bytes have come so far."""

    @property
    def ended(self) -> bool:
        """Whether all of it is here, so that nobody is asked to send it."""

    def deliver_to(self, consumer: IConsumer) -> Deferred[None]:
        """Give the content to *consumer* as it comes.

        :return: fires when the consumer has been given all of it, or has stopped it.
        """
