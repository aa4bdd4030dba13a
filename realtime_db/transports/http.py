"""HTTP/1.1 on the server's one port: requests in, answers out, and the way to something else.

Above is the socket; below is an `Application`, which answers a `Request` with a `Response`, or with
a `Handover` to a WebSocket or a stream of events. Parsing is httptools'; limits are ours. Whatever
bytes come, the client gets an answer of HTTP or a closed connection, and nobody else notices.

Requests of a connection are answered one after another, in their order. Reading stops while an
answer is not ready, and while the client does not read what it was answered; so a client that ends
its half of the connection is heard of after its answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, NoReturn, Protocol, cast
from urllib.parse import parse_qsl

import httptools

from realtime_db.wheel import Timer, Wheel

MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 200
MAX_PIPELINED: Final = 1_000
HEAD_SECONDS: Final = 15.0
BODY_SECONDS: Final = 60.0
WRITE_SECONDS: Final = 60.0
KEEP_ALIVE_SECONDS: Final = 75.0
LINGER_SECONDS: Final = 2.0

CORS: Final = (("access-control-allow-origin", "*"),)

SECRET_HEADERS: Final = frozenset(
    ("authorization", "proxy-authorization", "apikey", "x-api-key", "cookie")
)


@dataclass(slots=True)
class Request:
    """A request.

    Attributes:
        method: in capitals.
        path: as it came, still percent-encoded, without the query; one character for each byte.
        query_lists: decoded; all values of each name, in order.
        headers: by lower-case name; those that came more than once joined by commas.
        http_version: `1.1` or `1.0`.
        body: as it came.
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

    @property
    def safe_headers(self) -> dict[str, str]:
        """The headers that policies may see: those that carry no token."""
        return {name: value for name, value in self.headers.items() if name not in SECRET_HEADERS}

    @property
    def x_headers(self) -> dict[str, str]:
        """Of those, the ones whose name begins with `x-`."""
        return {name: value for name, value in self.safe_headers.items() if name.startswith("x-")}


@dataclass(slots=True)
class Response:
    """An answer that is known as a whole.

    Attributes:
        logged: whether the log says already why it is no better one.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = CORS
    logged: bool = False

    @property
    def reason(self) -> str:
        """Why a request was refused, as its client is told."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return HTTPStatus(self.status).phrase
        return str(told.get("error") or told.get("message") or self.body.decode())

    @classmethod
    def json(cls, status: int, value: object, **more: Any) -> Response:
        """An answer in JSON."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return cls(status, text.encode("utf-8", "replace"), **more)


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

    def refused(self, status: int, text: str) -> None:
        """Something came that is no request, and was answered so."""


class _Phase(Enum):
    """What the connection waits for."""

    IDLE = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "the application"
    READER = "the client, which does not read"
    END = "the client, to close"


_SECONDS: Final = {
    _Phase.IDLE: KEEP_ALIVE_SECONDS,
    _Phase.HEAD: HEAD_SECONDS,
    _Phase.BODY: BODY_SECONDS,
    _Phase.ANSWER: float("inf"),
    _Phase.READER: WRITE_SECONDS,
    _Phase.END: LINGER_SECONDS,
}


@dataclass(slots=True)
class _Incoming:
    """The request that is being read."""

    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    head_bytes: int = 0
    header_count: int = 0
    raw_bytes: int = 0
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    in_body: bool = False


class _Refused(Exception):
    """Stops the parser; why is in `_refusal`."""


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
        connections: set[HttpProtocol],
    ) -> None:
        self._application = application
        self._wheel = wheel
        self._now = now
        self._max_body_bytes = max_body_bytes
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = _Incoming()
        self._refusal = (400, "This is not HTTP/1.1")
        self._again = b""
        self._ready: list[tuple[Request, bool]] = []
        self._answering: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._reading = True
        self._writable = True
        self._broken = False
        self._ended = False
        self._phase = _Phase.END
        self._awaited: _Incoming | None = None
        self._due = float("inf")
        self._timer: Timer | None = None
        self._timer_due = float("inf")

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._connections.add(self)
        self._enter(_Phase.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._connections.discard(self)
        self._no_deadline()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        while data and not self._ended and not self._broken:
            data = self._feed(data)
        if not self._ended:
            self._settle()

    def pause_writing(self) -> None:
        """The client does not read its answers: no more of them until it does."""
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if not self._ended:
            self._answer_next()
            self._settle()

    def finish(self) -> asyncio.Task[None] | None:
        """Hears nothing more, and closes; but first comes the answer that is on its way.

        Returns:
            What that waits for, if there is one.
        """
        self._ready.clear()
        self._broken = True
        if self._answering is None:
            self._end()
        return self._answering

    # The parser

    def _feed(self, data: bytes) -> bytes:
        """Parses; returns what came behind a request to upgrade that was not followed."""
        incoming = self._incoming
        begun = incoming.raw_bytes > 0
        incoming.raw_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # on_message_complete has seen the request. Whoever took over gets no early bytes;
            # otherwise this is HTTP as before (RFC 9110, 7.8: a server may ignore Upgrade).
            self._parser = httptools.HttpRequestParser(self)
            again, self._again = self._again, b""
            return again + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            if not self._ended:
                self._refuse(*self._refusal)
            return b""
        # The parser keeps an unfinished header to itself, and chunks have heads too.
        if begun and self._incoming is incoming and not self._ended:
            limit = self._max_body_bytes * 2 if incoming.in_body else 0
            if incoming.raw_bytes > limit + MAX_HEAD_BYTES + len(data):
                self._refuse(*(_BODY_TOO_LARGE if incoming.in_body else _HEAD_TOO_LARGE))
        return b""

    def _stop(self, refusal: tuple[int, str]) -> NoReturn:
        self._refusal = refusal
        raise _Refused

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        incoming = self._incoming
        incoming.header_count += 1
        if incoming.header_count > MAX_HEADERS:
            self._stop(_HEAD_TOO_LARGE)
        if incoming.in_body:
            return  # a trailer, which must not pass for a header
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace").strip()
        headers = incoming.headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def _count_head(self, size: int) -> None:
        self._incoming.head_bytes += size
        if self._incoming.head_bytes > MAX_HEAD_BYTES:
            self._stop(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        incoming = self._incoming
        incoming.in_body = True
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            self._stop((505, "Only HTTP/1.1 is spoken here"))
        if self._parser.get_method() == b"CONNECT":
            # Whatever its headers say, no HTTP follows (RFC 9110, 9.3.6).
            self._stop((400, "This is no proxy"))
        length = incoming.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            self._stop((400, "Header Content-Length is no number"))
        if len(length) > 18 or int(length) > self._max_body_bytes:
            self._stop(_BODY_TOO_LARGE)
        expects = incoming.headers.get("expect", "").lower() == "100-continue"
        if expects and not self._ended and self._answering is None and not self._ready:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._incoming.body_bytes += len(body)
        if self._incoming.body_bytes > self._max_body_bytes:
            self._stop(_BODY_TOO_LARGE)
        self._incoming.body.append(body)

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, _Incoming()
        if self._ended or len(self._ready) >= MAX_PIPELINED:
            self._end()
            return
        if self._parser.should_upgrade() and _has_body(incoming.headers):
            self._again = _without_upgrade(self._parser.get_method(), incoming)
            return
        target, _, query = incoming.target.partition(b"?")
        lists: dict[str, list[str]] = {}
        text = query.decode("utf-8", "replace")
        for name, value in parse_qsl(text, keep_blank_values=True, errors="replace"):
            lists.setdefault(name, []).append(value)
        request = Request(
            self._parser.get_method().decode("latin-1"),
            _path(target).decode("latin-1"),
            lists,
            incoming.headers,
            self._parser.get_http_version(),
            b"".join(incoming.body),
        )
        self._ready.append((request, self._parser.should_keep_alive()))
        self._answer_next()

    # Answers

    def _answer_next(self) -> None:
        while self._ready and self._answering is None and self._writable and not self._ended:
            request, keep_alive = self._ready.pop(0)
            answer = self._application.answer_at_once(request)
            if answer is None:
                self._answering = asyncio.get_running_loop().create_task(
                    self._answer_later(request, keep_alive)
                )
                return
            self._write(request, answer, keep_alive)

    async def _answer_later(self, request: Request, keep_alive: bool) -> None:
        answer = await self._application.answer(request)
        self._answering = None
        if self._ended or self._transport.is_closing():
            return
        self._write(request, answer, keep_alive)
        self._answer_next()
        if not self._ended:
            self._settle()

    def _settle(self) -> None:
        """Reads on or not, and sets the deadline for what the client has to do next."""
        busy = self._answering is not None
        if self._broken and not busy and not self._ready:
            self._end(linger=True)
            return
        read = not busy and self._writable
        if read != self._reading and not self._transport.is_closing():
            self._reading = read
            (self._transport.resume_reading if read else self._transport.pause_reading)()
        if busy:
            self._enter(_Phase.ANSWER)
        elif not self._writable:
            self._enter(_Phase.READER)
        elif self._incoming.in_body:
            self._enter(_Phase.BODY)
        elif self._incoming.raw_bytes or self._incoming.target:
            self._enter(_Phase.HEAD)
        else:
            self._enter(_Phase.IDLE, anew=True)

    def _write(self, request: Request, answer: Response | Handover, keep_alive: bool) -> None:
        if isinstance(answer, Handover):
            self._ended = True
            self._no_deadline()
            self._connections.discard(self)
            if not self._reading and not self._transport.is_closing():
                self._transport.resume_reading()
            self._transport.set_protocol(answer.take(self._transport))
            return
        keep_alive = keep_alive and request.http_version == "1.1"
        self._write_response(answer, keep_alive=keep_alive, with_body=request.method != "HEAD")
        if not keep_alive:
            self._end()

    def _write_response(self, answer: Response, *, keep_alive: bool, with_body: bool) -> None:
        head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        head.append(f"date: {formatdate(self._now(), usegmt=True)}")
        head += [f"{name}: {value}" for name, value in answer.headers]
        if answer.body:
            head.append(f"content-type: {answer.content_type}")
        if answer.status != 204:
            head.append(f"content-length: {len(answer.body)}")
        if not keep_alive:
            head.append("connection: close")
        body = answer.body if with_body else b""
        self._transport.write("\r\n".join([*head, "", ""]).encode() + body)

    def _refuse(self, status: int, text: str) -> None:
        """Answers what is no request, and hears nothing more."""
        self._application.refused(status, text)
        if self._answering is not None or self._ready:
            # It would pass for the answer to what came before. That comes first, then the end.
            self._broken = True
            return
        answer = Response.json(status, {"error": text})
        self._write_response(answer, keep_alive=False, with_body=True)
        self._end(linger=True)

    def _end(self, *, linger: bool = False) -> None:
        """Closes. With unread bytes, the client would get a reset instead of its answer: linger."""
        if self._ended:
            return
        self._ended = True
        self._ready.clear()
        if self._answering is not None:
            self._answering.cancel()
        if linger and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            if not self._reading:
                self._transport.resume_reading()
        else:
            self._transport.close()
        self._enter(_Phase.END)

    # Deadlines. A timer that is due too early looks again; most requests never make one.

    def _enter(self, phase: _Phase, *, anew: bool = False) -> None:
        if phase is self._phase and self._awaited is self._incoming and not anew:
            return
        self._awaited = self._incoming
        self._phase = phase
        self._due = self._now() + _SECONDS[phase]
        if self._due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._wait()

    def _wait(self) -> None:
        self._timer_due = self._due
        self._timer = self._wheel.schedule(self._due, self._look)

    def _no_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        if self._due > self._now():
            if self._phase is not _Phase.ANSWER:
                self._wait()
        elif self._phase is _Phase.BODY or (
            self._phase is _Phase.HEAD and self._incoming.raw_bytes
        ):
            self._refuse(408, "The request took too long to arrive")
        elif self._phase is _Phase.END or self._phase is _Phase.READER:
            self._ended = True
            self._transport.abort()
        else:
            self._end()


_HEAD_TOO_LARGE: Final = (431, "The head of the request is too large")
_BODY_TOO_LARGE: Final = (413, "The body of the request is too large")


def _path(target: bytes) -> bytes:
    """Takes the origin off `http://host/path`, which servers must accept (RFC 9112, 3.2.2)."""
    if target.startswith(b"/") or b"://" not in target:
        return target
    return b"/" + target.partition(b"://")[2].partition(b"/")[2]


def _has_body(headers: Mapping[str, str]) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _without_upgrade(method: bytes, incoming: _Incoming) -> bytes:
    """The head once more, without its wish to upgrade.

    The parser reads no body behind such a head. But clients that would like HTTP/2, Java's for one,
    wish so in every POST and send its body as well.
    """
    lines = [b"%b %b HTTP/1.1" % (method, incoming.target)]
    for name, value in incoming.headers.items():
        if name not in ("upgrade", "connection"):
            lines.append(f"{name}: {value}".encode())
    return b"\r\n".join((*lines, b"", b""))
