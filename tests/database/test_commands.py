"""What the commands say of broadcast triggers, of removing all and of the database's URL."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import psycopg
import pytest
from click.testing import CliRunner, Result

from realtime_db.cli import main

Run = Callable[..., Result]

ODD = 'create schema "My Schema"; create table "My Schema"."To dos" (id bigint primary key)'


@pytest.fixture
def run(database_url: str) -> Run:
    """`run("trigger", "list")`, with the database of the test."""

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"DATABASE_URL": database_url})

    return call


@pytest.fixture
def todos(connection: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database with a table of todos."""
    connection.execute("create table todos (id bigint primary key, list_id bigint)")
    return connection


# --- triggers -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("todos")
def test_a_second_trigger_is_added_to_what_the_table_broadcasts_to(run: Run) -> None:
    first = run("trigger", "add", "todos", "--topic", "todo:{id}", "--public")
    second = run("trigger", "add", "todos", "--topic", "list:{list_id}", "--name", "lists")

    assert first.output == "todos broadcasts to todo:{id}\n"
    told, private = second.output.splitlines()
    assert told == "todos broadcasts to list:{list_id} (lists) and todo:{id} (realtime_broadcast)"
    assert "private" in private


@pytest.mark.usefixtures("todos")
def test_a_removal_tells_what_the_table_still_broadcasts_to(run: Run) -> None:
    run("trigger", "add", "todos", "--topic", "todo:{id}")
    run("trigger", "add", "todos", "--topic", "list:{list_id}", "--name", "lists")

    first = run("trigger", "remove", "todos")
    second = run("trigger", "remove", "todos", "--name", "lists")

    assert first.output == (
        "todos lost trigger realtime_broadcast; it still broadcasts to list:{list_id}\n"
    )
    assert second.output == "todos has no broadcast trigger any more\n"


def test_names_of_the_list_can_be_pasted_back(run: Run, connection: psycopg.Connection) -> None:
    connection.execute(ODD)
    table = '"My Schema"."To dos"'
    run("trigger", "add", table, "--topic", "todo:{id}", "--name", "It's mine")

    [line] = run("trigger", "list").output.splitlines()
    listed_table, name = shlex.split(line.partition("  todo:")[0])
    removed = run("trigger", "remove", listed_table, "--name", name)

    assert (listed_table, name) == (table, "It's mine")
    assert removed.exit_code == 0, removed.output


def test_the_list_in_json_has_schema_and_table_as_they_are(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute(ODD)
    run("trigger", "add", '"My Schema"."To dos"', "--topic", "todo:{id}")

    [listed] = json.loads(run("trigger", "list", "--json").output)

    assert (listed["schema"], listed["table"]) == ("My Schema", "To dos")
    assert listed["function_schema"] == "My Schema"


@pytest.mark.usefixtures("todos")
@pytest.mark.parametrize("level", ["statement", "row"])
def test_a_condition_that_is_no_sql_comes_with_how_to_write_one(run: Run, level: str) -> None:
    result = run(
        "trigger", "add", "todos", "--topic", "a", "--level", level, "--when", "new.id is is 1"
    )

    assert result.exit_code == 1
    assert "the condition cannot be used: syntax error" in result.output
    assert "It is SQL over new and old, such as" in result.output


# --- uninstall ----------------------------------------------------------------------------------


def test_a_removal_says_which_triggers_to_remove_first(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute(ODD)
    run("trigger", "add", '"My Schema"."To dos"', "--topic", "todo:{id}", "--name", "mine")

    lines = run("uninstall", "--dry-run").output.splitlines()

    at = next(number for number, line in enumerate(lines) if "broadcast triggers first" in line)
    command = shlex.split(lines[at + 1])
    assert command[0] == "realtime-db"
    assert run(*command[1:]).output == '"My Schema"."To dos" has no broadcast trigger any more\n'


@pytest.mark.usefixtures("todos")
def test_a_removal_that_was_not_asked_about_says_what_it_did(run: Run) -> None:
    run("trigger", "add", "todos", "--topic", "todo:{id}")

    result = run("uninstall", "--yes")

    assert "would" not in result.output
    assert "was removed, with 0 stored messages" in result.output
    assert "realtime-db trigger remove public.todos" in result.output
    assert run("trigger", "remove", "public.todos").exit_code == 0
