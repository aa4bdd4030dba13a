"""Who is there: what channels track about themselves, topic by topic (PROTOCOL 11). No I/O here.

Above are the channels, each with a `Tracker` once it needs one; below is the hub, which brings the
differences to everybody on the topic. What a client tracks is kept as the JSON text that it sent.

    {"<key>": {"metas": [{…, "phx_ref": "…"}]}}
"""

from __future__ import annotations

import uuid
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.pushes import Push
from realtime_db.protocol.questions import Then, read_content

if TYPE_CHECKING:
    from realtime_db.hub import Subscription
    from realtime_db.protocol.channel import Channel

_json: Final = msgspec.json.encode


class Tracked(NamedTuple):
    """What one channel says about itself.

    Attributes:
        key: under which it is found; several may share one.
        meta: a JSON object, `phx_ref` included.
        phx_ref: which of all metas it is.
    """

    key: str
    meta: bytes
    phx_ref: str


class Presences:
    """Who is where. An owner is a channel; it tracks one meta at most."""

    def __init__(self) -> None:
        self._topics: dict[tuple[str, bool], dict[object, Tracked]] = {}
        self._numbers = count(1)

    def track(self, topic: tuple[str, bool], owner: object, key: str, payload: bytes) -> bytes:
        """Says, or says anew, what an owner is.

        Args:
            topic: of the hub.
            owner: the channel.
            key: under which.
            payload: a JSON object.

        Returns:
            The difference, for `presence_diff`.
        """
        tracked = self._topics.setdefault(topic, {})
        before = tracked.get(owner)
        ref = f"{next(self._numbers):x}"
        # Behind what the client sent, so that ours count if it has keys of these names.
        ours = b'"phx_ref":"%b"' % ref.encode()
        if before is not None:
            ours += b',"phx_ref_prev":"%b"' % before.phx_ref.encode()
        inner = payload.strip()[1:-1].strip()
        meta = b"{%b,%b}" % (inner, ours) if inner else b"{%b}" % ours
        now = tracked[owner] = Tracked(key, meta, ref)
        return _diff(joins=[now], leaves=[] if before is None else [before])

    def untrack(self, topic: tuple[str, bool], owner: object) -> bytes | None:
        """Takes back what an owner said.

        Returns:
            The difference, for `presence_diff`; None if there was nothing.
        """
        tracked = self._topics.get(topic, {})
        before = tracked.pop(owner, None)
        if before is None:
            return None
        if not tracked:
            del self._topics[topic]
        return _diff(joins=[], leaves=[before])

    def tracks(self, topic: tuple[str, bool], owner: object) -> bool:
        """Whether an owner says anything."""
        return owner in self._topics.get(topic, ())

    def state(self, topic: tuple[str, bool]) -> bytes:
        """Everybody on a topic, for `presence_state`."""
        return _by_key(list(self._topics.get(topic, {}).values()))

    def __len__(self) -> int:
        return len(self._topics)


def _diff(*, joins: list[Tracked], leaves: list[Tracked]) -> bytes:
    return b'{"joins":%b,"leaves":%b}' % (_by_key(joins), _by_key(leaves))


def _by_key(tracked: list[Tracked]) -> bytes:
    metas: dict[str, list[bytes]] = {}
    for one in tracked:
        metas.setdefault(one.key, []).append(one.meta)
    return b"{%b}" % b",".join(
        b'%b:{"metas":[%b]}' % (_json(key), b",".join(some)) for key, some in metas.items()
    )


class Tracker:
    """A channel's part in presence.

    Attributes:
        subscription: to the differences, if the user may know them.
        may_track: what the policies said; None if they were not asked yet.
    """

    __slots__ = ("_channel", "_key", "may_track", "subscription")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._key = channel.join.presence_key or str(uuid.uuid4())
        self.subscription: Subscription | None = None
        self.may_track: bool | None = None if channel.join.private else True

    def follow(self) -> None:
        """Tells who is there, and from now on who comes and goes, if the user may know."""
        channel = self._channel
        if self.subscription is not None or not channel.access.presence:
            return
        connection, services = channel.connection, channel.connection.services
        services.presence_hub.settle(channel.topic_key)
        state = services.presences.state(channel.topic_key)
        connection.send(
            connection.framing.presence_state(channel.topic, state, join_ref=channel.join_ref)
        )
        self.subscription = services.presence_hub.subscribe(
            channel.topic_key, connection.wire, connection.write, over=self._flooded
        )

    def _flooded(self) -> None:
        text = "Too many presence messages per second"
        self._channel.end(text, limit="max_deliveries_per_second")

    def receive(self, push: Push) -> None:
        """Takes a push of the event `presence`."""
        channel = self._channel
        event, payload = read_content(push.payload)
        event = (event or "").lower()
        if event == "untrack":
            self.untrack()
            channel.reply(push)
        elif event != "track":
            channel.reply(push, ok=False)
        elif payload[:1] != b"{":
            reason = b'{"reason":"Presence track payload must be a map"}'
            channel.reply(push, reason, ok=False)
        elif len(payload) > channel.connection.services.settings.max_payload_bytes:
            channel.end("Track message size exceeded", limit="max_payload_bytes")
        elif (limit := channel.connection.limit_reached(push)) is not None:
            channel.end("Client presence rate limit exceeded", limit=limit)
        elif self.may_track is None:
            channel.ask(self._ask_to_track, push, payload)
        else:
            self._track(push, payload)

    async def _ask_to_track(self, push: Push, payload: bytes) -> Then:
        self.may_track = await self._channel.write_access("presence")
        return partial(self._track, push, payload)

    def _track(self, push: Push, payload: bytes) -> None:
        channel = self._channel
        if not self.may_track:
            channel.reply(push, ok=False)
            return
        self.follow()
        presences = channel.connection.services.presences
        self._publish(presences.track(channel.topic_key, channel, self._key, payload))
        channel.reply(push)

    @property
    def tracks(self) -> bool:
        """Whether others see the channel."""
        channel = self._channel
        return channel.connection.services.presences.tracks(channel.topic_key, channel)

    def untrack(self) -> None:
        """Takes back what the channel said about itself."""
        channel = self._channel
        diff = channel.connection.services.presences.untrack(channel.topic_key, channel)
        if diff is not None:
            self._publish(diff)

    def _publish(self, diff: bytes) -> None:
        channel = self._channel
        message = Broadcast(channel.topic, "", diff, presence=True)
        channel.connection.services.presence_hub.publish(channel.topic_key, message)

    def close(self) -> None:
        """The channel has ended."""
        if self.subscription is not None:
            self._channel.connection.services.presence_hub.unsubscribe(self.subscription)
            self.subscription = None
        self.untrack()
