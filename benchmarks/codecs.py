"""What one message costs in the codecs between a socket and the hub, in microseconds.

    python benchmarks/codecs.py

Pure functions on one core: no sockets, no peers. The least of many short runs is printed, because
everything above it is what else the machine was doing.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial

from realtime_db.protocol.frames import V1, V2, live_meta
from realtime_db.protocol.join import parse_join
from realtime_db.transports.rfc6455 import BINARY, TEXT, Receiver, frame

TOPIC = "realtime:room:1"
USER_PAYLOAD = b'{"x":12,"y":34,"name":"Ada"}'
BROADCAST = b'{"type":"broadcast","event":"cursor","payload":%b}' % USER_PAYLOAD
PUSH_V1 = (
    b'{"topic":"realtime:room:1","event":"broadcast","payload":%b,"ref":"7","join_ref":"1"}'
    % BROADCAST
)
PUSH_V2 = b'["1","7","realtime:room:1","broadcast",%b]' % BROADCAST
KIND_3 = bytes([3, 1, 1, 15, 6, 0, 1]) + b"17realtime:room:1cursor" + USER_PAYLOAD
JOIN = (
    b'{"config":{"broadcast":{"ack":false,"self":true},"presence":{"key":"","enabled":false},'
    b'"postgres_changes":[],"private":true},"access_token":"a.b.c"}'
)
META = live_meta("0190a8e2-7e3f-7a3a-8d5c-1d2e3f405060")
MASK = b"\x37\xfa\x21\x3d"
AT_ONCE = 200


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame; up to 65,535 bytes."""
    head = bytearray(frame(opcode, payload)[: 2 if len(payload) < 126 else 4])
    head[1] |= 0x80
    return bytes(head) + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


def report(what: str, run: Callable[[], object], *, messages: int = 1) -> None:
    number = max(1, 2000 // messages)
    seconds = min(timeit.repeat(run, number=number, repeat=50)) / number / messages
    print(f"{what:<52}{seconds * 1e6:>8.2f} us")


def main() -> None:
    receiver = Receiver()
    for what, opcode, payload in (
        ("a text of 100 bytes", TEXT, PUSH_V2.ljust(100)),
        ("a text of 1,000 bytes", TEXT, PUSH_V2.ljust(1000)),
        ("a user broadcast push", BINARY, KIND_3),
    ):
        chunk = masked(opcode, payload) * AT_ONCE
        run = partial(receiver.receive, chunk)
        report(f"WebSocket: {what}, {AT_ONCE} in a chunk", run, messages=AT_ONCE)
    report("WebSocket: a text alone", partial(receiver.receive, masked(TEXT, PUSH_V2)))
    report("WebSocket: make a frame of 100 bytes", partial(frame, TEXT, PUSH_V2))

    report("decode a V1 broadcast", partial(V1.decode, PUSH_V1))
    report("decode a V2 broadcast as text", partial(V2.decode, PUSH_V2))
    report("decode a V2 user broadcast push", partial(V2.decode, KIND_3, binary=True))
    report("parse a join", partial(parse_join, JOIN))

    for name, framing in (("V1", V1), ("V2", V2)):
        send = partial(framing.user_broadcast, TOPIC, "cursor", USER_PAYLOAD, meta=META)
        report(
            f"encode a client's text broadcast, {name}",
            partial(framing.broadcast, TOPIC, BROADCAST),
        )
        report(f"encode a database message, {name}", send)
        report(f"encode a reply, {name}", partial(framing.reply, TOPIC, join_ref="1", ref="7"))


if __name__ == "__main__":
    main()
