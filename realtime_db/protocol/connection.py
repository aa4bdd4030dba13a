"""One WebSocket of a client: heartbeats, joins, and which channel a push is for. No I/O here.

Above is the transport, which gives whole messages and takes frames; below are the channels. What
needs the database or new keys is a coroutine that the transport runs (`start`); everything else is
answered at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from realtime_db.auth.access import CheckFailed
from realtime_db.auth.tokens import Expired, TokenError
from realtime_db.cursors import Cursor
from realtime_db.hub import Wire
from realtime_db.protocol.broadcast import Replayed, messages_missing
from realtime_db.protocol.channel import Channel
from realtime_db.protocol.frames import Frame, Framing
from realtime_db.protocol.join import Join, asks_for_cursor, parse_join
from realtime_db.protocol.limits import Rate
from realtime_db.protocol.persist import IS_RESTARTING
from realtime_db.protocol.pushes import MalformedFrame, Push
from realtime_db.protocol.questions import Then
from realtime_db.protocol.replaying import Again
from realtime_db.protocol.services import Services as Services

GOING_AWAY: Final = 1001
RESTARTING: Final = 1012
MAX_TOPIC_BYTES: Final = 246
"""Of a sub-topic; a binary frame has 255 for the whole one (PROTOCOL 3)."""
MAX_WAITING_BYTES: Final = 1_048_576
PUSH_BYTES: Final = 400
"""What a push that waits takes besides its payload, about."""

_PHOENIX: Final = "phoenix"
_PREFIX: Final = "realtime:"
_JOIN_RATE: Final = "ClientJoinRateLimitReached: Too many joins per second"
_TOO_MANY_CHANNELS: Final = "ChannelRateLimitReached: Too many channels"
_LIMITS: Final = {
    _JOIN_RATE: "max_joins_per_second",
    _TOO_MANY_CHANNELS: "max_channels_per_connection",
}


class Connection:
    """What a client has joined on one WebSocket.

    Args:
        services: of the server.
        framing: what the client speaks.
        key: the token that it connected with, which has been verified.
        headers: the `x-…` headers of its request, for policies.
        wire: what the hub encodes for this client with.
        write: writes bytes that `wire` made.
        send: writes one frame.
        start: runs a coroutine beside, and cancels it when the connection ends.
        close: closes the WebSocket with a code and a reason.
        read: says whether to read more from the client, or to let it wait.
        drained: waits until the client has taken nearly all that was written; false if it is gone.
    """

    __slots__ = (
        "_bytes", "_messages", "_waiting_bytes", "channels", "close", "drained", "framing",
        "headers", "key", "read", "send", "services", "start", "wire", "write",
    )  # fmt: skip

    def __init__(
        self,
        services: Services,
        framing: Framing,
        key: str,
        headers: Mapping[str, str],
        *,
        wire: Wire,
        write: Callable[[bytes], object],
        send: Callable[[Frame], None],
        start: Callable[[Coroutine[Any, Any, None]], object],
        close: Callable[[int, str], None],
        read: Callable[[bool], None],
        drained: Callable[[], Awaitable[bool]],
    ) -> None:
        self.services = services
        self.framing = framing
        self.key = key
        self.headers = headers
        self.wire = wire
        self.write = write
        self.send = send
        self.start = start
        self.close = close
        self.read = read
        self.drained = drained
        self.channels: dict[str, Channel] = {}
        self._messages = Rate(services.settings.max_messages_per_second)
        self._bytes = Rate(services.settings.max_bytes_per_second)
        self._waiting_bytes = 0

    def receive(self, data: bytes, *, binary: bool) -> None:
        """Takes one message of the client; never raises for what the client did."""
        try:
            push = self.framing.decode(data, binary=binary)
        except MalformedFrame as error:
            self._malformed(error)
            return
        if push.topic == _PHOENIX and push.event == "heartbeat":
            self._heartbeat(push)
        elif push.event == "phx_join":
            self._join(push)
        else:
            self.route(push)

    def _heartbeat(self, push: Push) -> None:
        """Answers; a client that asks for it is told the cursor of who has been given all so far.

        It is not that of a channel that waits for its join, or is being sent what is stored.
        """
        cursor = ""
        if push.payload != b"{}" and asks_for_cursor(push.payload):
            is_behind = any(channel.is_behind for channel in self.channels.values())
            cursor = "" if is_behind else self.services.progress.now
        response = b'{"cursor":"%b"}' % cursor.encode() if cursor else b"{}"
        self.send(self.framing.reply(_PHOENIX, join_ref=None, ref=push.ref, response=response))

    def route(self, push: Push) -> None:
        """Hands a push to its channel, if there is one."""
        channel = self.channels.get(push.topic)
        if channel is not None:
            channel.receive(push)
        elif push.event == "phx_leave":
            self.send(self.framing.reply(push.topic, join_ref=None, ref=push.ref))
        else:
            self._unmatched(push)

    def _malformed(self, error: MalformedFrame) -> None:
        self.services.log.info("MalformedWebSocketMessage: %s", error)

    def _unmatched(self, push: Push) -> None:
        self.send(self.framing.refuse(push.topic, "unmatched topic", join_ref=None, ref=push.ref))

    def limit_reached(self, push: Push) -> str | None:
        """Counts a message of the client; the setting that it is over, if it is."""
        now = self.services.now()
        if not self._messages.allow(now):
            return "max_messages_per_second"
        if not self._bytes.allow(now, len(push.payload)):
            return "max_bytes_per_second"
        return None

    def waits(self, payload_bytes: int, pushes: int = 1) -> None:
        """Counts a push that waits for an answer; or with -1, that does no longer.

        A client with too many of them is not read from until they are fewer.
        """
        before = self._waiting_bytes
        self._waiting_bytes = before + pushes * (payload_bytes + PUSH_BYTES)
        if before <= MAX_WAITING_BYTES < self._waiting_bytes:
            self.read(False)
        elif self._waiting_bytes <= MAX_WAITING_BYTES < before:
            self.read(True)

    def write_with(self, write: Callable[[bytes], object]) -> None:
        """Writes in another way from now on."""
        self.write = write
        for channel in self.channels.values():
            for subscription in channel.subscriptions:
                subscription.write = write

    def throw_out(self) -> None:
        """Ends it, for its client is too far behind, or too much is kept for it."""
        self.close(GOING_AWAY, "")

    def forget(self, channel: Channel) -> None:
        """Ends a channel without a word."""
        channel.closed()
        if self.channels.get(channel.topic) is channel:
            del self.channels[channel.topic]

    def closed(self) -> None:
        """The socket is gone, or about to go: nothing may be written to it any more."""
        for channel in list(self.channels.values()):
            self.forget(channel)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes = 0
            self.read(True)

    def disconnect_requested(self) -> None:
        """Tells every channel that the server is about to close the connection (PROTOCOL 4)."""
        text = "Server requested disconnect"
        for channel in self.channels.values():
            channel.refuse_waiting(IS_RESTARTING)
            channel.say(text, ok=True)

    def keys_changed(self) -> bool:
        """Ends what the keys do not open any more: channels, or all of it (PROTOCOL 4).

        Returns:
            Whether the connection goes on.
        """
        services = self.services
        try:
            services.keys.verify_known(self.key, services.now())
        except Expired:
            pass  # nobody asks for it after the handshake (PROTOCOL 6)
        except TokenError:
            self.disconnect_requested()
            self.close(RESTARTING, "Keys have changed")
            return False
        for channel in list(self.channels.values()):
            channel.keys_changed()
        return True

    # Joins (PROTOCOL 5)

    def _join(self, push: Push) -> None:
        if not push.topic.startswith(_PREFIX):
            self._unmatched(push)
            return
        try:
            join = parse_join(push.payload, max_replay=self.services.settings.max_replay)
        except MalformedFrame as error:
            self._malformed(error)
            return
        previous = self.channels.get(push.topic)
        if previous is not None:
            previous.close()
        reason = self._refusal(push.topic, join)
        if reason is not None:
            self._refuse(push, reason)
            if reason == _JOIN_RATE:
                self.close(GOING_AWAY, "")
            return
        token = self.key if join.access_token is None else join.access_token
        try:
            claims = self.services.keys.verify_known(token, self.services.now())
        except TokenError as error:
            if error.unknown_kid is None:
                self._refuse(push, error.join)
                return
            claims = None  # there may be a new key by now
        channel = Channel(self, push.topic, _join_ref(push), join, token, claims)
        self.channels[push.topic] = channel
        if claims is None or join.private or join.cursor is not None:
            channel.ask(self._ask_to_join, channel, push)
        elif join.replay_refusal is not None:
            self._refuse_channel(channel, push, join.replay_refusal)
        else:
            self._joined(channel, push)

    def _refusal(self, topic: str, join: Join) -> str | None:
        """Why a join is refused before anything is asked, in the order of PROTOCOL 5."""
        services, settings = self.services, self.services.settings
        if services.restarting:
            return IS_RESTARTING
        if topic == _PREFIX:
            return "TopicNameRequired: You must provide a topic name"
        size = len(topic.encode()) - len(_PREFIX)
        if size > MAX_TOPIC_BYTES:
            return f"TopicNameTooLong: A topic has at most {MAX_TOPIC_BYTES} bytes, this one {size}"
        if settings.private_only and not join.private:
            return "PrivateOnly: This project only allows private channels"
        if not services.joins.allow(services.now()):
            return _JOIN_RATE
        if len(self.channels) >= settings.max_channels_per_connection:
            return _TOO_MANY_CHANNELS
        return None

    def _refuse(self, push: Push, reason: str) -> None:
        limit = _LIMITS.get(reason)
        if limit is None:
            self.services.log.info("join of %.300s refused: %s", push.topic, reason)
        else:
            self.services.limits.over(limit, "join of %.300s refused", push.topic)
        self.send(self.framing.refuse(push.topic, reason, join_ref=_join_ref(push), ref=push.ref))

    def _refuse_channel(self, channel: Channel, push: Push, reason: str) -> None:
        self.forget(channel)
        self._refuse(push, reason)

    async def _ask_to_join(self, channel: Channel, push: Push) -> Then:
        """A join that has to ask: for keys, for policies, for stored messages."""
        refuse = partial(self._refuse_channel, channel, push)
        try:
            reason = await self._why_not(channel)
            if reason is not None:
                return partial(refuse, reason)
            if channel.join.cursor is not None:
                return await self._resume(channel, push, channel.join.cursor)
            if channel.join.replay is not None and channel.is_open:
                channel.hold()
                replayed = await self.services.stored.latest(
                    channel.sub_topic, channel.join.replay, self.services
                )
                return partial(self._replayed, channel, push, replayed)
        except TokenError as error:
            return partial(refuse, error.join)
        except CheckFailed as error:
            self.services.log.warning("join of %s not checked: %s", channel.topic, error)
            return partial(refuse, error.join)
        except Exception:
            self.services.log.exception("the join of %s failed", channel.topic)
            return partial(refuse, "Unknown Error on Channel")
        return partial(self._joined, channel, push)

    async def _why_not(self, channel: Channel) -> str | None:
        """Asks for keys and policies; why the join is refused, if it is."""
        services = self.services
        claims = channel.claims
        if claims is None:
            claims = channel.claims = await services.keys.verify(channel.token, services.now())
        if not channel.join.private:
            return channel.join.replay_refusal
        access = channel.access = await services.policies.read_access(
            channel.sub_topic, claims, self.headers
        )
        if not access and access.reason:
            services.log.info("read of %s denied: %s", channel.topic, access.reason)
        wants_messages = channel.join.replay is not None or channel.join.cursor is not None
        if not access or (wants_messages and not access.broadcast):
            text = "Unauthorized: You do not have permissions to read from this Channel topic"
            return f"{text}: {channel.sub_topic}"
        return channel.join.replay_refusal

    async def _resume(self, channel: Channel, push: Push, cursor: Cursor) -> Then:
        """A join that goes on after a cursor. It is answered before all has been read."""
        services = self.services
        answered = False
        try:
            async with services.stored.resume(
                [channel.sub_topic],
                private=channel.join.private,
                cursor=cursor,
                services=services,
                subscriber=channel,
            ) as resumption:
                if channel.is_open:
                    answered = True
                    after = resumption.cursor if resumption.is_empty else str(cursor)
                    self._answer(channel, push, after, resumption.gap)
                return await channel.resume(resumption)
        except CheckFailed as error:
            if not answered:
                raise
            services.log.warning("resume of %s failed: %s", channel.topic, error)
            return channel.crash

    def _replayed(self, channel: Channel, push: Push, replayed: Replayed) -> None:
        """A join that wants the latest; the last of them has the cursor."""
        again = Again(channel)
        self._answer(channel, push, "" if replayed.messages else replayed.cursor)
        again.send(replayed.messages)
        again.end(replayed.cursor)
        channel.caught_up(replayed.seen)

    def _joined(self, channel: Channel, push: Push) -> None:
        self._answer(channel, push, self.services.progress.here)
        channel.caught_up(None)

    def _answer(self, channel: Channel, push: Push, cursor: str, gap: str | None = None) -> None:
        """Says that a channel is joined, and from where on it is given everything."""
        response = b'{"postgres_changes":[%b]' % _answered_changes(channel.join)
        if cursor:
            response += b',"cursor":"%b"' % cursor.encode()
        if gap is not None:
            response += b',"gap":"%b"' % gap.encode()
        response += b"}"
        self.send(
            self.framing.reply(
                channel.topic, join_ref=channel.join_ref, ref=push.ref, response=response
            )
        )
        channel.opened()
        if gap is not None:
            channel.say(messages_missing(gap), ok=False)


def _answered_changes(join: Join) -> bytes:
    """Each request with an id added, which is what the clients compare (PROTOCOL 5)."""
    return b",".join(
        msgspec.json.encode({**request, "id": number})
        for number, request in enumerate(join.postgres_changes, start=1)
    )


def _join_ref(push: Push) -> str | None:
    return push.ref if push.join_ref is None else push.join_ref
