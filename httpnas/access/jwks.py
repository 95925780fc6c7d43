"""Keys of issuers, fetched by Twisted's own client: kept, refreshed, and outliving an issuer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http_headers import Headers

from httpnas.access.jwts import Keys, Source, read_keys

#: Seconds between two fetches, and between two that an unknown key has asked for.
REFRESH, AT_ONCE = 300.0, 10.0
#: Seconds that a fetch may take.
PATIENCE = 10.0
#: The most bytes of a JWK Set.
_MOST = 1 << 20
_PEM = re.compile(b"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)


class FetchedKeys:
    """The keys of one source.

    :param in_thread: runs what asks the disk.
    :param changed: is called when there are other keys.
    :ivar keys: the latest that came, none before the first.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        source: Source,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        changed: Callable[[], object],
    ) -> None:
        self.keys: Keys = {}
        self._reactor = reactor
        self._source = source
        self._in_thread = in_thread
        self._changed = changed
        self._asking: list[Deferred[None]] = []
        self._began: float | None = None
        self._is_away = False
        self._refreshing = LoopingCall(self.refresh)
        self._refreshing.clock = reactor

    def start(self) -> None:
        """Begin to fetch."""
        self._refreshing.start(REFRESH)

    def stop(self) -> None:
        """Fetch no more."""
        if self._refreshing.running:
            self._refreshing.stop()

    def refresh_soon(self) -> Deferred[None] | None:
        """Fetch now, unless that was done a moment ago; None when it was."""
        now = self._reactor.seconds()
        if self._asking or self._began is None or now - self._began >= AT_ONCE:
            return self.refresh()
        return None

    def refresh(self) -> Deferred[None]:
        """Fetch, once for all who ask; what comes is fired, whether keys came or not."""
        asking = Deferred[None]()
        self._asking.append(asking)
        if len(self._asking) == 1:
            self._began = self._reactor.seconds()
            fetching = Deferred.fromCoroutine(self._fetch())
            fetching.addTimeout(PATIENCE, self._reactor).addCallbacks(self._came, self._failed)
            fetching.addBoth(self._deliver)
        return asking

    async def _fetch(self) -> Keys:
        ca, token = await self._in_thread(self._files)
        trust = platformTrust() if ca is None else trustRootFromCertificates(ca)
        agent = Agent(self._reactor, BrowserLikePolicyForHTTPS(trust), connectTimeout=PATIENCE)
        headers = Headers({"Accept": ["application/jwk-set+json, application/json"]})
        if token:
            headers.addRawHeader(b"Authorization", b"Bearer " + token)
        response: Any = await agent.request(b"GET", self._source.url.encode(), headers)
        if response.code != 200:
            raise ValueError(f"the answer was {response.code}")
        body = _Body()
        response.deliverBody(body)
        return read_keys(await body.whole)

    def _files(self) -> tuple[list[Any] | None, bytes]:
        """Return the certificates to trust, and the token to send; both are renewed by others."""
        ca, token = None, b""
        if self._source.ca:
            with open(self._source.ca, "rb") as file:
                ca = [Certificate.loadPEM(pem) for pem in _PEM.findall(file.read(_MOST))]
        if self._source.token:
            with open(self._source.token, "rb") as file:
                token = file.read(_MOST).strip()
        return ca, token

    def _came(self, keys: Keys) -> None:
        if self._is_away:
            self._log.info("the keys of {url} could be fetched again", url=self._source.url)
        if keys.keys() != self.keys.keys() or self._is_away:
            self._log.info("audit: {url} has {count} keys", url=self._source.url, count=len(keys))
        self._is_away = False
        self.keys = keys
        self._changed()

    def _failed(self, failure: Failure) -> None:
        if not self._is_away:
            self._log.warn(
                "the keys of {url} could not be fetched ({error}); {count} from before count",
                url=self._source.url,
                error=failure.type.__name__ if failure.type else "",
                count=len(self.keys),
            )
        self._is_away = True

    def _deliver(self, _: object) -> None:
        asking, self._asking = self._asking, []
        for each in asking:
            each.callback(None)


class _Body(Protocol):
    """Takes the body of an answer, up to :data:`_MOST` bytes."""

    def __init__(self) -> None:
        self.whole = Deferred[bytes](lambda _: self._cut())
        self._content = b""

    def dataReceived(self, data: bytes) -> None:
        """Take some of it."""
        self._content += data
        if len(self._content) > _MOST:
            self._cut()

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = ResponseDone) -> None:  # type: ignore[assignment]
        """Note that no more comes."""
        if self.whole.called:
            return
        if reason.check(ResponseDone) and len(self._content) <= _MOST:
            self.whole.callback(self._content)
        else:
            self.whole.errback(ValueError("the answer was cut short, or is too long"))
