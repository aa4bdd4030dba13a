"""One WebSocket of a client: heartbeats, joins, and which channel a push is for. No I/O here.

Above is the transport, which gives whole messages and takes frames; below are the channels. What
needs the database or new keys is a coroutine that the transport runs (`start`); everything else is
answered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from realtime_db.auth.access import Access, CheckFailed
from realtime_db.auth.tokens import Claims, TokenError
from realtime_db.hub import Hub, Wire
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.channel import Channel
from realtime_db.protocol.frames import Frame, Framing
from realtime_db.protocol.join import Join, Replay, parse_join
from realtime_db.protocol.limits import Rate
from realtime_db.protocol.pushes import MalformedFrame, Push
from realtime_db.settings import Settings
from realtime_db.wheel import Wheel

_PHOENIX: Final = "phoenix"
_PREFIX: Final = "realtime:"
GOING_AWAY: Final = 1001


class Keys(Protocol):
    """What verifies tokens; `auth.keys` in the server."""

    def verify_known(self, token: str, now: float) -> Claims:
        """With the keys that there are; raises TokenError."""

    async def verify(self, token: str, now: float) -> Claims:
        """With new keys, if it names one that is not known; raises TokenError."""


class Policies(Protocol):
    """What asks the policies; `auth.policies` in the server."""

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        """Raises CheckFailed."""

    async def write_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Raises CheckFailed."""


class Stored(Protocol):
    """What reads stored messages; `replay` in the server."""

    async def latest(self, topic: str, replay: Replay) -> list[Broadcast]:
        """Oldest first; raises CheckFailed."""


class Services:
    """What the connections of a server share."""

    def __init__(
        self,
        *,
        settings: Settings,
        hub: Hub,
        keys: Keys,
        policies: Policies,
        stored: Stored,
        wheel: Wheel,
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.keys = keys
        self.policies = policies
        self.stored = stored
        self.wheel = wheel
        self.now = now
        self.log = log
        self.joins = Rate(settings.max_joins_per_second)
        self.dropped_too_large = 0
        self.slow_clients = 0
        self.replicating = False
        self.restarting = False


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
    """

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
        self.channels: dict[str, Channel] = {}

    def receive(self, data: bytes, *, binary: bool) -> None:
        """Takes one message of the client; never raises for what the client did."""
        try:
            push = self.framing.decode(data, binary=binary)
        except MalformedFrame as error:
            self.services.log.info("MalformedWebSocketMessage: %s", error)
            return
        if push.topic == _PHOENIX:
            if push.event == "heartbeat":
                self.send(self.framing.reply(_PHOENIX, join_ref=None, ref=push.ref))
                return
        elif push.event == "phx_join":
            self._join(push)
            return
        channel = self.channels.get(push.topic)
        if channel is not None:
            channel.receive(push)
        elif push.event == "phx_leave":
            self.send(self.framing.reply(push.topic, join_ref=None, ref=push.ref))
        else:
            self._unmatched(push)

    def _unmatched(self, push: Push) -> None:
        self.send(self.framing.refuse(push.topic, "unmatched topic", join_ref=None, ref=push.ref))

    def forget(self, channel: Channel) -> None:
        """Ends a channel without a word."""
        channel.closed()
        if self.channels.get(channel.topic) is channel:
            del self.channels[channel.topic]

    def closed(self) -> None:
        """The socket is gone."""
        for channel in list(self.channels.values()):
            self.forget(channel)

    def disconnect_requested(self) -> None:
        """Tells every channel that the server is about to close the connection (PROTOCOL 4)."""
        for channel in self.channels.values():
            self.send(
                self.framing.system(
                    channel.topic,
                    "Server requested disconnect",
                    join_ref=channel.join_ref,
                    ok=True,
                )
            )

    # Joins (PROTOCOL 5)

    def _join(self, push: Push) -> None:
        if not push.topic.startswith(_PREFIX):
            self._unmatched(push)
            return
        join_ref = push.ref if push.join_ref is None else push.join_ref
        previous = self.channels.get(push.topic)
        if previous is not None:
            self.send(self.framing.close(previous.topic, join_ref=previous.join_ref))
            self.forget(previous)
        settings = self.services.settings
        try:
            join = parse_join(push.payload, max_replay=settings.max_replay)
        except MalformedFrame as error:
            self.services.log.info("MalformedWebSocketMessage: %s", error)
            return
        reason = self._refusal(push.topic, join)
        if reason is not None:
            self._refuse(push, join_ref, reason)
            return
        token = self.key if join.access_token is None else join.access_token
        try:
            claims = self.services.keys.verify_known(token, self.services.now())
        except TokenError as error:
            if error.unknown_kid is None:
                self._refuse(push, join_ref, error.join)
                return
            claims = None  # there may be a new key by now
        channel = Channel(self, push.topic, join_ref, join, token, claims)
        self.channels[push.topic] = channel
        if claims is None or join.private or join.replay_refusal:
            self.start(self._join_slowly(channel, push))
        else:
            self._joined(channel, push)

    def _refusal(self, topic: str, join: Join) -> str | None:
        """Why a join is refused before anything is asked, in the order of PROTOCOL 5."""
        services, settings = self.services, self.services.settings
        if services.restarting:
            return "RealtimeRestarting: Realtime is restarting, please standby"
        if topic == _PREFIX:
            return "TopicNameRequired: You must provide a topic name"
        if len(topic.encode()) > 255:
            return f"TopicNameTooLong: A topic has at most 246 bytes, this one {len(topic) - 9}"
        if settings.private_only and not join.private:
            return "PrivateOnly: This project only allows private channels"
        if not services.joins.allow(services.now()):
            self.close(GOING_AWAY, "")
            return "ClientJoinRateLimitReached: Too many joins per second"
        if len(self.channels) >= settings.max_channels_per_connection:
            return "ChannelRateLimitReached: Too many channels"
        return None

    def _refuse(self, push: Push, join_ref: str | None, reason: str) -> None:
        self.services.log.info("join of %s refused: %s", push.topic[:300], reason)
        self.send(self.framing.refuse(push.topic, reason, join_ref=join_ref, ref=push.ref))

    async def _join_slowly(self, channel: Channel, push: Push) -> None:
        """A join that has to ask: for keys, for policies, for stored messages."""
        services = self.services
        replayed: list[Broadcast] = []
        try:
            if channel.claims is None:
                channel.claims = await services.keys.verify(channel.token, services.now())
            if channel.join.private:
                channel.access = await services.policies.read_access(
                    channel.sub_topic, channel.claims, self.headers
                )
            reason = self._refusal_after_asking(channel)
            if reason is None and channel.join.replay is not None:
                channel.hold()
                replayed = await services.stored.latest(channel.sub_topic, channel.join.replay)
        except TokenError as error:
            reason = error.join
        except CheckFailed as error:
            services.log.warning("join of %s not checked: %s", channel.topic, error)
            reason = error.join
        if self.channels.get(channel.topic) is not channel:
            return  # joined again, or left, in the meantime
        if reason is not None:
            self.forget(channel)
            self._refuse(push, channel.join_ref, reason)
            return
        self._joined(channel, push, replayed)

    def _refusal_after_asking(self, channel: Channel) -> str | None:
        if not channel.access:
            if channel.access.reason:
                self.services.log.info(
                    "read of %s denied: %s", channel.topic, channel.access.reason
                )
            return (
                "Unauthorized: You do not have permissions to read from this Channel topic: "
                f"{channel.sub_topic}"
            )
        if channel.join.replay is not None and not channel.access.broadcast:
            return (
                "Unauthorized: You do not have permissions to read from this Channel topic: "
                f"{channel.sub_topic}"
            )
        return channel.join.replay_refusal

    def _joined(
        self, channel: Channel, push: Push, replayed: list[Broadcast] | None = None
    ) -> None:
        changes = b",".join(channel.postgres_changes())
        response = b'{"postgres_changes":[%b]}' % changes
        self.send(
            self.framing.reply(
                channel.topic, join_ref=channel.join_ref, ref=push.ref, response=response
            )
        )
        for frame in channel.frames_after_join():
            self.send(frame)
        channel.opened(replayed or [])
