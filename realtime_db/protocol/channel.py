"""One joined topic of a connection: what its client may do, and what it is told. No I/O here.

Above is `connection`, which finds the channel that a push is for; below are the hub and, by way of
`Services`, the questions to the database. While a channel waits for an answer to a question, its
join above all, it keeps the pushes that come meanwhile, in their order.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from realtime_db.auth.access import Access, CheckFailed
from realtime_db.auth.tokens import Claims, TokenError, stands_for_connection_key
from realtime_db.hub import Key, Subscription, Tap
from realtime_db.protocol.broadcast import Broadcast, Replayed, Snapshot
from realtime_db.protocol.join import Join
from realtime_db.protocol.pushes import Push

if TYPE_CHECKING:
    from realtime_db.protocol.connection import Connection
    from realtime_db.wheel import Timer

RECHECK_SECONDS: Final = 300.0
"""A token is looked at again at least so often (PROTOCOL 6)."""

REPLICATION_SECONDS: Final = 60.0
"""How long a channel waits for the database stream, if it asked to be told."""

Then = Callable[[], None]
"""What a question leads to, if the channel is still there when it has been answered."""


class State(Enum):
    """Where a channel is."""

    ASKING = "asking"
    JOINED = "joined"
    CLOSED = "closed"


class _Content(msgspec.Struct):
    """The payload of a broadcast or a presence push in a text frame."""

    event: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")


_read_content: Final = msgspec.json.Decoder(_Content).decode
_read_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_JSON_ERRORS: Final = (msgspec.MsgspecError, RecursionError)


class Channel:
    """A topic that a connection has joined, or is about to.

    Args:
        connection: whose it is.
        topic: the full one, `realtime:room`.
        join_ref: of its `phx_join`, or the join's ref if it had none; on every frame to it.
        join: what was asked for.
        token: the one that counts.
        claims: what that token says; None until new keys have been fetched for it.
    """

    __slots__ = (
        "_held", "_may_track", "_may_write", "_presence", "_presence_key", "_subscription", "_tap",
        "_timer", "_waiting", "access", "claims", "connection", "join", "join_ref", "state",
        "token", "topic",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        topic: str,
        join_ref: str | None,
        join: Join,
        token: str,
        claims: Claims | None,
    ) -> None:
        self.connection = connection
        self.topic = topic
        self.join_ref = join_ref
        self.join = join
        self.token = token
        self.claims = claims
        self.access = Access(broadcast=True, presence=True)  # until the policies say otherwise
        self.state = State.JOINED
        # What the policies said; None if they were not asked yet.
        self._may_write: bool | None = None if join.private else True
        self._may_track: bool | None = None if join.private else True
        self._waiting: deque[Push] | None = None
        self._subscription: Subscription | None = None
        self._presence: Subscription | None = None
        self._presence_key: str | None = None
        self._timer: Timer | None = None
        self._tap: Tap | None = None
        self._held: list[Broadcast] = []

    @property
    def sub_topic(self) -> str:
        """The topic as users see it."""
        return self.topic.removeprefix("realtime:")

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state is not State.CLOSED

    @property
    def _topic_key(self) -> Key:
        return self.sub_topic, self.join.private

    # Questions to the database

    def ask(self, question: Callable[..., Awaitable[Then]], *args: object) -> None:
        """Asks; what comes meanwhile waits, so that the order is kept."""
        self.state = State.ASKING
        self.connection.start(self._ask(question, *args))

    async def _ask(self, question: Callable[..., Awaitable[Then]], *args: object) -> None:
        try:
            then = await question(*args)
        except Exception:
            self.connection.services.log.exception("a question of %s failed", self.topic)
            then = self._crash
        if self.state is not State.ASKING:
            return
        self.state = State.JOINED
        then()
        self._take_waiting()

    def _crash(self) -> None:
        """Its client joins again in a second."""
        self.connection.send(self.connection.framing.error(self.topic, join_ref=self.join_ref))
        self.connection.forget(self)

    def _take_waiting(self) -> None:
        while self._waiting and self.state is not State.ASKING:
            push = self._waiting.popleft()
            self.connection.waits(-len(push.payload))
            if self.state is State.JOINED:
                self.receive(push)
            else:
                self.connection.route(push)

    def _drop_waiting_broadcasts(self) -> None:
        waiting, self._waiting = self._waiting or (), deque()
        for push in waiting:
            if push.event == "broadcast":
                self.connection.waits(-len(push.payload))
            else:
                self._waiting.append(push)

    # From the join to the end

    def hold(self) -> None:
        """Keeps what is published from now on, until what is stored has been read."""
        self._tap = self.connection.services.hub.tap(self._topic_key, self._held.append)

    def opened(self, replayed: Replayed) -> None:
        """The join has been answered: what follows the reply, replays, and what comes live."""
        self.watch_token()
        services, framing = self.connection.services, self.connection.framing
        if self.join.presence_enabled:
            self._follow_presence()
        if self.join.postgres_changes:
            text = "postgres_changes are not served here: use broadcast triggers"
            self.say(text, ok=False, extension="postgres_changes")
        if self.join.replication_ready:
            services.await_replication(self._replication_ready)
            late = services.now() + REPLICATION_SECONDS
            services.wheel.schedule(late, self._replication_late)
        for message in replayed.messages:
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
        self._release_held(replayed.seen)
        self._subscribe(replayed.seen)

    def _release_held(self, seen: Snapshot | None) -> None:
        """Sends what was published while the database was asked, unless the answer has it."""
        if self._tap is None:
            return
        hub = self.connection.services.hub
        hub.settle(self._topic_key)
        hub.untap(self._tap)
        held, self._tap, self._held = self._held, None, []
        for message in held:
            if seen is None or not seen.shows(message):
                data = self.connection.wire.encode(message)
                if data:
                    self.connection.write(data)

    def _subscribe(self, seen: Snapshot | None = None) -> None:
        """Begins to get what is published, if the user may read it."""
        if self.access.broadcast and self._subscription is None:
            connection = self.connection
            self._subscription = connection.services.hub.subscribe(
                self._topic_key, connection.wire, connection.write, seen=seen
            )

    @property
    def subscriptions(self) -> list[Subscription]:
        """Its places in the hub."""
        return [one for one in (self._subscription, self._presence) if one is not None]

    def closed(self) -> None:
        """Ends it without a word."""
        self.state = State.CLOSED
        services = self.connection.services
        if self._subscription is not None:
            services.hub.unsubscribe(self._subscription)
        if self._presence is not None:
            services.presence_hub.unsubscribe(self._presence)
        self._subscription = self._presence = None
        if self._tap is not None:
            services.hub.untap(self._tap)
            self._tap = None
        self._untrack()
        if self._timer is not None:
            self._timer.cancel()
        if self.join.replication_ready:
            services.forget_replication(self._replication_ready)

    def end(self, message: str) -> None:
        """Ends it with a reason: a system message, then phx_close (PROTOCOL 5)."""
        self.say(message, ok=False)
        self.close()
        self.connection.services.log.info("channel %s ended: %s", self.topic, message)

    def close(self) -> None:
        """Ends it for good, for the client too."""
        self.connection.send(self.connection.framing.close(self.topic, join_ref=self.join_ref))
        self.connection.forget(self)

    def say(self, message: str, *, ok: bool, extension: str = "system") -> None:
        """Tells the client how things are (PROTOCOL 5, system)."""
        self.connection.send(
            self.connection.framing.system(
                self.topic, message, join_ref=self.join_ref, ok=ok, extension=extension
            )
        )

    def _replication_ready(self) -> None:
        self.say("Replication connection established", ok=True)

    def _replication_late(self) -> None:
        if self.connection.services.forget_replication(self._replication_ready):
            self.end("Replication connection was not established in time")

    # Pushes

    def receive(self, push: Push) -> None:
        """Takes a push that is not a join."""
        if self.state is State.ASKING:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(push)
            self.connection.waits(len(push.payload))
        elif push.event == "broadcast":
            if self.connection.may_send():
                self._broadcast(push)
            else:
                self.end("Too many messages per second")
        elif push.event == "phx_leave":
            self._reply(push)
            self.close()
        elif push.event == "access_token":
            self._access_token(push)
        elif push.event == "presence":
            self._presence_push(push)
        # An unknown event is ignored: no reply, nothing closed.

    def _reply(self, push: Push, response: bytes = b"{}", *, ok: bool = True) -> None:
        self.connection.send(
            self.connection.framing.reply(
                self.topic, join_ref=self.join_ref, ref=push.ref, response=response, ok=ok
            )
        )

    # Broadcast (PROTOCOL 7.1)

    def _broadcast(self, push: Push) -> None:
        if self._may_write is None:
            self.ask(self._ask_to_write, push)
            return
        if not self._may_write:
            return  # dropped without a reply, even if one was asked for
        services = self.connection.services
        if len(push.payload) > services.settings.max_payload_bytes:
            services.dropped_too_large += 1
            text = "PayloadSizeExceeded: a broadcast of %d bytes to %s was not sent"
            services.log.warning(text, len(push.payload), self.topic)
            if self.join.broadcast_ack:
                self._reply(push, b'"payload_size_exceeded"', ok=False)
            return
        message = self._message(push)
        if message is not None:
            besides = None if self.join.broadcast_self else self._subscription
            services.hub.publish(self._topic_key, message, besides=besides)
        if self.join.broadcast_ack:
            self._reply(push)

    def _message(self, push: Push) -> Broadcast | None:
        if push.user_event is not None:
            return Broadcast(self.topic, push.user_event, push.payload, binary=push.binary)
        # Handed on as it is, further keys included; what is no object cannot be.
        if push.payload[:1] != b"{":
            return None
        event, payload = _content(push)
        return Broadcast(self.topic, event or "", payload, whole=push.payload)

    async def _ask_to_write(self, push: Push) -> Then:
        granted = await self._write_access("broadcast")
        if granted is None:
            return self._drop_waiting_broadcasts  # the next one asks again
        self._may_write = granted
        return partial(self._broadcast, push)

    async def _write_access(self, extension: Any) -> bool | None:
        """None if the policies could not be asked."""
        services = self.connection.services
        assert self.claims is not None, "a channel is not joined without"
        try:
            granted = await services.policies.write_access(
                self.sub_topic, self.claims, self.connection.headers, extension
            )
        except CheckFailed as error:
            services.log.warning("write to %s not checked: %s", self.topic, error)
            return None
        if not granted:
            services.log.info("write to %s denied: %s", self.topic, granted.reason)
        return bool(granted)

    # Tokens (PROTOCOL 5 and 6)

    def watch_token(self) -> None:
        """Looks at the token again when it ends, and at least every five minutes."""
        if self._timer is not None:
            self._timer.cancel()
        services = self.connection.services
        assert self.claims is not None, "a channel is not joined without"
        due = min(self.claims.exp, services.now() + RECHECK_SECONDS)
        self._timer = services.wheel.schedule(due, self._check_token)

    def _check_token(self) -> None:
        """By then its key may have been retired, too."""
        services = self.connection.services
        try:
            services.keys.verify_known(self.token, services.now())
        except TokenError as error:
            self.end(error.close)
        else:
            self.watch_token()

    def _access_token(self, push: Push) -> None:
        try:
            token = _read_object(push.payload).get("access_token")
        except _JSON_ERRORS:
            return
        if not isinstance(token, str) or stands_for_connection_key(token) or token == self.token:
            return
        self.ask(self._renew, token)

    async def _renew(self, token: str) -> Then:
        services = self.connection.services
        access = self.access
        try:
            claims = await services.keys.verify(token, services.now())
            if self.join.private:
                access = await services.policies.read_access(
                    self.sub_topic, claims, self.connection.headers
                )
        except (TokenError, CheckFailed) as error:
            return partial(self.end, error.close)
        if not access:
            text = "You do not have permissions to read from this Channel topic"
            return partial(self.end, f"{text}: {self.sub_topic}")
        if self.access.broadcast > access.broadcast or self.access.presence > access.presence:
            text = "You no longer have permission to read from this Channel topic"
            return partial(self.end, f"{text}: {self.sub_topic}")
        return partial(self._renewed, token, claims, access)

    def _renewed(self, token: str, claims: Claims, access: Access) -> None:
        self.token, self.claims, self.access = token, claims, access
        if self.join.private:
            self._may_write = self._may_track = None
        self._subscribe()
        self.watch_token()

    # Presence (PROTOCOL 11)

    def _follow_presence(self) -> None:
        """Tells who is there, and from now on who comes and goes, if the user may know."""
        if self._presence is not None or not self.access.presence:
            return
        connection, services = self.connection, self.connection.services
        hub = services.presence_hub
        hub.settle(self._topic_key)
        state = services.presences.state(self._topic_key)
        connection.send(
            connection.framing.presence_state(self.topic, state, join_ref=self.join_ref)
        )
        self._presence = hub.subscribe(self._topic_key, connection.wire, connection.write)

    def _presence_push(self, push: Push) -> None:
        event, payload = _content(push)
        event = (event or "").lower()
        if event == "untrack":
            self._untrack()
            self._reply(push)
        elif event != "track":
            self._reply(push, ok=False)
        elif payload[:1] != b"{":
            self._reply(push, b'{"reason":"Presence track payload must be a map"}', ok=False)
        elif len(payload) > self.connection.services.settings.max_payload_bytes:
            self.end("Track message size exceeded")
        elif not self.connection.may_send():
            self.end("Client presence rate limit exceeded")
        elif self._may_track is None:
            self.ask(self._ask_to_track, push, payload)
        else:
            self._track(push, payload)

    async def _ask_to_track(self, push: Push, payload: bytes) -> Then:
        self._may_track = await self._write_access("presence")
        return partial(self._track, push, payload)

    def _track(self, push: Push, payload: bytes) -> None:
        if not self._may_track:
            self._reply(push, ok=False)
            return
        self._follow_presence()
        if self._presence_key is None:
            self._presence_key = self.join.presence_key or str(uuid.uuid4())
        self._publish_presence(
            self.connection.services.presences.track(
                self._topic_key, self, self._presence_key, payload
            )
        )
        self._reply(push)

    def _untrack(self) -> None:
        if self._presence_key is not None:
            self._publish_presence(
                self.connection.services.presences.untrack(self._topic_key, self)
            )

    def _publish_presence(self, diff: bytes | None) -> None:
        if diff is not None:
            message = Broadcast(self.topic, "", diff, presence=True)
            self.connection.services.presence_hub.publish(self._topic_key, message)


def _content(push: Push) -> tuple[str | None, bytes]:
    """The user's event and payload in a text frame, as far as there are any."""
    try:
        content = _read_content(push.payload)
    except _JSON_ERRORS:
        return None, b"{}"
    return content.event, bytes(content.payload)
