"""Bytes of a server to frames, and what a client asks for to bytes: version 2. No I/O here.

Above is the client's connection. Only what a client needs is read; a frame of another kind comes
out with its names and nothing else. Payloads of users stay the bytes that came.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from realtime_db.errors import RealtimeDbError

PREFIX: Final = "realtime:"
PHOENIX: Final = "phoenix"

_USER_BROADCAST_PUSH: Final = 3
_USER_BROADCAST: Final = 4
_HEADER_BYTES: Final = 5
_MAX_FIELD_BYTES: Final = 255

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


class UnreadableFrame(RealtimeDbError):
    """A server sent what is no frame."""


class Broadcast(NamedTuple):
    """A message to all who follow a topic, or a stored one to a single channel.

    Attributes:
        topic: the full one.
        event: the user's name for it.
        payload: the user's JSON text, or bytes if `binary`.
        binary: whether the payload is bytes and no JSON.
        join_ref: that of the channel it is for; None if it is for all.
        id: of a stored message, else empty.
        cursor: where to go on after it, else empty.
        replayed: whether it was stored, and is sent because the channel asked.
    """

    topic: str
    event: str
    payload: bytes
    binary: bool = False
    join_ref: str | None = None
    id: str = ""
    cursor: str = ""
    replayed: bool = False


class Control(NamedTuple):
    """Any other frame.

    Attributes:
        topic: the full one.
        event: such as `phx_reply`.
        join_ref: that of the channel it is for.
        ref: that of the push it answers.
        payload: of replies and system messages.
    """

    topic: str
    event: str
    join_ref: str | None
    ref: str | None
    payload: dict[str, Any]


class Body(NamedTuple):
    """The payload of a broadcast that is to be sent.

    Attributes:
        data: JSON text, or anything if `binary`.
        binary: whether it is bytes and no JSON.
    """

    data: bytes
    binary: bool


class _Meta(msgspec.Struct):
    id: str = ""
    cursor: str = ""
    replayed: bool = False


class _Content(msgspec.Struct):
    event: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"null")
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class _Text(msgspec.Struct, array_like=True):
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: msgspec.Raw


_read_text: Final = msgspec.json.Decoder(_Text).decode
_read_content: Final = msgspec.json.Decoder(_Content).decode
_read_meta: Final = msgspec.json.Decoder(_Meta).decode
_read_object: Final = msgspec.json.Decoder(dict[str, Any]).decode

_NO_META: Final = _Meta()


def decode(data: bytes) -> Broadcast | Control:
    """Reads one WebSocket message.

    Args:
        data: text in UTF-8, which begins with `[`, or a binary frame, which does not.

    Raises:
        UnreadableFrame: it is no frame.
    """
    try:
        if data[:1] != b"[":
            return _binary(data)
        text = _read_text(data)
        if text.event == "broadcast":
            return _text_broadcast(text)
        said = text.event in ("phx_reply", "system", "phx_error")
        payload = _read_object(text.payload) if said else {}
        return Control(text.topic, text.event, text.join_ref, text.ref, payload)
    except (ValueError, IndexError, RecursionError) as error:
        raise UnreadableFrame(f"a frame of {len(data)} bytes cannot be read: {error}") from error


def _text_broadcast(text: _Text) -> Broadcast:
    content = _read_content(text.payload)
    # What goes to all may be the payload of another client as that wrote it, `meta` and all. Only
    # what goes to one channel is of the server's making.
    meta = _NO_META if text.join_ref is None else _read_meta(content.meta)
    return Broadcast(
        text.topic,
        content.event,
        bytes(content.payload),
        join_ref=text.join_ref,
        id=meta.id,
        cursor=meta.cursor,
        replayed=meta.replayed,
    )


def _binary(data: bytes) -> Broadcast:
    if data[0] != _USER_BROADCAST:
        raise ValueError(f"kind {data[0]}")
    parts, begin = [], _HEADER_BYTES
    for size in data[1:4]:
        parts.append(data[begin : begin + size])
        begin += size
    if len(data) < begin:
        raise ValueError("it is too short")
    topic, event, metadata = parts
    meta = _read_meta(metadata) if metadata else _NO_META
    return Broadcast(
        topic.decode(),
        event.decode(),
        data[begin:],
        binary=data[4] == 0,
        id=meta.id,
        cursor=meta.cursor,
        replayed=meta.replayed,
    )


def join(topic: str, ref: str, *, private: bool, own: bool, token: str, cursor: str | None) -> str:
    """The frame that joins a topic.

    Args:
        topic: the full one.
        ref: names the join; also the join_ref of what belongs to it.
        private: whether to join among those whom a policy lets.
        own: whether to get what the channel itself sends.
        token: the user's.
        cursor: where to go on; None to begin with what comes next.
    """
    broadcast: dict[str, Any] = {"ack": True, "self": own}
    if cursor is not None:
        broadcast["replay"] = {"cursor": cursor}
    config = {"broadcast": broadcast, "private": private}
    return text(topic, "phx_join", {"config": config, "access_token": token}, ref, ref)


def heartbeat(ref: str) -> str:
    """The frame of a heartbeat, whose reply says where to go on after all that came before it."""
    return text(PHOENIX, "heartbeat", {"cursor": True}, None, ref)


def text(topic: str, event: str, payload: Any, join_ref: str | None, ref: str) -> str:
    """Any text frame."""
    return _encode([join_ref, ref, topic, event, payload]).decode()


def body(payload: Any) -> Body:
    """A payload as it goes out.

    Args:
        payload: bytes go out as they are, anything else as JSON.

    Raises:
        ValueError: it is nested too deeply, or has what JSON does not, such as NaN.
        TypeError: it has a value of another type than JSON has.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        return Body(bytes(payload), binary=True)
    try:
        _check(payload)
        return Body(_encode(payload), binary=False)
    except RecursionError as error:
        raise ValueError("the payload is nested too deeply") from error


def _check(value: Any) -> None:
    """Refuses what would arrive as something else: msgspec makes null of NaN, a list of a set."""
    match value:
        case None | str() | int():
            pass
        case float() | Decimal():
            if not math.isfinite(value):
                raise ValueError(f"JSON has no {value}: give a finite number, or None")
        case list() | tuple():
            for one in value:
                _check(one)
        case dict():
            for key, one in value.items():
                if not isinstance(key, str):
                    kind = type(key).__name__
                    raise TypeError(f"a key in JSON is text, and {key!r} is of the type {kind}")
                _check(one)
        case _:
            kind = type(value).__name__
            raise TypeError(f"JSON has no {kind}: give text, numbers, lists and dicts")


def push(
    topic: str, event: str, body: Body, *, join_ref: str, ref: str, persist: Any = None
) -> bytes:
    """The frame of a broadcast.

    Args:
        topic: the full one.
        event: the user's name for it, at most 255 bytes.
        body: the payload.
        join_ref: of the channel.
        ref: names the push.
        persist: True to store it, `{"ttl": seconds}` for so long, None for neither.

    Raises:
        ValueError: the name of the topic or the event is too long.
    """
    metadata = b"" if persist is None else _encode({"persist": persist})
    fields = (join_ref.encode(), ref.encode(), topic.encode(), event.encode(), metadata)
    sizes = tuple(map(len, fields))
    if max(sizes) > _MAX_FIELD_BYTES:
        raise ValueError(f"topic or event has over {_MAX_FIELD_BYTES} bytes: {topic!r}, {event!r}")
    header = bytes((_USER_BROADCAST_PUSH, *sizes, 0 if body.binary else 1))
    return b"".join((header, *fields, body.data))
