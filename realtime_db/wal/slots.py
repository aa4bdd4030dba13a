"""The replication slots that realtime-db leaves in a database: looks at them, and drops them.

Above are the server, `doctor`, `uninstall`, `maintain` and the command line. Below: the catalogs,
over an ordinary connection. Ours are known by their names, which all begin alike; a slot of any
other name is somebody else's, and is never touched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from realtime_db.database import Connection, connect
from realtime_db.errors import MissingRight, SlotError

PREFIX: Final = "realtime_db_"
_NAME: Final = re.compile(rf"{PREFIX}[a-z0-9_]{{1,51}}")

# By way of JSON, for `failover` came with Postgres 17.
_SLOTS: Final = """
    select s.slot_name::text, s.active_pid, coalesce(s.wal_status, ''),
        (here.lsn - s.restart_lsn)::bigint, (here.lsn - s.confirmed_flush_lsn)::bigint,
        s.safe_wal_size, coalesce((to_jsonb(s) ->> 'failover')::boolean, false)
    from pg_replication_slots as s
    cross join lateral (
        select case
            when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn()
        end as lsn
    ) as here
    where s.database = current_database() and s.plugin = 'pgoutput'
        and starts_with(s.slot_name, %s)
    order by s.slot_name
"""


@dataclass(frozen=True, slots=True)
class SlotState:
    """How a slot stands.

    Attributes:
        name: of the slot.
        active_pid: of the walsender that reads it; None if nobody does.
        wal_status: `reserved`, `extended`, `unreserved` or `lost`, as Postgres says it.
        retained_bytes: of WAL that the database keeps for it; None if it is lost.
        unread_bytes: of WAL that it has not been read up to; None if it is lost.
        safe_wal_size: how many bytes may still be written before it can get lost; None if
            `max_slot_wal_keep_size` is no limit.
        failover: whether standbys take it over.
    """

    name: str
    active_pid: int | None
    wal_status: str
    retained_bytes: int | None
    unread_bytes: int | None
    safe_wal_size: int | None
    failover: bool

    @property
    def active(self) -> bool:
        """Whether somebody reads it."""
        return self.active_pid is not None


def check_name(name: str) -> None:
    """Refuses the name of a slot that would not be known as ours.

    Raises:
        SlotError: it does not begin with `PREFIX`, or Postgres would not take it.
    """
    if not _NAME.fullmatch(name):
        raise SlotError(
            f"{name!r} is no name for a slot of realtime-db",
            hint=f"It begins with {PREFIX}, so that doctor, maintain and uninstall know it; then "
            "up to 51 small letters, digits and underscores.",
        )


async def default_name(connection: Connection) -> str:
    """The name of the slot of a database's server, unless it was given another."""
    cursor = await connection.execute(
        "select oid::text from pg_database where datname = current_database()"
    )
    row = await cursor.fetchone()
    assert row is not None, "the database that we are in"
    return f"{PREFIX}{row[0]}"


async def look(connection: Connection) -> list[SlotState]:
    """The slots of ours in the connection's database."""
    cursor = await connection.execute(_SLOTS, [PREFIX])
    return [SlotState(*row) for row in await cursor.fetchall()]


async def drop(connection: Connection, name: str) -> None:
    """Drops a slot that nobody reads.

    Raises:
        SlotError: there is none, or somebody reads it.
        MissingRight: the role must not replicate.
    """
    try:
        await connection.execute("select pg_drop_replication_slot(%s)", [name])
    except psycopg.errors.UndefinedObject as error:
        raise SlotError(
            f"there is no replication slot {name}", hint="See: realtime-db slot status"
        ) from error
    except psycopg.errors.ObjectInUse as error:
        raise SlotError(
            f"replication slot {name} is being read", hint="First stop the server that reads it."
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        statement = sql.SQL("select pg_drop_replication_slot({});").format(name).as_string()
        raise MissingRight(
            f"this role may not drop replication slot {name}: it lacks REPLICATION",
            hint=f"As a role that has it: {statement}",
        ) from error


async def status(database_url: str) -> tuple[list[SlotState], str]:
    """The slots of ours in a database, and its `max_slot_wal_keep_size`."""
    async with connect(database_url) as connection:
        cursor = await connection.execute("select current_setting('max_slot_wal_keep_size')")
        row = await cursor.fetchone()
        assert row is not None, "a setting of all versions"
        return await look(connection), row[0]


def status_as_text(found: list[SlotState], limit: str) -> str:
    """For people; with what to tell an administrator, if nothing keeps the disk from filling."""
    lines = []
    for one in found:
        safe = (
            "" if one.safe_wal_size is None else f", lost after {as_text(one.safe_wal_size)} more"
        )
        lines.append(
            f"{one.name}  {'read' if one.active else 'idle'}, {one.wal_status}, "
            f"{as_text(one.retained_bytes)} held back{safe}{', failover' if one.failover else ''}"
        )
    if not lines:
        return "no server has left a slot in this database"
    if limit == "-1":
        lines += [
            "warning: max_slot_wal_keep_size is -1, so a slot that nobody reads can fill the disk",
            "  As an administrator: alter system set max_slot_wal_keep_size = '10GB';"
            " select pg_reload_conf();",
        ]
    return "\n".join(lines)


async def choose(database_url: str, name: str | None) -> str:
    """The slot of ours that is meant.

    Args:
        database_url: of its database.
        name: its name; None for the only one.

    Raises:
        SlotError: there is no such, or several.
    """
    async with connect(database_url) as connection:
        names = [one.name for one in await look(connection)]
    if name is None and len(names) == 1:
        return names[0]
    if name is None and names:
        raise SlotError(f"there are several: {', '.join(names)}", hint="Say which: --slot NAME")
    if name in names and name is not None:
        return name
    what = "no slot of a server" if name is None else f"no slot {name} of a server"
    raise SlotError(f"this database has {what}", hint="See: realtime-db slot status")


async def drop_from(database_url: str, name: str) -> None:
    """Drops a slot of a database; raises as `drop` does."""
    async with connect(database_url) as connection:
        await drop(connection, name)


def as_text(bytes_: int | None) -> str:
    """A number of bytes, for people."""
    if bytes_ is None:
        return "none"
    if bytes_ < 10 << 20:
        return f"{bytes_ / 1024:.0f} kB"
    return f"{bytes_ / 1024**2:.0f} MB" if bytes_ < 10 << 30 else f"{bytes_ / 1024**3:.0f} GB"
