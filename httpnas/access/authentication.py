"""Authentication: from the head of a request to a subject, by the latest good configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from httpnas.access.admission import Subject
from httpnas.access.certificates import BadCertificate, ClientCertificates
from httpnas.access.config import ConfigError, load
from httpnas.access.errors import (
    IssuerAway,
    LinkRefused,
    MissingRight,
    TooManyFailures,
    Unauthenticated,
)
from httpnas.access.jwks import FetchedKeys
from httpnas.access.jwts import BadToken, Issuer, Keys, Source, UnknownKey, issuer_of
from httpnas.access.links import Grant, sign, verify
from httpnas.access.pace import Pace
from httpnas.access.passwords import AT_ONCE, EVERY, Passwords, credentials_of
from httpnas.access.policy import Policy, Stamp, stamp_at
from httpnas.access.rules import Right
from httpnas.access.tokens import digest_of
from httpnas.files.job import Principal

T = TypeVar("T")


#: Seconds between two looks whether a file has changed.
LOOKS = 2.0
#: Tokens of issuers, certificates, and links, that are remembered.
REMEMBERED = 1024


class Authentication:
    """Finds out who asks, by the policy of that moment.

    A policy takes the place of the one before in one step, when all of it has been read and is
    good. So there is one at each moment, and requests that have begun keep theirs.

    :param reactor: tells the time.
    :param path: of the file that configures all of it.
    :raises ConfigError: when that cannot be used.
    :ivar passwords: checks passwords.
    """

    _log = Logger()

    def __init__(self, reactor: Any, path: str) -> None:
        self.policy = load(path)
        self._reactor = reactor
        self._path = path
        self.passwords = Passwords(reactor)
        self._bad_tokens = Pace(AT_ONCE, EVERY)
        self._disk = ThreadPool(0, 1, name="httpnas-auth")
        self._loading = DeferredLock()
        self._fetched: dict[Source, FetchedKeys] = {}
        #: Whom tokens of issuers, certificates and links are for, and when they expire: by the
        #: method that a link is used for (none for a token, ``TLS``), and their digests.
        self._verified: dict[tuple[bytes, bytes], tuple[Subject, float]] = {}
        #: What was read last, good or not, and what was different from it at the last look.
        self._read: Mapping[str, Stamp | None] = self.policy.stamps
        self._different: Mapping[str, Stamp | None] | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        """Begin to check passwords, and to look whether files change."""
        self.passwords.start()
        self._disk.start()
        self._fetch_for(self.policy)
        self._looking.start(LOOKS, now=False)

    def stop(self) -> None:
        """End what was started."""
        self._looking.stop()
        for fetched in self._fetched.values():
            fetched.stop()
        self.passwords.stop()
        self._disk.stop()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._reload_if_changed())

    async def _reload_if_changed(self) -> None:
        """Read the files again if one has changed, and has been the same for two looks.

        So a file that is being written is not read, as long as it is written faster than that.
        """
        read = self._read
        stamps = await self._in_thread(lambda: {path: stamp_at(path) for path in read})
        if stamps == read:
            self._different = None
        elif stamps != self._different:
            self._different = stamps
        else:
            await self.reload()

    async def reload(self) -> None:
        """Read the files again; those that cannot be used leave everything as it is."""
        await self._loading.acquire()
        try:
            policy = await self._in_thread(partial(load, self._path))
        except ConfigError as error:
            self._read = error.stamps
            self._log.error("audit: {error}. The configuration stays as it was before", error=error)
        except Exception:
            self._log.failure("the file of --auth could not be read; all stays as it was before")
        else:
            self._fetch_for(policy)
            self.policy, self._read = policy, policy.stamps
            self._verified.clear()
            self._log.info(
                "audit: {path} was read again: {rules} rules, {tokens} tokens, {users} users",
                path=self._path,
                rules=len(policy.rules),
                tokens=len(policy.tokens),
                users=len(policy.hashes),
            )
        finally:
            self._different = None
            self._loading.release()

    def _in_thread(self, call: Callable[[], T]) -> Deferred[T]:
        done: Deferred[T] = deferToThreadPool(self._reactor, self._disk, call)
        return done

    def sign(self, signer: Principal | None, grant: Grant) -> str:
        """Return the text of a link by which *signer* gives *grant*, of which he has all rights.

        :raises MissingRight: when he has not.
        :raises LinkRefused: when there is no key.
        """
        if not isinstance(signer, Subject):
            raise MissingRight([Right.SIGN.value])
        # What a prefix is for besides may be missing to him: it is asked about at each use.
        needed = grant.rights if grant.below or grant.method == "POST" else grant.rights[:1]
        for right in needed:
            if not signer.rules.allow(right, grant.name):
                raise MissingRight([right.value])
        if not (keys := self.policy.link_keys):
            raise LinkRefused("There are no keys for links any more.")
        return sign(keys[0], grant, signer)

    async def identify(
        self,
        method: bytes,
        authorization: Sequence[bytes] = (),
        link: bytes | None = None,
        certificate: bytes | None = None,
        client: bytes | None = None,
    ) -> Subject:
        """Return who sent a request.

        :param authorization: the values of all its Authorization fields. With a link, they do not
            count: a browser sends them without being told to.
        :param link: of its query.
        :param certificate: of the client, in DER, as TLS has verified it. It counts when there is
            nothing else, which would have been added for this one request.
        :param client: by what the failures of its client are counted, None when they are not.
        :raises Unauthenticated: when they are wrong. Without any, who asks is anonymous.
        :raises LinkRefused: when the link does not count.
        :raises TooManyPasswords: when too many wait.
        :raises TooManyFailures: when the client has failed too often. What cannot be guessed is
            looked at nevertheless: a token that is right always counts.
        :raises IssuerAway: when the keys for a token have never come.
        """
        policy = self.policy
        if link is not None and method != b"OPTIONS":
            return self._by_link(policy, link, method)
        if not authorization:
            if certificate is not None and policy.certificates is not None:
                return self._by_certificate(policy, policy.certificates, certificate)
            return policy.anonymous()
        if len(authorization) > 1:
            raise Unauthenticated("A request may have one Authorization.", policy.challenges)
        scheme, _, presented = authorization[0].partition(b" ")
        presented = presented.strip(b" ")
        if scheme.lower() == b"basic" and policy.hashes:
            return await self._by_password(policy, presented, client)
        if scheme.lower() == b"bearer":
            try:
                return await self._by_token(policy, presented)
            except Unauthenticated:
                if client and (wait := self._bad_tokens.take(client, self._reactor.seconds())):
                    raise TooManyFailures(wait) from None
                raise
        raise Unauthenticated("This scheme of Authorization does not work here.", policy.challenges)

    async def _by_password(self, policy: Policy, presented: bytes, client: bytes | None) -> Subject:
        credentials = credentials_of(presented)
        if credentials is None:
            raise Unauthenticated("The credentials of Basic cannot be read.", policy.challenges)
        user, password = credentials
        checked = self.passwords.check(policy.hashes, user, password, client)
        if not (checked if isinstance(checked, bool) else await checked):
            raise Unauthenticated("The user or the password is wrong.", policy.challenges)
        return policy.known(user, "password")

    async def _by_token(self, policy: Policy, presented: bytes) -> Subject:
        token = policy.tokens.find(presented)
        if token is not None:
            return policy.known(token.name, "token")
        if policy.issuers and presented.count(b".") == 2:
            try:
                return await self._by_jwt(policy, presented)
            except BadToken as error:
                raise Unauthenticated(str(error), policy.challenges) from None
        raise Unauthenticated("The token is not known, or has expired.", policy.challenges)

    def _by_certificate(
        self, policy: Policy, counted: ClientCertificates, certificate: bytes
    ) -> Subject:
        shown = b"TLS", digest_of(certificate)
        if (remembered := self._remembered(shown)) is not None:
            return remembered
        try:
            principal, expires = counted.identify(certificate)
        except BadCertificate as error:
            raise Unauthenticated(str(error), policy.challenges) from None
        subject = policy.subject(principal)
        self._remember(shown, subject, expires)
        return subject

    def _by_link(self, policy: Policy, link: bytes, method: bytes) -> Subject:
        shown = method, digest_of(link)
        if (remembered := self._remembered(shown)) is not None:
            return remembered
        holder, until = policy.holder(*verify(policy.link_keys, link, method))
        if time.time() >= until:
            raise LinkRefused("Who has signed the link is not there any more.")
        self._remember(shown, holder, until)
        return holder

    def _remembered(self, shown: tuple[bytes, bytes]) -> Subject | None:
        """Return who has *shown* this, None when it is not known or has expired."""
        subject, expires = self._verified.get(shown, (None, 0.0))
        return subject if time.time() < expires else None

    def _remember(self, shown: tuple[bytes, bytes], subject: Subject, expires: float) -> None:
        self._verified[shown] = subject, expires
        if len(self._verified) > REMEMBERED:
            del self._verified[next(iter(self._verified))]

    async def _by_jwt(self, policy: Policy, presented: bytes) -> Subject:
        """Return whom the token is for; what was verified is remembered until it expires.

        :raises BadToken: when it does not count.
        :raises IssuerAway: when that cannot be known.
        """
        shown = b"", digest_of(presented)
        if (remembered := self._remembered(shown)) is not None:
            return remembered
        token = presented.decode("latin-1")
        issuer = policy.issuers.get(issuer_of(token) or "")
        if issuer is None:
            raise BadToken("The token's issuer is none of those that count here.")
        fetched = self._fetched[issuer.source] if issuer.source else None
        try:
            principal, expires = issuer.verify(token, self._keys(issuer))
        except UnknownKey:  # the issuer may have turned to another one
            if fetched is None:
                raise
            if (fetching := fetched.refresh_soon()) is not None:
                await fetching
            if not fetched.keys:
                raise IssuerAway from None
            principal, expires = issuer.verify(token, fetched.keys)
        subject = policy.subject(principal)
        if policy is self.policy:
            self._remember(shown, subject, expires)
        return subject

    def _keys(self, issuer: Issuer) -> Keys:
        return self._fetched[issuer.source].keys if issuer.source else issuer.keys or {}

    def _fetch_for(self, policy: Policy) -> None:
        """Fetch the keys that *policy* needs, and no others any more."""
        wanted = {issuer.source for issuer in policy.issuers.values() if issuer.source}
        for source in wanted - self._fetched.keys():
            fetched = FetchedKeys(self._reactor, source, self._in_thread, self._verified.clear)
            self._fetched[source] = fetched
            fetched.start()
        for source in self._fetched.keys() - wanted:
            self._fetched.pop(source).stop()
