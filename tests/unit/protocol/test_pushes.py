"""What clients send, decoded: bytes that the clients really made, and any bytes at all.

The bytes of realtime-js are those of 2.119.1, as its `Serializer` and its `RealtimeClient` made
them; those of realtime-py are of 2.34.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from realtime_db.protocol.frames import V1, V2
from realtime_db.protocol.pushes import MalformedFrame, Push, decode_v1, decode_v2

Decode = Callable[..., Push]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
refs = st.none() | names.filter(bool)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def payload_text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def encode_v1(push: Push) -> bytes:
    head = json.dumps({"topic": push.topic, "event": push.event, "ref": push.ref})
    return b'%b,"payload":%b,"join_ref":%b}' % (
        head[:-1].encode(),
        push.payload,
        json.dumps(push.join_ref).encode(),
    )


def encode_v2(push: Push) -> bytes:
    head = json.dumps([push.join_ref, push.ref, push.topic, push.event])
    return b"%b,%b]" % (head[:-1].encode(), push.payload)


def encode_kind_3(push: Push) -> bytes:
    assert push.user_event is not None
    fields = [
        (push.join_ref or "").encode(),
        (push.ref or "").encode(),
        push.topic.encode(),
        push.user_event.encode(),
        b"" if push.metadata is None else payload_text(push.metadata),
    ]
    header = bytes([3, *map(len, fields), 0 if push.binary else 1])
    return header + b"".join(fields) + push.payload


def kind_3(
    topic: bytes = b"realtime:room",
    event: bytes = b"e",
    metadata: bytes = b"",
    payload: bytes = b"{}",
    encoding: int = 1,
) -> bytes:
    sizes = bytes([3, 1, 1, len(topic), len(event), len(metadata), encoding])
    return sizes + b"17" + topic + event + metadata + payload


# What the clients send.


@pytest.mark.parametrize(
    ("frame", "push"),
    [
        (
            b'{"topic":"realtime:plain","event":"broadcast","payload":{"type":"broadcast",'
            b'"event":"cursor","payload":{"x":1}},"ref":"11","join_ref":"10"}',
            Push(
                "10",
                "11",
                "realtime:plain",
                "broadcast",
                b'{"type":"broadcast","event":"cursor","payload":{"x":1}}',
            ),
        ),
        (
            b'{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"13"}',
            Push(None, "13", "phoenix", "heartbeat", b"{}"),
        ),
        (
            b'{"topic":"realtime:plain","event":"phx_leave","payload":{},"ref":"15",'
            b'"join_ref":"10"}',
            Push("10", "15", "realtime:plain", "phx_leave", b"{}"),
        ),
    ],
)
def test_v1_frames_of_realtime_js_are_read(frame: bytes, push: Push) -> None:
    assert decode_v1(frame) == push


@pytest.mark.parametrize(
    ("frame", "push"),
    [
        (
            b'{"event":"heartbeat","payload":{},"topic":"phoenix","ref":null,"join_ref":null}',
            Push(None, None, "phoenix", "heartbeat", b"{}"),
        ),
        (
            '{"event":"broadcast","payload":{"type":"broadcast","event":"cursor","payload":'
            '{"x":1,"t":"é"}},"topic":"realtime:room","ref":"2","join_ref":"1"}'.encode(),
            Push(
                "1",
                "2",
                "realtime:room",
                "broadcast",
                '{"type":"broadcast","event":"cursor","payload":{"x":1,"t":"é"}}'.encode(),
            ),
        ),
    ],
)
def test_v1_frames_of_realtime_py_are_read(frame: bytes, push: Push) -> None:
    assert decode_v1(frame) == push


@pytest.mark.parametrize(
    ("frame", "push"),
    [
        (
            b'[null,"13","phoenix","heartbeat",{}]',
            Push(None, "13", "phoenix", "heartbeat", b"{}"),
        ),
        (
            b'["10","12","realtime:plain","presence",{"type":"presence","event":"track",'
            b'"payload":{"online":true}}]',
            Push(
                "10",
                "12",
                "realtime:plain",
                "presence",
                b'{"type":"presence","event":"track","payload":{"online":true}}',
            ),
        ),
        (
            b'["10","14","realtime:plain","access_token",{"access_token":"a.b.c"}]',
            Push("10", "14", "realtime:plain", "access_token", b'{"access_token":"a.b.c"}'),
        ),
    ],
)
def test_v2_text_frames_of_realtime_js_are_read(frame: bytes, push: Push) -> None:
    assert decode_v2(frame) == push


@pytest.mark.parametrize(
    ("frame", "push"),
    [
        (
            "0301010d06000131377265616c74696d653a726f6f6d637572736f727b2278223a31322c2279223a33"
            "342e357d",
            ("1", "7", "realtime:room", "cursor", b'{"x":12,"y":34.5}', None, False),
        ),
        (
            "0300000d0600017265616c74696d653a726f6f6d637572736f727b2278223a317d",
            (None, None, "realtime:room", "cursor", b'{"x":1}', None, False),
        ),
        (
            "0301011307000131387265616c74696d653a72c3a4756d20f09f9aaa6772c3b6c39f657b2274223a22"
            "6e61c3af766520f09f9982227d",
            ("1", "8", "realtime:räum 🚪", "größe", '{"t":"naïve 🙂"}'.encode(), None, False),
        ),
        (
            "0301010d04000031397265616c74696d653a726f6f6d626c6f6200ff0102",
            ("1", "9", "realtime:room", "blob", b"\x00\xff\x01\x02", None, True),
        ),
        (
            "0301010d04000031397265616c74696d653a726f6f6d626c6f62",
            ("1", "9", "realtime:room", "blob", b"", None, True),
        ),
        (
            "0301010d01000131397265616c74696d653a726f6f6d655b312c2274776f225d",
            ("1", "9", "realtime:room", "e", b'[1,"two"]', None, False),
        ),
        (
            "0301020d0110013131307265616c74696d653a726f6f6d657b2270657273697374223a747275657d7b"
            "2261223a317d",
            ("1", "10", "realtime:room", "e", b'{"a":1}', {"persist": True}, False),
        ),
        (
            "0301020d0116013131307265616c74696d653a726f6f6d657b2270657273697374223a7b2274746c22"
            "3a36307d7d7b2261223a317d",
            ("1", "10", "realtime:room", "e", b'{"a":1}', {"persist": {"ttl": 60}}, False),
        ),
        (
            "0301020d0000013131307265616c74696d653a726f6f6d7b2261223a317d",
            ("1", "10", "realtime:room", "", b'{"a":1}', None, False),
        ),
        (
            # JSON.stringify of a string that was cut inside an emoji.
            "0301020d0100013131307265616c74696d653a726f6f6d657b2261223a225c7564383364227d",
            ("1", "10", "realtime:room", "e", rb'{"a":"\ud83d"}', None, False),
        ),
    ],
)
def test_user_broadcast_pushes_of_realtime_js_are_read(
    frame: str, push: tuple[object, ...]
) -> None:
    join_ref, ref, topic, user_event, payload, metadata, binary = push
    expected = (join_ref, ref, topic, "broadcast", payload, user_event, metadata, binary)
    assert decode_v2(bytes.fromhex(frame), binary=True) == expected


def test_v1_join_ref_may_be_missing_or_null() -> None:
    without = b'{"topic":"t","event":"e","payload":{},"ref":"1"}'
    null = b'{"topic":"t","event":"e","payload":{},"ref":"1","join_ref":null}'
    assert decode_v1(without) == decode_v1(null) == Push(None, "1", "t", "e", b"{}")


def test_v1_keys_come_in_any_order_and_unknown_ones_are_ignored() -> None:
    frame = b'{"ref":null,"x":[1],"payload":{"a":1},"event":"e","topic":"t"}'
    assert decode_v1(frame) == Push(None, None, "t", "e", b'{"a":1}')


def test_v2_extra_elements_are_ignored() -> None:
    frame = b'["1","2","t","e",{},"user_event",{"persist":true},true]'
    assert decode_v2(frame) == Push("1", "2", "t", "e", b"{}")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"n":9007199254740993}',
        b'{"n":123456789012345678901234567890.12345678901234567890000}',
        b'{"n":[-0,1e400,1E-7]}',
        b'{"b":1,"a":2,"b":3}',
        b'{ "spaced" : "\\u00e9\\/" }',
        b"null",
        b'"text"',
    ],
)
def test_payloads_come_out_as_they_came_in(payload: bytes) -> None:
    text = Push("1", "2", "realtime:room", "e", payload)
    assert decode_v1(encode_v1(text)).payload == payload
    assert decode_v2(encode_v2(text)).payload == payload
    assert decode_v2(kind_3(payload=payload), binary=True).payload == payload


def test_framings_decode_each_their_own() -> None:
    assert V1.decode(b'{"topic":"t","event":"e","payload":1,"ref":null}').event == "e"
    assert V2.decode(b'[null,null,"t","e",1]').event == "e"
    assert V2.decode(kind_3(), binary=True).user_event == "e"


# What is no frame.


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"x",
        b"{",
        b"null",
        b"[]",
        b'["1","2","t","e",{}]',
        b'{"event":"e","payload":{},"ref":"1"}',
        b'{"topic":"t","payload":{},"ref":"1"}',
        b'{"topic":"t","event":"e","ref":"1"}',
        b'{"topic":"t","event":"e","payload":{}}',
        b'{"topic":null,"event":"e","payload":{},"ref":"1"}',
        b'{"topic":"t","event":1,"payload":{},"ref":"1"}',
        b'{"topic":"t","event":"e","payload":{},"ref":1}',
        b'{"topic":"t","event":"e","payload":{},"ref":"1"} x',
    ],
)
def test_a_v1_frame_of_another_shape_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedFrame, match="no V1 frame: "):
        decode_v1(frame)


def test_a_binary_frame_from_a_v1_client_is_malformed() -> None:
    with pytest.raises(MalformedFrame, match="V1 does not have"):
        decode_v1(kind_3(), binary=True)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        b"[]",
        b'["1","2","t","e"]',
        b'["1","2",null,"e",{}]',
        b'["1","2","t",null,{}]',
        b'[1,"2","t","e",{}]',
        b'["1",2,"t","e",{}]',
        b'["1","2","t","e",{}',
        b'["1","2","t","e",]',
        b'["1","2","t","e",{}][]',
        b'["1","2","\xff","e",{}]',
        b'["1","2","\\ud83d","e",{}]',
    ],
)
def test_a_v2_frame_of_another_shape_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedFrame, match="no V2 frame: "):
        decode_v2(frame)


# Other clients will parse what is spliced, so what only a lenient parser reads must not pass.
NOT_JSON = [
    b"",
    b"01",
    b"1.",
    b".5",
    b"+1",
    b"1e",
    b"NaN",
    b"Infinity",
    b"[1,]",
    b'{"a":1,}',
    b"{a:1}",
    b"'a'",
    b'"\x01"',
    rb'"\x"',
    rb'"\u12"',
    b"{}{}",
    b'1],"injected":[1',
    b"\xef\xbb\xbf{}",
    # With half a surrogate pair, which takes another path.
    rb'["\ud83d",NaN]',
    rb'["\ud83d",]',
    rb'"\ud83d" 1',
    b'["\\ud83d","\x01"]',
    b'\xef\xbb\xbf"\\ud83d"',
    '"\\ud83d"'.encode("utf-16"),
]


@pytest.mark.parametrize("payload", NOT_JSON)
def test_a_payload_that_is_not_json_is_malformed(payload: bytes) -> None:
    text = Push("1", "2", "realtime:room", "e", payload)
    with pytest.raises(MalformedFrame):
        decode_v2(encode_v2(text))
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(payload=payload), binary=True)
    with pytest.raises(MalformedFrame):
        decode_v1(encode_v1(text))


@pytest.mark.parametrize("payload", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xe2\x82"', b'"\xff\\ud83d"'])
def test_a_json_payload_of_a_binary_frame_that_is_not_utf8_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(payload=payload), binary=True)


def test_whitespace_around_a_json_payload_is_not_kept() -> None:
    assert decode_v2(kind_3(payload=b" \n{ }\t"), binary=True).payload == b"{ }"
    assert decode_v2(kind_3(payload=b'\t"\\uD83d" '), binary=True).payload == b'"\\uD83d"'


@pytest.mark.parametrize("depth", [10_000, 100_000])
def test_deep_nesting_is_malformed_and_no_crash(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    with pytest.raises(MalformedFrame):
        decode_v1(encode_v1(Push(None, None, "t", "e", deep)))
    with pytest.raises(MalformedFrame):
        decode_v2(encode_v2(Push(None, None, "t", "e", deep)))
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(payload=deep), binary=True)
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(payload=rb'["\ud83d",' + deep + b"]"), binary=True)


@pytest.mark.parametrize("kind", [0, 1, 2, 4, 5, 255])
def test_binary_frames_of_other_kinds_are_malformed(kind: int) -> None:
    with pytest.raises(MalformedFrame, match=f"kind {kind}"):
        decode_v2(bytes([kind]) + kind_3()[1:], binary=True)


def test_a_truncated_user_broadcast_push_is_malformed() -> None:
    whole = kind_3(event=b"event", payload=b"", encoding=0)
    assert decode_v2(whole, binary=True).payload == b""
    for size in range(len(whole)):
        with pytest.raises(MalformedFrame):
            decode_v2(whole[:size], binary=True)


@pytest.mark.parametrize("metadata", [b"[]", b"null", b"1", b"{", b'{"a":"\xff"}'])
def test_metadata_that_is_no_json_object_is_malformed(metadata: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(metadata=metadata), binary=True)


def test_an_unknown_payload_encoding_is_malformed() -> None:
    with pytest.raises(MalformedFrame, match="encoding 2"):
        decode_v2(kind_3(encoding=2), binary=True)


@pytest.mark.parametrize("field", ["topic", "event"])
def test_names_that_are_not_utf8_are_malformed(field: str) -> None:
    with pytest.raises(MalformedFrame):
        decode_v2(kind_3(**{field: b"\xff"}), binary=True)  # type: ignore[arg-type]


# Any bytes.


@given(st.binary(), st.booleans())
@example(b"\x03\0\0\0\0\0\1", True)
def test_any_bytes_are_a_push_or_malformed(data: bytes, binary: bool) -> None:
    for decode in (decode_v1, decode_v2):
        try:
            push = decode(data, binary=binary)
        except MalformedFrame:
            continue
        assert isinstance(push.payload, bytes)


@given(
    st.sampled_from(
        [b'[null,"1","t","e",%b]', b'{"topic":"t","event":"e","payload":%b,"ref":"1"}']
    ),
    st.text('{}[]",:0123456789.-+eE\\udtruefalsn \x00').map(str.encode),
)
def test_a_payload_that_passes_is_json_to_others(shape: bytes, payload: bytes) -> None:
    decode = decode_v2 if shape.startswith(b"[") else decode_v1
    for frame, binary in ((shape % payload, False), (kind_3(payload=payload), True)):
        try:
            push = (decode_v2 if binary else decode)(frame, binary=binary)
        except MalformedFrame:
            continue
        json.loads(push.payload, parse_constant=pytest.fail)


@given(st.tuples(refs, refs, names, names, json_values.map(payload_text)).map(lambda x: Push(*x)))
def test_text_pushes_survive_encoding_and_decoding(push: Push) -> None:
    assert decode_v1(encode_v1(push)) == push
    assert decode_v2(encode_v2(push)) == push


short = names.filter(lambda name: len(name.encode()) <= 255)
user_broadcasts = st.builds(
    Push,
    refs,
    refs,
    short,
    st.just("broadcast"),
    json_values.map(payload_text),
    short,
    st.none() | st.fixed_dictionaries({"persist": st.booleans()}),
    st.just(False),
)


@given(user_broadcasts, st.none() | st.binary())
def test_user_broadcast_pushes_survive_encoding_and_decoding(
    push: Push, binary_payload: bytes | None
) -> None:
    if binary_payload is not None:
        push = push._replace(payload=binary_payload, binary=True)
    assert decode_v2(encode_kind_3(push), binary=True) == push
