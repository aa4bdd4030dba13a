"""What must hold before `migrate` or `rollback` changes anything; each refusal says what to type.

Above: `migrate`. Below: the catalogs, and `inspect` for what is installed.
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from realtime_db.database import Connection
from realtime_db.errors import (
    ForeignSchema,
    InstallError,
    ManagedByExtension,
    MissingRight,
    NewerThanProgram,
)
from realtime_db.install.inspect import Installation, Manager, State

WITHOUT_WAL: Final = "`serve` polls the table instead of reading the WAL, and `tail` cannot follow"
LOGICAL_DECODING: Final = "alter system set wal_level = 'logical';"
LOGICAL_DECODING_ELSEWHERE: Final = (
    "On RDS and Aurora: rds.logical_replication = 1 in the parameter group. On Cloud SQL: the flag "
    "cloudsql.logical_decoding."
)

# Postgres 19 has effective_wal_level, and raises it by itself with the first logical slot.
_FACTS: Final = """
    select
        pg_is_in_recovery(),
        current_setting('transaction_read_only')::boolean,
        current_setting('wal_level'),
        current_setting('effective_wal_level', true) is not null,
        quote_ident(current_user),
        quote_ident(current_database()),
        has_database_privilege(current_database(), 'create'),
        exists (select from pg_publication where pubname = 'realtime_messages'),
        coalesce((
            select has_schema_privilege(oid, 'create, usage') from pg_namespace
            where nspname = 'realtime'
        ), true),
        coalesce((
            select pg_has_role(oid, 'usage') from pg_roles where rolname = %(messages_owner)s
        ), true),
        coalesce((select rolsuper from pg_roles where rolname = %(messages_owner)s), false)
"""


async def check(connection: Connection, found: Installation) -> list[str]:
    """Refuses what would do harm or cannot work.

    Args:
        connection: to the database, as the role that will do the work.
        found: what is installed there.

    Returns:
        Warnings: what will not work later, though installing does.

    Raises:
        ForeignSchema, ManagedByExtension, NewerThanProgram: it is not ours to change.
        MissingRight: the hint is the grant.
        InstallError: a standby, or a half-finished installation.
    """
    refuse_state(found)
    cursor = await connection.execute(_FACTS, {"messages_owner": found.messages_owner})
    row = await cursor.fetchone()
    assert row is not None, "a select without from has a row"
    standby, read_only, wal_level, wal_level_rises, role, database, *rights = row
    may_create, published, may_use_schema, is_owner, superuser_owns = rights
    if standby:
        raise InstallError(
            "this server is a standby, which cannot be written to",
            hint="Give the URL of the primary.",
        )
    if read_only:
        raise InstallError(
            f"transactions of {role} are read-only here",
            hint=f"alter role {role} set default_transaction_read_only = off;",
        )
    if not is_owner:
        owner = _identifier(found.messages_owner)
        raise MissingRight(
            f"realtime-db in this database is owned by {owner}, and {role} is not a member of it",
            hint=f"Connect as {owner}."
            if superuser_owns
            else f"Connect as {owner}, or as an administrator: grant {owner} to {role};",
        )
    if not may_create and not (published and found.schema_owner):
        raise MissingRight(
            f"{role} may not create a schema and a publication in database {database}",
            hint=f"As the database's owner: grant create on database {database} to {role};",
        )
    if not may_use_schema:
        owner = _identifier(found.schema_owner)
        raise MissingRight(
            f"{role} may not create objects in schema realtime, which is {owner}'s",
            hint=f"As {owner}: grant usage, create on schema realtime to {role};",
        )
    warnings = []
    if wal_level != "logical" and not wal_level_rises:
        warnings.append(
            f"wal_level is {wal_level}: {WITHOUT_WAL}. As an administrator: {LOGICAL_DECODING} "
            f"then restart Postgres. {LOGICAL_DECODING_ELSEWHERE}"
        )
    return warnings


def refuse_to_roll_back_extension(found: Installation) -> None:
    """Says how an extension goes back.

    Raises:
        ManagedByExtension: always.
    """
    raise ManagedByExtension(
        "this database got realtime-db by `create extension`, which also goes back",
        hint="alter extension realtime_db update to '…'; select realtime.setup();",
    )


def refuse_state(found: Installation) -> None:
    """Refuses to touch what is not ours, or not whole."""
    if found.managed_by is Manager.EXTENSION:
        raise ManagedByExtension(
            "this database got realtime-db by `create extension`, which also upgrades it",
            hint="alter extension realtime_db update; select realtime.setup();",
        )
    refusals: dict[State, type[InstallError]] = {
        State.FOREIGN: ForeignSchema,
        State.NEWER: NewerThanProgram,
        State.INCOMPLETE: InstallError,
    }
    if refusal := refusals.get(found.state):
        raise refusal(found.detail, hint=found.hint)


def _identifier(name: str | None) -> str:
    return sql.Identifier(name or "").as_string()
