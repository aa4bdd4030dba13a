"""What a server counts, in the format of Prometheus. No I/O here but to read the clock.

Above: the parts of the server, which count in plain integers, and `health`, which asks the
database. Below: prometheus_client, which writes the text. Nothing is computed before somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from realtime_db.auth.access import Access, WriteAccess
from realtime_db.auth.policies import Extension
from realtime_db.auth.tokens import Claims

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_AUTHORIZATION_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the server itself knows, at one moment.

    Attributes:
        connections: by transport.
        channels: joined topics of all connections, by transport.
        topics: those that somebody follows.
        deliveries: messages written to sockets, since the start.
        delivered_bytes: the bytes of those.
        slow_clients: thrown out, since the start.
        limited: how often a limit struck, by its setting, since the start.
        replicating: whether messages of the database come.
        leading: whether this server reads the database's slot, or has one of its own.
        recoveries: how often messages came from the table, for a slot was lost; since the start.
        gaps: how often some of these were no longer stored, since the start.
        resume_gaps: how often somebody resumed to what may be no longer stored, since the start.
    """

    connections: Mapping[str, int]
    channels: Mapping[str, int]
    topics: int
    deliveries: int
    delivered_bytes: int
    slow_clients: int
    limited: Mapping[str, int]
    replicating: bool
    leading: bool
    recoveries: int
    gaps: int
    resume_gaps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCounts:
    """What the database knows, at one moment; None where it could not say.

    Attributes:
        lag_bytes: of WAL that the server has not read yet.
        lag_seconds: since when there is such.
        retained_bytes: of WAL that the database keeps for the slot.
        wal_status: of the slot: `reserved`, `extended`, `unreserved` or `lost`.
        safe_bytes: of WAL that may still be written before the slot can get lost.
        partition_days: today and the days ahead that have a partition, without a gap.
    """

    lag_bytes: int | None = None
    lag_seconds: float | None = None
    retained_bytes: int | None = None
    wal_status: str | None = None
    safe_bytes: int | None = None
    partition_days: int | None = None


class Metrics(Collector):
    """The metrics of one server.

    Args:
        count: gives what the server knows.
    """

    def __init__(self, count: Callable[[], Counts]) -> None:
        self._count = count
        self._database: DatabaseCounts | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._authorization = Histogram(
            "realtime_db_authorization_seconds",
            "How long the policies took to answer, the wait for a connection included.",
            ["right"],
            buckets=_AUTHORIZATION_BUCKETS,
            registry=self._registry,
        )

    def text(self, database: DatabaseCounts | None) -> bytes:
        """All metrics.

        Args:
            database: what it said; None if it could not be asked.
        """
        self._database = database
        return generate_latest(self._registry)

    def authorized(self, right: str, seconds: float) -> None:
        """Counts one question to the policies."""
        self._authorization.labels(right).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """What `prometheus_client` asks for."""
        counts = self._count()
        yield _by_transport("connections", "Open connections.", counts.connections)
        yield _by_transport("channels", "Joined topics of all connections.", counts.channels)
        yield _gauge("topics", "Topics that somebody follows.", counts.topics)
        yield _counter("deliveries", "Messages written to sockets.", counts.deliveries)
        yield _counter("delivered_bytes", "Bytes of them.", counts.delivered_bytes)
        yield _counter("slow_clients", "Clients thrown out: too slow.", counts.slow_clients)
        limited = CounterMetricFamily(
            "realtime_db_limited", "Refused or dropped for a limit.", labels=["limit"]
        )
        for limit, times in counts.limited.items():
            limited.add_metric([limit], times)
        yield limited
        yield _gauge("replicating", "Whether the WAL is being read.", counts.replicating)
        yield _gauge("leader", "Whether this server is no standby.", counts.leading)
        yield _counter("slot_recoveries", "Slots made anew: see the log.", counts.recoveries)
        yield _counter("gaps", "Of these, with messages no longer stored.", counts.gaps)
        text = "Resumes with messages no longer stored."
        yield _counter("resume_gaps", text, counts.resume_gaps)
        database = self._database
        yield _gauge("database_up", "Whether the database answers.", database is not None)
        if database is None:
            return
        for name, text, value in (
            ("replication_lag_bytes", "WAL that was not read yet.", database.lag_bytes),
            ("replication_lag_seconds", "Since when there is such.", database.lag_seconds),
            ("wal_retained_bytes", "WAL kept for the slot.", database.retained_bytes),
            ("slot_safe_bytes", "WAL until the slot can get lost.", database.safe_bytes),
            (
                "partition_days",
                "Days that have a partition, today included; 0: nothing can be sent.",
                database.partition_days,
            ),
        ):
            if value is not None:
                yield _gauge(name, text, value)
        status = GaugeMetricFamily(
            "realtime_db_slot_wal_status", "How the slot stands, with 1.", labels=["status"]
        )
        for name in ("reserved", "extended", "unreserved", "lost"):
            status.add_metric([name], float(database.wal_status == name))
        yield status


class MeasuredPolicies:
    """Policies whose answers are timed."""

    def __init__(self, policies: Any, metrics: Metrics) -> None:
        self._policies = policies
        self._metrics = metrics

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        """As that of `auth.policies`."""
        begun = time.perf_counter()
        try:
            access: Access = await self._policies.read_access(topic, claims, headers)
        finally:
            self._metrics.authorized("read", time.perf_counter() - begun)
        return access

    async def write_access(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None = None,
        extension: Extension = "broadcast",
    ) -> WriteAccess:
        """As that of `auth.policies`."""
        begun = time.perf_counter()
        ask = self._policies.write_access
        try:
            access: WriteAccess = await ask(topic, claims, headers, extension)
        finally:
            self._metrics.authorized("write", time.perf_counter() - begun)
        return access


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"realtime_db_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"realtime_db_{name}", text, value=value)


def _by_transport(name: str, text: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"realtime_db_{name}", text, labels=["transport"])
    for transport, value in values.items():
        family.add_metric([transport], value)
    return family
