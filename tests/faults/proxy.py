"""A network that can be told to fail: it stands between a client and a server on this machine.

Down is from the server to the client, up the other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from tests.faults.background import Background

DOWN, UP = "down", "up"
BOTH = (DOWN, UP)

_LINGER_RESET = struct.pack("ii", 1, 0)


class _Link:
    """One connection through the proxy.

    Attributes:
        left: how many bytes may still pass in a direction before it is closed, if that is limited.
        flowing: whether bytes pass in a direction.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.left: dict[str, int | None] = {DOWN: None, UP: None}
        self.flowing = {direction: asyncio.Event() for direction in BOTH}

    def reset(self) -> None:
        """Ends it as a crash does, without a word of TCP's good manners."""
        for writer in (self.client, self.server):
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            writer.transport.abort()


class Proxy:
    """Forwards 127.0.0.1:`port` to another port of this machine, until told otherwise.

    Attributes:
        port: where it listens.
        accepted: how many connections it has forwarded.
    """

    def __init__(self, background: Background, target_port: int) -> None:
        self._background = background
        self._target_port = target_port
        self._links: set[_Link] = set()
        self._refusing = False
        self._stalled: set[str] = set()
        self._down_bytes: int | None = None
        self.accepted = 0
        self._server = background.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            self._reset_all()

        self._background.call(close())

    # What a test tells it

    def stall(self, *directions: str) -> None:
        """Keeps all connections, also new ones, and lets nothing through; both ways if not told."""
        self._tell(lambda: self._stall(directions or BOTH))

    def cut(self) -> None:
        """Resets all connections; new ones are forwarded."""
        self._tell(self._reset_all)

    def refuse(self) -> None:
        """Resets all connections, and new ones at once."""

        def refuse() -> None:
            self._refusing = True
            self._reset_all()

        self._tell(refuse)

    def truncate(self, direction: str, after_bytes: int) -> None:
        """Closes each connection that is open after so many more bytes, whatever they are."""

        def truncate() -> None:
            for link in self._links:
                link.left[direction] = after_bytes

        self._tell(truncate)

    def heal(self, *, forget: bool = False, down_bytes: int | None = None) -> None:
        """Forwards again.

        Args:
            forget: only new connections; those that were stalled stay so for ever, and nobody is
                told, as behind a firewall that was started again.
            down_bytes: what a new connection lasts for.
        """

        def heal() -> None:
            self._down_bytes = down_bytes
            self._refusing = False
            self._stalled.clear()
            for link in () if forget else self._links:
                for event in link.flowing.values():
                    event.set()

        self._tell(heal)

    # How it does it

    def _tell(self, action: Any) -> None:
        async def act() -> None:
            action()

        self._background.call(act())

    def _stall(self, directions: tuple[str, ...]) -> None:
        self._stalled.update(directions)
        for link in self._links:
            for direction in directions:
                link.flowing[direction].clear()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _Link(writer, writer).reset()
            return
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except (OSError, asyncio.CancelledError):
            _Link(writer, writer).reset()
            return
        link = _Link(writer, server)
        if self._refusing:  # since this one came
            link.reset()
            return
        link.left[DOWN] = self._down_bytes
        for direction in set(BOTH) - self._stalled:
            link.flowing[direction].set()
        self._links.add(link)
        self.accepted += 1
        try:
            await asyncio.gather(
                self._pump(link, UP, reader, server), self._pump(link, DOWN, answers, writer)
            )
        except asyncio.CancelledError:  # the end of the test, which asyncio would print
            for one in (writer, server):
                one.transport.abort()
        finally:
            self._links.discard(link)
            for one in (writer, server):
                one.close()

    async def _pump(
        self, link: _Link, direction: str, reader: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await link.flowing[direction].wait()
                left = link.left[direction]
                if left is not None:
                    data = data[:left]
                    link.left[direction] = left - len(data)
                to.write(data)
                await to.drain()
                if left is not None and len(data) == left:
                    link.client.close()
                    link.server.close()
                    return
            if to.can_write_eof():
                to.write_eof()
