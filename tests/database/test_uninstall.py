"""Removing realtime-db, and what of the user's depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from realtime_db.errors import Busy, ForeignSchema, InstallError, MissingRight, NotInstalled
from realtime_db.install import inspect, migrate, triggers, uninstall
from realtime_db.install.uninstall import Effect

VIEW = "create view public.recent as select topic from realtime.messages"
POLICY = "create policy readers on realtime.messages for select using (topic = realtime.topic())"
TRIGGER = """
    create table public.todos (id integer);
    create function public.announce() returns trigger language plpgsql as $$
    begin
        perform realtime.send('{}', 'event', 'topic');
        return null;
    end;
    $$;
    create trigger announce after insert on public.todos
    for each row execute function public.announce()
"""


@pytest.fixture
def released_url(create_database: Callable[..., str]) -> str:
    """A database with the newest release, without changes of the living tree."""
    url = create_database()
    asyncio.run(migrate.migrate(url))
    return url


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def remaining(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "select nspname from pg_namespace where nspname = 'realtime' "
            "union all select pubname from pg_publication"
        ).fetchall()


def add_trigger(url: str) -> None:
    execute(url, "create table public.todos (id integer primary key)")
    asyncio.run(triggers.add(url, triggers.TriggerOptions("todos", "todo:{id}")))


def dependants(url: str) -> list[tuple[str, Effect]]:
    return [(item.description, item.effect) for item in asyncio.run(uninstall.look(url)).dependants]


def test_uninstall_leaves_nothing_behind(released_url: str) -> None:
    execute(released_url, "select realtime.send('{}', 'event', 'topic')")

    answer = asyncio.run(uninstall.uninstall(released_url))

    assert answer.endswith("was removed, with 1 stored message")
    assert remaining(released_url) == []
    assert asyncio.run(inspect.status(released_url)).state is inspect.State.ABSENT


def test_uninstall_keeps_the_roles(released_url: str) -> None:
    asyncio.run(uninstall.uninstall(released_url))

    with psycopg.connect(released_url) as connection:
        roles = connection.execute(
            "select count(*) from pg_roles where rolname in ('anon', 'authenticated')"
        ).fetchone()
    assert roles == (2,)


def test_migrate_after_uninstall_installs_again(released_url: str) -> None:
    asyncio.run(uninstall.uninstall(released_url))
    asyncio.run(migrate.migrate(released_url))

    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT


def test_looking_names_what_would_go_and_changes_nothing(released_url: str) -> None:
    execute(released_url, "select realtime.send('{}', 'event', 'topic')")

    removal = asyncio.run(uninstall.look(released_url))

    assert "table realtime.messages" in removal.objects
    assert "publication realtime_messages" in removal.objects
    assert removal.message_count == 1
    assert removal.dependants == ()
    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT


def test_a_view_on_the_messages_keeps_them_from_being_dropped(released_url: str) -> None:
    execute(released_url, VIEW)

    with pytest.raises(InstallError, match=r"in use by view .*recent"):
        asyncio.run(uninstall.uninstall(released_url))

    assert dependants(released_url) == [("view recent", Effect.BLOCKS)]
    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT


def test_a_foreign_view_goes_only_with_cascade(released_url: str) -> None:
    execute(released_url, VIEW)

    asyncio.run(uninstall.uninstall(released_url, cascade=True))

    assert remaining(released_url) == []


def test_a_policy_of_the_user_is_listed_and_ours_is_not(released_url: str) -> None:
    execute(released_url, POLICY)

    assert dependants(released_url) == [("policy readers on table realtime.messages", Effect.GOES)]
    asyncio.run(uninstall.uninstall(released_url))
    assert remaining(released_url) == []


def test_a_policy_elsewhere_that_calls_our_function_blocks(released_url: str) -> None:
    execute(
        released_url,
        "create table public.notes (topic text)",
        "create policy readers on public.notes using (topic = realtime.topic())",
    )

    assert dependants(released_url) == [("policy readers on table notes", Effect.BLOCKS)]


def test_a_broadcast_trigger_keeps_realtime_db_from_being_removed(released_url: str) -> None:
    add_trigger(released_url)

    with pytest.raises(InstallError, match="in use by broadcast trigger realtime_broadcast"):
        asyncio.run(uninstall.uninstall(released_url))

    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT
    execute(released_url, "insert into public.todos values (1)")


def test_with_cascade_broadcast_triggers_go_with_their_functions(released_url: str) -> None:
    add_trigger(released_url)
    # A table that shares the function of another.
    execute(
        released_url,
        "create table public.tasks (id integer primary key)",
        "create trigger mine after insert on public.tasks referencing new table as new_rows "
        "for each statement execute function public.todos_realtime_broadcast()",
    )

    answer = asyncio.run(uninstall.uninstall(released_url, cascade=True))

    assert "Fails from now on" not in answer
    execute(released_url, "insert into public.todos values (1)")
    execute(released_url, "insert into public.tasks values (1)")
    with psycopg.connect(released_url) as connection:
        assert connection.execute(
            "select count(*) from pg_proc where pronamespace = 'public'::regnamespace"
        ).fetchone() == (0,)


def test_a_trigger_function_that_sends_keeps_it_too_and_its_trigger_can_be_dropped(
    released_url: str,
) -> None:
    execute(released_url, TRIGGER)

    with pytest.raises(InstallError, match="called by trigger announce on table todos") as refused:
        asyncio.run(uninstall.uninstall(released_url))

    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT
    drop = refused.value.hint.splitlines()[-1].strip() if refused.value.hint else ""
    assert drop == "drop trigger announce on public.todos;"
    execute(released_url, drop)
    asyncio.run(uninstall.uninstall(released_url))
    execute(released_url, "insert into public.todos values (1)")


def test_with_cascade_a_trigger_function_that_sends_stays_and_that_is_said(
    released_url: str,
) -> None:
    execute(released_url, TRIGGER)
    assert dependants(released_url) == [
        ("function announce(), called by trigger announce on table todos", Effect.FAILS)
    ]

    answer = asyncio.run(uninstall.uninstall(released_url, cascade=True))

    assert "Fails from now on:\n  function announce(), called by trigger announce" in answer
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        execute(released_url, "insert into public.todos values (1)")


@pytest.mark.parametrize(
    "trigger",
    ["", "create trigger mine before insert on realtime.messages for each row"],
    ids=["none", "of the messages"],
)
def test_a_function_that_no_write_will_call_is_listed_and_in_nobodys_way(
    released_url: str, trigger: str
) -> None:
    function = TRIGGER.partition("create trigger")[0]
    execute(released_url, function, trigger and f"{trigger} execute function public.announce()")

    assert ("function announce()", Effect.BREAKS) in dependants(released_url)

    assert "Fails from now on" in asyncio.run(uninstall.uninstall(released_url))


def test_a_schema_with_objects_of_others_stays(released_url: str) -> None:
    execute(released_url, "create table realtime.mine (id integer)")

    answer = asyncio.run(uninstall.uninstall(released_url))

    assert "stays" in answer
    assert remaining(released_url) == [("realtime",)]
    execute(released_url, "select from realtime.mine")


def test_a_function_of_the_user_beside_ours_is_not_dropped(released_url: str) -> None:
    execute(
        released_url,
        "create function realtime.topic(integer) returns integer language sql as 'select $1'",
    )

    asyncio.run(uninstall.uninstall(released_url))

    assert remaining(released_url) == [("realtime",)]
    execute(released_url, "select realtime.topic(1)")


def test_an_idle_slot_is_named_and_kept(released_url: str) -> None:
    slot = "realtime_" + psycopg.conninfo.conninfo_to_dict(released_url)["dbname"]
    execute(released_url, f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    try:
        answer = asyncio.run(uninstall.uninstall(released_url))

        assert f"select pg_drop_replication_slot('{slot}');" in answer
    finally:
        execute(released_url, f"select pg_drop_replication_slot('{slot}')")


def test_somebody_else_than_the_owner_is_told_who_that_is(released_url: str) -> None:
    as_anon = psycopg.conninfo.make_conninfo(released_url, options="-c role=anon")

    with pytest.raises(MissingRight, match='Connect as "app"'):
        asyncio.run(uninstall.uninstall(as_anon))


def test_a_table_in_use_is_not_waited_for_without_end(released_url: str) -> None:
    with psycopg.connect(released_url) as reader:
        reader.execute("select from realtime.messages")

        with pytest.raises(Busy):
            asyncio.run(
                uninstall.uninstall(released_url, limits=migrate.Limits(lock_timeout_ms=20))
            )

    assert asyncio.run(inspect.status(released_url)).state is inspect.State.CURRENT


def test_uninstall_of_nothing_says_so(empty_database_url: str) -> None:
    with pytest.raises(NotInstalled):
        asyncio.run(uninstall.uninstall(empty_database_url))


def test_uninstall_refuses_a_schema_that_is_not_ours(empty_database_url: str) -> None:
    execute(
        empty_database_url,
        "create schema realtime",
        "create table realtime.schema_migrations (version bigint)",
    )

    with pytest.raises(ForeignSchema):
        asyncio.run(uninstall.uninstall(empty_database_url))
