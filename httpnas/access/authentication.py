"""Authentication: from the head of a request to a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from httpnas.access.admission import Subject
from httpnas.access.errors import Unauthenticated
from httpnas.access.passwords import Passwords, credentials_of
from httpnas.access.policy import Policy


class Authentication:
    """Finds out who asks, by the policy of that moment.

    :param reactor: tells the time.
    :param policy: the one to begin with.
    """

    def __init__(self, reactor: Any, policy: Policy) -> None:
        self.policy = policy
        self._passwords = Passwords(reactor)

    def start(self) -> None:
        """Begin to check passwords."""
        self._passwords.start()

    def stop(self) -> None:
        """End what was started."""
        self._passwords.stop()

    async def identify(self, authorization: Sequence[bytes]) -> Subject:
        """Return who sent a request.

        :param authorization: the values of all its Authorization fields.
        :raises Unauthenticated: when they are wrong. Without any, who asks is anonymous.
        :raises TooManyPasswords: when too many wait.
        """
        policy = self.policy
        if not authorization:
            return policy.anonymous()
        if len(authorization) > 1:
            raise Unauthenticated("A request may have one Authorization.", policy.challenges)
        scheme, _, presented = authorization[0].partition(b" ")
        presented = presented.strip(b" ")
        if scheme.lower() == b"basic" and policy.hashes:
            return await self._by_password(policy, presented)
        if scheme.lower() == b"bearer":
            return self._by_token(policy, presented)
        raise Unauthenticated("This scheme of Authorization does not work here.", policy.challenges)

    async def _by_password(self, policy: Policy, presented: bytes) -> Subject:
        credentials = credentials_of(presented)
        if credentials is None:
            raise Unauthenticated("The credentials of Basic cannot be read.", policy.challenges)
        user, password = credentials
        checked = self._passwords.check(policy.hashes, user, password)
        if not (checked if isinstance(checked, bool) else await checked):
            raise Unauthenticated("The user or the password is wrong.", policy.challenges)
        return policy.known(user, "password")

    def _by_token(self, policy: Policy, presented: bytes) -> Subject:
        token = policy.tokens.find(presented)
        if token is None:
            raise Unauthenticated("The token is not known, or has expired.", policy.challenges)
        return policy.known(token.name, "token")
