"""What the commands say of broadcast triggers, of removing all and of the database's URL."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

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
def test_what_is_left_of_a_dropped_table_can_be_listed_and_removed(
    run: Run, todos: psycopg.Connection
) -> None:
    run("trigger", "add", "todos", "--topic", "todo:{id}")
    todos.execute("drop table todos")

    listed = run("trigger", "list").output
    removed = run("trigger", "remove", listed.split()[0])

    assert listed.startswith("public.todos  realtime_broadcast  todo:{id}  ")
    assert "table is gone" in listed
    assert removed.exit_code == 0, removed.output
    assert run("trigger", "list").output == "no table of this database has a broadcast trigger\n"
    assert run("trigger", "list", "--json").output == "[]\n"


@pytest.mark.usefixtures("todos")
def test_removing_from_a_table_that_is_not_there_says_that(run: Run) -> None:
    result = run("trigger", "remove", "app.Todos")

    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "error: there is no table app.todos",
        "  Did you mean public.todos?",
    ]


def test_a_name_whose_quotes_the_shell_took_is_shown_with_quotes_for_a_shell(run: Run) -> None:
    refused = run("trigger", "remove", *shlex.split('"My Table"'))
    [shown] = re.findall(r"'.*?\"'", refused.output.partition("\n")[2])

    again = run("trigger", "remove", *shlex.split(shown))

    assert again.output.startswith("error: there is no table public.My Table\n")


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

    listed = run("uninstall", "--dry-run").output.splitlines()
    refused = run("uninstall", "--yes")

    at = listed.index('  broadcast trigger mine on "My Schema"."To dos"')
    command = listed[at + 1].strip()
    assert command.startswith("realtime-db trigger remove ")
    assert refused.exit_code == 1
    assert refused.output.splitlines()[-1].strip() == command
    assert (
        run(*shlex.split(command)[1:]).output
        == '"My Schema"."To dos" has no broadcast trigger any more\n'
    )
    assert run("uninstall", "--yes").exit_code == 0


@pytest.mark.usefixtures("todos")
def test_a_removal_that_was_not_asked_about_says_what_it_did(run: Run) -> None:
    run("trigger", "add", "todos", "--topic", "todo:{id}")

    result = run("uninstall", "--yes", "--cascade")

    assert "would" not in result.output
    assert result.output.endswith("was removed, with 0 stored messages\n")
    assert run("trigger", "list").output.startswith("no table of this database")


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_leaves_no_statement_that_goes_on_waiting(
    database_url: str, todos: psycopg.Connection
) -> None:
    def waiting() -> bool:
        query = "select from pg_locks where not granted and relation = 'todos'::regclass"
        return todos.execute(query).fetchone() is not None

    with ExitStack() as stack:
        stack.enter_context(todos.transaction())
        todos.execute("lock table todos")
        running = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "realtime_db", "trigger", "add", "todos", "--topic", "a"],
                env={**os.environ, "DATABASE_URL": database_url},
                stderr=subprocess.PIPE,
            )
        )
        deadline = time.monotonic() + 60
        while not waiting():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert not waiting()

    assert (running.returncode, err) == (130, b"")


def test_ctrl_c_instead_of_an_answer_removes_nothing(
    database_url: str, connection: psycopg.Connection
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "realtime_db", "uninstall"],
        env={**os.environ, "DATABASE_URL": database_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        asked = b""
        while not asked.endswith(b"[y/N]: "):
            more = running.stdout.read1(4096)
            assert more, asked
            asked += more
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)

    assert (running.returncode, err) == (130, b"")
    assert connection.execute("select to_regclass('realtime.messages')").fetchone() != (None,)
