"""The WebSocket codec: each rule of RFC 6455, any bytes in any chunks, and the `websockets` client.

`client_frame` is what a client sends, written from section 5.2.
"""

from __future__ import annotations

import importlib
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from realtime_db.transports import rfc6455
from realtime_db.transports.rfc6455 import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    Event,
    Receiver,
    close_frame,
    frame,
)

MASK = b"\x37\xfa\x21\x3d"  # of the example in section 5.7


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bytes = MASK,
    reserved: int = 0,
    length_bytes: int | None = None,
) -> bytes:
    """One masked frame; `length_bytes` forces a longer form of the length."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 0x10000 else 8
    short = {0: size, 2: 126, 8: 127}[length_bytes]
    head = bytes([fin << 7 | reserved << 4 | opcode, 0x80 | short])
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return head + (size.to_bytes(length_bytes, "big") if length_bytes else b"") + mask + masked


def receive(*chunks: bytes, max_message_bytes: int = 1000) -> tuple[list[Event], Receiver]:
    receiver = Receiver(max_message_bytes=max_message_bytes)
    return [event for chunk in chunks for event in receiver.receive(chunk)], receiver


def assert_thrown_out(data: bytes, code: int, *, before: list[Event] | None = None) -> None:
    """The client gets a Close with this code, in whatever chunks its bytes come."""
    for chunks in ([data], [bytes([byte]) for byte in data]):
        events, receiver = receive(*chunks)
        assert events == [*(before or []), (CLOSE, b"")]
        assert receiver.close_code == code
        assert receiver.outgoing() == close_frame(code, receiver.close_reason)
        assert receiver.receive(client_frame(TEXT, b"more")) == []
        assert receiver.outgoing() == b""


# Messages.


def test_the_masked_hello_of_the_rfc_is_read() -> None:
    assert receive(bytes.fromhex("818537fa213d7f9f4d5158"))[0] == [(TEXT, b"Hello")]


def test_the_fragmented_hello_of_the_rfc_is_read() -> None:
    first = client_frame(TEXT, b"Hel", fin=False)
    events, receiver = receive(first)
    assert events == []
    assert receiver.receive(client_frame(CONTINUATION, b"lo")) == [(TEXT, b"Hello")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_messages_of_every_form_of_length_are_read(opcode: int, size: int) -> None:
    payload = (b"0123456789" * (size // 10 + 1))[:size]
    data = client_frame(opcode, payload)
    for step in (len(data), 4096):
        chunks = [data[at : at + step] for at in range(0, len(data), step)]
        assert receive(*chunks, max_message_bytes=200_000)[0] == [(opcode, payload)]


def test_many_messages_in_one_chunk_come_out_in_order() -> None:
    data = b"".join(client_frame(TEXT, b"%d" % at, mask=bytes([at] * 4)) for at in range(200))
    assert receive(data)[0] == [(TEXT, b"%d" % at) for at in range(200)]


def test_control_frames_may_come_between_fragments() -> None:
    events, receiver = receive(
        client_frame(BINARY, b"a", fin=False)
        + client_frame(PING, b"?")
        + client_frame(CONTINUATION, b"b", fin=False)
        + client_frame(PONG, b"!")
        + client_frame(CONTINUATION, b"c")
        + client_frame(TEXT, b"d")
    )
    assert events == [(PING, b"?"), (PONG, b"!"), (BINARY, b"abc"), (TEXT, b"d")]
    assert receiver.outgoing() == frame(PONG, b"?")


def test_fragments_may_be_empty_and_hold_no_memory() -> None:
    empty = client_frame(CONTINUATION, fin=False) * 1000
    events, receiver = receive(client_frame(TEXT, fin=False) + empty)
    assert events == []
    assert receiver.receive(client_frame(CONTINUATION)) == [(TEXT, b"")]


# What ends the connection.


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_a_frame_without_mask_is_refused(opcode: int) -> None:
    assert_thrown_out(frame(opcode, b""), 1002)


@pytest.mark.parametrize("reserved", [1, 2, 4, 7])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_reserved_bits_are_refused(opcode: int, reserved: int) -> None:
    assert_thrown_out(client_frame(opcode, reserved=reserved), 1002)


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
def test_reserved_opcodes_are_refused(opcode: int, fin: bool) -> None:
    assert_thrown_out(client_frame(opcode, fin=fin), 1002)


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_fragmented_control_frame_is_refused(opcode: int) -> None:
    assert_thrown_out(client_frame(opcode, fin=False), 1002)


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_over_125_bytes_is_refused(opcode: int) -> None:
    payload = b"\x03\xe8" + b"x" * 124
    assert_thrown_out(client_frame(opcode, payload), 1002)
    assert receive(client_frame(opcode, payload[:125]))[0] == [(opcode, payload[:125])]


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_is_refused(fin: bool) -> None:
    assert_thrown_out(client_frame(CONTINUATION, b"x", fin=fin), 1002)
    done = client_frame(TEXT, b"a", fin=False) + client_frame(CONTINUATION, b"b")
    assert_thrown_out(
        done + client_frame(CONTINUATION, b"x", fin=fin), 1002, before=[(TEXT, b"ab")]
    )


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_inside_another_is_refused(opcode: int, fin: bool) -> None:
    begun = client_frame(TEXT, b"a", fin=False)
    assert_thrown_out(begun + client_frame(opcode, b"b", fin=fin), 1002)


@pytest.mark.parametrize(("size", "length_bytes"), [(0, 2), (125, 2), (0, 8), (126, 8), (999, 8)])
def test_a_length_that_is_not_minimal_is_refused(size: int, length_bytes: int) -> None:
    data = client_frame(TEXT, b"x" * size, length_bytes=length_bytes)
    assert_thrown_out(data, 1002)


def test_a_length_with_its_highest_bit_set_is_refused() -> None:
    assert_thrown_out(b"\x81\xff" + struct.pack(">Q", 1 << 63) + MASK, 1002)


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok\xe2\x82"]
)
def test_text_that_is_not_utf8_is_refused_with_1007(text: bytes) -> None:
    good = client_frame(TEXT, b"a")
    assert_thrown_out(good + client_frame(TEXT, text), 1007, before=[(TEXT, b"a")])
    halves = client_frame(TEXT, text[:1], fin=False) + client_frame(CONTINUATION, text[1:])
    assert_thrown_out(halves, 1007)


def test_a_character_may_be_split_between_fragments() -> None:
    text = "€🚪".encode()
    pieces = [client_frame(CONTINUATION, text[at : at + 1], fin=False) for at in range(1, 7)]
    events, _ = receive(client_frame(TEXT, text[:1], fin=False), *pieces, client_frame(0))
    assert events == [(TEXT, text)]


def test_binary_need_not_be_utf8() -> None:
    assert receive(client_frame(BINARY, b"\xff"))[0] == [(BINARY, b"\xff")]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [1001, 65_536, 2**62])
def test_a_message_that_is_too_big_is_refused_with_1009_at_its_length(
    opcode: int, size: int
) -> None:
    length = struct.pack(">BH", 0xFE, size) if size < 65_536 else struct.pack(">BQ", 0xFF, size)
    assert_thrown_out(bytes([0x80 | opcode]) + length, 1009)


def test_a_message_that_grows_too_big_in_fragments_is_refused_with_1009() -> None:
    begun = client_frame(TEXT, b"x" * 600, fin=False)
    assert receive(begun, client_frame(CONTINUATION, b"x" * 400))[0] == [(TEXT, b"x" * 1000)]
    assert_thrown_out(begun + client_frame(CONTINUATION, b"x" * 401)[:4], 1009)


def test_the_size_of_a_message_is_not_that_of_all_of_them() -> None:
    data = client_frame(TEXT, b"x" * 1000) + client_frame(BINARY, b"x" * 1000)
    fragments = client_frame(TEXT, b"x" * 1000, fin=False) + client_frame(CONTINUATION)
    assert len(receive(data + fragments + fragments)[0]) == 4


def test_control_frames_do_not_count_as_message_bytes() -> None:
    begun = client_frame(TEXT, b"x" * 1000, fin=False)
    events, _ = receive(begun, client_frame(PING, b"p" * 125), client_frame(CONTINUATION))
    assert events == [(PING, b"p" * 125), (TEXT, b"x" * 1000)]
    assert receive(client_frame(PING, b"12345"), max_message_bytes=1)[0] == [(PING, b"12345")]


# Ping.


def test_a_ping_is_answered_with_its_payload() -> None:
    _, receiver = receive(client_frame(PING, b"abc"))
    assert receiver.outgoing() == b"\x8a\x03abc"
    assert receiver.outgoing() == b""


def test_only_the_latest_of_many_pings_is_answered() -> None:
    events, receiver = receive(b"".join(client_frame(PING, b"%d" % at) for at in range(1000)))
    assert len(events) == 1000
    assert receiver.outgoing() == frame(PONG, b"999")


# Close.


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
def test_a_close_is_answered_with_its_code(code: int) -> None:
    payload = struct.pack(">H", code) + "ciao é".encode()
    events, receiver = receive(client_frame(CLOSE, payload) + client_frame(TEXT, b"late"))
    assert events == [(CLOSE, payload)]
    assert (receiver.close_code, receiver.close_reason) == (code, "ciao é")
    assert receiver.outgoing() == close_frame(code)
    assert receiver.receive(client_frame(TEXT, b"later")) == []


def test_an_empty_close_is_answered_with_an_empty_one() -> None:
    events, receiver = receive(client_frame(CLOSE))
    assert events == [(CLOSE, b"")]
    assert receiver.close_code == NO_STATUS == 1005
    assert receiver.outgoing() == b"\x88\x00"


@pytest.mark.parametrize("payload", [b"\x03", b"\x00", b"\xff"])
def test_a_close_of_one_byte_is_refused(payload: bytes) -> None:
    assert_thrown_out(client_frame(CLOSE, payload), 1002)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535])
def test_a_close_code_that_may_not_be_sent_is_refused(code: int) -> None:
    assert_thrown_out(client_frame(CLOSE, struct.pack(">H", code)), 1002)


def test_a_close_reason_that_is_not_utf8_is_refused_with_1007() -> None:
    assert_thrown_out(client_frame(CLOSE, b"\x03\xe8\xff"), 1007)


def test_events_before_a_violation_and_a_pong_come_first() -> None:
    events, receiver = receive(
        client_frame(TEXT, b"a") + client_frame(PING, b"p") + client_frame(TEXT, b"\xff")
    )
    assert events == [(TEXT, b"a"), (PING, b"p"), (CLOSE, b"")]
    assert receiver.outgoing() == frame(PONG, b"p") + close_frame(1007, "text is not UTF-8")


def test_the_server_s_close_is_ended_by_the_client_s() -> None:
    receiver = Receiver()
    assert receiver.close(1001, "bye") == b"\x88\x05\x03\xe9bye"
    assert receiver.close(1000) == b""
    assert receiver.receive(client_frame(TEXT, b"late") + client_frame(PING, b"?")) == []
    assert receiver.outgoing() == b""
    assert receiver.receive(client_frame(CLOSE, b"\x03\xe9")) == [(CLOSE, b"\x03\xe9")]
    assert receiver.close_code == 1001
    assert receiver.outgoing() == b""


def test_a_violation_after_the_server_s_close_sends_no_second_one() -> None:
    receiver = Receiver()
    receiver.close(1000)
    assert receiver.receive(b"\xff\xff") == [(CLOSE, b"")]
    assert receiver.outgoing() == b""


def test_closing_what_is_closed_says_nothing() -> None:
    _, receiver = receive(client_frame(CLOSE))
    assert receiver.close(1000) == b""


@pytest.mark.parametrize("reason", ["x" * 200, "é" * 100, "🚪" * 50, "a" + "é" * 61])
def test_a_long_close_reason_is_cut_between_characters(reason: str) -> None:
    data = close_frame(1000, reason)
    assert len(data) <= 127
    assert data[1] == len(data) - 2
    assert reason.startswith(data[4:].decode())
    assert len(data) > 127 - 4


# Server frames.


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65_535, "817effff"),
        (65_536, "817f0000000000010000"),
    ],
)
def test_server_frames_are_whole_unmasked_and_minimal(size: int, header: str) -> None:
    assert frame(TEXT, b"x" * size) == bytes.fromhex(header) + b"x" * size


def test_the_unmasked_hello_of_the_rfc_is_made() -> None:
    assert frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")


# Unmasking.


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_both_ways_to_unmask_agree(data: bytes, mask: bytes) -> None:
    plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert rfc6455._xor(data, mask) == rfc6455._unmask(data, mask) == plain


def test_without_the_package_websockets_the_fallback_unmasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    monkeypatch.delitem(sys.modules, rfc6455.__name__)
    bare = importlib.import_module(rfc6455.__name__)
    assert bare._unmask is bare._xor
    assert bare.Receiver().receive(client_frame(TEXT, b"Hello")) == [(TEXT, b"Hello")]


# Any bytes, any chunks.


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """Bytes of one message in fragments, with control frames between, and its events."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(st.text().map(str.encode) if opcode == TEXT else st.binary())
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data, events = b"", []
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        mask = draw(st.binary(min_size=4, max_size=4))
        data += client_frame(0 if at else opcode, piece, fin=last, mask=mask)
        if not last and draw(st.booleans()):
            control = draw(st.sampled_from([PING, PONG]))
            data += client_frame(control, piece[:125], mask=mask)
            events.append((control, piece[:125]))
    return data, [*events, (opcode, payload)]


bad_frames = st.builds(
    client_frame,
    st.integers(0, 15),
    st.binary(max_size=130),
    fin=st.booleans(),
    reserved=st.sampled_from([0, 0, 0, 0, 1]),
)
wild = st.lists(
    messages().map(lambda message: message[0])
    | bad_frames
    | st.binary(max_size=12)
    | st.integers(900, 5100).map(lambda code: client_frame(CLOSE, struct.pack(">H", code))),
    max_size=6,
).map(b"".join)


def in_chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, at = [], 0
    while at < len(data):
        step = sizes[len(chunks) % len(sizes)]
        chunks.append(data[at : at + step])
        at += step
    return chunks


step_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(st.lists(messages(), max_size=4), step_sizes)
def test_any_messages_come_out_of_any_chunks(
    sent: list[tuple[bytes, list[Event]]], sizes: list[int]
) -> None:
    data = b"".join(part for part, _ in sent)
    events, receiver = receive(*in_chunks(data, sizes))
    assert events == [event for _, part in sent for event in part]
    assert receiver.close_code is None


@settings(max_examples=300)
@given(wild, step_sizes)
def test_any_bytes_give_the_same_events_in_any_chunks(data: bytes, sizes: list[int]) -> None:
    events, whole = receive(data, max_message_bytes=150)
    for chunks in (in_chunks(data, sizes), in_chunks(data, [1])):
        chunked_events, chunked = receive(*chunks, max_message_bytes=150)
        assert chunked_events == events
        assert chunked.close_code == whole.close_code
        assert chunked.close_reason == whole.close_reason


@given(wild)
def test_any_bytes_leave_no_more_than_a_message_behind(data: bytes) -> None:
    _, receiver = receive(*in_chunks(data, [7]), max_message_bytes=150)
    assert len(receiver._buffer) + len(receiver._parts) <= 150 + 14


# The client of the package websockets.


@pytest.fixture
def client() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)


def sent_by(client: ClientProtocol) -> bytes:
    return b"".join(client.data_to_send())


@given(st.text(), st.binary(), step_sizes)
@settings(max_examples=50)
def test_what_a_client_of_websockets_sends_is_read(
    text: str, data: bytes, sizes: list[int]
) -> None:
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)
    client.send_text(text.encode()[:0], fin=False)
    client.send_ping(b"p")
    client.send_continuation(text.encode(), fin=True)
    client.send_binary(data)
    client.send_pong(b"q")
    client.send_close(1000, "done")
    events, receiver = receive(*in_chunks(sent_by(client), sizes))
    assert events == [
        (PING, b"p"),
        (TEXT, text.encode()),
        (BINARY, data),
        (PONG, b"q"),
        (CLOSE, b"\x03\xe8done"),
    ]
    client.receive_data(close_frame(1000))
    client.receive_eof()
    assert receiver.outgoing()[-4:] == close_frame(1000)
    assert client.state is State.CLOSED
    assert client.close_code == 1000


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_client_of_websockets_reads_our_frames(client: ClientProtocol, size: int) -> None:
    client.receive_data(frame(TEXT, b"x" * size) + frame(BINARY, b"\xff") + frame(PING, b"!"))
    assert client.events_received() == [
        Frame(Opcode.TEXT, b"x" * size),
        Frame(Opcode.BINARY, b"\xff"),
        Frame(Opcode.PING, b"!"),
    ]
    assert receive(sent_by(client))[0] == [(PONG, b"!")]


def test_a_client_of_websockets_answers_our_close(client: ClientProtocol) -> None:
    receiver = Receiver()
    client.receive_data(receiver.close(1012, "restarting"))
    assert receiver.receive(sent_by(client)) == [(CLOSE, b"\x03\xf4restarting")]
    client.receive_eof()
    assert (client.close_code, client.close_reason) == (1012, "restarting")


def test_a_client_of_websockets_understands_why_it_is_thrown_out(client: ClientProtocol) -> None:
    client.send_text(b"x" * 1001)
    _, receiver = receive(sent_by(client))
    client.receive_data(receiver.outgoing())
    client.receive_eof()
    assert (client.close_code, client.close_reason) == (1009, "message is too big")
