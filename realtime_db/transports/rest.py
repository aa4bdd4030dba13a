"""Broadcasts by HTTP, many or one (PROTOCOL 8): a request in, messages to the hub.

Above is `application`, which knows the URLs; below are the hub and, for private topics, the
policies. A request for public topics alone is answered at once. Payloads are checked to be JSON and
spliced, never decoded, so every digit of a number survives.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from realtime_db.auth.access import CheckFailed
from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.hub import Key
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.limits import BURST_SECONDS, Rate
from realtime_db.protocol.services import Services
from realtime_db.transports.http import Request, Response

MAX_TOPIC_BYTES: Final = 246
"""`realtime:` comes before it, and a frame has one byte for the length (PROTOCOL 3)."""
MAX_BINARY_EVENT_BYTES: Final = 255

ACCEPTED: Final = Response(202)
UNAUTHORIZED: Final = Response.json(401, {"message": "Unauthorized"})
FORBIDDEN: Final = Response.json(403, {"message": "Unauthorized"})
UNSUPPORTED: Final = Response.json(
    415, {"error": "Unsupported Media Type. Use application/json or application/octet-stream"}
)
NOT_JSON: Final = Response.json(400, {"message": "The body is not JSON"})
POLICY_ERROR: Final = Response.json(422, {"message": "RLS policy error"})
UNCHECKED: Final = Response.json(500, {"message": "Unable to authorize broadcast"})
RATE_LIMIT: Final = Response.json(429, {"message": "You have exceeded your rate limit"})
BATCH_LIMIT: Final = Response.json(
    429, {"message": "Too many messages to broadcast, please reduce the batch size"}
)

NOT_A_BOOLEAN: Final = "private must be true or false"

_BLANK: Final = "can't be blank"
_INVALID: Final = "is invalid"
_TOO_LARGE: Final = "Payload size exceeds tenant limit"
_TOPIC_TOO_LONG: Final = f"should be at most {MAX_TOPIC_BYTES} bytes"
_EVENT_TOO_LONG: Final = f"should be at most {MAX_BINARY_EVENT_BYTES} bytes in a binary message"

_BEARER: Final = re.compile(r"bearer +(\S+)", re.IGNORECASE)
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
    """How many messages a second a user may send: one who has a good token."""

    MAX_USERS: Final = 10_000

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    def refusal(self, request: Request, messages: int) -> Response | None:
        """Counts the messages of a request; the answer if they are too many."""
        per_second = self._services.settings.max_messages_per_second
        if not per_second:
            return None
        if messages > per_second * BURST_SECONDS:
            return BATCH_LIMIT  # they would be, at any time
        token = bearer(request)
        rate = self._rates.setdefault(token, Rate(per_second))
        self._rates.move_to_end(token)
        if len(self._rates) > self.MAX_USERS:
            self._rates.popitem(last=False)
        now = self._services.now()
        return None if all(rate.allow(now) for _ in range(messages)) else RATE_LIMIT


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
        messages = self.read(request)
        if isinstance(messages, Response):
            return messages
        if any(private for (_, private), _ in messages):
            return None
        return self._rates.refusal(request, len(messages)) or self._publish(messages)

    async def later(self, request: Request) -> Response:
        """Answers everything."""
        try:
            claims = await self._services.keys.verify(bearer(request), self._services.now())
        except TokenError:
            return UNAUTHORIZED
        messages = self.read(request)
        if isinstance(messages, Response):
            return messages
        refusal = self._rates.refusal(request, len(messages))
        if refusal is not None:
            return refusal
        # All questions come before the first message, so that after an error nothing was sent.
        answers: dict[str, Response | None] = {}
        for topic in dict.fromkeys(topic for (topic, private), _ in messages if private):
            answers[topic] = await self._refusal(topic, claims, request)
        allowed = self.choose(messages, answers)
        return allowed if isinstance(allowed, Response) else self._publish(allowed)

    def read(self, request: Request) -> list[Message] | Response:
        """The messages in a request, in the order in which they go out; or what is wrong."""
        raise NotImplementedError

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
            access = await self._services.policies.write_access(topic, claims, request.headers)
        except CheckFailed as error:
            log.warning("write to %s not checked: %s", topic, error)
            return Response.json(error.rest_status, {"message": error.rest})
        except Exception:
            log.exception("write to %s not checked", topic)
            return UNCHECKED
        if access:
            return None
        log.info("write to %s denied: %s", topic, access.reason)
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
        elif len(payload) > self._services.settings.max_payload_bytes:
            self._services.dropped_too_large += 1
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
        if len(payload) > self._services.settings.max_payload_bytes:
            self._services.dropped_too_large += 1
            return Response.json(422, {"errors": {"payload": [_TOO_LARGE]}})
        private = asks_for_private(request)
        if private is None:
            return Response.json(422, {"message": NOT_A_BOOLEAN})
        broadcast = Broadcast(f"realtime:{topic}", event, payload, binary=binary)
        return [Message((topic, private), broadcast)]

    def choose(
        self, messages: list[Message], answers: dict[str, Response | None]
    ) -> list[Message] | Response:
        return next((refusal for refusal in answers.values() if refusal), messages)


def _errors(*errors: object) -> Response:
    return Response.json(422, {"errors": {"messages": list(errors)}})


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
