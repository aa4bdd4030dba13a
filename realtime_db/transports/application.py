"""Which answer belongs to which URL (PROTOCOL 1). The handlers are in `rest`, `sse` and `websocket`.

Two layouts serve the same: what clients find behind a gateway, `/realtime/v1/…`, and without one,
`/socket/websocket` and `/api/…`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.protocol.connection import Services
from realtime_db.protocol.frames import framing
from realtime_db.transports.handshake import Refused, check_handshake, switching_protocols
from realtime_db.transports.http import Handover, Request, Response
from realtime_db.transports.websocket import WebSocketProtocol

_WEBSOCKETS: Final = frozenset(("/socket/websocket", "/realtime/v1/websocket"))


class Application:
    """Answers requests.

    Args:
        services: of the server.

    Attributes:
        clients: the WebSockets that are open.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.clients: set[WebSocketProtocol] = set()

    def answer_at_once(self, request: Request) -> Response | Handover | None:
        """What needs nobody to wait; None for all else."""
        if request.path in _WEBSOCKETS:
            try:
                claims = self._services.keys.verify_known(_key(request), self._services.now())
            except TokenError as error:
                if error.unknown_kid is not None:
                    return None
                return _unauthorized(error)
            return self._websocket(request, claims)
        if request.path == "/healthcheck":
            return Response(200, b"ok", "text/plain")
        if request.path == "/api/ping":
            return Response.json(200, {"message": "Success"})
        return None

    async def answer(self, request: Request) -> Response | Handover:
        """Never raises."""
        try:
            if request.path in _WEBSOCKETS:
                return self._websocket(
                    request,
                    await self._services.keys.verify(_key(request), self._services.now()),
                )
        except TokenError as error:
            return _unauthorized(error)
        except Exception:
            self._services.log.exception("a request failed: %s", request.path[:200])
            return Response.json(500, {"error": "Error connecting to Realtime"})
        return Response.json(404, {"error": "Not Found"})

    def _websocket(self, request: Request, claims: Claims) -> Response | Handover:
        """A verified key: the handshake, or why not."""
        settings = self._services.settings
        chosen = framing(request.query.get("vsn"))
        if chosen is None:
            return Response(403)
        checked = check_handshake(
            request.headers, method=request.method, http_version=request.http_version
        )
        if isinstance(checked, Refused):
            return Response.json(checked.status, {"error": checked.text}, headers=checked.headers)
        if len(self.clients) >= settings.max_connections:
            return Response.json(429, {"error": "Too many connected users"})
        headers = {name: value for name, value in request.headers.items() if name.startswith("x-")}

        def take(transport: asyncio.Transport) -> asyncio.Protocol:
            transport.write(switching_protocols(checked))
            return WebSocketProtocol(
                self._services,
                chosen,
                _key(request),
                headers,
                transport=transport,
                clients=self.clients,
            )

        return Handover(take)


def _key(request: Request) -> str:
    """The token of a connection (PROTOCOL 1)."""
    return request.headers.get("x-api-key") or request.query.get("apikey", "")


def _unauthorized(error: TokenError) -> Response:
    return Response.json(401, {"error": error.handshake})
