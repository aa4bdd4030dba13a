"""What `realtime-db status` says about a database, and its exit status."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from realtime_db.install import doctor, inspect, migrate, releases
from realtime_db.install.inspect import State

VERSION_TABLE = "update realtime.realtime_db_release set version_num = '{0}'"
VERSION_FUNCTION = (
    "create or replace function realtime.version() returns text language sql immutable "
    "as $$ select '{0}' $$"
)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def status(url: str) -> inspect.Installation:
    return asyncio.run(inspect.status(url))


def test_an_empty_database_is_not_installed(empty_database_url: str) -> None:
    found = status(empty_database_url)

    assert (found.state, found.exit_code, found.hint) == (State.ABSENT, 4, "realtime-db migrate")


def test_an_empty_schema_is_not_installed(empty_database_url: str) -> None:
    execute(empty_database_url, "create schema realtime")

    assert status(empty_database_url).state is State.ABSENT


def test_a_migrated_database_is_up_to_date(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))

    found = status(empty_database_url)

    assert (found.state, found.exit_code, found.hint) == (State.CURRENT, 0, None)
    assert (found.release, found.managed_by) == (releases.newest(), inspect.Manager.MIGRATE)


def test_an_earlier_release_is_behind(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=releases.releases()[0]))

    found = status(empty_database_url)

    assert (found.state, found.exit_code) == (State.BEHIND, 3)
    assert (found.release, found.newest) == (releases.releases()[0], releases.newest())


def test_a_later_release_is_newer(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(empty_database_url, VERSION_TABLE.format("99.0.0"), VERSION_FUNCTION.format("99.0.0"))

    found = status(empty_database_url)

    assert (found.state, found.exit_code, found.release) == (State.NEWER, 5, "99.0.0")


@pytest.mark.parametrize(
    "statement",
    [
        "create table realtime.schema_migrations (version bigint)",
        "create table realtime.messages (topic text)",
        "create function realtime.send() returns void language sql as ''",
        "create type realtime.action as enum ('INSERT')",
    ],
)
def test_a_schema_with_other_objects_is_foreign(empty_database_url: str, statement: str) -> None:
    execute(empty_database_url, "create schema realtime", statement)

    found = status(empty_database_url)

    assert (found.state, found.exit_code, found.release) == (State.FOREIGN, 6, None)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from realtime.realtime_db_release",
        "drop table realtime.realtime_db_release",
        "drop table realtime.messages",
        "drop function realtime.version()",
        VERSION_FUNCTION.format("99.0.0"),
    ],
)
def test_an_installation_with_a_part_missing_is_incomplete(
    empty_database_url: str, statement: str
) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(empty_database_url, statement)

    found = status(empty_database_url)

    assert (found.state, found.exit_code) == (State.INCOMPLETE, 7)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from realtime.realtime_db_release",
        "drop table realtime.realtime_db_release",
        "drop table realtime.messages",
        VERSION_TABLE.format("99.0.0"),
    ],
)
def test_the_hint_makes_an_incomplete_installation_whole(
    empty_database_url: str, statement: str
) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(empty_database_url, statement)

    hint = status(empty_database_url).hint
    assert hint is not None
    execute(empty_database_url, hint)

    assert status(empty_database_url).state is State.CURRENT


def test_the_doctor_makes_a_missing_function_whole(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(empty_database_url, "drop function realtime.version()")

    report = asyncio.run(doctor.examine(empty_database_url, probe=False))
    mends = [check.mend for check in report.checks if check.name == "functions" and check.mend]
    execute(empty_database_url, *mends)

    assert status(empty_database_url).state is State.CURRENT


def test_status_needs_no_rights_on_the_schema(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    as_anon = psycopg.conninfo.make_conninfo(empty_database_url, options="-c role=anon")

    assert status(as_anon) == status(empty_database_url)


def test_the_json_has_state_release_and_manager(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))

    answer = status(empty_database_url).as_dict()

    assert answer["state"] == "up to date"
    assert answer["release"] == answer["newest"] == releases.newest()
    assert answer["managed_by"] == "migrate"
