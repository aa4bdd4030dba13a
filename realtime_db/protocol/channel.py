"""One joined topic of a connection: what its client may do, and what it is told. No I/O here.

Above is `connection`, which finds the channel that a push is for; below are the hub and, by way of
`Services`, the questions to the database. A channel that still waits for an answer to its join
keeps the pushes that come meanwhile, in their order.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from realtime_db.auth.access import Access, CheckFailed
from realtime_db.auth.tokens import Claims, TokenError, stands_for_connection_key
from realtime_db.hub import Subscription, Tap
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import Frame
from realtime_db.protocol.join import Join
from realtime_db.protocol.pushes import Push
from realtime_db.wheel import Timer

if TYPE_CHECKING:
    from realtime_db.protocol.connection import Connection

RECHECK_SECONDS: Final = 300.0
"""A token is looked at again at least so often (PROTOCOL 6)."""


class State(Enum):
    """Where a channel is."""

    JOINING = "joining"
    JOINED = "joined"
    CLOSED = "closed"


class _Content(msgspec.Struct):
    """The payload of a broadcast in a text frame."""

    type: str | None = None
    event: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"")


_read_content: Final = msgspec.json.Decoder(_Content).decode
_read_token: Final = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True, eq=False)
class Channel:
    """A topic that a connection has joined, or is about to.

    Attributes:
        connection: whose it is.
        topic: the full one, `realtime:room`.
        join_ref: of its `phx_join`, or the join's ref if it had none; on every frame to it.
        join: what was asked for.
        token: the one that counts.
        claims: what that token says; None until new keys have been fetched for it.
        access: what may be read; all of a public channel.
        may_write: the cached answer of the policies; None if they were not asked yet.
    """

    connection: Connection
    topic: str
    join_ref: str | None
    join: Join
    token: str
    claims: Claims | None
    access: Access = Access(broadcast=True, presence=True)  # noqa: RUF009 - frozen
    state: State = State.JOINING
    may_write: bool | None = None
    waiting: list[Push] = field(default_factory=list)
    subscription: Subscription | None = None
    timer: Timer | None = None
    tap: Tap | None = None
    held: list[Broadcast] = field(default_factory=list)

    @property
    def sub_topic(self) -> str:
        """The topic as users see it."""
        return self.topic.removeprefix("realtime:")

    @property
    def key(self) -> tuple[str, bool]:
        """The topic as the hub knows it."""
        return self.sub_topic, self.join.private

    def hold(self) -> None:
        """Keeps what is published from now on, until what is stored has been read."""
        self.tap = self.connection.services.hub.tap(self.key, self.held.append)

    def opened(self, replayed: list[Broadcast]) -> None:
        """The join has been answered: replays, subscribes, takes the pushes that waited."""
        self.state = State.JOINED
        self._replay(replayed)
        self.subscribe()
        self.watch_token()
        waiting, self.waiting = self.waiting, []
        for push in waiting:
            self.receive(push)

    def _replay(self, replayed: list[Broadcast]) -> None:
        """Sends what is stored, then what was published meanwhile and is not among it."""
        if self.tap is None:
            return
        services, framing = self.connection.services, self.connection.framing
        services.hub.settle(self.key)
        services.hub.untap(self.tap)
        self.tap = None
        for message in replayed:
            frame = framing.replay(
                self.topic,
                message.event,
                message.payload,
                id=message.id,
                join_ref=self.join_ref,
                binary=message.binary,
            )
            if frame is not None:
                self.connection.send(frame)
        ids = {message.id for message in replayed}
        held, self.held = self.held, []
        for message in held:
            data = None if message.id in ids else self.connection.wire.encode(message)
            if data:
                self.connection.write(data)

    def subscribe(self) -> None:
        """Begins to get what is published, if the user may read it."""
        if self.access.broadcast and self.subscription is None:
            self.subscription = self.connection.services.hub.subscribe(
                self.key, self.connection.wire, self.connection.write
            )

    def closed(self) -> None:
        """Ends it without a word."""
        self.state = State.CLOSED
        if self.subscription is not None:
            self.connection.services.hub.unsubscribe(self.subscription)
            self.subscription = None
        if self.tap is not None:
            self.connection.services.hub.untap(self.tap)
            self.tap = None
        if self.timer is not None:
            self.timer.cancel()

    def watch_token(self) -> None:
        """Looks at the token again when it ends, and at least every five minutes."""
        if self.timer is not None:
            self.timer.cancel()
        services = self.connection.services
        assert self.claims is not None, "a channel is not joined without"
        due = min(float(self.claims.exp), services.now() + RECHECK_SECONDS)
        self.timer = services.wheel.schedule(due, self._check_token)

    def _check_token(self) -> None:
        assert self.claims is not None, "a channel is not joined without"
        try:
            self.claims.check_expiry(self.connection.services.now())
        except TokenError as error:
            self.end(error.close)
        else:
            self.watch_token()

    def end(self, message: str) -> None:
        """Ends it with a reason: a system message, then phx_close (PROTOCOL 5)."""
        if self.state is State.CLOSED:
            return
        framing = self.connection.framing
        self.connection.send(framing.system(self.topic, message, join_ref=self.join_ref, ok=False))
        self.connection.send(framing.close(self.topic, join_ref=self.join_ref))
        self.connection.services.log.info("channel %s ended: %s", self.topic, message)
        self.connection.forget(self)

    def receive(self, push: Push) -> None:
        """Takes a push that is not a join."""
        if self.state is State.JOINING:
            self.waiting.append(push)
        elif push.event == "broadcast":
            self._broadcast(push)
        elif push.event == "phx_leave":
            self._leave(push)
        elif push.event == "access_token":
            self._access_token(push)
        elif push.event == "presence":
            self._presence(push)
        # An unknown event is ignored: no reply, nothing closed.

    def _leave(self, push: Push) -> None:
        self.reply(push)
        self.connection.send(self.connection.framing.close(self.topic, join_ref=self.join_ref))
        self.connection.forget(self)

    def reply(self, push: Push, response: bytes = b"{}", *, ok: bool = True) -> None:
        """Answers a push."""
        self.connection.send(
            self.connection.framing.reply(
                self.topic, join_ref=self.join_ref, ref=push.ref, response=response, ok=ok
            )
        )

    # Broadcast (PROTOCOL 7.1)

    def _broadcast(self, push: Push) -> None:
        if self.join.private and self.may_write is None:
            self.start(self._ask_to_write(push))
            return
        if self.join.private and not self.may_write:
            return  # dropped without a reply, even if one was asked for
        if len(push.payload) > self.connection.services.settings.max_payload_bytes:
            self.connection.services.dropped_too_large += 1
            self.connection.services.log.warning(
                "PayloadSizeExceeded: a broadcast of %d bytes to %s was not sent",
                len(push.payload),
                self.topic,
            )
            if self.join.broadcast_ack:
                self.reply(push, b'"payload_size_exceeded"', ok=False)
            return
        message = self._message(push)
        if message is not None:
            besides = None if self.join.broadcast_self else self.subscription
            self.connection.services.hub.publish(self.key, message, besides=besides)
        if self.join.broadcast_ack:
            self.reply(push)

    def _message(self, push: Push) -> Broadcast | None:
        if push.user_event is not None:
            return Broadcast(self.topic, push.user_event, push.payload, binary=push.binary)
        try:
            content = _read_content(push.payload)
        except (msgspec.MsgspecError, RecursionError):
            content = _Content()
        # Handed on as it is, further keys included; what is no object cannot be.
        if content.event is None and push.payload[:1] != b"{":
            return None
        return Broadcast(
            self.topic, content.event or "", bytes(content.payload), whole=push.payload
        )

    async def _ask_to_write(self, push: Push) -> None:
        connection = self.connection
        assert self.claims is not None, "a channel is not joined without"
        try:
            granted = await connection.services.policies.write_access(
                self.sub_topic, self.claims, connection.headers
            )
        except CheckFailed as error:
            connection.services.log.warning("write to %s not checked: %s", self.topic, error)
            self.may_write = None  # the next broadcast asks again
            return
        if not granted:
            connection.services.log.info("write to %s denied: %s", self.topic, granted.reason)
        self.may_write = bool(granted)
        self._broadcast(push)

    def start(self, question: Coroutine[Any, Any, None]) -> None:
        """Asks the database; what comes meanwhile waits, so that the order is kept."""
        self.state = State.JOINING
        self.connection.start(self._asked(question))

    async def _asked(self, question: Coroutine[Any, Any, None]) -> None:
        await question
        if self.state is not State.JOINING:
            return
        self.state = State.JOINED
        waiting, self.waiting = self.waiting, []
        while waiting:
            self.receive(waiting.pop(0))
            if self.state is not State.JOINED:
                self.waiting[:0] = waiting
                return

    # Tokens (PROTOCOL 5, access_token)

    def _access_token(self, push: Push) -> None:
        try:
            token = _read_token(push.payload).get("access_token")
        except (msgspec.MsgspecError, RecursionError):
            return
        if not isinstance(token, str) or stands_for_connection_key(token) or token == self.token:
            return
        self.start(self._renew(token))

    async def _renew(self, token: str) -> None:
        services = self.connection.services
        try:
            claims = await services.keys.verify(token, services.now())
            access = self.access
            if self.join.private:
                access = await services.policies.read_access(
                    self.sub_topic, claims, self.connection.headers
                )
        except TokenError as error:
            self.end(error.close)
            return
        except CheckFailed as error:
            self.end(error.close)
            return
        if not access:
            self.end(
                f"You do not have permissions to read from this Channel topic: {self.sub_topic}"
            )
            return
        if (self.access.broadcast and not access.broadcast) or (
            self.access.presence and not access.presence
        ):
            self.end(
                f"You no longer have permission to read from this Channel topic: {self.sub_topic}"
            )
            return
        self.token, self.claims, self.access, self.may_write = token, claims, access, None
        self.subscribe()
        self.watch_token()

    # Presence (PROTOCOL 11) is not kept yet: nobody is there but oneself.

    def _presence(self, push: Push) -> None:
        self.reply(push)

    def postgres_changes(self) -> list[bytes]:
        """Each request with an id added, which is what the clients compare (PROTOCOL 5)."""
        return [
            msgspec.json.encode({**request, "id": number})
            for number, request in enumerate(self.join.postgres_changes, start=1)
        ]

    def frames_after_join(self) -> list[Frame]:
        """What follows the reply to the join."""
        framing = self.connection.framing
        frames: list[Frame] = []
        if self.join.presence_enabled and self.access.presence:
            frames.append(framing.presence_state(self.topic, b"{}", join_ref=self.join_ref))
        if self.join.replication_ready and self.connection.services.replicating:
            frames.append(
                framing.system(
                    self.topic,
                    "Replication connection established",
                    join_ref=self.join_ref,
                    ok=True,
                )
            )
        if self.join.postgres_changes:
            frames.append(
                framing.system(
                    self.topic,
                    "postgres_changes are not served here: use broadcast triggers",
                    join_ref=self.join_ref,
                    ok=False,
                    extension="postgres_changes",
                )
            )
        return frames
