"""Topics as a stream of server-sent events, for EventSource and `curl -N`.

    GET /realtime/v1/sse?topic=room&topic=news&apikey=<jwt>

Above is `application`; below is the hub, of which each stream is a subscriber that speaks `EVENTS`,
or `EVENTS_OF_MANY` topics. Each message is one event: `data` is the broadcast object of PROTOCOL
7.2 with its `topic` added. There is no `event` field, so `onmessage` sees everything. A binary
payload comes as base64, and `"encoding":"base64"` beside it says so.

`id` is a cursor, and may come without data, which moves a client that gets no messages. After a
disconnect EventSource sends the last one as `Last-Event-ID`, and the stream goes on there.

As with WebSockets there is no task, queue or timer of its own for a client but a slot in the wheel,
and who reads too slowly is thrown out.
"""

from __future__ import annotations

import asyncio
import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import partial
from operator import attrgetter
from typing import Final

import msgspec

from realtime_db.auth.access import CheckFailed
from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.cursors import Cursor, InvalidCursor, Snapshot
from realtime_db.hub import Key, Subscription, Write
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import live_meta, replay_meta
from realtime_db.protocol.persist import IS_RESTARTING
from realtime_db.protocol.rechecks import NO_LONGER
from realtime_db.protocol.replaying import Held
from realtime_db.protocol.services import Resumption, Services
from realtime_db.stored import iso
from realtime_db.transports import slow
from realtime_db.transports.http import Handover, Request, Response
from realtime_db.transports.rest import MAX_TOPIC_BYTES, NOT_A_BOOLEAN, asks_for_private, bearer
from realtime_db.wheel import Timer

RETRY_MILLISECONDS: Final = 2_000
HEARTBEAT_SECONDS: Final = 15.0
RETRY_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0

_json: Final = msgspec.json.encode


class _Wire:
    """What streams of events speak.

    Args:
        cursor: which one of a message goes out as its id.
    """

    def __init__(self, cursor: Callable[[Broadcast], str]) -> None:
        self._cursor = cursor

    def encode(self, message: Broadcast) -> bytes | None:
        """One event, of which no sender can make a line; None for presence, which streams lack."""
        if message.presence:
            return None
        if message.missing_before:
            return _gap(message.missing_before)
        meta = live_meta(message.id) if message.id else b""
        return _event(message, meta, self._cursor(message))


EVENTS: Final = _Wire(attrgetter("cursor"))
EVENTS_OF_MANY: Final = _Wire(attrgetter("cursor_of_all"))


def _event(message: Broadcast, meta: bytes, cursor: str) -> bytes:
    data = _data(message, meta)
    if b"\n" in data or b"\r" in data:  # white space between tokens; JSON has no other
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    if not cursor:
        return b"data: %b\n\n" % data
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), data)


def _place(cursor: str) -> bytes:
    """An event that only moves a client; a comment, if it is not known where."""
    return b"id: %b\n\n" % cursor.encode() if cursor else b":\n\n"


def _gap(before: str, cursor: str = "") -> bytes:
    """Says that messages may be missing, and where a client goes on that is told so.

    In one event, for a cut between an id and the gap before it would hide the gap.
    """
    place = b"id: %b\n" % cursor.encode() if cursor else b""
    return b'%bevent: gap\ndata: {"before":%b}\n\n' % (place, _json(before))


def _data(message: Broadcast, meta: bytes) -> bytes:
    topic = b'"topic":%b}' % _json(message.topic.removeprefix("realtime:"))
    if message.whole is not None:
        # As its sender made it, but for the topic: the last of two equal keys counts.
        inside = message.whole.rstrip()[:-1].rstrip()
        return inside + (b"" if inside == b"{" else b",") + topic
    payload, encoding = message.payload, b""
    if message.binary:
        payload, encoding = b'"%b"' % b64encode(payload), b'"encoding":"base64",'
    if meta:
        meta = b'"meta":%b,' % meta
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
        token = _token(request)
        if not token:
            return _refused(401, "API key is missing")
        try:
            claims = self._services.keys.verify_known(token, self._services.now())
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
        generation = services.rechecks.generation
        if asks_for_private(request):
            for topic in topics:
                try:
                    access = await services.policies.read_access(topic, claims, request.x_headers)
                except CheckFailed as error:
                    services.log.warning("read of %s not checked: %s", topic, error)
                    return _refused(error.rest_status, error.join, logged=True)
                if not access.broadcast:
                    if access.reason:
                        services.log.info("read of %s denied: %s", topic, access.reason)
                    return _refused(
                        403,
                        "Unauthorized: You do not have permissions to read from this Channel "
                        f"topic: {topic}",
                    )
        return self._open(request, topics, claims, generation)

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
            limit = "max_channels_per_connection"
            services.limits.over(limit, "a stream of %d topics was refused", len(topics))
            return _refused(429, "ChannelRateLimitReached: Too many channels", logged=True)
        if services.restarting:
            return _refused(503, IS_RESTARTING)
        return topics

    def _open(
        self, request: Request, topics: tuple[str, ...], claims: Claims, generation: int = 0
    ) -> Response | Handover:
        services = self._services
        if request.method == "HEAD":
            return Response(200)
        if self._is_full():
            return _refused(429, "Too many connected users", logged=True)
        if not services.joins.allow(services.now()):
            services.limits.over("max_joins_per_second", "a stream of events was refused")
            return _refused(429, "Too many joins per second", logged=True)
        private = bool(asks_for_private(request))

        def take(transport: asyncio.Transport) -> asyncio.Protocol:
            keys = [(topic, private) for topic in topics]
            return EventStream(
                services,
                _token(request),
                claims,
                keys,
                last_event_id=_last_event_id(request),
                headers=request.x_headers,
                generation=generation,
                transport=transport,
                streams=self.streams,
            )

        return Handover(take)


class EventStream(asyncio.Protocol):
    """One client, after its request.

    Args:
        services: of the server.
        token: the stream ends with it.
        claims: of the token.
        keys: the topics.
        last_event_id: that of the request; empty if it has none.
        headers: of the request, for policies.
        generation: that of `Rechecks` when the policies were asked.
        transport: to write to.
        streams: holds this stream while it is open.
    """

    def __init__(
        self,
        services: Services,
        token: str,
        claims: Claims,
        keys: list[Key],
        *,
        last_event_id: str,
        headers: Mapping[str, str],
        generation: int,
        transport: asyncio.Transport,
        streams: set[EventStream],
    ) -> None:
        self._services = services
        self._token = token
        self.claims = claims
        self._headers = headers
        self._keys = keys
        self._private = [topic for topic, private in keys if private]
        self._check_at = math.inf
        self._transport = transport
        self._streams = streams
        self._timer: Timer | None = None
        self._write: Write = transport.write
        transport.set_write_buffer_limits(high=services.settings.max_write_buffer_bytes)
        transport.write(_head(services.now()))
        self._subscriptions: list[Subscription] = []
        self._wire = EVENTS if len(keys) == 1 else EVENTS_OF_MANY
        self._held: Held | None = None
        self._resuming: asyncio.Task[None] | None = None
        streams.add(self)
        self._begin(last_event_id)
        if self._private:
            self._register(generation)
        self._watch()

    @property
    def topics(self) -> int:
        """How many topics it follows."""
        return len(self._keys)

    def data_received(self, data: bytes) -> None:
        """Nothing that a client says now means anything."""

    def eof_received(self) -> None:
        """The client has ended its half: it gets what waits for it, and nothing after that.

        Of what came meanwhile some might be left out, for nobody looks whether it is too slow.
        """
        self._leave()
        self._finish()

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

    # From the request to what comes live

    def _begin(self, last_event_id: str) -> None:
        try:
            cursor = Cursor.parse(last_event_id) if last_event_id else None
        except InvalidCursor:
            cursor = None
        if cursor is not None:
            self._resuming = asyncio.get_running_loop().create_task(self._resume(cursor))
            return
        services, here = self._services, self._services.progress.here
        if last_event_id:
            # Nobody can tell what is missing, so anything may be.
            before = iso(int(services.now() * 1_000_000))
            services.missed([topic for topic, _ in self._keys], before)
            self._write(_gap(before, here))
        else:
            self._write(_place(here))
        self._subscribe(None)

    def _subscribe(self, seen: Snapshot | None) -> None:
        subscribe = self._services.hub.subscribe
        self._subscriptions = [
            subscribe(key, self._wire, self._write, seen=seen, over=self._flooded)
            for key in self._keys
        ]

    async def _resume(self, cursor: Cursor) -> None:
        services = self._services
        try:
            async with services.stored.resume(
                [topic for topic, _ in self._keys],
                private=bool(self._private),
                cursor=cursor,
                services=services,
                subscriber=self,
            ) as resumption:
                await self._send_again(cursor, resumption)
        except CheckFailed as error:
            services.log.warning("a stream of events was not resumed: %s", error)
            self.close(error.join)
        except Exception:
            services.log.exception("a stream of events was not resumed")
            self.close("Unknown Error on Channel")
        else:
            self._resuming = None
            self._caught_up(resumption.seen)

    async def _send_again(self, cursor: Cursor, resumption: Resumption) -> None:
        """Sends what came after a cursor. A message whose order is not known moves nobody on."""
        place = resumption.cursor if resumption.is_empty else str(cursor)
        self._write(_place(place) if resumption.gap is None else _gap(resumption.gap, place))
        last: Broadcast | None = None
        async for page in resumption.pages():
            for message in page:
                if last is not None:
                    self._write(_event(last, replay_meta(last.id), last.cursor))
                last = message
            await slow.drained(self._transport, self._services)
        if last is not None:
            self._write(_event(last, replay_meta(last.id), resumption.cursor))

    def hold(self) -> None:
        """Keeps what is published from now on, until what is stored has been read and sent."""
        services = self._services
        self._held = Held(
            services.hub,
            self._keys,
            max_bytes=services.settings.max_write_buffer_bytes,
            too_much=self._held_too_much,
        )

    def skip(self, seen: Snapshot) -> None:
        """Keeps nothing that a snapshot shows, for that is sent from the table."""
        if self._held is not None:
            self._held.skip(seen)

    def _held_too_much(self) -> None:
        text = "a client was thrown out: too much was sent while it was sent what is stored"
        self._services.limits.over("max_write_buffer_bytes", text)
        self.reset()

    def _caught_up(self, seen: Snapshot) -> None:
        held, self._held = self._held, None
        if held is None:
            return  # it has ended
        for message in held.release(seen):
            data = self._wire.encode(message)
            if data:
                self._write(data)
        self._subscribe(seen)

    def _flooded(self) -> None:
        self._services.limits.over("max_deliveries_per_second", "a stream of events ended")
        self.close("Too many messages per second")

    def keys_changed(self) -> bool:
        """Ends the stream if there is no key for its token any more; whether it goes on."""
        try:
            self._services.keys.verify_known(self._token, self._services.now())
        except TokenError as error:
            self.close(error.close)
            return False
        return True

    def close(self, reason: str) -> None:
        """Ends the stream with a comment; EventSource then connects again by itself."""
        self._leave()
        if self._transport.is_closing():
            return
        self._transport.write(b": %b\n\n" % " ".join(reason.splitlines()).encode())
        self._finish()

    def _finish(self) -> None:
        self._transport.close()
        services = self._services
        self._timer = services.wheel.schedule(services.now() + CLOSE_SECONDS, self.reset)

    def reset(self) -> None:
        """Ends the connection at once."""
        slow.reset(self._transport)

    def _leave(self) -> None:
        if self._resuming is not None and self in self._streams:
            # Once: the query is ended first, and a connection is lost if that is interrupted.
            self._resuming.cancel()
        self._streams.discard(self)
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            self._services.hub.unsubscribe(subscription)
        if self._held is not None:
            self._held.drop()
            self._held = None
        for topic in self._private:
            self._services.rechecks.remove(topic, self)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        """Ends with the token; until then, a word now and then keeps proxies from giving up.

        It says where the client is by now, unless it is still being sent what is stored.
        """
        now = self._services.now()
        try:
            self.claims.check_expiry(now)
        except TokenError as error:
            self.close(error.close)
            return
        if now >= self._check_at:
            self._check_at = math.inf
            self._services.rechecks.ask(self)
        if self._timer is not None and not self._transport.is_closing():
            self._write(_place("" if self._resuming is not None else self._services.progress.now))
        due = min(now + HEARTBEAT_SECONDS, float(self.claims.exp), self._check_at)
        self._timer = self._services.wheel.schedule(due, self._watch)

    # Rights, again (`rechecks`)

    def _register(self, generation: int) -> None:
        services = self._services
        for topic in self._private:
            services.rechecks.add(topic, self)
        self._check_at = services.rechecks.next_at(services.now())
        if services.rechecks.generation != generation:
            services.rechecks.ask(self)

    def forget_rights(self) -> None:
        """Nobody writes by a stream."""

    async def check_again(self) -> None:
        services = self._services
        for topic in self._private:
            try:
                access = await services.policies.read_access(topic, self.claims, self._headers)
            except CheckFailed as error:
                # It goes on as it is, for a database that is away must not end all streams.
                services.log.warning("rights to %s not checked again: %s", topic, error)
                self._check_at = services.now() + RETRY_SECONDS
                return
            if self not in self._streams:
                return
            if not access.broadcast:
                services.log.info("a stream of %s ended: %s", topic, NO_LONGER)
                self.close(f"{NO_LONGER}: {topic}")
                return
        self._check_at = services.rechecks.next_at(services.now())


def _head(now: float) -> bytes:
    """No length and no chunks: the stream ends with the connection (RFC 9112, 6.3, 8)."""
    return (
        f"HTTP/1.1 200 OK\r\ndate: {formatdate(now, usegmt=True)}\r\n"
        "access-control-allow-origin: *\r\ncontent-type: text/event-stream\r\n"
        "cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\nconnection: close\r\n"
        f"\r\nretry: {RETRY_MILLISECONDS}\n\n"
    ).encode()


def _refused(status: int, text: str, *, logged: bool = False) -> Response:
    return Response.json(status, {"error": text}, logged=logged)


def _last_event_id(request: Request) -> str:
    """The header, which EventSource sends by itself; or in the URL, for the first request."""
    return request.headers.get("last-event-id") or request.query.get("lastEventId", "")


def _token(request: Request) -> str:
    """EventSource cannot send headers, so the key may be in the URL; a header wins."""
    if "authorization" in request.headers or "apikey" in request.headers:
        return bearer(request)
    return request.headers.get("x-api-key") or request.query.get("apikey", "")
