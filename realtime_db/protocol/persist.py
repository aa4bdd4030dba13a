"""Broadcasts that their senders want stored, and what is on its way (PROTOCOL 7.5). No I/O here.

Above are the channels and REST, which put messages into `ToStore`; below is `storing`, which takes
them to the database. From there the source of messages brings them back to all subscribers, here
and on other servers, in the order of commits: nobody gets what is not stored.

A channel has a `Persister` once it needs one. It tells the hub which of the messages that come back
are the channel's own, and lets what the channel sends after them wait until they have.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from realtime_db.hub import Subscription
from realtime_db.protocol.pushes import Push
from realtime_db.protocol.questions import State, Then

if TYPE_CHECKING:
    from realtime_db.protocol.channel import Channel
    from realtime_db.wheel import Timer

MAX_TTL_SECONDS: Final = 3650 * 86_400
"""Nothing is kept for longer, whatever the retention."""

MAX_OWN: Final = 100_000
"""How many messages may be on their way back; of more, the senders get their own."""

ORDER_SECONDS: Final = 2.0
"""How long what was not to be stored waits for what was, and was sent before it."""

NOT_VALID: Final = "persist must be true or have a ttl, a whole number of seconds from 1"
PUBLIC: Final = "a message can be stored on a private channel only"
UNAUTHORIZED: Final = "Unauthorized: You do not have permissions to write to this Channel topic"
UNCHECKED: Final = "Unable to authorize broadcast"
TOO_LARGE: Final = "payload_size_exceeded"
IS_RESTARTING: Final = "RealtimeRestarting: Realtime is restarting, please standby"


class Persist(NamedTuple):
    """A wish to have a message stored.

    Attributes:
        ttl_seconds: for how long it may be replayed; None for as long as messages are kept.
    """

    ttl_seconds: int | None = None


class NotStored(NamedTuple):
    """Why a message was not stored.

    Attributes:
        text: for its sender.
        status: of the answer to a request.
    """

    text: str
    status: int = 422


class Outgoing(NamedTuple):
    """A message on its way to the database; its sender may write to the topic.

    Attributes:
        id: clients will see it as `meta.id`.
        topic: the sub-topic.
        event: the user's name for the event.
        payload: the user's JSON text, or bytes if `binary`.
        binary: whether the payload is bytes and no JSON.
        ttl_seconds: for how long it may be replayed.
        done: called once it has been stored, or was not.
    """

    id: str
    topic: str
    event: str
    payload: bytes
    binary: bool
    ttl_seconds: int | None
    done: Callable[[NotStored | None], None]


def read_persist(wish: object) -> Persist | str | None:
    """What the metadata of a push says under `persist`: a wish, why not, or nothing."""
    if wish is None or wish is False:
        return None
    if wish is True:
        return Persist()
    if isinstance(wish, dict):
        ttl = wish.get("ttl")
        if ttl is None:
            return Persist()
        if isinstance(ttl, int) and not isinstance(ttl, bool) and ttl > 0:
            return Persist(min(ttl, MAX_TTL_SECONDS))
    return NOT_VALID


class ToStore:
    """What waits to be stored, in the order in which it came.

    Attributes:
        is_closed: whether nothing more is taken.
        wake: called when there is something to do.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self.is_closed = False
        self.wake: Callable[[], object] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, message: Outgoing) -> None:
        """Adds one, and wakes who stores."""
        if self.is_closed:
            message.done(NotStored(IS_RESTARTING, 503))
            return
        self._waiting.append(message)
        self.wake()

    def close(self) -> None:
        """Refuses what comes from now on: the server is about to end."""
        self.is_closed = True
        self.wake()

    def take(self, max_messages: int, max_bytes: int) -> list[Outgoing]:
        """The oldest, at least one if there is any."""
        taken: list[Outgoing] = []
        while self._waiting and len(taken) < max_messages and max_bytes > 0:
            taken.append(self._waiting.popleft())
            max_bytes -= len(taken[-1].payload)
        return taken


class OwnMessages:
    """Which of the messages that come back are whose."""

    def __init__(self) -> None:
        self._senders: dict[str, Persister] = {}

    def __bool__(self) -> bool:
        return bool(self._senders)

    def add(self, message_id: str, sender: Persister) -> None:
        """A message is on its way to the database."""
        self._senders[message_id] = sender
        if len(self._senders) > MAX_OWN:
            self.came(next(iter(self._senders)))

    def forget(self, message_id: str) -> None:
        """It was not stored, or its sender is gone."""
        self._senders.pop(message_id, None)

    def came(self, message_id: str) -> Subscription | None:
        """A message is back, and is about to be published; who does not get it, for it is his."""
        sender = self._senders.pop(message_id, None)
        return None if sender is None else sender.came(message_id)


class Persister:
    """A channel's part in it."""

    __slots__ = ("_channel", "_patient", "_then", "_timer", "_under_way")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._under_way: set[str] = set()
        self._patient = True
        self._then: Then | None = None
        self._timer: Timer | None = None

    def store(self, push: Push, wish: Persist) -> None:
        """Sends a message on its way; whether it may be sent has been looked at."""
        channel = self._channel
        connection, services = channel.connection, channel.connection.services
        message_id = str(uuid.uuid4())
        self._under_way.add(message_id)
        services.own.add(message_id, self)
        # A client that sends faster than the database takes it is not read from meanwhile.
        connection.waits(len(push.payload))
        services.to_store.put(
            Outgoing(
                message_id,
                channel.sub_topic,
                push.user_event or "",
                push.payload,
                push.binary,
                wish.ttl_seconds,
                partial(self._done, push, message_id),
            )
        )

    def _done(self, push: Push, message_id: str, failed: NotStored | None) -> None:
        channel = self._channel
        channel.connection.waits(len(push.payload), -1)
        if failed is not None:
            channel.connection.services.own.forget(message_id)
            self.came(message_id)
        if not channel.is_open:
            return
        if failed is not None:
            self.refuse(push, failed.text)
        elif channel.join.broadcast_ack:
            channel.reply(push, b'{"id":"%b"}' % message_id.encode())

    def refuse(self, push: Push, reason: str) -> None:
        """Tells the sender that a message was neither stored nor sent, also without `ack`.

        Without, the JavaScript clients do not wait for the answer; a system message they hand on.
        """
        response = b'{"error":%b}' % msgspec.json.encode(reason)
        self._channel.reply(push, response, ok=False)
        if not self._channel.join.broadcast_ack:
            self._channel.say(reason, ok=False)

    def came(self, message_id: str) -> Subscription | None:
        """A message is back; whose subscription must not get it."""
        self._under_way.discard(message_id)
        if not self._under_way:
            self._patient = True
            if self._then is not None:
                # In the next turn: it has been published by then.
                self._channel.connection.services.hub.call_soon(self._go_on)
        return self._channel.own_subscription

    def wait(self, then: Then) -> bool:
        """Calls `then` once all that is under way is back; False if nothing is to be waited for.

        What the channel sends meanwhile waits, too.
        """
        services = self._channel.connection.services
        if not self._under_way or not self._patient or not services.replicating:
            return False
        self._then = then
        self._channel.state = State.ASKING
        self._timer = services.wheel.schedule(services.now() + ORDER_SECONDS, self._too_late)
        return True

    def _too_late(self) -> None:
        """Waits no more for what is under way now."""
        self._patient = False
        self._go_on()

    def _go_on(self) -> None:
        then, self._then = self._then, None
        if then is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._channel.go_on(then)

    def close(self) -> None:
        """The channel has ended; what is under way will be stored all the same."""
        for message_id in self._under_way:
            self._channel.connection.services.own.forget(message_id)
        if self._timer is not None:
            self._timer.cancel()
        if self._then is not None:
            self._go_on()
