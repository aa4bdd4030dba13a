"""A client's WebSocket: the thin shell around `rfc6455`, the framing and the connection.

No task, queue or timer of its own: the loop gives bytes, one wheel looks for idle clients, and the
hub writes into the socket directly. A client that reads too slowly is thrown out with a reset: what
it has not taken by then, one megabyte, would only grow, and it comes back and asks for a replay.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.connection import Connection, Services
from realtime_db.protocol.frames import V1, V2, Frame, Framing
from realtime_db.transports import rfc6455
from realtime_db.wheel import Timer

CLOSE_SECONDS: Final = 5.0
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def _bytes(frame: Frame) -> bytes:
    return rfc6455.frame(rfc6455.BINARY if frame.binary else rfc6455.TEXT, frame.data)


class _Wire:
    """What WebSocket clients of a framing speak; one for each framing, shared by all."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def encode(self, message: Broadcast) -> bytes | None:
        frame = message.encode(self._framing)
        return None if frame is None else _bytes(frame)


WIRES: Final = {V1: _Wire(V1), V2: _Wire(V2)}


class WebSocketProtocol(asyncio.Protocol):
    """One client, after the handshake.

    Args:
        services: of the server.
        framing: what the client asked for.
        key: the token that it connected with, verified.
        headers: the `x-…` headers of its request.
        clients: holds this client while it is connected.
    """

    def __init__(
        self,
        services: Services,
        framing: Framing,
        key: str,
        headers: Mapping[str, str],
        *,
        transport: asyncio.Transport,
        clients: set[WebSocketProtocol],
    ) -> None:
        self._services = services
        self._transport = transport
        self._clients = clients
        self._receiver = rfc6455.Receiver(max_message_bytes=services.settings.max_frame_bytes)
        self._heard_at = self._channels_at = services.now()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._closing = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = Connection(
            services,
            framing,
            key,
            headers,
            wire=WIRES[framing],
            write=transport.write,
            send=self._send,
            start=self._start,
            close=self.close,
        )
        transport.set_write_buffer_limits(high=services.settings.max_write_buffer_bytes)
        clients.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._services.now()
        receive = self.connection.receive
        for opcode, payload in self._receiver.receive(data):
            if opcode == rfc6455.TEXT:
                receive(payload, binary=False)
            elif opcode == rfc6455.BINARY:
                receive(payload, binary=True)
            elif opcode == rfc6455.CLOSE:
                self._closing = True
        outgoing = self._receiver.outgoing()
        if outgoing and not self._transport.is_closing():
            self._transport.write(outgoing)
        if self._closing:
            self._transport.close()

    def eof_received(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        self.closed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.connection.closed()

    def pause_writing(self) -> None:
        """The client is a megabyte behind, besides what the kernel holds."""
        self._services.slow_clients += 1
        self._services.log.warning("a slow client was thrown out: its buffer is full")
        self.reset()

    def reset(self) -> None:
        """Ends the connection at once, and lets the kernel forget what waits for it."""
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._transport.abort()

    def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake; the client has some seconds for its part."""
        if self._transport.is_closing():
            return
        self._transport.write(self._receiver.close(code, reason))
        self._services.wheel.schedule(self._services.now() + CLOSE_SECONDS, self._transport.close)

    def _send(self, frame: Frame) -> None:
        if not self._transport.is_closing():
            self._transport.write(_bytes(frame))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._services.log.error("a channel's question failed", exc_info=error)
            self.close(1011, "internal error")

    def _watch(self) -> None:
        """Closes a client that says nothing, or joins nothing (PROTOCOL 4, "Idle")."""
        services, settings = self._services, self._services.settings
        now = services.now()
        if self.connection.channels:
            self._channels_at = now
        due = min(
            self._heard_at + settings.idle_seconds, self._channels_at + settings.no_channel_seconds
        )
        if due <= now:
            self.close(1000)
            return
        self._timer = services.wheel.schedule(due, self._watch)
