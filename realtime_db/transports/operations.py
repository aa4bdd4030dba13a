"""For those who run the server: is it alive, is it ready, how is it doing.

Above is `application`; below are `metrics` and `health`. None of it needs a token.
"""

from __future__ import annotations

from realtime_db.health import Health, Watch
from realtime_db.metrics import CONTENT_TYPE, Metrics
from realtime_db.protocol.services import Services
from realtime_db.transports.http import Request, Response


class Ready:
    """`GET /readyz`: 200 while messages can be sent and are delivered, else 503 and why not."""

    methods = ("GET", "HEAD")

    def __init__(self, services: Services, watch: Watch) -> None:
        self._services = services
        self._watch = watch

    def at_once(self, request: Request) -> Response | None:
        return None

    async def later(self, request: Request) -> Response:
        services = self._services
        health = await self._watch.look()
        checks = {
            "server": _server(services),
            "database": health.problem or "ok",
            "slot": "ok" if services.replicating else services.slot_state,
            "partitions": _partitions(health),
        }
        ready = all(answer == "ok" for answer in checks.values())
        return Response.json(200 if ready else 503, {"ready": ready, **checks})


def _server(services: Services) -> str:
    if services.restarting:
        return "is restarting"
    return "is a standby: another one leads" if services.standby else "ok"


def _partitions(health: Health) -> str:
    days = health.counts.partition_days
    if days is None:
        return "unknown"
    return "ok" if days else "none for today; run: realtime-db maintain"


class MetricsPage:
    """`GET /metrics`."""

    methods = ("GET", "HEAD")

    def __init__(self, metrics: Metrics, watch: Watch) -> None:
        self._metrics = metrics
        self._watch = watch

    def at_once(self, request: Request) -> Response | None:
        return None

    async def later(self, request: Request) -> Response:
        health = await self._watch.look()
        counts = None if health.problem else health.counts
        return Response(200, self._metrics.text(counts), CONTENT_TYPE)
