"""Messages to bytes for a client, in either framing. No I/O here.

Below are the transports, which put a `Frame` on the wire; above are the channels and the hub, which
take `V1` or `V2` for a client at its handshake and need not know which one they have.

Names (topics, events, refs, texts) go in as `str`. Payloads go in as JSON text in UTF-8 and are
spliced, never decoded, so that every digit of a number survives (PROTOCOL 3, "Numbers"). A message
is encoded once in each framing, however many clients get it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from realtime_db.errors import RealtimeDbError
from realtime_db.protocol.pushes import Push, decode_v1, decode_v2

_PREFIX: Final = "realtime:"
_USER_BROADCAST: Final = 4
_MAX_FIELD_BYTES: Final = 255

_json: Final = msgspec.json.encode


class FieldTooLong(RealtimeDbError):
    """A name does not fit into a binary frame, which has one byte for its length (PROTOCOL 3)."""


class Frame(NamedTuple):
    """The content of one WebSocket message to a client.

    Attributes:
        data: JSON text in UTF-8, or a binary frame.
        binary: which of the two.
    """

    data: bytes
    binary: bool = False


class Framing:
    """What `V1` and `V2` have in common.

    In the encoders, `topic` is the full one, and `join_ref` is that of the channel's `phx_join`, or
    the join's ref if it had none. A V2 client drops a frame with any other; V1 has no place for it.
    """

    def decode(self, data: bytes, *, binary: bool = False) -> Push:
        """Reads what a client sent; see `pushes`."""
        raise NotImplementedError

    def text(
        self,
        topic: str,
        event: str,
        payload: bytes,
        *,
        join_ref: str | None = None,
        ref: str | None = None,
    ) -> Frame:
        """Makes any text frame. A null payload goes out as `{}`: realtime-js throws on null."""
        raise NotImplementedError

    def user_broadcast(
        self, topic: str, event: str, payload: bytes, *, meta: bytes = b"", binary: bool = False
    ) -> Frame | None:
        """Makes the frame of what came as kind 3, as REST single message or from the database.

        Args:
            topic: the full topic.
            event: the user's name for the event.
            payload: the user's JSON, never empty; or any bytes if `binary`.
            meta: a JSON object, such as `live_meta(id)`; without it the message has no `meta`.
            binary: whether the payload is bytes and no JSON.

        Returns:
            The frame; None for a binary payload in V1, whose clients do not get the message.

        Raises:
            FieldTooLong: a binary payload beside a name that is too long for kind 4. JSON goes as
                text then, which to the clients is the same.
        """
        raise NotImplementedError

    # To one channel.

    def reply(
        self,
        topic: str,
        *,
        join_ref: str | None,
        ref: str | None,
        response: bytes = b"{}",
        ok: bool = True,
    ) -> Frame:
        """Answers a push. `join_ref` is None for heartbeats and unmatched topics."""
        payload = b'{"status":"%b","response":%b}' % (b"ok" if ok else b"error", response)
        return self.text(topic, "phx_reply", payload, join_ref=join_ref, ref=ref)

    def refuse(self, topic: str, reason: str, *, join_ref: str | None, ref: str | None) -> Frame:
        """Answers a push with the error `{"reason": …}`."""
        response = b'{"reason":%b}' % _json(reason)
        return self.reply(topic, join_ref=join_ref, ref=ref, response=response, ok=False)

    def system(
        self,
        topic: str,
        message: str,
        *,
        join_ref: str | None,
        ok: bool,
        extension: str = "system",
    ) -> Frame:
        """Tells a channel how things are. realtime-py needs all four keys."""
        payload = {
            "extension": extension,
            "status": "ok" if ok else "error",
            "message": message,
            "channel": topic.removeprefix(_PREFIX),
        }
        return self.text(topic, "system", _json(payload), join_ref=join_ref)

    def close(self, topic: str, *, join_ref: str | None) -> Frame:
        """Ends a channel for good. Its ref is the join_ref too (PROTOCOL 5)."""
        return self.text(topic, "phx_close", b"{}", join_ref=join_ref, ref=join_ref)

    def error(self, topic: str, *, join_ref: str | None, reason: str | None = None) -> Frame:
        """Ends a channel such that its client joins again."""
        payload = b"{}" if reason is None else b'{"reason":%b}' % _json(reason)
        return self.text(topic, "phx_error", payload, join_ref=join_ref, ref=join_ref)

    def presence_state(self, topic: str, state: bytes, *, join_ref: str | None) -> Frame:
        """Tells a channel who is there: `{"<key>": {"metas": […]}}`."""
        return self.text(topic, "presence_state", state, join_ref=join_ref)

    def replay(
        self,
        topic: str,
        event: str,
        payload: bytes,
        *,
        id: str,
        join_ref: str | None,
        binary: bool = False,
        cursor: str = "",
    ) -> Frame | None:
        """Sends a stored message again. Returns and raises what `user_broadcast` does."""
        meta = replay_meta(id, cursor)
        if binary:
            return self.user_broadcast(topic, event, payload, meta=meta, binary=True)
        return self.text(topic, "broadcast", _wrap(event, payload, meta), join_ref=join_ref)

    # To all channels of a topic: join_ref and ref are null.

    def broadcast(self, topic: str, payload: bytes) -> Frame:
        """Hands on the payload of a client's text frame as it came, further keys included."""
        return self.text(topic, "broadcast", payload)

    def text_broadcast(self, topic: str, event: str, payload: bytes, *, meta: bytes = b"") -> Frame:
        """Makes the text frame of a message of the REST batch."""
        return self.text(topic, "broadcast", _wrap(event, payload, meta))

    def presence_diff(self, topic: str, diff: bytes) -> Frame:
        """Tells who came and who went: `{"joins": …, "leaves": …}`."""
        return self.text(topic, "presence_diff", diff)

    def postgres_changes(self, topic: str, change: bytes) -> Frame:
        """Tells of a changed row: `{"ids": […], "data": …}`."""
        return self.text(topic, "postgres_changes", change)


class _V1(Framing):
    """PROTOCOL 2: JSON objects of exactly topic, event, payload and ref."""

    def decode(self, data: bytes, *, binary: bool = False) -> Push:
        return decode_v1(data, binary=binary)

    def text(
        self,
        topic: str,
        event: str,
        payload: bytes,
        *,
        join_ref: str | None = None,
        ref: str | None = None,
    ) -> Frame:
        # The key `ref` is there even when it is null: realtime-py drops frames without it.
        return Frame(
            b'{"topic":%b,"event":%b,"payload":%b,"ref":%b}'
            % (_json(topic), _json(event), _never_null(payload), _json(ref))
        )

    def user_broadcast(
        self, topic: str, event: str, payload: bytes, *, meta: bytes = b"", binary: bool = False
    ) -> Frame | None:
        return None if binary else self.text_broadcast(topic, event, payload, meta=meta)


class _V2(Framing):
    """PROTOCOL 3: JSON arrays of five, and the binary kind 4."""

    def decode(self, data: bytes, *, binary: bool = False) -> Push:
        return decode_v2(data, binary=binary)

    def text(
        self,
        topic: str,
        event: str,
        payload: bytes,
        *,
        join_ref: str | None = None,
        ref: str | None = None,
    ) -> Frame:
        return Frame(
            b"[%b,%b,%b,%b,%b]"
            % (_json(join_ref), _json(ref), _json(topic), _json(event), _never_null(payload))
        )

    def user_broadcast(
        self, topic: str, event: str, payload: bytes, *, meta: bytes = b"", binary: bool = False
    ) -> Frame | None:
        names = topic.encode(), event.encode(), meta
        sizes = tuple(map(len, names))
        if max(sizes) <= _MAX_FIELD_BYTES:
            header = bytes((_USER_BROADCAST, *sizes, 0 if binary else 1))
            return Frame(b"".join((header, *names, payload)), binary=True)
        if not binary:
            return self.text_broadcast(topic, event, payload, meta=meta)
        raise FieldTooLong(
            f"a binary message with {sizes[0]} bytes of topic, {sizes[1]} of event and {sizes[2]}"
            f" of metadata; its frame has room for {_MAX_FIELD_BYTES} each",
            hint="Shorten the names, or send JSON, which has another frame to go in.",
        )


V1: Final = _V1()
V2: Final = _V2()


def framing(vsn: str | None) -> Framing | None:
    """Picks what the query parameter `vsn` asks for; None if there is no such (PROTOCOL 1)."""
    match = re.fullmatch(r"([12])\.0\.[0-9]+", "1.0.0" if vsn is None else vsn)
    if match is None:
        return None
    return V1 if match[1] == "1" else V2


def replay_meta(id: str, cursor: str = "") -> bytes:
    """The `meta` of a message that is sent again."""
    return b'{"replayed":true,%b' % live_meta(id, cursor)[1:]


def live_meta(id: str, cursor: str = "") -> bytes:
    """The `meta` of a message that has an id and is no replay."""
    if cursor:
        return b'{"id":%b,"cursor":"%b"}' % (_json(id), cursor.encode())
    return b'{"id":%b}' % _json(id)


def _wrap(event: str, payload: bytes, meta: bytes) -> bytes:
    """The payload of a broadcast's text frame, around the user's (PROTOCOL 7)."""
    tail = b',"meta":%b' % meta if meta else b""
    return b'{"type":"broadcast","event":%b,"payload":%b%b}' % (_json(event), payload, tail)


def _never_null(payload: bytes) -> bytes:
    return b"{}" if payload == b"null" else payload
