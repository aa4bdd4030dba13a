"""What policies on `realtime.messages` let users do, asked by a server as those users."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from realtime_db.auth import policies
from realtime_db.auth.access import Access, CheckFailed, WriteAccess
from realtime_db.auth.policies import Policies
from realtime_db.auth.tokens import Claims

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

DEADLINE_SECONDS = 60
BOTH = Access(broadcast=True, presence=True)
NOTHING = Access(broadcast=False, presence=False)

SETTINGS = (
    "role",
    "realtime.topic",
    "request.jwt.claims",
    "request.jwt.claim.sub",
    "request.jwt.claim.role",
    "request.headers",
    "synchronous_commit",
)


@pytest.fixture
def url(database_url: str) -> str:
    """A database in which policies can be asked."""
    return database_url


@pytest.fixture
def owner(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def roles(url: str, server_url: str) -> Iterator[Callable[[str], str]]:
    """`roles(prefix)` makes a role that was granted to the server's login; dropped afterwards."""
    made: list[str] = []
    in_database = make_conninfo(server_url, dbname=str(conninfo_to_dict(url)["dbname"]))
    with psycopg.connect(in_database, autocommit=True) as admin:

        def make(prefix: str) -> str:
            made.append(f"{prefix}{len(made)}_test")
            admin.execute(sql.SQL("create role {}").format(sql.Identifier(made[-1])))
            admin.execute(sql.SQL("grant {} to app").format(sql.Identifier(made[-1])))
            return made[-1]

        yield make
        for name in made:
            admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.fixture
def server_login(url: str, server_url: str, roles: Callable[[str], str]) -> Callable[[bool], str]:
    """`server_login(granted)` -> a server's URL that is not the owner's, maybe granted it."""

    def make(granted: bool) -> str:
        name = roles("server")
        with psycopg.connect(server_url, autocommit=True) as admin:
            role = sql.Identifier(name)
            admin.execute(sql.SQL("revoke {} from app").format(role))
            admin.execute(sql.SQL("alter role {} login password 'x'").format(role))
            if granted:
                admin.execute(sql.SQL("grant app to {}").format(role))
        return make_conninfo(url, user=name, password="x")

    return make


@asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[Policies]:
    options = {"min_size": 1, "max_size": 1, "timeout": DEADLINE_SECONDS} | options
    kwargs = {"autocommit": True} | options.pop("kwargs", {})
    async with AsyncConnectionPool(url, kwargs=kwargs, **options) as pool:
        yield Policies(pool)


def ask(url: str, question: Callable[[Policies], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        async with asyncio.timeout(DEADLINE_SECONDS), asking(url, **options) as asked:
            return await question(asked)

    return asyncio.run(run())


def claims(role: str = "authenticated", **others: object) -> Claims:
    text = json.dumps({"role": role, "exp": 2_000_000_000} | others)
    sub = others.get("sub")
    return Claims(role, 2_000_000_000, sub if isinstance(sub, str) else None, text)


def read(
    url: str,
    topic: str = "room",
    who: Claims | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> Access:
    return ask(url, lambda p: p.read_access(topic, who or claims(), headers), **options)


def write(
    url: str,
    topic: str = "room",
    who: Claims | None = None,
    headers: Mapping[str, str] | None = None,
    extension: policies.Extension = "broadcast",
) -> WriteAccess:
    return ask(url, lambda p: p.write_access(topic, who or claims(), headers, extension))


def may_read(owner: Connection, expression: str, to: str = "authenticated") -> None:
    owner.execute(f"create policy r on realtime.messages for select to {to} using ({expression})")


def may_write(owner: Connection, expression: str, to: str = "authenticated") -> None:
    owner.execute(
        f"create policy w on realtime.messages for insert to {to} with check ({expression})"
    )


# Policies as users write them


def test_without_a_policy_nothing_is_granted(url: str) -> None:
    assert read(url) == NOTHING
    assert not write(url)
    assert not write(url, extension="presence")


def test_a_policy_on_the_topic_grants_that_topic_only(url: str, owner: Connection) -> None:
    may_read(owner, "realtime.topic() = 'room'")
    may_write(owner, "realtime.topic() = 'room'")

    assert read(url) == BOTH
    assert write(url)
    assert write(url, extension="presence")
    assert read(url, "other") == NOTHING
    assert not write(url, "other")


def test_a_policy_on_the_column_topic_grants_as_well(url: str, owner: Connection) -> None:
    may_read(owner, "topic like 'room:%'")
    may_write(owner, "topic = 'room:' || (current_setting('request.jwt.claims')::jsonb ->> 'sub')")

    assert read(url, "room:1") == BOTH
    assert write(url, "room:ann", claims(sub="ann"))
    assert not write(url, "room:ann", claims(sub="bob"))


@pytest.mark.parametrize("extension", ["broadcast", "presence"])
def test_a_policy_on_the_extension_grants_one_of_the_two(
    url: str, owner: Connection, extension: policies.Extension
) -> None:
    may_read(owner, f"extension = '{extension}'")
    may_write(owner, f"realtime.messages.extension = '{extension}'")
    other: policies.Extension = "presence" if extension == "broadcast" else "broadcast"

    access = read(url)
    assert access == Access(broadcast=extension == "broadcast", presence=extension == "presence")
    assert access, "one of the two is enough to join"
    assert write(url, extension=extension)
    assert not write(url, extension=other)


def test_the_right_to_read_is_none_to_write_nor_the_other_way_round(
    url: str, owner: Connection
) -> None:
    may_read(owner, "realtime.topic() = 'read'")
    may_write(owner, "realtime.topic() = 'write'")

    assert (read(url, "read"), bool(write(url, "read"))) == (BOTH, False)
    assert (read(url, "write"), bool(write(url, "write"))) == (NOTHING, True)


def test_a_policy_sees_the_claims(url: str, owner: Connection) -> None:
    may_read(owner, "current_setting('request.jwt.claims', true)::jsonb ->> 'sub' = 'ann'")
    may_write(owner, "current_setting('request.jwt.claims', true)::json #>> '{a,b,0}' = '1.50'")

    assert read(url, who=claims(sub="ann")) == BOTH
    assert read(url, who=claims(sub="bob")) == NOTHING
    assert read(url, who=claims()) == NOTHING
    exact = Claims("authenticated", 1, None, '{"role":"authenticated","a":{"b":[1.50]}}')
    assert write(url, who=exact)


def test_a_policy_sees_all_six_settings(url: str, owner: Connection) -> None:
    may_read(
        owner,
        "current_user = 'authenticated' and current_setting('role') = 'authenticated'"
        " and current_setting('realtime.topic') = 'room'"
        " and current_setting('request.jwt.claims')::jsonb = jsonb_build_object("
        "     'role', 'authenticated', 'exp', 2000000000, 'sub', 'ann')"
        " and current_setting('request.jwt.claim.sub') = 'ann'"
        " and current_setting('request.jwt.claim.role') = 'authenticated'"
        """ and current_setting('request.headers')::jsonb = '{"x-device": "phone"}'""",
    )

    assert read(url, who=claims(sub="ann"), headers={"x-device": "phone"}) == BOTH
    assert read(url, who=claims(sub="ann"), headers={}) == NOTHING


def test_a_token_without_sub_leaves_that_setting_empty(url: str, owner: Connection) -> None:
    may_read(owner, "current_setting('request.jwt.claim.sub') = ''")

    assert read(url) == BOTH


def test_the_helpers_of_supabase_work(url: str, owner: Connection) -> None:
    owner.execute(
        """
        create schema auth;
        grant usage on schema auth to authenticated, anon;
        create function auth.uid() returns uuid language sql stable as $$
            select coalesce(
                nullif(current_setting('request.jwt.claim.sub', true), ''),
                (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
            )::uuid
        $$;
        create function auth.role() returns text language sql stable as $$
            select coalesce(
                nullif(current_setting('request.jwt.claim.role', true), ''),
                (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
            )::text
        $$;
        create function auth.jwt() returns jsonb language sql stable as $$
            select coalesce(
                nullif(current_setting('request.jwt.claim', true), ''),
                nullif(current_setting('request.jwt.claims', true), '')
            )::jsonb
        $$;
        """
    )
    may_read(owner, "(select auth.uid())::text = realtime.topic()")
    may_write(owner, "auth.role() = 'authenticated' and auth.jwt() -> 'app_metadata' ->> 'r' = 'x'")
    ann = "a5e0c0de-0000-4000-8000-000000000001"

    assert read(url, ann, claims(sub=ann)) == BOTH
    assert read(url, "room", claims(sub=ann)) == NOTHING
    assert read(url, ann, claims()) == NOTHING
    assert not (nobody := read(url, ann, claims(sub="no uuid")))
    assert "invalid input syntax for type uuid" in str(nobody.reason)
    assert write(url, who=claims(app_metadata={"r": "x"}))
    assert not write(url, who=claims(app_metadata={"r": "y"}))


MEMBERS = """
    create table public.members (room text, member text);
    insert into public.members values ('room', 'ann')
"""
IS_MEMBER = """exists (
    select from public.members as m
    where m.room = realtime.topic()
        and m.member = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'
)"""


def test_a_policy_may_join_a_table_that_the_role_may_read(url: str, owner: Connection) -> None:
    owner.execute(MEMBERS)
    owner.execute("grant select on public.members to authenticated")
    may_read(owner, IS_MEMBER)
    may_write(owner, IS_MEMBER)

    assert read(url, who=claims(sub="ann")) == BOTH
    assert write(url, who=claims(sub="ann"))
    assert read(url, who=claims(sub="bob")) == NOTHING
    assert not write(url, who=claims(sub="bob"))


def test_a_joined_table_without_grants_denies_with_the_reason(url: str, owner: Connection) -> None:
    owner.execute(MEMBERS)
    may_read(owner, IS_MEMBER)
    may_write(owner, IS_MEMBER)

    access, right = read(url, who=claims(sub="ann")), write(url, who=claims(sub="ann"))

    assert not access
    assert access.reason == "permission denied for table members"
    assert not right
    assert right.reason == "permission denied for table members"


@pytest.mark.parametrize("error", ["raise 'oops'", "assert false, 'oops'", "perform 1 / 0"])
def test_a_policy_that_raises_denies_with_the_reason(
    url: str, owner: Connection, error: str
) -> None:
    owner.execute(
        "create function public.fails() returns boolean language plpgsql as "
        f"$$begin {error}; return true; end$$"
    )
    may_read(owner, "public.fails()")
    may_write(owner, "public.fails()")

    access, right = read(url), write(url)

    assert not access
    assert not right
    assert access.reason == right.reason
    assert right.reason in ("oops", "division by zero")
    assert right.failed, "which REST tells apart from a policy that says no"


def test_a_denied_write_has_not_failed(url: str) -> None:
    right = write(url)

    assert not right.failed
    assert right.reason == 'new row violates row-level security policy for table "messages"'


def test_a_policy_function_sees_the_search_path_of_the_session(url: str, owner: Connection) -> None:
    owner.execute(
        "create function public.tells() returns text language plpgsql as "
        "$$begin return current_setting('search_path'); end$$"
    )
    may_read(owner, "public.tells() = 'public,pg_catalog'")

    assert read(url, kwargs={"options": "-c search_path=public,pg_catalog"}) == BOTH


def test_only_probe_rows_are_looked_at(url: str, owner: Connection) -> None:
    # Rows of the topic that the policy would stumble over are none of its business here.
    owner.execute("select realtime.send('{\"n\": 0}', 'event', 'room')")
    may_read(owner, "case when payload is null then true else 1 / (payload ->> 'n')::int = 1 end")

    assert read(url) == BOTH


def test_anon_and_other_roles_are_asked_as_themselves(url: str, owner: Connection) -> None:
    may_read(owner, "true", to="anon")

    assert read(url, who=claims("anon")) == BOTH
    assert read(url, who=claims("authenticated")) == NOTHING


def test_service_role_may_do_all(url: str) -> None:
    assert read(url, who=claims("service_role")) == BOTH
    assert write(url, who=claims("service_role"))


def test_a_connection_asks_for_one_role_after_another(url: str, owner: Connection) -> None:
    # A plan that is kept from one call to the next must not be that of another role.
    may_read(owner, "true", to="anon")

    async def alternate(asked: Policies) -> list[bool]:
        roles = ["service_role", "anon", "authenticated", "nobody"] * 8
        return [bool(await asked.read_access("room", claims(role))) for role in roles]

    assert ask(url, alternate) == [True, True, False, False] * 8


def test_a_changed_policy_counts_at_once(url: str, owner: Connection) -> None:
    async def change(asked: Policies) -> list[Access]:
        seen = [await asked.read_access("room", claims()) for _ in range(8)]
        may_read(owner, "true")
        return [*seen[-1:], await asked.read_access("room", claims())]

    assert ask(url, change) == [NOTHING, BOTH]


# What is left behind: nothing


def test_nothing_is_stored_and_no_setting_or_role_is_left(url: str, owner: Connection) -> None:
    owner.execute(
        "create function public.fails() returns boolean language sql as 'select 1 / 0 = 1'"
    )
    may_read(owner, "case realtime.topic() when 'fails' then public.fails() else true end")
    may_write(owner, "case realtime.topic() when 'fails' then public.fails() else true end")
    show = "select " + ", ".join(
        f"coalesce(current_setting('{name}', true), '')" for name in SETTINGS
    )

    async def all_of_them(asked: Policies) -> list[object]:
        async with asked._pool.connection() as connection:
            before = await (await connection.execute(show)).fetchone()
        for topic in ("room", "fails", "a" * 300, ""):
            for role in ("authenticated", "nobody", "none", "service_role"):
                who = claims(role, sub="ann")
                await asked.read_access(topic, who, {"x-a": "b"})
                await asked.write_access(topic, who, {"x-a": "b"})
        async with asked._pool.connection() as connection:
            after = await (await connection.execute(show)).fetchone()
            user = await (await connection.execute("select current_user, session_user")).fetchone()
        return [before, after, user]

    before, after, user = ask(url, all_of_them)

    assert before == after
    assert user == ("app", "app")
    assert owner.execute("select count(*) from realtime.messages").fetchone() == (0,)


@pytest.mark.parametrize("topic", ["room", "fails"])
def test_in_a_transaction_of_the_caller_nothing_changes_either(
    url: str, owner: Connection, topic: str
) -> None:
    may_read(owner, "case realtime.topic() when 'fails' then 1 / 0 = 1 else true end")
    with owner.transaction():
        owner.execute("set local realtime.topic = 'mine'")
        owner.execute(
            "select * from realtime.authorize(%s, %s::jsonb, '{}')", [topic, claims().json]
        )
        left = owner.execute(
            "select current_user, current_setting('realtime.topic'), "
            "coalesce(current_setting('request.jwt.claims', true), ''), "
            "current_setting('synchronous_commit')"
        ).fetchone()

    assert left == ("app", "mine", "", "on")


def test_what_a_policy_function_changes_is_undone(url: str, owner: Connection) -> None:
    owner.execute(
        """
        create table public.asked (topic text);
        grant insert on public.asked to authenticated;
        create function public.notes() returns boolean language plpgsql as $$
        begin
            insert into public.asked values (realtime.topic());
            perform set_config('request.headers', 'changed', false);
            perform set_config('role', 'anon', false);
            perform set_config('role', 'authenticated', false);
            return true;
        end $$
        """
    )
    may_read(owner, "public.notes()")
    may_write(owner, "public.notes()")

    async def both(asked: Policies) -> object:
        assert await asked.read_access("room", claims())
        assert await asked.write_access("room", claims())
        async with asked._pool.connection() as connection:
            cursor = await connection.execute(
                "select current_user, coalesce(current_setting('request.headers', true), '')"
            )
            return await cursor.fetchone()

    assert ask(url, both) == ("app", "")
    assert owner.execute("select count(*) from public.asked").fetchone() == (0,)


def test_nothing_is_published(url: str, owner: Connection) -> None:
    may_read(owner, "true")
    may_write(owner, "true")
    owner.execute("select pg_create_logical_replication_slot('probe', 'pgoutput')")
    try:
        assert read(url)
        assert write(url)
        owner.execute("select realtime.send('{}', 'sentinel', 'room')")
        changes = owner.execute(
            "select data from pg_logical_slot_get_binary_changes('probe', null, null, "
            "'proto_version', '1', 'publication_names', 'realtime_messages')"
        ).fetchall()
    finally:
        owner.execute("select pg_drop_replication_slot('probe')")

    inserts = [data for (data,) in changes if data[:1] == b"I"]
    assert len(inserts) == 1
    assert b"sentinel" in inserts[0]


# Which roles a token may name


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("nobody", 'role "nobody" does not exist'),
        ("none", 'role "none" does not exist'),
        ("NONE", 'role "NONE" does not exist'),
        ("", 'role "" does not exist'),
        ("Authenticated", 'role "Authenticated" does not exist'),
        ('"authenticated"', 'role ""authenticated"" does not exist'),
        ("authenticated; reset role", 'role "authenticated; reset role" does not exist'),
        ("authenticated'--", 'role "authenticated\'--" does not exist'),
        ("public", 'role "public" does not exist'),
        ("app", 'role "app" is the server\'s own'),
        ("pg_read_all_data", 'role "pg_read_all_data" was not granted to "app"'),
        ("authenticated" + "x" * 100, f'role "authenticated{"x" * 50}" does not exist'),
    ],
)
def test_a_role_that_may_not_be_named_is_denied(
    url: str, owner: Connection, role: str, reason: str
) -> None:
    may_read(owner, "true", to="public")
    may_write(owner, "true", to="public")

    assert read(url, who=claims(role)) == Access(False, False, reason)
    assert write(url, who=claims(role)) == WriteAccess(False, reason, failed=True)


def test_a_role_of_63_characters_is_not_confused_with_a_longer_name(
    url: str, owner: Connection, roles: Callable[[str], str]
) -> None:
    name = roles("r" * 57)
    owner.execute(sql.SQL("grant usage on schema realtime to {}").format(sql.Identifier(name)))
    owner.execute(sql.SQL("grant select on realtime.messages to {}").format(sql.Identifier(name)))
    may_read(owner, "true", to="public")

    assert read(url, who=claims(name)) == BOTH
    assert not read(url, who=claims(name + "x" * 20))


def test_any_other_role_that_was_granted_is_asked(
    url: str, owner: Connection, roles: Callable[[str], str]
) -> None:
    kiosk = roles('kiosk "1"; ')
    may_read(owner, "true", to="public")

    # Without rights of its own it is the role that may not, which is an answer.
    assert read(url, who=claims(kiosk)).reason == "permission denied for schema realtime"
    owner.execute(sql.SQL("grant usage on schema realtime to {}").format(sql.Identifier(kiosk)))
    assert read(url, who=claims(kiosk)).reason == "permission denied for table messages"
    owner.execute(sql.SQL("grant select on realtime.messages to {}").format(sql.Identifier(kiosk)))
    assert read(url, who=claims(kiosk)) == BOTH


def test_a_superuser_is_refused_even_if_granted(
    url: str, server_url: str, roles: Callable[[str], str]
) -> None:
    boss = roles("boss")
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("alter role {} superuser").format(sql.Identifier(boss)))

    assert read(url, who=claims(boss)).reason == f'role "{boss}" is a superuser'


def test_a_role_with_the_rights_of_the_owner_is_refused(
    url: str, owner: Connection, server_url: str, roles: Callable[[str], str]
) -> None:
    deputy = roles("deputy")
    with psycopg.connect(server_url, autocommit=True) as admin:
        # Memberships may not form a circle.
        admin.execute(sql.SQL("revoke {} from app").format(sql.Identifier(deputy)))
        admin.execute(sql.SQL("grant app to {}").format(sql.Identifier(deputy)))

    assert read(url, who=claims(deputy)).reason == (
        f'role "{deputy}" has the rights of the owner of messages'
    )


def test_a_server_that_is_a_superuser_still_serves_no_other_roles(
    url: str, server_url: str, owner: Connection, roles: Callable[[str], str]
) -> None:
    may_read(owner, "true", to="public")
    other = roles("other")
    database = str(conninfo_to_dict(url)["dbname"])
    as_superuser = make_conninfo(server_url, dbname=database)
    superuser = str(conninfo_to_dict(server_url)["user"])

    assert read(as_superuser, who=claims()) == BOTH
    assert "was not granted" in str(read(as_superuser, who=claims(other)).reason)
    assert "is a superuser" in str(read(as_superuser, who=claims(superuser)).reason)
    assert "has the rights of the owner" in str(read(as_superuser, who=claims("app")).reason)


def test_a_server_that_is_not_the_owner_asks_with_the_owners_rights(
    url: str, owner: Connection, server_login: Callable[[bool], str]
) -> None:
    may_read(owner, "realtime.topic() = 'room'")
    login = server_login(True)

    assert read(login) == BOTH
    assert read(login, "other") == NOTHING
    assert read(login, who=claims("app")).reason == (
        'role "app" has the rights of the owner of messages'
    )


def test_a_server_without_the_right_to_ask_says_so(
    url: str, owner: Connection, server_login: Callable[[bool], str]
) -> None:
    login = server_login(False)
    with pytest.raises(CheckFailed, match="permission denied for") as raised:
        read(login)

    assert "Let it log in as the owner" in str(raised.value)


def test_a_server_whose_probe_rows_are_refused_says_so(url: str, owner: Connection) -> None:
    owner.execute("alter table realtime.messages force row level security")
    owner.execute('drop policy "service_role may do all" on realtime.messages')

    with pytest.raises(CheckFailed, match="row-level security"):
        read(url)


def test_users_may_not_call_the_functions(owner: Connection) -> None:
    for call in ("authorize('t', '{}')", "role_refusal('anon')"):
        with owner.transaction(force_rollback=True):
            owner.execute("set local role service_role")
            name = call.partition("(")[0]
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"function {name}$"):
                owner.execute(f"select realtime.{call}")


# Hostile input


@pytest.mark.parametrize(
    "text",
    [
        "a'b",
        'a"b',
        "a\\b",
        "a;drop table realtime.messages;--",
        "%s %(a)s {}",
        "ä€😀",
        "a\nb",
        "x" * 246,
    ],
    ids=repr,
)
def test_any_text_is_a_topic_a_sub_and_a_header(url: str, owner: Connection, text: str) -> None:
    may_read(
        owner,
        "realtime.topic() = current_setting('request.jwt.claims')::jsonb ->> 'sub'"
        " and topic = current_setting('request.headers')::jsonb ->> 'x-a'"
        " and topic = current_setting('request.jwt.claim.sub')",
    )
    may_write(owner, "topic = current_setting('request.jwt.claim.sub')")

    assert read(url, text, claims(sub=text), {"x-a": text}) == BOTH
    assert read(url, text, claims(sub=text + "x"), {"x-a": text}) == NOTHING
    assert write(url, text, claims(sub=text))


@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=repr)
def test_what_is_no_text_for_the_database_is_denied(url: str, owner: Connection, text: str) -> None:
    may_read(owner, "true")
    may_write(owner, "true")

    for access in (
        read(url, text),
        read(url, "room", claims(sub=text)),
        read(url, "room", claims(), {"x-a": text}),
        write(url, text),
        write(url, "room", claims(sub=text)),
    ):
        assert not access
        assert "has no text for" in str(access.reason)


def test_a_million_characters_are_harmless(url: str, owner: Connection) -> None:
    may_read(owner, "true")
    may_write(owner, "true")
    huge = "x" * 1_000_000

    assert read(url, "room", claims(sub=huge), {"x-a": huge}) == BOTH
    assert not read(url, "room", claims(huge))
    for access in (read(url, huge), write(url, huge)):
        assert not access
        assert "at most 246 fit" in str(access.reason)


def test_a_number_that_no_jsonb_holds_is_denied(url: str, owner: Connection) -> None:
    may_read(owner, "true")

    assert not read(
        url, who=Claims("authenticated", 1, None, '{"role":"authenticated","n":1e999999}')
    )


# When the question cannot be asked


def test_a_missing_partition_is_no_answer(url: str, owner: Connection) -> None:
    may_read(owner, "true")
    may_write(owner, "true")
    for day in _days(owner):
        owner.execute("select realtime.drop_partition(%s)", [day])

    for question in (read, write):
        with pytest.raises(policies.MissingPartition) as raised:
            question(url)
        assert raised.value.join == (
            "MissingPartition: Realtime was unable to find the expected messages partition"
        )


def _days(owner: Connection) -> list[date]:
    row = owner.execute("select (clock_timestamp() at time zone 'utc')::date").fetchone()
    assert row
    return [row[0] + timedelta(days=n) for n in range(-1, 8)]


def test_a_slow_policy_is_canceled_by_the_statement_timeout(url: str, owner: Connection) -> None:
    owner.execute(
        "create function public.waits() returns boolean language sql as "
        "'select pg_sleep(30) is not null'"
    )
    may_read(owner, "public.waits()")

    with pytest.raises(policies.QueryCanceled) as raised:
        read(url, kwargs={"options": "-c statement_timeout=50ms"})

    assert raised.value.close == "Query was cancelled, please try again"
    assert raised.value.join.startswith("QueryCanceled: ")


def test_a_table_that_is_locked_for_long_is_no_answer(url: str, owner: Connection) -> None:
    with owner.transaction():
        owner.execute("lock table realtime.messages")
        with pytest.raises(policies.QueryCanceled):
            read(url, kwargs={"options": "-c lock_timeout=20ms"})


def test_a_connection_is_good_again_after_an_error(url: str, owner: Connection) -> None:
    may_read(owner, "case realtime.topic() when 'slow' then pg_sleep(30) is not null else true end")

    async def twice(asked: Policies) -> Access:
        with pytest.raises(policies.QueryCanceled):
            await asked.read_access("slow", claims())
        assert not await asked.read_access("a\0", claims())
        return await asked.read_access("room", claims())

    assert ask(url, twice, kwargs={"options": "-c statement_timeout=2s"}) == BOTH


def test_a_pool_in_which_all_is_lent_asks_for_a_larger_one(url: str) -> None:
    async def while_lent(asked: Policies) -> list[object]:
        async with asked._pool.connection(timeout=DEADLINE_SECONDS):
            # One waits in vain, the other is not even let wait.
            questions = (asked.read_access("room", claims()) for _ in range(2))
            return list(await asyncio.gather(*questions, return_exceptions=True))

    for error in ask(url, while_lent, timeout=0.1, max_waiting=1):
        assert isinstance(error, policies.IncreaseConnectionPool)
        assert error.join.startswith("IncreaseConnectionPool: Please increase")


def test_a_database_that_is_not_there_is_not_a_small_pool(url: str) -> None:
    nowhere = make_conninfo(url, port="1", host="127.0.0.1", connect_timeout="2")

    with pytest.raises(policies.UnableToConnectToProject) as raised:
        read(nowhere, timeout=0.5)

    assert raised.value.close == "Realtime was unable to connect to the project database"


def test_a_connection_that_is_lost_is_told_and_made_anew(url: str, server_url: str) -> None:
    async def lose(asked: Policies) -> Access:
        async with asked._pool.connection() as connection:
            pid = connection.info.backend_pid
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(policies.UnableToConnectToProject):
            await asked.read_access("room", claims())
        return await asked.read_access("room", claims())

    assert ask(url, lose) == NOTHING


def test_a_database_without_the_function_is_an_error_and_no_denial(
    url: str, owner: Connection
) -> None:
    owner.execute("drop function realtime.authorize")

    with pytest.raises(CheckFailed, match=r"function realtime\.authorize"):
        read(url)


def test_a_pool_without_autocommit_works_as_well(url: str, owner: Connection) -> None:
    may_read(owner, "true")

    assert read(url, kwargs={"autocommit": False}) == BOTH
