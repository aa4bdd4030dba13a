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

DRAINED_BYTES: Final = 16_384
DRAIN_SECONDS: Final = 30.0
"""How long a client has to take one page of what is stored: 9 kB a second, at least."""

_PAUSES_SECONDS: Final = (0.0, 0.001, 0.005, 0.02, 0.05)
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def write_unless_behind(transport: asyncio.Transport, services: Services, data: bytes) -> None:
    """Writes to a client, or throws it out."""
    if transport.is_closing():
        return
    if transport.get_write_buffer_size() <= services.settings.max_write_buffer_bytes:
        transport.write(data)
        return
    text = "a slow client was thrown out: its buffer is full"
    services.limits.over("max_write_buffer_bytes", text)
    reset(transport)


async def drained(transport: asyncio.Transport, services: Services) -> bool:
    """Waits until a client has taken nearly all that was written; false if it is gone.

    One that does not in time is thrown out: what is read for it from the database must not wait
    for it here, nor the database for long.
    """
    give_up_at = services.now() + DRAIN_SECONDS
    pauses = iter(_PAUSES_SECONDS)
    while transport.get_write_buffer_size() > DRAINED_BYTES and not transport.is_closing():
        if services.now() >= give_up_at:
            text = "a slow client was thrown out: it did not take what is stored"
            services.limits.over("max_write_buffer_bytes", text)
            reset(transport)
            break
        await asyncio.sleep(next(pauses, _PAUSES_SECONDS[-1]))
    return not transport.is_closing()


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection at once, and lets the kernel forget what waits for its client."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()
