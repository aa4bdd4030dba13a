"""What a client cannot settle by itself, and so raises.

    ClientError            any of these
    ├── MessagesMissing    the gap is longer than what is stored; iterate again to go on after it
    ├── ConnectRefused     the server does not take the key, or is none of ours
    ├── JoinRefused        the topic may not be followed, or the cursor cannot be read
    ├── TokenUnavailable   the callable that gives tokens failed
    ├── PayloadUnreadable  a sender's JSON is more than Python reads
    ├── SendRefused        a broadcast was not sent
    └── NotAnswered        it is not known whether a broadcast was sent

What passes by itself is not here: the client tries again.
"""

from __future__ import annotations

from datetime import datetime

from realtime_db.errors import RealtimeDbError


class ClientError(RealtimeDbError):
    """A client cannot do what it was asked to."""


class MessagesMissing(ClientError):
    """Messages of a topic cannot be had any more: mostly, they were dropped by the retention.

    Iterate again to go on with what comes after them.

    Args:
        topic: without `realtime:`.
        before: messages until then may be missing; None if the connection was lost before the
            server had given a cursor.
        cursor: where it goes on; None if the server has not said yet.
    """

    def __init__(self, topic: str, before: datetime | None, cursor: str | None) -> None:
        if before is None:
            text = f"messages to {topic!r} may be missing: there was no cursor to resume with"
        else:
            text = f"messages to {topic!r} before {before.isoformat()} are no longer stored"
        super().__init__(
            text,
            hint="Load the present state from your tables, then iterate again to go on.",
        )
        self.topic = topic
        self.before = before
        self.cursor = cursor


class ConnectRefused(ClientError):
    """A server refused to talk, and would again.

    Args:
        url: that of the server.
        status: of its HTTP answer; None if it did not come so far.
        reason: its text.
    """

    def __init__(self, url: str, status: int | None, reason: str) -> None:
        super().__init__(f"{url} refused the connection: {reason or f'HTTP {status}'}")
        self.url = url
        self.status = status
        self.reason = reason


class JoinRefused(ClientError):
    """A server refused a topic, and would again.

    Args:
        topic: without `realtime:`.
        reason: the server's text, such as `Unauthorized: …`.
    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic!r} cannot be joined: {reason}")
        self.topic = topic
        self.reason = reason


class TokenUnavailable(ClientError):
    """The callable that gives tokens raised an error, which is the cause of this one."""


class PayloadUnreadable(ClientError):
    """The JSON of a message is nested too deeply for Python, or has a number that is too long.

    It came all the same: `Message.raw` has it, and the iteration goes on.

    Args:
        topic: without `realtime:`.
        reason: what `json` says.
    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"the payload of a message to {topic!r} cannot be read: {reason}")
        self.topic = topic
        self.reason = reason


class SendRefused(ClientError):
    """A broadcast was not sent to anybody.

    Args:
        topic: without `realtime:`.
        reason: the server's text.
    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"nothing was sent to {topic!r}: {reason}")
        self.topic = topic
        self.reason = reason


class NotAnswered(ClientError):
    """It is not known whether a broadcast was sent: no answer came.

    Servers say nothing either to who may not write to a private topic.
    """
