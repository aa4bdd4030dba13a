"""`realtime.broadcast_changes`, called from the row-level trigger that its documentation shows."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

Connection = psycopg.Connection[tuple[Any, ...]]

DOCUMENTED = """
create table public.todos (id bigint primary key, title text);
CREATE OR REPLACE FUNCTION public.todo_changes()
RETURNS trigger
SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    PERFORM realtime.broadcast_changes('topic:' || NEW.id::text, TG_OP, TG_OP, TG_TABLE_NAME, TG_TABLE_SCHEMA, NEW, OLD);
    RETURN NULL;
END;
$$ LANGUAGE plpgsql;
CREATE TRIGGER broadcast_todo_changes
AFTER INSERT OR UPDATE OR DELETE ON public.todos
FOR EACH ROW
EXECUTE FUNCTION todo_changes();
"""  # noqa: E501


@pytest.fixture
def todos(connection: Connection) -> Connection:
    connection.execute(DOCUMENTED.encode())
    return connection


def sent(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select topic, event, private, payload - 'id' from realtime.messages "
        "order by inserted_at, position"
    ).fetchall()


def change(operation: str, record: object, old_record: object) -> dict[str, object]:
    return {
        "schema": "public",
        "table": "todos",
        "operation": operation,
        "record": record,
        "old_record": old_record,
    }


def test_an_insert_sends_the_record(todos: Connection) -> None:
    todos.execute("insert into todos values (1, 'write')")

    record = {"id": 1, "title": "write"}
    assert sent(todos) == [("topic:1", "INSERT", True, change("INSERT", record, None))]


def test_an_update_sends_the_record_and_the_old_one(todos: Connection) -> None:
    todos.execute("insert into todos values (1, 'write')")
    todos.execute("update todos set title = 'read'")

    assert sent(todos)[1] == (
        "topic:1",
        "UPDATE",
        True,
        change("UPDATE", {"id": 1, "title": "read"}, {"id": 1, "title": "write"}),
    )


def test_a_delete_with_its_own_topic_sends_the_old_record(todos: Connection) -> None:
    todos.execute("insert into todos values (1, 'write')")
    todos.execute(
        """
        create or replace function public.todo_changes() returns trigger
        security definer set search_path = '' language plpgsql as $$
        begin
            perform realtime.broadcast_changes(
                'topic:' || coalesce(new.id, old.id)::text,
                tg_op, tg_op, tg_table_name, tg_table_schema, new, old
            );
            return null;
        end;
        $$
        """
    )
    todos.execute("delete from todos")

    assert sent(todos)[1] == (
        "topic:1",
        "DELETE",
        True,
        change("DELETE", None, {"id": 1, "title": "write"}),
    )


def test_a_delete_whose_topic_is_built_from_new_goes_through_with_a_warning(
    todos: Connection,
) -> None:
    notes: list[tuple[str | None, ...]] = []
    todos.add_notice_handler(
        lambda note: notes.append((note.severity, note.message_primary, note.message_hint))
    )
    todos.execute("insert into todos values (1, 'write')")

    todos.execute("delete from todos")

    assert todos.execute("select count(*) from todos").fetchone() == (0,)
    assert len(sent(todos)) == 1
    ((severity, message, hint),) = notes
    assert severity == "WARNING"
    assert "trigger broadcast_todo_changes on public.todos" in str(message)
    assert "coalesce(new.id, old.id)" in str(hint)


def test_a_null_topic_on_insert_is_an_error(todos: Connection) -> None:
    todos.execute("alter table todos drop constraint todos_pkey, alter id drop not null")

    with pytest.raises(psycopg.Error, match="no topic") as raised:
        todos.execute("insert into todos values (null, 'write')")

    assert raised.value.sqlstate == "RT002"


def test_the_payload_carries_the_message_s_id(todos: Connection) -> None:
    todos.execute("insert into todos values (1, 'write')")

    row = todos.execute("select payload ->> 'id' = id::text from realtime.messages").fetchone()
    assert row == (True,)


@pytest.mark.parametrize(
    ("operation", "level", "error"),
    [
        (
            "INSERT",
            "STATEMENT",
            "Failed to process the row: function can only be triggered for each row, "
            "not for each statement",
        ),
        ("TRUNCATE", "ROW", "Failed to process the row: Unexpected operation type: TRUNCATE"),
        (None, "ROW", "Failed to process the row: Unexpected operation type: <NULL>"),
    ],
)
def test_what_is_no_change_of_a_row_is_refused_in_the_words_of_the_reference(
    todos: Connection, operation: str | None, level: str, error: str
) -> None:
    with pytest.raises(psycopg.errors.RaiseException) as raised:
        todos.execute(
            "select realtime.broadcast_changes('topic', 'e', %s, 'todos', 'public', "
            "null::public.todos, null::public.todos, %s)",
            [operation, level],
        )

    assert raised.value.diag.message_primary == error
    assert raised.value.diag.message_hint


def test_rows_of_a_rolled_back_savepoint_are_not_sent(todos: Connection) -> None:
    with todos.transaction():
        todos.execute("insert into todos values (1, 'kept')")
        with todos.transaction(force_rollback=True):
            todos.execute("insert into todos values (2, 'undone')")
        todos.execute("insert into todos values (3, 'kept')")

    assert [topic for topic, *_ in sent(todos)] == ["topic:1", "topic:3"]


def test_ten_thousand_rows_use_one_transaction_id(todos: Connection) -> None:
    todos.execute("insert into todos select i, 'x' from generate_series(1, 10000) as i")

    # A row of a subtransaction would have an xmin of its own.
    found = todos.execute(
        "select count(*), count(distinct xmin::text) from realtime.messages"
    ).fetchone()
    assert found == (10000, 1)


def test_a_writer_of_the_table_needs_no_right_to_send(todos: Connection) -> None:
    todos.execute("grant insert on todos to authenticated")

    with todos.transaction():
        todos.execute("set local role authenticated")
        todos.execute("insert into todos values (1, 'write')")

    assert len(sent(todos)) == 1


def test_numbers_beyond_the_reach_of_a_float_keep_every_digit(connection: Connection) -> None:
    connection.execute(DOCUMENTED.replace("title text", "title numeric").encode())
    connection.execute(
        "insert into todos values (9007199254740993, 1234567890.12345678901234567890)"
    )

    row = connection.execute(
        "select payload #>> '{record,id}', payload #>> '{record,title}' from realtime.messages"
    ).fetchone()
    assert row == ("9007199254740993", "1234567890.12345678901234567890")
