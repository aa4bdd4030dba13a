"""A client's WebSocket: the thin shell around `rfc6455`, the framing and the connection.

No task, queue or timer of its own: the loop gives bytes, one wheel looks for idle clients, and the
hub writes into the socket directly. A client that reads too slowly is thrown out (`slow`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final

from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.connection import GOING_AWAY, Connection
from realtime_db.protocol.frames import V1, V2, FieldTooLong, Frame, Framing
from realtime_db.protocol.services import Services
from realtime_db.transports import rfc6455, slow
from realtime_db.wheel import Timer

CLOSE_SECONDS: Final = 5.0
"""How long a client has for its part of the closing handshake."""

_log = logging.getLogger(__name__)


def _bytes(frame: Frame) -> bytes:
    return rfc6455.frame(rfc6455.BINARY if frame.binary else rfc6455.TEXT, frame.data)


class _Wire:
    """What WebSocket clients of a framing speak; one for each framing, shared by all."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def encode(self, message: Broadcast) -> bytes | None:
        try:
            frame = message.encode(self._framing)
        except FieldTooLong as error:
            _log.warning("a message to %s was not sent: %s", message.topic, error)
            return None
        return None if frame is None else _bytes(frame)


WIRES: Final = {V1: _Wire(V1), V2: _Wire(V2)}


class WebSocketProtocol(asyncio.Protocol):
    """One client, after the handshake.

    Args:
        services: of the server.
        framing: what the client asked for.
        key: the token that it connected with, verified.
        headers: the `x-…` headers of its request.
        transport: of its socket.
        clients: holds this client while it is connected.
    """

    __slots__ = (
        "_channels_at", "_clients", "_ending", "_heard_at", "_receiver", "_services", "_tasks",
        "_timer", "_transport", "closed", "connection",
    )  # fmt: skip

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
        self._ending = False
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
            read=self._read,
            drained=self._drained,
        )
        transport.set_write_buffer_limits(high=services.settings.max_write_buffer_bytes)
        clients.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._services.now()
        for opcode, payload in self._receiver.receive(data):
            if opcode == rfc6455.CLOSE:
                if not payload and self._receiver.close_code == rfc6455.TOO_BIG:
                    text = "a WebSocket that sent a larger message was closed"
                    self._services.limits.over("max_frame_bytes", text)
                self._end(self._receiver.outgoing())
            elif self._ending:
                continue
            elif opcode == rfc6455.TEXT:
                self.connection.receive(payload, binary=False)
            elif opcode == rfc6455.BINARY:
                self.connection.receive(payload, binary=True)
        if not self._ending and (pong := self._receiver.outgoing()):
            self._write(pong)

    def eof_received(self) -> None:
        """The client has ended its half: it gets what waits for it, and nothing after that."""
        if not self._ending:
            self._end(b"")
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        self._clients.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.connection.closed()
        if not self.closed.done():
            self.closed.set_result(None)

    # Writing

    def _send(self, frame: Frame) -> None:
        if not self._ending:
            self._write(_bytes(frame))

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self.connection.write(data)

    def pause_writing(self) -> None:
        """The client is too far behind, besides what the kernel holds."""
        self.connection.write_with(
            partial(slow.write_unless_behind, self._transport, self._services)
        )

    def resume_writing(self) -> None:
        self.connection.write_with(self._transport.write)

    async def _drained(self) -> bool:
        return await slow.drained(self._transport, self._services) and not self._ending

    def _read(self, more: bool) -> None:
        if self._transport.is_closing():
            return
        if more:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # The end

    def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake; the client has some seconds for its part."""
        if not self._ending:
            self._end(self._receiver.close(code, reason), half=False)

    def _end(self, close_frame: bytes, *, half: bool = True) -> None:
        """Writes a Close frame, after which nothing may be written.

        Args:
            close_frame: empty if one was sent before.
            half: ends our half of the connection as well. The client's stays open until it closes:
                a socket that is closed before all has been read sends a reset, which may overtake
                the Close frame.
        """
        if self._transport.is_closing():
            return
        self._ending = True
        self.connection.closed()
        if close_frame:
            self._transport.write(close_frame)
        if half and self._transport.can_write_eof():
            self._transport.write_eof()
        elif half:
            self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._services.wheel.schedule(
            self._services.now() + CLOSE_SECONDS, self.reset
        )

    def reset(self) -> None:
        """Ends the connection at once, and lets the kernel forget what waits for it."""
        self._ending = True
        self.connection.closed()
        slow.reset(self._transport)

    # Beside

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
            self.close(GOING_AWAY, "idle")
            return
        self._timer = services.wheel.schedule(due, self._watch)
