"""Ports of this machine that stay ours while nobody listens on them."""

from __future__ import annotations

import socket


def reserve(port: int = 0) -> socket.socket:
    """Holds a port of 127.0.0.1, or any, until it is closed.

    Who asks the system for any port does not get this one; who asks for it, as our servers and
    Postgres do, does. Whoever connects meanwhile is refused.
    """
    holder = socket.socket()
    # Without it on both sides only one could have the port.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return holder
