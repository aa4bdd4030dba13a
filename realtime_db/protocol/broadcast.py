"""One broadcast on its way to subscribers, before anybody's framing. No I/O here.

Above are those who publish: channels, REST, the reader of the WAL. Below is the hub, which encodes
it once for each framing. Which frame a message goes out in depends on where it came from
(PROTOCOL 3, "Which messages use which frame"); `encode` knows.
"""

from __future__ import annotations

from typing import NamedTuple

from realtime_db.cursors import Snapshot
from realtime_db.protocol.frames import Frame, Framing, live_meta


class Broadcast(NamedTuple):
    """What subscribers get.

    Attributes:
        topic: the full one, `realtime:room`.
        event: the user's name for the event.
        payload: the user's JSON text, or bytes if `binary`.
        id: of a stored message; clients see it as `meta.id`. Empty if it is not stored.
        binary: whether the payload is bytes and no JSON.
        whole: the payload object of a client's text frame, handed on as it came; `event` and
            `payload` do not count then.
        as_text: whether JSON goes out in a text frame, as messages of a REST batch do.
        transaction_id: of the transaction that stored it; 0 if it is not stored.
        cursor: where a subscriber of its topic goes on after it; empty if it is not stored.
        cursor_of_all: the same for who follows other topics, too; he may have it before theirs.
        presence: whether it is no broadcast but tells who came and who went; `payload` is the
            difference then.
        missing_before: whether it is no broadcast but tells that messages are missing, up to this
            time, in ISO format.
    """

    topic: str
    event: str
    payload: bytes
    id: str = ""
    binary: bool = False
    whole: bytes | None = None
    as_text: bool = False
    transaction_id: int = 0
    cursor: str = ""
    cursor_of_all: str = ""
    presence: bool = False
    missing_before: str = ""

    def encode(self, framing: Framing) -> Frame | None:
        """The frame for clients of a framing; None if they do not get this message.

        Raises:
            FieldTooLong: binary, with a name that does not fit.
        """
        if self.presence:
            return framing.presence_diff(self.topic, self.payload)
        if self.missing_before:
            return framing.system(
                self.topic, messages_missing(self.missing_before), join_ref=None, ok=False
            )
        if self.whole is not None:
            return framing.broadcast(self.topic, self.whole)
        meta = live_meta(self.id, self.cursor) if self.id else b""
        if self.as_text:
            return framing.text_broadcast(self.topic, self.event, self.payload, meta=meta)
        return framing.user_broadcast(
            self.topic, self.event, self.payload, meta=meta, binary=self.binary
        )


def messages_missing(before: str) -> str:
    """What a channel is told whose messages are gone.

    Args:
        before: the time up to which some may be missing, in ISO format.
    """
    return f"MessagesMissing: messages before {before} are no longer stored"


class Replayed(NamedTuple):
    """What is sent again to one channel.

    Attributes:
        messages: oldest first.
        seen: what there was when they were read. The WAL may bring it later than the query did,
            and more of it than was asked for.
        cursor: where to go on after them; empty if that is not known.
    """

    messages: list[Broadcast]
    seen: Snapshot | None = None
    cursor: str = ""
