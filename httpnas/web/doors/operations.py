"""For operators and their tools: whether the daemon is alive and ready, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from httpnas.access.authentication import Authentication
from httpnas.files.points import Admit, Intent, Verb
from httpnas.files.trace import Trace, joined
from httpnas.storage.errors import StorageError
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk
from httpnas.transfer.watchdog import Watchdog
from httpnas.web.answers import answer, answer_json
from httpnas.web.job import RequestJob
from httpnas.web.metrics import Family, Metrics
from httpnas.web.problems import Kind, busy
from httpnas.web.query import limit_of, parse_query
from httpnas.web.request import Request
from httpnas.web.routing import Router
from httpnas.web.server.request import Site


class Colleagues(Protocol):
    """The other workers of the daemon."""

    async def ask(self, what: str, argument: Any = None) -> list[Any]:
        """Return what each of them answers; None for one that does not."""


class Alone:
    """No other workers."""

    async def ask(self, what: str, argument: Any = None) -> list[Any]:
        """Return nothing."""
        return []


class Operations:
    """The routes that are about the daemon and not about files.

    :param admit: is asked who may see what.
    :param metrics: what is shown at ``/metrics``.
    :param headroom: the daemon is not ready while fewer bytes than this are free.
    :param colleagues: for what all workers know together.
    :param authentication: whose passwords are counted, None when nobody is asked who he is.
    """

    def __init__(
        self,
        disk: Disk,
        watchdog: Watchdog,
        trace: Trace,
        admit: Admit,
        metrics: Metrics,
        headroom: int = 0,
        colleagues: Colleagues | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        self._disk = disk
        self._watchdog = watchdog
        self._trace = trace
        self._admit = admit
        self._metrics = metrics
        self._headroom = headroom
        self._colleagues = colleagues or Alone()
        self._authentication = authentication

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""
        add = partial(router.add_page, "operations")
        add("/health", self.health, any_host=True)
        add("/ready", self.ready, any_host=True)
        add("/metrics", self.metrics)
        add("/transfers", self.transfers)

    async def health(self, request: Request) -> None:
        """Answer that the daemon is alive, whatever the state of its storage is."""
        answer_json(request, {"status": "alive"})

    def answers(self, site: Site) -> dict[str, Callable[[Any], Awaitable[Any]]]:
        """Return what other workers may ask for, by name; *site* is that of this one."""

        async def reasons(_: None) -> list[str]:
            return await self._reasons(site)

        async def families(_: None) -> list[Family]:
            self._sample(site, await self._space())
            return self._metrics.families()

        async def record(limit: int | None) -> dict[str, Any]:
            return self._trace.record(limit)

        return {"reasons": reasons, "families": families, "record": record}

    async def ready(self, request: Request) -> None:
        """Answer whether requests should be sent here, and if not, why."""
        reasons = await self._reasons(request.site)
        for others in await self._colleagues.ask("reasons"):
            reasons += ["A worker does not answer."] if others is None else others
        if reasons:
            reasons = list(dict.fromkeys(reasons))
            request.problem_members["reasons"] = reasons
            raise busy(Kind.NOT_READY, " ".join(reasons))
        answer_json(request, {"status": "ready"})

    async def _reasons(self, site: Site) -> list[str]:
        reasons = []
        if site.draining:
            reasons.append("The daemon is stopping.")
        if self._disk.failing:
            reasons.append(
                "The storage has failed repeatedly in the last seconds; the log says how."
            )
        return [*reasons, *await self._storage_reasons()]

    async def _storage_reasons(self) -> list[str]:
        try:
            await self._watchdog.probe.ask()
            free = (await self._watchdog.space.ask()).free
        except StorageError as error:
            return [f"The storage cannot be written to: {error}."]
        if free < self._headroom:
            return [f"{free} bytes are free, and {self._headroom} should be."]
        return []

    async def metrics(self, request: Request) -> None:
        """Show the metrics of all workers that answer."""
        self._admit(RequestJob(request), Intent(Verb.SEE_METRICS, b""))
        others = [each for each in await self._colleagues.ask("families") if each is not None]
        self._sample(request.site, await self._space())
        document, content_type = self._metrics.render(request.getHeader(b"Accept"), others)
        answer(request, document, content_type=content_type)

    def _sample(self, site: Site, space: Space | None) -> None:
        self._metrics.sample(site, self._disk, self._trace, space)
        if self._authentication is not None:
            self._metrics.sample_passwords(self._authentication.passwords)

    async def _space(self) -> Space | None:
        try:
            return await self._watchdog.space.ask()
        except StorageError:
            return None

    async def transfers(self, request: Request) -> None:
        """Show the transfers that are running, and the latest that have ended."""
        self._admit(RequestJob(request), Intent(Verb.SEE_TRANSFERS, b""))
        limit = limit_of(parse_query(request.query))
        record = self._trace.record(limit)
        others = [each for each in await self._colleagues.ask("record", limit) if each is not None]
        answer_json(request, joined([record, *others], limit))
