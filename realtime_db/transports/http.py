"""HTTP/1.1 on the server's one port: requests in, answers out, and the way to a WebSocket.

Above is the socket; below is an `Application`, which answers a `Request` with a `Response`, a
`Stream` or an `Upgrade`. Parsing is httptools'; limits are ours: a head that is too large or too
slow, a body that is too large, are answered and the connection closed. Requests of a connection are
answered one after another; reading stops in between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol, cast
from urllib.parse import parse_qsl

import httptools

from realtime_db.wheel import Timer, Wheel

MAX_HEAD_BYTES: Final = 65_536
HEAD_SECONDS: Final = 15.0
BODY_SECONDS: Final = 60.0
KEEP_ALIVE_SECONDS: Final = 75.0

CORS: Final = (("access-control-allow-origin", "*"),)


@dataclass(slots=True)
class Request:
    """A request.

    Attributes:
        method: in capitals.
        path: as it came, still percent-encoded, without the query.
        query: decoded; the last value of each name.
        query_lists: decoded; all values of each name, in order.
        headers: by lower-case name; those that came more than once joined by commas.
        body: as it came.
        http_version: `1.1` or `1.0`.
    """

    method: str
    path: str
    query_lists: dict[str, list[str]]
    headers: dict[str, str]
    http_version: str
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """The last value of each name."""
        return {name: values[-1] for name, values in self.query_lists.items()}


@dataclass(slots=True)
class Response:
    """An answer that is known as a whole."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = CORS

    @classmethod
    def json(cls, status: int, value: object, **more: Any) -> Response:
        """An answer in JSON."""
        return cls(status, json.dumps(value, ensure_ascii=False).encode(), **more)


@dataclass(slots=True)
class Handover:
    """The connection becomes something else, which `take` begins: a WebSocket, a stream of events.

    Attributes:
        take: given the transport, writes the head of the answer and returns the protocol that the
            connection has from now on.
    """

    take: Callable[[asyncio.Transport], asyncio.Protocol]


class Application(Protocol):
    """What answers requests."""

    async def answer(self, request: Request) -> Response | Handover:
        """Never raises."""

    def answer_at_once(self, request: Request) -> Response | Handover | None:
        """As `answer`, for what needs nobody to wait; None for all else."""


@dataclass(slots=True)
class _Head:
    """A request whose head is being read."""

    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


class HttpProtocol(asyncio.Protocol):
    """One connection.

    Args:
        application: answers.
        wheel: for deadlines.
        now: the clock of the wheel.
        max_body_bytes: of one request.
        connections: holds this connection while it is open.
    """

    def __init__(
        self,
        application: Application,
        *,
        wheel: Wheel,
        now: Callable[[], float],
        max_body_bytes: int,
        connections: set[asyncio.Transport],
    ) -> None:
        self._application = application
        self._wheel = wheel
        self._now = now
        self._max_body_bytes = max_body_bytes
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._head = _Head()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._ready: list[tuple[Request, bool]] = []
        self._answering: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._transport: asyncio.Transport
        self._ended = False

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._connections.add(self._transport)
        self._deadline(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._connections.discard(self._transport)
        self._no_deadline()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._head.bytes += len(data) if not self._body else 0
        if self._head.bytes > MAX_HEAD_BYTES and not self._in_body:
            self._refuse(431, "The head of the request is too large")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # on_message_complete has seen it, and whoever takes over gets no early bytes
        except httptools.HttpParserError:
            if not self._ended:
                self._refuse(400, "This is not HTTP/1.1")
        except _TooLarge:
            self._refuse(413, "The body of the request is too large")

    # The parser

    _in_body = False

    def on_url(self, url: bytes) -> None:
        self._head.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace").strip()
        headers = self._head.headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._deadline(BODY_SECONDS)
        length = self._head.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise _TooLarge
        if self._head.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            raise _TooLarge
        self._body.append(body)

    def on_message_complete(self) -> None:
        head, body = self._head, b"".join(self._body)
        self._head, self._body, self._body_bytes, self._in_body = _Head(), [], 0, False
        path, _, query = head.target.decode("latin-1").partition("?")
        lists: dict[str, list[str]] = {}
        for name, value in parse_qsl(query, keep_blank_values=True, errors="replace"):
            lists.setdefault(name, []).append(value)
        method = self._parser.get_method().decode()
        request = Request(method, path, lists, head.headers, self._parser.get_http_version(), body)
        self._ready.append((request, self._parser.should_keep_alive()))
        self._no_deadline()
        if self._answering is None:
            self._answer_next()

    # Answers

    def _answer_next(self) -> None:
        while self._ready and not self._ended:
            request, keep_alive = self._ready.pop(0)
            answer = self._application.answer_at_once(request)
            if answer is None:
                self._transport.pause_reading()
                self._answering = asyncio.get_running_loop().create_task(
                    self._answer_later(request, keep_alive)
                )
                return
            self._write(request, answer, keep_alive)
        if not self._ended:
            self._deadline(KEEP_ALIVE_SECONDS)

    async def _answer_later(self, request: Request, keep_alive: bool) -> None:
        answer = await self._application.answer(request)
        self._answering = None
        if self._ended:
            return
        self._write(request, answer, keep_alive)
        if not self._ended:
            self._transport.resume_reading()
            self._answer_next()

    def _write(self, request: Request, answer: Response | Handover, keep_alive: bool) -> None:
        if isinstance(answer, Handover):
            self._ended = True
            self._no_deadline()
            self._connections.discard(self._transport)
            protocol = answer.take(self._transport)
            self._transport.set_protocol(protocol)
            self._transport.resume_reading()
            return
        body = b"" if request.method == "HEAD" else answer.body
        head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        head += [f"{name}: {value}" for name, value in answer.headers]
        if answer.body:
            head.append(f"content-type: {answer.content_type}")
        if answer.status != 204:
            head.append(f"content-length: {len(answer.body)}")
        if not keep_alive:
            head.append("connection: close")
        self._transport.write("\r\n".join([*head, "", ""]).encode() + body)
        if not keep_alive:
            self._end()

    def _refuse(self, status: int, text: str) -> None:
        request = Request("GET", "", {}, {}, "1.1")
        self._write(request, Response.json(status, {"error": text}), keep_alive=False)
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._no_deadline()
        self._transport.close()

    def _deadline(self, seconds: float) -> None:
        self._no_deadline()
        self._timer = self._wheel.schedule(self._now() + seconds, self._too_slow)

    def _no_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._head.bytes or self._in_body:
            self._refuse(408, "The request took too long to arrive")
        else:
            self._end()


class _TooLarge(Exception):
    """A body over the limit."""
