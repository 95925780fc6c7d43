"""What the daemon counts and measures, in the form that Prometheus reads.

No label holds a value that a client can choose (a name, an address, a method that does not exist),
so the number of series is bounded.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from httpnas.access.passwords import Passwords
from httpnas.files.trace import VERBS, Trace
from httpnas.storage.namespace import Step
from httpnas.storage.volume import Space
from httpnas.transfer.disk import Disk
from httpnas.web.request import Request
from httpnas.web.server.request import Site

#: Seconds: from an answer out of memory to a transfer of a quarter of an hour.
_DURATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 900.0)
#: Seconds: from an fsync that has nothing to do to a lock that is given up.
_STEPS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

#: A metric with its samples: name, documentation, type, and name, labels and value of each.
Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
#: What the figures of several workers make together. Counters and histograms add up; of any other
#: gauge, such as the size of the file system, all tell the same, and the most counts.
_JOIN: Mapping[str, Callable[[Iterable[float]], float]] = {
    "httpnas_connections": sum,
    "httpnas_transfers_running": sum,
    "httpnas_disk_calls_running": sum,
    "httpnas_disk_calls_queued": sum,
    "httpnas_passwords_waiting": sum,
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    "process_open_fds": sum,
    "process_max_fds": sum,
    "process_start_time_seconds": min,
}

disable_created_metrics()  # one more series for each counter, which nobody asks for


class _Series(NamedTuple):
    """The metrics of the requests to one door with one verb."""

    requests: Callable[[str], Counter]
    received: Counter
    sent: Counter
    durations: Histogram
    first_bytes: Histogram


class _Joined(Collector):
    """The metrics of several workers, as those of one daemon."""

    def __init__(self, workers: Sequence[Sequence[Family]]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once; see :data:`_JOIN`."""
        metrics: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
        for families in self._workers:
            for name, documentation, kind, samples in families:
                metrics.setdefault(name, Metric(name, documentation, kind))
                known = values.setdefault(name, {})
                for sample, labels, value in samples:
                    known.setdefault((sample, tuple(labels.items())), []).append(value)
        for name, metric in metrics.items():
            join = _JOIN.get(name, max if metric.type == "gauge" else sum)
            for (sample, items), found in values[name].items():
                metric.add_sample(sample, dict(items), join(found))
            yield metric


class Metrics:
    """All metrics of one daemon."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._of_requests()
        self._of_work()
        self._of_storage()
        self._series: dict[tuple[str, str], _Series] = {}
        self._faults_seen: Tally[str] = Tally()

    def _of_requests(self) -> None:
        registry, what = self._registry, ("door", "verb")
        self._requests = Counter(
            "httpnas_requests",
            "Requests that have ended; the status is 'none' when there was no answer.",
            (*what, "status"),
            registry=registry,
        )
        self._received = Counter(
            "httpnas_received_bytes", "Bytes of bodies that have come in.", what, registry=registry
        )
        self._sent = Counter(
            "httpnas_sent_bytes", "Bytes of bodies that went out.", what, registry=registry
        )
        self._durations = Histogram(
            "httpnas_request_duration_seconds",
            "From the first line of a request to its end.",
            what,
            buckets=_DURATIONS,
            registry=registry,
        )
        self._first_bytes = Histogram(
            "httpnas_time_to_first_byte_seconds",
            "From the first line of a request to the beginning of its answer.",
            what,
            buckets=_DURATIONS,
            registry=registry,
        )

        self._identities = Counter(
            "httpnas_identified_requests",
            "Requests by how it was found out who sent them.",
            ("identity",),
            registry=registry,
        )
        self._identified = cache(self._identities.labels)
        self._problems = Counter(
            "httpnas_problems",
            "Requests that were refused, by the code of the problem.",
            ("code",),
            registry=registry,
        )
        self._problem = cache(self._problems.labels)
        self._passwords_waiting = Gauge(
            "httpnas_passwords_waiting", "Passwords that are being checked.", registry=registry
        )
        self._passwords_hashed = Counter(
            "httpnas_passwords_hashed", "Hashes that were made of passwords.", registry=registry
        )
        self._hashed_before = 0

    def _of_work(self) -> None:
        registry = self._registry
        self._connections = Gauge(
            "httpnas_connections", "Connections that are open.", registry=registry
        )
        self._workers = Gauge(
            "httpnas_workers", "Workers whose figures these are.", registry=registry
        )
        self._draining = Gauge(
            "httpnas_draining", "1 while the daemon is stopping, else 0.", registry=registry
        )
        self._transfers = Gauge(
            "httpnas_transfers_running", "Transfers that run.", ("verb",), registry=registry
        )
        self._lines_dropped = Counter(
            "httpnas_log_lines_dropped",
            "Lines of the log that nobody took, or that could not be written.",
            registry=registry,
        )
        self._disk_running = Gauge(
            "httpnas_disk_calls_running", "Calls of the disk that run.", registry=registry
        )
        self._disk_queued = Gauge(
            "httpnas_disk_calls_queued",
            "Calls of the disk that wait for a thread.",
            registry=registry,
        )
        self._disk_quiet = Gauge(
            "httpnas_disk_quiet_seconds",
            "For how long no call of the disk has returned although some are pending.",
            registry=registry,
        )

    def _of_storage(self) -> None:
        registry = self._registry
        self._steps = Histogram(
            "httpnas_storage_step_seconds",
            "Duration of the steps of a change that the disk or others can delay.",
            ("step",),
            buckets=_STEPS,
            registry=registry,
        )
        self._faults = Counter(
            "httpnas_storage_errors",
            "Errors of the storage that no client has caused.",
            ("error",),
            registry=registry,
        )
        self._size = Gauge(
            "httpnas_storage_size_bytes", "Size of the file system.", registry=registry
        )
        self._free = Gauge(
            "httpnas_storage_free_bytes",
            "Bytes of the file system that can still be stored.",
            registry=registry,
        )
        self._inodes = Gauge(
            "httpnas_storage_inodes", "Files that the file system can hold.", registry=registry
        )
        self._free_inodes = Gauge(
            "httpnas_storage_free_inodes",
            "Files that can still be made in the file system.",
            registry=registry,
        )
        self._disk_used = Gauge(
            "disk_used",
            "Used part of the file system, from 0 to 1, as in simple-fs.",
            registry=registry,
        )

    def step(self, step: Step, seconds: float) -> None:
        """Note that *step* of a change has taken *seconds*; from any thread."""
        self._steps.labels(step).observe(seconds)

    def line_dropped(self) -> None:
        """Count a line that the log does not have; from any thread."""
        self._lines_dropped.inc()

    def refused(self, code: str) -> None:
        """Count a refusal with the problem *code*."""
        self._problem(code).inc()

    def request_ended(self, request: Request) -> None:
        """Count *request*, which has ended."""
        series = self._series_of(request)
        series.durations.observe(request.site.reactor.seconds() - request.began)
        if request.first_byte is not None:
            series.first_bytes.observe(request.first_byte - request.began)
        self._count_bytes(request, series)
        status = str(request.code) if request.answered else "none"
        series.requests(status).inc()
        if request.principal is not None:
            self._identified(request.principal.kind).inc()
        if request.problem is not None:
            self.refused(request.problem)

    def _series_of(self, request: Request) -> _Series:
        what = (request.door, request.verb)
        series = self._series.get(what)
        if series is None:
            series = self._series[what] = _Series(
                cache(partial(self._requests.labels, *what)),
                self._received.labels(*what),
                self._sent.labels(*what),
                self._durations.labels(*what),
                self._first_bytes.labels(*what),
            )
        return series

    def _count_bytes(self, request: Request, series: _Series) -> None:
        """Count the bytes since the last time, so that long transfers show while they run."""
        received, sent = request.body.received, request.sentLength
        if received > request.counted[0]:
            series.received.inc(received - request.counted[0])
        if sent > request.counted[1]:
            series.sent.inc(sent - request.counted[1])
        request.counted = (received, sent)

    def sample(self, site: Site, disk: Disk, trace: Trace, space: Space | None) -> None:
        """Set the gauges to how things are at this moment.

        :param space: of the storage, None when the storage does not answer.
        """
        for request in site.running():
            self._count_bytes(request, self._series_of(request))
        self._connections.set(site.connections)
        self._draining.set(site.draining)
        running = trace.running()
        for verb in VERBS:
            self._transfers.labels(verb.value).set(running[verb])
        self._disk_running.set(disk.running)
        self._disk_queued.set(disk.queued)
        self._disk_quiet.set(disk.quiet)
        for error, count in (disk.faults - self._faults_seen).items():
            self._faults.labels(error).inc(count)
        self._faults_seen = disk.faults.copy()
        if space is not None:
            self._sample_space(space)

    def sample_passwords(self, passwords: Passwords) -> None:
        """Note how many *passwords* wait, and how many hashes were made since the last time."""
        self._passwords_waiting.set(passwords.waiting)
        self._passwords_hashed.inc(passwords.hashed - self._hashed_before)
        self._hashed_before = passwords.hashed

    def _sample_space(self, space: Space) -> None:
        self._size.set(space.size)
        self._free.set(space.free)
        self._inodes.set(space.inodes)
        self._free_inodes.set(space.free_inodes)
        used = 1 - space.unused / space.size if space.size else 0
        self._disk_used.set(round(used, 2))

    def families(self) -> list[Family]:
        """Return all metrics, for :meth:`render` of another worker."""
        return [
            (
                metric.name,
                metric.documentation,
                metric.type,
                [(sample.name, sample.labels, sample.value) for sample in metric.samples],
            )
            for metric in self._registry.collect()
        ]

    def render(
        self, accept: bytes | None, others: Sequence[Sequence[Family]] = ()
    ) -> tuple[bytes, bytes]:
        """Return a document in the format that *accept* asks for, and its media type.

        :param others: the metrics of other workers, which belong to it as well.
        """
        self._workers.set(1 + len(others))
        registry = self._registry
        if others:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Joined([self.families(), *others]))
        try:
            encode, content_type = choose_encoder((accept or b"").decode("latin-1"))
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(registry), content_type.encode()
