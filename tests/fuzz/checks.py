"""What the server may say: every byte that a target brings it to write is held against this."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from realtime_db.protocol.frames import V1, Frame, Framing

_HEADER = re.compile(rb"[a-zA-Z-]+: [\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Za-z' -]*")

# A comment, how long to wait, a place in the stream, what is missing, a message.
_EVENTS = (
    [b""], [b"retry"], [b"id"], [b"data"], [b"id", b"data"],
    [b"event", b"data"], [b"id", b"event", b"data"],
)  # fmt: skip


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def json_value(data: bytes) -> Any:
    """The value of JSON as clients read it: UTF-8, and no NaN."""
    try:
        return json.loads(data.decode(), parse_int=str, parse_float=str, parse_constant=_refuse)
    except RecursionError:
        return None  # ours and the clients' limits of nesting differ
    except ValueError as error:
        raise AssertionError(f"no JSON: {data[:200]!r}") from error


def frame(sent: Frame, framing: Framing) -> list[Any]:
    """The content of a WebSocket message to a client, as five fields."""
    if sent.binary:
        assert framing is not V1, "V1 has no binary frames"
        kind, topic, event, meta, encoding = sent.data[:5]
        assert kind == 4
        assert encoding in (0, 1)
        at = 5 + topic + event
        sent.data[5 : 5 + topic].decode()
        sent.data[5 + topic : at].decode()
        assert len(sent.data) >= at + meta
        if meta:
            assert isinstance(json_value(sent.data[at : at + meta]), dict)
        if encoding == 1:
            json_value(sent.data[at + meta :])
        return [None, None, sent.data[5 : 5 + topic].decode(), "broadcast", None]
    value = json_value(sent.data)
    if value is None:
        return [None, None, None, None, None]
    if framing is V1:
        assert isinstance(value, dict)
        assert list(value) == ["topic", "event", "payload", "ref"], value
        value = [None, value["ref"], value["topic"], value["event"], value["payload"]]
    join_ref, ref, topic, event, payload = value
    assert isinstance(topic, str)
    assert isinstance(event, str)
    assert payload is not None
    assert {type(join_ref), type(ref)} <= {str, type(None)}
    return value


def server_frames(data: bytes, framing: Framing) -> list[int]:
    """The opcodes of the WebSocket frames of a server; a Close is the last of them."""
    opcodes = []
    while data:
        first, size = data[:2]
        assert first in (0x81, 0x82, 0x88, 0x8A), hex(first)
        start = {126: 4, 127: 10}.get(size, 2)
        if start > 2:
            size = int.from_bytes(data[2:start], "big")
        payload, data = data[start : start + size], data[start + size :]
        assert len(payload) == size, "a frame that ends too early"
        if first in (0x81, 0x82):
            frame(Frame(payload, binary=first == 0x82), framing)
        elif first == 0x88:
            assert not data, "bytes behind a Close"
            assert len(payload) != 1
            payload[2:].decode()
        opcodes.append(first & 0xF)
    return opcodes


def response(data: bytes) -> int:
    """The status of one answer of HTTP, which is all that there is."""
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, data
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    assert status, first
    for line in lines:
        assert _HEADER.fullmatch(line), line
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    if status[1] in (b"100", b"101", b"204"):
        assert b"content-length" not in headers
        assert not body
    elif headers.get(b"content-type") == b"text/event-stream":
        assert b"content-length" not in headers
    else:
        assert len(body) in (0, int(headers[b"content-length"])), data
        if body and headers[b"content-type"] == b"application/json":
            json_value(body)
    return int(status[1])


def events(data: bytes) -> None:
    """A stream of server-sent events, in which each broadcast is one event."""
    if not data:
        return
    data.decode()
    assert data.endswith(b"\n\n")
    for event in data[:-2].split(b"\n\n"):
        lines = event.split(b"\n")
        assert b"\r" not in event
        names = [line.partition(b":")[0] for line in lines]
        assert names in _EVENTS, event
        if names[-1] == b"data":
            value = json_value(lines[-1].removeprefix(b"data: "))
            assert value is None or isinstance(
                value["before" if b"event" in names else "topic"], str
            )
