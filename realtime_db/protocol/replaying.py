"""What a subscriber is sent of what is stored, and what comes meanwhile. No I/O here.

Above are the channels and the streams of events, each of which may have both for a while; below is
the hub. The order is: keep what is published, read what is stored in one snapshot, send it, then
send what was kept and that snapshot does not show, and only then subscribe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from realtime_db.cursors import Snapshot
from realtime_db.hub import Hub, Key
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import FieldTooLong, Frame

if TYPE_CHECKING:
    from realtime_db.protocol.channel import Channel

MESSAGE_BYTES: Final = 500
"""What a message that is kept takes besides its payload, about."""


class Held:
    """Keeps what is published to topics, from now on until `release` or `drop`.

    Args:
        hub: of the server.
        keys: the topics.
        max_bytes: how much may be kept.
        too_much: called once when it is more; nothing is kept any longer then.
    """

    __slots__ = ("_hub", "_messages", "_room", "_seen", "_taps", "_too_much")

    def __init__(
        self,
        hub: Hub,
        keys: Collection[Key],
        *,
        max_bytes: int,
        too_much: Callable[[], object],
    ) -> None:
        self._hub = hub
        self._room = max_bytes
        self._too_much = too_much
        self._messages: list[Broadcast] = []
        self._seen: Snapshot | None = None
        self._taps = [hub.tap(key, self._take) for key in keys]

    def skip(self, seen: Snapshot) -> None:
        """Keeps nothing that a snapshot shows, for the subscriber is sent that anyway."""
        messages, self._messages = self._messages, []
        self._seen = seen
        self._room += sum(map(_size, messages))
        for message in messages:
            self._take(message)

    def _take(self, message: Broadcast) -> None:
        if self._seen is not None and self._seen.shows(message.transaction_id):
            return
        self._messages.append(message)
        self._room -= _size(message)
        if self._room < 0:
            self.drop()
            self._too_much()

    def release(self, seen: Snapshot | None) -> list[Broadcast]:
        """Ends it: whoever subscribes now gets the first message after these.

        Args:
            seen: what the subscriber has been sent, or did not want.

        Returns:
            What was published and is not among that, in its order.
        """
        for tap in self._taps:
            self._hub.settle(tap.key)
        messages = self._messages
        self.drop()
        if seen is None:
            return messages
        return [message for message in messages if not seen.shows(message.transaction_id)]

    def drop(self) -> None:
        """Ends it, and forgets what was kept; harmless if it has ended."""
        taps, self._taps, self._messages = self._taps, [], []
        for tap in taps:
            self._hub.untap(tap)


def _size(message: Broadcast) -> int:
    return len(message.payload) + MESSAGE_BYTES


class Again:
    """Sends stored messages to one channel, the last of them with the cursor after all."""

    __slots__ = ("_channel", "_last")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last: tuple[Broadcast, Frame] | None = None

    def send(self, messages: Collection[Broadcast]) -> None:
        """Sends them but for the last, which waits for the next or for the end."""
        for message in messages:
            frame = self._frame(message, message.cursor)
            if frame is None:
                continue
            if self._last is not None:
                self._channel.connection.send(self._last[1])
            self._last = (message, frame)

    def end(self, cursor: str) -> None:
        """Sends the last, if there was one."""
        if self._last is not None:
            message, frame = self._last
            self._channel.connection.send(self._frame(message, cursor) or frame)

    def _frame(self, message: Broadcast, cursor: str) -> Frame | None:
        """None if such a client does not get it."""
        connection = self._channel.connection
        try:
            return connection.framing.replay(
                self._channel.topic,
                message.event,
                message.payload,
                id=message.id,
                cursor=cursor,
                join_ref=self._channel.join_ref,
                binary=message.binary,
            )
        except FieldTooLong as error:  # a table that was not ours once may hold such
            text = "a message to %s was not sent: %s"
            connection.services.log.warning(text, self._channel.topic, error)
            return None
