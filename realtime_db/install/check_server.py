"""What `doctor` looks at in the server and in the login, whether or not anything is installed.

Above: `doctor`. Below: `checks`. A function looks at one thing, and answers with the statement that
mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from realtime_db.database import Connection
from realtime_db.install.checks import (
    Check,
    Finding,
    Outcome,
    as_administrator,
    rows,
)
from realtime_db.install.inspect import Installation, State
from realtime_db.install.preflight import (
    LOGICAL_DECODING,
    LOGICAL_DECODING_ELSEWHERE,
    WITHOUT_WAL,
)
from realtime_db.wal import slots as wal_slots

_THEN_RESTART: Final = ", who then restarts Postgres"
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
    mend = as_administrator(LOGICAL_DECODING, _THEN_RESTART) + f"\n-- {LOGICAL_DECODING_ELSEWHERE}"
    return [Check("wal_level", Outcome.WARN, f"{level}, not logical: {WITHOUT_WAL}", mend)]


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
            as_administrator(f"alter system set {name} = {limit + 10};", _THEN_RESTART),
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
        else Check(
            "right to replicate",
            Outcome.WARN,
            f"{role} lacks it: {WITHOUT_WAL}",
            as_administrator(grant),
        ),
        Check("right to create", Outcome.PASS, f"{role} has it")
        if create
        else Check(
            "right to create",
            Outcome.WARN,
            f"{role} lacks it in database {database}, and cannot install or upgrade",
            f"-- As the owner of the database:\ngrant create on database {database} to {role};",
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
            "-- As the owner of the database:\n"
            f"alter database {database} set synchronous_commit = 'on';",
        )
        if synchronous == "off"
        else Check("synchronous_commit", Outcome.PASS, synchronous),
        Check(
            "max_slot_wal_keep_size",
            Outcome.WARN,
            "-1: a slot that nobody reads fills the disk",
            as_administrator(
                "alter system set max_slot_wal_keep_size = '10GB';\nselect pg_reload_conf();"
            ),
        )
        if keep == "-1"
        else Check("max_slot_wal_keep_size", Outcome.PASS, keep),
    ]


async def slots(connection: Connection) -> list[Check]:
    """Slots of ours that nobody reads, that hold back much, or that are lost."""
    found = []
    for slot in await wal_slots.look(connection):
        name, held = f"slot {slot.name}", wal_slots.as_text(slot.retained_bytes)
        drop = f"realtime-db slot drop --slot {slot.name}"
        detail = f"{'read' if slot.active else 'idle'}, {held} of WAL held back"
        if slot.wal_status == "lost":
            text = "lost: WAL was removed that it needed; a server that starts makes it anew"
            found.append(Check(name, Outcome.FAIL, text, drop))
        elif not slot.active and (slot.retained_bytes or 0) > _LAG_BYTES:
            text = f"nobody reads it, and it holds back {held} of WAL"
            found.append(Check(name, Outcome.WARN, text, f"Start its server again, or: {drop}"))
        elif slot.wal_status != "reserved":
            safe = wal_slots.as_text(slot.safe_wal_size)
            limit = "" if slot.safe_wal_size is None else f"; it is lost after {safe} more"
            mend = "select pid, state, xact_start, query from pg_stat_activity order by xact_start;"
            found.append(Check(name, Outcome.WARN, f"{detail}, {slot.wal_status}{limit}", mend))
        else:
            found.append(Check(name, Outcome.PASS, detail))
    return found


SERVER: Final[Mapping[str, Callable[[Connection], Finding]]] = {
    "server": primary,
    "wal_level": wal_level,
    "max_replication_slots": free_slots,
    "right to replicate": rights,
    "synchronous_commit": server_settings,
    "slots": slots,
}
"""What can be looked at before anything is installed, by the name of the first check."""

NEEDED_BY_PROBE: Final = frozenset(
    {
        "server",
        "wal_level",
        "max_replication_slots",
        "max_wal_senders",
        "right to replicate",
        "owner",
        "publication",
    }
)
"""Unless these pass, the probe could only say again what they say better."""
