"""Topics as a stream of server-sent events, for EventSource and `curl -N`.

    GET /realtime/v1/sse?topic=room&topic=news&apikey=<jwt>

Above is `application`; below is the hub, of which each stream is a subscriber that speaks `EVENTS`.
Each message is one event: `data` is the broadcast object of PROTOCOL 7.2 with its `topic` added,
`id` the message's cursor. There is no `event` field, so `onmessage` sees everything. A binary
payload comes as base64, and `"encoding":"base64"` beside it says so.

As with WebSockets there is no task, queue or timer of its own for a client but a slot in the wheel,
and who reads too slowly is thrown out.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import Final

import msgspec

from realtime_db.auth.access import CheckFailed
from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.hub import Key, Subscription, Write
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import live_meta
from realtime_db.protocol.services import Services
from realtime_db.transports import slow
from realtime_db.transports.http import Handover, Request, Response
from realtime_db.transports.rest import MAX_TOPIC_BYTES, NOT_A_BOOLEAN, asks_for_private, bearer
from realtime_db.wheel import Timer

RETRY_MILLISECONDS: Final = 2_000
HEARTBEAT_SECONDS: Final = 15.0
CLOSE_SECONDS: Final = 5.0

_json: Final = msgspec.json.encode


class _Wire:
    """What all streams of events speak."""

    def encode(self, message: Broadcast) -> bytes | None:
        """One event, of which no sender can make a line; None for presence, which streams lack."""
        if message.presence:
            return None
        data = _data(message)
        if b"\n" in data or b"\r" in data:  # white space between tokens; JSON has no other
            data = data.replace(b"\r", b" ").replace(b"\n", b" ")
        cursor = message.cursor or message.id
        if not cursor or not cursor.isprintable():
            return b"data: %b\n\n" % data
        return b"id: %b\ndata: %b\n\n" % (cursor.encode(), data)


EVENTS: Final = _Wire()


def _data(message: Broadcast) -> bytes:
    topic = b'"topic":%b}' % _json(message.topic.removeprefix("realtime:"))
    if message.whole is not None:
        # As its sender made it, but for the topic: the last of two equal keys counts.
        inside = message.whole.rstrip()[:-1].rstrip()
        return inside + (b"" if inside == b"{" else b",") + topic
    payload, encoding = message.payload, b""
    if message.binary:
        payload, encoding = b'"%b"' % b64encode(payload), b'"encoding":"base64",'
    meta = b'"meta":%b,' % live_meta(message.id) if message.id else b""
    event = _json(message.event)
    return b'{"type":"broadcast","event":%b,"payload":%b,%b%b%b' % (
        event,
        payload,
        encoding,
        meta,
        topic,
    )


class Events:
    """The endpoint: who, which topics, and whether he may read them.

    Args:
        services: of the server.
        is_full: whether there is no room for one more client.

    Attributes:
        streams: those that are open.
    """

    methods: Final = ("GET", "HEAD")

    def __init__(self, services: Services, is_full: Callable[[], bool]) -> None:
        self._services = services
        self._is_full = is_full
        self.streams: set[EventStream] = set()

    def at_once(self, request: Request) -> Response | Handover | None:
        """Answers what needs neither new keys nor policies."""
        try:
            claims = self._services.keys.verify_known(_token(request), self._services.now())
        except TokenError as error:
            return _refused(401, error.handshake) if error.unknown_kid is None else None
        topics = self._topics(request)
        if isinstance(topics, Response):
            return topics
        return None if asks_for_private(request) else self._open(request, topics, claims)

    async def later(self, request: Request) -> Response | Handover:
        """Answers everything."""
        services = self._services
        try:
            claims = await services.keys.verify(_token(request), services.now())
        except TokenError as error:
            return _refused(401, error.handshake)
        topics = self._topics(request)
        if isinstance(topics, Response):
            return topics
        if asks_for_private(request):
            headers = {k: v for k, v in request.headers.items() if k.startswith("x-")}
            for topic in topics:
                try:
                    access = await services.policies.read_access(topic, claims, headers)
                except CheckFailed as error:
                    services.log.warning("read of %s not checked: %s", topic, error)
                    return _refused(error.rest_status, error.join)
                if not access.broadcast:
                    services.log.info("read of %s denied: %s", topic, access.reason)
                    return _refused(
                        403,
                        "Unauthorized: You do not have permissions to read from this Channel "
                        f"topic: {topic}",
                    )
        return self._open(request, topics, claims)

    def _topics(self, request: Request) -> tuple[str, ...] | Response:
        """What is asked for, each once; or why not, before anything is asked."""
        services, settings = self._services, self._services.settings
        private = asks_for_private(request)
        if private is None:
            return _refused(422, NOT_A_BOOLEAN)
        topics = tuple(dict.fromkeys(request.query_lists.get("topic", ())))
        if not topics or "" in topics:
            return _refused(422, "TopicNameRequired: You must provide a topic name")
        if any(len(topic.encode()) > MAX_TOPIC_BYTES for topic in topics):
            return _refused(422, f"TopicNameTooLong: A topic has at most {MAX_TOPIC_BYTES} bytes")
        if settings.private_only and not private:
            return _refused(403, "PrivateOnly: This project only allows private channels")
        if len(topics) > settings.max_channels_per_connection:
            return _refused(429, "ChannelRateLimitReached: Too many channels")
        if services.restarting:
            return _refused(503, "RealtimeRestarting: Realtime is restarting, please standby")
        return topics

    def _open(
        self, request: Request, topics: tuple[str, ...], claims: Claims
    ) -> Response | Handover:
        services = self._services
        if request.method == "HEAD":
            return Response(200)
        if self._is_full():
            return _refused(429, "Too many connected users")
        if not services.joins.allow(services.now()):
            return _refused(429, "Too many joins per second")
        private = bool(asks_for_private(request))

        def take(transport: asyncio.Transport) -> asyncio.Protocol:
            keys = [(topic, private) for topic in topics]
            return EventStream(services, claims, keys, transport=transport, streams=self.streams)

        return Handover(take)


class EventStream(asyncio.Protocol):
    """One client, after its request.

    Args:
        services: of the server.
        claims: of its token; the stream ends with it.
        keys: the topics.
        transport: to write to.
        streams: holds this stream while it is open.
    """

    def __init__(
        self,
        services: Services,
        claims: Claims,
        keys: list[Key],
        *,
        transport: asyncio.Transport,
        streams: set[EventStream],
    ) -> None:
        self._services = services
        self._claims = claims
        self._transport = transport
        self._streams = streams
        self._timer: Timer | None = None
        self._write: Write = transport.write
        transport.set_write_buffer_limits(high=services.settings.max_write_buffer_bytes)
        transport.write(_head(services.now()))
        subscribe = services.hub.subscribe
        self._subscriptions: list[Subscription] = [
            subscribe(key, EVENTS, self._write) for key in keys
        ]
        streams.add(self)
        self._watch()

    @property
    def topics(self) -> int:
        """How many topics it follows."""
        return len(self._subscriptions)

    def data_received(self, data: bytes) -> None:
        """Nothing that a client says now means anything."""

    def eof_received(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._write_with(partial(slow.write_unless_behind, self._transport, self._services))

    def resume_writing(self) -> None:
        self._write_with(self._transport.write)

    def _write_with(self, write: Write) -> None:
        self._write = write
        for subscription in self._subscriptions:
            subscription.write = write

    def close(self, reason: str) -> None:
        """Ends the stream with a comment; EventSource then connects again by itself."""
        self._leave()
        if self._transport.is_closing():
            return
        self._transport.write(b": %b\n\n" % reason.encode())
        self._transport.close()
        services = self._services
        self._timer = services.wheel.schedule(services.now() + CLOSE_SECONDS, self.reset)

    def reset(self) -> None:
        """Ends the connection at once."""
        slow.reset(self._transport)

    def _leave(self) -> None:
        self._streams.discard(self)
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            self._services.hub.unsubscribe(subscription)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        """Ends with the token; until then, a comment now and then keeps proxies from giving up."""
        now = self._services.now()
        try:
            self._claims.check_expiry(now)
        except TokenError as error:
            self.close(error.close)
            return
        if self._timer is not None and not self._transport.is_closing():
            self._write(b":\n\n")
        due = min(now + HEARTBEAT_SECONDS, float(self._claims.exp))
        self._timer = self._services.wheel.schedule(due, self._watch)


def _head(now: float) -> bytes:
    """No length and no chunks: the stream ends with the connection (RFC 9112, 6.3, 8)."""
    return (
        f"HTTP/1.1 200 OK\r\ndate: {formatdate(now, usegmt=True)}\r\n"
        "access-control-allow-origin: *\r\ncontent-type: text/event-stream\r\n"
        "cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\nconnection: close\r\n"
        f"\r\nretry: {RETRY_MILLISECONDS}\n\n"
    ).encode()


def _refused(status: int, text: str) -> Response:
    return Response.json(status, {"error": text})


def _token(request: Request) -> str:
    """EventSource cannot send headers, so the key may be in the URL; a header wins."""
    if "authorization" in request.headers or "apikey" in request.headers:
        return bearer(request)
    return request.headers.get("x-api-key") or request.query.get("apikey", "")
