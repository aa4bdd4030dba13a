"""Resuming after a cursor: nothing that committed is missed, whoever was away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from realtime_db.cursors import Cursor, Snapshot

Client = Any
Server = Any
Database = Any
Frame = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
ANY_PRIVACY = pytest.mark.parametrize("private", [True, False])
DEADLINE_SECONDS = 60.0


def after(cursor: str, *, private: bool = True, **more: Any) -> dict[str, Any]:
    return {"private": private, "broadcast": {"replay": {"cursor": cursor, **more}}}


def events(client: Client, count: int) -> list[str]:
    return [client.receive().payload["event"] for _ in range(count)]


def meta(frame: Frame) -> dict[str, Any]:
    return frame.payload["meta"]


@pytest.fixture
def ann(database: Database, user: Callable[[str], str], topic: str) -> str:
    """A user's token who may read the topic."""
    database.grant(topic, "ann", "read broadcast", "write broadcast")
    return user("ann")


@pytest.fixture
def join(client: Callable[..., Client], ann: str, topic: str) -> Callable[..., Client]:
    """Joins the topic on a new connection, when the server knows where it is."""

    def join(config: Any = None, **options: Any) -> Client:
        deadline = time.monotonic() + DEADLINE_SECONDS
        one = client(key=ann, **options)
        one.join(topic, config or {"private": True})
        while one.cursor is None:
            assert time.monotonic() < deadline
            one.push(f"realtime:{topic}", "phx_leave")
            assert one.receive().event == "phx_close"
            one.join(topic, config or {"private": True})
        return one

    return join


@contextmanager
def transactions(database: Database, count: int) -> Iterator[list[psycopg.Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(psycopg.connect(database.url)) for _ in range(count)]


def send(connection: psycopg.Connection, topic: str, event: str, private: bool = True) -> None:
    connection.execute("select realtime.send('{}', %s, %s, %s)", [event, topic, private])


def wait_until_read(database: Database, client: Client, topic: str) -> None:
    """Returns when the server has read what was committed.

    If it comes while a client resumes, it may be more than is kept for one.
    """
    other = f"{topic}:other"
    client.join(other)
    database.send(other, "later")
    assert events(client, 1) == ["later"]


# Nothing is missed


@BOTH
@ANY_PRIVACY
def test_a_transaction_that_was_open_before_the_disconnect_and_committed_after_it_arrives(
    database: Database, join: Callable[..., Client], topic: str, vsn: str, private: bool
) -> None:
    one, watcher = (join({"private": private}, vsn=vsn) for _ in range(2))
    with transactions(database, 2) as (open_, rolled_back):
        send(open_, topic, "open", private)
        send(rolled_back, topic, "rolled back", private)
        database.send(topic, "before", private=private)
        frame = one.receive()
        assert frame.payload["event"] == "before"
        one.socket.close()
        database.send(topic, "between", private=private)
        open_.commit()
        rolled_back.rollback()
        database.send(topic, "after", private=private)
    assert events(watcher, 4) == ["before", "between", "open", "after"]
    again = join(after(meta(frame)["cursor"], private=private), vsn=vsn)
    assert events(again, 3) == ["between", "open", "after"]
    database.send(topic, "live", private=private)
    assert events(again, 1) == ["live"]
    again.heartbeat()


def test_who_has_got_nothing_resumes_where_he_joined(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    watcher = join()
    database.send(topic, "before the join", private=True)
    assert events(watcher, 1) == ["before the join"]
    one = join()
    one.socket.close()
    database.send(topic, "after the join", private=True)
    again = join(after(one.cursor))
    assert events(again, 1) == ["after the join"]
    again.heartbeat()


def test_the_order_of_overlapping_transactions_is_that_in_which_they_were_delivered(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    watcher, away = join(), join()
    away.socket.close()
    with transactions(database, 5) as opened:
        for turn in range(3):
            for number, one in enumerate(opened):
                send(one, topic, f"{number}.{turn}")
        for number in (3, 0, 4, 2, 1):
            opened[number].commit()
    live = events(watcher, 15)
    assert live[::3] == ["3.0", "0.0", "4.0", "2.0", "1.0"]
    assert events(join(after(away.cursor)), 15) == live


def test_nothing_comes_twice_while_the_server_remembers(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    one = join()
    with transactions(database, 1) as (connection,):
        for number in range(9):
            send(connection, topic, str(number))
            if number % 3 == 2:
                connection.commit()
    frames = [one.receive() for _ in range(9)]
    for frame in frames:
        rest = [str(n) for n in range(int(frame.payload["event"]) + 1, 9)]
        again = join(after(meta(frame)["cursor"]))
        assert events(again, len(rest)) == rest
        again.heartbeat()


def test_who_got_a_part_of_a_resume_goes_on_with_the_rest(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    live = join()
    ids = [database.send(topic, str(n), private=True) for n in range(3)]
    assert events(live, 3) == ["0", "1", "2"]  # so the server knows their order
    again = join(after(live.cursor))
    assert again.cursor == live.cursor  # who stops here has got nothing
    metas = [meta(again.receive()) for _ in range(3)]
    assert [one["id"] for one in metas] == ids
    assert all(one["replayed"] for one in metas)
    database.send(topic, "more", private=True)
    for place, rest in enumerate((["1", "2", "more"], ["2", "more"], ["more"])):
        assert events(join(after(metas[place]["cursor"])), len(rest)) == rest


def test_a_resume_that_finds_nothing_gives_a_newer_cursor(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    start = join().cursor
    database.send(f"{topic}:other", private=True)
    newer = join(after(start)).cursor
    taken = [Cursor.parse(one).horizon.taken_us for one in (start, newer)]
    assert taken[0] < taken[1]
    database.send(topic, "more", private=True)
    assert events(join(after(newer)), 1) == ["more"]


def test_a_message_from_the_latest_can_be_resumed_after(
    database: Database, join: Callable[..., Client], client: Callable[..., Client], ann: str,
    topic: str,
) -> None:  # fmt: skip
    join()  # the server knows where it is
    for number in range(3):
        database.send(topic, str(number), private=True)
    one = client(key=ann)
    one.join(topic, {"private": True, "broadcast": {"replay": {"since": 1, "limit": 2}}})
    metas = [meta(one.receive()) for _ in range(2)]
    assert "cursor" not in metas[0]
    database.send(topic, "more", private=True)
    assert events(join(after(metas[1]["cursor"])), 1) == ["more"]


def test_a_binary_message_is_resumed_in_v2_and_passed_over_in_v1(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    live = join()
    start = live.cursor
    database.send(topic, "text", private=True)
    database.execute("select realtime.send_binary(%s, 'bytes', %s)", [b"\0\1", topic])
    assert events(live, 2) == ["text", "bytes"]
    v1, v2 = join(after(start), vsn="1.0.0"), join(after(start))
    first, second = v2.receive(), v2.receive()
    assert second.payload["payload"] == b"\0\1"
    assert meta(first)["cursor"] != second.meta["cursor"]
    assert second.meta["replayed"]
    assert second.meta["cursor"]
    assert meta(v1.receive())["cursor"]  # it is the last that this client gets
    v1.heartbeat()


def test_expired_messages_are_passed_over(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    start = join().cursor
    for event, hours in (("expired", -1), ("not yet", 1)):
        database.execute(
            "insert into realtime.messages (topic, extension, event, payload, private, expires_at)"
            " values (%s, 'broadcast', %s, '{}', true,"
            " now() at time zone 'utc' + make_interval(hours => %s))",
            [topic, event, hours],
        )
    again = join(after(start))
    assert events(again, 1) == ["not yet"]
    again.heartbeat()


def test_what_is_too_large_for_a_server_comes_from_it_neither_live_nor_later(
    database: Database, start_server: Callable[..., Server], open_client: Callable[..., Client],
    join: Callable[..., Client], ann: str, topic: str,
) -> None:  # fmt: skip
    cursor = join().cursor
    server = start_server("--max-payload-bytes", "200")
    live, later, replayed = (open_client(server, key=ann) for _ in range(3))
    live.join(topic, {"private": True})
    for event, size in (("small", 1), ("large", 200), ("last", 1)):
        database.send(topic, event, {"x": "x" * size}, private=True)
    later_wishes = (
        (later, after(cursor)),
        (replayed, {"private": True, "broadcast": {"replay": {"since": 1}}}),
    )
    assert events(live, 2) == ["small", "last"]
    for one, wish in later_wishes:
        one.join(topic, wish)
        assert events(one, 2) == ["small", "last"]
        one.heartbeat()


def test_nothing_is_lost_whenever_a_client_leaves_and_comes_back(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    """Transactions overlap, some are rolled back, and the client leaves in the midst of all."""
    stop = threading.Event()
    committed: list[list[str]] = []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(database.url) as connection:
            while not stop.is_set():
                count = chance.randint(1, 4)
                ids = []
                for _ in range(count):
                    query = "select realtime.send('{}', 'e', %s)::text"
                    ids.append(connection.execute(query, [topic]).fetchone()[0])
                    time.sleep(chance.random() * 0.01)
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.append(ids)

    chance = random.Random(7)
    one = join()
    writers = [threading.Thread(target=write, args=[seed]) for seed in range(4)]
    for writer in writers:
        writer.start()
    heard: list[dict[str, Any]] = []
    cursor = one.cursor
    try:
        for _ in range(30):
            for _ in range(chance.randint(0, 20)):
                if (frame := one.receive()).event == "phx_error":
                    break  # the server lost the database for a moment; clients join again
                heard.append(got := meta(frame))
                cursor = got.get("cursor", cursor)
            one.socket.close()
            one = join(after(cursor))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    database.send(topic, "the end", private=True)
    while (frame := one.receive()).payload.get("event") != "the end":
        if frame.event == "phx_error":
            one = join(after(cursor))
            continue
        heard.append(got := meta(frame))
        cursor = got.get("cursor", cursor)
    ids = {message_id for transaction in committed for message_id in transaction}
    assert {got["id"] for got in heard} == ids
    assert len(ids) > 100
    place: dict[str, int] = {}
    for number, got in enumerate(heard):
        if got["id"] in place:
            assert got.get("replayed"), "only a replay brings a message again"
        place.setdefault(got["id"], number)
    for transaction in committed:
        assert [place[one] for one in transaction] == sorted(place[one] for one in transaction)


# Cursors that say little


def moved(cursor: str, **changes: Any) -> str:
    """The same cursor with another horizon."""
    found = Cursor.parse(cursor)
    return str(found._replace(horizon=found.horizon._replace(**changes)))


def test_a_cursor_of_another_cluster_goes_by_time(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    one = join()
    database.send(topic, "seen", private=True)
    cursor = meta(one.receive())["cursor"]
    database.send(topic, "new", private=True)
    again = join(after(moved(cursor, cluster=1)))
    assert events(again, 2) == ["seen", "new"]  # ids mean nothing, so one comes again
    assert again.gap is None


def test_a_cursor_of_a_later_time_than_a_database_that_was_restored_goes_by_time(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    one = join()
    database.send(topic, "seen", private=True)
    cursor = meta(one.receive())["cursor"]
    seen = Cursor.parse(cursor).horizon.seen
    xmin, xmax = seen.xmin + 1_000_000, seen.xmax + 1_000_000
    later = Snapshot(xmin, xmax)
    assert events(join(after(moved(cursor, seen=later))), 1) == ["seen"]


def test_a_cursor_from_before_the_oldest_day_that_is_stored_is_told_of_the_gap(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    cursor = join().cursor
    database.send(topic, "still there", private=True)
    horizon = Cursor.parse(cursor).horizon
    days = 40 * 86_400_000_000
    old = moved(cursor, taken_us=horizon.taken_us - days, since_us=horizon.taken_us - days - 1)
    (before,) = database.execute(
        "select to_char(min(day), 'YYYY-MM-DD\"T00:00:00Z\"') from realtime.partitions() "
        "where attached"
    ).fetchone()
    again = join(after(old))
    assert again.gap == before
    system = again.receive()
    assert system.event == "system"
    assert system.payload == {
        "extension": "system",
        "status": "error",
        "message": f"MessagesMissing: messages before {before} are no longer stored",
        "channel": topic,
    }
    assert events(again, 1) == ["still there"]


@pytest.mark.parametrize("cursor", ["", "w", "nonsense", 7, {"a": 1}, "w" + "A" * 300 + ".AAAA"])
@ANY_PRIVACY
def test_what_is_no_cursor_is_refused(
    client: Callable[..., Client], ann: str, topic: str, cursor: Any, private: bool
) -> None:
    one = client(key=ann)
    assert one.refused(topic, after(cursor, private=private)) == (
        "UnableToReplayMessages: Replay params are not valid"
    )
    one.join(topic, {"private": private})


def test_the_cursor_counts_before_a_time(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    watcher = join()
    database.send(topic, "before", private=True)
    assert events(watcher, 1) == ["before"]
    start = join().cursor
    for number in range(30):  # more than a replay has
        database.send(topic, str(number), private=True)
    again = join(after(start, since=1, limit=2))
    assert events(again, 30) == [str(number) for number in range(30)]


def test_who_may_not_read_messages_cannot_resume(
    database: Database, join: Callable[..., Client], client: Callable[..., Client],
    user: Callable[[str], str], topic: str,
) -> None:  # fmt: skip
    cursor = join().cursor
    database.grant(topic, "bob", "read presence")
    for sub in ("bob", "eve"):
        one = client(key=user(sub))
        assert one.refused(topic, after(cursor)).startswith("Unauthorized: ")


def test_messages_of_the_other_privacy_and_of_other_topics_are_not_resumed(
    database: Database, join: Callable[..., Client], topic: str
) -> None:
    cursor = join().cursor
    database.send(topic, "public", private=False)
    database.send(topic, "private", private=True)
    database.send(f"{topic}:other", "other", private=True)
    for private in (True, False):
        again = join(after(cursor, private=private))
        assert events(again, 1) == ["private" if private else "public"]
        again.heartbeat()


# Heartbeats


@BOTH
def test_a_heartbeat_that_asks_is_told_the_cursor_of_now(
    database: Database, join: Callable[..., Client], topic: str, vsn: str
) -> None:
    one = join(vsn=vsn)
    database.send(topic, "seen", private=True)
    mine = meta(one.receive())["cursor"]
    deadline = time.monotonic() + DEADLINE_SECONDS
    order = 0
    while order <= Cursor.parse(mine).order:  # until it has been settled
        assert time.monotonic() < deadline
        one.send("phoenix", "heartbeat", {"cursor": True}, ref="h")
        reply = one.receive()
        assert (reply.ref, reply.payload["status"]) == ("h", "ok")
        cursor = reply.payload["response"]["cursor"]
        order = Cursor.parse(cursor).order
    one.socket.close()
    database.send(topic, "missed", private=True)
    assert events(join(after(cursor)), 1) == ["missed"]


def test_other_heartbeats_are_answered_as_ever(join: Callable[..., Client]) -> None:
    one = join()
    for payload in ({}, {"cursor": False}, {"cursor": "true"}):
        one.send("phoenix", "heartbeat", payload, ref="h")
        assert one.receive().payload == {"status": "ok", "response": {}}


# Much


def test_a_long_absence_is_made_up_for_page_by_page(
    database: Database, start_server: Callable[..., Server], open_client: Callable[..., Client],
    join: Callable[..., Client], ann: str, topic: str,
) -> None:  # fmt: skip
    """More than a client may be behind, and without the server holding all of it."""
    cursor = join().cursor
    server = start_server()
    count, kilobyte = 20_000, "x" * 3_000
    database.execute(
        "select realtime.send(jsonb_build_object('n', n, 'x', %s::text), 'e', %s) "
        "from generate_series(1, %s) as n",
        [kilobyte, topic, count],
    )
    wait_until_read(database, open_client(server), topic)
    before = server.memory_bytes()
    again = open_client(server, key=ann)
    again.join(topic, after(cursor))
    numbers, most, failed = [], before, 0
    while len(numbers) < count:
        frame = again.receive()
        if frame.event == "phx_error" and failed < 3:
            # The server lost the database for a moment, as on a machine that stood still.
            failed += 1
            numbers.clear()
            again.join(topic, after(cursor))
            continue
        numbers.append(frame.payload["payload"]["n"])
        if len(numbers) % 500 == 0:
            most = max(most, server.memory_bytes())
    assert numbers == list(range(1, count + 1))
    database.send(topic, "live", private=True)
    assert events(again, 1) == ["live"]
    assert most - before < 20_000_000, "of 60 MB that were sent"


def test_many_clients_that_resume_at_once_all_do(
    database: Database, start_server: Callable[..., Server], open_client: Callable[..., Client],
    join: Callable[..., Client], ann: str, topic: str,
) -> None:  # fmt: skip
    cursor = join().cursor
    for number in range(20):
        database.send(topic, str(number), private=True)
    # Each has eight seconds until it is its turn.
    server = start_server("--pool-size", "2", "--statement-timeout-seconds", "60")
    clients = [open_client(server, key=ann) for _ in range(60)]
    for one in clients:
        one.send(f"realtime:{topic}", "phx_join", {"config": after(cursor)}, ref="1")
    for one in clients:
        reply = one.receive()
        assert reply.payload["status"] == "ok", reply
        assert events(one, 20) == [str(number) for number in range(20)]


def test_a_client_can_leave_while_it_resumes(
    database: Database, client: Callable[..., Client], join: Callable[..., Client], topic: str
) -> None:
    start = join().cursor
    database.execute(
        "select realtime.send(jsonb_build_object('x', repeat('x', 100000)), 'e', %s) "
        "from generate_series(1, 300)",
        [topic],
    )
    wait_until_read(database, client(), topic)
    again = join(after(start), max_queue=16)  # what is not received here is not sent at all
    ref = again.ref()
    again.send(f"realtime:{topic}", "phx_leave", ref=ref)
    got = 0
    while (frame := again.receive()).event == "broadcast":
        got += 1
    assert (frame.event, frame.ref) == ("phx_reply", ref)
    assert again.receive().event == "phx_close"
    assert got < 300
    again.heartbeat()
