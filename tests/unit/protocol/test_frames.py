"""What clients get: every message of PROTOCOL's tables, in the frame that it names.

`read` does what the decoders of the clients do. Each kind of frame was also fed to those of
realtime-js 2.119.1 (`Serializer`) and realtime-py 2.34.1 (`ServerMessageAdapter`), which take it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.cursors import MAX_BYTES as MAX_CURSOR_BYTES
from realtime_db.protocol.frames import V1, V2, FieldTooLong, Frame, Framing, framing, live_meta

TOPIC = "realtime:room"
ID = "0190a8e2-7e3f-7a3a-8d5c-1d2e3f405060"
DIGITS = b'{"n":9007199254740993,"d":0.10000000000000000000000000000000001000}'

both = pytest.mark.parametrize("framing", [V1, V2], ids=["V1", "V2"])
names = st.text(st.characters(exclude_categories=["Cs"]))


class Received(NamedTuple):
    """What a client's decoder makes of a frame."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Any


def read(framing: Framing, frame: Frame | None) -> Received:
    assert frame is not None
    if frame.binary:
        return read_kind_4(frame.data)
    content = json.loads(frame.data)
    if framing is V1:
        assert set(content) == {"topic", "event", "payload", "ref"}
        return Received(
            None, content["ref"], content["topic"], content["event"], content["payload"]
        )
    assert len(content) == 5
    return Received(*content)


def read_kind_4(data: bytes) -> Received:
    kind, topic_size, event_size, meta_size, encoding = data[:5]
    assert kind == 4
    topic, rest = data[5 : 5 + topic_size], data[5 + topic_size :]
    event, rest = rest[:event_size], rest[event_size:]
    meta, rest = rest[:meta_size], rest[meta_size:]
    payload: dict[str, Any] = {
        "type": "broadcast",
        "event": event.decode(),
        "payload": json.loads(rest) if encoding == 1 else rest,
    }
    if meta:
        payload["meta"] = json.loads(meta)
    return Received(None, None, topic.decode(), "broadcast", payload)


# The framings.


@pytest.mark.parametrize(
    ("vsn", "chosen"),
    [
        (None, V1),
        ("1.0.0", V1),
        ("1.0.7", V1),
        ("2.0.0", V2),
        ("2.0.12", V2),
        ("", None),
        ("1", None),
        ("1.0", None),
        ("1.1.0", None),
        ("2.1.0", None),
        ("3.0.0", None),
        ("2.0.0\n", None),
        ("2.0.x", None),
        ("2.0.٣", None),
    ],
)
def test_vsn_picks_the_framing_and_missing_means_v1(
    vsn: str | None, chosen: Framing | None
) -> None:
    assert framing(vsn) is chosen


def test_v1_frames_have_exactly_four_keys_with_ref_present() -> None:
    assert V1.broadcast(TOPIC, b"{}") == Frame(
        b'{"topic":"realtime:room","event":"broadcast","payload":{},"ref":null}'
    )
    assert V1.text(TOPIC, "e", b"{}", join_ref="1", ref="2") == Frame(
        b'{"topic":"realtime:room","event":"e","payload":{},"ref":"2"}'
    )


def test_v2_text_frames_are_arrays_of_five() -> None:
    assert V2.text(TOPIC, "e", b"{}", join_ref="1", ref="2") == Frame(
        b'["1","2","realtime:room","e",{}]'
    )
    assert V2.text(TOPIC, "e", b"{}") == Frame(b'[null,null,"realtime:room","e",{}]')


@both
def test_the_payload_of_a_frame_is_never_null(framing: Framing) -> None:
    assert read(framing, framing.broadcast(TOPIC, b"null")).payload == {}
    assert read(framing, framing.presence_state(TOPIC, b"null", join_ref="1")).payload == {}


@both
@pytest.mark.parametrize("text", ['a"b\\c', "a\nb\x00", "größe 🚪", "\u2028", "/", ""])
def test_names_are_escaped(framing: Framing, text: str) -> None:
    received = read(framing, framing.text(text, text, b"{}", ref=text))
    assert received[1:4] == (text, text, text)
    assert read(framing, framing.user_broadcast(text, text, b"1")).payload["event"] == text
    assert read(framing, framing.refuse(TOPIC, text, join_ref="1", ref="2")).payload == {
        "status": "error",
        "response": {"reason": text},
    }


# To one channel: V2 has the channel's join_ref.


@pytest.mark.parametrize(
    ("frame_v1", "frame_v2", "join_ref", "ref", "event", "payload"),
    [
        pytest.param(
            *(f.reply(TOPIC, join_ref="1", ref="7") for f in (V1, V2)),
            *("1", "7", "phx_reply", {"status": "ok", "response": {}}),
            id="reply",
        ),
        pytest.param(
            *(f.reply("phoenix", join_ref=None, ref=None) for f in (V1, V2)),
            *(None, None, "phx_reply", {"status": "ok", "response": {}}),
            id="heartbeat with ref null",
        ),
        pytest.param(
            *(
                f.reply(TOPIC, join_ref="1", ref="1", response=b'{"postgres_changes":[]}')
                for f in (V1, V2)
            ),
            *("1", "1", "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}),
            id="join",
        ),
        pytest.param(
            *(f.refuse(TOPIC, "unmatched topic", join_ref=None, ref="7") for f in (V1, V2)),
            None,
            "7",
            "phx_reply",
            {"status": "error", "response": {"reason": "unmatched topic"}},
            id="unmatched",
        ),
        pytest.param(
            *(
                f.reply(TOPIC, join_ref="1", ref="7", response=b'"payload_size_exceeded"', ok=False)
                for f in (V1, V2)
            ),
            *("1", "7", "phx_reply", {"status": "error", "response": "payload_size_exceeded"}),
            id="too large",
        ),
        pytest.param(
            *(f.system(TOPIC, "Token has expired", join_ref="1", ok=False) for f in (V1, V2)),
            "1",
            None,
            "system",
            {
                "extension": "system",
                "status": "error",
                "message": "Token has expired",
                "channel": "room",
            },
            id="system",
        ),
        pytest.param(
            *(
                f.system(
                    "realtime:realtime:a",
                    "Subscribed to PostgreSQL",
                    join_ref="1",
                    ok=True,
                    extension="postgres_changes",
                )
                for f in (V1, V2)
            ),
            "1",
            None,
            "system",
            {
                "extension": "postgres_changes",
                "status": "ok",
                "message": "Subscribed to PostgreSQL",
                "channel": "realtime:a",
            },
            id="system of another extension",
        ),
        pytest.param(
            *(f.close(TOPIC, join_ref="1") for f in (V1, V2)),
            *("1", "1", "phx_close", {}),
            id="close",
        ),
        pytest.param(
            *(f.error(TOPIC, join_ref="1") for f in (V1, V2)),
            *("1", "1", "phx_error", {}),
            id="error",
        ),
        pytest.param(
            *(f.error(TOPIC, join_ref="1", reason="crashed") for f in (V1, V2)),
            *("1", "1", "phx_error", {"reason": "crashed"}),
            id="error with a reason",
        ),
        pytest.param(
            *(
                f.presence_state(TOPIC, b'{"k":{"metas":[{"phx_ref":"x"}]}}', join_ref="1")
                for f in (V1, V2)
            ),
            *("1", None, "presence_state", {"k": {"metas": [{"phx_ref": "x"}]}}),
            id="presence_state",
        ),
        pytest.param(
            *(f.replay(TOPIC, "e", b'{"a":1}', id=ID, join_ref="1") for f in (V1, V2)),
            "1",
            None,
            "broadcast",
            {
                "type": "broadcast",
                "event": "e",
                "payload": {"a": 1},
                "meta": {"replayed": True, "id": ID},
            },
            id="replayed JSON message",
        ),
    ],
)
def test_frames_to_one_channel_are_text_with_its_join_ref(
    frame_v1: Frame, frame_v2: Frame, join_ref: str, ref: str, event: str, payload: object
) -> None:
    assert not frame_v1.binary
    assert not frame_v2.binary
    topic = json.loads(frame_v2.data)[2]
    assert read(V1, frame_v1) == (None, ref, topic, event, payload)
    assert read(V2, frame_v2) == (join_ref, ref, topic, event, payload)


# To many: join_ref and ref are null.


@both
def test_a_client_s_text_broadcast_is_handed_on_as_it_came(framing: Framing) -> None:
    payload = b'{ "type":"broadcast", "event":"e","more":[1.0],"payload":%b}' % DIGITS
    frame = framing.broadcast(TOPIC, payload)
    assert payload in frame.data
    assert not frame.binary
    assert read(framing, frame) == (None, None, TOPIC, "broadcast", json.loads(payload))


@both
def test_a_rest_batch_message_is_text(framing: Framing) -> None:
    frame = framing.text_broadcast(TOPIC, "e", DIGITS)
    expected = {"type": "broadcast", "event": "e", "payload": json.loads(DIGITS)}
    assert not frame.binary
    assert DIGITS in frame.data
    assert read(framing, frame) == (None, None, TOPIC, "broadcast", expected)
    with_id = framing.text_broadcast(TOPIC, "e", b"{}", meta=live_meta('a"b'))
    assert read(framing, with_id).payload["meta"] == {"id": 'a"b'}


@both
def test_presence_diffs_and_postgres_changes_are_text_to_all(framing: Framing) -> None:
    diff = read(framing, framing.presence_diff(TOPIC, b'{"joins":{},"leaves":{}}'))
    assert diff == (None, None, TOPIC, "presence_diff", {"joins": {}, "leaves": {}})
    change = read(framing, framing.postgres_changes(TOPIC, b'{"ids":[1],"data":{}}'))
    assert change == (None, None, TOPIC, "postgres_changes", {"ids": [1], "data": {}})


def test_a_user_broadcast_without_meta_is_text_in_v1_and_kind_4_in_v2() -> None:
    assert V1.user_broadcast(TOPIC, "e", b'{"a":1}') == Frame(
        b'{"topic":"realtime:room","event":"broadcast",'
        b'"payload":{"type":"broadcast","event":"e","payload":{"a":1}},"ref":null}'
    )
    assert V2.user_broadcast(TOPIC, "e", b'{"a":1}') == Frame(
        bytes.fromhex("040d010001") + b'realtime:roome{"a":1}', binary=True
    )


def test_a_database_message_has_its_id_as_meta_and_all_its_digits() -> None:
    assert V1.user_broadcast(TOPIC, "e", DIGITS, meta=live_meta(ID)) == Frame(
        b'{"topic":"realtime:room","event":"broadcast","payload":{"type":"broadcast",'
        b'"event":"e","payload":' + DIGITS + b',"meta":{"id":"' + ID.encode() + b'"}},"ref":null}'
    )
    assert V2.user_broadcast(TOPIC, "e", DIGITS, meta=live_meta(ID)) == Frame(
        bytes.fromhex("040d012d01") + b'realtime:roome{"id":"' + ID.encode() + b'"}' + DIGITS,
        binary=True,
    )


def test_a_binary_message_is_kind_4_with_encoding_0() -> None:
    assert V2.user_broadcast(TOPIC, "blob", b"\0\xff", meta=live_meta(ID), binary=True) == Frame(
        bytes.fromhex("040d042d00") + b'realtime:roomblob{"id":"' + ID.encode() + b'"}\0\xff',
        binary=True,
    )
    assert V2.user_broadcast(TOPIC, "blob", b"", binary=True) == Frame(
        bytes.fromhex("040d040000") + b"realtime:roomblob", binary=True
    )


def test_a_replayed_binary_message_is_kind_4_and_says_that_it_is_replayed() -> None:
    frame = V2.replay(TOPIC, "blob", b"\0\xff", id=ID, join_ref="1", binary=True)
    assert frame is not None
    assert frame.binary
    assert read(V2, frame).payload == {
        "type": "broadcast",
        "event": "blob",
        "payload": b"\0\xff",
        "meta": {"replayed": True, "id": ID},
    }


def test_the_longest_cursor_fits_into_the_metadata_of_a_binary_frame() -> None:
    cursor = "w" * MAX_CURSOR_BYTES
    live = V2.user_broadcast(TOPIC, "e", b"\0", meta=live_meta(ID, cursor), binary=True)
    again = V2.replay(TOPIC, "e", b"\0", id=ID, join_ref="1", binary=True, cursor=cursor)
    assert live is not None
    assert again is not None
    assert read(V2, live).payload["meta"] == {"id": ID, "cursor": cursor}
    assert read(V2, again).payload["meta"] == {"replayed": True, "id": ID, "cursor": cursor}


@pytest.mark.parametrize("framing", [V1, V2])
def test_a_cursor_is_beside_the_id(framing: Framing) -> None:
    frame = framing.replay(TOPIC, "e", b"1", id=ID, join_ref="1", cursor="wA.B")
    assert frame is not None
    meta = read(framing, frame).payload["meta"]
    assert meta == {"replayed": True, "id": ID, "cursor": "wA.B"}


def test_v1_clients_do_not_get_binary_messages() -> None:
    assert V1.user_broadcast(TOPIC, "e", b"\0", binary=True) is None
    assert V1.replay(TOPIC, "e", b"\0", id=ID, join_ref="1", binary=True) is None


def test_lengths_of_kind_4_count_bytes_of_utf8() -> None:
    frame = V2.user_broadcast("realtime:räum 🚪", "größe", b"1")
    assert frame is not None
    assert frame.data[:5] == bytes([4, 19, 7, 0, 1])
    assert read(V2, frame).topic == "realtime:räum 🚪"


@pytest.mark.parametrize(
    ("topic", "event", "meta"),
    [("t" * 256, "e", b""), ("t", "ü" * 128, b""), ("t", "e", b'{"id":"%b"}' % (b"x" * 247))],
)
def test_a_field_over_255_bytes_is_refused_in_binary_and_json_goes_as_text(
    topic: str, event: str, meta: bytes
) -> None:
    with pytest.raises(FieldTooLong, match="255"):
        V2.user_broadcast(topic, event, b"\0", meta=meta, binary=True)
    frame = V2.user_broadcast(topic, event, DIGITS, meta=meta)
    assert frame == V2.text_broadcast(topic, event, DIGITS, meta=meta)
    assert read(V2, frame).payload["event"] == event


def test_a_field_of_255_bytes_fits() -> None:
    frame = V2.user_broadcast("t" * 255, "e" * 255, b"\0", meta=b'"%b"' % (b"x" * 253), binary=True)
    assert frame is not None
    assert read(V2, frame).topic == "t" * 255


# Any message.


@given(names, names, st.none() | names, st.none() | names)
def test_any_names_come_out_as_they_went_in(
    topic: str, event: str, join_ref: str | None, ref: str | None
) -> None:
    frame = V2.text(topic, event, DIGITS, join_ref=join_ref, ref=ref)
    assert read(V2, frame)[:4] == (join_ref, ref, topic, event)
    assert V2.decode(frame.data) == (join_ref, ref, topic, event, DIGITS, None, None, False)
    frame = V1.text(topic, event, DIGITS, join_ref=join_ref, ref=ref)
    assert read(V1, frame)[:4] == (None, ref, topic, event)
    assert V1.decode(frame.data) == (None, ref, topic, event, DIGITS, None, None, False)


@given(names, names, st.none() | names, st.binary())
def test_any_user_broadcast_reaches_the_application_alike(
    topic: str, event: str, id: str | None, binary_payload: bytes
) -> None:
    meta = b"" if id is None else live_meta(id)
    old = read(V1, V1.user_broadcast(topic, event, DIGITS, meta=meta))
    assert old == read(V2, V2.user_broadcast(topic, event, DIGITS, meta=meta))
    assert old == read(V2, V2.text_broadcast(topic, event, DIGITS, meta=meta))
    try:
        frame = V2.user_broadcast(topic, event, binary_payload, meta=meta, binary=True)
    except FieldTooLong:
        assert max(len(topic.encode()), len(event.encode()), len(meta)) > 255
    else:
        assert read(V2, frame).payload["payload"] == binary_payload
