"""Bytes from a client, in either framing, to pushes. No I/O here.

Below are the transports, which say whether a frame is text or binary and have checked that text is
UTF-8; above is `frames`, whose `Framing.decode` is one of the two functions here, and the channels.

A payload is checked to be JSON and kept as the bytes that came, with every digit of its numbers, so
that it can be spliced into the frames of others (PROTOCOL 3, "Numbers"). The check is strict: what
passes here is parsed by every client, not by ours alone.

Both functions raise `MalformedFrame` and nothing else, whatever the bytes.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from realtime_db.errors import RealtimeDbError

_USER_BROADCAST_PUSH: Final = 3
_HEADER_BYTES: Final = 7


class MalformedFrame(RealtimeDbError):
    """A client sent what is no frame. Log it and drop it; the connection stays (PROTOCOL 4)."""


class Push(NamedTuple):
    """What a client sent.

    Attributes:
        join_ref: its channel's join, as the client counts; many clients leave it out.
        ref: what the reply must carry; null in some heartbeats.
        topic: the full one, `realtime:room`.
        event: such as `phx_join`; `broadcast` for a user broadcast push.
        payload: of a text frame the JSON value of its payload; of a user broadcast push the user's
            part alone: JSON, or anything if `binary`.
        user_event: the user's name for the event in a user broadcast push; None in a text frame.
        metadata: of a user broadcast push, if it has any.
        binary: whether the payload is bytes and no JSON.
    """

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: bytes
    user_event: str | None = None
    metadata: dict[str, Any] | None = None
    binary: bool = False


class _TextV1(msgspec.Struct):
    topic: str
    event: str
    payload: msgspec.Raw
    ref: str | None
    join_ref: str | None = None  # never to be required: realtime-py before 2.34 has none


class _TextV2(msgspec.Struct, array_like=True):
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: msgspec.Raw


_read_v1: Final = msgspec.json.Decoder(_TextV1).decode
_read_v2: Final = msgspec.json.Decoder(_TextV2).decode
_read_metadata: Final = msgspec.json.Decoder(dict[str, Any]).decode
_check_json: Final = msgspec.json.Decoder(msgspec.Raw).decode
# Half the price of `Push(…)`, and this runs once for each message that comes in.
_new: Final = tuple.__new__

# No JSON or the wrong shape (msgspec's), no UTF-8: all are ValueErrors. And nested too deeply.
_JSON_ERRORS: Final = (ValueError, RecursionError)


def decode_v1(data: bytes, *, binary: bool = False) -> Push:
    """Reads a frame of a V1 client: a JSON object (PROTOCOL 2).

    Args:
        data: one whole WebSocket message; text is UTF-8.
        binary: whether it came as a binary one.

    Raises:
        MalformedFrame: it is no frame; the message says why.
    """
    if binary:
        raise MalformedFrame("a binary frame, which V1 does not have")
    try:
        text = _read_v1(data)
    except _JSON_ERRORS as error:
        raise MalformedFrame(f"no V1 frame: {error}") from error
    return _text_push(text)


def decode_v2(data: bytes, *, binary: bool = False) -> Push:
    """Reads a frame of a V2 client: a JSON array of five, or a user broadcast push (PROTOCOL 3).

    Args:
        data: one whole WebSocket message; text is UTF-8.
        binary: whether it came as a binary one.

    Raises:
        MalformedFrame: it is no frame; the message says why.
    """
    if binary:
        return _user_broadcast_push(data)
    try:
        text = _read_v2(data)
    except _JSON_ERRORS as error:
        raise MalformedFrame(f"no V2 frame: {error}") from error
    return _text_push(text)


def _text_push(text: _TextV1 | _TextV2) -> Push:
    return _new(
        Push,
        (
            text.join_ref,
            text.ref,
            text.topic,
            text.event,
            bytes(text.payload),
            None,
            None,
            False,
        ),
    )


def _user_broadcast_push(data: bytes) -> Push:
    """Reads kind 3, the only binary frame that clients send (PROTOCOL 3)."""
    if not data:
        raise MalformedFrame("an empty binary frame")
    if data[0] != _USER_BROADCAST_PUSH:
        raise MalformedFrame(f"a binary frame of kind {data[0]}, which no client sends")
    if len(data) < _HEADER_BYTES:
        raise MalformedFrame("a binary frame that ends in its header")
    _, join_ref_size, ref_size, topic_size, event_size, metadata_size, encoding = data[:7]
    ref_at = _HEADER_BYTES + join_ref_size
    topic_at = ref_at + ref_size
    event_at = topic_at + topic_size
    metadata_at = event_at + event_size
    payload_at = metadata_at + metadata_size
    if payload_at > len(data):
        raise MalformedFrame("a binary frame that ends before its fields do")
    if encoding > 1:
        raise MalformedFrame(f"a binary frame with the unknown payload encoding {encoding}")
    payload = data[payload_at:]
    try:
        if encoding == 1:
            payload = _json_value(payload)
        return _new(
            Push,
            (
                data[_HEADER_BYTES:ref_at].decode() or None,
                data[ref_at:topic_at].decode() or None,
                data[topic_at:event_at].decode(),
                "broadcast",
                payload,
                data[event_at:metadata_at].decode(),
                _read_metadata(data[metadata_at:payload_at]) if metadata_size else None,
                encoding == 0,
            ),
        )
    except _JSON_ERRORS as error:
        raise MalformedFrame(f"no user broadcast push: {error}") from error


def _json_value(payload: bytes) -> bytes:
    """Makes sure that bytes are one JSON value in UTF-8, so that text frames can have it inside.

    Nobody has looked at them yet: not the transport, nor msgspec at the UTF-8 of what stays raw.
    """
    if not payload.isascii():
        payload.decode()
    try:
        return bytes(_check_json(payload))
    except msgspec.DecodeError:
        # Half of a surrogate pair, `"\ud83d"`, is what JSON.stringify makes of a string that was
        # cut inside an emoji. Browsers can read it, and the reference hands it on.
        if rb"\ud" not in payload.lower():
            raise
        json.loads(payload.decode(), parse_int=len, parse_float=len, parse_constant=_refuse)
        return payload.strip(b" \t\n\r")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
