"""Why a request was refused because of who sent it."""

from __future__ import annotations

from collections.abc import Sequence

from httpnas.files.errors import Refused


class Unauthenticated(Refused):
    """It is not known who asks: there are no credentials, or wrong ones.

    :param challenges: what may be tried, as values of WWW-Authenticate (RFC 9110 section 11.6.1).
    """

    def __init__(self, why: str, challenges: Sequence[str]) -> None:
        super().__init__(why)
        self.challenges = challenges


class MissingRight(Refused):
    """Who asks is known, and may not do this.

    :param rights: what is missing, as rules have it. One of them is needed; before the disk has
        been asked, it is not known which.
    """

    def __init__(self, rights: Sequence[str]) -> None:
        super().__init__(f"This needs the right {' or '.join(map(repr, rights))} here.")
        self.rights = rights


class LinkRefused(Refused):
    """A link does not count: it was changed, has expired, or is for something else."""


class IssuerAway(Exception):
    """A token cannot be judged, as the keys of its issuer have never come."""


class TooManyPasswords(Exception):
    """More passwords wait to be checked than may wait."""


class TooManyFailures(Exception):
    """A client has failed so often that what it presents now is not looked at.

    :param seconds: after which it may try again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("Too many attempts from this address have failed.")
        self.seconds = seconds
