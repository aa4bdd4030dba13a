"""Broadcasts that their sender wants stored (PROTOCOL 7.5)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from realtime_db.protocol.persist import ORDER_SECONDS

Client = Any
Server = Any
Database = Any

RIGHTS = ("read broadcast", "write broadcast")
PRIVATE = {"private": True, "broadcast": {"ack": True}}


@pytest.fixture
def join(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> Callable[..., Client]:
    """`join("ann", *rights)` -> a client in the private channel of the test."""

    def join(name: str, *rights: str, config: Any = None, **options: Any) -> Client:
        database.grant(topic, name, *(rights or RIGHTS))
        one = client(key=user(name), **options)
        one.join(topic, config or PRIVATE)
        return one

    return join


@pytest.fixture
def persist(push_frame: Callable[..., bytes], topic: str) -> Callable[..., None]:
    """`persist(client, "event", b"{}", ref="1")` sends as realtime-js does."""

    def persist(
        one: Client, event: str, payload: bytes = b"{}", *, wish: Any = True, **more: Any
    ) -> None:
        metadata = json.dumps({"persist": wish}).encode()
        one.socket.send(push_frame(f"realtime:{topic}", event, payload, metadata=metadata, **more))

    return persist


def reply(one: Client, ref: str) -> Any:
    frame = one.receive()
    assert (frame.event, frame.ref) == ("phx_reply", ref), frame
    return frame.payload


def refusal(one: Client, ref: str) -> str:
    payload = reply(one, ref)
    assert payload["status"] == "error"
    assert list(payload["response"]) == ["error"]
    return str(payload["response"]["error"])


def stored(database: Database, topic: str) -> list[tuple[Any, ...]]:
    return database.execute(
        "select event, payload::text, binary_payload, private, extension, id::text"
        " from realtime.messages where topic = %s order by inserted_at, position",
        [topic],
    ).fetchall()


def test_it_is_stored_and_delivered_with_the_id_that_the_sender_is_told(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str
) -> None:
    ann, bob = join("ann"), join("bob")
    persist(ann, "said", b'{"n": 9007199254740993.10}', ref="7")

    answer = reply(ann, "7")
    message = bob.receive()

    (row,) = stored(database, topic)
    assert row == (
        "said", '{"n": 9007199254740993.10}', None, True, "broadcast", answer["response"]["id"]
    )  # fmt: skip
    assert answer == {"status": "ok", "response": {"id": row[5]}}
    assert message.meta["id"] == row[5]
    assert message.payload["event"] == "said"
    assert b"9007199254740993.10" in message.raw
    ann.heartbeat()  # not to its sender


def test_with_self_its_sender_gets_it_as_well(
    join: Callable[..., Client], persist: Callable[..., None]
) -> None:
    ann = join("ann", config={"private": True, "broadcast": {"ack": True, "self": True}})
    persist(ann, "said", ref="7")
    frames = [ann.receive(), ann.receive()]
    assert sorted(frame.event for frame in frames) == ["broadcast", "phx_reply"]


def test_bytes_are_stored_as_bytes(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str
) -> None:
    ann, bob = join("ann"), join("bob")
    persist(ann, "frame", b"\x00\xff", encoding=0, ref="1")
    persist(ann, "none", b"", encoding=0, ref="2")

    assert [reply(ann, ref)["status"] for ref in "12"] == ["ok", "ok"]
    assert [bob.receive().payload["payload"] for _ in range(2)] == [b"\x00\xff", b""]
    assert [row[:3] for row in stored(database, topic)] == [
        ("frame", None, b"\x00\xff"), ("none", None, b"")
    ]  # fmt: skip


def test_without_ack_only_a_refusal_is_answered_and_told_to_who_awaits_no_answer(
    join: Callable[..., Client], persist: Callable[..., None], topic: str
) -> None:
    ann, bob = join("ann", config={"private": True}), join("bob")
    persist(ann, "said", ref="1")
    assert bob.receive().payload["event"] == "said"
    persist(ann, "said", wish="yes", ref="2")
    reason = refusal(ann, "2")
    assert "ttl" in reason
    system = ann.receive()
    assert (system.event, system.payload) == (
        "system",
        {"extension": "system", "status": "error", "message": reason, "channel": topic},
    )


def test_it_is_replayed_until_its_ttl_has_passed(
    join: Callable[..., Client],
    persist: Callable[..., None],
    database: Database,
    topic: str,
    client: Callable[..., Client],
    user: Callable[[str], str],
) -> None:
    ann = join("ann")
    for number, wish in enumerate([{"ttl": 60}, {}, True, {"ttl": 10**30}]):
        persist(ann, f"e{number}", wish=wish, ref=str(number))
        assert reply(ann, str(number))["status"] == "ok"
    seconds = database.execute(
        "select round(extract(epoch from expires_at - inserted_at))::bigint"
        " from realtime.messages where topic = %s order by inserted_at, position",
        [topic],
    ).fetchall()
    assert seconds == [(60,), (None,), (None,), (3650 * 86_400,)]
    # As if a minute had passed.
    database.execute(
        "update realtime.messages set expires_at = expires_at - interval '1 minute'"
        " where topic = %s",
        [topic],
    )

    one = client(key=user("ann"))
    one.join(topic, {"private": True, "broadcast": {"replay": {"since": 1}}})
    assert [one.receive().payload["event"] for _ in range(3)] == ["e1", "e2", "e3"]
    one.heartbeat()


@pytest.mark.parametrize("wish", [1, "true", [], {"ttl": 0}, {"ttl": -1}, {"ttl": 1.5},
                                  {"ttl": "60"}, {"ttl": True}])  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused_and_nothing_is_sent(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str,
    wish: Any,
) -> None:  # fmt: skip
    ann, bob = join("ann"), join("bob")
    persist(ann, "said", wish=wish, ref="1")
    assert refusal(ann, "1") == (
        "persist must be true or have a ttl, a whole number of seconds from 1"
    )
    assert stored(database, topic) == []
    bob.heartbeat()


@pytest.mark.parametrize("wish", [False, None])
def test_persist_false_is_an_ordinary_broadcast(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str,
    wish: Any,
) -> None:  # fmt: skip
    ann, bob = join("ann"), join("bob")
    persist(ann, "said", wish=wish, ref="1")
    assert reply(ann, "1") == {"status": "ok", "response": {}}
    assert bob.receive().meta is None
    assert stored(database, topic) == []


def test_on_a_public_channel_it_is_refused(
    client: Callable[..., Client], persist: Callable[..., None], topic: str
) -> None:
    one, other = client(), client()
    one.join(topic)
    other.join(topic)
    persist(one, "said", ref="1")
    reason = "a message can be stored on a private channel only"
    assert refusal(one, "1") == reason
    assert one.receive().payload["message"] == reason  # without `ack`
    other.heartbeat()


def test_who_may_not_write_is_told(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str
) -> None:
    ann = join("ann", "read broadcast")
    persist(ann, "said", ref="1")
    assert refusal(ann, "1").startswith("Unauthorized")
    ann.heartbeat()  # and nothing else, with `ack`
    assert stored(database, topic) == []


def test_a_writer_that_may_not_read_is_answered_too(
    join: Callable[..., Client], persist: Callable[..., None]
) -> None:
    ann, bob = join("ann", "read presence", "write broadcast"), join("bob")
    persist(ann, "said", ref="1")
    assert reply(ann, "1")["status"] == "ok"
    assert bob.receive().payload["event"] == "said"


def test_what_the_database_refuses_is_refused_and_the_rest_is_stored(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str
) -> None:
    ann, bob = join("ann"), join("bob")
    payloads = [b"1", rb'"\u0000"', b"2", rb'"\ud83d"', b"3"]
    for number, payload in enumerate(payloads):
        persist(ann, f"e{number}", payload, ref=str(number))
    answers = {frame.ref: frame.payload for frame in (ann.receive() for _ in payloads)}
    assert [answers[str(number)]["status"] for number in range(5)] == [
        "ok", "error", "ok", "error", "ok"
    ]  # fmt: skip
    assert answers["1"]["response"] == {
        "error": "the message holds what the database has no text for"
    }
    assert [bob.receive().payload["payload"] for _ in range(3)] == [1, 2, 3]


def test_what_is_too_large_is_refused(
    open_client: Callable[..., Client],
    start_server: Callable[..., Server],
    database: Database,
    user: Callable[[str], str],
    persist: Callable[..., None],
    topic: str,
) -> None:
    server = start_server("--max-payload-bytes", "100000", "--temporary-slot")
    database.grant(topic, "ann", *RIGHTS)
    database.execute("update realtime.settings set max_payload_bytes = 65536")
    try:
        ann = open_client(server, key=user("ann"))
        ann.join(topic, PRIVATE)
        persist(ann, "said", b'"%b"' % (b"x" * 100_000), ref="1")
        assert refusal(ann, "1") == "payload_size_exceeded"
        persist(ann, "said", b'"%b"' % (b"x" * 70_000), ref="2")
        assert refusal(ann, "2").endswith("is 70002 bytes; at most 65536 are allowed")
    finally:
        database.execute("update realtime.settings set max_payload_bytes = default")


def test_the_order_of_a_sender_is_kept(
    join: Callable[..., Client], persist: Callable[..., None], database: Database, topic: str
) -> None:
    """Unless it takes longer than the server waits, as on a machine that stands still."""
    ann, bob = join("ann", config={"private": True}), join("bob")
    wanted = [f"e{number}" for number in range(200)]
    for _ in range(5):
        database.send(topic, "followed", private=True)
        assert bob.receive().payload["event"] == "followed"
        began = time.monotonic()
        for number, event in enumerate(wanted):
            if number % 5 == 4:
                ann.broadcast(topic, event)
            else:
                persist(ann, event)
        events = [bob.receive().payload["event"] for _ in wanted]
        if events == wanted or time.monotonic() - began < ORDER_SECONDS:
            break
    assert events == wanted


def test_it_is_stored_even_if_its_sender_leaves_at_once(
    join: Callable[..., Client], persist: Callable[..., None], topic: str
) -> None:
    ann, bob = join("ann"), join("bob")
    persist(ann, "warm", ref="1")  # the right to write is known from now on
    assert reply(ann, "1")["status"] == "ok"
    assert bob.receive().payload["event"] == "warm"
    persist(ann, "last words", ref="2")
    ann.socket.close()
    assert bob.receive().payload["event"] == "last words"


def test_other_servers_bring_it_too(
    join: Callable[..., Client],
    persist: Callable[..., None],
    open_client: Callable[..., Client],
    start_server: Callable[..., Server],
    user: Callable[[str], str],
    topic: str,
) -> None:
    ann = join("ann")
    bob = open_client(start_server("--temporary-slot"), key=user("ann"))
    bob.join(topic, PRIVATE)
    persist(ann, "said", ref="1")
    answer = reply(ann, "1")
    assert bob.receive().meta["id"] == answer["response"]["id"]
