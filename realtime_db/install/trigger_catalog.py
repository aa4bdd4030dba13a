"""What the catalog says about a table and our triggers, and why we may have to refuse.

Above: `triggers` and `realtime_db.alembic`, which run these queries, each with its own driver; so
a query has no parameters and returns JSON as text. Below: `trigger_template`. No I/O here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from realtime_db.errors import MissingRight, NotInstalled, TriggerError
from realtime_db.install.trigger_options import (
    DEFAULT_NAME,
    Table,
    TriggerOptions,
    identifier,
    literal,
    qualified,
    table_text,
)
from realtime_db.install.trigger_template import MARKER, drop_function
from realtime_db.install.trigger_template import drop_statements as template_drop

_NOT_A_TABLE = {
    "v": "a view; make the trigger on the tables below it",
    "m": "a materialized view; make the trigger on the tables below it",
    "f": "a foreign table; make the trigger where the data is",
    "i": "an index",
    "I": "an index",
    "S": "a sequence",
    "c": "a type",
    "t": "a TOAST table",
}

_FACTS = """
select json_build_object(
    'installed', m.oid is not null,
    'user', current_user,
    'kind', c.relkind,
    'temporary', c.relpersistence = 't',
    'columns', (
        select json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod) order by a.attnum)
        from pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    ),
    'primary_key', (
        select json_agg(a.attname order by k.place)
        from pg_index as i
        cross join unnest(i.indkey) with ordinality as k (attnum, place)
        inner join pg_attribute as a on i.indrelid = a.attrelid and k.attnum = a.attnum
        where i.indrelid = c.oid and i.indisprimary
    ),
    'may_trigger', has_table_privilege(c.oid, 'trigger'),
    'function_schema_exists', f.oid is not null,
    'may_create', has_schema_privilege(f.oid, 'create'),
    'may_use', has_schema_privilege(m.relnamespace, 'usage'),
    'may_insert', has_table_privilege(m.oid, 'insert'),
    'policies_apply', row_security_active(m.oid),
    'policy', exists (
        select from pg_policy as p
        where p.polrelid = m.oid
            and p.polpermissive
            and p.polcmd in ('a', '*')
            and exists (
                select from unnest(p.polroles) as r (role_oid)
                where case r.role_oid when 0 then true else pg_has_role(r.role_oid, 'usage') end
            )
    ),
    'alike', (
        select json_agg(format('%I.%I', n.nspname, o.relname))
        from pg_class as o
        inner join pg_namespace as n on o.relnamespace = n.oid
        where lower(o.relname) = lower({table})
            and o.relkind in ('r', 'p')
            and n.nspname not in ('pg_catalog', 'information_schema')
            and n.nspname not like 'pg\\_%'
    ),
    'triggers', (
        select json_agg(t.tgname) from pg_trigger as t
        where t.tgrelid = c.oid and t.tgname in ({triggers})
    ),
    'function_exists', p.oid is not null,
    'function_is_ours', coalesce(
        strpos(obj_description(p.oid, 'pg_proc'), {marker}) > 0, false
    ),
    'function_in_use', exists (select from pg_trigger as t where t.tgfoid = p.oid)
)::text
from (select 1) as one
left join pg_class as c
    on c.relname = {table}
    and c.relnamespace = (select oid from pg_namespace where nspname = {table_schema})
left join pg_class as m
    on m.relname = 'messages'
    and m.relnamespace = (select oid from pg_namespace where nspname = 'realtime')
left join pg_namespace as f on f.nspname = {function_schema}
left join pg_proc as p
    on p.pronamespace = f.oid and p.proname = {function} and p.pronargs = 0
"""

_LIST = """
select coalesce(json_agg(found), '[]')::text
from (
    select
        n.nspname as table_schema,
        c.relname as table,
        fn.nspname as function_schema,
        f.proname as function,
        obj_description(f.oid, 'pg_proc') as comment,
        (
            select coalesce(json_agg(json_build_object(
                'name', t.tgname,
                'enabled', t.tgenabled <> 'D',
                'event', case
                    when t.tgtype & 4 > 0 then 'insert'
                    when t.tgtype & 8 > 0 then 'delete'
                    else 'update'
                end
            ) order by t.tgname), '[]')
            from pg_trigger as t
            where t.tgfoid = f.oid and t.tgrelid = c.oid
        ) as triggers
    from pg_proc as f
    inner join pg_namespace as fn on f.pronamespace = fn.oid
    left join (
        select distinct t.tgfoid, t.tgrelid from pg_trigger as t where t.tgparentid = 0
    ) as u on u.tgfoid = f.oid
    left join pg_class as c on c.oid = u.tgrelid
    left join pg_namespace as n on c.relnamespace = n.oid
    where strpos(obj_description(f.oid, 'pg_proc'), {marker}) > 0
    order by n.nspname, c.relname, f.proname
) as found
"""


@dataclass(frozen=True, slots=True)
class BroadcastTrigger:
    """A broadcast trigger that is there.

    Attributes:
        table_schema, table: where it is now; None if its table is gone and the function is left.
        options: what it was made with; names in it may have changed since.
        triggers: name of each trigger -> the event that it is for.
        enabled: whether all of its triggers fire.
        function_schema, function: the function that they call.
    """

    table_schema: str | None
    table: str | None
    options: TriggerOptions
    triggers: dict[str, str]
    enabled: bool
    function_schema: str
    function: str

    @property
    def name(self) -> str:
        """What `remove` finds it by, together with its table."""
        return self.options.name

    @property
    def table_text(self) -> str:
        """Its table, as the command line takes it; the one it was made for, if that is gone."""
        if self.table_schema is None or self.table is None:
            return table_text(self.options.table_schema, self.options.table)
        return table_text(self.table_schema, self.table)

    @property
    def removal(self) -> str:
        """The command that removes it."""
        name = "" if self.name == DEFAULT_NAME else f" --name {shlex.quote(self.name)}"
        return f"realtime-db trigger remove {shlex.quote(self.table_text)}{name}"


def facts_query(options: TriggerOptions) -> str:
    """A query for one row with one text, which `read_table` and `refuse` understand."""
    return _FACTS.format(
        table_schema=literal(options.table_schema),
        table=literal(options.table),
        triggers=", ".join(literal(options.trigger(event)) for event in options.events),
        marker=literal(MARKER),
        function_schema=literal(options.schema),
        function=literal(options.function),
    )


def list_query() -> str:
    """A query for one row with one text, which `read_list` understands."""
    return _LIST.format(marker=literal(MARKER))


def read_list(text: str) -> list[BroadcastTrigger]:
    """The triggers that `list_query` found; a comment that somebody changed is passed over."""
    found = []
    for row in json.loads(text):
        try:
            options = TriggerOptions.from_json(row["comment"].split(MARKER, 1)[1])
        except TriggerError:
            continue
        found.append(
            BroadcastTrigger(
                table_schema=row["table_schema"],
                table=row["table"],
                options=options,
                triggers={trigger["name"]: trigger["event"] for trigger in row["triggers"]},
                enabled=all(trigger["enabled"] for trigger in row["triggers"]),
                function_schema=row["function_schema"],
                function=row["function"],
            )
        )
    return found


def find(
    triggers: Iterable[BroadcastTrigger], table_schema: str, table: str, name: str
) -> BroadcastTrigger | None:
    """The trigger of that name on that table."""
    wanted = (table_schema, table, name)
    return next((t for t in triggers if (t.table_schema, t.table, t.name) == wanted), None)


def find_left_over(
    triggers: Iterable[BroadcastTrigger], table_schema: str, table: str, name: str
) -> BroadcastTrigger | None:
    """What is left of the trigger of that name when its table was dropped: a function."""
    wanted = (table_schema, table, name)
    made_for = ((t, (t.options.table_schema, t.options.table, t.name)) for t in triggers)
    return next((t for t, was in made_for if t.table is None and was == wanted), None)


def drop_statements(trigger: BroadcastTrigger) -> list[str]:
    """What removes a trigger, by the names that its parts have now."""
    function = trigger.function_schema, trigger.function
    if trigger.table_schema is None or trigger.table is None:
        return [drop_function(*function)]
    return template_drop(trigger.table_schema, trigger.table, trigger.triggers, *function)


def read_table(options: TriggerOptions, facts_text: str) -> Table:
    """The table as `render` wants it.

    Raises:
        TriggerError: missing, or nothing that can have such a trigger.
    """
    facts = json.loads(facts_text)
    name = f"{options.table_schema}.{options.table}"
    if facts["kind"] is None:
        alike = ", ".join(facts["alike"] or ())
        raise TriggerError(
            f"there is no table {name}",
            hint=f"Did you mean {alike}?" if alike else "Create it first, or check its schema.",
        )
    if kind := _NOT_A_TABLE.get(facts["kind"]):
        raise TriggerError(f"{name} cannot have a broadcast trigger", hint=f"It is {kind}.")
    if facts["temporary"]:
        raise TriggerError(
            f"{name} cannot have a broadcast trigger", hint="It is temporary; use a lasting table."
        )
    if options.table_schema in ("realtime", "pg_catalog", "information_schema"):
        raise TriggerError(
            f"{name} cannot have a broadcast trigger",
            hint="Tables of realtime-db and of Postgres are not broadcast; use a table of yours.",
        )
    return Table(
        columns=facts["columns"] or {},
        primary_key=tuple(facts["primary_key"] or ()),
        partitioned=facts["kind"] == "p",
    )


def refuse(options: TriggerOptions, facts_text: str, existing: BroadcastTrigger | None) -> None:
    """Raises what stands in the way of making the trigger.

    Args:
        existing: the trigger that is to be replaced, and so does not stand in the way.

    Raises:
        NotInstalled: no realtime-db in this database.
        MissingRight: the hint is the statement that grants it.
        TriggerError: something of that name is there.
    """
    facts: dict[str, Any] = json.loads(facts_text)
    if not facts["installed"]:
        raise NotInstalled(
            "realtime-db is not installed in this database", hint="Run `realtime-db migrate`."
        )
    _refuse_without_rights(options, facts)
    replaced = existing.triggers if existing else {}
    if clash := sorted(set(facts["triggers"] or ()) - set(replaced)):
        raise TriggerError(
            f"{options.table_schema}.{options.table} already has a trigger {clash[0]}",
            hint="Replace it (--replace), remove it first, or choose another --name.",
        )
    function = qualified(options.schema, options.function)
    is_replaced = existing is not None and (existing.function_schema, existing.function) == (
        options.schema,
        options.function,
    )
    is_left_over = facts["function_is_ours"] and not facts["function_in_use"]
    if facts["function_exists"] and not (is_replaced or is_left_over):
        raise TriggerError(
            f"there is already a function {function}()",
            hint="Choose another --name, or another schema for the function.",
        )


def _refuse_without_rights(options: TriggerOptions, facts: dict[str, Any]) -> None:
    role = identifier(facts["user"])
    table = qualified(options.table_schema, options.table)
    if not facts["function_schema_exists"]:
        raise TriggerError(
            f"there is no schema {options.schema} for the trigger function",
            hint="Create it, or leave the function in the table's schema.",
        )
    needed = {
        "may_trigger": f"grant trigger on table {table} to {role};",
        "may_create": f"grant create on schema {identifier(options.schema)} to {role};",
        "may_use": f"grant usage on schema realtime to {role};",
        "may_insert": f"grant insert on table realtime.messages to {role};",
    }
    missing = [grant for right, grant in needed.items() if not facts[right]]
    if missing:
        raise MissingRight(
            f"{facts['user']} may not make a broadcast trigger on"
            f" {options.table_schema}.{options.table}",
            hint="As their owner: " + " ".join(missing),
        )
    if facts["policies_apply"] and not facts["policy"]:
        raise MissingRight(
            f"no policy on realtime.messages lets {facts['user']} insert, and the trigger function"
            " runs as who makes it",
            hint="Make the trigger as the owner of realtime.messages, or: create policy broadcasts"
            f" on realtime.messages for insert to {role} with check (true);",
        )
