"""What every long connection does with a client that reads too slowly: it is thrown out.

What it has not taken by then would only grow. It gets a reset, comes back, and asks for what it
missed. One message may be larger than the limit, so it is the next one that finds the client too
far behind: from `pause_writing` until `resume_writing`, write through `write_unless_behind`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from realtime_db.protocol.services import Services

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def write_unless_behind(transport: asyncio.Transport, services: Services, data: bytes) -> None:
    """Writes to a client, or throws it out."""
    if transport.is_closing():
        return
    if transport.get_write_buffer_size() <= services.settings.max_write_buffer_bytes:
        transport.write(data)
        return
    services.slow_clients += 1
    services.log.warning("a slow client was thrown out: its buffer is full")
    reset(transport)


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection at once, and lets the kernel forget what waits for its client."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()
