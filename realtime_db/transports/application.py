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
from realtime_db.transports.rest import Batch, Broadcasts, Rates, Single
from realtime_db.transports.sse import Events, EventStream
from realtime_db.transports.websocket import WebSocketProtocol

_NOT_FOUND: Final = Response.json(404, {"error": "Not Found"})
_NO_KEY: Final = Response.json(401, {"error": "API key is missing"})
_STANDBY_TEXT: Final = "This server is a standby: another one leads"
_STANDBY: Final = Response.json(
    503,
    {"error": _STANDBY_TEXT, "message": _STANDBY_TEXT},
    headers=(*CORS, ("retry-after", "1")),
    logged=True,
)
_FAILED: Final = Response.json(500, {"error": "Error connecting to Realtime"}, logged=True)
_TOO_MANY_USERS: Final = Response.json(429, {"error": "Too many connected users"}, logged=True)
_TOO_MANY_JOINS: Final = Response.json(429, {"error": "Too many joins per second"}, logged=True)

CHECKS_PER_TURN: Final = 200
CHECKS_PAUSE_SECONDS: Final = 0.02
"""After new keys, a token takes 40 us to verify: a third of our time, for so long as it takes."""

OPERATIONS: Final = {"metrics": ("metrics",), "inspector": ()}
"""What only `--ops-port` serves, if there is one: settings and their paths."""

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
        }
        if services.settings.metrics:
            self._endpoints[OPERATIONS["metrics"]] = MetricsPage(self._metrics, watch)
        if services.settings.inspector:
            self._endpoints[OPERATIONS["inspector"]] = _Fixed(inspector.page())

    def answer_at_once(self, request: Request) -> Response | Handover | None:
        """What needs nobody to wait; None for all else."""
        endpoint = self._find(request)
        if isinstance(endpoint, Response):
            return endpoint
        try:
            answer = endpoint.at_once(request)
            self._note(request, endpoint, answer)
            return answer
        except Exception:
            return self._failed(request)

    async def answer(self, request: Request) -> Response | Handover:
        """Never raises."""
        endpoint = self._find(request)
        if isinstance(endpoint, Response):
            return endpoint
        try:
            answer = await endpoint.later(request)
            self._note(request, endpoint, answer)
            return answer
        except Exception:
            return self._failed(request)

    def refused(self, status: int, text: str) -> None:
        """Something came that is no request, or too large a one."""
        if status == 413:
            self._services.limits.over("max_body_bytes", "a request was refused: %s", text)
        else:
            self._services.log.info("a request was refused, %d: %s", status, text)

    async def check_tokens(self) -> None:
        """Ends what the keys do not open any more, after they have changed; a few at a time."""
        ended = checked = 0
        for client in list(self.clients):
            checked += 1 + len(client.connection.channels)
            ended += not client.connection.keys_changed()
            if checked >= CHECKS_PER_TURN:
                checked = 0
                await asyncio.sleep(CHECKS_PAUSE_SECONDS)
        for stream in list(self.streams):
            checked += 1
            ended += not stream.keys_changed()
            if checked >= CHECKS_PER_TURN:
                checked = 0
                await asyncio.sleep(CHECKS_PAUSE_SECONDS)
        if ended:
            self._services.log.info("%d connections ended: their keys were retired", ended)

    def _note(
        self, request: Request, endpoint: Endpoint, answer: Response | Handover | None
    ) -> None:
        """Logs why a client was refused. The path holds no token; the query may."""
        if not isinstance(answer, Response) or answer.status < 400 or answer.logged:
            return
        if isinstance(endpoint, (_WebSockets, Events, Broadcasts)):
            self._services.log.info(
                "%s %.200s refused, %d: %.300s",
                request.method,
                request.path,
                answer.status,
                answer.reason,
            )

    def _find(self, request: Request) -> Endpoint | Response:
        parts = _parts(request)
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
        if self._services.standby and isinstance(endpoint, (_WebSockets, Events, Broadcasts)):
            return _STANDBY
        return endpoint

    def _failed(self, request: Request) -> Response:
        self._services.log.exception("a request failed: %s", request.path[:200])
        return _FAILED

    def _is_full(self) -> bool:
        services = self._services
        is_full = len(self.clients) + len(self.streams) >= services.settings.max_connections
        if is_full:
            services.limits.over("max_connections", "a client was refused")
        return is_full

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
            slow_clients=services.limits.struck["max_write_buffer_bytes"],
            limited=services.limits.struck,
            replicating=services.replicating,
            leading=services.leading,
            recoveries=services.recoveries,
            gaps=services.gaps,
            resume_gaps=services.resume_gaps,
        )


class Front:
    """What clients may see of an application whose operators have a port of their own."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self.refused = application.refused
        self.answer = application.answer

    def answer_at_once(self, request: Request) -> Response | Handover | None:
        """What needs nobody to wait; None for all else."""
        if _parts(request) in OPERATIONS.values():
            return _NOT_FOUND
        return self._application.answer_at_once(request)


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
            return _TOO_MANY_USERS
        if self._services.joins.is_exhausted(self._services.now()):
            self._services.limits.over("max_joins_per_second", "a client was refused")
            return _TOO_MANY_JOINS

        def take(transport: asyncio.Transport) -> asyncio.Protocol:
            transport.write(switching_protocols(checked))
            return WebSocketProtocol(
                self._services,
                chosen,
                _key(request),
                request.x_headers,
                transport=transport,
                clients=self.clients,
            )

        return Handover(take)


def _parts(request: Request) -> tuple[str, ...]:
    return tuple(part for part in request.path.split("/") if part)


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
