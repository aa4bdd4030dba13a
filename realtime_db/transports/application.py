"""Which answer belongs to which URL (PROTOCOL 1). What the answers are is in the modules below:
`rest`, `sse`, `operations` and, from here on, `websocket`.

Two layouts serve the same: what clients find behind a gateway, `/realtime/v1/…`, and without one,
`/socket/websocket` and `/api/…`. A path is split before it is decoded, for a topic may hold a
slash, and empty parts do not count.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, Protocol

from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.health import Reader, Watch
from realtime_db.metrics import Counts, MeasuredPolicies, Metrics
from realtime_db.protocol.frames import framing
from realtime_db.protocol.services import Services
from realtime_db.transports import inspector
from realtime_db.transports.handshake import Refused, check_handshake, switching_protocols
from realtime_db.transports.http import CORS, Handover, Request, Response
from realtime_db.transports.openapi import DOCUMENT
from realtime_db.transports.operations import MetricsPage, Ready
from realtime_db.transports.rest import Batch, Rates, Single
from realtime_db.transports.sse import Events, EventStream
from realtime_db.transports.websocket import WebSocketProtocol

_NOT_FOUND: Final = Response.json(404, {"error": "Not Found"})
_NO_KEY: Final = Response.json(401, {"error": "API key is missing"})
_FAILED: Final = Response.json(500, {"error": "Error connecting to Realtime"})

ALLOWED_HEADERS: Final = "apikey, authorization, content-type, x-client-info"
PREFLIGHT_SECONDS: Final = 86_400
_HEADER_NAMES: Final = re.compile(
    r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII
)


class Endpoint(Protocol):
    """What is behind a URL.

    Attributes:
        methods: those that it answers.
    """

    @property
    def methods(self) -> tuple[str, ...]: ...

    def at_once(self, request: Request) -> Response | Handover | None:
        """What needs nobody to wait; None for all else, and then nothing has happened."""

    async def later(self, request: Request) -> Response | Handover:
        """Everything."""


class Application:
    """Answers requests.

    Args:
        services: of the server.

    Attributes:
        clients: the WebSockets that are open.
        streams: the streams of events that are open.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._metrics = Metrics(self._counts)
        services.policies = MeasuredPolicies(services.policies, self._metrics)
        watch = Watch(services.settings.database_url, services.now, self._reader)
        websockets = _WebSockets(services, self._is_full)
        events = Events(services, self._is_full)
        self.clients: set[WebSocketProtocol] = websockets.clients
        self.streams: set[EventStream] = events.streams
        rates = Rates(services)
        batch = Batch(services, rates)
        self._single = Single(services, rates)
        self._endpoints: dict[tuple[str, ...], Endpoint] = {
            ("socket", "websocket"): websockets,
            ("realtime", "v1", "websocket"): websockets,
            ("realtime", "v1", "sse"): events,
            ("api", "broadcast"): batch,
            ("realtime", "v1", "api", "broadcast"): batch,
            ("api", "openapi"): _Fixed(Response(200, DOCUMENT)),
            ("api", "ping"): _Fixed(Response.json(200, {"message": "Success"})),
            ("healthcheck",): _Fixed(Response(200, b"ok", "text/plain")),
            ("readyz",): Ready(services, watch),
            ("metrics",): MetricsPage(self._metrics, watch),
            **({(): _Fixed(inspector.page())} if services.settings.inspector else {}),
        }

    def answer_at_once(self, request: Request) -> Response | Handover | None:
        """What needs nobody to wait; None for all else."""
        endpoint = self._find(request)
        if isinstance(endpoint, Response):
            return endpoint
        try:
            return endpoint.at_once(request)
        except Exception:
            return self._failed(request)

    async def answer(self, request: Request) -> Response | Handover:
        """Never raises."""
        endpoint = self._find(request)
        if isinstance(endpoint, Response):
            return endpoint
        try:
            return await endpoint.later(request)
        except Exception:
            return self._failed(request)

    def _find(self, request: Request) -> Endpoint | Response:
        parts = tuple(part for part in request.path.split("/") if part)
        endpoint = self._endpoints.get(parts)
        if endpoint is None:
            short = parts[2:] if parts[:2] == ("realtime", "v1") else parts
            if len(short) != 5 or short[:2] != ("api", "broadcast") or short[3] != "events":
                return _NOT_FOUND
            endpoint = self._single
        if request.method == "OPTIONS":
            return _preflight(request, endpoint.methods)
        if request.method not in endpoint.methods:
            allow = ("allow", ", ".join((*endpoint.methods, "OPTIONS")))
            return Response.json(405, {"message": "Method Not Allowed"}, headers=(*CORS, allow))
        return endpoint

    def _failed(self, request: Request) -> Response:
        self._services.log.exception("a request failed: %s", request.path[:200])
        return _FAILED

    def _is_full(self) -> bool:
        connected = len(self.clients) + len(self.streams)
        return connected >= self._services.settings.max_connections

    def _reader(self) -> Reader | None:
        reader = self._services.reader
        return None if reader is None else Reader(reader.slot_name, reader.received_lsn)

    def _counts(self) -> Counts:
        services = self._services
        return Counts(
            connections={"websocket": len(self.clients), "sse": len(self.streams)},
            channels={
                "websocket": sum(len(client.connection.channels) for client in self.clients),
                "sse": sum(stream.topics for stream in self.streams),
            },
            topics=services.hub.topics,
            deliveries=services.hub.deliveries,
            delivered_bytes=services.hub.delivered_bytes,
            slow_clients=services.slow_clients,
            too_large=services.dropped_too_large,
            replicating=services.replicating,
        )


class _Fixed:
    """An answer that is always the same."""

    methods = ("GET", "HEAD")

    def __init__(self, response: Response) -> None:
        self._response = response

    def at_once(self, request: Request) -> Response:
        return self._response

    async def later(self, request: Request) -> Response:
        return self._response


class _WebSockets:
    """`/socket/websocket` and `/realtime/v1/websocket`: the handshake, or why not."""

    # `check_handshake` has its own words for the other methods.
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")

    def __init__(self, services: Services, is_full: Callable[[], bool]) -> None:
        self._services = services
        self._is_full = is_full
        self.clients: set[WebSocketProtocol] = set()

    def at_once(self, request: Request) -> Response | Handover | None:
        key = _key(request)
        if not key:
            return _NO_KEY
        try:
            claims = self._services.keys.verify_known(key, self._services.now())
        except TokenError as error:
            return _unauthorized(error) if error.unknown_kid is None else None
        return self._open(request, claims)

    async def later(self, request: Request) -> Response | Handover:
        try:
            claims = await self._services.keys.verify(_key(request), self._services.now())
        except TokenError as error:
            return _unauthorized(error)
        return self._open(request, claims)

    def _open(self, request: Request, claims: Claims) -> Response | Handover:
        """A verified key: the handshake, or why not."""
        chosen = framing(request.query.get("vsn"))
        if chosen is None:
            return Response(403)
        checked = check_handshake(
            request.headers, method=request.method, http_version=request.http_version
        )
        if isinstance(checked, Refused):
            headers = (*CORS, *checked.headers)
            return Response.json(checked.status, {"error": checked.text}, headers=headers)
        if self._is_full():
            return Response.json(429, {"error": "Too many connected users"})
        if self._services.joins.is_exhausted(self._services.now()):
            return Response.json(429, {"error": "Too many joins per second"})
        headers_for_policies = {
            name: value for name, value in request.headers.items() if name.startswith("x-")
        }

        def take(transport: asyncio.Transport) -> asyncio.Protocol:
            transport.write(switching_protocols(checked))
            return WebSocketProtocol(
                self._services,
                chosen,
                _key(request),
                headers_for_policies,
                transport=transport,
                clients=self.clients,
            )

        return Handover(take)


def _preflight(request: Request, methods: tuple[str, ...]) -> Response:
    """Says to a browser that it may; whatever header it wants to send, it may send."""
    wanted = request.headers.get("access-control-request-headers", "")
    allowed = ", ".join((*methods, "OPTIONS"))
    return Response(
        204,
        headers=(
            *CORS,
            ("allow", allowed),
            ("access-control-allow-methods", allowed),
            (
                "access-control-allow-headers",
                wanted if _HEADER_NAMES.fullmatch(wanted) else ALLOWED_HEADERS,
            ),
            ("access-control-max-age", str(PREFLIGHT_SECONDS)),
            ("vary", "access-control-request-headers"),
        ),
    )


def _key(request: Request) -> str:
    """The token of a connection (PROTOCOL 1)."""
    return request.headers.get("x-api-key") or request.query.get("apikey", "")


def _unauthorized(error: TokenError) -> Response:
    return Response.json(401, {"error": error.handshake})
