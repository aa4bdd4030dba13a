"""Broadcasts by HTTP, many or one (PROTOCOL 8): a request in, messages to the hub.

Above is `application`, which knows the URLs; below are the hub and, for private topics, the
policies. A request for public topics alone is answered at once. Payloads are checked to be JSON and
spliced, never decoded, so every digit of a number survives.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from realtime_db.auth.access import CheckFailed
from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.hub import Key
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.limits import Rate
from realtime_db.protocol.persist import PUBLIC, NotStored, Outgoing, Persist, read_persist
from realtime_db.protocol.services import Services
from realtime_db.transports.http import Request, Response

MAX_TOPIC_BYTES: Final = 246
"""`realtime:` comes before it, and a frame has one byte for the length (PROTOCOL 3)."""
MAX_BINARY_EVENT_BYTES: Final = 255

ACCEPTED: Final = Response(202)
UNAUTHORIZED: Final = Response.json(401, {"message": "Unauthorized"})
FORBIDDEN: Final = Response.json(403, {"message": "Unauthorized"}, logged=True)
UNSUPPORTED: Final = Response.json(
    415, {"error": "Unsupported Media Type. Use application/json or application/octet-stream"}
)
NOT_JSON: Final = Response.json(400, {"message": "The body is not JSON"})
POLICY_ERROR: Final = Response.json(422, {"message": "RLS policy error"}, logged=True)
UNCHECKED: Final = Response.json(500, {"message": "Unable to authorize broadcast"}, logged=True)
RATE_LIMIT: Final = Response.json(
    429, {"message": "You have exceeded your rate limit"}, logged=True
)
PRIVATE_ONLY: Final = Response.json(
    403, {"message": "PrivateOnly: This project only allows private channels"}
)
BATCH_LIMIT: Final = Response.json(
    429, {"message": "Too many messages to broadcast, please reduce the batch size"}, logged=True
)

NOT_A_BOOLEAN: Final = "private must be true or false"

_BLANK: Final = "can't be blank"
_INVALID: Final = "is invalid"
_TOO_LARGE: Final = "Payload size exceeds tenant limit"
_TOPIC_TOO_LONG: Final = f"should be at most {MAX_TOPIC_BYTES} bytes"
_EVENT_TOO_LONG: Final = f"should be at most {MAX_BINARY_EVENT_BYTES} bytes in a binary message"

_BEARER: Final = re.compile(r"bearer +(\S+)", re.IGNORECASE)
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_WHITESPACE: Final = b" \t\r\n"
_JSON_ERRORS: Final = (ValueError, RecursionError)


class Message(NamedTuple):
    """One broadcast, and where it goes."""

    key: Key
    broadcast: Broadcast


class _Batch(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")


class _Item(msgspec.Struct):
    topic: msgspec.Raw = msgspec.Raw(b"")
    event: msgspec.Raw = msgspec.Raw(b"")
    payload: msgspec.Raw = msgspec.Raw(b"")
    private: msgspec.Raw = msgspec.Raw(b"")
    id: msgspec.Raw = msgspec.Raw(b"")


_read_value: Final = msgspec.json.Decoder(msgspec.Raw).decode
_read_batch: Final = msgspec.json.Decoder(_Batch).decode
_read_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_item: Final = msgspec.json.Decoder(_Item).decode
_read_text: Final = msgspec.json.Decoder(str).decode


def bearer(request: Request) -> str:
    """The token of a request: Authorization wins over `apikey`, even if it is none."""
    authorization = request.headers.get("authorization")
    if authorization is None:
        return request.headers.get("apikey", "")
    match = _BEARER.fullmatch(authorization.strip())
    return match[1] if match else ""


def asks_for_private(request: Request) -> bool | None:
    """The query parameter; None for what is neither, lest `private=1` sends to everybody."""
    return {"true": True, "false": False}.get(request.query.get("private", "false").lower())


class Rates:
    """How much a user may send a second: one who has a good token."""

    MAX_USERS: Final = 10_000

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rates: OrderedDict[str, tuple[Rate, Rate]] = OrderedDict()

    def refusal(self, request: Request, messages: list[Message]) -> Response | None:
        """Counts the messages of a request; the answer if they are too many."""
        settings = self._services.settings
        token = bearer(request)
        if token not in self._rates:
            self._rates[token] = (
                Rate(settings.max_messages_per_second),
                Rate(settings.max_bytes_per_second),
            )
        self._rates.move_to_end(token)
        if len(self._rates) > self.MAX_USERS:
            self._rates.popitem(last=False)
        count, size = self._rates[token]
        now = self._services.now()
        payload_bytes = sum(len(message.broadcast.payload) for message in messages)
        if not count.allow(now, len(messages)):
            limit, fits = "max_messages_per_second", count.ever_allows(len(messages))
        elif not size.allow(now, payload_bytes):
            limit, fits = "max_bytes_per_second", size.ever_allows(payload_bytes)
        else:
            return None
        text = "a request with %d messages of %d bytes was refused"
        self._services.limits.over(limit, text, len(messages), payload_bytes)
        return RATE_LIMIT if fits else BATCH_LIMIT


class Broadcasts:
    """What the two endpoints have in common: who, whether, and the way to the hub."""

    methods: Final = ("POST",)

    def __init__(self, services: Services, rates: Rates) -> None:
        self._services = services
        self._rates = rates

    def at_once(self, request: Request) -> Response | None:
        """Answers what needs neither new keys nor policies; else None, and nothing was sent."""
        try:
            self._services.keys.verify_known(bearer(request), self._services.now())
        except TokenError as error:
            return UNAUTHORIZED if error.unknown_kid is None else None
        messages = self._read(request)
        if isinstance(messages, Response):
            return messages
        if any(private for (_, private), _ in messages):
            return None
        return self._rates.refusal(request, messages) or self._publish(messages)

    async def later(self, request: Request) -> Response:
        """Answers everything."""
        try:
            claims = await self._services.keys.verify(bearer(request), self._services.now())
        except TokenError:
            return UNAUTHORIZED
        messages = self._read(request)
        if isinstance(messages, Response):
            return messages
        refusal = self._rates.refusal(request, messages)
        if refusal is not None:
            return refusal
        # All questions come before the first message, so that after an error nothing was sent.
        answers: dict[str, Response | None] = {}
        for topic in dict.fromkeys(topic for (topic, private), _ in messages if private):
            answers[topic] = await self._refusal(topic, claims, request)
        allowed = self.choose(messages, answers)
        return allowed if isinstance(allowed, Response) else await self._send(request, allowed)

    async def _send(self, request: Request, messages: list[Message]) -> Response:
        """Sends what the user may send."""
        return self._publish(messages)

    def _read(self, request: Request) -> list[Message] | Response:
        """As `read`, but for public messages where there may be none."""
        messages = self.read(request)
        if isinstance(messages, Response) or not self._services.settings.private_only:
            return messages
        return messages if all(private for (_, private), _ in messages) else PRIVATE_ONLY

    def read(self, request: Request) -> list[Message] | Response:
        """The messages in a request, in the order in which they go out; or what is wrong."""
        raise NotImplementedError

    def _is_too_large(self, payload: bytes, topic: str) -> bool:
        """Whether a payload is; then it is counted and logged."""
        if len(payload) <= self._services.settings.max_payload_bytes:
            return False
        text = "a broadcast of %d bytes to %s over REST was not sent"
        self._services.limits.over("max_payload_bytes", text, len(payload), topic)
        return True

    def choose(
        self, messages: list[Message], answers: dict[str, Response | None]
    ) -> list[Message] | Response:
        """Which messages go out, given why not to each private topic; or the answer to that."""
        raise NotImplementedError

    def _publish(self, messages: Iterable[Message]) -> Response:
        publish = self._services.hub.publish
        for key, broadcast in messages:
            publish(key, broadcast)
        return ACCEPTED

    async def _refusal(self, topic: str, claims: Claims, request: Request) -> Response | None:
        """Why a user may not write to a private topic; None if he may."""
        log = self._services.log
        try:
            access = await self._services.policies.write_access(topic, claims, request.safe_headers)
        except CheckFailed as error:
            log.warning("write to %s not checked: %s", topic, error)
            return Response.json(error.rest_status, {"message": error.rest}, logged=True)
        except Exception:
            log.exception("write to %s not checked", topic)
            return UNCHECKED
        if access:
            return None
        log.info("write to %s denied: %s", topic, access.why_not)
        return POLICY_ERROR if access.failed else FORBIDDEN


class Batch(Broadcasts):
    """`POST /api/broadcast`."""

    def read(self, request: Request) -> list[Message] | Response:
        body = request.body.strip(_WHITESPACE) or b"{}"
        try:
            if not body.isascii():
                body.decode()
            _read_value(body)
            batch = _read_batch(body) if body[:1] == b"{" else _Batch()
        except _JSON_ERRORS:
            return NOT_JSON
        raw = bytes(batch.messages)
        if raw in (b"", b"null"):
            return _errors(_BLANK)
        if raw[:1] != b"[":
            return _errors(_INVALID)
        items = [bytes(item) for item in _read_list(raw)]
        if not items:
            return _errors(_BLANK)
        if any(item[:1] != b"{" for item in items):
            return _errors(_INVALID)
        read = [self._item(_read_item(item)) for item in items]
        messages = [message for message, _ in read if message is not None]
        if len(messages) < len(read):
            return _errors(*(errors for _, errors in read))
        public = [message for message in messages if not message.key[1]]
        topics: dict[str, list[Message]] = {}
        for message in messages:
            if message.key[1]:
                topics.setdefault(message.key[0], []).append(message)
        return public + [message for group in topics.values() for message in group]

    def _item(self, item: _Item) -> tuple[Message | None, dict[str, list[str]]]:
        """One message, or what is wrong with which of its fields."""
        errors: dict[str, list[str]] = {}
        topic, event = _text(item.topic, "topic", errors), _text(item.event, "event", errors)
        if len(topic.encode()) > MAX_TOPIC_BYTES:
            errors["topic"] = [_TOPIC_TOO_LONG]
        payload = bytes(item.payload)
        if payload in (b"", b"null"):
            errors["payload"] = [_BLANK]
        elif payload[:1] != b"{":
            errors["payload"] = [_INVALID]
        elif self._is_too_large(payload, topic):
            errors["payload"] = [_TOO_LARGE]
        private = _boolean(item.private)
        if private is None:
            errors["private"] = [_INVALID]
        id = "" if bytes(item.id) in (b"", b"null") else _text(item.id, "id", errors, blank=True)
        if errors:
            return None, errors
        broadcast = Broadcast(f"realtime:{topic}", event, payload, id=id, as_text=True)
        return Message((topic, bool(private)), broadcast), errors

    def choose(
        self, messages: list[Message], answers: dict[str, Response | None]
    ) -> list[Message] | Response:
        for refusal in answers.values():
            if refusal is not None and refusal not in (FORBIDDEN, POLICY_ERROR):
                return refusal  # nobody knows whether, so it is not for us to drop them
        return [one for one in messages if not one.key[1] or answers[one.key[0]] is None]


class Single(Broadcasts):
    """`POST /api/broadcast/:topic/events/:event`."""

    def read(self, request: Request) -> list[Message] | Response:
        *_, topic_segment, _, event_segment = request.path.rstrip("/").split("/")
        try:
            topic, event = _decoded(topic_segment), _decoded(event_segment)
        except UnicodeDecodeError:
            return Response.json(400, {"message": "Topic and event must be UTF-8"})
        if len(topic.encode()) > MAX_TOPIC_BYTES:
            return _too_long("topic", _TOPIC_TOO_LONG)
        content_type = request.headers.get("content-type", "application/json")
        media_type = content_type.partition(";")[0].strip().lower()
        binary = media_type == "application/octet-stream"
        if not binary and media_type != "application/json":
            return UNSUPPORTED
        if binary and len(event.encode()) > MAX_BINARY_EVENT_BYTES:
            return _too_long("event", _EVENT_TOO_LONG)
        payload = request.body if binary else _payload(request.body)
        if payload is None:
            return NOT_JSON
        if self._is_too_large(payload, topic):
            return Response.json(422, {"errors": {"payload": [_TOO_LARGE]}}, logged=True)
        private = asks_for_private(request)
        if private is None:
            return Response.json(422, {"message": NOT_A_BOOLEAN})
        wish = _persist_wish(request)
        if isinstance(wish, str) or (wish is not None and not private):
            return Response.json(422, {"error": wish if isinstance(wish, str) else PUBLIC})
        broadcast = Broadcast(f"realtime:{topic}", event, payload, binary=binary)
        return [Message((topic, private), broadcast)]

    async def _send(self, request: Request, messages: list[Message]) -> Response:
        wish = _persist_wish(request)
        if not isinstance(wish, Persist):
            return self._publish(messages)
        (((topic, _), broadcast),) = messages
        stored: asyncio.Future[NotStored | None] = asyncio.get_running_loop().create_future()

        def done(failed: NotStored | None) -> None:
            if not stored.done():  # the client may have gone
                stored.set_result(failed)

        self._services.to_store.put(
            Outgoing(
                str(uuid.uuid4()),
                topic,
                broadcast.event,
                broadcast.payload,
                broadcast.binary,
                wish.ttl_seconds,
                done,
            )
        )
        failed = await stored
        return ACCEPTED if failed is None else Response.json(failed.status, {"error": failed.text})

    def choose(
        self, messages: list[Message], answers: dict[str, Response | None]
    ) -> list[Message] | Response:
        return next((refusal for refusal in answers.values() if refusal), messages)


def _persist_wish(request: Request) -> Persist | str | None:
    """What the query says: `persist=true` or `persist[ttl]=60`; or why not, or nothing."""
    query = request.query
    ttl = query.get("persist[ttl]")
    if ttl is not None:
        return read_persist({"ttl": int(ttl) if _DIGITS.fullmatch(ttl) else ttl})
    wish = query.get("persist", "false")
    return read_persist({"true": True, "false": False}.get(wish.lower(), wish))


def _errors(*errors: object) -> Response:
    logged = any(isinstance(one, dict) and _TOO_LARGE in str(one) for one in errors)
    return Response.json(422, {"errors": {"messages": list(errors)}}, logged=logged)


def _too_long(name: str, text: str) -> Response:
    return Response.json(422, {"message": f"{name} {text}", "errors": {name: [text]}})


def _decoded(segment: str) -> str:
    return unquote_to_bytes(segment.encode("latin-1")).decode()


def _payload(body: bytes) -> bytes | None:
    """The JSON of a single message; None if it is none. What is no object is wrapped."""
    body = body.strip(_WHITESPACE) or b"{}"
    try:
        if not body.isascii():
            body.decode()
        _read_value(body)
    except _JSON_ERRORS:
        return None
    return body if body[:1] == b"{" else b'{"_json":%b}' % body


def _text(raw: msgspec.Raw, name: str, errors: dict[str, list[str]], *, blank: bool = False) -> str:
    """A string that says something, unless it may be blank; or an entry in `errors`."""
    value = bytes(raw)
    text = ""
    if value in (b"", b"null"):
        errors[name] = [_BLANK]
    elif value[:1] != b'"':
        errors[name] = [_INVALID]
    else:
        text = _read_text(value)
        if not blank and not text.strip():
            errors[name] = [_BLANK]
    return text


def _boolean(raw: msgspec.Raw) -> bool | None:
    """As the reference casts it; None if it is no boolean."""
    value = bytes(raw)
    if value in (b"", b"null", b"false", b'"false"', b'"0"'):
        return False
    return True if value in (b"true", b'"true"', b'"1"') else None
