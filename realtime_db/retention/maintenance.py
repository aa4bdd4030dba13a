"""Carries out the plan: makes, finishes and drops partitions, each on its own.

    run_once ──► Report        for cron, a CronJob, a hand
    run_every ──► Report …     a daemon

Above: the command line. Below: `plan`, which decides, and the SQL functions `partitions`,
`create_partition` and `drop_partition`.

No sender waits for this. To make a partition takes no lock that senders need. To drop one, it is
detached `concurrently`, which waits for those who read the table and makes nobody wait for it, and
only then dropped, as a table of its own. Function and transaction cannot do that, so
`realtime.maintain()` has to ask for short locks instead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors, sql

from realtime_db.database import Connection, connect, connection_failed
from realtime_db.errors import (
    ForeignSchema,
    MaintenanceError,
    MissingRight,
    NotInstalled,
    RealtimeDbError,
)
from realtime_db.retention.plan import (
    Action,
    Kind,
    Partition,
    Policy,
    State,
    days_left,
    make_plan,
)
from realtime_db.settings import MAX_SLOT_LAG_BYTES
from realtime_db.wal import slots

LEAVING: Final = "Being removed by realtime-db."
"""The comment on a partition that we have begun to remove; `realtime.partitions()` knows it."""

_ATTEMPTS: Final = 20
_CREATE_LOCK_MS: Final = 500  # only other maintenance of the table is in the way, never a sender
_RETRY_SECONDS: Final = 60.0
_TRY_AGAIN: Final = (
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.DuplicateTable,  # `realtime.setup()` makes partitions too
    errors.UniqueViolation,  # the same race, lost a moment earlier, in the catalogs
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A partition that is past retention and still there, which is no error.

    Attributes:
        name: `messages_YYYY_MM_DD`.
        reason: a few words.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did, and how things stand after it.

    Attributes:
        created: partitions made or attached again, in the order in which it happened.
        finalized: partitions whose interrupted detach was finished.
        dropped: partitions dropped, with their messages.
        skipped: partitions that stay for now, with the reason.
        problems: sentences; each names a day or an object.
        days_left: days after today that have a partition, without a gap; -1 if not even today
            has one; None if the database could not be asked.
        standby: the server is a standby, on which nothing is to be done.
        busy: another maintainer was at work, so nothing was done.
    """

    created: tuple[str, ...] = ()
    finalized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    problems: tuple[str, ...] = ()
    days_left: int | None = None
    standby: bool = False
    busy: bool = False

    @property
    def ok(self) -> bool:
        """No problem, and partitions for today and tomorrow: exit status 0."""
        return not self.problems and (
            self.standby or (self.days_left is not None and self.days_left >= 1)
        )

    def as_json(self) -> str:
        """One line of JSON with all attributes and `ok`."""
        return json.dumps(
            {
                "ok": self.ok,
                "days_left": self.days_left,
                "created": self.created,
                "finalized": self.finalized,
                "dropped": self.dropped,
                "skipped": [{"name": one.name, "reason": one.reason} for one in self.skipped],
                "problems": self.problems,
                "standby": self.standby,
                "busy": self.busy,
            },
            ensure_ascii=False,
        )

    def as_text(self) -> str:
        """A few lines for people; the last one says how things stand."""
        lines = [f"created {name}" for name in self.created]
        lines += [f"finished detaching {name}" for name in self.finalized]
        lines += [f"dropped {name}" for name in self.dropped]
        lines += [f"kept {one.name}: {one.reason}" for one in self.skipped]
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.standby:
            lines.append("this server is a standby: nothing to do here, its primary is maintained")
        if self.busy:
            lines.append("another maintainer is at work: nothing done")
        if self.days_left is not None:
            lines.append(
                "realtime.messages has no partition for today: no message can be sent"
                if self.days_left < 0
                else f"partitions reach {self.days_left} days ahead"
            )
        return "\n".join(lines)

    def as_log(self) -> str:
        """The same lines, each with the time as the server's log has it."""
        timed = logging.Formatter("%(asctime)s %(message)s")
        return "\n".join(
            timed.format(logging.makeLogRecord({"msg": line}))
            for line in self.as_text().splitlines()
        )


async def run_once(
    database_url: str,
    *,
    today: date | None = None,
    lock_wait_seconds: float = 5.0,
    detach_timeout_seconds: float = 30.0,
    max_slot_lag_bytes: int = MAX_SLOT_LAG_BYTES,
) -> Report:
    """Makes the partitions that are missing and drops those past retention.

    What cannot be done does not keep the rest from being done: it is in the report.

    Args:
        database_url: of the owner of `realtime.messages`, not through a pooler that hands out
            connections by transaction: the lock and the limits belong to the session.
        today: another day than the UTC day of the server's clock, for tests.
        lock_wait_seconds: how long to wait for another maintainer to finish.
        detach_timeout_seconds: how long each detach may wait for readers of the table. What was
            begun by then is finished by a later run.
        max_slot_lag_bytes: of WAL that the slot of a server may hold back while nobody reads it;
            over it, it is dropped, and half of it is a problem already. 0 is no limit.

    Raises:
        ConnectionFailed: not reachable, login refused, or connection lost.
        NotInstalled: no `realtime.messages`, or too old a release of it.
        MissingRight: the role does not own `realtime.messages`.
    """
    async with connect(database_url) as connection:
        try:
            run = _Run(connection, detach_timeout_seconds, max_slot_lag_bytes)
            return await run.report(today, lock_wait_seconds)
        except psycopg.Error as error:
            if connection.broken:
                raise connection_failed(database_url, error) from error
            raise MaintenanceError(f"maintenance stopped: {_first_line(error)}") from error


async def run_every(
    database_url: str,
    *,
    interval_seconds: float,
    on_report: Callable[[Report], object],
    lock_wait_seconds: float = 5.0,
    detach_timeout_seconds: float = 30.0,
    max_slot_lag_bytes: int = MAX_SLOT_LAG_BYTES,
) -> None:
    """Runs, reports and waits, until it is cancelled.

    A run that fails, for the connection is lost, say, is a report with a problem; the next try
    then comes after a minute, if the interval is longer.

    Args:
        database_url: as for `run_once`; each run has a connection of its own.
        interval_seconds: from the end of a run to the start of the next.
        on_report: is given the report of each run.
        lock_wait_seconds: as for `run_once`.
        detach_timeout_seconds: as for `run_once`.
        max_slot_lag_bytes: as for `run_once`.
    """
    while True:
        pause = interval_seconds
        try:
            report = await run_once(
                database_url,
                lock_wait_seconds=lock_wait_seconds,
                detach_timeout_seconds=detach_timeout_seconds,
                max_slot_lag_bytes=max_slot_lag_bytes,
            )
        except (RealtimeDbError, psycopg.Error) as error:
            report = Report(problems=(str(error),))
            pause = min(interval_seconds, _RETRY_SECONDS)
        on_report(report)
        await asyncio.sleep(pause)


async def check_owner(connection: Connection) -> None:
    """Sees that realtime-db is in this database and that the role may maintain it.

    Raises:
        NotInstalled: no `realtime.messages`, or too old a release of it.
        ForeignSchema: a schema `realtime` that is not ours.
        MissingRight: the role does not own `realtime.messages`.
    """
    # By name in the catalogs: `to_regclass` needs a right on the schema.
    cursor = await connection.execute(
        """
        select r.rolname, current_user, pg_has_role(r.oid, 'usage'), r.rolsuper
        from pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        inner join pg_roles as r on c.relowner = r.oid
        where n.nspname = 'realtime' and c.relname = 'messages' and exists (
            select from pg_proc as p where p.pronamespace = n.oid and p.proname = 'maintain'
        )
        """
    )
    row = await cursor.fetchone()
    if row is None:
        await _refuse_foreign(connection)
        raise NotInstalled(
            f"database {connection.info.dbname} has no realtime-db, or an older release of it",
            hint="Run `realtime-db migrate`.",
        )
    owner, role, owns, superuser_owns = row
    if not owns:
        grant = f", or: grant {_quoted(owner)} to {_quoted(role)};"
        raise MissingRight(
            f"role {role} does not own realtime.messages; {owner} does",
            # Nobody should become a superuser for this.
            hint=f"Connect as {owner}{'.' if superuser_owns else grant}",
        )


async def _refuse_foreign(connection: Connection) -> None:
    """A schema `realtime` with tables of which none is ours: installing is no help there."""
    cursor = await connection.execute(
        """
        select from pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        where n.nspname = 'realtime'
        having count(*) > 0 and not bool_or(
            c.relname = 'realtime_db_release' or c.relname = 'messages' and exists (
                select from pg_attribute as a
                where a.attrelid = c.oid and a.attname = 'transaction_id'
            )
        ) and not exists (select from pg_extension where extname = 'realtime_db')
        """
    )
    if await cursor.fetchone() is not None:
        raise ForeignSchema(
            f"the schema realtime of database {connection.info.dbname} is not of realtime-db",
            hint="Use another database. `realtime-db status` says more.",
        )


class _Run:
    """One run on one connection; collects what becomes the report."""

    def __init__(
        self, connection: Connection, detach_timeout_seconds: float, max_slot_lag_bytes: int
    ) -> None:
        self._connection = connection
        self._max_slot_lag_bytes = max_slot_lag_bytes
        self._detach_timeout_ms = max(1, round(detach_timeout_seconds * 1000))
        self._created: list[str] = []
        self._finalized: list[str] = []
        self._dropped: list[str] = []
        self._skipped: dict[str, str] = {}
        self._problems: list[str] = []

    async def report(self, today: date | None, lock_wait_seconds: float) -> Report:
        # Before all else: on a standby not even a lock can be had that the primary sees.
        standby, clock = await self._row(
            "select pg_is_in_recovery(), (clock_timestamp() at time zone 'utc')::date"
        )
        today = today or clock
        await check_owner(self._connection)
        if standby:
            return Report(standby=True, days_left=days_left(today, await self._partitions()))
        locked = await self._locked(lock_wait_seconds)
        if locked:
            await self._maintain(today)
            await self._look_at_slots()
        return Report(
            created=tuple(self._created),
            finalized=tuple(self._finalized),
            dropped=tuple(self._dropped),
            skipped=tuple(Skipped(*one) for one in sorted(self._skipped.items())),
            problems=tuple(self._problems),
            days_left=days_left(today, await self._partitions()),
            busy=not locked,
        )

    async def _maintain(self, today: date) -> None:
        retention_days, days_ahead = await self._row(
            "select retention_days, days_ahead from realtime.settings"
        )
        policy = Policy(retention_days, days_ahead)
        existing = {partition.day: partition for partition in await self._partitions()}
        actions = make_plan(today, existing.values(), policy)
        doomed = {action.day for action in actions if action.kind is Kind.DROP}
        for partition in existing.values():
            if partition.kept_by_hand and partition.day < policy.keep_from(today):
                self._skipped[partition.name] = "detached by hand, which keeps it"
        for action in actions:
            match action.kind:
                case Kind.CREATE:
                    await self._create(action)
                case Kind.FINALIZE:
                    await self._finalize(action, leaving=action.day in doomed)
                case Kind.DROP:
                    await self._drop(action, existing[action.day].state)
        await self._forget_send_errors(policy.keep_from(today))

    async def _forget_send_errors(self, before: date) -> None:
        (kept,) = await self._row("select to_regclass('realtime.send_errors') is not null")
        if not kept:
            return  # a release before 0.2.0
        await self._limit(lock_ms=_CREATE_LOCK_MS)
        try:
            await self._connection.execute(
                "delete from realtime.send_errors where happened_at < %s", [before]
            )
        except psycopg.Error as error:
            self._fail("old rows of realtime.send_errors stay", error)

    async def _look_at_slots(self) -> None:
        """Keeps the slot of a server that does not run from filling the disk."""
        limit = self._max_slot_lag_bytes
        for slot in await slots.look(self._connection):
            if not limit or slot.active or (slot.retained_bytes or 0) <= limit // 2:
                continue
            held = f"nobody reads it, and it held back {slots.as_text(slot.retained_bytes)} of WAL"
            if (slot.retained_bytes or 0) <= limit:
                self._problems.append(
                    f"replication slot {slot.name}: {held}; over {slots.as_text(limit)} it is "
                    "dropped. Start its server, or: realtime-db slot drop"
                )
                continue
            try:
                await slots.drop(self._connection, slot.name)
            except RealtimeDbError as error:
                self._problems.append(f"replication slot {slot.name} stays, though {held}: {error}")
            else:
                self._problems.append(f"replication slot {slot.name} was dropped: {held}")

    # --- the three actions ----------------------------------------------------------------------

    async def _create(self, action: Action) -> None:
        await self._limit(lock_ms=_CREATE_LOCK_MS)
        try:
            missing = await self._persist("select realtime.create_partition(%s)", action.day)
        except psycopg.Error as error:
            self._fail(f"no partition for {action.day}, {action.name}", error)
        else:
            if missing:
                self._created.append(action.name)

    async def _finalize(self, action: Action, *, leaving: bool) -> None:
        try:
            if leaving:
                await self._mark(action.name)
            await self._detach(action.name, "finalize")
        except psycopg.Error as error:
            self._postpone(action, error)
        else:
            self._finalized.append(action.name)

    async def _drop(self, action: Action, state: State) -> None:
        try:
            if state is State.ATTACHED and not await self._has_default():
                if await self._a_detach_is_pending():
                    self._skipped[action.name] = "another detach has to be finished first"
                    return
                await self._mark(action.name)
                await self._detach(action.name, "concurrently")
            elif state is State.DETACHING and action.name not in self._finalized:
                return  # _finalize said why
            # Attached only beside a default partition, where no detach is concurrent: then this
            # asks for the lock on all of realtime.messages, for 5 ms at a time.
            if await self._persist("select realtime.drop_partition(%s)", action.day):
                self._dropped.append(action.name)
        except psycopg.Error as error:
            self._postpone(action, error)

    async def _mark(self, name: str) -> None:
        """Says that the partition is leaving, so that nobody takes it for an archive."""
        await self._limit(lock_ms=_CREATE_LOCK_MS)
        await self._connection.execute(
            sql.SQL("comment on table {} is {}").format(_table(name), LEAVING)
        )

    async def _detach(self, name: str, how: LiteralString) -> None:
        # One limit for all of it: it waits for transactions, without a lock that senders need.
        await self._limit(statement_ms=self._detach_timeout_ms)
        await self._connection.execute(
            sql.SQL("alter table realtime.messages detach partition {} {}").format(
                _table(name), sql.SQL(how)
            )
        )

    async def _persist(self, query: LiteralString, day: date) -> bool:
        """Calls a function that a lock may be in the way of, a number of times."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                (done,) = await self._row(query, day)
                return bool(done)
            except _TRY_AGAIN:
                if attempt == _ATTEMPTS:
                    raise
            # The senders who queued up behind us pass in the meantime.
            await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311
        raise AssertionError("unreachable")

    # --- what went wrong ------------------------------------------------------------------------

    def _fail(self, what: str, error: psycopg.Error) -> None:
        if self._connection.broken:
            raise error
        self._problems.append(f"{what}: {_first_line(error)}")

    def _postpone(self, action: Action, error: psycopg.Error) -> None:
        """A reader in the way is no error: the next run goes on where this one stopped."""
        if isinstance(error, errors.QueryCanceled | errors.LockNotAvailable):
            self._skipped[action.name] = "a transaction that uses it is still open"
        else:
            self._fail(f"cannot {action.kind.value} {action.name}", error)

    # --- looking --------------------------------------------------------------------------------

    async def _partitions(self) -> list[Partition]:
        cursor = await self._connection.execute(
            "select partition_name, day, attached, detaching, leaving from realtime.partitions()"
        )
        return [
            Partition(
                name=name,
                day=day,
                state=State.ATTACHED
                if attached
                else State.DETACHING
                if detaching
                else State.DETACHED,
                leaving=leaving,
            )
            for name, day, attached, detaching, leaving in await cursor.fetchall()
        ]

    async def _has_default(self) -> bool:
        (found,) = await self._row(
            "select partdefid <> 0 from pg_partitioned_table "
            "where partrelid = 'realtime.messages'::regclass"
        )
        return bool(found)

    async def _a_detach_is_pending(self) -> bool:
        """Of whatever partition, ours or not: Postgres allows one at a time."""
        (found,) = await self._row(
            "select exists (select from pg_inherits "
            "where inhparent = 'realtime.messages'::regclass and inhdetachpending)"
        )
        return bool(found)

    async def _locked(self, wait_seconds: float) -> bool:
        """Gets the lock of all maintainers of this database; it ends with the session.

        Asked for again and again, for to wait in Postgres is to hold a snapshot, and a detach that
        another maintainer has to finish waits for old snapshots.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            (locked,) = await self._row(
                "select pg_try_advisory_lock(hashtextextended('realtime-db maintain', 0))"
            )
            if locked or asyncio.get_running_loop().time() >= deadline:
                return bool(locked)
            await asyncio.sleep(0.1)

    async def _limit(self, *, lock_ms: int = 0, statement_ms: int = 0) -> None:
        """Limits for the next statements, in milliseconds; 0 is none."""
        await self._connection.execute(
            "select set_config('lock_timeout', %s, false), "
            "set_config('statement_timeout', %s, false)",
            [str(lock_ms), str(statement_ms)],
        )

    async def _row(self, query: LiteralString, *parameters: Any) -> tuple[Any, ...]:
        cursor = await self._connection.execute(query, parameters or None)
        row = await cursor.fetchone()
        assert row
        return row


def _table(name: str) -> sql.Identifier:
    return sql.Identifier("realtime", name)


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip().partition("\n")[0] or repr(error)
