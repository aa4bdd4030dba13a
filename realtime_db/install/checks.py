"""What `doctor` looks at, one function for one thing; each failure has the statement that mends it.

Above: `doctor`, which runs them all. Below: the catalogs, and `releases` for what should be there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from psycopg import sql

from realtime_db.database import Connection
from realtime_db.install import releases
from realtime_db.install.inspect import Installation, Manager, State
from realtime_db.install.preflight import LOGICAL_DECODING_HINT

ROLES: Final = ("anon", "authenticated", "service_role")
SETUP: Final = "select realtime.setup();"

_FEW_DAYS = 3
_LAG_BYTES = 256 * 1024 * 1024
_POLICY = re.compile(r'^ *create policy "([^"]+)" on realtime\.messages', re.MULTILINE)


class Outcome(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  (not a password)
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: of the thing that was looked at.
        outcome: a failure keeps messages from being delivered, or delivers them to the wrong ones.
        detail: what was found, in one line.
        mend: the statement that mends it; None if all is well.
    """

    name: str
    outcome: Outcome
    detail: str
    mend: str | None = None


Finding = Awaitable[list[Check]]


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
    [(standby,)] = await _rows(connection, "select pg_is_in_recovery()")
    version = connection.info.parameter_status("server_version") or "unknown"
    if standby:
        return [Check("server", Outcome.FAIL, "this is a standby", "Give the primary's URL.")]
    return [Check("server", Outcome.PASS, f"PostgreSQL {version}, a primary")]


async def wal_level(connection: Connection) -> list[Check]:
    """Logical decoding. Postgres 19 turns it on with the first logical slot."""
    [(level, effective)] = await _rows(
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
    rows = await _rows(
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
        for name, limit, used in rows
    ]


async def rights(connection: Connection) -> list[Check]:
    """What this login needs to read the WAL, and to upgrade."""
    [(role, database, replicates, rds, create)] = await _rows(
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
    [(synchronous, keep, database)] = await _rows(
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
    rows = await _rows(
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
    for name, status, lag, active in rows:
        drop = f"select pg_drop_replication_slot({_literal(name)});"
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


async def owner(connection: Connection, found: Installation) -> list[Check]:
    """One owner for all, or maintenance and upgrades stop half-way."""
    rows = await _rows(
        connection,
        """
        select c.relname, c.relkind, pg_get_userbyid(c.relowner)
        from pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        left join pg_inherits as i on c.oid = i.inhrelid
        where n.nspname = 'realtime' and c.relkind in ('r', 'p')
            and (
                c.relname in ('settings', 'send_errors', 'realtime_db_release')
                or i.inhparent = (
                    select m.oid from pg_class as m
                    where m.relname = 'messages' and m.relnamespace = n.oid
                )
            )
            and pg_get_userbyid(c.relowner) <> %s
        """,
        found.messages_owner,
    )
    if not rows:
        return [Check("owner", Outcome.PASS, f"{found.messages_owner} owns all tables")]
    return [
        Check(
            "owner",
            Outcome.FAIL,
            f"realtime.{name} is owned by {other}, realtime.messages by {found.messages_owner}",
            f"alter table {_name(name)} owner to {_identifier(found.messages_owner)};",
        )
        for name, _kind, other in rows
    ]


async def roles(connection: Connection, found: Installation) -> list[Check]:
    """The roles that tokens name: what they may do, and whether this login may become them."""
    set_role = "set" if connection.info.server_version >= 160000 else "member"
    return [await _role(connection, name, set_role) for name in ROLES]


async def _role(connection: Connection, name: str, set_role: str) -> Check:
    [(exists, me)] = await _rows(
        connection,
        "select exists (select from pg_roles where rolname = %s), quote_ident(current_user)",
        name,
    )
    check, role = f"role {name}", _identifier(name)
    options = " with set true, inherit false" if set_role == "set" else ""
    membership = f"grant {role} to {me}{options};"
    if not exists:
        return Check(
            check,
            Outcome.WARN,
            "missing; no token that names it is accepted",
            f"create role {role} nologin noinherit; {membership} {SETUP}",
        )
    [(usage, table, member)] = await _rows(
        connection,
        """
        select has_schema_privilege(r.oid, n.oid, 'usage'),
            has_table_privilege(r.oid, c.oid, 'select')
            and has_table_privilege(r.oid, c.oid, 'insert')
            and has_table_privilege(r.oid, c.oid, 'update'),
            pg_has_role(current_user, r.oid, %s)
        from pg_roles as r, pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        where r.rolname = %s and n.nspname = 'realtime' and c.relname = 'messages'
        """,
        set_role,
        name,
    )
    mends = []
    if not usage:
        mends.append(f"grant usage on schema realtime to {role};")
    if not table:
        mends.append(f"grant select, insert, update on realtime.messages to {role};")
    if mends:
        return Check(check, Outcome.FAIL, "may not use realtime.messages", " ".join(mends))
    if not member:
        return Check(check, Outcome.WARN, f"{me} may not `set role` to it", membership)
    return Check(check, Outcome.PASS, "has its rights, and this login may become it")


async def row_security(connection: Connection, found: Installation) -> list[Check]:
    """Without it, everybody reads every private topic."""
    rows = await _rows(
        connection,
        """
        select c.relname
        from pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        where n.nspname = 'realtime' and c.relkind in ('r', 'p') and not c.relrowsecurity
            and (
                c.relname = 'messages'
                or exists (
                    select from pg_inherits as i inner join pg_class as m on i.inhparent = m.oid
                    where i.inhrelid = c.oid and m.relname = 'messages'
                        and m.relnamespace = n.oid
                )
            )
        """,
    )
    if not rows:
        return [Check("row level security", Outcome.PASS, "on, also on each partition")]
    return [
        Check(
            "row level security",
            Outcome.FAIL,
            f"off for realtime.{name}",
            f"alter table {_name(name)} enable row level security;",
        )
        for (name,) in rows
    ]


async def policies(connection: Connection, found: Installation) -> list[Check]:
    """Ours are there; how many are the user's."""
    wanted = set(_POLICY.findall(releases.install_script(_release(found))))
    present = {
        name
        for (name,) in await _rows(
            connection,
            """
            select polname from pg_policy as p inner join pg_class as c on p.polrelid = c.oid
            inner join pg_namespace as n on c.relnamespace = n.oid
            where n.nspname = 'realtime' and c.relname = 'messages'
            """,
        )
    }
    missing = sorted(wanted - present)
    if missing and await _rows(
        connection, "select from pg_roles where rolname = %s", "service_role"
    ):
        return [Check("policies", Outcome.FAIL, f"{missing[0]!r} is missing", SETUP)]
    theirs = len(present - wanted)
    return [Check("policies", Outcome.PASS, f"{theirs or 'none'} of yours on realtime.messages")]


async def publication(connection: Connection, found: Installation) -> list[Check]:
    """What the reader follows."""
    rows = await _rows(
        connection,
        """
        select
            p.pubinsert and not p.pubupdate and not p.pubdelete and not p.pubtruncate
            and p.pubviaroot,
            not p.puballtables and coalesce(
                (
                    select array_agg(pr.prrelid::regclass::text) from pg_publication_rel as pr
                    where pr.prpubid = p.oid
                ) = array['realtime.messages'], false
            ),
            -- Postgres 14 has neither row filters nor column lists.
            not exists (
                select from pg_publication_rel as pr
                where pr.prpubid = p.oid and (
                    to_jsonb(pr) ->> 'prqual' is not null or to_jsonb(pr) ->> 'prattrs' is not null
                )
            )
        from pg_publication as p where p.pubname = 'realtime_messages'
        """,
    )
    name = "publication"
    if not rows:
        return [Check(name, Outcome.FAIL, "realtime_messages is missing", SETUP)]
    [(right_options, right_table, whole)] = rows
    if not right_options:
        mend = (
            "alter publication realtime_messages "
            "set (publish = 'insert', publish_via_partition_root = true);"
        )
        return [Check(name, Outcome.FAIL, "realtime_messages has other options", mend)]
    if not right_table or not whole:
        what = "a row filter or a column list" if right_table else "other tables"
        mend = "alter publication realtime_messages set table realtime.messages;"
        return [Check(name, Outcome.FAIL, f"realtime_messages has {what}", mend)]
    return [Check(name, Outcome.PASS, "realtime_messages: inserts into realtime.messages")]


async def partitions(connection: Connection, found: Installation) -> list[Check]:
    """Today's and tomorrow's are there, and nothing that is not a day."""
    days = await _rows(
        connection,
        """
        with days as (
            select (now() at time zone 'utc')::date + n as day from generate_series(0, 400) as n
        )
        select
            (
                select min(d.day) - (now() at time zone 'utc')::date from days as d
                where not exists (
                    select from realtime.partitions() as p where p.day = d.day and p.attached
                )
            ),
            (now() at time zone 'utc')::date + n
        from generate_series(0, 1) as n
        where not exists (
            select from realtime.partitions() as p
            where p.day = (now() at time zone 'utc')::date + n and p.attached
        )
        union all
        select (
            select min(d.day) - (now() at time zone 'utc')::date from days as d
            where not exists (
                select from realtime.partitions() as p where p.day = d.day and p.attached
            )
        ), null
        """,
    )
    left = days[-1][0]
    missing = [day for _, day in days[:-1]]
    name = "partitions"
    result = [
        Check(
            name,
            Outcome.FAIL,
            f"there is none for {day} (UTC)",
            f"select realtime.create_partition(date '{day}');",
        )
        for day in missing
    ]
    if not missing and left < _FEW_DAYS:
        detail = f"{left} days left; is `realtime-db maintain` scheduled?"
        result = [Check(name, Outcome.WARN, detail, SETUP)]
    elif not missing:
        result = [Check(name, Outcome.PASS, f"{left} days left")]
    odd = await _rows(
        connection,
        """
        select c.relname, i.inhdetachpending
        from pg_inherits as i inner join pg_class as c on i.inhrelid = c.oid
        where i.inhparent = 'realtime.messages'::regclass and (
            i.inhdetachpending or not exists (
                select from realtime.partitions() as p where p.partition_name = c.relname
            )
        )
        """,
    )
    for table, pending in odd:
        detail = "was not detached to the end" if pending else "is not a day made by realtime-db"
        mend = f"alter table realtime.messages detach partition {_name(table)}"
        mend += " finalize;" if pending else ";"
        result.append(Check(name, Outcome.WARN, f"realtime.{table} {detail}", mend))
    return result


async def functions(connection: Connection, found: Installation) -> list[Check]:
    """Every function is that of the release: body, rights it runs with, settings, who may call."""
    wanted = releases.functions(_release(found))
    rows = await _rows(
        connection,
        """
        select w.name, p.prosrc, p.prosecdef, coalesce(p.proconfig, '{}'),
            coalesce(has_function_privilege('public', p.oid, 'execute'), false)
        from unnest(%s::text[], %s::text[]) as w (name, signature)
        left join pg_proc as p on p.oid = to_regprocedure(w.signature)
        """,
        list(wanted),
        [function.signature for function in wanted.values()],
    )
    result = []
    for name, body, definer, config, public in rows:
        function = wanted[name]
        same = (
            body == function.body
            and definer == function.security_definer
            and {setting.partition("=")[0].lower() for setting in config} == function.settings
        )
        if body is None or not same:
            what = "is missing" if body is None else "is not that of the release"
            result.append(
                Check(
                    "functions",
                    Outcome.FAIL,
                    f"{function.signature} {what}",
                    _mend_function(found, function, missing=body is None),
                )
            )
        elif public != function.public:
            result.append(
                Check(
                    "functions",
                    Outcome.FAIL,
                    f"{function.signature} may {'' if public else 'not '}be called by everybody",
                    f"{'revoke' if public else 'grant'} execute on function {function.signature} "
                    f"{'from' if public else 'to'} public;",
                )
            )
    overloads = await _rows(
        connection,
        """
        select p.oid::regprocedure::text
        from pg_proc as p inner join pg_namespace as n on p.pronamespace = n.oid
        where n.nspname = 'realtime' and p.proname = any (%s) and p.oid not in (
            select to_regprocedure(s) from unnest(%s::text[]) as s
            where to_regprocedure(s) is not null
        )
        """,
        list(wanted),
        [function.signature for function in wanted.values()],
    )
    result += [
        Check(
            "functions",
            Outcome.WARN,
            f"{signature} is not ours, and may be called by mistake",
            f"drop function {signature};",
        )
        for (signature,) in overloads
    ]
    release = f"{len(wanted)} functions are those of {_release(found)}"
    return result or [Check("functions", Outcome.PASS, release)]


def _mend_function(found: Installation, function: releases.Function, *, missing: bool) -> str:
    if missing and found.managed_by is Manager.EXTENSION and function.member:
        return (
            f"{function.statement}\nalter extension {releases.EXTENSION} "
            f"add function {function.signature};"
        )
    return function.statement


async def settings(connection: Connection, found: Installation) -> list[Check]:
    """The one row of settings."""
    rows = await _rows(
        connection, "select retention_days, days_ahead, max_payload_bytes from realtime.settings"
    )
    if not rows:
        mend = "insert into realtime.settings default values;"
        return [Check("settings", Outcome.FAIL, "realtime.settings has no row", mend)]
    [(retention, ahead, size)] = rows
    detail = f"{retention} days kept, {ahead} days ahead, payloads up to {size} bytes"
    return [Check("settings", Outcome.PASS, detail)]


async def size_check(connection: Connection, found: Installation) -> list[Check]:
    """The check constraint; `drop extension … cascade` takes it along."""
    rows = await _rows(
        connection,
        "select from pg_constraint where conrelid = 'realtime.messages'::regclass "
        "and conname = 'messages_fit'",
    )
    if rows:
        return [Check("size limits", Outcome.PASS, "checked at each insert")]
    mend = (
        "alter table realtime.messages add constraint messages_fit "
        "check (realtime.message_fits(topic, event, payload, binary_payload)) not valid;"
    )
    return [Check("size limits", Outcome.FAIL, "the constraint messages_fit is missing", mend)]


async def send_errors(connection: Connection, found: Installation) -> list[Check]:
    """What `realtime.on_send_error = 'warn'` swallowed; release 0.1.0 did not count it."""
    [(exists,)] = await _rows(connection, "select to_regclass('realtime.send_errors') is not null")
    if not exists:
        return []
    rows = await _rows(
        connection,
        """
        select count(*), max(e.error_code), max(e.message)
        from realtime.send_errors as e where e.happened_at > now() - interval '1 day'
        """,
    )
    [(count, code, message)] = rows
    if not count:
        return [Check("swallowed errors", Outcome.PASS, "none within a day")]
    return [
        Check(
            "swallowed errors",
            Outcome.WARN,
            f"{count} messages were not stored within a day, such as: {code} {message}",
            "select * from realtime.send_errors order by happened_at desc limit 10;",
        )
    ]


SERVER: Final[tuple[Callable[[Connection], Finding], ...]] = (
    primary,
    wal_level,
    free_slots,
    rights,
    server_settings,
    slots,
)
"""What can be looked at before anything is installed."""

OBJECTS: Final[tuple[Callable[[Connection, Installation], Finding], ...]] = (
    owner,
    functions,
    settings,
    size_check,
    row_security,
    policies,
    roles,
    publication,
    partitions,
    send_errors,
)
"""What needs an installation."""

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


def _release(found: Installation) -> str:
    known = releases.releases()
    return found.release if found.release in known else known[-1]


async def _rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    cursor = await connection.execute(query.encode(), parameters or None)
    return await cursor.fetchall()


def _name(table: str) -> str:
    return sql.Identifier("realtime", table).as_string()


def _identifier(name: str | None) -> str:
    return sql.Identifier(name or "").as_string()


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
