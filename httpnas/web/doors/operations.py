"""For operators and their tools: whether the daemon is alive and ready, and what it does."""

from __future__ import annotations

from functools import partial

from httpnas.files.trace import Trace
from httpnas.storage.errors import StorageError
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk
from httpnas.transfer.watchdog import Watchdog
from httpnas.web.answers import answer, answer_json
from httpnas.web.metrics import Metrics
from httpnas.web.problems import Kind, busy
from httpnas.web.query import limit_of, parse_query
from httpnas.web.request import Request
from httpnas.web.routing import Router


class Operations:
    """The routes that are about the daemon and not about files.

    :param metrics: what is shown at ``/metrics``.
    :param headroom: the daemon is not ready while fewer bytes than this are free.
    """

    def __init__(
        self,
        disk: Disk,
        watchdog: Watchdog,
        trace: Trace,
        metrics: Metrics,
        headroom: int = 0,
    ) -> None:
        self._disk = disk
        self._watchdog = watchdog
        self._trace = trace
        self._metrics = metrics
        self._headroom = headroom

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

    async def ready(self, request: Request) -> None:
        """Answer whether requests should be sent here, and if not, why."""
        reasons = [*self._own_reasons(request), *await self._storage_reasons()]
        if reasons:
            request.problem_members["reasons"] = reasons
            raise busy(Kind.NOT_READY, " ".join(reasons))
        answer_json(request, {"status": "ready"})

    def _own_reasons(self, request: Request) -> list[str]:
        reasons = []
        if request.site.draining:
            reasons.append("The daemon is stopping.")
        if self._disk.failing:
            reasons.append(
                "The storage has failed repeatedly in the last seconds; the log says how."
            )
        return reasons

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
        """Show the metrics."""
        space = await self._space()
        self._metrics.sample(request.site, self._disk, self._trace, space)
        document, content_type = self._metrics.render(request.getHeader(b"Accept"))
        answer(request, document, content_type=content_type)

    async def _space(self) -> Space | None:
        try:
            return await self._watchdog.space.ask()
        except StorageError:
            return None

    async def transfers(self, request: Request) -> None:
        """Show the transfers that are running, and the latest that have ended."""
        limit = limit_of(parse_query(request.query))
        answer_json(request, self._trace.record(limit))
