"""Replay of stored messages at a join (PROTOCOL 7.4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])


def replay(since: Any = 1, **more: Any) -> dict[str, Any]:
    return {"private": True, "broadcast": {"replay": {"since": since, **more}}}


def cursor(frame: Any) -> dict[str, str]:
    """The key that the last message has, once the server knows where it is."""
    meta = frame.payload["meta"]
    return {"cursor": meta["cursor"]} if "cursor" in meta else {}


@pytest.fixture
def ann(database: Database, user: Callable[[str], str], topic: str) -> str:
    """A user's token who may read the topic."""
    database.grant(topic, "ann", "read broadcast", "write broadcast")
    return user("ann")


@BOTH
def test_the_latest_messages_follow_the_join_reply_oldest_first(
    client: Callable[..., Client], database: Database, ann: str, topic: str, vsn: str
) -> None:
    ids = [database.send(topic, f"e{n}", {"n": n}, private=True) for n in range(5)]
    one = client(key=ann, vsn=vsn)
    ref = one.join(topic, replay(limit=3))
    for n in (2, 3, 4):
        frame = one.receive()
        assert isinstance(frame.raw, str)
        assert (frame.event, frame.ref) == ("broadcast", None)
        assert frame.join_ref == (ref if vsn == "2.0.0" else None)
        assert frame.payload == {
            "type": "broadcast",
            "event": f"e{n}",
            "payload": {"n": n, "id": ids[n]},
            "meta": {"replayed": True, "id": ids[n], **cursor(frame)},
        }
    one.heartbeat()


def test_a_binary_message_is_replayed_as_kind_4_and_not_to_v1(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    (message_id,) = database.execute(
        "select realtime.send_binary(%s, 'b', %s)::text", [b"\0\1", topic]
    ).fetchone()
    v1, v2 = client(key=ann, vsn="1.0.0"), client(key=ann)
    v1.join(topic, replay())
    v1.heartbeat()
    v2.join(topic, replay())
    frame = v2.receive()
    assert isinstance(frame.raw, bytes)
    assert frame.payload["payload"] == b"\0\1"
    assert frame.meta == {"replayed": True, "id": message_id, **cursor(frame)}


@pytest.mark.parametrize(("limit", "count"), [(None, 25), (1000, 25), (0, 1), (-5, 1), (7, 7)])
def test_the_limit_is_clamped(
    client: Callable[..., Client],
    database: Database,
    ann: str,
    topic: str,
    limit: int | None,
    count: int,
) -> None:
    for n in range(30):
        database.send(topic, str(n), private=True)
    one = client(key=ann)
    one.join(topic, replay(limit=limit))
    events = [one.receive().payload["event"] for _ in range(count)]
    assert events == [str(n) for n in range(30 - count, 30)]
    one.heartbeat()


def test_messages_of_one_transaction_are_replayed_in_insert_order(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    with psycopg.connect(database.url) as other:
        for n in range(10):
            other.execute("select realtime.send('{}', %s, %s)", [str(n), topic])
    one = client(key=ann)
    one.join(topic, replay(limit=5))
    assert [one.receive().payload["event"] for _ in range(5)] == list("56789")


def test_messages_of_one_instant_are_replayed_in_insert_order(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    database.execute(
        "insert into realtime.messages (topic, extension, event, payload, private, inserted_at) "
        "select %s, 'broadcast', n::text, '{}', true, now() at time zone 'utc' "
        "from generate_series(0, 9) as n",
        [topic],
    )
    one = client(key=ann)
    one.join(topic, replay(limit=5))
    assert [one.receive().payload["event"] for _ in range(5)] == list("56789")


def test_only_messages_since_then_are_replayed(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    database.send(topic, "before", private=True)
    (since,) = database.execute(
        "select (extract(epoch from clock_timestamp()) * 1000)::bigint + 1"
    ).fetchone()
    while time.time() * 1000 < since + 1:
        pass
    database.send(topic, "after", private=True)
    one = client(key=ann)
    one.join(topic, replay(since=since))
    assert one.receive().payload["event"] == "after"
    one.heartbeat()


def test_public_messages_and_those_of_other_topics_are_not_replayed(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    database.send(topic, private=False)
    database.send(f"{topic}:other", private=True)
    one = client(key=ann)
    one.join(topic, replay())
    one.heartbeat()


@pytest.mark.parametrize("wish", [{"since": 1}, None, "x", {}])
def test_replay_on_a_public_channel_is_refused_whatever_it_says(
    client: Callable[..., Client], topic: str, wish: Any
) -> None:
    one = client()
    assert one.refused(topic, {"broadcast": {"replay": wish}}) == (
        "UnableToReplayMessages: Replay is not allowed for public channels"
    )
    one.join(topic)


@pytest.mark.parametrize("wish", [{}, {"since": "1"}, {"since": 1.5}, {"since": 1, "limit": "2"}])
def test_replay_with_invalid_parameters_is_refused(
    client: Callable[..., Client], ann: str, topic: str, wish: Any
) -> None:
    one = client(key=ann)
    assert one.refused(topic, {"private": True, "broadcast": {"replay": wish}}) == (
        "UnableToReplayMessages: Replay params are not valid"
    )


def test_the_right_is_checked_before_the_parameters(
    client: Callable[..., Client], user: Callable[[str], str], topic: str
) -> None:
    reason = client(key=user("bob")).refused(topic, replay(since="x"))
    assert reason.startswith("Unauthorized: ")


def test_who_may_only_read_presence_gets_no_replay(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "bob", "read presence")
    database.send(topic, private=True)
    one = client(key=user("bob"))
    assert one.refused(topic, replay()).startswith("Unauthorized: ")
    one.join(topic, {"private": True})


def test_a_cancelled_replay_refuses_the_join(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    database: Database,
    ann: str,
    topic: str,
) -> None:
    """The policies can be asked; the table of stored messages cannot be read."""
    one = open_client(start_server("--statement-timeout-seconds", "3"), key=ann)
    with psycopg.connect(database.url) as other:
        other.execute("lock table realtime.messages in access exclusive mode")
        reason = one.refused(topic, replay())
        other.rollback()
    assert reason == "QueryCanceled: Query was cancelled, please try again"
    one.join(topic, replay())


def test_nothing_is_lost_or_doubled_between_replay_and_live(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    """Joins while somebody sends without a pause; the ids tell."""
    stop = threading.Event()
    sent: list[str] = []

    def send() -> None:
        with psycopg.connect(database.url, autocommit=True) as other:
            while not stop.is_set():
                row = other.execute("select realtime.send('{}', 'e', %s)::text", [topic]).fetchone()
                sent.append(row[0])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        heard = []
        for _ in range(20):
            one = client(key=ann)
            one.join(topic, replay(limit=25))
            frames = [one.receive() for _ in range(60)]
            heard.append([frame.payload["meta"] for frame in frames])
    finally:
        stop.set()
        sender.join()
    position = {message_id: n for n, message_id in enumerate(sent)}
    for metas in heard:
        numbers = [position[meta["id"]] for meta in metas]
        assert numbers == list(range(numbers[0], numbers[0] + 60))


def test_a_message_that_the_wal_brings_after_its_replay_comes_once(
    client: Callable[..., Client], database: Database, ann: str, topic: str
) -> None:
    """What is committed asynchronously is seen at once, and decoded when it has been flushed."""
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("set synchronous_commit = off")
        one = client(key=ann)
        for _ in range(5):
            row = other.execute("select realtime.send('{}', 'e', %s)::text", [topic]).fetchone()
            one.join(topic, replay(limit=1))
            frame = one.receive()
            assert frame.payload["meta"] == {"replayed": True, "id": row[0], **cursor(frame)}
            # The stream has come past it when it brings this one.
            other.execute("select realtime.send('{}', 'next', %s)", [topic])
            assert one.receive().payload["event"] == "next"
            one.push(f"realtime:{topic}", "phx_leave")
            assert one.receive().event == "phx_close"
