"""The fuzz targets: each takes any bytes, and fails by an exception if the code under it is wrong.

The first bytes say how: in what chunks the rest comes, which settings count. All that a target
does depends on its bytes alone, so that an input that failed once fails again.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Final
from unittest.mock import patch

from websockets.exceptions import ConnectionClosedOK

from realtime_db.auth.tokens import Claims, KeySet, TokenError, verify
from realtime_db.client import ClientError, PayloadUnreadable
from realtime_db.client import Message as ClientMessage
from realtime_db.client.channel import Channel
from realtime_db.client.connection import Connection as ClientConnection
from realtime_db.client.tokens import Tokens
from realtime_db.client.wire import body
from realtime_db.cursors import MAX_BYTES, Cursor, InvalidCursor
from realtime_db.errors import DecodeError
from realtime_db.health import Health, Watch
from realtime_db.metrics import DatabaseCounts
from realtime_db.protocol.connection import Connection
from realtime_db.protocol.frames import V1, V2, Frame
from realtime_db.protocol.join import Join, parse_join
from realtime_db.protocol.pushes import MalformedFrame, Push
from realtime_db.transports import rfc6455, slow
from realtime_db.transports.application import Application
from realtime_db.transports.http import HttpProtocol, Request, Response
from realtime_db.transports.rest import Batch, Rates, Single
from realtime_db.transports.sse import EVENTS, EventStream
from realtime_db.transports.websocket import WIRES, WebSocketProtocol
from realtime_db.wal.pgoutput import Begin, Commit, Decoder, Message
from realtime_db.wal.session import Session
from tests.fuzz import checks
from tests.fuzz.world import LIMITS, NOW, Socket, World, no_errors, stored

_REFUSALS: Final = (400, 408, 413, 431, 505)

MAX_SECONDS: Final = 1_000
"""After so long without a word from the client, no connection is open."""


def chunks(seed: int, data: bytes) -> Iterator[bytes]:
    """Cuts bytes: 0 not at all, 1 into single ones, the others into pieces of all sizes."""
    if seed == 0:
        yield data
        return
    at = 0
    while at < len(data):
        seed = (seed * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        size = 1 if seed == 1 else 1 + (seed >> 16) % (4 << (seed >> 24) % 8)
        yield data[at : at + size]
        at += size


# A whole connection, from the first byte of HTTP to its end


@cache
def _server(private_only: bool) -> tuple[World, Application]:
    world = World(private_only=private_only)
    return world, Application(world.services)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _look(self: Watch) -> Health:
    await asyncio.sleep(0)
    return Health("down", DatabaseCounts())


def connection(data: bytes) -> None:
    """What a client sends on one connection, whatever it becomes.

    `[chunks, how, bytes…]`: of how, 1 is a slow client, 2 TLS, 4 a client that stays silent at the
    end instead of going away, 8 a server for private topics only, 16 that it follows the WAL.
    """
    if len(data) < 2:
        return
    cut, how, sent = data[0], data[1], data[2:]
    world, application = _server(bool(how & 8))
    # A client is behind with little, and a pause is one turn of the loop.
    waits = patch.multiple(slow, DRAINED_BYTES=500, _PAUSES_SECONDS=(0.0,))
    with patch.object(Watch, "look", _look), waits, no_errors():
        answers = [
            _loop().run_until_complete(
                _converse(world, application, [p for p in chunks(seed, sent) if p], how)
            )
            for seed in {0, cut}
        ]
    fewer, more = sorted((answers[0], answers[-1]), key=len)
    # What is no request gets an answer too, unless one before it is still on its way.
    assert fewer == more or [*fewer, more[-1]] == more, "chunks change what is answered"
    assert fewer == more or more[-1] in _REFUSALS


async def _converse(
    world: World, application: Application, pieces: list[bytes], how: int
) -> list[int]:
    """What one client gets: the statuses of the answers to its requests."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    world.begin()
    if how & 16:
        world.follow()
    connections: set[HttpProtocol] = set()
    limit = LIMITS["max_body_bytes"]
    first = HttpProtocol(
        application,
        wheel=world.services.wheel,
        now=lambda: world.now,
        max_body_bytes=limit,
        connections=connections,
    )
    socket = Socket(loop, slow=bool(how & 1), half=not how & 2)
    socket.protocol = first
    first.connection_made(socket)  # type: ignore[arg-type]
    for piece in pieces:
        for _ in range(10):
            if socket.reading or socket.lost:
                break
            await asyncio.sleep(0)
            world.store()
            world.flush()
            socket.drain()
        if socket.lost:
            break
        if socket.reading:
            socket.protocol.data_received(piece)
        world.flush()
    for _ in range(20):
        await asyncio.sleep(0)
        world.store()
        world.flush()
        socket.drain()
    for one in world.revoked():
        await one.check_again()
    if not how & 4 and not socket.lost and not socket.protocol.eof_received():
        socket.close()
    for _ in range(MAX_SECONDS // 5):
        await asyncio.sleep(0)
        if socket.lost or isinstance(socket.protocol, EventStream):
            break
        world.pass_time(5)
        world.flush()
    if isinstance(socket.protocol, EventStream):
        socket.close()
        await asyncio.sleep(0)
    assert socket.lost, "a connection without an end"
    for _ in range(10):
        await asyncio.sleep(0)
    world.store()
    world.flush()
    assert asyncio.all_tasks() <= tasks, "a task is left"
    assert not connections, "a connection is left"
    assert not application.clients, "a client is left"
    assert not application.streams, "a stream is left"
    world.check_empty()
    return [status for status in _answers(socket) if status != 100]


def _answers(socket: Socket) -> Iterator[int]:
    for at, data in enumerate(socket.writes):
        status = checks.response(data)
        yield status
        later = b"".join(socket.writes[at + 1 :])
        if isinstance(socket.protocol, WebSocketProtocol) and status == 101:
            checks.server_frames(later, socket.protocol.connection.framing)
            return
        if isinstance(socket.protocol, EventStream) and b"text/event-stream" in data:
            checks.events(data.partition(b"\r\n\r\n")[2] + later)
            return
        assert status != 101


# The frames of WebSocket


def websocket(data: bytes) -> None:
    """`[chunks, closes, bytes…]`: any bytes of a client; chunks change nothing.

    If closes is not 0, the server begins to close after that many bytes.
    """
    if len(data) < 2:
        return
    cut, closes, sent = data[0], data[1], data[2:]
    head, tail = (sent[:closes], sent[closes:]) if closes else (sent, b"")
    results = []
    for seed in (0, 1, cut):
        receiver = rfc6455.Receiver(max_message_bytes=1_000)
        events = [event for piece in chunks(seed, head) for event in receiver.receive(piece)]
        if closes:
            receiver.close(1000, "bye")
            later = [event for piece in chunks(seed, tail) for event in receiver.receive(piece)]
            assert {opcode for opcode, _ in later} <= {rfc6455.CLOSE}
            events += later
        outgoing = receiver.outgoing()
        opcodes = checks.server_frames(outgoing, V2)
        results.append((events, receiver.close_code, receiver.close_reason, outgoing))
    assert results[0] == results[1] == results[2], "chunks change what is heard"
    events, code, _, outgoing = results[0]
    for opcode, payload in events:
        assert opcode in (rfc6455.TEXT, rfc6455.BINARY, rfc6455.PING, rfc6455.PONG, rfc6455.CLOSE)
        assert len(payload) <= (125 if opcode & 8 else 1_000)
        if opcode == rfc6455.TEXT:
            payload.decode()
    closed = [at for at, (opcode, _) in enumerate(events) if opcode == rfc6455.CLOSE]
    assert closed in ([], [len(events) - 1])
    assert bool(closed) == (code is not None)
    assert closes or bool(closed) == (opcodes[-1:] == [rfc6455.CLOSE])


# What is in them


def frames(data: bytes) -> None:
    """`[how, bytes…]`: one message of a client; of how, 1 is V2, 2 is a binary one."""
    if not data:
        return
    framing, binary, sent = V2 if data[0] & 1 else V1, bool(data[0] & 2), data[1:]
    if not binary and not _is_utf8(sent):
        return  # the layer below refuses it
    try:
        push = framing.decode(sent, binary=binary)
    except MalformedFrame:
        return
    assert type(push) is Push
    for text in (push.join_ref, push.ref, push.topic, push.event, push.user_event):
        assert text is None or text.encode() is not None
    if push.binary:
        assert isinstance(push.payload, bytes)
        return
    value = checks.json_value(push.payload)
    for speaker in (V1, V2):
        frame = speaker.text(push.topic, push.event, push.payload, join_ref="1", ref=push.ref)
        again = checks.frame(frame, speaker)
        assert again[4] in (value, None) or value is None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Client:
    """A connection without a transport, whose questions are answered step by step."""

    def __init__(self, world: World, how: int) -> None:
        self.framing = V2 if how & 1 else V1
        self.ended = False
        self.reading = True
        self._running: list[Coroutine[Any, Any, None]] = []
        self.connection = Connection(
            world.services,
            self.framing,
            "key",
            {},
            wire=WIRES[self.framing],
            write=self._written,
            send=self._sent,
            start=self._running.append,
            close=self._close,
            read=self._read,
            drained=self._drained,
        )

    def _sent(self, frame: Frame) -> None:
        assert not self.ended, "a frame after the end"
        checks.frame(frame, self.framing)

    def _written(self, data: bytes) -> None:
        assert not self.ended, "a write after the end"
        checks.server_frames(data, self.framing)

    def _close(self, code: int, reason: str) -> None:
        assert code in (1001, 1011, 1012)
        self.end()

    def _read(self, more: bool) -> None:
        self.reading = more

    async def _drained(self) -> bool:
        await asyncio.sleep(0)
        return not self.ended

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Answers its questions, too."""
        self._running.append(coroutine)

    def end(self) -> None:
        if not self.ended:
            self.connection.closed()
            self.ended = True

    def step(self) -> None:
        """Runs every question until it waits, or ends."""
        running, self._running[:] = list(self._running), []
        for one in running:
            with suppress(StopIteration):
                one.send(None)
                self._running.append(one)

    def settle(self) -> None:
        """Answers all questions."""
        while self._running:
            self.step()


@cache
def _small_world(how: int) -> World:
    more: dict[str, Any] = {"private_only": bool(how & 2)}
    if how & 4:
        more |= {"max_messages_per_second": 0, "max_joins_per_second": 0}
    return World(**more)


def session(data: bytes) -> None:
    """`[how, steps…]`: what one client does, and what happens meanwhile.

    Steps are separated by 0x1e. `t…` and `b…` are a text and a binary message of the client, `.`
    answers one question, `,` all of them, `+` and `*` let 10 and 400 seconds pass, `d` brings
    messages from the database, `s` stores what is to be stored, `r` is that the WAL is followed,
    `v` that rights were revoked, `k` that keys were changed, `q` that the server ends.
    """
    if not data:
        return
    world = _small_world(data[0] & 6)
    with no_errors():
        world.begin()
        client = _Client(world, data[0])
        for step in data[1:].split(b"\x1e"):
            if client.ended:
                break
            _do(world, client, step)
        for _ in range(3):
            client.settle()
            world.store()
            world.flush()
        client.end()
        client.settle()
        world.store()
        world.flush()
        assert client.reading, "a client that is not read from"
        world.check_empty()


def _do(world: World, client: _Client, step: bytes) -> None:
    services = world.services
    match step[:1]:
        case b"t" if _is_utf8(step):
            client.connection.receive(step[1:], binary=False)
        case b"b":
            client.connection.receive(step[1:], binary=True)
        case b".":
            client.step()
        case b",":
            client.settle()
            world.flush()
        case b"+":
            world.pass_time(10)
        case b"*":
            world.pass_time(400)
        case b"d":
            for channel in list(client.connection.channels.values()):
                for message in stored(channel.topic, 8):
                    services.hub.publish(channel.topic_key, message)
        case b"s":
            world.store()
        case b"r" if services.replicating:
            services.replicating = False
        case b"r":
            world.follow()
        case b"v":
            for one in world.revoked():
                client.start(one.check_again())
        case b"k":
            client.connection.keys_changed()
        case b"q":
            services.restarting = True
            client.connection.disconnect_requested()


def join(data: bytes) -> None:
    """The payload of a join."""
    try:
        found = parse_join(data, max_replay=25)
    except MalformedFrame:
        return
    assert type(found) is Join
    flags = (found.private, found.broadcast_ack, found.broadcast_self, found.replication_ready)
    assert {type(flag) for flag in (*flags, found.presence_enabled)} == {bool}
    if found.replay is not None:
        assert found.private
        assert found.replay_refusal is None
        assert 1 <= found.replay.limit <= 25
        assert -62_135_596_800_000 <= found.replay.since_ms < 253_402_300_800_000
    for text in (found.presence_key, found.access_token):
        assert text is None or text.encode() is not None
    assert found.presence_key != ""
    assert all(type(change) is dict for change in found.postgres_changes)


def token(data: bytes) -> None:
    """A token, whoever made it."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        claims = verify(text, _keys(), NOW)
    except TokenError as error:
        for said in (error.join, error.close, error.handshake):
            said.encode()
        return
    assert type(claims) is Claims
    assert claims.exp > NOW
    claims.role.encode()
    claims.json.encode()


@cache
def _keys() -> KeySet:
    # The empty signature is good for nobody; a weak secret is, so that the fuzzer may find it.
    return KeySet(["secret"])


# REST


@cache
def _rest() -> tuple[Batch, Single]:
    world = World()
    rates = Rates(world.services)
    return Batch(world.services, rates), Single(world.services, rates)


def rest(data: bytes) -> None:
    """`[how, path, 0, content type, 0, body…]`: of how, 1 is one message instead of many."""
    if not data:
        return
    batch, single = _rest()
    path, content_type, body = b"x", b"", data[1:]
    if data[0] & 1:
        path, _, body = body.partition(b"\x00")
        content_type, _, body = body.partition(b"\x00")
    headers = {"content-type": content_type.decode("utf-8", "replace")} if content_type else {}
    path_text = f"/api/broadcast/{path.replace(b'/', b'').decode('latin-1')}/events/" + "e"
    if data[0] & 2:
        path_text = f"/api/broadcast/t/events/{path.replace(b'/', b'').decode('latin-1')}"
    lists = {"private": ["true"]} if data[0] & 4 else {}
    if (data[0] & 1) and not path:
        return
    request = Request("POST", path_text, lists, headers, "1.1", body)
    with no_errors():
        found = (single if data[0] & 1 else batch).read(request)
    if isinstance(found, Response):
        assert found.status in (400, 415, 422)
        checks.json_value(found.body)
        return
    for (topic, private), message in found:
        assert type(private) is bool
        assert message.topic == f"realtime:{topic}"
        for framing, wire in WIRES.items():
            encoded = wire.encode(message)
            assert encoded is not None or (message.binary and framing is V1)
            checks.server_frames(encoded or b"", framing)
        checks.events(EVENTS.encode(message) or b"")


# The WAL


def pgoutput(data: bytes) -> None:
    """Messages of pgoutput, each behind its length in two bytes."""
    decoder = Decoder()
    for message in _messages(data):
        before = decoder.in_transaction
        try:
            event = decoder.decode(b"head" + message, 4)
        except DecodeError as error:
            str(error).encode()
            continue
        match event:
            case Begin():
                assert not before
                assert decoder.in_transaction
            case Commit():
                assert before
                assert not decoder.in_transaction
            case Message():
                assert before
                assert type(event.topic) is type(event.event) is type(event.id) is str
                assert event.payload is not None or event.binary_payload is not None
                assert type(event.private) is bool


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


_STEP: Final = struct.Struct(">cQ")


def wal_session(data: bytes) -> None:
    """Steps of nine bytes, `[kind, position]`: `c` and `m` are commits, `a` acknowledges, `k` is a
    keepalive; `f` is a frame of any bytes, as many as its position says, modulo 32.
    """
    now = 0.0
    positions = Session(start_lsn=100, now=now)
    received = acknowledged = 100
    at = 0
    while at + _STEP.size <= len(data):
        kind, lsn = _STEP.unpack_from(data, at)
        at += _STEP.size
        now += 1
        match kind:
            case b"c" | b"m":
                positions.transaction_received(lsn, has_messages=kind == b"m")
            case b"a":
                positions.acknowledge(lsn)
            case b"k":
                frame = struct.pack(">cQqB", b"k", lsn, 0, lsn & 1)
                positions.keepalive(frame, now=now, in_transaction=bool(lsn & 2))
                assert not lsn & 1 or positions.status_due(now)
            case b"f":
                frame = data[at : at + lsn % 32]
                at += lsn % 32
                try:
                    positions.keepalive(frame, now=now, in_transaction=False)
                except DecodeError:
                    pass
                else:
                    assert len(frame) == 18
                    assert frame[:1] == b"k"
        assert positions.received_lsn >= received, "received goes back"
        assert positions.acknowledged_lsn >= acknowledged, "acknowledged goes back"
        received, acknowledged = positions.received_lsn, positions.acknowledged_lsn
        assert acknowledged <= received, "more is acknowledged than was received"
        assert len(positions.status(now=now, clock=NOW)) == 34


# The client


class _Served:
    """The socket of a client: what the server sends, and then it is gone."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = iter(messages)
        self.transport = self
        self.aborted = False

    async def recv(self, *, decode: bool) -> bytes:
        for _ in range(5):  # whoever has got an answer goes first
            await asyncio.sleep(0)
        for message in self._messages:
            return message
        raise ConnectionClosedOK(None, None)

    async def send(self, data: str | bytes) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def client(data: bytes) -> None:
    """`[how, messages…]`: what a server sends to a client of ours.

    Messages are separated by 0x1e. The client joins `realtime:room` with the ref 1 and then sends
    something with the ref 2; of how, 1 is that it resumes, 2 that it wants what it sends.
    """
    if data:
        with no_errors():
            _loop().run_until_complete(_serve(data[0], data[1:].split(b"\x1e")))


async def _serve(how: int, messages: list[bytes]) -> None:
    socket: Any = _Served(messages)
    channel = Channel("room", cursor="before" if how & 1 else None, own=bool(how & 2))
    channels = {channel.full_topic: channel}
    joined = ClientConnection(
        socket,
        channels,
        Tokens("token"),
        heartbeat_seconds=20,
        given_up=lambda one: channels.pop(one.full_topic),
    )

    async def send() -> None:
        await channel.settled.wait()
        with suppress(ClientError):
            id = await joined.push(channel, "e", body({}), True)
            assert id is None or id.encode() is not None

    sending = asyncio.get_running_loop().create_task(send())
    await joined.run()
    assert not socket.aborted, "the client gave up a connection that was there"
    if not channel.settled.is_set():
        sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    while (item := channel.take()) is not None:
        str(item).encode()
        if isinstance(item, ClientMessage):
            assert type(item.event) is str
            with suppress(PayloadUnreadable):
                assert item.payload is not None or not item.binary
    assert channel.handed is None or type(channel.handed) is str


# Cursors


def cursor(data: bytes) -> None:
    """The text of a cursor, as a client sends it back."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = Cursor.parse(text)
    except InvalidCursor:
        return
    written = str(found)
    assert len(written) <= MAX_BYTES
    assert written.isascii()
    assert Cursor.parse(written) == found
    assert "".join(written.split()) == written


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "connection": connection,
    "websocket": websocket,
    "frames": frames,
    "session": session,
    "join": join,
    "token": token,
    "rest": rest,
    "pgoutput": pgoutput,
    "wal_session": wal_session,
    "client": client,
    "cursor": cursor,
}
