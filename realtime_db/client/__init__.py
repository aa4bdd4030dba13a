"""An async client that loses nothing: it reconnects, resumes, and removes duplicates.

    async with Client("http://localhost:4000", key) as client:
        async for message in client.subscribe("room:1"):
            print(message.event, message.payload)

Needs the extra `client`. The modules, in the order in which a message passes them: `wire` reads it,
`connection` finds its `channel`, which knows what it has had (`seen`), and `client` hands it out.
"""

from __future__ import annotations

from realtime_db.client.channel import Message
from realtime_db.client.client import Client, Subscription
from realtime_db.client.errors import (
    ClientError,
    ConnectRefused,
    JoinRefused,
    MessagesMissing,
    NotAnswered,
    PayloadUnreadable,
    SendRefused,
    TokenUnavailable,
)

__all__ = [
    "Client",
    "ClientError",
    "ConnectRefused",
    "JoinRefused",
    "Message",
    "MessagesMissing",
    "NotAnswered",
    "PayloadUnreadable",
    "SendRefused",
    "Subscription",
    "TokenUnavailable",
]
