"""Who gets which message: topics, their subscribers, and one write for each of them. No I/O here.

Above are the reader of the WAL, REST and the channels, which publish; below are the transports,
whose `write` is called. A message is encoded once for each wire that anybody on the topic speaks,
however many subscribers there are. What is published to a topic before the event loop comes round
again goes to each socket in one write: a write costs 4 to 6 us of the kernel's time and a further
frame in it next to nothing.

A fan-out to many sockets is cut into slices, so that the loop serves others in between; the order
on a topic stays, for its next flush begins when the one before has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from realtime_db.protocol.broadcast import Broadcast

WRITES_PER_TURN: Final = 1000

Key = tuple[str, bool]
"""`(topic without its prefix, private)`: private and public subscribers never meet."""

Write = Callable[[bytes], object]


class Wire(Protocol):
    """What a kind of subscriber speaks."""

    def encode(self, message: Broadcast) -> bytes | None:
        """The bytes for the socket; None if such subscribers do not get the message."""


class Subscription:
    """One subscriber of one topic.

    Attributes:
        key: the topic.
        wire: what the subscriber speaks.
        write: called with bytes; must not block and must not raise but RuntimeError, which says
            that the socket is gone.
    """

    __slots__ = ("key", "wire", "write")

    def __init__(self, key: Key, wire: Wire, write: Write) -> None:
        self.key = key
        self.wire = wire
        self.write = write


class Tap:
    """Somebody who takes the messages of a topic before they are encoded."""

    __slots__ = ("key", "take")

    def __init__(self, key: Key, take: Callable[[Broadcast], object]) -> None:
        self.key = key
        self.take = take


class _Topic:
    """The subscribers of a topic by what they speak, and what waits for them."""

    __slots__ = ("flushing", "pending", "subscribers", "taps")

    def __init__(self) -> None:
        self.subscribers: dict[Wire, dict[Subscription, None]] = {}
        self.taps: dict[Tap, None] = {}
        self.pending: list[tuple[Broadcast, Subscription | None]] = []
        self.flushing: Iterator[None] | None = None


class Hub:
    """Topics and their subscribers.

    Args:
        call_soon: calls a function in the next turn of the event loop.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._topics: dict[Key, _Topic] = {}
        self._dirty: dict[Key, _Topic] = {}
        self._scheduled = False
        self.deliveries = 0
        self.delivered_bytes = 0

    @property
    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._topics)

    def subscribe(self, key: Key, wire: Wire, write: Write) -> Subscription:
        """Makes `write` get what is published to a topic from now on."""
        subscription = Subscription(key, wire, write)
        self._topic(key).subscribers.setdefault(wire, {})[subscription] = None
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; harmless if it has ended."""
        topic = self._topics.get(subscription.key)
        if topic is None:
            return
        subscribers = topic.subscribers.get(subscription.wire, {})
        if subscribers.pop(subscription, subscription) is None and not subscribers:
            del topic.subscribers[subscription.wire]
            self._drop_if_unused(subscription.key, topic)

    def tap(self, key: Key, take: Callable[[Broadcast], object]) -> Tap:
        """Makes `take` get the messages themselves, as they are published.

        For a subscriber that is still being sent what is stored; see `settle`.
        """
        tap = Tap(key, take)
        self._topic(key).taps[tap] = None
        return tap

    def untap(self, tap: Tap) -> None:
        """Ends a tap; harmless if it has ended."""
        topic = self._topics.get(tap.key)
        if topic is not None and topic.taps.pop(tap, tap) is None:
            self._drop_if_unused(tap.key, topic)

    def settle(self, key: Key) -> None:
        """Writes now what is pending on a topic, all of it.

        A tap has then seen what the subscribers have got, and whoever subscribes next gets the
        first message after it.
        """
        topic = self._topics.get(key)
        while topic is not None and (topic.flushing or topic.pending):
            topic.flushing = topic.flushing or self._flush(topic)
            for _ in topic.flushing:
                pass
            topic.flushing = None

    def _topic(self, key: Key) -> _Topic:
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = _Topic()
        return topic

    def _drop_if_unused(self, key: Key, topic: _Topic) -> None:
        if not topic.subscribers and not topic.taps:
            del self._topics[key]

    def has_subscribers(self, key: Key) -> bool:
        """Whether anybody would get what is published to a topic."""
        return key in self._topics

    def publish(self, key: Key, message: Broadcast, *, besides: Subscription | None = None) -> None:
        """Sends a message to all subscribers of a topic.

        Args:
            key: the topic.
            message: what to send.
            besides: the sender, if it does not get its own messages.
        """
        topic = self._topics.get(key)
        if topic is None:
            return
        for tap in topic.taps:
            tap.take(message)
        topic.pending.append((message, besides))
        if topic.flushing is None:
            self._dirty[key] = topic
            if not self._scheduled:
                self._scheduled = True
                self._call_soon(self.flush)

    def flush(self) -> None:
        """Writes what is pending, up to a slice of each topic; the rest in the next turns."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        for key, topic in dirty.items():
            if topic.flushing is None:
                topic.flushing = self._flush(topic)
            for _ in topic.flushing:
                self._dirty[key] = topic
                break
            else:
                topic.flushing = None
                if topic.pending:
                    self._dirty[key] = topic
        if self._dirty and not self._scheduled:
            self._scheduled = True
            self._call_soon(self.flush)

    def _flush(self, topic: _Topic) -> Iterator[None]:
        """Writes what is pending now; yields after each slice."""
        pending, topic.pending = topic.pending, []
        senders = {besides for _, besides in pending if besides is not None}
        room = WRITES_PER_TURN
        for wire, subscribers in list(topic.subscribers.items()):
            frames = [(wire.encode(message), besides) for message, besides in pending]
            data = b"".join(frame for frame, _ in frames if frame)
            if not data:
                continue
            # What a sender gets instead: all but its own.
            theirs = {
                sender: b"".join(frame for frame, besides in frames if frame and besides != sender)
                for sender in senders
                if sender in subscribers
            }
            for one in list(subscribers):
                mine = theirs.get(one, data) if theirs else data
                if not mine:
                    continue
                try:
                    one.write(mine)
                except RuntimeError:  # the socket was closed in an earlier slice
                    continue
                self.deliveries += len(pending)
                self.delivered_bytes += len(mine)
                room -= 1
                if not room:
                    room = WRITES_PER_TURN
                    yield
