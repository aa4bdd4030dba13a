"""Opens a connection to a walsender, and finds or makes its replication slot.

`stream` calls this before it reads. What can go wrong here is mostly somebody's configuration, so
each refusal is turned into an error that says which statement mends it.
"""

from __future__ import annotations

import os
import secrets
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from realtime_db.cursors import cluster_id
from realtime_db.database import (
    Connection,
    check_version,
    connection_failed,
    conninfo,
    first_line,
)
from realtime_db.database import connect as connect_ordinary
from realtime_db.errors import (
    ConnectionFailed,
    ForeignSchema,
    MissingRight,
    NotInstalled,
    RealtimeDbError,
    SlotError,
    WalLevelTooLow,
)
from realtime_db.wal.lsn import parse

# The peer's death shows within a minute even if its machine vanished without a word. The kernel
# asks, so that a server that is busy decoding a large transaction does not look dead.
_KEEPALIVES: Final = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

# pgoutput prints values as the session is set, and a role or database may be set otherwise.
# Slot creation waits for running transactions, and the snapshot that it exports is one of its own,
# so no timeout of the server may apply.
_SESSION_SETTINGS: Final = sql.SQL(
    "set datestyle = 'ISO'; set bytea_output = 'hex'; set statement_timeout = 0;"
    " set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;"
    " set idle_session_timeout = 0"
)

_DIRECT_CONNECTION: Final = (
    "Replication needs a direct connection: not through PgBouncer or another pooler."
)


class Slot(NamedTuple):
    """A replication slot.

    Attributes:
        name: as in `pg_replication_slots`.
        start_lsn: every transaction that commits after it is sent.
        snapshot: sees what committed before it; None if the slot existed already.
    """

    name: str
    start_lsn: int
    snapshot: str | None


async def connect(database_url: str) -> Connection:
    """Opens a connection to a walsender that also answers SQL."""
    given = conninfo_to_dict(conninfo(database_url))
    defaults = {name: value for name, value in _KEEPALIVES.items() if name not in given}
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo(database_url, **defaults, replication="database", client_encoding="UTF8"),
            autocommit=True,
        )
    except psycopg.Error as error:
        raise await _why_refused(database_url, error) from error
    try:
        check_version(connection.info.server_version)
        await connection.execute(_SESSION_SETTINGS)
    except psycopg.Error as error:
        await connection.close()
        raise ConnectionFailed(first_line(error), hint=_DIRECT_CONNECTION) from error
    except BaseException:
        await connection.close()
        raise
    return connection


async def _why_refused(database_url: str, refusal: psycopg.Error) -> RealtimeDbError:
    """Finds out why a replication connection was refused, through an ordinary one."""
    message = first_line(refusal)
    try:
        async with connect_ordinary(database_url) as connection:
            grant = await _missing_grant(connection)
    except ConnectionFailed as failed:
        return failed
    except psycopg.Error:
        return connection_failed(database_url, refusal)
    if grant is not None:
        return grant
    if "max_wal_senders" in message:
        return ConnectionFailed(
            f"no replication connection is free: {message}",
            hint="Raise it: alter system set max_wal_senders = 20; then restart Postgres.",
        )
    return ConnectionFailed(
        f"the database refused a replication connection: {message}", hint=_DIRECT_CONNECTION
    )


async def _missing_grant(connection: Connection) -> MissingRight | None:
    """Names the statement that lets the connection's role replicate; None if it may already."""
    # RDS keeps the attribute to itself and hands out a role instead.
    cursor = await connection.execute(
        """
        select quote_ident(current_user), me.rolreplication or me.rolsuper, rds.oid is not null,
               rds.oid is not null and pg_has_role(me.oid, rds.oid, 'member')
        from pg_roles as me
        left join pg_roles as rds on rds.rolname = 'rds_replication'
        where me.rolname = current_user
        """
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    role, may, has_rds, is_rds_member = row
    if may or is_rds_member:
        return None
    grant = f"grant rds_replication to {role};" if has_rds else f"alter role {role} replication;"
    return MissingRight(
        f"role {role} may not read the WAL: it lacks REPLICATION",
        hint=f"As an administrator: {grant}",
    )


async def check_publication(connection: Connection, publication: str) -> None:
    """Makes sure that the publication exists: without it, streaming fails at the first change."""
    # Literals are spliced in, because a walsender does not speak the extended query protocol.
    cursor = await connection.execute(
        sql.SQL(
            "select (select count(*) from pg_catalog.pg_publication where pubname = {}),"
            # The catalogs, because a cast to regclass needs rights on the schema.
            " count(*) filter (where c.relname = 'messages' and exists ("
            "  select from pg_catalog.pg_attribute as a"
            "  where a.attrelid = c.oid and a.attname = 'transaction_id')),"
            " count(*) filter (where c.relname = 'realtime_db_release'),"
            " count(*), pg_catalog.current_database()"
            " from pg_catalog.pg_class as c"
            " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
            " where n.nspname = 'realtime'"
        ).format(publication)
    )
    row = await cursor.fetchone()
    assert row is not None, "an aggregate has a row"
    *counts, database = row
    publications, messages, releases, relations = map(int, counts)
    if publications:
        return
    if messages:
        raise NotInstalled(
            f"database {database} has no publication {publication}",
            hint="Run, as the owner: select realtime.setup();",
        )
    if relations and not releases:
        raise ForeignSchema(
            f"the schema realtime of database {database} is not of realtime-db",
            hint="Use another database. `realtime-db status` says more.",
        )
    raise NotInstalled(
        f"realtime-db is not installed in database {database}", hint="Run: realtime-db migrate"
    )


async def identify(connection: Connection) -> int:
    """Which cluster this is; see `cursors.cluster_id`."""
    row = await (await connection.execute("IDENTIFY_SYSTEM")).fetchone()
    assert row is not None, "a walsender knows where it is"
    system_identifier, timeline = int(row[0]), int(row[1])
    return cluster_id(system_identifier, f"{timeline:08X}")


async def free_slot(connection: Connection, name: str) -> None:
    """Ends whatever else reads a slot, which may be a connection whose client is long gone.

    Raises:
        SlotError: it is somebody else's.
    """
    statement = sql.SQL(
        "select pg_catalog.pg_terminate_backend(active_pid, 2000)"
        " from pg_catalog.pg_replication_slots where slot_name = {} and active_pid is not null"
    ).format(name)
    try:
        await connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SlotError(
            f"replication slot {name} is in use by another role: {first_line(error)}",
            hint="Stop what reads it, or give the server a slot of another name.",
        ) from error


async def _drop_slot(connection: Connection, name: str) -> None:
    await free_slot(connection, name)
    try:
        await connection.execute(
            sql.SQL(
                "select pg_catalog.pg_drop_replication_slot(slot_name)"
                " from pg_catalog.pg_replication_slots where slot_name = {}"
            ).format(name)
        )
    except psycopg.errors.ObjectInUse as error:
        raise SlotError(f"replication slot {name} cannot be replaced yet: it is in use") from error


async def _look_at_slot(connection: Connection, name: str) -> tuple[str | None, str, bool] | None:
    cursor = await connection.execute(
        sql.SQL(
            "select confirmed_flush_lsn::text, wal_status, active"
            " from pg_catalog.pg_replication_slots where slot_name = {}"
        ).format(name)
    )
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1], row[2])


async def find_or_make_slot(
    connection: Connection,
    name: str | None,
    *,
    failover: bool,
    replace: bool = False,
    replace_lost: bool = False,
    take_over: bool = False,
) -> Slot:
    """Finds the slot, or makes it; drops it first if it is to be replaced.

    Only if nobody else uses it, it is known where the slot begins: with `take_over` nobody does.
    """
    if name is not None and replace:
        await _drop_slot(connection, name)
    elif name is not None:
        found = await _look_at_slot(connection, name)
        while found is not None and found[2] and take_over:
            await free_slot(connection, name)
            found = await _look_at_slot(connection, name)
        if found is not None:
            confirmed, wal_status, _active = found
            if wal_status != "lost":
                return Slot(name, parse(confirmed or "0/0"), None)
            if not replace_lost:
                raise SlotError(
                    f"replication slot {name} is lost: the server removed WAL that it needed",
                    hint=f"select pg_drop_replication_slot('{name}'); and start again. What was"
                    " missed is in realtime.messages. See max_slot_wal_keep_size.",
                )
            await _drop_slot(connection, name)
    # The form without parentheses is understood by all versions, but only the other knows failover.
    failover = failover and name is not None and connection.info.server_version >= 170000
    options = "(SNAPSHOT 'export', FAILOVER true)" if failover else "EXPORT_SNAPSHOT"
    made = name or f"realtime_tail_{os.getpid()}_{secrets.token_hex(4)}"
    try:
        cursor = await connection.execute(
            sql.SQL("CREATE_REPLICATION_SLOT {} {} LOGICAL pgoutput {}").format(
                sql.Identifier(made), sql.SQL("" if name else "TEMPORARY"), sql.SQL(options)
            )
        )
        row = await cursor.fetchone()
    except psycopg.Error as error:
        raise await _why_no_slot(connection, made, error) from error
    if row is None:
        raise SlotError(f"the server made no replication slot {made}")
    _name, consistent_point, snapshot, _plugin = row
    return Slot(made, parse(consistent_point), snapshot)


async def _why_no_slot(connection: Connection, slot: str, error: psycopg.Error) -> RealtimeDbError:
    message = first_line(error)
    if connection.closed:
        return connection_lost(message)
    if error.sqlstate == "55000":
        cursor = await connection.execute("show wal_level")
        row = await cursor.fetchone()
        # Only after the refusal: Postgres 19 says `replica` and decodes all the same.
        if row is not None and row[0] != "logical":
            return WalLevelTooLow(
                f"logical decoding is off: wal_level is {row[0]}",
                hint="alter system set wal_level = 'logical'; then restart Postgres."
                " (RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on.)",
            )
    if error.sqlstate == "42501":
        grant = await _missing_grant(connection)
        return grant or MissingRight(
            f"replication slot {slot} cannot be made: {message}",
            hint="The role needs REPLICATION.",
        )
    hint = None
    if error.sqlstate == "53400" or "max_replication_slots" in message:
        hint = "Raise it: alter system set max_replication_slots = 20; then restart Postgres."
    return SlotError(f"replication slot {slot} cannot be made: {message}", hint=hint)


def connection_lost(message: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"the connection to the database ended: {' '.join(message.split())}",
        hint="Is the server still running? Its log says why it closed the connection.",
    )
