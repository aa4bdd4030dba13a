"""`migrate` and `rollback`: locks, refusals, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db import embedded
from realtime_db.errors import (
    Busy,
    ConnectionFailed,
    ForeignSchema,
    InstallError,
    MissingRight,
    NewerThanProgram,
    NotInstalled,
)
from realtime_db.install import doctor, inspect, migrate, releases
from realtime_db.install.checks import Outcome
from realtime_db.install.inspect import State
from realtime_db.install.migrate import Limits

Describe = Callable[[str], dict[str, str]]

FIRST, *LATER = releases.releases()
NEWEST = releases.newest()
DEADLINE_SECONDS = 60


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def status(url: str) -> inspect.Installation:
    return asyncio.run(inspect.status(url))


def messages(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [
            i for (i,) in connection.execute("select id::text from realtime.messages order by 1")
        ]


@asynccontextmanager
async def holding(url: str, statement: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(statement.encode())
        yield connection
        await connection.rollback()


async def waiting_for_messages(url: str) -> AsyncIterator[int]:
    """The processes that wait for a lock on a table of ours, as they come and go."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            cursor = await connection.execute(
                "select pid from pg_locks where not granted and locktype = 'relation' "
                "and database = (select oid from pg_database where datname = current_database())"
            )
            for (pid,) in await cursor.fetchall():
                yield pid


async def asked_for_the_lock(connection: psycopg.AsyncConnection) -> None:
    """Returns when another process has asked for the advisory lock at least once."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            cursor = await connection.execute(
                "select from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid() and query like '%advisory_lock%'"
            )
            if await cursor.fetchone() is not None:
                return
            await asyncio.sleep(0)


def test_migrate_installs_the_newest_release(empty_database_url: str) -> None:
    outcome = asyncio.run(migrate.migrate(empty_database_url))

    assert (outcome.before, outcome.after) == (None, NEWEST)
    execute(empty_database_url, "select realtime.send('{}', 'event', 'topic')")
    assert len(messages(empty_database_url)) == 1


def test_migrate_twice_does_nothing_the_second_time(
    empty_database_url: str, describe: Describe
) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    before = describe(empty_database_url)

    outcome = asyncio.run(migrate.migrate(empty_database_url))

    assert outcome.before == outcome.after == NEWEST
    assert describe(empty_database_url) == before


def test_concurrent_runs_of_migrate_are_harmless(empty_database_url: str) -> None:
    async def run() -> list[migrate.Outcome]:
        return await asyncio.gather(*(migrate.migrate(empty_database_url) for _ in range(4)))

    outcomes = asyncio.run(run())

    assert sorted(str(outcome.before) for outcome in outcomes) == sorted([*[NEWEST] * 3, "None"])
    assert status(empty_database_url).state is State.CURRENT


def test_a_dry_run_changes_nothing(empty_database_url: str, describe: Describe) -> None:
    before = describe(empty_database_url)

    outcome = asyncio.run(migrate.migrate(empty_database_url, dry_run=True))

    assert (outcome.before, outcome.after, outcome.dry_run) == (None, NEWEST, True)
    assert describe(empty_database_url) == before
    assert status(empty_database_url).state is State.ABSENT


def test_migrate_stops_at_the_release_that_was_asked_for(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))

    assert status(empty_database_url).release == FIRST


def test_migrate_to_an_unknown_release_lists_the_known_ones(empty_database_url: str) -> None:
    with pytest.raises(InstallError, match=f"(?s)99.0.0.*{FIRST}"):
        asyncio.run(migrate.migrate(empty_database_url, to="99.0.0"))


def test_migrate_to_an_earlier_release_says_how_to_go_back(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))

    with pytest.raises(InstallError, match=f"realtime-db rollback --to {FIRST}"):
        asyncio.run(migrate.migrate(empty_database_url, to=FIRST))


@pytest.mark.parametrize(("old", "new"), list(zip([FIRST, *LATER], LATER, strict=False)))
def test_rollback_gives_the_release_before_and_keeps_the_messages(
    create_database: Callable[..., str], describe: Describe, old: str, new: str
) -> None:
    back, fresh = create_database(), create_database()
    asyncio.run(migrate.migrate(fresh, to=old))
    asyncio.run(migrate.migrate(back, to=new))
    execute(back, "select realtime.send('{}', 'event', 'topic')")
    sent = messages(back)

    outcome = asyncio.run(migrate.rollback(back))

    assert (outcome.before, outcome.after) == (new, old)
    assert describe(back) == describe(fresh)
    assert messages(back) == sent
    assert status(back).release == old


def test_migrate_goes_forward_again_after_a_rollback(
    create_database: Callable[..., str], describe: Describe
) -> None:
    again, fresh = create_database(), create_database()
    asyncio.run(migrate.migrate(fresh))
    asyncio.run(migrate.migrate(again))

    asyncio.run(migrate.rollback(again, to=FIRST))
    asyncio.run(migrate.migrate(again))

    assert describe(again) == describe(fresh)


def test_a_dry_rollback_changes_nothing(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))

    asyncio.run(migrate.rollback(empty_database_url, dry_run=True))

    assert status(empty_database_url).release == NEWEST


def test_rollback_of_the_first_release_says_uninstall(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))

    with pytest.raises(InstallError, match="realtime-db uninstall"):
        asyncio.run(migrate.rollback(empty_database_url))


def test_rollback_of_nothing_says_so(empty_database_url: str) -> None:
    with pytest.raises(NotInstalled):
        asyncio.run(migrate.rollback(empty_database_url))


def test_migrate_gives_up_on_another_migrate_after_a_while(empty_database_url: str) -> None:
    async def run() -> None:
        lock = f"select pg_advisory_lock({migrate.LOCK_KEY})"
        async with holding(empty_database_url, lock) as holder:
            with pytest.raises(Busy, match=rf"process {holder.info.backend_pid}"):
                await migrate.migrate(empty_database_url, limits=Limits(wait_seconds=0.1))

    asyncio.run(run())
    assert status(empty_database_url).state is State.ABSENT


@pytest.mark.parametrize(
    "lock",
    [
        f"select pg_advisory_lock({migrate.LOCK_KEY})",
        pytest.param(
            "lock table realtime.messages in access exclusive mode",
            marks=pytest.mark.skipif(not LATER, reason="one release, so no upgrade"),
        ),
    ],
)
def test_a_migrate_that_waits_says_once_for_whom(
    empty_database_url: str,
    lock: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))
    monkeypatch.setattr(migrate, "_NOTICE_SECONDS", 0.0)

    async def run() -> int:
        async with holding(empty_database_url, lock) as holder:
            with pytest.raises(Busy):
                await migrate.migrate(empty_database_url, limits=Limits(4.0, lock_timeout_ms=20))
            return holder.info.backend_pid

    pid = asyncio.run(run())

    [told] = [text for text in caplog.messages if text.startswith("waiting up to 4 s for ")]
    assert f"(process {pid})" in told


def test_a_waiting_migrate_does_not_hold_up_create_index_concurrently(
    empty_database_url: str,
) -> None:
    execute(empty_database_url, "create table public.todos (id integer)")

    async def run() -> None:
        lock = f"select pg_advisory_lock({migrate.LOCK_KEY})"
        async with holding(empty_database_url, lock) as holder:
            await holder.commit()
            await holder.set_autocommit(True)
            waiting = asyncio.create_task(migrate.migrate(empty_database_url))
            await asked_for_the_lock(holder)
            await holder.execute(f"set statement_timeout = '{DEADLINE_SECONDS}s'")
            await holder.execute("create index concurrently on public.todos (id)")
            await holder.execute("select pg_advisory_unlock_all()")
            await holder.set_autocommit(False)
            await waiting

    asyncio.run(run())
    assert status(empty_database_url).state is State.CURRENT


@pytest.mark.skipif(not LATER, reason="one release, so no upgrade")
def test_migrate_tries_again_when_a_table_is_locked(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))

    async def run() -> None:
        lock = "lock table realtime.messages in access exclusive mode"
        async with asyncio.timeout(DEADLINE_SECONDS), holding(empty_database_url, lock) as holder:
            limits = Limits(wait_seconds=DEADLINE_SECONDS, lock_timeout_ms=20)
            upgrade = asyncio.create_task(migrate.migrate(empty_database_url, limits=limits))
            attempts: set[int] = set()
            async for pid in waiting_for_messages(empty_database_url):
                attempts.add(pid)
                if len(attempts) == 3:
                    break
            await holder.rollback()
            await upgrade

    asyncio.run(run())
    assert status(empty_database_url).state is State.CURRENT


@pytest.mark.skipif(not LATER, reason="one release, so no upgrade")
def test_migrate_gives_up_on_a_locked_table_and_leaves_the_old_release_whole(
    empty_database_url: str, describe: Describe
) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))
    before = describe(empty_database_url)

    async def run() -> None:
        lock = "lock table realtime.messages in access exclusive mode"
        async with asyncio.timeout(DEADLINE_SECONDS), holding(empty_database_url, lock) as holder:
            limits = Limits(wait_seconds=0.1, lock_timeout_ms=20)
            with pytest.raises(Busy, match=str(holder.info.backend_pid)):
                await migrate.migrate(empty_database_url, limits=limits)

    asyncio.run(run())
    assert describe(empty_database_url) == before
    assert status(empty_database_url).release == FIRST


def test_migrate_refuses_the_schema_of_supabase(empty_database_url: str) -> None:
    execute(
        empty_database_url,
        "create schema realtime",
        "create table realtime.schema_migrations (version bigint)",
    )

    with pytest.raises(ForeignSchema, match="Supabase"):
        asyncio.run(migrate.migrate(empty_database_url))


def test_migrate_refuses_a_schema_with_objects_of_others(empty_database_url: str) -> None:
    execute(empty_database_url, "create schema realtime", "create table realtime.mine (id integer)")

    with pytest.raises(ForeignSchema, match="not of realtime-db"):
        asyncio.run(migrate.migrate(empty_database_url))


def test_migrate_uses_an_empty_schema_that_is_there(empty_database_url: str) -> None:
    execute(empty_database_url, "create schema realtime")

    asyncio.run(migrate.migrate(empty_database_url))

    assert status(empty_database_url).state is State.CURRENT


def test_migrate_and_rollback_refuse_a_newer_release(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(
        empty_database_url,
        "update realtime.realtime_db_release set version_num = '99.0.0'",
        "create or replace function realtime.version() returns text language sql immutable "
        "as $$ select '99.0.0' $$",
    )

    for change in (migrate.migrate, migrate.rollback):
        with pytest.raises(NewerThanProgram, match=r"99\.0\.0"):
            asyncio.run(change(empty_database_url))


def test_migrate_refuses_a_half_finished_installation(empty_database_url: str) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    execute(empty_database_url, "delete from realtime.realtime_db_release")

    with pytest.raises(InstallError, match="half-finished"):
        asyncio.run(migrate.migrate(empty_database_url))


@pytest.fixture
def stranger_url(server_url: str, empty_database_url: str) -> Iterator[str]:
    """The database, as a role that has no rights in it."""
    database = conninfo_to_dict(empty_database_url)["dbname"]
    role = f"stranger_{database}"
    execute(server_url, f"create role {role} login password 'stranger'")
    yield make_conninfo(server_url, user=role, password="stranger", dbname=database)
    as_admin = make_conninfo(server_url, dbname=database)
    execute(as_admin, f"drop owned by {role} cascade", f"drop role {role}")


def test_a_role_without_create_gets_the_grant_and_then_succeeds(
    server_url: str, empty_database_url: str, stranger_url: str
) -> None:
    with pytest.raises(MissingRight, match="may not create") as caught:
        asyncio.run(migrate.migrate(stranger_url))

    assert caught.value.hint is not None
    execute(server_url, caught.value.hint.partition(": ")[2])
    outcome = asyncio.run(migrate.migrate(stranger_url))
    assert outcome.after == NEWEST


def test_an_upgrade_by_somebody_else_than_the_owner_names_the_owner(
    empty_database_url: str, stranger_url: str
) -> None:
    asyncio.run(migrate.migrate(empty_database_url, to=FIRST))
    database = conninfo_to_dict(empty_database_url)["dbname"]
    role = conninfo_to_dict(stranger_url)["user"]

    # Whatever else the role lacks, this is what it is told first.
    for right in ("create on database " + database, "usage, create on schema realtime"):
        with pytest.raises(MissingRight, match='owned by "app"') as caught:
            asyncio.run(migrate.migrate(stranger_url))
        assert f'grant "app" to {role};' in str(caught.value.hint)
        execute(empty_database_url, f"grant {right} to {role}")
    with pytest.raises(MissingRight, match='owned by "app"'):
        asyncio.run(migrate.migrate(stranger_url))


def test_the_server_s_warnings_are_passed_on(
    server_url: str, empty_database_url: str, stranger_url: str
) -> None:
    database, role = (
        conninfo_to_dict(empty_database_url)["dbname"],
        conninfo_to_dict(stranger_url)["user"],
    )
    execute(server_url, f"grant create on database {database} to {role}")

    outcome = asyncio.run(migrate.migrate(stranger_url))

    # It may neither make the roles of tokens nor join them.
    assert any("anon" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("url", ["postgresql://[", "this is no URL"])
def test_a_url_that_cannot_be_read_is_shown_a_good_one(url: str) -> None:
    with pytest.raises(ConnectionFailed, match="postgresql://user:password@host"):
        asyncio.run(migrate.migrate(url))


def test_a_database_that_is_not_there_is_named(empty_database_url: str) -> None:
    with pytest.raises(ConnectionFailed, match="no_such_database"):
        asyncio.run(migrate.migrate(make_conninfo(empty_database_url, dbname="no_such_database")))


def test_without_logical_decoding_migrate_and_doctor_warn() -> None:
    async def run() -> tuple[migrate.Outcome, doctor.Report]:
        settings = {"wal_level": "replica", "fsync": "off"}
        async with embedded.start(binaries=_binaries(), settings=settings) as server:
            return await migrate.migrate(server.url), await doctor.examine(server.url)

    outcome, report = asyncio.run(run())

    assert outcome.after == NEWEST
    [about_the_wal] = [warning for warning in outcome.warnings if "wal_level" in warning]
    assert about_the_wal.startswith("wal_level is replica: `serve` polls the table instead")
    [check] = [check for check in report.checks if check.name == "wal_level"]
    assert check.outcome is Outcome.WARN
    assert report.ok
    assert (report.checks[-1].outcome, report.checks[-1].detail) == (
        Outcome.SKIP,
        "needs: wal_level",
    )
    assert check.mend is not None
    assert "alter system set wal_level = 'logical'" in check.mend


def _binaries() -> Path | None:
    given = os.environ.get("REALTIME_DB_TEST_BINARIES")
    return Path(given) if given else None


def test_a_standby_is_refused_by_migrate_and_reported_by_doctor() -> None:
    folder = Path(tempfile.mkdtemp(prefix="standby-"))
    folder.chmod(0o755)  # Postgres may run as another user
    data = folder / "data"

    async def run() -> None:
        settings = {"fsync": "off"}
        async with embedded.start(data, binaries=_binaries(), settings=settings) as server:
            await migrate.migrate(server.url)
        (data / "standby.signal").touch()
        async with embedded.start(data, binaries=_binaries(), settings=settings) as server:
            with pytest.raises(InstallError, match="standby"):
                await migrate.migrate(server.url)
            report = await doctor.examine(server.url)
        assert report.checks[1].outcome is Outcome.FAIL
        assert "standby" in report.checks[1].detail

    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(folder)
