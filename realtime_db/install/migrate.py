"""Installs, upgrades and goes back a release, by alembic, in one transaction and under a lock.

Above: the command line. Below: `preflight`, which refuses; `releases`, whose frozen files the
revisions in `migrations/versions/` run; alembic, which keeps the book in
`realtime.realtime_db_release`.

For the command line:

    await migrate(database_url, *, to=None, dry_run=False, limits=Limits()) -> Outcome
    await rollback(database_url, *, to=None, dry_run=False, limits=Limits()) -> Outcome
    await script(database_url=None, *, to=None) -> str        # `migrate --sql`
    Outcome.before / .after / .warnings / .dry_run, str(Outcome)
    Limits(wait_seconds=30.0, lock_timeout_ms=2000)

Two locks, both with a bounded wait. The advisory one, on a connection of its own, lets one
`migrate` run at a time; it is polled, for a backend that waits for a lock holds a snapshot, and
`create index concurrently` waits for snapshots. `lock_timeout` bounds the wait for table locks,
for whoever queues behind us waits as well; the whole transaction is then tried again. Either wait
is told in the log, once, which without a log is stderr.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from psycopg import errors, sql

from realtime_db import resources
from realtime_db.database import Connection, connect, connection_failed, conninfo
from realtime_db.errors import Busy, InstallError, MissingRight, NotInstalled
from realtime_db.install import freezing, inspect, preflight, releases

# "realtime" in ASCII. Advisory locks are per database.
LOCK_KEY: Final = int.from_bytes(b"realtime")

_NOTICE_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = (0.1, 2.0)
_SETUP: Final = "select realtime.setup();"
_WAL_LEVEL_STATE: Final = "55000"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for others.

    Attributes:
        wait_seconds: for another `migrate`, and for those who hold table locks.
        lock_timeout_ms: how long others may queue behind us at a time, while we wait for a table.
    """

    wait_seconds: float = 30.0
    lock_timeout_ms: int = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `migrate` or `rollback` did.

    Attributes:
        before: the release that was installed; None for none.
        after: the release that is installed now; in a dry run, the one that would be.
        warnings: what works less well than it could, and how to mend it.
        dry_run: everything was done, found to work, and taken back.
    """

    before: str | None
    after: str | None
    warnings: tuple[str, ...] = ()
    dry_run: bool = False

    def __str__(self) -> str:
        if self.before == self.after:
            return f"realtime-db {self.after} is installed; nothing to do"
        verb = "installed" if self.before is None else f"went from {self.before} to"
        if self.dry_run:
            verb = "would install" if self.before is None else f"would go from {self.before} to"
        suffix = " (all statements were run and rolled back)" if self.dry_run else ""
        return f"realtime-db: {verb} {self.after}{suffix}"


async def migrate(
    database_url: str,
    *,
    to: str | None = None,
    dry_run: bool = False,
    living: bool = False,
    limits: Limits | None = None,
) -> Outcome:
    """Installs realtime-db, or brings it to a newer release; harmless if there is nothing to do.

    Args:
        database_url: URL or libpq connection string, as the owner-to-be or the owner.
        to: the release to stop at; the newest by default.
        dry_run: run everything, then roll back.
        living: then run the unreleased `sql/` tree as well, for those who work on it.
        limits: how long to wait for others.

    Returns:
        What was done.

    Raises:
        ConnectionFailed, UnsupportedVersion: see `database.connect`.
        MissingRight, ForeignSchema, ManagedByExtension, NewerThanProgram: see `preflight.check`.
        Busy: another process held a lock for too long.
        InstallError: no such release, or it is older than what is installed.
    """
    target = _known(to) if to else releases.newest()
    limits = limits or Limits()
    async with exclusively(database_url, limits) as connection:
        found = await inspect.look(connection)
        warnings = await preflight.check(connection, found)
        if found.release and releases.version_key(found.release) > releases.version_key(target):
            raise InstallError(
                f"realtime-db {found.release} is installed, which is newer than {target}",
                hint=f"realtime-db rollback --to {target}",
            )
        if found.release == target and not living:
            return Outcome(target, target, tuple(warnings), dry_run)

        def upgrade(config: Config) -> None:
            command.upgrade(config, target)
            if living:
                _execute(config, freezing.living_update())
                _execute(config, _SETUP)

        warnings += await _run(database_url, connection, upgrade, limits, dry_run=dry_run)
    return Outcome(found.release, target, tuple(warnings), dry_run)


async def rollback(
    database_url: str,
    *,
    to: str | None = None,
    dry_run: bool = False,
    limits: Limits | None = None,
) -> Outcome:
    """Goes back to the release before, or to an earlier one; messages are kept.

    Args:
        database_url: as the owner.
        to: the release to go back to; the one before the installed one by default.
        dry_run: run everything, then roll back.
        limits: how long to wait for others.

    Raises:
        NotInstalled: there is nothing to go back from.
        InstallError: the first release is installed, or `to` is not an earlier one.
        Others: as `migrate`.
    """
    limits = limits or Limits()
    async with exclusively(database_url, limits) as connection:
        found = await inspect.look(connection)
        if found.managed_by is inspect.Manager.EXTENSION:
            preflight.refuse_to_roll_back_extension(found)
        warnings = await preflight.check(connection, found)
        if found.release is None:
            raise NotInstalled("realtime-db is not installed, so there is no way back")
        earlier = [
            release
            for release in releases.releases()
            if releases.version_key(release) < releases.version_key(found.release)
        ]
        target = _known(to) if to else next(reversed(earlier), None)
        if target is None:
            refuse_to_remove()
        if target not in earlier:
            raise InstallError(
                f"{target} is not older than {found.release}, which is installed",
                hint="realtime-db migrate",
            )
        warnings += await _run(
            database_url,
            connection,
            lambda config: command.downgrade(config, target),
            limits,
            dry_run=dry_run,
        )
    return Outcome(found.release, target, tuple(warnings), dry_run)


async def script(database_url: str | None = None, *, to: str | None = None) -> str:
    """What `migrate` would run, as a script for psql or any other client.

    Args:
        database_url: the script begins at what is installed there. None: at nothing.
        to: the release to stop at; the newest by default.

    Raises:
        ForeignSchema, ManagedByExtension, NewerThanProgram: it is not ours to change.
    """
    target = _known(to) if to else releases.newest()
    start = None
    if database_url is not None:
        found = await inspect.status(database_url)
        preflight.refuse_state(found)
        start = found.release
    if start is not None and releases.version_key(start) >= releases.version_key(target):
        return f"-- realtime-db {start} is installed: nothing to do.\n"
    output = io.StringIO()
    config = alembic_config(output=output)
    await asyncio.to_thread(
        command.upgrade, config, f"{start}:{target}" if start else target, sql=True
    )
    return (
        f"-- realtime-db {target}, for a database with {start or 'none'}. Run as the owner:\n"
        "--     psql --set ON_ERROR_STOP=1 --file this-file.sql\n\n" + output.getvalue()
    )


def alembic_config(
    connection: sqlalchemy.Connection | None = None, output: io.StringIO | None = None
) -> Config:
    """What alembic needs to know, without an alembic.ini.

    Args:
        connection: runs the revisions, inside its transaction.
        output: takes the script instead, in alembic's offline mode.
    """
    config = Config(output_buffer=output) if output else Config()
    # ConfigParser would take a % for an interpolation.
    config.set_main_option("script_location", str(resources.migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def run_frozen(name: str) -> None:
    """Runs a frozen file as it is, then `realtime.setup()`; for revisions only.

    Through psycopg's own cursor and without parameters: SQLAlchemy's `text()` takes `:name` for a
    parameter, and its `exec_driver_sql` takes `%I` for one.

    Raises:
        InstallError: the file was changed after its release.
    """
    text = releases.frozen(name)
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(text)
        context.impl.static_output(_SETUP)
        return
    bind = op.get_bind()
    for statements in (text, _SETUP):
        _cursor_execute(bind, statements)


def refuse_to_remove() -> None:
    """Says how the first release goes away.

    Raises:
        InstallError: always.
    """
    raise InstallError(
        "there is no release before the first one", hint="To remove it: realtime-db uninstall"
    )


def _known(release: str) -> str:
    known = releases.releases()
    if release not in known:
        raise InstallError(
            f"this program knows no release {release}", hint=f"It knows: {', '.join(known)}"
        )
    return release


@asynccontextmanager
async def exclusively(database_url: str, limits: Limits) -> AsyncIterator[Connection]:
    """A connection that holds the advisory lock."""
    async with connect(database_url) as connection:
        wait = _Wait(limits)
        while not await _one(connection, "select pg_try_advisory_lock(%s)", LOCK_KEY):
            holder = await _one(
                connection,
                "select max(pid) from pg_locks where locktype = 'advisory' and granted "
                "and (classid::bigint << 32) | objid::bigint = %s",
                LOCK_KEY,
            )
            if wait.is_over():
                raise Busy(
                    f"another realtime-db has been migrating for {limits.wait_seconds:g} s "
                    f"(process {holder})",
                    hint=f"Wait for it, or: select pg_terminate_backend({holder});",
                )
            wait.tell(f"another realtime-db that is migrating (process {holder})")
            await asyncio.sleep(_POLL_SECONDS)
        # Closing the connection lets go of the lock.
        yield connection


class _Wait:
    """How long we wait, and a word about it when somebody might wonder."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._time = asyncio.get_running_loop().time
        self._started = self._time()
        self._told = False

    def is_over(self, after_seconds: float = 0.0) -> bool:
        return self._time() + after_seconds >= self._started + self._limits.wait_seconds

    def tell(self, what: str) -> None:
        if not self._told and self._time() >= self._started + _NOTICE_SECONDS:
            self._told = True
            _log.warning("waiting up to %g s for %s", self._limits.wait_seconds, what)


async def _one(connection: Connection, query: str, *parameters: Any) -> Any:
    cursor = await connection.execute(sql.SQL(query), parameters)
    row = await cursor.fetchone()
    return row[0] if row else None


async def _run(
    database_url: str,
    connection: Connection,
    move: Callable[[Config], None],
    limits: Limits,
    *,
    dry_run: bool,
) -> list[str]:
    """Moves between releases in one transaction, again and again while tables are locked.

    Returns:
        The warnings that the server gave.
    """
    wait = _Wait(limits)
    pause, longest = _RETRY_SECONDS
    while True:
        try:
            return await asyncio.to_thread(
                _transaction, database_url, move, limits.lock_timeout_ms, dry_run=dry_run
            )
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            holders = await _who_locks(connection)
            if wait.is_over(pause):
                raise Busy(
                    f"tables of realtime-db stayed locked for {limits.wait_seconds:g} s: "
                    f"{_first_line(error)}",
                    hint=f"Locks are held by process {holders}: see pg_stat_activity, and run "
                    "this again."
                    if holders
                    else "Run it again.",
                ) from error
            wait.tell(f"tables of realtime-db that are locked (process {holders or 'unknown'})")
        except errors.InsufficientPrivilege as error:
            raise MissingRight(
                f"the database refused: {_first_line(error)}",
                hint=error.diag.message_hint or "realtime-db doctor names the grant.",
            ) from error
        except errors.DependentObjectsStillExist as error:
            raise InstallError(
                f"{_first_line(error)}: {error.diag.message_detail}",
                hint="Drop what depends on it, run this again, and create it again.",
            ) from error
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise connection_failed(database_url, error) from error
            raise InstallError(
                f"the database refused, and nothing was changed: {_first_line(error)}",
                hint=error.diag.message_hint,
            ) from error
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (not a secret)
        pause = min(2 * pause, longest)


def _transaction(
    database_url: str, move: Callable[[Config], None], lock_timeout_ms: int, *, dry_run: bool
) -> list[str]:
    """One attempt; blocking, for alembic is."""
    # Each release runs setup() and says it again; the newest has the best hint. What Postgres says
    # of wal_level when a publication is made, `preflight` says better.
    warnings: dict[str | None, str] = {}

    def heard(diagnostic: errors.Diagnostic) -> None:
        if (
            diagnostic.severity_nonlocalized == "WARNING"
            and diagnostic.sqlstate != _WAL_LEVEL_STATE
        ):
            parts = (diagnostic.message_primary, diagnostic.message_hint)
            warnings[parts[0]] = ". ".join(part for part in parts if part)

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo(database_url)),
        poolclass=sqlalchemy.NullPool,
    )
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            _driver(connection).add_notice_handler(heard)
            _cursor_execute(
                connection,
                f"set local lock_timeout = {lock_timeout_ms}; set local statement_timeout = 0",
            )
            move(alembic_config(connection))
            if dry_run:
                transaction.rollback()
    except sqlalchemy.exc.DBAPIError as error:
        # From alembic's own statements; ours come from psycopg as they are.
        raise error.orig or error from error
    finally:
        engine.dispose()
    return list(warnings.values())


def _execute(config: Config, statements: str) -> None:
    _cursor_execute(config.attributes["connection"], statements)


def _cursor_execute(connection: sqlalchemy.Connection, statements: str) -> None:
    # Without parameters psycopg leaves % alone, and takes many statements at once.
    _driver(connection).execute(statements.encode())


def _driver(connection: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "there is no other driver here"
    return driver


async def _who_locks(connection: Connection) -> str | None:
    holders: str | None = await _one(
        connection,
        """
        select string_agg(distinct pid::text, ', ') from pg_locks
        where granted and pid <> pg_backend_pid() and relation in (
            select c.oid from pg_class as c inner join pg_namespace as n
                on c.relnamespace = n.oid
            where n.nspname = 'realtime'
        )
        """,
    )
    return holders


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0]
