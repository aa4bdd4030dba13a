"""A broadcast over REST that is to be stored (PROTOCOL 7.5): one message, one query parameter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg
import pytest

BYTES = {"content-type": "application/octet-stream"}


def path(topic: str, query: str = "private=true&persist=true") -> str:
    return f"/api/broadcast/{quote(topic, safe='')}/events/said?{query}"


def rows(database, topic):
    return database.execute(
        "select event, payload, binary_payload, private, extension,"
        " round(extract(epoch from expires_at - inserted_at))::bigint"
        " from realtime.messages where topic = %s order by inserted_at, position",
        [topic],
    ).fetchall()


def test_it_is_stored_and_comes_with_its_id(server, database, follow, private_topic) -> None:
    events = follow(private_topic, private=True)

    answer = server.post(path(private_topic), {"n": 1})

    assert (answer.status, answer.body) == (202, b"")
    message = events.message()
    (id_,) = database.execute(
        "select id::text from realtime.messages where topic = %s", [private_topic]
    ).fetchone()
    assert (message["event"], message["payload"]) == ("said", {"n": 1})
    assert message["meta"]["id"] == id_
    assert rows(database, private_topic) == [
        ("said", {"n": 1}, None, True, "broadcast", None)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["persist[ttl]", "persist%5Bttl%5D"])
def test_its_ttl_is_kept(server, database, private_topic, name) -> None:
    assert server.post(path(private_topic, f"private=true&{name}=60"), [1]).status == 202
    assert rows(database, private_topic) == [
        ("said", {"_json": [1]}, None, True, "broadcast", 60)
    ]  # fmt: skip


def test_bytes_are_stored_as_bytes(server, database, private_topic, mint) -> None:
    headers = {"authorization": f"Bearer {mint()}", **BYTES}
    answer = server.request("POST", path(private_topic), b"\x00\xff", headers)
    assert answer.status == 202
    assert rows(database, private_topic) == [
        ("said", None, b"\x00\xff", True, "broadcast", None)
    ]  # fmt: skip


def test_without_the_wish_nothing_is_stored(server, database, private_topic) -> None:
    assert server.post(path(private_topic, "private=true&persist=false"), {}).status == 202
    assert rows(database, private_topic) == []


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("persist=true", "a message can be stored on a private channel only"),
        ("private=true&persist=1", "persist must be true or have a ttl"),
        ("private=true&persist=", "persist must be true or have a ttl"),
        ("private=true&persist[ttl]=0", "persist must be true or have a ttl"),
        ("private=true&persist[ttl]=-1", "persist must be true or have a ttl"),
        ("private=true&persist[ttl]=1.5", "persist must be true or have a ttl"),
        ("private=true&persist[ttl]=", "persist must be true or have a ttl"),
    ],
)
def test_what_makes_no_sense_is_422_and_nothing_is_sent(
    server, database, private_topic, query, error
) -> None:
    answer = server.post(path(private_topic, query), {})
    assert answer.status == 422
    assert answer.json["error"].startswith(error)
    assert rows(database, private_topic) == []


def test_the_right_to_write_is_needed(server, database, topic) -> None:
    topic = f"read:{topic}"
    answer = server.post(path(topic), {})
    assert (answer.status, answer.json) == (403, {"message": "Unauthorized"})
    assert rows(database, topic) == []


def test_what_the_database_refuses_is_422(server, private_topic, mint) -> None:
    headers = {"authorization": f"Bearer {mint()}", "content-type": "application/json"}
    answer = server.request("POST", path(private_topic), rb'{"a": "\u0000"}', headers)
    assert answer.status == 422
    assert answer.json == {"error": "the message holds what the database has no text for"}


def test_without_a_partition_for_today_it_is_422(start_server, own_database_url, as_admin) -> None:
    """The right to write is asked about by an insert, which says so first."""
    server = start_server("--no-maintain", database_url=own_database_url)  # it would make one
    server.says("following the WAL")
    as_admin(own_database_url).execute(
        "select realtime.drop_partition((now() at time zone 'utc')::date)"
    )
    answer = server.post(path("open:1"), {})
    assert (answer.status, answer.json) == (422, {"message": "Missing messages partition"})


def test_a_batch_cannot_be_stored(server, database, private_topic) -> None:
    """The clients say so themselves; the parameter is one of single messages."""
    message = {"topic": private_topic, "event": "e", "payload": {}, "private": True}
    answer = server.post("/api/broadcast?persist=true", {"messages": [message]})
    assert (answer.status, json.dumps(rows(database, private_topic))) == (202, "[]")


WAITS_TO_STORE = """
create function public.wait() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock(7); return new; end $$;
create trigger waits before insert on realtime.messages for each row
    when (new.event = 'said') execute function public.wait();
"""
IT_WAITS = """
select from pg_locks where not granted and locktype = 'advisory' and database = (
    select oid from pg_database where datname = current_database()
)
"""


def test_at_sigterm_what_waits_is_stored_and_answered(
    start_server, own_database_url, private_topic
) -> None:
    server = start_server(
        "--no-maintain", "--statement-timeout-seconds", "30", database_url=own_database_url
    )
    deadline = time.monotonic() + 60
    with (
        ThreadPoolExecutor() as threads,
        psycopg.connect(own_database_url, autocommit=True) as database,
    ):
        database.execute(WAITS_TO_STORE)
        database.execute("select pg_advisory_lock(7)")
        answer = threads.submit(server.post, path(private_topic), {"n": 1})
        while not database.execute(IT_WAITS).fetchall():
            assert time.monotonic() < deadline
        os.kill(server.pid, signal.SIGTERM)
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            while time.monotonic() < deadline:
                server.open().close()
        database.execute("select pg_advisory_unlock(7)")
        assert answer.result().status == 202
        assert [row[1] for row in rows(database, private_topic)] == [{"n": 1}]
