"""Who is there: what channels track about themselves, topic by topic (PROTOCOL 11). No I/O here.

Above are the channels, which track and untrack; below is the hub, which brings the differences to
everybody on the topic. What a client tracks is kept as the JSON text that it sent.

    {"<key>": {"metas": [{…, "phx_ref": "…"}]}}
"""

from __future__ import annotations

from itertools import count
from typing import Final, NamedTuple

import msgspec

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
