"""Broadcast triggers in the users' schemas: adds, lists, removes and prints them.

Above: the command line. Below: `trigger_catalog`, which knows the queries and when to refuse, and
`trigger_template`, which renders the SQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import errors as postgres

from realtime_db.database import Connection, connect
from realtime_db.errors import Busy, MissingRight, TriggerError
from realtime_db.install import trigger_catalog as catalog
from realtime_db.install import trigger_template as template
from realtime_db.install.trigger_catalog import BroadcastTrigger
from realtime_db.install.trigger_options import (
    DEFAULT_NAME,
    EVENTS,
    TriggerOptions,
    parse_table,
    table_text,
)

__all__ = [
    "BroadcastTrigger",
    "TriggerOptions",
    "add",
    "list_triggers",
    "parse_table",
    "print_sql",
    "remove",
    "table_text",
]

LOCK_TIMEOUT_SECONDS = 5.0


async def add(
    database_url: str,
    options: TriggerOptions,
    *,
    replace: bool = False,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> list[BroadcastTrigger]:
    """Makes a broadcast trigger, in one transaction.

    Args:
        replace: drop the one of this name on this table first, if there is one.
        lock_timeout_seconds: how long writers may be made to wait for us to wait for the table.

    Returns:
        The broadcast triggers that the table has now.

    Raises:
        NotInstalled: no realtime-db in this database.
        MissingRight: the hint is the statement that grants it.
        Busy: the table was in use for too long.
        TriggerError: it cannot be made as asked.
    """
    async with _transaction(database_url, options.table, lock_timeout_seconds) as connection:
        facts = await _text(connection, catalog.facts_query(options))
        table = catalog.read_table(options, facts)
        existing = None
        if replace:
            triggers = await _list(connection)
            existing = catalog.find(triggers, options.table_schema, options.table, options.name)
        catalog.refuse(options, facts, existing)
        await _check_condition(connection, options)
        # Also one without triggers, left behind when its table was dropped.
        drop = template.drop_function(options.schema, options.function)
        statements = catalog.drop_statements(existing) if existing else [drop]
        for statement in [*statements, *template.statements(options, table)]:
            await connection.execute(statement.encode())
        return await _triggers_of(connection, options.table_schema, options.table)


async def remove(
    database_url: str,
    table_schema: str,
    table: str,
    name: str = DEFAULT_NAME,
    *,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> list[BroadcastTrigger]:
    """Drops a broadcast trigger and its function; or the function, if the table is gone.

    Returns:
        The broadcast triggers that the table has left.

    Raises:
        TriggerError: there is none of that name on that table, or no such table.
        MissingRight: the table or the function belongs to somebody else.
        Busy: the table was in use for too long.
    """
    async with _transaction(database_url, table, lock_timeout_seconds) as connection:
        triggers = await _list(connection)
        wanted = (table_schema, table, name)
        existing = catalog.find(triggers, *wanted) or catalog.find_left_over(triggers, *wanted)
        if existing is None:
            options = TriggerOptions(table, "-", table_schema=table_schema, name=name)
            facts = await _text(connection, catalog.facts_query(options))
            catalog.read_table(options, facts)  # that the table is missing is the better answer
            others = ", ".join(f"{t.name} on {t.table_text}" for t in triggers if t.table)
            raise TriggerError(
                f"{table_text(table_schema, table)} has no broadcast trigger {name}",
                hint=f"There is {others}." if others else "There is none at all.",
            )
        for statement in catalog.drop_statements(existing):
            await connection.execute(statement.encode())
        return await _triggers_of(connection, table_schema, table)


async def list_triggers(database_url: str) -> list[BroadcastTrigger]:
    """All broadcast triggers of the database, by table; functions without a table come last."""
    async with connect(database_url) as connection:
        return await _list(connection)


async def print_sql(database_url: str, options: TriggerOptions, *, replace: bool = False) -> str:
    """The SQL that `add` would run, for a migration tool; changes nothing and needs no right.

    Without a database, `trigger_template.render(options)` gives SQL that is right for any table,
    with no name in it checked.

    Raises:
        TriggerError: it cannot be made as asked.
    """
    async with connect(database_url) as connection:
        facts = await _text(connection, catalog.facts_query(options))
        table = catalog.read_table(options, facts)
    script = template.render(options, table)
    if not replace:
        return script
    names = [options.trigger(event) for event in EVENTS]
    drop = template.drop_statements(
        options.table_schema, options.table, names, options.schema, options.function
    )
    return "".join(f"{statement};\n" for statement in drop) + "\n" + script


@asynccontextmanager
async def _transaction(
    database_url: str, table: str, lock_timeout_seconds: float
) -> AsyncIterator[Connection]:
    """A transaction whose errors from Postgres are ours."""
    async with connect(database_url, autocommit=False) as connection:
        try:
            await connection.execute(
                "select set_config('lock_timeout', %s, true)",
                [f"{round(lock_timeout_seconds * 1000)}ms"],
            )
            yield connection
            await connection.commit()
        except postgres.LockNotAvailable as error:
            raise Busy(
                f"the table {table} was in use for {lock_timeout_seconds:g} s",
                hint="Nothing was changed. Try again when no long transaction writes to it.",
            ) from error
        except postgres.InsufficientPrivilege as error:
            raise MissingRight(
                f"not allowed: {error.diag.message_primary}",
                hint="Run it as the owner of the table and of the trigger function.",
            ) from error
        except postgres.DependentObjectsStillExist as error:
            raise TriggerError(
                f"{error.diag.message_primary}", hint=error.diag.message_detail
            ) from error
        except psycopg.Error as error:
            raise TriggerError(
                f"Postgres refuses the trigger: {error.diag.message_primary or error}",
                hint=error.diag.message_hint or error.diag.message_detail,
            ) from error


async def _check_condition(connection: Connection, options: TriggerOptions) -> None:
    """A function's body is only looked at when it runs, and that is the users' write."""
    query = template.condition_check(options)
    if query is None:
        return
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute("set local search_path = pg_catalog, pg_temp")
            # Prepared, which takes one statement and no more.
            await connection.execute(query.encode(), prepare=True)
    except psycopg.Error as error:
        raise TriggerError(
            f"the condition cannot be used: {error.diag.message_primary or error}",
            hint="It is SQL over new and old, such as: new.done is distinct from old.done. "
            "Functions and types that are not Postgres's own need their schema.",
        ) from error


async def _list(connection: Connection) -> list[BroadcastTrigger]:
    return catalog.read_list(await _text(connection, catalog.list_query()))


async def _triggers_of(connection: Connection, schema: str, table: str) -> list[BroadcastTrigger]:
    return [t for t in await _list(connection) if (t.table_schema, t.table) == (schema, table)]


async def _text(connection: Connection, query: str) -> str:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return str(row[0])
