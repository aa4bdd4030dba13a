"""Parts of a server, put together without any I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from realtime_db.hub import Hub
from realtime_db.protocol.services import Services
from realtime_db.settings import Settings
from realtime_db.wal.pgoutput import Message
from realtime_db.wheel import Wheel

KEY = "room", False

_NOBODY: Any = None


def services(
    call_soon: Callable[[Callable[[], None]], object] = lambda call: call(), **settings: Any
) -> Services:
    """Of a server without a database."""
    stored: Any = SimpleNamespace(polls=None)
    return Services(
        settings=Settings(database_url="", **settings),
        hub=Hub(call_soon),
        keys=_NOBODY,
        policies=_NOBODY,
        stored=stored,
        wheel=Wheel(0.0),
        now=lambda: 0.0,
        log=logging.getLogger(),
    )


def message(transaction_id: int, position: int) -> Message:
    """One to `KEY`; its id is `transaction_id-position`."""
    return Message(
        *("room", "e", b"1", False),
        f"{transaction_id}-{position}",
        *("", None, transaction_id, position, 10 * transaction_id),
    )
