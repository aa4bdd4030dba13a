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

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from realtime_db.cursors import Snapshot
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.limits import Rate

WRITES_PER_TURN: Final = 1000

Key = tuple[str, bool]
"""`(topic without its prefix, private)`: private and public subscribers never meet."""

_log = logging.getLogger(__name__)

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
        seen: what of the stored messages the subscriber has, or did not want; if it asked.
        over: called when there are more messages than the hub may deliver; it should unsubscribe.
    """

    __slots__ = ("key", "over", "seen", "wire", "write")

    def __init__(
        self,
        key: Key,
        wire: Wire,
        write: Write,
        seen: Snapshot | None,
        over: Callable[[], object] | None,
    ) -> None:
        self.key = key
        self.wire = wire
        self.write = write
        self.seen = seen
        self.over = over


class Tap:
    """Somebody who takes the messages of a topic before they are encoded."""

    __slots__ = ("key", "take")

    def __init__(self, key: Key, take: Callable[[Broadcast], object]) -> None:
        self.key = key
        self.take = take


class _Topic:
    """The subscribers of a topic by what they speak, and what waits for them.

    `skipping` are those who have seen what may still come.
    """

    __slots__ = ("flushes", "flushing", "pending", "rate", "skipping", "subscribers", "taps")

    def __init__(self, rate: Rate | None) -> None:
        self.subscribers: dict[Wire, dict[Subscription, None]] = {}
        self.skipping: set[Subscription] = set()
        self.taps: dict[Tap, None] = {}
        self.pending: list[tuple[Broadcast, Subscription | None]] = []
        self.flushing: Iterator[None] | None = None
        self.flushes = 0  # that have ended
        self.rate = rate


Mark = list[tuple[_Topic, int]]
"""What had been published at a moment; see `Hub.mark`."""


class Hub:
    """Topics and their subscribers.

    Args:
        call_soon: calls a function in the next turn of the event loop.
        max_per_second: messages of one topic, on average, and so to each of its subscribers; those
            who would get more are told that it is over. 0 is no limit.
        now: seconds, for `max_per_second`.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        max_per_second: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.call_soon = call_soon
        self._max_per_second = max_per_second
        self._now = now
        self._topics: dict[Key, _Topic] = {}
        self._dirty: dict[Key, _Topic] = {}
        self._scheduled = False
        self.deliveries = 0
        self.delivered_bytes = 0

    @property
    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._topics)

    @property
    def followed(self) -> list[Key]:
        """The topics that have a subscriber."""
        return list(self._topics)

    def subscribe(
        self,
        key: Key,
        wire: Wire,
        write: Write,
        *,
        seen: Snapshot | None = None,
        over: Callable[[], object] | None = None,
    ) -> Subscription:
        """Makes `write` get what is published to a topic from now on.

        Args:
            key: the topic.
            wire: what the subscriber speaks.
            write: takes bytes.
            seen: what of the stored messages the subscriber does not get, for it had a replay,
                which may be faster than the WAL.
            over: called when there were more messages than may be delivered, which are lost to the
                subscriber; it should unsubscribe.
        """
        subscription = Subscription(key, wire, write, seen, over)
        topic = self._topic(key)
        topic.subscribers.setdefault(wire, {})[subscription] = None
        if seen is not None:
            topic.skipping.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; harmless if it has ended."""
        topic = self._topics.get(subscription.key)
        if topic is None:
            return
        topic.skipping.discard(subscription)
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
            topic.flushes += 1

    def _topic(self, key: Key) -> _Topic:
        topic = self._topics.get(key)
        if topic is None:
            rate = Rate(self._max_per_second) if self._max_per_second else None
            topic = self._topics[key] = _Topic(rate)
        return topic

    def _drop_if_unused(self, key: Key, topic: _Topic) -> None:
        if not topic.subscribers and not topic.taps:
            del self._topics[key]

    def forget_seen(self) -> None:
        """Makes every subscriber get everything: ids mean other transactions from now on."""
        for topic in self._topics.values():
            for subscription in topic.skipping:
                subscription.seen = None
            topic.skipping.clear()

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
        for tap in list(topic.taps):  # one that takes no more is gone
            tap.take(message)
        topic.pending.append((message, besides))
        if topic.flushing is None:
            self._dirty[key] = topic
            if not self._scheduled:
                self._scheduled = True
                self.call_soon(self.flush)

    def mark(self) -> Mark:
        """Notes what has been published and not been written; for `is_written`."""
        return [
            (topic, topic.flushes + bool(topic.pending) + (topic.flushing is not None))
            for topic in self._dirty.values()
            if topic.pending or topic.flushing is not None
        ]

    def is_written(self, mark: Mark) -> bool:
        """Whether everything up to a mark has been written to the sockets of its subscribers."""
        # Nobody is left on a topic that was dropped, and nothing is written there any more.
        return all(
            topic.flushes >= flushes or not (topic.subscribers or topic.taps)
            for topic, flushes in mark
        )

    def flush(self) -> None:
        """Writes what is pending, up to a slice of each topic; the rest in the next turns."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        for key, topic in dirty.items():
            if topic.flushing is None:
                topic.flushing = self._flush(topic)
            try:
                unfinished = next(topic.flushing, self) is None
            except Exception:  # a defect of ours; the other topics need not suffer
                _log.exception("messages of %r were lost", key)
                unfinished = False
            if not unfinished:
                topic.flushing = None
                topic.flushes += 1
            if unfinished or topic.pending:
                self._dirty[key] = topic
        if self._dirty and not self._scheduled:
            self._scheduled = True
            self.call_soon(self.flush)

    def _flush(self, topic: _Topic) -> Iterator[None]:
        """Writes what is pending now; yields after each slice."""
        pending, topic.pending = topic.pending, []
        # All subscribers get about the same, so one count serves them all.
        if topic.rate is not None and not topic.rate.allow(self._now(), len(pending)):
            yield from self._over(topic, {besides for _, besides in pending})
            return
        room = WRITES_PER_TURN
        different = _different(topic, pending)
        for wire, subscribers in list(topic.subscribers.items()):
            frames = [(wire.encode(message), message, besides) for message, besides in pending]
            data = b"".join(frame for frame, _, _ in frames if frame)
            if not data:
                continue
            theirs = {
                one: b"".join(
                    frame
                    for frame, message, besides in frames
                    if frame
                    and besides is not one
                    and (one.seen is None or not one.seen.shows(message.transaction_id))
                )
                for one in different
                if one in subscribers
            }
            for one in list(subscribers):
                mine = theirs.get(one, data) if theirs else data
                if not mine or one not in subscribers:  # it left since an earlier slice
                    continue
                try:
                    one.write(mine)
                except RuntimeError:  # the socket is closed
                    continue
                self.deliveries += len(pending)
                self.delivered_bytes += len(mine)
                room -= 1
                if not room:
                    room = WRITES_PER_TURN
                    yield

    def _over(self, topic: _Topic, senders: set[Subscription | None]) -> Iterator[None]:
        """Tells the subscribers that there was too much, but for one who sent all of it."""
        room = WRITES_PER_TURN
        for subscribers in list(topic.subscribers.values()):
            for one in list(subscribers):
                if one not in subscribers or senders == {one} or one.over is None:
                    continue
                one.over()
                room -= 1
                if not room:
                    room = WRITES_PER_TURN
                    yield


def _different(
    topic: _Topic, pending: list[tuple[Broadcast, Subscription | None]]
) -> set[Subscription]:
    """Those that do not get all that is pending: senders, and who has had some of it before."""
    different = {besides for _, besides in pending if besides is not None}
    if topic.skipping:
        numbers = {message.transaction_id for message, _ in pending} - {0}
        first = min(numbers, default=0)
        different.update(
            one
            for one in topic.skipping
            if one.seen is not None
            and 0 < first < one.seen.xmax
            and any(map(one.seen.shows, numbers))
        )
    return different
