"""Limits, and clients that read too slowly or do too much (PROTOCOL 9)."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])


def test_a_channel_over_the_limit_is_refused_and_the_others_stay(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    token: Callable[..., str],
    topic: str,
) -> None:
    one = open_client(start_server("--max-channels-per-connection", "2"))
    one.join(f"{topic}:1")
    one.join(f"{topic}:2", {"broadcast": {"self": True}})
    reason = "ChannelRateLimitReached: Too many channels"
    assert one.refused(f"{topic}:3") == reason
    # Before the token, after the name.
    assert one.refused(f"{topic}:3", access_token="x") == reason
    assert one.refused("").startswith("TopicNameRequired")
    one.broadcast(f"{topic}:2")
    assert one.receive().event == "broadcast"
    one.push(f"realtime:{topic}:1", "phx_leave")
    assert one.receive().event == "phx_close"
    one.join(f"{topic}:3")


def test_joining_a_joined_topic_again_needs_no_room(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    one = open_client(start_server("--max-channels-per-connection", "1"))
    one.join(topic)
    one.send(f"realtime:{topic}", "phx_join", {}, ref="x", join_ref="x")
    assert [one.receive().event for _ in range(2)] == ["phx_close", "phx_reply"]
    one.heartbeat()


@BOTH
def test_too_many_joins_are_refused_and_the_connection_closed(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str, vsn: str
) -> None:
    server = start_server("--max-joins-per-second", "0.1")  # and one at once
    one = open_client(server, vsn=vsn)
    one.join(topic)
    # After the name, before the channels and the token.
    assert one.refused("").startswith("TopicNameRequired")
    with suppress(ConnectionClosed):  # by the first of them
        for _ in range(3):
            one.send(f"realtime:{topic}:more", "phx_join", {"access_token": "x"}, ref="more")
    frame = one.receive()
    assert frame.ref == "more"
    assert frame.payload == {
        "status": "error",
        "response": {"reason": "ClientJoinRateLimitReached: Too many joins per second"},
    }
    assert one.closed()[0] == 1001
    with pytest.raises(InvalidStatus) as refused:
        open_client(server)
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body) == {"error": "Too many joins per second"}


def test_a_connection_over_the_limit_is_answered_429(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    server = start_server("--max-connections", "2")
    first, _ = open_client(server), open_client(server)
    with pytest.raises(InvalidStatus) as refused:
        open_client(server)
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body) == {"error": "Too many connected users"}
    first.socket.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            open_client(server).join(topic)
            break
        except InvalidStatus:
            assert time.monotonic() < deadline


def test_a_channel_that_sends_too_much_is_closed_and_no_other(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    server = start_server("--max-messages-per-second", "0.1")  # and one at once
    one, other = open_client(server), open_client(server)
    other.join(topic)
    one.join(f"{topic}:other")
    ref = one.join(topic)
    for number in range(2):
        one.broadcast(topic, str(number))
    system, closed = one.receive(), one.receive()
    assert system.payload == {
        "extension": "system",
        "status": "error",
        "message": "Too many messages per second",
        "channel": topic,
    }
    assert (closed.event, closed.ref) == ("phx_close", ref)
    assert other.receive().payload["event"] == "0"
    one.push(f"realtime:{topic}:other", "phx_leave")
    other.broadcast(topic, "x")
    other.heartbeat()


def limited(server: Server, limit: str) -> float:
    """How often a limit has struck, as the metrics say."""
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
        text = answer.read().decode()
    return float(re.findall(rf'^realtime_db_limited_total{{limit="{limit}"}} (.+)$', text, re.M)[0])


def test_a_channel_that_gets_too_much_is_closed_and_no_other(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    database: Database,
    topic: str,
) -> None:
    server = start_server("--max-deliveries-per-second", "0.1")  # and one at once
    one = open_client(server)
    one.join(f"{topic}:other")
    ref = one.join(topic)
    first = database.send(topic)
    assert one.receive().payload["meta"]["id"] == first
    database.send(topic)
    system, closed = one.receive(), one.receive()
    assert system.payload["message"] == "Too many messages per second"
    assert (system.payload["status"], system.payload["channel"]) == ("error", topic)
    assert (closed.event, closed.ref) == ("phx_close", ref)
    database.send(f"{topic}:other")
    assert one.receive().event == "broadcast"
    server.wait_for(f"DeliveryPerSecondRateLimitReached: channel realtime:{topic} ended")
    assert limited(server, "max_deliveries_per_second") == 1


def test_a_message_of_the_database_that_is_too_large_is_dropped_for_all_to_see(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    database: Database,
    topic: str,
) -> None:
    server = start_server("--max-payload-bytes", "200")
    one = open_client(server)
    one.join(topic)
    one.broadcast(topic, payload={"a": "x" * 200})  # hides nothing
    assert one.receive().payload["message"] == "payload_size_exceeded"
    too_large = [database.send(topic, "large", {"a": "x" * 200}) for _ in range(2)]
    database.send(topic, "small")
    assert one.receive().payload["event"] == "small"
    for id in too_large:
        server.wait_for(rf"PayloadSizeExceeded: message {id} of \d+ bytes to {topic} ")
    assert limited(server, "max_payload_bytes") == 3


def test_a_flood_of_messages_that_are_too_large_is_counted_and_logged_once(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    server = start_server("--max-payload-bytes", "200")
    one = open_client(server)
    one.join(topic)
    for _ in range(100):
        one.broadcast(topic, payload={"a": "x" * 200})
        assert one.receive().payload["message"] == "payload_size_exceeded"
    assert limited(server, "max_payload_bytes") == 100
    server.wait_for("PayloadSizeExceeded")
    said = [line for line in server.log if "PayloadSizeExceeded" in line]
    # One line, and a sum, for each ten seconds that it took.
    assert f"realtime:{topic} was not sent" in said[0]
    assert len(said) <= 5
    server.stop()
    named = sum("was not sent" in line for line in server.log)
    more = re.findall(r"PayloadSizeExceeded: (\d+) more within", "".join(server.log))
    assert named + sum(map(int, more)) == 100


def test_a_websocket_that_sends_a_frame_that_is_too_large_is_counted(
    start_server: Callable[..., Server], open_client: Callable[..., Client]
) -> None:
    server = start_server("--max-frame-bytes", "100")
    one = open_client(server)
    one.socket.send("x" * 101)
    assert one.closed()[0] == 1009
    server.wait_for("FrameSizeExceeded: ")
    assert limited(server, "max_frame_bytes") == 1


# Slow clients


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame of a client."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    if 126 <= size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


class Stalled:
    """A client that joins, and then never reads."""

    def __init__(self, server: Server, topic: str, key: str, payload: str = "{}") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(60)
        self.socket.connect((server.host, server.port))
        self.socket.sendall(
            f"GET /socket/websocket?vsn=2.0.0&apikey={quote(key)} HTTP/1.1\r\nHost: x\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert self.socket.recv(4096).startswith(b"HTTP/1.1 101 ")
        join = f'["1","1","realtime:{topic}","phx_join",{payload}]'
        self.socket.sendall(masked(1, join.encode()))
        assert b"phx_reply" in self.socket.recv(4096)

    def read_to_the_end(self) -> int:
        """Reads; the kernel's part comes, then a reset. Returns the bytes."""
        size = 0
        with pytest.raises(ConnectionResetError):
            while data := self.socket.recv(1 << 20):
                size += len(data)
        return size


@pytest.fixture
def stall(server: Server, token: Callable[..., str]) -> Iterator[Callable[..., Stalled]]:
    """`stall(topic)` -> a client that does not read."""
    with ExitStack() as stack:

        def make(topic: str, key: str | None = None, **more: Any) -> Stalled:
            stalled = Stalled(server, topic, key or token(), **more)
            stack.enter_context(stalled.socket)
            return stalled

        yield make


def test_a_flood_of_private_broadcasts_waits_in_bounded_memory(
    client: Callable[..., Client],
    server: Server,
    database: Database,
    user: Callable[[str], str],
    push_frame: Callable[..., bytes],
    stall: Callable[..., Stalled],
    topic: str,
) -> None:
    """The policies do not answer yet; meanwhile the server does not read on."""
    database.grant(topic, "ann", "read broadcast", "write broadcast")
    config = '{"config":{"private":true,"broadcast":{"ack":true}}}'
    one, other = stall(topic, key=user("ann"), payload=config), client()
    before = server.memory_bytes()
    frame = masked(2, push_frame(f"realtime:{topic}", "e", b"x" * 1_000_000, encoding=0, ref="b"))
    with database.connection.transaction():
        database.execute("lock table public.rights in access exclusive mode")
        one.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(50):
                one.socket.sendall(frame)
        assert server.memory_bytes() - before < 30_000_000
        other.heartbeat()
    # It reads on: both acks come.
    one.socket.settimeout(60)
    assert one.socket.recv(4096).count(b"phx_reply")


def test_a_client_that_does_not_read_is_reset_and_disturbs_nobody(
    client: Callable[..., Client],
    server: Server,
    stall: Callable[..., Stalled],
    push_frame: Callable[..., bytes],
    topic: str,
) -> None:
    healthy, sender = client(), client()
    sender.join(topic, {"broadcast": {"ack": True}})
    healthy.join(topic)
    stalled = [stall(topic) for _ in range(4)]
    before = server.memory_bytes()
    for number in range(1200):
        frame = push_frame(f"realtime:{topic}", str(number), b"x" * 10_000, encoding=0, ref="r")
        sender.socket.send(frame)
        assert sender.receive().payload["status"] == "ok"
        assert healthy.receive().payload["event"] == str(number)
    # What waits for the four of them is kept once: they are behind by the same bytes.
    assert server.memory_bytes() - before < 30_000_000
    for one in stalled:
        assert one.read_to_the_end() < 10_000_000


def test_a_client_that_sends_and_never_reads_the_replies_is_reset(
    server: Server, stall: Callable[..., Stalled], topic: str
) -> None:
    one = stall(topic)
    frames = masked(1, b'[null,"1","phoenix","heartbeat",{}]') * 1000
    before = server.memory_bytes()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(1000):
            one.socket.sendall(frames)
    assert server.memory_bytes() - before < 30_000_000


def test_three_hundred_clients_come_and_go_and_leave_nothing(
    client: Callable[..., Client], server: Server, topic: str
) -> None:
    sender = client()
    sender.join(topic, {"broadcast": {"ack": True}})

    def round_trip() -> None:
        one = client()
        one.join(topic)
        sender.broadcast(topic, "e", ref="1")
        assert sender.receive().event == "phx_reply"
        assert one.receive().event == "broadcast"
        one.socket.close()

    for _ in range(20):
        round_trip()
    before = server.memory_bytes()
    for _ in range(300):
        round_trip()
    assert server.memory_bytes() - before < 5_000_000
