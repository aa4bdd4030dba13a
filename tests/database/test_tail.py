"""`realtime-db tail` from end to end, and the stream below it, against a real walsender."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db import embedded
from realtime_db.errors import (
    ConnectionFailed,
    MissingRight,
    NotInstalled,
    RealtimeDbError,
    SlotError,
)
from realtime_db.wal.pgoutput import Message
from realtime_db.wal.stream import Batch, Stream, open_stream

DEADLINE_SECONDS = 60.0
FOLLOWING = "following realtime.messages from LSN "

Connection = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def tail(database_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`realtime-db tail` as a user starts it; killed if a test does not end it in time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "realtime_db", "tail", *arguments],
        env={**os.environ, "DATABASE_URL": database_url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The deadline of every blocking read below.
    killer = threading.Timer(DEADLINE_SECONDS, process.kill)
    killer.start()
    try:
        with process:
            yield process
            process.kill()
    finally:
        killer.cancel()


@contextmanager
def following(database_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The same, once it says that it follows."""
    with tail(database_url, *arguments) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(FOLLOWING), line + process.stderr.read()
        yield process


def finish(process: subprocess.Popen[str]) -> list[str]:
    """Waits for the end, and returns the lines of stdout."""
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    return output.splitlines()


def send(connection: Connection, topic: str, payload: str = "{}", *, private: bool = True) -> str:
    row = connection.execute(
        "select realtime.send(%s::jsonb, 'event', %s, %s)::text", [payload, topic, private]
    ).fetchone()
    assert row is not None
    return str(row[0])


def topics(lines: list[str]) -> list[str]:
    return [json.loads(line)["topic"] for line in lines]


def test_a_committed_message_is_one_json_line(database_url: str, connection: Connection) -> None:
    with following(database_url, "--json", "--count", "1") as process:
        message_id = send(connection, "room:1", '{"id": 5, "text": "é"}')
        (line,) = finish(process)

    found = json.loads(line)
    assert list(found) == ["topic", "event", "payload", "private", "id", "inserted_at", "lsn"]
    assert found["topic"] == "room:1"
    assert found["event"] == "event"
    assert found["payload"] == {"id": 5, "text": "é"}
    assert found["private"] is True
    assert found["id"] == message_id
    stored = connection.execute(
        "select to_char(inserted_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US') from realtime.messages"
    ).fetchone()
    assert stored is not None
    assert found["inserted_at"].rstrip("Z").ljust(26, "0") == stored[0].ljust(26, "0")
    (behind,) = connection.execute(
        "select pg_current_wal_lsn() >= %s::pg_lsn", [found["lsn"]]
    ).fetchone() or (False,)
    assert behind


def test_a_payload_keeps_every_digit(database_url: str, connection: Connection) -> None:
    numbers = '{"big": 9007199254740993, "long": 0.1000000000000000000000000000000001}'

    with following(database_url, "--json", "--count", "1") as process:
        send(connection, "room:1", numbers)
        (line,) = finish(process)

    payload = json.loads(line, parse_float=Decimal)["payload"]
    assert payload["big"] == 9007199254740993
    assert payload["long"] == Decimal("0.1000000000000000000000000000000001")


def test_messages_come_in_commit_order_and_within_a_transaction_in_insert_order(
    database_url: str, connection: Connection
) -> None:
    with (
        following(database_url, "--json", "--count", "4") as process,
        psycopg.connect(database_url) as other,
    ):
        send(other, "begun first, committed last")
        with connection.transaction():
            for topic in ("z", "a", "m"):
                send(connection, topic)
        other.commit()
        lines = finish(process)

    assert topics(lines) == ["z", "a", "m", "begun first, committed last"]


def test_what_was_rolled_back_is_never_shown(database_url: str, connection: Connection) -> None:
    with following(database_url, "--json", "--count", "2") as process:
        with connection.transaction(force_rollback=True):
            send(connection, "rolled back")
        with connection.transaction():
            send(connection, "before")
            with connection.transaction(force_rollback=True):
                send(connection, "savepoint")
            send(connection, "after")
        lines = finish(process)

    assert topics(lines) == ["before", "after"]


def test_only_the_topics_that_were_asked_for_are_shown(
    database_url: str, connection: Connection
) -> None:
    for topic in ("room:1", "room:10", "rooms", "user_1", "userx1"):
        send(connection, topic)
    wanted = ["room:1", "user_*"]

    with tail(database_url, "--json", "--from-start", "--count", "4", *wanted) as process:
        assert process.stderr is not None
        process.stderr.readline()
        for topic in ("room:10", "userx1", "user_2", "room:1"):
            send(connection, topic)
        lines = finish(process)

    assert topics(lines) == ["room:1", "user_1", "user_2", "room:1"]


def test_a_binary_message_is_shown_in_base64(database_url: str, connection: Connection) -> None:
    with following(database_url, "--json", "--count", "1") as process:
        connection.execute(r"select realtime.send_binary('\x00ff', 'event', 'room:1')")
        (line,) = finish(process)

    found = json.loads(line)
    assert (found["payload"], found["binary_payload"]) == (None, "AP8=")


def test_lines_for_people_have_time_topic_event_and_payload(
    database_url: str, connection: Connection
) -> None:
    with following(database_url, "--count", "1") as process:
        send(connection, "room:1", "[1, 2]", private=False)
        (line,) = finish(process)

    at, *rest = line.split("  ")
    assert at.endswith("Z")
    assert rest == ["room:1", "event", "public", "[1, 2]"]


def test_a_topic_cannot_send_commands_to_the_terminal(
    database_url: str, connection: Connection
) -> None:
    with following(database_url, "--count", "1") as process:
        send(connection, "room\x1b[2J", '"\u009b2J"')
        (line,) = finish(process)

    assert "room\\u001b[2J" in line
    assert line.isprintable()


def test_from_start_shows_stored_messages_first_in_insert_order(
    database_url: str, connection: Connection
) -> None:
    with connection.transaction():
        for topic in ("z", "a"):
            send(connection, topic)
    send(connection, "m", '{"n": 1.000}')

    with tail(database_url, "--json", "--from-start", "--count", "3") as process:
        lines = finish(process)

    assert topics(lines) == ["z", "a", "m"]
    assert '"n": 1.000' in lines[-1]
    assert json.loads(lines[-1])["lsn"] is None


def test_from_start_misses_nothing_and_shows_nothing_twice_while_others_write(
    database_url: str, connection: Connection
) -> None:
    # A writer that never pauses: wherever the slot begins, it begins between two of these.
    stop, sent = threading.Event(), list[str]()

    def write() -> None:
        with psycopg.connect(database_url, autocommit=True) as writer:
            while not stop.is_set():
                sent.append(send(writer, "room:1"))

    send(connection, "room:1")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        with tail(database_url, "--json", "--from-start") as process:
            assert process.stdout is not None
            seen, live = [], 0
            for line in process.stdout:
                seen.append(json.loads(line))
                live += seen[-1]["lsn"] is not None
                if live >= 50:
                    break
            process.send_signal(signal.SIGINT)
    finally:
        stop.set()
        writer.join()

    stored = connection.execute(
        "select id::text from realtime.messages order by transaction_id, position"
    ).fetchall()
    assert [message["id"] for message in seen] == [row[0] for row in stored[: len(seen)]]
    assert {message["lsn"] is None for message in seen} == {True, False}


def test_ctrl_c_ends_with_status_130_and_no_traceback_and_leaves_no_slot(
    database_url: str, connection: Connection
) -> None:
    with following(database_url) as process:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)

    assert (process.returncode, output, errors) == (130, "", "")
    # The walsender ends a moment after its client.
    deadline = time.monotonic() + DEADLINE_SECONDS
    while connection.execute(
        "select from pg_replication_slots where database = current_database()"
    ).fetchall():
        assert time.monotonic() < deadline, "a slot is left"
        time.sleep(0.02)


def test_a_closed_pipe_ends_it_even_if_no_message_comes(database_url: str) -> None:
    with following(database_url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait(timeout=DEADLINE_SECONDS)
        assert process.returncode == 141
        assert process.stderr.read() == ""


def refused(database_url: str, *arguments: str) -> str:
    """What a user reads when it cannot work."""
    with tail(database_url, *arguments) as process:
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert output == ""
    assert "Traceback" not in errors
    return errors


def test_without_realtime_db_it_says_to_migrate(empty_database_url: str) -> None:
    assert "realtime-db migrate" in refused(empty_database_url)


def test_without_the_publication_it_says_how_to_make_it(
    database_url: str, connection: Connection
) -> None:
    connection.execute("drop publication realtime_messages")

    assert "select realtime.setup();" in refused(database_url)


@pytest.fixture
def reader_url(server_url: str, database_url: str) -> Iterator[str]:
    """URL of the migrated database for a role of its own, without REPLICATION or any grant."""
    name, database = "Tail Reader", conninfo_to_dict(database_url)["dbname"]
    role = sql.Identifier(name)
    url = make_conninfo(server_url, dbname=database)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login password 'reader'").format(role))
        yield make_conninfo(database_url, user=name, password="reader")
        admin.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def test_a_missing_right_is_answered_with_the_statement_that_grants_it(
    server_url: str, database_url: str, reader_url: str
) -> None:
    url = make_conninfo(server_url, dbname=conninfo_to_dict(database_url)["dbname"])
    with psycopg.connect(url, autocommit=True) as admin:
        grant = 'alter role "Tail Reader" replication;'
        assert grant in refused(reader_url)
        admin.execute(grant)

        grants = (
            'grant usage on schema realtime to "Tail Reader";'
            ' grant select on realtime.messages to "Tail Reader";'
        )
        assert grants in refused(reader_url, "--from-start")
        admin.execute(grants)

        assert 'alter role "Tail Reader" bypassrls' in refused(reader_url, "--from-start")
        # Following needs no right on the table: the publication decides.
        with following(reader_url):
            pass


def test_a_server_without_logical_decoding_is_answered_with_the_setting() -> None:
    binaries = os.environ.get("REALTIME_DB_TEST_BINARIES")

    async def test() -> None:
        async with embedded.start(binaries=binaries, settings={"wal_level": "replica"}) as server:
            with psycopg.connect(server.url, autocommit=True) as admin:
                admin.execute("create publication realtime_messages")
            told = await asyncio.to_thread(refused, server.url)
        assert "wal_level is replica" in told
        assert "alter system set wal_level = 'logical';" in told

    run(test)


def test_an_unreachable_server_is_named() -> None:
    assert "127.0.0.1:1/" in refused("postgresql://someone@127.0.0.1:1/somewhere")


# The stream itself: what a server builds upon.


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within_the_deadline() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await test()

    asyncio.run(within_the_deadline())


async def take(stream: Stream, count: int) -> tuple[list[Message], Batch]:
    """The next messages, and the batch that holds the last."""
    messages: list[Message] = []
    async for batch in stream:
        messages += batch.messages
        if len(messages) >= count:
            return messages, batch
    raise AssertionError("a stream does not end by itself")


@pytest.fixture
def slot(connection: Connection) -> str:
    """The name of a durable slot, which goes with its database."""
    return f"test_{connection.info.dbname}"


@asynccontextmanager
async def reader(database_url: str, slot: str, **options: Any) -> AsyncIterator[Stream]:
    async with open_stream(database_url, slot=slot, **options) as stream:
        await stream.start()
        yield stream


def test_a_durable_slot_delivers_again_what_was_not_acknowledged(
    database_url: str, connection: Connection, slot: str
) -> None:
    async def test() -> None:
        async with reader(database_url, slot) as stream:
            send(connection, "acknowledged")
            messages, batch = await take(stream, 1)
            while batch.end_lsn <= messages[0].commit_lsn:  # its end comes after it
                batch = await anext(stream)
            stream.acknowledge(batch.end_lsn)
            send(connection, "received only")
            await take(stream, 1)
        send(connection, "while nobody read")
        async with reader(database_url, slot) as stream:
            messages, _ = await take(stream, 2)
        assert [m.topic for m in messages] == ["received only", "while nobody read"]

    run(test)


def test_a_reader_waits_for_a_slot_that_another_one_lets_go(
    database_url: str, connection: Connection, slot: str
) -> None:
    async def test() -> None:
        async with reader(database_url, slot):
            second = asyncio.create_task(second_reader())
            with pytest.raises(SlotError, match="in use"):
                async with reader(database_url, slot, active_slot_timeout_seconds=0.0):
                    pass
            assert not second.done()
        assert await second == "room:1"

    async def second_reader() -> str:
        async with reader(database_url, slot) as stream:
            send(connection, "room:1")
            messages, _ = await take(stream, 1)
            return messages[0].topic

    run(test)


def test_cancelling_the_wait_for_a_batch_loses_nothing(
    database_url: str, connection: Connection
) -> None:
    async def test() -> None:
        async with open_stream(database_url) as stream:
            await stream.start()
            waits = 0
            writing = asyncio.create_task(asyncio.to_thread(write))
            messages: list[Message] = []
            while len(messages) < 200:
                with suppress(TimeoutError):
                    # Too short for anything but what has arrived already.
                    batch = await asyncio.wait_for(anext(stream), 0.0001)
                    messages += batch.messages
                waits += 1
            await writing
            assert [m.topic for m in messages] == [f"room:{n}" for n in range(200)]
            assert waits > 10

    def write() -> None:
        for n in range(200):
            send(connection, f"room:{n}")

    run(test)


def test_a_large_transaction_comes_in_batches_and_is_acknowledged_at_its_end(
    database_url: str, connection: Connection
) -> None:
    async def test() -> None:
        async with open_stream(database_url) as stream:
            await stream.start()
            connection.execute(
                "select count(realtime.send(to_jsonb(n), 'event', 'topic'))"
                " from generate_series(1, 2000) as n"
            )
            ends, payloads = [], list[bytes | None]()
            async for batch in stream:
                assert len(batch.messages) <= 500
                payloads += [message.payload for message in batch.messages]
                ends.append(batch.end_lsn)
                if len(payloads) == 2000:
                    break
            assert payloads == [str(n).encode() for n in range(1, 2001)]
            assert len(ends) > 3
            # The commit may come alone, after the last batch, with the next message.
            assert set(ends[:-1]) == {stream.start_lsn}
            send(connection, "next")
            _, batch = await take(stream, 1)
            assert batch.end_lsn > stream.start_lsn

    run(test)


def test_values_are_read_alike_whatever_the_database_is_set_to(
    database_url: str, connection: Connection
) -> None:
    name = sql.Identifier(conninfo_to_dict(database_url)["dbname"])
    for setting in ("datestyle = 'German'", "bytea_output = 'escape'", "timezone = 'Asia/Tokyo'"):
        connection.execute(
            sql.SQL("alter database {} set {}").format(name, sql.SQL(setting))  # type: ignore[arg-type]
        )

    async def test() -> None:
        async with open_stream(database_url) as stream:
            await stream.start()
            connection.execute(r"select realtime.send_binary('\x00ff', 'event', 'topic')")
            (message,), _ = await take(stream, 1)
        stored = connection.execute("select inserted_at::text from realtime.messages").fetchone()
        assert message.binary_payload == b"\x00\xff"
        assert stored == (message.inserted_at,)

    run(test)


def test_logical_messages_are_returned_when_asked_for(
    database_url: str, connection: Connection
) -> None:
    async def test() -> None:
        async with open_stream(database_url, logical_messages=True) as stream:
            await stream.start()
            connection.execute("select pg_logical_emit_message(true, 'realtime', 'heartbeat')")
            batch = await anext(stream)
            assert [(m.prefix, m.content) for m in batch.logical_messages] == [
                ("realtime", b"heartbeat")
            ]

    run(test)


def test_a_quiet_slot_lets_go_of_the_wal_that_others_write(
    database_url: str, connection: Connection, slot: str
) -> None:
    async def test() -> None:
        async with reader(database_url, slot, status_interval_seconds=0.05) as stream:
            waiting = asyncio.create_task(anext(stream))
            connection.execute("create table noise as select n from generate_series(1, 1000) as n")
            row = connection.execute("select pg_current_wal_lsn()").fetchone()
            assert row is not None
            done: tuple[Any, ...] | None = None
            while done != (True,):
                await asyncio.sleep(0)
                done = connection.execute(
                    "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots"
                    " where slot_name = %s",
                    [row[0], slot],
                ).fetchone()
            waiting.cancel()

    run(test)


def test_a_terminated_walsender_is_a_typed_error_after_what_it_had_sent(
    server_url: str, database_url: str, connection: Connection
) -> None:
    async def test() -> None:
        async with open_stream(database_url) as stream:
            await stream.start()
            send(connection, "room:1")
            await take(stream, 1)
            with psycopg.connect(server_url, autocommit=True) as admin:
                admin.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots"
                    " where slot_name = %s",
                    [stream.slot_name],
                )
            with pytest.raises(ConnectionFailed):
                while True:  # the end of that transaction may still come
                    assert not (await anext(stream)).messages

    run(test)


def test_errors_of_opening_have_types(empty_database_url: str, reader_url: str) -> None:
    async def opening(url: str) -> RealtimeDbError:
        with pytest.raises(RealtimeDbError) as caught:
            async with open_stream(url):
                pass
        return caught.value

    async def test() -> None:
        assert type(await opening(empty_database_url)) is NotInstalled
        assert type(await opening(reader_url)) is MissingRight
        assert type(await opening("postgresql://a@127.0.0.1:1/b")) is ConnectionFailed

    run(test)
