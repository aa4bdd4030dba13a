"""What `doctor` looks at in the server and in the login, whether or not anything is installed.

Above: `doctor`. Below: `checks`. A function looks at one thing, and answers with the statement that
mends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from realtime_db.database import Connection
from realtime_db.install.checks import Check, Finding, Outcome, literal, rows
from realtime_db.install.inspect import Installation, State
from realtime_db.install.preflight import LOGICAL_DECODING_HINT

_LAG_BYTES = 256 * 1024 * 1024


def installed(found: Installation) -> Check:
    """The release, from what `inspect` saw."""
    outcome = {
        State.CURRENT: Outcome.PASS,
        State.BEHIND: Outcome.WARN,
        State.NEWER: Outcome.WARN,
    }.get(found.state, Outcome.FAIL)
    return Check("installation", outcome, found.detail, found.hint)


async def primary(connection: Connection) -> list[Check]:
    """A standby cannot be written to."""
    [(standby,)] = await rows(connection, "select pg_is_in_recovery()")
    version = connection.info.parameter_status("server_version") or "unknown"
    if standby:
        return [Check("server", Outcome.FAIL, "this is a standby", "Give the primary's URL.")]
    return [Check("server", Outcome.PASS, f"PostgreSQL {version}, a primary")]


async def wal_level(connection: Connection) -> list[Check]:
    """Logical decoding. Postgres 19 turns it on with the first logical slot."""
    [(level, effective)] = await rows(
        connection,
        "select current_setting('wal_level'), current_setting('effective_wal_level', true)",
    )
    if level == "logical":
        return [Check("wal_level", Outcome.PASS, level)]
    if effective is not None and level == "replica":
        return [Check("wal_level", Outcome.PASS, f"{level}, raised by the first logical slot")]
    return [Check("wal_level", Outcome.FAIL, f"{level}, not logical", LOGICAL_DECODING_HINT)]


async def free_slots(connection: Connection) -> list[Check]:
    """A reader takes one slot and one walsender."""
    answer = await rows(
        connection,
        """
        select 'max_replication_slots', current_setting('max_replication_slots')::integer,
            (select count(*) from pg_replication_slots)
        union all
        select 'max_wal_senders', current_setting('max_wal_senders')::integer,
            (select count(*) from pg_stat_replication)
        """,
    )
    return [
        Check(name, Outcome.PASS, f"{used} of {limit} in use")
        if used < limit
        else Check(
            name,
            Outcome.FAIL,
            f"all {limit} are in use",
            f"alter system set {name} = {limit + 10}; -- then restart Postgres",
        )
        for name, limit, used in answer
    ]


async def rights(connection: Connection) -> list[Check]:
    """What this login needs to read the WAL, and to upgrade."""
    [(role, database, replicates, rds, create)] = await rows(
        connection,
        """
        select quote_ident(me.rolname), quote_ident(current_database()),
            me.rolreplication or me.rolsuper
            or coalesce(pg_has_role(me.oid, rds.oid, 'member'), false),
            rds.oid is not null, has_database_privilege(current_database(), 'create')
        from pg_roles as me
        left join pg_roles as rds on rds.rolname = 'rds_replication'
        where me.rolname = current_user
        """,
    )
    grant = f"grant rds_replication to {role};" if rds else f"alter role {role} replication;"
    return [
        Check("right to replicate", Outcome.PASS, f"{role} has it")
        if replicates
        else Check("right to replicate", Outcome.FAIL, f"{role} lacks it", grant),
        Check("right to create", Outcome.PASS, f"{role} has it")
        if create
        else Check(
            "right to create",
            Outcome.WARN,
            f"{role} lacks it in database {database}, and cannot install or upgrade",
            f"grant create on database {database} to {role};",
        ),
    ]


async def server_settings(connection: Connection) -> list[Check]:
    """Settings that work, but not well."""
    [(synchronous, keep, database)] = await rows(
        connection,
        """
        select current_setting('synchronous_commit'), current_setting('max_slot_wal_keep_size'),
            quote_ident(current_database())
        """,
    )
    return [
        Check(
            "synchronous_commit",
            Outcome.WARN,
            "off: a message is read when the walwriter has been round, some 200 ms later",
            f"alter database {database} set synchronous_commit = 'on';",
        )
        if synchronous == "off"
        else Check("synchronous_commit", Outcome.PASS, synchronous),
        Check(
            "max_slot_wal_keep_size",
            Outcome.WARN,
            "-1: a slot that nobody reads fills the disk",
            "alter system set max_slot_wal_keep_size = '10GB'; select pg_reload_conf();",
        )
        if keep == "-1"
        else Check("max_slot_wal_keep_size", Outcome.PASS, keep),
    ]


async def slots(connection: Connection) -> list[Check]:
    """Slots of ours that nobody reads, or that are lost."""
    answer = await rows(
        connection,
        """
        select slot_name, coalesce(wal_status, ''), coalesce(
            pg_wal_lsn_diff(
                case
                    when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                    else pg_current_wal_lsn()
                end,
                restart_lsn
            ), 0
        )::bigint, active
        from pg_replication_slots
        where database = current_database() and slot_name like 'realtime\\_%'
        """,
    )
    found = []
    for name, status, lag, active in answer:
        drop = f"select pg_drop_replication_slot({literal(name)});"
        if status == "lost":
            found.append(Check(f"slot {name}", Outcome.FAIL, "lost: WAL was removed", drop))
        elif not active and lag > _LAG_BYTES:
            found.append(
                Check(
                    f"slot {name}",
                    Outcome.WARN,
                    f"nobody reads it, and it holds back {lag // 2**20} MB of WAL",
                    f"Start its reader again, or: {drop}",
                )
            )
        else:
            detail = f"{'read' if active else 'idle'}, {lag // 2**10} kB behind"
            found.append(Check(f"slot {name}", Outcome.PASS, detail))
    return found


SERVER: Final[tuple[Callable[[Connection], Finding], ...]] = (
    primary,
    wal_level,
    free_slots,
    rights,
    server_settings,
    slots,
)
"""What can be looked at before anything is installed."""

NEEDED_BY_PROBE: Final = frozenset(
    {
        "server",
        "wal_level",
        "max_replication_slots",
        "max_wal_senders",
        "right to replicate",
        "publication",
    }
)
"""Without these, the probe could only say again what they say better."""
