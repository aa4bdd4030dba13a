"""`realtime-db doctor` sees what is broken, and its statements mend it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded
from realtime_db.errors import MissingRight
from realtime_db.install import doctor, migrate
from realtime_db.install.checks import Check, Outcome
from realtime_db.retention import maintenance

TODAY = "(now() at time zone 'utc')::date"


def drop_days(condition: str) -> str:
    return f"""
        do $$
        declare
            name text;
        begin
            for name in select partition_name from realtime.partitions() where day {condition} loop
                execute format('drop table realtime.%I', name);
            end loop;
        end;
        $$
    """


# what breaks it, the name of the check, how bad that is
BREAKAGES = {
    "a function with another body": (
        "create or replace function realtime.topic() returns text language sql stable "
        "as $$ select null::text $$",
        "functions",
        Outcome.FAIL,
    ),
    "a missing function": (
        "drop function realtime.send_binary",
        "functions",
        Outcome.FAIL,
    ),
    "a function with its owner's rights": (
        "alter function realtime.topic() security definer",
        "functions",
        Outcome.FAIL,
    ),
    "a function with another setting": (
        "alter function realtime.topic() set work_mem = '1MB'",
        "functions",
        Outcome.FAIL,
    ),
    "a function that nobody may call": (
        "revoke execute on function realtime.topic() from public",
        "functions",
        Outcome.FAIL,
    ),
    "a function of the same name": (
        "create function realtime.topic(integer) returns text language sql as 'select null::text'",
        "functions",
        Outcome.WARN,
    ),
    "no settings": ("delete from realtime.settings", "settings", Outcome.FAIL),
    "no size limits": (
        "alter table realtime.messages drop constraint messages_fit",
        "size limits",
        Outcome.FAIL,
    ),
    "no row level security": (
        "alter table realtime.messages disable row level security",
        "row level security",
        Outcome.FAIL,
    ),
    "no row level security on a partition": (
        "do $$ begin execute (select format("
        "'alter table realtime.%I disable row level security', min(partition_name)) "
        "from realtime.partitions()); end $$",
        "row level security",
        Outcome.FAIL,
    ),
    "no policy for service_role": (
        'drop policy "service_role may do all" on realtime.messages',
        "policies",
        Outcome.FAIL,
    ),
    "no publication": ("drop publication realtime_messages", "publication", Outcome.FAIL),
    "a publication of partitions": (
        "alter publication realtime_messages set (publish_via_partition_root = false)",
        "publication",
        Outcome.FAIL,
    ),
    "a publication of deletes": (
        "alter publication realtime_messages set (publish = 'insert, delete')",
        "publication",
        Outcome.FAIL,
    ),
    "a publication of another table": (
        "alter publication realtime_messages add table realtime.settings",
        "publication",
        Outcome.FAIL,
    ),
    "a role without the schema": (
        "revoke usage on schema realtime from authenticated",
        "role authenticated",
        Outcome.FAIL,
    ),
    "a role without the table": (
        "revoke insert on realtime.messages from anon",
        "role anon",
        Outcome.FAIL,
    ),
    "no partition for today": (drop_days(f"= {TODAY}"), "partitions", Outcome.FAIL),
    "no partition for tomorrow": (drop_days(f"= {TODAY} + 1"), "partitions", Outcome.FAIL),
    "few partitions": (drop_days(f"> {TODAY} + 1"), "partitions", Outcome.WARN),
    "a partition of somebody else": (
        "create table realtime.old partition of realtime.messages "
        "for values from ('2000-01-01') to ('2001-01-01'); "
        "alter table realtime.old enable row level security",
        "partitions",
        Outcome.WARN,
    ),
}


@pytest.fixture(scope="module")
def released_template(server_url: str, owner_url: Callable[[str], str]) -> str:
    """The name of a database with the newest release, without changes of the living tree."""
    name = f"released_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} owner app").format(sql.Identifier(name)))
    asyncio.run(migrate.migrate(owner_url(name)))
    return name


@pytest.fixture
def released_url(create_database: Callable[..., str], released_template: str) -> str:
    """A fresh copy of it, as its plain owner."""
    return create_database(released_template)


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def examine(url: str) -> list[Check]:
    return list(asyncio.run(doctor.examine(url, probe=False)).checks)


def complaints(url: str) -> list[Check]:
    # How the server under test is set is not what these tests are about.
    ours = [check for check in examine(url) if check.name != "max_slot_wal_keep_size"]
    return [check for check in ours if check.outcome is not Outcome.PASS]


def test_nothing_is_wrong_with_a_fresh_installation(released_url: str) -> None:
    assert complaints(released_url) == []


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_doctor_sees_what_is_broken_and_its_statement_mends_it(
    released_url: str, breakage: str
) -> None:
    statement, name, outcome = BREAKAGES[breakage]
    execute(released_url, statement)

    [found] = complaints(released_url)
    assert (found.name, found.outcome) == (name, outcome)
    assert found.mend is not None
    execute(released_url, found.mend)

    assert complaints(released_url) == []


def test_a_table_of_another_owner_is_seen_and_mended(server_url: str, released_url: str) -> None:
    as_admin = make_conninfo(
        server_url, dbname=psycopg.conninfo.conninfo_to_dict(released_url)["dbname"]
    )
    execute(as_admin, "alter table realtime.settings owner to postgres")

    [found] = [check for check in complaints(as_admin) if check.name == "owner"]
    assert found.mend is not None
    execute(as_admin, found.mend)

    assert complaints(released_url) == []


@pytest.fixture
def reader(server_url: str, released_url: str) -> Iterator[tuple[str, str]]:
    """A role without any right, and its URL."""
    role = f"reader_{secrets.token_hex(4)}"
    dbname = psycopg.conninfo.conninfo_to_dict(released_url)["dbname"]
    execute(server_url, f"create role {role} login password 'reader'")
    yield role, make_conninfo(server_url, user=role, password="reader", dbname=dbname)
    execute(server_url, f"drop role {role}")


def test_a_login_without_replication_gets_the_grant(
    server_url: str, reader: tuple[str, str]
) -> None:
    role, as_reader = reader

    [found] = [check for check in examine(as_reader) if check.name == "right to replicate"]
    assert found.outcome is Outcome.WARN
    assert "`serve` polls the table instead" in found.detail
    assert found.mend == f"-- As an administrator:\nalter role {role} replication;"
    execute(server_url, found.mend)

    [found] = [check for check in examine(as_reader) if check.name == "right to replicate"]
    assert found.outcome is Outcome.PASS


def test_what_a_login_lacks_and_the_owner_has_is_mended_once(reader: tuple[str, str]) -> None:
    roles = [check for check in examine(reader[1]) if check.name.startswith("role ")]

    assert [check.outcome for check in roles] == [Outcome.SKIP] * 3
    assert all(check.detail.endswith("follows from: owner") for check in roles)
    assert all(check.mend is None for check in roles)


def test_what_is_missing_for_a_plain_owner_is_mended_by_pasting_all_of_it() -> None:
    async def run() -> tuple[list[Check], list[Check], list[Check]]:
        async with embedded.start(binaries=_binaries(), settings={"fsync": "off"}) as server:
            execute(server.url, "create role shop login password 'shop'")
            execute(server.url, "create role reader login password 'reader'")
            execute(server.url, "create database shop owner shop")
            shop = make_conninfo(server.url, dbname="shop", user="shop", password="shop")
            reader = make_conninfo(server.url, dbname="shop", user="reader", password="reader")
            await migrate.migrate(shop)
            before = (await doctor.examine(shop, probe=False)).checks
            as_reader = (await doctor.examine(reader, probe=False)).checks
            execute(
                make_conninfo(server.url, dbname="shop"),
                "\n".join(check.mend for check in before if check.mend),
            )
            after = (await doctor.examine(shop)).checks
            return list(before), list(as_reader), list(after)

    before, as_reader, after = asyncio.run(run())

    mends = [check.mend for check in before if check.mend]
    assert len(mends) == 4
    assert all(mend.startswith("-- As an administrator") for mend in mends)
    assert sum(mend.count("realtime.setup()") for mend in mends) == 1
    assert [check for check in after if check.outcome is not Outcome.PASS] == []
    # Everything that stops a login that owns nothing says what to do.
    assert {check.name for check in as_reader if check.outcome is Outcome.FAIL} > {"functions"}
    for check in as_reader:
        assert check.mend or check.outcome is Outcome.PASS, check
    # What cannot be looked at is called by the name that it has for those who can.
    assert {check.name for check in as_reader} <= {check.name for check in after}


def _binaries() -> Path | None:
    given = os.environ.get("REALTIME_DB_TEST_BINARIES")
    return Path(given) if given else None


def test_a_database_that_does_not_wait_for_its_disk_is_warned_about(released_url: str) -> None:
    dbname = psycopg.conninfo.conninfo_to_dict(released_url)["dbname"]
    execute(released_url, f"alter database {dbname} set synchronous_commit = 'off'")

    [found] = complaints(released_url)
    assert (found.name, found.outcome) == ("synchronous_commit", Outcome.WARN)
    assert found.mend is not None
    execute(released_url, found.mend)

    assert complaints(released_url) == []


def test_a_swallowed_error_is_warned_about(released_url: str) -> None:
    execute(
        released_url,
        "set realtime.on_send_error = 'warn'; select realtime.send('{}', 'event', null)",
    )

    [found] = complaints(released_url)

    assert (found.name, found.outcome) == ("swallowed errors", Outcome.WARN)
    assert found.detail.startswith("1 message not stored within a day, the last for: RT002 ")


def test_of_several_swallowed_errors_the_last_is_shown_with_its_own_text(
    released_url: str,
) -> None:
    execute(
        released_url,
        "insert into realtime.send_errors values (now() - interval '1 hour', 'RT009', 'zzz'), "
        "(now(), 'RT001', 'too large'), (now() - interval '2 hours', 'RT003', 'aaa')",
    )

    [found] = complaints(released_url)

    assert found.detail == "3 messages not stored within a day, the last for: RT001 too large"


def test_nobody_is_told_to_become_a_superuser(
    server_url: str, create_database: Callable[..., str]
) -> None:
    as_app = create_database()
    name = psycopg.conninfo.conninfo_to_dict(as_app)["dbname"]
    superuser = psycopg.conninfo.conninfo_to_dict(server_url)["user"]
    asyncio.run(migrate.migrate(make_conninfo(server_url, dbname=name)))

    report = asyncio.run(doctor.examine(as_app))

    found = {check.name: check for check in report.checks}
    assert (found["owner"].outcome, found["owner"].mend) == (
        Outcome.WARN,
        f'-- Connect as "{superuser}".',
    )
    assert all(f'grant "{superuser}"' not in (check.mend or "") for check in report.checks)
    assert (found["live probe"].outcome, found["live probe"].detail) == (
        Outcome.SKIP,
        "needs: owner",
    )
    assert found["role anon"].outcome is not Outcome.WARN
    for command in (migrate.migrate, migrate.rollback, maintenance.run_once):
        with pytest.raises(MissingRight, match="own") as refused:
            asyncio.run(command(as_app))
        assert refused.value.hint in (f'Connect as "{superuser}".', f"Connect as {superuser}.")


def test_the_probe_sends_and_receives_a_message(released_url: str) -> None:
    report = asyncio.run(doctor.examine(released_url))

    assert report.ok
    assert report.checks[-1].name == "live probe"
    assert report.checks[-1].outcome is Outcome.PASS


def test_the_probe_leaves_neither_a_message_nor_a_slot(released_url: str) -> None:
    asyncio.run(doctor.examine(released_url))

    with psycopg.connect(released_url) as connection:
        left = connection.execute(
            "select (select count(*) from realtime.messages), (select count(*) from "
            "pg_replication_slots where database = current_database() and not temporary)"
        ).fetchone()
    assert left == (0, 0)


def test_the_probe_sees_that_sending_fails(released_url: str) -> None:
    execute(released_url, drop_days(f"= {TODAY}"))

    report = asyncio.run(doctor.examine(released_url))

    assert not report.ok
    assert (report.checks[-1].name, report.checks[-1].outcome) == ("live probe", Outcome.FAIL)
    assert "no partition for today" in report.checks[-1].detail


def test_the_probe_is_left_out_when_the_publication_is_missing(released_url: str) -> None:
    execute(released_url, "drop publication realtime_messages")

    report = asyncio.run(doctor.examine(released_url))

    assert (report.checks[-1].name, report.checks[-1].outcome) == ("live probe", Outcome.SKIP)


def test_an_empty_database_is_told_to_migrate(empty_database_url: str) -> None:
    report = asyncio.run(doctor.examine(empty_database_url))

    assert not report.ok
    assert report.checks[0].mend == "realtime-db migrate"


def test_the_report_is_one_json_object(released_url: str) -> None:
    report = asyncio.run(doctor.examine(released_url, probe=False))

    answer = json.loads(report.as_json())

    assert answer["ok"] is True
    assert {"name", "outcome", "detail", "mend"} == answer["checks"][0].keys()


def test_the_text_has_the_statement_below_what_failed(released_url: str) -> None:
    execute(released_url, "drop publication realtime_messages")

    lines = asyncio.run(doctor.examine(released_url, probe=False)).as_text().splitlines()

    failed = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[failed + 1].strip() == "select realtime.setup();"
