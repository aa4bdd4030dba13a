"""What `doctor` looks at in an installation: every object that delivery depends on.

Above: `doctor`. Below: `checks`, and `releases` for what should be there. A function looks at one
thing, and answers with the statement that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from realtime_db.database import Connection
from realtime_db.install import releases
from realtime_db.install.checks import (
    Check,
    Finding,
    Outcome,
    as_administrator,
    counted,
    identifier,
    rows,
    table_name,
)
from realtime_db.install.inspect import Installation, Manager

ROLES: Final = ("anon", "authenticated", "service_role")
SETUP: Final = "select realtime.setup();"

_FEW_DAYS = 3
_POLICY = re.compile(r'^ *create policy "([^"]+)" on realtime\.messages', re.MULTILINE)


async def owner(connection: Connection, found: Installation) -> list[Check]:
    """One owner for all, or maintenance and upgrades stop half-way; this login acts as it."""
    [(member, me, superuser)] = await rows(
        connection,
        "select pg_has_role(oid, 'usage'), quote_ident(current_user), rolsuper from pg_roles "
        "where rolname = %s",
        found.messages_owner,
    )
    if not member:
        return [
            Check(
                "owner",
                Outcome.WARN,
                f"{me} is not a member of {found.messages_owner}, who owns all tables, and may "
                "neither serve nor maintain",
                f"-- Connect as {identifier(found.messages_owner)}."
                if superuser
                else as_administrator(f"grant {identifier(found.messages_owner)} to {me};"),
            )
        ]
    answer = await rows(
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
    if not answer:
        return [Check("owner", Outcome.PASS, f"{found.messages_owner} owns all tables")]
    return [
        Check(
            "owner",
            Outcome.FAIL,
            f"realtime.{name} is owned by {other}, realtime.messages by {found.messages_owner}",
            as_administrator(
                f"alter table {table_name(name)} owner to {identifier(found.messages_owner)};"
            ),
        )
        for name, _kind, other in answer
    ]


async def roles(connection: Connection, found: Installation) -> list[Check]:
    """The roles that tokens name: what they may do, and whether this login may become them."""
    existing = await rows(
        connection, "select rolname from pg_roles where rolname = any (%s)", list(ROLES)
    )
    missing = [name for name in ROLES if (name,) not in existing]
    checks = [await _role(connection, found, name) for name in ROLES if name not in missing]
    for name in missing:
        create = f"create role {name} nologin noinherit;"
        mend = as_administrator(f"{create} {_membership(connection, found, name)}")
        if name == missing[-1]:  # once, when all of them are there
            mend += f"\nset role {identifier(found.messages_owner)}; {SETUP} reset role;"
        detail = "missing; no token that names it is accepted"
        checks.append(Check(f"role {name}", Outcome.WARN, detail, mend))
    return checks


def _membership(connection: Connection, found: Installation, name: str) -> str:
    """Who owns the messages serves them, and asks policies as this role."""
    options = " with set true, inherit false" if connection.info.server_version >= 160000 else ""
    return f"grant {name} to {identifier(found.messages_owner)}{options};"


async def _role(connection: Connection, found: Installation, name: str) -> Check:
    [(me, usage, table, member, acts_as_owner)] = await rows(
        connection,
        """
        select quote_ident(current_user),
            has_schema_privilege(r.oid, n.oid, 'usage'),
            has_table_privilege(r.oid, c.oid, 'select')
            and has_table_privilege(r.oid, c.oid, 'insert')
            and has_table_privilege(r.oid, c.oid, 'update'),
            pg_has_role(current_user, r.oid, %s),
            pg_has_role(c.relowner, 'usage')
        from pg_roles as r, pg_class as c inner join pg_namespace as n on c.relnamespace = n.oid
        where r.rolname = %s and n.nspname = 'realtime' and c.relname = 'messages'
        """,
        "set" if connection.info.server_version >= 160000 else "member",
        name,
    )
    check = f"role {name}"
    mends = []
    if not usage:
        mends.append(f"grant usage on schema realtime to {name};")
    if not table:
        mends.append(f"grant select, insert, update on realtime.messages to {name};")
    if mends:
        return Check(check, Outcome.FAIL, "may not use realtime.messages", " ".join(mends))
    if not member and not acts_as_owner:
        # The owner may have it: then to mend the one is to mend the other.
        detail = f"has its rights; that {me} may not `set role` to it follows from: owner"
        return Check(check, Outcome.SKIP, detail)
    if not member:
        mend = as_administrator(_membership(connection, found, name))
        return Check(check, Outcome.WARN, f"{me} may not `set role` to it", mend)
    return Check(check, Outcome.PASS, "has its rights, and this login may become it")


async def row_security(connection: Connection, found: Installation) -> list[Check]:
    """Without it, everybody reads every private topic."""
    answer = await rows(
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
    if not answer:
        return [Check("row level security", Outcome.PASS, "on, also on each partition")]
    return [
        Check(
            "row level security",
            Outcome.FAIL,
            f"off for realtime.{name}",
            f"alter table {table_name(name)} enable row level security;",
        )
        for (name,) in answer
    ]


async def policies(connection: Connection, found: Installation) -> list[Check]:
    """Ours are there; how many are the user's."""
    wanted = set(_POLICY.findall(releases.install_script(_release(found))))
    present = {
        name
        for (name,) in await rows(
            connection,
            """
            select polname from pg_policy as p inner join pg_class as c on p.polrelid = c.oid
            inner join pg_namespace as n on c.relnamespace = n.oid
            where n.nspname = 'realtime' and c.relname = 'messages'
            """,
        )
    }
    missing = sorted(wanted - present)
    if missing and await rows(
        connection, "select from pg_roles where rolname = %s", "service_role"
    ):
        return [Check("policies", Outcome.FAIL, f"{missing[0]!r} is missing", SETUP)]
    theirs = len(present - wanted)
    return [Check("policies", Outcome.PASS, f"{theirs or 'none'} of yours on realtime.messages")]


async def publication(connection: Connection, found: Installation) -> list[Check]:
    """What the reader follows."""
    answer = await rows(
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
    if not answer:
        return [Check(name, Outcome.FAIL, "realtime_messages is missing", SETUP)]
    [(right_options, right_table, whole)] = answer
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
    days = await rows(
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
    odd = await rows(
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
        mend = f"alter table realtime.messages detach partition {table_name(table)}"
        mend += " finalize;" if pending else ";"
        result.append(Check(name, Outcome.WARN, f"realtime.{table} {detail}", mend))
    return result


async def functions(connection: Connection, found: Installation) -> list[Check]:
    """Every function is that of the release: body, rights it runs with, settings, who may call."""
    wanted = releases.functions(_release(found))
    answer = await rows(
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
    for name, body, definer, config, public in answer:
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
    overloads = await rows(
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
    answer = await rows(
        connection, "select retention_days, days_ahead, max_payload_bytes from realtime.settings"
    )
    if not answer:
        mend = "insert into realtime.settings default values;"
        return [Check("settings", Outcome.FAIL, "realtime.settings has no row", mend)]
    [(retention, ahead, size)] = answer
    detail = f"{retention} days kept, {ahead} days ahead, payloads up to {size} bytes"
    return [Check("settings", Outcome.PASS, detail)]


async def size_check(connection: Connection, found: Installation) -> list[Check]:
    """The check constraint; `drop extension … cascade` takes it along."""
    answer = await rows(
        connection,
        "select from pg_constraint where conrelid = 'realtime.messages'::regclass "
        "and conname = 'messages_fit'",
    )
    if answer:
        return [Check("size limits", Outcome.PASS, "checked at each insert")]
    mend = (
        "alter table realtime.messages add constraint messages_fit "
        "check (realtime.message_fits(topic, event, payload, binary_payload)) not valid;"
    )
    return [Check("size limits", Outcome.FAIL, "the constraint messages_fit is missing", mend)]


async def send_errors(connection: Connection, found: Installation) -> list[Check]:
    """What `realtime.on_send_error = 'warn'` swallowed; release 0.1.0 did not count it."""
    [(exists,)] = await rows(connection, "select to_regclass('realtime.send_errors') is not null")
    if not exists:
        return []
    answer = await rows(
        connection,
        """
        select count(*) over (), e.error_code, e.message
        from realtime.send_errors as e where e.happened_at > now() - interval '1 day'
        order by e.happened_at desc limit 1
        """,
    )
    if not answer:
        return [Check("swallowed errors", Outcome.PASS, "none within a day")]
    [(count, code, message)] = answer
    return [
        Check(
            "swallowed errors",
            Outcome.WARN,
            f"{counted(count, 'message')} not stored within a day, the last for: {code} {message}",
            "select * from realtime.send_errors order by happened_at desc limit 10;",
        )
    ]


OBJECTS: Final[Mapping[str, Callable[[Connection, Installation], Finding]]] = {
    "owner": owner,
    "functions": functions,
    "settings": settings,
    "size limits": size_check,
    "row level security": row_security,
    "policies": policies,
    "roles": roles,
    "publication": publication,
    "partitions": partitions,
    "swallowed errors": send_errors,
}
"""What needs an installation, by the names of the checks."""


def _release(found: Installation) -> str:
    known = releases.releases()
    return found.release if found.release in known else known[-1]
