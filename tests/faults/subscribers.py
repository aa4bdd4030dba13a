"""Subscribers that come back: a browser's EventSource, a bare WebSocket, our client.

Each notes all that it got, also what it got twice. None knows anything of the faults around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from realtime_db.client import Client, MessagesMissing, Subscription
from tests.faults.served import token

RETRY_SECONDS: Final = 0.05
CONNECT_SECONDS: Final = 10.0
HEARTBEAT_SECONDS: Final = 0.5
LINE_BYTES: Final = 1 << 24


class Topic(NamedTuple):
    """What to follow."""

    name: str
    private: bool


class Got(NamedTuple):
    """One message as it came.

    Attributes:
        id: its id in the table.
        topic, writer, number: as whoever sent it numbered it.
    """

    id: str
    topic: str
    writer: str
    number: int


class Subscriber:
    """What they have in common.

    Args:
        name: for people.
        ports: of 127.0.0.1, where to connect; the next one each time that it does not work.
        topics: what to follow; all private, or none.

    Attributes:
        got: all that came, in that order.
        gaps: what it was told of messages that are gone.
        connected: how often it was let in; None if it does not say.
        refused: statuses with which it was not.
    """

    once = False  # whether it removes duplicates

    def __init__(self, name: str, ports: Sequence[int], topics: Sequence[Topic]) -> None:
        self.name = name
        self.topics = topics
        self.got: list[Got] = []
        self.gaps: list[Any] = []
        self.connected: int | None = 0
        self.refused: list[int] = []
        self.failures: list[str] = []
        self._ports = itertools.cycle(ports)
        self.port = next(self._ports)

    @property
    def is_ready(self) -> bool:
        """Whether it knows where to go on from, whatever happens now."""
        raise NotImplementedError

    @property
    def where(self) -> str:
        """From where it would go on, for people."""
        raise NotImplementedError

    @property
    def is_exact(self) -> bool:
        """Whether it says of each message that it has come, so that none need come twice."""
        return True

    async def run(self) -> None:
        """Follows the topics, until it is cancelled."""
        while True:
            try:
                await self.session()
            except (OSError, EOFError, TimeoutError, WebSocketException) as error:
                self.failures.append(repr(error))
            self.port = next(self._ports)
            await asyncio.sleep(RETRY_SECONDS)

    async def session(self) -> None:
        """Connects, and follows until the connection ends."""
        raise NotImplementedError

    def take(self, topic: str, broadcast: dict[str, Any]) -> None:
        """Notes a message, if it is one of a writer's."""
        payload = broadcast["payload"]
        if "writer" in payload:
            one = Got(broadcast["meta"]["id"], topic, payload["writer"], payload["number"])
            self.got.append(one)


class EventSource(Subscriber):
    """As the HTML standard has it (9.2, "Server-sent events"), but it waits less in between."""

    last_event_id = ""

    @property
    def is_ready(self) -> bool:
        return bool(self.last_event_id)

    @property
    def is_exact(self) -> bool:
        # Topics are not ordered among each other: it says how far all of them are.
        return len(self.topics) == 1

    @property
    def where(self) -> str:
        return self.last_event_id

    async def session(self) -> None:
        reader, writer = await asyncio.wait_for(self.connect(), CONNECT_SECONDS)
        try:
            query = "".join(f"&topic={quote(one.name, safe='')}" for one in self.topics)
            query += "&private=true" if self.topics[0].private else ""
            resume = f"last-event-id: {self.last_event_id}\r\n" if self.last_event_id else ""
            writer.write(
                f"GET /realtime/v1/sse?apikey={token()}{query} HTTP/1.1\r\nhost: x\r\n{resume}\r\n"
                .encode()
            )  # fmt: skip
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CONNECT_SECONDS)
            status = int(head.split()[1])
            if status != 200:
                # A browser would give up; a proxy in front of several servers tries the next.
                self.refused.append(status)
                return
            self.connected += 1
            await self._read(reader)
        finally:
            writer.transport.abort()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=LINE_BYTES)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        identifier, kind, data = self.last_event_id, "", []
        # A line without its end is the end: the event that it belongs to does not count.
        while (line := (await reader.readline()).decode()).endswith("\n"):
            field, _, value = line.rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if field == "id" and "\0" not in value:
                identifier = value
            elif field == "event":
                kind = value
            elif field == "data":
                data.append(value)
            elif line == "\n":
                self.last_event_id = identifier
                if data:
                    self._dispatch(kind, json.loads("\n".join(data)))
                kind, data = "", []

    def _dispatch(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "gap":
            self.gaps.append(data["before"])
        else:
            self.take(data["topic"], data)


class WebSocket(Subscriber):
    """Version 2 of the protocol, a channel for each topic, which resumes with `replay.cursor`."""

    def __init__(self, name: str, ports: Sequence[int], topics: Sequence[Topic]) -> None:
        super().__init__(name, ports, topics)
        self.cursors: dict[str, str] = {}
        # Channels that are being sent what they missed: where the server is by now says nothing
        # about them.
        self._behind: set[str] = set()

    @property
    def is_ready(self) -> bool:
        return all(one.name in self.cursors for one in self.topics)

    @property
    def where(self) -> str:
        return str(self.cursors)

    async def session(self) -> None:
        self._behind = {one.name for one in self.topics}
        address = f"ws://127.0.0.1:{self.port}/realtime/v1/websocket?vsn=2.0.0&apikey={token()}"
        try:
            socket = await connect(
                address, ping_interval=None, max_size=None, open_timeout=CONNECT_SECONDS,
                close_timeout=1, compression=None, proxy=None,
            )  # fmt: skip
        except InvalidHandshake as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            self.refused.append(status)
            return
        self.connected += 1
        heartbeats = asyncio.create_task(self._beat(socket))
        try:
            for one in self.topics:
                await self._join(socket, one)
            async for frame in socket:
                self._receive(frame)
        finally:
            heartbeats.cancel()
            socket.transport.abort()

    async def _join(self, socket: ClientConnection, one: Topic) -> None:
        broadcast: dict[str, Any] = {"self": True}
        if one.name in self.cursors:
            broadcast["replay"] = {"cursor": self.cursors[one.name]}
        payload = {"config": {"private": one.private, "broadcast": broadcast}}
        await self._send(socket, one.name, f"realtime:{one.name}", "phx_join", payload)

    async def _beat(self, socket: ClientConnection) -> None:
        with contextlib.suppress(WebSocketException, OSError):
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                await self._send(socket, None, "phoenix", "heartbeat", {"cursor": True})

    async def _send(
        self, socket: ClientConnection, join_ref: str | None, topic: str, event: str, payload: Any
    ) -> None:
        await socket.send(json.dumps([join_ref, join_ref or "beat", topic, event, payload]))

    def _receive(self, raw: str | bytes) -> None:
        if isinstance(raw, bytes):
            sizes, at, fields = raw[1:4], 5, []
            for size in sizes:
                fields.append(raw[at : at + size].decode())
                at += size
            if raw[0] == 4 and fields[2]:
                content = {"payload": json.loads(raw[at:]), "meta": json.loads(fields[2])}
                self._message(fields[0], content)
            return
        _, ref, topic, event, payload = json.loads(raw)
        if topic == "phoenix":
            self._move(payload["response"].get("cursor"))
        elif event == "phx_reply":
            if payload["status"] != "ok":
                raise ConnectionError(f"join {ref}: {payload['response']['reason']}")
            self._joined(topic, payload["response"])
        elif event == "broadcast":
            self._message(topic, payload)
        elif event in ("phx_error", "phx_close"):
            # A library would join again; to connect again does as well.
            raise ConnectionError(f"{event} of {ref}")

    def _joined(self, topic: str, response: dict[str, Any]) -> None:
        name = topic.removeprefix("realtime:")
        if "gap" in response:
            self.gaps.append(response["gap"])
        cursor = response.get("cursor")
        if cursor != self.cursors.get(name) or cursor is None:
            # It came for the first time, or has missed nothing.
            self._behind.discard(name)
            if cursor is not None:  # or the server has not asked its database yet
                self.cursors[name] = cursor

    def _message(self, topic: str, broadcast: dict[str, Any]) -> None:
        name = topic.removeprefix("realtime:")
        self.take(name, broadcast)
        if cursor := broadcast["meta"].get("cursor"):
            self._behind.discard(name)
            self.cursors[name] = cursor

    def _move(self, cursor: str | None) -> None:
        if cursor:
            for one in self.topics:
                if one.name not in self._behind:
                    self.cursors[one.name] = cursor


class Library(Subscriber):
    """The client of realtime-db, which promises each message once."""

    once = True

    def __init__(self, name: str, ports: Sequence[int], topics: Sequence[Topic]) -> None:
        super().__init__(name, ports, topics)
        self.connected = None
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._subscriptions: list[Subscription] = []

    @property
    def is_ready(self) -> bool:
        have = [one.cursor for one in self._subscriptions]
        return len(have) == len(self.topics) and all(have)

    @property
    def where(self) -> str:
        return str({one.topic: one.cursor for one in self._subscriptions})

    async def run(self) -> None:
        async with Client(self._urls, token(), heartbeat_seconds=HEARTBEAT_SECONDS) as client:
            self._subscriptions = [
                client.subscribe(one.name, private=one.private) for one in self.topics
            ]
            await asyncio.gather(*map(self._follow, self._subscriptions))

    async def _follow(self, subscription: Subscription) -> None:
        while True:
            try:
                async for message in subscription:
                    meta = {"id": message.id}
                    self.take(message.topic, {"payload": message.payload, "meta": meta})
            except MessagesMissing as missing:
                self.gaps.append(missing.before)
            except Exception as error:
                self.failures.append(repr(error))
                raise


class Stalled(EventSource):
    """Reads until it falls asleep, or comes asleep."""

    is_asleep = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raw = socket.socket()
        # The kernel would take megabytes for it.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=LINE_BYTES)
        transport: Any = writer.transport
        self.sleep = partial(loop.call_soon_threadsafe, transport.pause_reading)
        self.wake = partial(loop.call_soon_threadsafe, transport.resume_reading)
        if self.is_asleep:
            transport.pause_reading()
        return reader, writer
