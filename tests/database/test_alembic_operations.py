"""`op.add_broadcast_trigger` and `op.drop_broadcast_trigger` in a migration of a user's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg.conninfo import conninfo_to_dict

import realtime_db.alembic
from realtime_db.errors import TriggerError
from realtime_db.install.trigger_options import TriggerOptions

TOPIC = "it's :id %s \\ {id}"


@pytest.fixture
def migrate(database_url: str) -> Iterator[Callable[[Callable[[Any], None]], None]]:
    """`migrate(revision)` calls revision(op) in a transaction of its own."""
    known = conninfo_to_dict(database_url)
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=known["user"],
        password=known["password"],
        host=known["host"],
        port=int(known["port"]),
        database=known["dbname"],
    )
    engine = sqlalchemy.create_engine(url)

    def run(revision: Callable[[Any], None]) -> None:
        with engine.begin() as connection:
            revision(Operations(MigrationContext.configure(connection)))

    yield run
    engine.dispose()


@pytest.fixture
def todos(connection: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database with an empty table of todos."""
    connection.execute("create table todos (id integer primary key, note text)")
    return connection


def topics(connection: psycopg.Connection) -> list[str]:
    found = connection.execute("select topic from realtime.messages order by position").fetchall()
    return [topic for (topic,) in found]


def ours(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "select (select count(*) from pg_trigger where not tgisinternal and tgrelid = 'todos'"
        "::regclass) + (select count(*) from pg_proc where pronamespace = 'public'::regnamespace)"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_an_upgrade_adds_the_trigger_and_its_downgrade_removes_it(
    todos: psycopg.Connection, migrate: Callable[..., None]
) -> None:
    migrate(lambda op: op.add_broadcast_trigger("todos", TOPIC, when="new.note <> ':x %s'"))
    todos.execute("insert into todos values (1, 'a'), (2, ':x %s')")
    assert topics(todos) == ["it's :id %s \\ 1"]

    migrate(lambda op: op.drop_broadcast_trigger("todos"))

    assert ours(todos) == 0


def test_the_table_may_be_made_by_the_same_migration(
    connection: psycopg.Connection, migrate: Callable[..., None]
) -> None:
    def upgrade(op: Operations) -> None:
        op.create_table("notes", sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
        op.add_broadcast_trigger("notes", "note:{id}", level="row", private=False)

    migrate(upgrade)

    connection.execute("insert into notes values (1)")
    assert topics(connection) == ["note:1"]


def test_options_are_those_of_the_command_line(
    todos: psycopg.Connection, migrate: Callable[..., None]
) -> None:
    def upgrade(op: Operations) -> None:
        op.add_broadcast_trigger("todos", "first", name="mine")
        op.add_broadcast_trigger("todos", "second", name="mine", events=["delete"], replace=True)

    migrate(upgrade)
    todos.execute("insert into todos values (1, 'a')")
    todos.execute("delete from todos")

    assert topics(todos) == ["second"]
    migrate(lambda op: op.drop_broadcast_trigger("todos", name="mine"))
    assert ours(todos) == 0


def test_a_mistake_fails_the_migration(
    todos: psycopg.Connection, migrate: Callable[..., None]
) -> None:
    with pytest.raises(TriggerError, match="has no column nothing"):
        migrate(lambda op: op.add_broadcast_trigger("todos", "{nothing}"))
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="nothing does not exist"):
        migrate(lambda op: op.add_broadcast_trigger("todos", "x", when="new.nothing"))
    with pytest.raises(TriggerError, match="no broadcast trigger mine"):
        migrate(lambda op: op.drop_broadcast_trigger("todos", name="mine"))

    assert ours(todos) == 0


def test_offline_sql_upgrades_and_downgrades_without_a_database(todos: psycopg.Connection) -> None:
    def script(revision: Callable[[Any], None]) -> str:
        out = io.StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql", opts={"as_sql": True, "output_buffer": out}
        )
        revision(Operations(context))
        return out.getvalue()

    upgrade = script(lambda op: op.add_broadcast_trigger("todos", TOPIC, replace=True))
    downgrade = script(lambda op: op.drop_broadcast_trigger("todos"))

    todos.execute(upgrade)
    todos.execute(upgrade)
    todos.execute("insert into todos values (1, 'a')")
    assert topics(todos) == ["it's :id %s \\ 1"]
    todos.execute(downgrade)
    assert ours(todos) == 0


def test_the_reverse_of_adding_drops_what_was_added() -> None:
    trigger = TriggerOptions(
        "todos", "x", table_schema="app", name="mine", function_schema="functions"
    )

    reverse = realtime_db.alembic.AddBroadcastTrigger(trigger).reverse()

    assert vars(reverse) == {
        "table": "todos",
        "table_schema": "app",
        "name": "mine",
        "function_schema": "functions",
    }
