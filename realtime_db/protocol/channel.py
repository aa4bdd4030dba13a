"""One joined topic of a connection: what its client may do, and what it is told. No I/O here.

Above is `connection`, which finds the channel that a push is for; below are the hub and, by way of
`Services`, the questions to the database. While a channel waits for an answer to a question, its
join above all, it keeps the pushes that come meanwhile, in their order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from realtime_db.auth.access import Access, CheckFailed
from realtime_db.auth.tokens import Claims, TokenError, stands_for_connection_key
from realtime_db.cursors import Snapshot
from realtime_db.hub import Key, Subscription
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.join import Join
from realtime_db.protocol.persist import (
    PUBLIC,
    TOO_LARGE,
    UNAUTHORIZED,
    UNCHECKED,
    Persist,
    Persister,
    read_persist,
)
from realtime_db.protocol.presence import Tracker
from realtime_db.protocol.pushes import Push
from realtime_db.protocol.questions import JSON_ERRORS, Asking, State, Then, read_content
from realtime_db.protocol.rechecks import NO_LONGER
from realtime_db.protocol.replaying import Again, Held

if TYPE_CHECKING:
    from realtime_db.protocol.connection import Connection
    from realtime_db.protocol.services import Extension, Resumption
    from realtime_db.wheel import Timer

RECHECK_SECONDS: Final = 300.0
"""A token is looked at again at least so often (PROTOCOL 6)."""

RETRY_SECONDS: Final = 5.0
"""When policies that could not be asked again are asked once more."""

REPLICATION_SECONDS: Final = 60.0
"""How long a channel waits for the database stream, if it asked to be told."""

_TOO_MANY: Final = {
    "max_messages_per_second": "Too many messages per second",
    "max_bytes_per_second": "Too many bytes per second",
}

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
        "_asked", "_check_at", "_check_due", "_held", "_may_write", "_persister", "_subscription",
        "_timer", "_tracker", "access", "claims", "connection", "join", "join_ref", "token",
        "topic",
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
        self._asked: Push | None = None  # the broadcast that they are asked about
        self._check_at = math.inf
        self._check_due = False
        self._subscription: Subscription | None = None
        self._tracker: Tracker | None = None
        self._persister: Persister | None = None
        self._timer: Timer | None = None
        self._held: Held | None = None
        if join.private:
            connection.services.rechecks.add(self.sub_topic, self)

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
        """Keeps what is published from now on, until what is stored has been read and sent."""
        if self.is_open:
            services = self.connection.services
            self._held = Held(
                services.hub,
                [self.topic_key],
                max_bytes=services.settings.max_write_buffer_bytes,
                too_much=self._held_too_much,
            )

    def skip(self, seen: Snapshot) -> None:
        """Keeps nothing that a snapshot shows, for that is sent from the table."""
        if self._held is not None:
            self._held.skip(seen)

    def _held_too_much(self) -> None:
        text = "a client was thrown out: too much was sent to %s while it was sent what is stored"
        self.connection.services.limits.over("max_write_buffer_bytes", text, self.topic)
        self.connection.throw_out()

    @property
    def is_behind(self) -> bool:
        """Whether its join has not been answered, or it is still being sent what is stored."""
        return self._timer is None or self._held is not None

    def opened(self) -> None:
        """The join has been answered: what follows the reply."""
        self._rights_are_known()
        self.watch_token()
        services = self.connection.services
        if self.join.presence_enabled:
            self._tracking.follow()
        if self.join.postgres_changes:
            text = "postgres_changes are not served here: use broadcast triggers"
            self.say(text, ok=False, extension="postgres_changes")
        if self.join.replication_ready:
            services.await_replication(self._replication_ready)
            late = services.now() + REPLICATION_SECONDS
            services.wheel.schedule(late, self._replication_late)

    async def resume(self, resumption: Resumption) -> Then:
        """Sends what came after a cursor, as fast as the client takes it."""
        again = Again(self)
        async for page in resumption.pages():
            # If rights were withdrawn, the next join asks for them first.
            if self._check_due or not self.is_open:
                return self.crash
            again.send(page)
            if not await self.connection.drained():
                return self.crash
        if self.is_open:
            again.end(resumption.cursor)
        return partial(self.caught_up, resumption.seen)

    def caught_up(self, seen: Snapshot | None) -> None:
        """All that is stored has been sent: what was published meanwhile, and what comes live.

        Args:
            seen: what the client has been sent, or did not want.
        """
        if self._held is not None:
            held, self._held = self._held, None
            for message in held.release(seen):
                data = self.connection.wire.encode(message)
                if data:
                    self.connection.write(data)
        self._subscribe(seen)

    def _subscribe(self, seen: Snapshot | None = None) -> None:
        """Begins to get what is published, if the user may read it."""
        if self.access.broadcast and self._subscription is None:
            connection = self.connection
            self._subscription = connection.services.hub.subscribe(
                self.topic_key, connection.wire, connection.write, seen=seen, over=self._flooded
            )

    def _flooded(self) -> None:
        self.end("Too many messages per second", limit="max_deliveries_per_second")

    @property
    def own_subscription(self) -> Subscription | None:
        """Which one does not get what the channel itself sends."""
        return None if self.join.broadcast_self else self._subscription

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
        if self._persister is not None:
            self._persister.close()
        if self.join.private:
            services.rechecks.remove(self.sub_topic, self)
        if self._held is not None:
            self._held.drop()
            self._held = None
        if self._timer is not None:
            self._timer.cancel()
        if self.join.replication_ready:
            services.forget_replication(self._replication_ready)

    def crash(self) -> None:
        self.connection.send(self.connection.framing.error(self.topic, join_ref=self.join_ref))
        self.connection.forget(self)

    def end(self, message: str, *, limit: str | None = None) -> None:
        """Ends it with a reason: a system message, then phx_close (PROTOCOL 5).

        Args:
            message: for the client.
            limit: which one it was over, if that is why.
        """
        self.say(message, ok=False)
        self.close()
        services = self.connection.services
        if limit is None:
            services.log.info("channel %s ended: %s", self.topic, message)
        else:
            services.limits.over(limit, "channel %s ended: %s", self.topic, message)

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
        if self.state is State.ASKING and not self._leaves_early(push):
            self.keep(push)
        elif push.event == "broadcast":
            limit = self.connection.limit_reached(push)
            if limit is None:
                self._broadcast(push)
            else:
                self.end(_TOO_MANY[limit], limit=limit)
        elif push.event == "phx_leave":
            self.reply(push)
            self.close()
        elif push.event == "access_token":
            self._access_token(push)
        elif push.event == "presence":
            self._tracking.receive(push)
        # An unknown event is ignored: no reply, nothing closed.

    def _leaves_early(self, push: Push) -> bool:
        """Whether it is a leave that need not wait until all that is stored has been sent."""
        return push.event == "phx_leave" and self.is_behind and self._timer is not None

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
        wish = _persist_wish(push)
        if isinstance(wish, str) or (wish is not None and not self.join.private):
            self._persisting.refuse(push, wish if isinstance(wish, str) else PUBLIC)
            return
        if self._may_write is None:
            self._asked = push
            self.ask(self._ask_to_write, push)
            return
        if not self._may_write:
            if wish is not None:
                self._persisting.refuse(push, UNAUTHORIZED)
            return  # else dropped without a reply, even if one was asked for
        services = self.connection.services
        if len(push.payload) > services.settings.max_payload_bytes:
            text = "a broadcast of %d bytes to %s was not sent"
            services.limits.over("max_payload_bytes", text, len(push.payload), self.topic)
            if wish is not None:
                self._persisting.refuse(push, TOO_LARGE)
            elif self.join.broadcast_ack:
                self.reply(push, b'"payload_size_exceeded"', ok=False)
            else:  # nothing was asked, but a message was lost
                self.say("payload_size_exceeded", ok=False)
            return
        if wish is not None:
            self._persisting.store(push, wish)
            return
        if self._persister is not None and self._persister.wait(partial(self._broadcast, push)):
            return
        message = self._message(push)
        if message is not None:
            services.hub.publish(self.topic_key, message, besides=self.own_subscription)
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
        self._asked = None
        if granted is None:
            return partial(self._unchecked, push)
        self._may_write = granted
        return partial(self._broadcast, push)

    def _unchecked(self, push: Push) -> None:
        """Drops a broadcast that nobody knows about, and those that wait. The next one asks."""
        for one in (push, *self.drop_waiting_broadcasts()):
            if _persist_wish(one) is not None:
                self._persisting.refuse(one, UNCHECKED)

    def refuse_waiting(self, reason: str) -> None:
        """Drops the broadcasts that wait; whose sender wanted them stored waits for an answer."""
        asked, self._asked = self._asked, None
        for one in ([] if asked is None else [asked]) + self.drop_waiting_broadcasts():
            if _persist_wish(one) is not None:
                self._persisting.refuse(one, reason)

    @property
    def _persisting(self) -> Persister:
        if self._persister is None:
            self._persister = Persister(self)
        return self._persister

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
            services.log.info("write to %s denied: %s", self.topic, granted.why_not)
        return bool(granted)

    # Tokens (PROTOCOL 5 and 6)

    def watch_token(self) -> None:
        """Looks at the token again when it ends, and at least every five minutes.

        And at the policies, when that is due.
        """
        if self._timer is not None:
            self._timer.cancel()
        services = self.connection.services
        assert self.claims is not None, "a channel is not joined without"
        due = min(self.claims.exp, services.now() + RECHECK_SECONDS, self._check_at)
        self._timer = services.wheel.schedule(due, self._check_token)

    def keys_changed(self) -> None:
        """Looks at the token at once, unless the join is still to be answered."""
        if self._timer is not None:
            self._check_token()

    def _check_token(self) -> None:
        """By then its key may have been retired, too."""
        services = self.connection.services
        try:
            services.keys.verify_known(self.token, services.now())
        except TokenError as error:
            self.end(error.close)
            return
        if services.now() >= self._check_at:
            self._check_at = math.inf
            services.rechecks.ask(self)
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
        if self._loses(access):
            return partial(self.end, f"{NO_LONGER}: {self.sub_topic}")
        return partial(self._renewed, token, claims, access)

    def _loses(self, access: Access) -> bool:
        """Whether what may be read now is less than it was."""
        before = self.access
        return before.broadcast > access.broadcast or before.presence > access.presence

    def _renewed(self, token: str, claims: Claims, access: Access) -> None:
        self.token, self.claims, self.access = token, claims, access
        self.forget_rights()
        self._rights_are_known()
        self._subscribe()
        self.watch_token()

    # Rights, again (`rechecks`)

    def _rights_are_known(self) -> None:
        """The policies have just been asked what may be read."""
        if self.join.private:
            services = self.connection.services
            self._check_at = services.rechecks.next_at(services.now())

    def forget_rights(self) -> None:
        if self.join.private:
            self._may_write = None
            if self._tracker is not None:
                self._tracker.may_track = None

    async def check_again(self) -> None:
        if self.state is State.JOINED:
            self.state = State.ASKING
            await self._ask(self._check)
        elif self.state is State.ASKING:
            self._check_due = True  # the answer to what is asked may be older

    def answered(self) -> None:
        if self._check_due:
            self._check_due = False
            self.ask(self._check)

    async def _check(self) -> Then:
        services, headers = self.connection.services, self.connection.headers
        assert self.claims is not None, "a channel is not joined without"
        may_track = None
        try:
            access = await services.policies.read_access(self.sub_topic, self.claims, headers)
            if self._tracker is not None and self._tracker.tracks:
                may_track = await services.policies.write_access(
                    self.sub_topic, self.claims, headers, "presence"
                )
        except CheckFailed as error:
            services.log.warning("rights to %s not checked again: %s", self.topic, error)
            return self._check_later
        if self._loses(access):
            return partial(self.end, f"{NO_LONGER}: {self.sub_topic}")
        return partial(self._checked, access, may_track is not None and not may_track)

    def _check_later(self) -> None:
        """It goes on as it is, for a database that is away must not end all channels."""
        services = self.connection.services
        again = partial(services.rechecks.ask, self)
        services.wheel.schedule(services.now() + RETRY_SECONDS, again)

    def _checked(self, access: Access, untrack: bool) -> None:
        self.access = access
        self.forget_rights()
        if untrack and self._tracker is not None:
            self._tracker.untrack()
        self._rights_are_known()
        self._subscribe()
        self.watch_token()


def _persist_wish(push: Push) -> Persist | str | None:
    """Whether a broadcast is to be stored; or what is wrong with the wish."""
    return None if push.metadata is None else read_persist(push.metadata.get("persist"))
