"""One joined topic of a connection: what its client may do, and what it is told. No I/O here.

Above is `connection`, which finds the channel that a push is for; below are the hub and, by way of
`Services`, the questions to the database. While a channel waits for an answer to a question, its
join above all, it keeps the pushes that come meanwhile, in their order.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from realtime_db.auth.access import Access, CheckFailed
from realtime_db.auth.tokens import Claims, TokenError, stands_for_connection_key
from realtime_db.cursors import Snapshot
from realtime_db.hub import Key, Subscription, Tap
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Join
from realtime_db.protocol.presence import Tracker
from realtime_db.protocol.pushes import Push
from realtime_db.protocol.questions import JSON_ERRORS, Asking, State, Then, read_content

if TYPE_CHECKING:
    from realtime_db.protocol.connection import Connection
    from realtime_db.protocol.services import Extension
    from realtime_db.wheel import Timer

RECHECK_SECONDS: Final = 300.0
"""A token is looked at again at least so often (PROTOCOL 6)."""

REPLICATION_SECONDS: Final = 60.0
"""How long a channel waits for the database stream, if it asked to be told."""

_read_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Channel(Asking):
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
        "_held", "_may_write", "_subscription", "_tap", "_timer", "_tracker", "access", "claims",
        "connection", "join", "join_ref", "token", "topic",
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
        super().__init__()
        self.connection = connection
        self.topic = topic
        self.join_ref = join_ref
        self.join = join
        self.token = token
        self.claims = claims
        self.access = Access(broadcast=True, presence=True)  # until the policies say otherwise
        # What the policies said; None if they were not asked yet.
        self._may_write: bool | None = None if join.private else True
        self._subscription: Subscription | None = None
        self._tracker: Tracker | None = None
        self._timer: Timer | None = None
        self._tap: Tap | None = None
        self._held: list[Broadcast] = []

    @property
    def sub_topic(self) -> str:
        """The topic as users see it."""
        return self.topic.removeprefix("realtime:")

    @property
    def topic_key(self) -> Key:
        """The topic as the hub knows it."""
        return self.sub_topic, self.join.private

    # From the join to the end

    def hold(self) -> None:
        """Keeps what is published from now on, until what is stored has been read."""
        self._tap = self.connection.services.hub.tap(self.topic_key, self._held.append)

    def opened(self, replayed: Replayed) -> None:
        """The join has been answered: what follows the reply, replays, and what comes live."""
        self.watch_token()
        services, framing = self.connection.services, self.connection.framing
        if self.join.presence_enabled:
            self._tracking.follow()
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
        hub.settle(self.topic_key)
        hub.untap(self._tap)
        held, self._tap, self._held = self._held, None, []
        for message in held:
            if seen is None or not seen.shows(message.transaction_id):
                data = self.connection.wire.encode(message)
                if data:
                    self.connection.write(data)

    def _subscribe(self, seen: Snapshot | None = None) -> None:
        """Begins to get what is published, if the user may read it."""
        if self.access.broadcast and self._subscription is None:
            connection = self.connection
            self._subscription = connection.services.hub.subscribe(
                self.topic_key, connection.wire, connection.write, seen=seen
            )

    @property
    def subscriptions(self) -> list[Subscription]:
        """Its places in the hub."""
        presence = None if self._tracker is None else self._tracker.subscription
        return [one for one in (self._subscription, presence) if one is not None]

    def closed(self) -> None:
        """Ends it without a word."""
        self.state = State.CLOSED
        services = self.connection.services
        if self._subscription is not None:
            services.hub.unsubscribe(self._subscription)
            self._subscription = None
        if self._tracker is not None:
            self._tracker.close()
        if self._tap is not None:
            services.hub.untap(self._tap)
            self._tap = None
        if self._timer is not None:
            self._timer.cancel()
        if self.join.replication_ready:
            services.forget_replication(self._replication_ready)

    def crash(self) -> None:
        self.connection.send(self.connection.framing.error(self.topic, join_ref=self.join_ref))
        self.connection.forget(self)

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
            self.keep(push)
        elif push.event == "broadcast":
            if self.connection.may_send():
                self._broadcast(push)
            else:
                self.end("Too many messages per second")
        elif push.event == "phx_leave":
            self.reply(push)
            self.close()
        elif push.event == "access_token":
            self._access_token(push)
        elif push.event == "presence":
            self._tracking.receive(push)
        # An unknown event is ignored: no reply, nothing closed.

    @property
    def _tracking(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self)
        return self._tracker

    def reply(self, push: Push, response: bytes = b"{}", *, ok: bool = True) -> None:
        """Answers a push."""
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
                self.reply(push, b'"payload_size_exceeded"', ok=False)
            return
        message = self._message(push)
        if message is not None:
            besides = None if self.join.broadcast_self else self._subscription
            services.hub.publish(self.topic_key, message, besides=besides)
        if self.join.broadcast_ack:
            self.reply(push)

    def _message(self, push: Push) -> Broadcast | None:
        if push.user_event is not None:
            return Broadcast(self.topic, push.user_event, push.payload, binary=push.binary)
        # Handed on as it is, further keys included; what is no object cannot be.
        if push.payload[:1] != b"{":
            return None
        event, payload = read_content(push.payload)
        return Broadcast(self.topic, event or "", payload, whole=push.payload)

    async def _ask_to_write(self, push: Push) -> Then:
        granted = await self.write_access("broadcast")
        if granted is None:
            return self.drop_waiting_broadcasts  # the next one asks again
        self._may_write = granted
        return partial(self._broadcast, push)

    async def write_access(self, extension: Extension) -> bool | None:
        """Asks for a right to write; None if the policies could not be asked."""
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
        except JSON_ERRORS:
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
            self._may_write = None
            if self._tracker is not None:
                self._tracker.may_track = None
        self._subscribe()
        self.watch_token()
