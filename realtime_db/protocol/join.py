"""The payload of `phx_join` to what the channel is asked to do. No I/O here.

Below is `pushes`, whose `Push.payload` comes in here; above is the channel. Nothing in a payload
refuses a join but `replay`: parts that are missing, null or of the wrong type count as not given
(PROTOCOL 5), because clients differ in what they send for "nothing".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import msgspec

from realtime_db.cursors import Cursor, InvalidCursor
from realtime_db.protocol.pushes import MalformedFrame

REPLAY_ON_PUBLIC_CHANNEL: Final = (
    "UnableToReplayMessages: Replay is not allowed for public channels"
)
REPLAY_NOT_VALID: Final = "UnableToReplayMessages: Replay params are not valid"

# The years 1 to 9999 in milliseconds since 1970: what a timestamp of Python's can be.
_SINCE_RANGE_MS: Final = range(-62_135_596_800_000, 253_402_300_800_000)

_decode: Final = msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Replay:
    """Which stored messages a channel wants (PROTOCOL 7.4).

    Attributes:
        since_ms: those since then, in milliseconds since 1970 UTC.
        limit: the latest so many.
    """

    since_ms: int
    limit: int


@dataclass(frozen=True, slots=True)
class Join:
    """What a channel is asked to do; the defaults are those of PROTOCOL 5.

    Attributes:
        private: whether only those may join whom a policy lets.
        broadcast_ack: whether broadcasts of the channel are answered.
        broadcast_self: whether the channel gets its own broadcasts.
        replication_ready: whether it is told when the database stream runs.
        replay: what to send it after the join.
        cursor: what the client has been given; it is sent all that came after it.
        replay_refusal: the reason with which its wish for a replay refuses the join.
        presence_enabled: whether it follows presence from the start.
        presence_key: under which key it tracks; None to make one up.
        postgres_changes: what it asks for, with all fields, in order; each is to be answered.
        access_token: the user's token; None if that of the connection counts.
    """

    private: bool = False
    broadcast_ack: bool = False
    broadcast_self: bool = False
    replication_ready: bool = False
    replay: Replay | None = None
    cursor: Cursor | None = None
    replay_refusal: str | None = None
    presence_enabled: bool = False
    presence_key: str | None = None
    postgres_changes: tuple[dict[str, Any], ...] = ()
    access_token: str | None = None


def parse_join(payload: bytes, *, max_replay: int = 25) -> Join:
    """Reads the payload of a `phx_join`.

    Args:
        payload: its JSON text.
        max_replay: how many messages a replay has at most, and if the client does not say.

    Raises:
        MalformedFrame: the payload is no JSON, which cannot happen to that of a `Push`, or nests
            too deeply to be decoded.
    """
    try:
        given = _object(_decode(payload))
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"no payload of a join: {error}") from error
    config = _object(given.get("config"))
    broadcast = _object(config.get("broadcast"))
    presence = _object(config.get("presence"))
    changes = config.get("postgres_changes")
    private = _flag(config.get("private"))
    replay = _replay(broadcast, private, max_replay)
    return Join(
        private=private,
        broadcast_ack=_flag(broadcast.get("ack")),
        broadcast_self=_flag(broadcast.get("self")),
        replication_ready=_flag(broadcast.get("replication_ready")),
        replay=replay if isinstance(replay, Replay) else None,
        cursor=replay if isinstance(replay, Cursor) else None,
        replay_refusal=replay if isinstance(replay, str) else None,
        presence_enabled=_flag(presence.get("enabled")),
        presence_key=_text(presence.get("key")) or None,
        postgres_changes=tuple(item for item in changes if isinstance(item, dict))
        if isinstance(changes, list)
        else (),
        access_token=_token(given),
    )


def asks_for_cursor(payload: bytes) -> bool:
    """Whether the payload of a heartbeat wants to hear how far its client has been served."""
    try:
        return _object(_decode(payload)).get("cursor") is True
    except (ValueError, RecursionError):
        return False


def _replay(
    broadcast: dict[str, Any], private: bool, max_replay: int
) -> Replay | Cursor | str | None:
    """What is to be replayed, or the reason why the join is refused (PROTOCOL 7.4).

    A cursor goes on where a client was, on public channels as well; it counts before all else.
    """
    if "replay" not in broadcast:
        return None
    wish = broadcast["replay"]
    cursor = _object(wish).get("cursor")
    if cursor is not None:
        try:
            return Cursor.parse(_text(cursor) or "")
        except InvalidCursor:
            return REPLAY_NOT_VALID
    if not private:
        return REPLAY_ON_PUBLIC_CHANNEL
    if not isinstance(wish, dict):
        return None
    since = wish.get("since")
    limit = wish.get("limit")
    if limit is None:
        limit = max_replay
    if not _is_integer(since) or not _is_integer(limit) or since not in _SINCE_RANGE_MS:
        return REPLAY_NOT_VALID
    return Replay(since, max(1, min(limit, max_replay)))


def _token(given: dict[str, Any]) -> str | None:
    """The join's token. Keys that start with `sb_` stand for the connection's (PROTOCOL 6)."""
    token = _text(given.get("access_token"))
    if token is None:
        token = _text(given.get("user_token"))
    return None if token is None or token.startswith("sb_") else token


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: object) -> bool:
    """A boolean, or its name as a string in any case."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
