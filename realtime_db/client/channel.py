"""One subscription, whatever becomes of the connections that carry it.

Above is `connection`, which tells it what the server said; below is the application, which takes
what waits. What has been received survives a lost connection here, so a resume begins after it and
not after what the application has taken; `handed` is the cursor after that, for other processes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from typing import Any, Final

from realtime_db.client.errors import ClientError, MessagesMissing, PayloadUnreadable
from realtime_db.client.seen import Seen
from realtime_db.client.wire import PREFIX, Broadcast

MAX_WAITING_BYTES: Final = 16_777_216


@dataclass(frozen=True)
class Message:
    """A broadcast.

    Attributes:
        topic: without `realtime:`.
        event: the sender's name for it.
        raw: the payload as it came: JSON text in UTF-8, or anything if `binary`.
        id: of a stored message; None if it is not stored.
        cursor: where to go on after this message, in this process or another; None if the server
            has not said yet. What comes then may begin with messages that came before.
        replayed: whether it was sent because of a cursor.
        binary: whether the payload is bytes and no JSON.
    """

    topic: str
    event: str
    raw: bytes
    id: str | None = None
    cursor: str | None = None
    replayed: bool = False
    binary: bool = False

    @cached_property
    def payload(self) -> Any:
        """The payload, decoded: bytes if `binary`. Of numbers with a fraction only what a float
        can hold; `json.loads(message.raw, parse_float=Decimal)` has every digit.

        Raises:
            PayloadUnreadable: it is nested too deeply, say.
        """
        try:
            return self.raw if self.binary else json.loads(self.raw)
        except (ValueError, RecursionError) as error:
            raise PayloadUnreadable(self.topic, str(error)) from error


class State(Enum):
    """What the server knows of a channel."""

    APART = "not joined"
    JOINING = "asked to join"
    JOINED = "joined"
    FAILED = "given up, until the application asks again"
    CLOSED = "left for good"


class Channel:
    """A topic that is followed, or only sent to.

    Args:
        topic: without `realtime:`.
        private: whether only those follow it whom a policy lets.
        own: whether it gets what was sent through itself.
        cursor: where it begins; None for what comes next.
        max_waiting: how many messages may wait before the connection is not read any further.
        mute: keeps no messages; it is there to send.
        made_room: is called when there is room again.

    Attributes:
        join_ref: of the last join.
        cursor: where a resume begins: after all that was received.
        handed: the same, after what the application has taken.
        reason: why the server ended the channel, if it said so.
        error: why it was given up.
        is_full: whether too much is waiting.
    """

    def __init__(
        self,
        topic: str,
        *,
        private: bool = True,
        own: bool = False,
        cursor: str | None = None,
        max_waiting: int = 1_000,
        mute: bool = False,
        made_room: Callable[[], object] = lambda: None,
    ) -> None:
        self.topic = topic
        self.full_topic = PREFIX + topic
        self.private = private
        self.own = own
        self.cursor = self.handed = cursor
        self.mute = mute
        self.state = State.APART
        self.join_ref: str | None = None
        self.reason: str | None = None
        self.error: ClientError | None = None
        self.is_full = False
        self._max_waiting = max_waiting
        self._made_room = made_room
        self._asked: str | None = None
        self._was_joined = False
        self._missing_before = ""
        self._seen = Seen()
        # Messages, cursors after what stands before them, and errors.
        self._waiting: deque[Message | str | ClientError] = deque()
        self._messages = 0
        self._bytes = 0
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self.apart = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    # What the connection tells

    def joining(self, ref: str) -> str | None:
        """A join is sent; the cursor that goes with it."""
        self.state, self.join_ref, self.reason = State.JOINING, ref, None
        self.settled.clear()
        self.apart.clear()
        self._asked = self.cursor
        return self._asked

    def joined(self, response: dict[str, Any]) -> None:
        """The server took the join; `response` may say where the channel begins."""
        cursor = response.get("cursor")
        if not isinstance(cursor, str) or not cursor:
            cursor = None
        self.state = State.JOINED
        if "gap" in response:
            self.missing(str(response["gap"]), cursor)
        elif self._was_joined and self._asked is None:
            self.missing("", cursor)
        self._was_joined = True
        if cursor is not None:
            self._mark(cursor)
        self.settled.set()

    def parted(self, reason: str | None = None) -> None:
        """The connection is gone, or the server ended the channel, or refused it."""
        if self.state in (State.JOINING, State.JOINED):
            self.state = State.APART
            self.reason = reason or self.reason
            self.settled.clear()
            self.apart.set()

    def received(self, message: Broadcast) -> None:
        """A message came; what the channel has had already counts for its cursor only."""
        if self.state is not State.JOINED or self.mute:
            return  # of an earlier join to this topic
        if message.join_ref is not None and message.join_ref != self.join_ref:
            return
        known = message.id in self._seen
        if message.id and not known:
            self._seen.add(message.id, message.cursor)
        if known:
            if message.cursor:
                self._mark(message.cursor)
            return
        if message.cursor:
            self._moved(message.cursor)
        self._put(
            Message(
                topic=self.topic,
                event=message.event,
                raw=message.payload,
                id=message.id or None,
                cursor=self.cursor,
                replayed=message.replayed,
                binary=message.binary,
            )
        )

    def missing(self, before: str, cursor: str | None = None) -> None:
        """Messages up to a time cannot be had; the server says so more than once."""
        if self.mute or (before and before == self._missing_before):
            return
        self._missing_before = before
        self._put(MessagesMissing(self.topic, _time(before), cursor or self.cursor))

    def beat(self, cursor: str | None) -> None:
        """A heartbeat was answered; all that its cursor speaks of has come.

        A server that is still sending what is stored, to any channel, gives none.
        """
        if cursor and self.state is State.JOINED:
            self._mark(cursor)

    def stored_own(self, id: str) -> None:
        """A message that the channel itself sent was stored, and is not to come back."""
        if not self.own:
            self._seen.add(id)

    def failed(self, error: ClientError) -> None:
        """It was given up; the application gets the error after all messages."""
        if self.state is not State.CLOSED:
            self.state, self.error = State.FAILED, error
            self._put(error)
            self.settled.set()

    def again(self) -> None:
        """The application asks for it after it was given up."""
        if self.state is State.FAILED:
            self.state, self.error = State.APART, None
            self.settled.clear()

    def closed(self) -> None:
        """It was left."""
        self.state = State.CLOSED
        self.ready.set()
        self.settled.set()
        self._has_room()

    def _put(self, item: Message | ClientError) -> None:
        self._waiting.append(item)
        self.ready.set()
        if isinstance(item, Message):
            self._messages += 1
            self._bytes += len(item.raw)
            if self._messages >= self._max_waiting or self._bytes >= MAX_WAITING_BYTES:
                self.is_full = True
                self.room.clear()

    def _moved(self, cursor: str) -> None:
        self.cursor = cursor
        self._seen.moved(cursor)

    def _mark(self, cursor: str) -> None:
        if cursor == self.cursor:
            return
        self._moved(cursor)
        if not self._waiting:
            self.handed = cursor
        elif isinstance(self._waiting[-1], str):
            self._waiting[-1] = cursor
        else:
            self._waiting.append(cursor)

    # What the application takes

    def take(self) -> Message | ClientError | None:
        """The next message or error; None if nothing waits."""
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, str):
                self.handed = item
                continue
            if isinstance(item, Message):
                self._messages -= 1
                self._bytes -= len(item.raw)
                if (
                    self.is_full
                    and 2 * self._messages <= self._max_waiting
                    and 2 * self._bytes <= MAX_WAITING_BYTES
                ):
                    self._has_room()
            if isinstance(item, Message | MessagesMissing):
                self.handed = item.cursor
            return item
        self.ready.clear()
        return None

    def _has_room(self) -> None:
        self.is_full = False
        self.room.set()
        self._made_room()


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter of the year 1, in a zone
        return None
