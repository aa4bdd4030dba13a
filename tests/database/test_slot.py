"""The slots that servers leave: seen, dropped, and kept from filling the disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db.cli import main
from realtime_db.database import Connection as AsyncConnection
from realtime_db.errors import (
    ForeignSchema,
    InstallError,
    NotInstalled,
    RealtimeDbError,
    SlotError,
)
from realtime_db.install import doctor, uninstall
from realtime_db.retention import maintenance
from realtime_db.wal import slot, slots
from realtime_db.wal.stream import Stream, open_stream

OURS = "realtime_db_test"

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def idle(connection: Connection) -> str:
    """A slot of a server that does not run."""
    return make(connection, f"{OURS}_{connection.info.backend_pid}")


def make(connection: Connection, name: str) -> str:
    connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    return name


def names(connection: Connection) -> set[str]:
    rows = connection.execute(
        "select slot_name::text from pg_replication_slots where database = current_database()"
    ).fetchall()
    return {name for (name,) in rows}


def write(connection: Connection, megabytes: int) -> None:
    """So much WAL, at least."""
    connection.execute("create table filler (content text)")
    connection.execute("alter table filler alter column content set storage external")
    connection.execute(
        "insert into filler select repeat('x', 1000000) from generate_series(1, %s)", [megabytes]
    )
    connection.execute("drop table filler")


def run(database_url: str, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(
        main, [*arguments, "--database-url", database_url], input=answer, catch_exceptions=False
    )


@asynccontextmanager
async def reading(database_url: str, name: str) -> AsyncIterator[Stream]:
    async with open_stream(database_url, slot=name) as stream:
        await stream.start()
        yield stream


# The commands


def test_slot_status_shows_what_is_held_back(
    database_url: str, connection: Connection, idle: str
) -> None:
    write(connection, 3)

    text = run(database_url, "slot", "status").output
    (found,) = json.loads(run(database_url, "slot", "status", "--json").output)

    assert text.startswith(f"{idle}  idle, reserved, ")
    assert "kB held back" in text
    assert found["name"] == idle
    assert found["active_pid"] is None
    assert 3_000_000 < found["retained_bytes"] < 50_000_000
    assert found["unread_bytes"] > 3_000_000
    (limit,) = connection.execute("show max_slot_wal_keep_size").fetchone() or ("",)
    assert (limit == "-1") == ("warning: " in text) == ("lost after" not in text)
    assert (found["safe_wal_size"] is None) == (limit == "-1")


def test_a_disk_without_a_guard_is_warned_of() -> None:
    state = slots.SlotState(OURS, 1, "reserved", 5 << 30, 0, None, failover=True)

    text = slots.status_as_text([state], "-1")

    assert f"{OURS}  read, reserved, 5120 MB held back, failover\n" in text
    assert "alter system set max_slot_wal_keep_size" in text


def test_slot_status_of_none_says_so(database_url: str) -> None:
    assert run(database_url, "slot", "status").output.startswith("no server has left a slot")


def test_slot_drop_drops_the_slot_once_one_agrees(
    database_url: str, connection: Connection, idle: str
) -> None:
    assert run(database_url, "slot", "drop", answer="n\n").exit_code == 1
    assert names(connection) == {idle}

    dropped = run(database_url, "slot", "drop", answer="y\n")

    assert dropped.output.endswith(f"replication slot {idle} was dropped\n")
    assert names(connection) == set()
    assert "this database has no slot" in run(database_url, "slot", "drop", "--yes").output


def test_of_several_slots_one_has_to_be_named_and_others_are_not_ours(
    database_url: str, connection: Connection, idle: str
) -> None:
    second = make(connection, f"{idle}_b")
    foreign = make(connection, f"reports_{connection.info.backend_pid}")

    assert f"there are several: {idle}, {second}" in run(database_url, "slot", "drop").output
    assert "no slot reports" in run(database_url, "slot", "drop", "--slot", foreign).output
    run(database_url, "slot", "drop", "--slot", second, "--yes")

    assert names(connection) == {idle, foreign}


def test_a_slot_that_is_read_is_not_dropped(database_url: str, idle: str) -> None:
    async def drop() -> None:
        async with reading(database_url, idle):
            await slots.drop_from(database_url, idle)

    with pytest.raises(SlotError, match="is being read\n  First stop the server"):
        asyncio.run(drop())


@pytest.mark.parametrize(
    "name", ["mine", "realtime_db_", "realtime_db_A", "realtime_db_" + "a" * 52]
)
def test_a_name_that_is_not_known_as_ours_is_refused(name: str) -> None:
    with pytest.raises(SlotError, match="begins with realtime_db_"):
        slots.check_name(name)


def test_the_default_name_is_one_of_ours(database_url: str) -> None:
    async def ask() -> str:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            return await slots.default_name(connection)

    name = asyncio.run(ask())
    slots.check_name(name)
    assert name.startswith("realtime_db_")


# Who else drops it


def test_uninstall_drops_the_slot_and_says_so_before(
    database_url: str, connection: Connection, idle: str
) -> None:
    foreign = make(connection, f"reports_{connection.info.backend_pid}")

    assert f"  replication slot {idle}\n" in asyncio.run(uninstall.look(database_url)).as_text()
    asyncio.run(uninstall.uninstall(database_url))

    assert names(connection) == {foreign}


def test_uninstall_leaves_all_as_it_is_while_a_server_reads(
    database_url: str, connection: Connection, idle: str
) -> None:
    async def remove() -> None:
        async with reading(database_url, idle):
            listed = (await uninstall.look(database_url)).as_text()
            assert f"\n  replication slot {idle}" not in listed
            assert f"\nFirst stop the server that reads replication slot {idle}" in listed
            await uninstall.uninstall(database_url)

    with pytest.raises(InstallError, match="a server reads replication slot"):
        asyncio.run(remove())

    assert names(connection) == {idle}
    connection.execute("select from realtime.messages")


def test_maintenance_warns_of_an_idle_slot_and_drops_it_when_it_holds_back_too_much(
    database_url: str, connection: Connection, idle: str
) -> None:
    foreign = make(connection, f"reports_{connection.info.backend_pid}")

    def maintain(limit: int) -> maintenance.Report:
        return asyncio.run(maintenance.run_once(database_url, max_slot_lag_bytes=limit))

    write(connection, 3)
    (state,) = asyncio.run(slots.status(database_url))[0]
    held = state.retained_bytes or 0
    assert maintain(3 * held).ok
    assert maintain(0).ok
    near = maintain(held + held // 2)
    assert names(connection) == {idle, foreign}
    over = maintain(held // 2)

    assert not near.ok
    assert "it is dropped. Start its server, or: realtime-db slot drop" in near.problems[0]
    assert not over.ok
    assert f"replication slot {idle} was dropped: nobody reads it" in over.problems[0]
    assert names(connection) == {foreign}


def test_maintenance_leaves_a_slot_alone_that_is_read(
    database_url: str, connection: Connection, idle: str
) -> None:
    write(connection, 3)

    async def maintain() -> maintenance.Report:
        async with reading(database_url, idle):
            return await maintenance.run_once(database_url, max_slot_lag_bytes=1)

    assert asyncio.run(maintain()).ok
    assert names(connection) == {idle}


def test_without_the_right_the_slot_stays_and_the_statement_is_shown(
    database_url: str, connection: Connection, idle: str, server_url: str
) -> None:
    write(connection, 3)
    role = f"owner_{connection.info.backend_pid}"
    where = make_conninfo(server_url, dbname=conninfo_to_dict(database_url)["dbname"])
    with psycopg.connect(where, autocommit=True) as admin:
        admin.execute(f"create role {role} login password 'x' in role app")
        try:
            as_other = make_conninfo(database_url, user=role, password="x")
            report = asyncio.run(maintenance.run_once(as_other, max_slot_lag_bytes=1))
        finally:
            admin.execute(f"drop role {role}")

    (problem,) = report.problems
    assert "lacks REPLICATION" in problem
    assert f"select pg_drop_replication_slot('{idle}');" in problem
    assert names(connection) == {idle}


def test_doctor_shows_the_slot(database_url: str, idle: str) -> None:
    report = asyncio.run(doctor.examine(database_url, probe=False))

    (check,) = [check for check in report.checks if check.name == f"slot {idle}"]
    assert check.outcome == "pass"
    assert check.detail.startswith("idle, ")


# How it is made


def test_a_slot_is_made_for_standbys_to_take_over_where_postgres_can(
    database_url: str, connection: Connection
) -> None:
    name = f"{OURS}_{connection.info.backend_pid}"

    async def make() -> slots.SlotState:
        async with open_stream(database_url, slot=name, failover=True):
            return (await slots.status(database_url))[0][0]

    assert asyncio.run(make()).failover == (connection.info.server_version >= 170000)


def test_a_slot_that_is_read_is_taken_over(
    database_url: str, connection: Connection, idle: str
) -> None:
    async def take_over() -> None:
        async with (
            reading(database_url, idle),
            open_stream(database_url, slot=idle, take_over=True) as second,
        ):
            await second.start()
            (state,) = (await slots.status(database_url))[0]
            assert state.active_pid == second.backend_pid

    asyncio.run(take_over())


def test_a_slot_that_is_taken_over_begins_where_its_reader_left_it(
    database_url: str, connection: Connection, idle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends may acknowledge more until the last moment."""

    async def take_over() -> None:
        async with reading(database_url, idle) as first:
            free_slot = slot.free_slot

            async def free(taker: AsyncConnection, name: str) -> None:
                connection.execute("select realtime.send('{}', 'e', 'room', false)")
                batch = await anext(first)
                first.acknowledge(batch.end_lsn)
                await first.close()
                await free_slot(taker, name)

            monkeypatch.setattr(slot, "free_slot", free)
            async with open_stream(database_url, slot=idle, take_over=True) as second:
                await second.start()
                (confirmed,) = connection.execute(
                    "select confirmed_flush_lsn - '0/0' from pg_replication_slots"
                    " where slot_name = %s",
                    [idle],
                ).fetchone()
                assert second.start_lsn == confirmed

    asyncio.run(take_over())


def test_a_slot_is_made_anew(database_url: str, connection: Connection, idle: str) -> None:
    async def replace() -> tuple[int, str | None]:
        async with (
            reading(database_url, idle) as first,
            open_stream(database_url, slot=idle, replace=True) as second,
        ):
            return second.start_lsn - first.start_lsn, second.snapshot

    write(connection, 3)
    further, snapshot = asyncio.run(replace())

    assert further > 3_000_000
    assert snapshot is not None


# What cannot be read


def test_a_missing_publication_is_made_by_what_the_error_says(
    database_url: str, connection: Connection
) -> None:
    connection.execute("drop publication realtime_messages")
    refusal = opening(database_url)
    assert isinstance(refusal, NotInstalled)
    assert refusal.hint is not None

    connection.execute(refusal.hint.removeprefix("Run, as the owner: ").encode())

    assert opening(database_url) is None


@pytest.mark.parametrize("table", ["messages", "subscription"])
def test_over_a_schema_of_somebody_else_a_reader_is_not_told_to_migrate(
    empty_database_url: str, table: str
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute(f"create schema realtime create table {table} (id int)".encode())

    refusal = opening(empty_database_url)

    assert isinstance(refusal, ForeignSchema)
    assert "migrate" not in str(refusal)


def opening(database_url: str) -> RealtimeDbError | None:
    async def attempt() -> None:
        async with open_stream(database_url):
            pass

    try:
        asyncio.run(attempt())
    except RealtimeDbError as error:
        return error
    return None
