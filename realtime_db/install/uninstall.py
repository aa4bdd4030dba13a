"""What depends on realtime-db in a database, and removing it; the roles stay.

Above: the command line. Below: the catalogs, `releases` for the names of what is ours, and
`inspect` for whether it is.

For the command line:

    await look(database_url) -> Removal            # `uninstall --dry-run`; changes nothing
    Removal.objects, .dependants, .as_text()
    await uninstall(database_url, *, cascade=False, limits=None) -> str     # what was done

Three kinds of dependants. Policies and triggers on `realtime.messages` go with the table. Views,
foreign keys and the like keep it from being dropped, unless `cascade` drops them as well. Function
bodies are text to Postgres: it would let a trigger function stay that calls `realtime.send`, and
every write to its table would fail from then on. So these are looked for, and keep it from being
dropped, too. `cascade` drops those that `trigger add` made, and never one that a hand wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from psycopg import errors, sql

from realtime_db.database import Connection, connect
from realtime_db.errors import (
    Busy,
    ForeignSchema,
    InstallError,
    ManagedByExtension,
    MissingRight,
    NewerThanProgram,
    NotInstalled,
    RealtimeDbError,
)
from realtime_db.install import inspect, migrate, releases, trigger_catalog
from realtime_db.install.checks import counted
from realtime_db.wal import slots as wal_slots

PUBLICATION: Final = "realtime_messages"

_STATE = re.compile(r"^ *create (table|sequence) if not exists realtime\.(\w+)", re.MULTILINE)
_POLICY = re.compile(r'^ *create policy "([^"]+)" on realtime\.', re.MULTILINE)

# Ours by name; partitions of messages go with it.
_OURS: Final = """
    with recursive here as (select oid from pg_namespace where nspname = 'realtime'),
    tables as (
        select c.oid, c.relname, c.relkind, c.reltype
        from pg_class as c inner join here on c.relnamespace = here.oid
        where c.relname = any (%(relations)s) and c.relkind in ('r', 'p', 'S')
        union
        select c.oid, c.relname, c.relkind, c.reltype
        from pg_inherits as i
        inner join tables as t on i.inhparent = t.oid
        inner join pg_class as c on i.inhrelid = c.oid
    ),
    functions as (
        select p.oid, p.oid::regprocedure::text as signature
        from pg_proc as p
        where p.oid in (
            select to_regprocedure(s.signature) from unnest(%(signatures)s::text[]) as s (signature)
        )
    )
"""

_OBJECTS: Final = "".join(
    (
        _OURS,
        """
    select 'publication', quote_ident(pubname) from pg_publication
    where pubname = %(publication)s
    union all
    select
        case when relkind = 'S' then 'sequence' else 'table' end,
        'realtime.' || quote_ident(relname)
    from tables as t
    where not exists (select from pg_inherits where inhrelid = t.oid)
    union all
    select 'function', signature from functions
    """,
    )
)

_DEPENDANTS: Final = "".join(
    (
        _OURS,
        r"""
    , direct as (
        select distinct d.classid, d.objid
        from pg_depend as d
        where (
            (
                d.refclassid = 'pg_class'::regclass and d.refobjid in (select oid from tables)
            ) or (
                d.refclassid = 'pg_proc'::regclass and d.refobjid in (select oid from functions)
            ) or (
                d.refclassid = 'pg_type'::regclass
                and d.refobjid in (select reltype from tables where reltype <> 0)
            )
        )
        and d.deptype in ('n', 'a')
    )
    select pg_describe_object('pg_policy'::regclass, p.oid, 0), case
        when p.polrelid in (select oid from tables) then 'goes' else 'blocks'
    end
    from direct as d inner join pg_policy as p
        on d.classid = 'pg_policy'::regclass and d.objid = p.oid
    where p.polname <> all (%(policies)s)
    union
    select pg_describe_object('pg_class'::regclass, r.ev_class, 0), 'blocks'
    from direct as d inner join pg_rewrite as r
        on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where r.ev_class not in (select oid from tables)
    union
    select pg_describe_object('pg_constraint'::regclass, c.oid, 0), 'blocks'
    from direct as d inner join pg_constraint as c
        on d.classid = 'pg_constraint'::regclass and d.objid = c.oid
    where c.conrelid not in (select oid from tables)
    union
    select pg_describe_object('pg_attrdef'::regclass, a.oid, 0), 'blocks'
    from direct as d inner join pg_attrdef as a
        on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid
    where a.adrelid not in (select oid from tables)
    union
    select pg_describe_object('pg_proc'::regclass, d.objid, 0), 'blocks'
    from direct as d
    where d.classid = 'pg_proc'::regclass and d.objid not in (select oid from functions)
    union
    select pg_describe_object('pg_class'::regclass, c.oid, 0), 'blocks'
    from direct as d inner join pg_class as c
        on d.classid = 'pg_class'::regclass and d.objid = c.oid
    where c.oid not in (select oid from tables) and c.relkind in ('r', 'p', 'f', 'm', 'v', 'c')
    union
    select pg_describe_object('pg_trigger'::regclass, t.oid, 0), 'goes'
    from direct as d inner join pg_trigger as t
        on d.classid = 'pg_trigger'::regclass and d.objid = t.oid
    where t.tgrelid in (select oid from tables) and not t.tgisinternal
    order by 2, 1
    """,
    )
)

# Functions whose text names ours, each with the triggers that call it and how these are dropped.
_CALLERS: Final = "".join(
    (
        _OURS,
        r"""
    select
        n.nspname || '.' || p.proname || '/' || p.pronargs,
        pg_describe_object('pg_proc'::regclass, p.oid, 0),
        string_agg(pg_describe_object('pg_trigger'::regclass, t.oid, 0), ', ' order by t.oid),
        string_agg(
            format('drop trigger %%I on %%I.%%I;', t.tgname, s.nspname, c.relname),
            ' ' order by t.oid
        ) filter (where t.oid is not null)
    from pg_proc as p
    inner join pg_namespace as n on p.pronamespace = n.oid
    left join pg_trigger as t
        on t.tgfoid = p.oid and not t.tgisinternal and t.tgparentid = 0
        and t.tgrelid not in (select oid from tables)
    left join pg_class as c on t.tgrelid = c.oid
    left join pg_namespace as s on c.relnamespace = s.oid
    where p.prosrc ~ ('\mrealtime\.(' || array_to_string(
            %(functions)s::text[] || %(relations)s::text[], '|'
        ) || ')\M')
        and p.oid not in (select oid from functions)
        and n.nspname not in ('pg_catalog', 'information_schema')
    group by p.oid, p.proname, p.pronargs, n.nspname
    order by 2
    """,
    )
)

_SLOTS: Final = """
    select slot_name from pg_replication_slots
    where database = current_database() and plugin = 'pgoutput' and not active
        and slot_name like 'realtime\\_%%' and not starts_with(slot_name, %(prefix)s)
"""


class Effect(StrEnum):
    """What becomes of a dependant."""

    GOES = "goes with the table"
    BLOCKS = "keeps realtime-db from being removed; dropped as well with --cascade"
    FAILS = "keeps realtime-db from being removed; stays with --cascade, and writes then fail"
    BREAKS = "stays, and fails when it is run"


@dataclass(frozen=True, slots=True)
class Dependant:
    """Something of the user's that uses realtime-db.

    Attributes:
        description: as Postgres describes it, such as `view public.recent`.
        effect: what becomes of it.
        removal: what removes it, if Postgres would not do so itself.
    """

    description: str
    effect: Effect
    removal: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What `uninstall` would do.

    Attributes:
        release: what is installed; None for remains of a dropped extension.
        objects: what would be dropped, as `drop …` takes it.
        dependants: what of the user's depends on it.
        trigger_drops: statements that drop the broadcast triggers.
        message_count: how many messages would be lost.
        slots: idle replication slots, perhaps of realtime-db; they stay.
        own_slots: those of servers, which go, too.
    """

    release: str | None
    objects: tuple[str, ...]
    dependants: tuple[Dependant, ...]
    trigger_drops: tuple[str, ...]
    message_count: int
    slots: tuple[str, ...]
    own_slots: tuple[wal_slots.SlotState, ...]

    def as_text(self) -> str:
        """For people."""
        lines = [f"realtime-db {self.release or '(remains)'} would be removed:"]
        lines += [f"  {name}" for name in self.objects]
        lines += [f"  replication slot {slot.name}" for slot in self.own_slots if not slot.active]
        lines.append(f"and with it {counted(self.message_count, 'stored message')}.")
        lines += [
            f"First stop the server that reads replication slot {slot.name}, which goes, too."
            for slot in self.own_slots
            if slot.active
        ]
        for effect in Effect:
            found = [item for item in self.dependants if item.effect is effect]
            if found:
                lines.append(f"Depends on it and {effect.value}:")
            for item in found:
                lines.append(f"  {item.description}")
                lines += [f"    {item.removal}"] if item.removal else []
        if not self.dependants:
            lines.append("Nothing else depends on it.")
        lines += _slots_left(self.slots)
        return "\n".join(lines)

    def as_done(self) -> list[str]:
        """After it was removed: what that left behind."""
        lines = []
        broken = [
            item.description
            for item in self.dependants
            if item.effect in (Effect.FAILS, Effect.BREAKS)
        ]
        if broken:
            lines += ["Fails from now on:", *(f"  {name}" for name in broken)]
        return lines + _slots_left(self.slots)


async def look(database_url: str) -> Removal:
    """What `uninstall` would remove, and what depends on that; changes nothing.

    Raises:
        NotInstalled, ForeignSchema, ManagedByExtension, NewerThanProgram: there is nothing that
            this program may remove.
        MissingRight: the role is not the owner.
    """
    async with connect(database_url) as connection:
        return await _look(connection)


async def uninstall(
    database_url: str, *, cascade: bool = False, limits: migrate.Limits | None = None
) -> str:
    """Removes realtime-db with all messages, in one transaction.

    Args:
        database_url: as the owner.
        cascade: also drop what keeps it from being dropped: views, foreign keys, broadcast
            triggers. Trigger functions of the user's that call ours stay, and fail.
        limits: how long to wait for others.

    Returns:
        What was done, and what that left behind.

    Raises:
        InstallError: a server reads its slot; or something depends on it, and `cascade` was not
            asked for.
        Busy: a table is in use.
        Others: as `look`.
    """
    limits = limits or migrate.Limits()
    async with migrate.exclusively(database_url, limits) as connection:
        removal = await _look(connection)
        if not cascade:
            _refuse_in_use(removal)
        if active := [slot.name for slot in removal.own_slots if slot.active]:
            raise InstallError(
                f"a server reads replication slot {', '.join(active)}",
                hint="First stop the server.",
            )
        how = " cascade" if cascade else ""
        try:
            async with connection.transaction():
                await _execute(connection, f"set local lock_timeout = {limits.lock_timeout_ms}")
                for statement in removal.trigger_drops if cascade else ():
                    await _execute(connection, statement)
                for name in removal.objects:
                    await _execute(connection, f"drop {name}{how}")
                left = await _objects_left(connection)
                if not left:
                    await _execute(connection, "drop schema if exists realtime")
        except errors.LockNotAvailable as error:
            raise Busy(
                "tables of realtime-db are in use",
                hint="Stop what uses realtime-db, and run this again.",
            ) from error
        except errors.InsufficientPrivilege as error:
            raise MissingRight(
                f"the database refused: {error.diag.message_primary}",
                hint="Connect as the owner of that object.",
            ) from error
        except errors.DependentObjectsStillExist as error:
            raise InstallError(
                f"realtime-db is in use: {error.diag.message_detail}",
                hint="Drop these first, or: realtime-db uninstall --cascade",
            ) from error
        # No transaction holds a slot back from being dropped, so these go last.
        notes = [note for slot in removal.own_slots if (note := await _drop(connection, slot.name))]
    release = f"realtime-db {removal.release}" if removal.release else "realtime-db"
    done = f"{release} was removed, with {counted(removal.message_count, 'stored message')}"
    if left:
        done += "; the schema realtime stays, for it holds other objects"
    return "\n".join([done, *notes, *removal.as_done()])


def _refuse_in_use(removal: Removal) -> None:
    blocking = [item for item in removal.dependants if item.effect in (Effect.BLOCKS, Effect.FAILS)]
    if not blocking:
        return
    hint = ["Drop these first, or: realtime-db uninstall --cascade"]
    if any(item.effect is Effect.FAILS for item in blocking):
        hint[0] += ", which leaves functions of yours, and writes that call them fail"
    raise InstallError(
        "realtime-db is in use by " + ", ".join(item.description for item in blocking),
        hint="\n  ".join(hint + [item.removal for item in blocking if item.removal]),
    )


async def _drop(connection: Connection, slot: str) -> str | None:
    try:
        await wal_slots.drop(connection, slot)
    except RealtimeDbError as error:
        return f"Replication slot {slot} is still there: {error}"
    return None


def _slots_left(slots: tuple[str, ...]) -> list[str]:
    """Slots are named by who starts a reader, so only a human knows whose they are."""
    return [
        f"Nobody reads replication slot {name}, which holds back WAL. If it was a reader's of "
        f"realtime-db: select pg_drop_replication_slot({sql.Literal(name).as_string()});"
        for name in slots
    ]


async def _look(connection: Connection) -> Removal:
    found = await inspect.look(connection)
    _refuse(found)
    owner = found.messages_owner or found.schema_owner
    cursor = await connection.execute("select pg_has_role(%s, 'usage')", [owner])
    # Nobody else sees all messages, so that their number would be wrong.
    if await cursor.fetchone() != (True,):
        raise MissingRight(
            "only its owner may remove realtime-db",
            hint=f"Connect as {sql.Identifier(owner or '').as_string()}.",
        )
    return await _survey(connection, found)


async def _survey(connection: Connection, found: inspect.Installation) -> Removal:
    names = _names()
    cursor = await connection.execute(_OBJECTS.encode(), names)
    order = {"publication": 0, "table": 1, "sequence": 2, "function": 3}
    objects = sorted(await cursor.fetchall(), key=lambda row: (order[row[0]], row[1]))
    # The sequence is owned by a column, and so goes with the table.
    dropped = tuple(f"{kind} {name}" for kind, name in objects if kind != "sequence")
    cursor = await connection.execute(trigger_catalog.list_query().encode())
    [(text,)] = await cursor.fetchall()
    triggers = [one for one in trigger_catalog.read_list(text) if one.table is not None]
    drops = [drop for one in triggers for drop in trigger_catalog.drop_statements(one)]
    drops.sort(key=lambda drop: drop.startswith("drop function"))  # several tables may share one
    count = 0
    if found.messages_owner:
        cursor = await connection.execute("select count(*) from realtime.messages")
        row = await cursor.fetchone()
        count = row[0] if row else 0
    cursor = await connection.execute(_SLOTS, {"prefix": wal_slots.PREFIX})
    slots = tuple(name for (name,) in await cursor.fetchall())
    return Removal(
        release=found.release,
        objects=dropped,
        dependants=tuple(await _dependants(connection, names, triggers)),
        trigger_drops=tuple(drops),
        message_count=count,
        slots=slots,
        own_slots=tuple(await wal_slots.look(connection)),
    )


async def _dependants(
    connection: Connection,
    names: dict[str, Any],
    triggers: list[trigger_catalog.BroadcastTrigger],
) -> list[Dependant]:
    cursor = await connection.execute(_DEPENDANTS.encode(), names)
    found = [
        Dependant(description, Effect[effect.upper()])
        for description, effect in await cursor.fetchall()
    ]
    found += [
        Dependant(f"broadcast trigger {one.name} on {one.table_text}", Effect.BLOCKS, one.removal)
        for one in triggers
    ]
    ours = {f"{one.function_schema}.{one.function}/0" for one in triggers}
    cursor = await connection.execute(_CALLERS.encode(), names)
    for function, description, called_by, drops in await cursor.fetchall():
        if function in ours:
            continue
        if called_by:
            called = f"{description}, called by {called_by}"
            found.append(Dependant(called, Effect.FAILS, drops))
        else:
            found.append(Dependant(description, Effect.BREAKS))
    return found


def _refuse(found: inspect.Installation) -> None:
    if found.managed_by is inspect.Manager.EXTENSION:
        raise ManagedByExtension(
            "this database got realtime-db by `create extension`",
            hint="drop extension realtime_db; keeps the messages. Then `realtime-db uninstall` "
            "removes them as well.",
        )
    if found.state is inspect.State.FOREIGN:
        raise ForeignSchema(found.detail, hint="It is not ours to remove.")
    if found.state is inspect.State.NEWER:
        raise NewerThanProgram(found.detail, hint=found.hint)
    if found.state is inspect.State.ABSENT and found.messages_owner is None:
        raise NotInstalled("realtime-db is not installed in this database")


def _names() -> dict[str, Any]:
    """The names of everything that any release ever made."""
    functions: set[str] = set()
    signatures: set[str] = set()
    policies: set[str] = set()
    relations = {inspect.VERSION_TABLE}
    for release in releases.releases():
        script = releases.install_script(release)
        parsed = releases.parse(script)
        functions |= parsed.keys()
        signatures |= {function.signature for function in parsed.values()}
        policies |= set(_POLICY.findall(script))
        relations |= {name for _, name in _STATE.findall(script)}
    return {
        "functions": sorted(functions),
        "signatures": sorted(signatures),
        "policies": sorted(policies),
        "relations": sorted(relations),
        "publication": PUBLICATION,
    }


async def _objects_left(connection: Connection) -> bool:
    cursor = await connection.execute(
        """
        select exists (select from pg_class where relnamespace = n.oid)
            or exists (select from pg_proc where pronamespace = n.oid)
            or exists (select from pg_type where typnamespace = n.oid)
        from pg_namespace as n where nspname = 'realtime'
        """
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _execute(connection: Connection, statement: str) -> None:
    # Names come from the catalogs, quoted there.
    await connection.execute(statement.encode())
