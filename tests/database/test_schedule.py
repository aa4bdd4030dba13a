"""`realtime-db schedule --pg-cron` on a server; what needs a real pg_cron is skipped without."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db.cli import main
from realtime_db.errors import MaintenanceError, MissingRight, NotInstalled
from realtime_db.retention import schedule


def install(database_url: str, **options: str) -> int:
    return asyncio.run(schedule.install_pg_cron(database_url, **options))


@pytest.fixture
def cron_admin(server_url: str) -> Iterator[psycopg.Connection]:
    """A superuser in the database of pg_cron, which the test database's owner may use."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        row = admin.execute("select current_setting('cron.database_name', true)").fetchone()
        assert row
        if not row[0]:
            pytest.skip("pg_cron is not loaded (shared_preload_libraries)")
    with psycopg.connect(make_conninfo(server_url, dbname=row[0]), autocommit=True) as admin:
        admin.execute("create extension if not exists pg_cron")
        admin.execute("grant usage on schema cron to app")
        admin.execute("grant execute on all functions in schema cron to app")
        yield admin
        admin.execute("drop extension pg_cron")


def test_a_server_without_pg_cron_is_told_what_else_there_is(
    database_url: str, connection: psycopg.Connection
) -> None:
    available = connection.execute(
        "select 1 from pg_available_extensions where name = 'pg_cron'"
    ).fetchone()

    with pytest.raises(MaintenanceError, match="has no extension pg_cron") as raised:
        install(database_url)

    assert ("--cron-database" if available else "--systemd") in str(raised.value)


def test_a_database_without_realtime_db_gets_no_job(empty_database_url: str) -> None:
    with pytest.raises(NotInstalled, match="realtime-db migrate"):
        install(empty_database_url)


def test_a_printed_job_for_another_database_of_pg_cron_runs_in_ours() -> None:
    def printed(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["schedule", "--pg-cron", *arguments])

    here = printed("--cron-database", "shop", "--database-url", "postgresql://app@h/shop")
    there = printed("--cron-database", "postgres", "--database-url", "postgresql://app@h/shop")

    assert here.output.startswith("-- In database shop, ")
    assert here.output.endswith("\n" + schedule.pg_cron())
    assert there.output.startswith("-- In database postgres, ")
    assert there.output.endswith("\n" + schedule.pg_cron(database="shop"))
    assert "schedule_in_database" in there.output
    assert printed("--cron-database", "postgres", "--database-url", "host=h").exit_code == 1
    assert printed("--cron-database", "postgres").exit_code == 2


def test_a_role_that_does_not_own_the_table_gets_no_job(database_url: str, server_url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("create role schedule_passerby login password 'secret'")
        try:
            url = make_conninfo(database_url, user="schedule_passerby", password="secret")
            with pytest.raises(MissingRight, match="does not own"):
                install(url)
        finally:
            admin.execute("drop role schedule_passerby")


def test_the_job_is_in_the_database_of_pg_cron_and_runs_in_ours(
    database_url: str, connection: psycopg.Connection, cron_admin: psycopg.Connection
) -> None:
    job = install(database_url, cron_database=cron_admin.info.dbname)

    assert cron_admin.execute(
        "select jobname, schedule, command, database, username from cron.job where jobid = %s",
        [job],
    ).fetchone() == (
        "realtime-db maintain",
        "7 * * * *",
        "select * from realtime.maintain()",
        connection.info.dbname,
        "app",
    )


def test_scheduling_again_changes_the_job_and_makes_no_second(
    database_url: str, cron_admin: psycopg.Connection
) -> None:
    where = cron_admin.info.dbname
    first = install(database_url, cron_database=where)

    second = install(database_url, cron_database=where, schedule="9 * * * *")

    assert first == second
    assert cron_admin.execute("select schedule from cron.job").fetchall() == [("9 * * * *",)]


def test_a_role_that_may_not_use_pg_cron_is_told_the_grant(
    database_url: str, cron_admin: psycopg.Connection
) -> None:
    cron_admin.execute("revoke usage on schema cron from app")

    with pytest.raises(MissingRight, match='grant usage on schema cron to "app"'):
        install(database_url, cron_database=cron_admin.info.dbname)


def test_a_role_that_may_not_choose_a_database_is_told_the_grant(
    database_url: str, cron_admin: psycopg.Connection
) -> None:
    cron_admin.execute(sql.SQL("revoke execute on all functions in schema cron from app"))

    with pytest.raises(MissingRight, match=r"cron.schedule_in_database"):
        install(database_url, cron_database=cron_admin.info.dbname)
