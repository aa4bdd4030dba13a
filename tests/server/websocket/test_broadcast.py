"""Broadcasts of clients and of the database (PROTOCOL 3 and 7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
BIG = '{"int":9007199254740993123,"dec":0.10000000000000000000000001,"zero":1.500,"e":1E400}'


def nothing_came(receiver: Client, *senders: Client) -> None:
    """What the senders sent has been handled when they are answered."""
    for sender in senders:
        sender.heartbeat()
    receiver.heartbeat()


# From clients


@BOTH
def test_a_text_broadcast_reaches_others_as_it_is_and_not_its_sender(
    client: Callable[..., Client], topic: str, vsn: str
) -> None:
    sender, v1, v2 = client(vsn=vsn), client(vsn="1.0.0"), client()
    for one in (sender, v1, v2):
        one.join(topic)
    body = f'{{"type":"broadcast","event":"e","payload":{BIG},"more":[1]}}'
    sender.send(f"realtime:{topic}", "broadcast", body.encode(), ref="1")
    assert v1.receive().raw == (
        f'{{"topic":"realtime:{topic}","event":"broadcast","payload":{body},"ref":null}}'
    )
    assert v2.receive().raw == f'[null,null,"realtime:{topic}","broadcast",{body}]'
    nothing_came(sender)


def test_a_user_broadcast_push_goes_out_as_kind_4_without_metadata(
    client: Callable[..., Client], push_frame: Callable[..., bytes], topic: str
) -> None:
    sender, v1, v2 = client(), client(vsn="1.0.0"), client()
    for one in (sender, v1, v2):
        one.join(topic)
    full = f"realtime:{topic}"
    sender.socket.send(push_frame(full, "ünï", BIG.encode(), ref="1", join_ref="1"))
    name = "ünï".encode()
    assert v2.receive().raw == (
        bytes((4, len(full), len(name), 0, 1)) + full.encode() + name + BIG.encode()
    )
    assert v1.receive().raw == (
        f'{{"topic":"{full}","event":"broadcast","payload":'
        f'{{"type":"broadcast","event":"ünï","payload":{BIG}}},"ref":null}}'
    )
    nothing_came(sender)


def test_a_binary_payload_goes_to_v2_only(
    client: Callable[..., Client], push_frame: Callable[..., bytes], topic: str
) -> None:
    sender, v1, v2 = client(), client(vsn="1.0.0"), client()
    for one in (sender, v1, v2):
        one.join(topic)
    for payload in (bytes(range(256)), b""):
        sender.socket.send(push_frame(f"realtime:{topic}", "b", payload, encoding=0))
        frame = v2.receive()
        assert frame.payload == {"type": "broadcast", "event": "b", "payload": payload}
        assert frame.raw[4] == 0
    nothing_came(v1, sender)


def test_metadata_of_a_push_does_not_stop_it(
    client: Callable[..., Client], push_frame: Callable[..., bytes], topic: str
) -> None:
    sender, other = client(), client()
    sender.join(topic, {"broadcast": {"ack": True}})
    other.join(topic)
    frame = push_frame(f"realtime:{topic}", "e", b"{}", ref="1", metadata=b'{"unknown":true}')
    sender.socket.send(frame)
    assert other.receive().payload == {"type": "broadcast", "event": "e", "payload": {}}
    assert sender.receive().payload == {"status": "ok", "response": {}}


@pytest.mark.parametrize("payload", ["null", "1", '"x"', "[1]"])
def test_the_user_payload_need_not_be_an_object(
    client: Callable[..., Client], push_frame: Callable[..., bytes], topic: str, payload: str
) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}})
    one.socket.send(push_frame(f"realtime:{topic}", "e", payload.encode()))
    assert one.receive().payload["payload"] == json.loads(payload)


@BOTH
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("ack", [False, True])
def test_self_and_ack_are_what_the_join_says(
    client: Callable[..., Client], topic: str, vsn: str, itself: bool, ack: bool
) -> None:
    one = client(vsn=vsn)
    ref = one.join(topic, {"broadcast": {"self": itself, "ack": ack}})
    one.broadcast(topic, ref="b")
    frames = {(frame := one.receive()).event: frame for _ in range(itself + ack)}
    assert set(frames) == {*["broadcast"] * itself, *["phx_reply"] * ack}
    if ack:
        reply = frames["phx_reply"]
        assert (reply.ref, reply.payload) == ("b", {"status": "ok", "response": {}})
        assert reply.join_ref == (ref if vsn == "2.0.0" else None)
    one.heartbeat()


def test_order_of_a_sender_is_kept(client: Callable[..., Client], topic: str) -> None:
    sender, other = client(), client(vsn="1.0.0")
    sender.join(topic, {"broadcast": {"self": True}})
    other.join(topic)
    for number in range(1000):
        sender.broadcast(topic, str(number))
    for one in (sender, other):
        events = [one.receive().payload["event"] for _ in range(1000)]
        assert events == [str(number) for number in range(1000)]


def test_a_payload_over_the_limit_goes_to_nobody_and_the_ack_says_so(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    push_frame: Callable[..., bytes],
    topic: str,
) -> None:
    server = start_server("--max-payload-bytes", "1000")
    acked, silent, other = (open_client(server) for _ in range(3))
    acked.join(topic, {"broadcast": {"ack": True}})
    silent.join(topic)
    other.join(topic)
    acked.broadcast(topic, "e", {"a": "x" * 1000}, ref="1")
    refused = {"status": "error", "response": "payload_size_exceeded"}
    assert acked.receive().payload == refused
    acked.socket.send(push_frame(f"realtime:{topic}", "e", b"x" * 1001, encoding=0, ref="2"))
    assert acked.receive().payload == refused
    silent.broadcast(topic, "e", {"a": "x" * 1000}, ref="1")
    told = silent.receive()  # who asks for no answer is told all the same
    assert (told.event, told.payload["status"]) == ("system", "error")
    assert told.payload["message"] == "payload_size_exceeded"
    nothing_came(other, acked, silent)
    silent.socket.send(push_frame(f"realtime:{topic}", "e", b"x" * 1000, encoding=0))
    assert other.receive().payload["payload"] == b"x" * 1000


def test_the_largest_payload_reaches_a_client_that_reads(
    client: Callable[..., Client], push_frame: Callable[..., bytes], topic: str
) -> None:
    sender, other = client(), client()
    sender.join(topic)
    other.join(topic)
    for _ in range(3):
        sender.socket.send(push_frame(f"realtime:{topic}", "e", b"x" * 3_000_500, encoding=0))
        assert len(other.receive().payload["payload"]) == 3_000_500
    other.heartbeat()


def test_without_the_right_to_write_nothing_is_sent_and_nothing_said(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    database.grant(topic, "bob", "read broadcast", "write broadcast")
    ann, bob = client(key=user("ann")), client(key=user("bob"))
    config = {"private": True, "broadcast": {"ack": True}}
    ann.join(topic, config)
    bob.join(topic, config)
    ann.broadcast(topic, ref="1")
    # The next of the channel waits for the policies too, so this is known by its reply.
    assert ann.push(f"realtime:{topic}", "presence", {"event": "untrack"})
    nothing_came(bob, ann)
    bob.broadcast(topic, "mine", ref="2")
    assert bob.receive().payload == {"status": "ok", "response": {}}
    assert ann.receive().payload["event"] == "mine"
    assert database.execute(
        "select count(*) from realtime.messages where topic = %s", [topic]
    ).fetchone() == (0,)


def test_broadcasts_that_wait_for_the_policies_keep_their_order(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast", "write broadcast")
    ann = client(key=user("ann"))
    config = {"private": True, "broadcast": {"self": True}}
    ann.send(f"realtime:{topic}", "phx_join", {"config": config}, ref="1", join_ref="1")
    for number in range(100):
        ann.broadcast(topic, str(number), {"x": "y" * 30_000})
    assert ann.receive().payload["status"] == "ok"
    assert [ann.receive().payload["event"] for _ in range(100)] == [
        str(number) for number in range(100)
    ]


def test_private_and_public_are_apart(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast", "write broadcast")
    private, public = client(key=user("ann")), client()
    private.join(topic, {"private": True, "broadcast": {"ack": True}})
    public.join(topic, {"broadcast": {"ack": True}})
    private.broadcast(topic, "p", ref="1")
    assert private.receive().event == "phx_reply"
    public.broadcast(topic, "q", ref="1")
    assert public.receive().event == "phx_reply"
    nothing_came(private, public)
    nothing_came(public, private)
    database.send(topic, "p", private=True)
    assert private.receive().payload["event"] == "p"
    database.send(topic, "q")
    assert public.receive().payload["event"] == "q"
    nothing_came(private)


def test_channels_of_several_users_live_on_one_connection(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    one = client(key=user("ann"))
    for name, other in [("ann", "bob"), ("bob", "ann")]:
        database.grant(f"{topic}:{name}", name, "read broadcast")
        assert one.refused(f"{topic}:{name}", {"private": True}, access_token=user(other))
        one.join(f"{topic}:{name}", {"private": True}, access_token=user(name))
    database.send(f"{topic}:bob", private=True)
    assert one.receive().topic == f"realtime:{topic}:bob"


# From the database


def cursor(frame: Any) -> dict[str, str]:
    """The key that it has, once the server knows where it is."""
    meta = frame.payload["meta"]
    return {"cursor": meta["cursor"]} if "cursor" in meta else {}


def test_a_committed_message_has_the_envelope_of_the_protocol(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    v1, v2 = client(vsn="1.0.0"), client()
    v1.join(topic)
    v2.join(topic)
    message_id = database.send(topic, "greeting", {"hello": 1})
    first, second = v1.receive(), v2.receive()
    wanted = {
        "type": "broadcast",
        "event": "greeting",
        "payload": {"hello": 1, "id": message_id},
        "meta": {"id": message_id, **cursor(second)},
    }
    assert (first.topic, first.event, first.ref) == (f"realtime:{topic}", "broadcast", None)
    assert first.payload == second.payload == wanted
    assert isinstance(second.raw, bytes)


@BOTH
def test_every_digit_of_a_number_survives(
    client: Callable[..., Client], database: Database, topic: str, vsn: str
) -> None:
    one = client(vsn=vsn)
    one.join(topic)
    text = '{"id": 1, "int": 9007199254740993123, "zero": 1.500, "long": 0.1000000000000000000001}'
    database.execute("select realtime.send(%s::jsonb, 'e', %s, false)", [text, topic])
    (stored,) = database.execute(
        "select payload::text from realtime.messages where topic = %s", [topic]
    ).fetchone()
    raw = one.receive().raw
    assert stored in (raw if isinstance(raw, str) else raw.decode())
    assert all(number in stored for number in ("9007199254740993123", "1.500", "0000001"))


def test_messages_come_in_commit_order_and_within_a_transaction_in_insert_order(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    one = client()
    one.join(topic)
    send = "select realtime.send('{}', %s, %s, false)"
    with psycopg.connect(database.url) as early, psycopg.connect(database.url) as late:
        for number in range(50):
            early.execute(send, [f"early {number}", topic])
            late.execute(send, [f"late {number}", topic])
        late.commit()
        early.commit()
    events = [one.receive().payload["event"] for _ in range(100)]
    assert events == [f"late {n}" for n in range(50)] + [f"early {n}" for n in range(50)]


def test_what_is_rolled_back_is_not_sent(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    one = client()
    one.join(topic)
    send = "select realtime.send('{}', %s, %s, false)"
    with psycopg.connect(database.url) as other:
        other.execute(send, ["no", topic])
        other.rollback()
        other.execute(send, ["yes", topic])
        other.execute("savepoint s")
        other.execute(send, ["no", topic])
        other.execute("rollback to s")
        other.commit()
    database.send(topic, "last")
    assert [one.receive().payload["event"] for _ in range(2)] == ["yes", "last"]


def test_a_binary_message_of_the_database_is_kind_4_and_not_for_v1(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    v1, v2 = client(vsn="1.0.0"), client()
    v1.join(topic)
    v2.join(topic)
    (message_id,) = database.execute(
        "select realtime.send_binary(%s, 'b', %s, false)::text", [bytes(range(256)), topic]
    ).fetchone()
    frame = v2.receive()
    assert frame.payload["payload"] == bytes(range(256))
    assert frame.meta == {"id": message_id, **cursor(frame)}
    database.send(topic, "json")
    assert v1.receive().payload["event"] == "json"


def test_rows_inserted_by_hand_count_and_incomplete_ones_are_skipped(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    one = client()
    one.join(topic)
    insert = "insert into realtime.messages (topic, extension, event, payload, private) values "
    for event, payload, private in [
        (None, "{}", False),
        ("e", None, False),
        ("e", "{}", None),
        ("good", '{"a": 1}', False),
    ]:
        database.execute(
            insert + "(%s, 'broadcast', %s, %s::jsonb, %s)", [topic, event, payload, private]
        )
    payload = one.receive().payload
    assert (payload["event"], payload["payload"]) == ("good", {"a": 1})


def test_a_large_transaction_arrives_complete_and_in_order(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    one = client()
    one.join(topic)
    database.execute(
        "select realtime.send(jsonb_build_object('n', n, 'text', repeat('x', 500)), 'e', %s, false)"
        " from generate_series(1, 10000) as n",
        [topic],
    )
    numbers = [one.receive().payload["payload"]["n"] for _ in range(10_000)]
    assert numbers == list(range(1, 10_001))
