"""realtime.revoke: who may call it, what it writes, and that nobody can forge it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from realtime_db.wal.stream import open_stream

WIDE_OPEN = """
create policy "all" on realtime.messages to authenticated using (true) with check (true)
"""
FORGE = """
insert into realtime.messages (topic, extension, payload, private)
values ('realtime:revocations', 'revocation', '{}', true)
"""
DEADLINE_SECONDS = 60.0


@contextmanager
def role(connection: psycopg.Connection, name: str) -> Iterator[None]:
    connection.execute(sql.SQL("set role {}").format(sql.Identifier(name)))
    try:
        yield
    finally:
        connection.execute("reset role")


def rows(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select topic, extension, payload, event, private from realtime.messages"
    ).fetchall()


def test_it_stores_whom_to_ask_about(connection: psycopg.Connection) -> None:
    connection.execute("select realtime.revoke('room:1', sub => 'ann')")
    connection.execute("select realtime.revoke()")
    wanted = [
        {"topic": "room:1", "role": None, "sub": "ann"},
        {"topic": None, "role": None, "sub": None},
    ]
    assert rows(connection) == [
        ("realtime:revocations", "revocation", payload, None, True) for payload in wanted
    ]


@pytest.mark.parametrize("name", ["anon", "authenticated"])
def test_clients_may_not_call_it(connection: psycopg.Connection, name: str) -> None:
    connection.execute(WIDE_OPEN)
    with role(connection, name), pytest.raises(errors.InsufficientPrivilege, match="revoke"):
        connection.execute("select realtime.revoke()")


def test_service_role_may(connection: psycopg.Connection) -> None:
    with role(connection, "service_role"):
        connection.execute("select realtime.revoke('room:1')")
    assert len(rows(connection)) == 1


def test_a_policy_of_a_user_lets_nobody_forge_or_see_one(connection: psycopg.Connection) -> None:
    connection.execute(WIDE_OPEN)
    connection.execute("select realtime.revoke('room:1', sub => 'ann')")
    with role(connection, "authenticated"):
        with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(FORGE)
        connection.execute("select realtime.send('{}', 'e', 'room:1')")
        assert [row[1] for row in rows(connection)] == ["broadcast"]
        changed = connection.execute("update realtime.messages set extension = 'broadcast'")
        assert changed.rowcount == 1
        with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
            connection.execute("update realtime.messages set extension = 'revocation'")


def test_without_a_partition_it_says_so(connection: psycopg.Connection) -> None:
    today = connection.execute("select (now() at time zone 'utc')::date").fetchone()
    assert today is not None
    connection.execute("select realtime.drop_partition(%s)", [today[0]])
    with pytest.raises(psycopg.Error) as caught:
        connection.execute("select realtime.revoke()")
    assert caught.value.sqlstate == "RT003"


def test_the_wal_brings_it_and_tells_it_from_a_message(
    database_url: str, connection: psycopg.Connection
) -> None:
    async def follow() -> list[Any]:
        async with asyncio.timeout(DEADLINE_SECONDS), open_stream(database_url) as stream:
            await stream.start()
            await asyncio.to_thread(
                connection.execute,
                "select realtime.revoke('room:1'), realtime.send('{}', 'e', 'room:1')",
            )
            found: list[Any] = []
            async for batch in stream:
                found += batch.messages
                if len(found) > 1:
                    break
            return found

    revocation, message = asyncio.run(follow())
    assert (revocation.extension, message.extension) == ("revocation", "broadcast")
    assert json.loads(revocation.payload)["topic"] == "room:1"
    assert revocation.transaction_id == message.transaction_id > 0


# The column for persist, on tables that were there before it


def test_setup_adds_the_column_and_rewrites_nothing(connection: psycopg.Connection) -> None:
    connection.execute("select realtime.send('{}', 'e', 'room:1')")
    files = "select array_agg(pg_relation_filenode(partition_name::regclass)) from (\
        select 'realtime.' || partition_name as partition_name from realtime.partitions()) as p"
    connection.execute("alter table realtime.messages drop column expires_at")
    before = connection.execute(files).fetchone()

    connection.execute("select realtime.setup()")

    assert connection.execute("select expires_at from realtime.messages").fetchall() == [(None,)]
    assert connection.execute(files).fetchone() == before


def test_a_partition_that_was_detached_before_the_column_came_is_attached_again(
    connection: psycopg.Connection,
) -> None:
    day = date(2031, 5, 6)
    table = sql.Identifier("realtime", f"messages_{day:%Y_%m_%d}")
    connection.execute("alter table realtime.messages drop column expires_at")
    connection.execute("select realtime.create_partition(%s)", [day + timedelta(days=1)])
    connection.execute(
        sql.SQL("create table {} partition of realtime.messages for values from ({}) to ({})")
        .format(table, day, day + timedelta(days=1))
    )  # fmt: skip
    connection.execute(sql.SQL("alter table realtime.messages detach partition {}").format(table))
    connection.execute("select realtime.setup()")

    assert connection.execute("select realtime.create_partition(%s)", [day]).fetchone() == (True,)
