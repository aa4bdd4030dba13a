"""The database to clients: what SQL sends, on public and private channels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def send(database, topic: str, event: str, payload: str = "{}", *, private: bool = False) -> str:
    """Returns the message's id."""
    row = database.execute(
        "select realtime.send(%s::jsonb, %s, %s, %s)", [payload, event, topic, private]
    ).fetchone()
    return str(row[0])


def test_what_sql_sends_arrives_with_its_id(connect, library, topic, database) -> None:
    ann = connect(library)
    ann.join(topic)

    sent = send(database, topic, "greeting", '{"text": "hi", "id": 7}')

    message = ann.message()
    assert message[:3] == (topic, "greeting", {"text": "hi", "id": 7})
    # The clients in Python keep nothing else of it.
    assert message.meta.keys() == ({"id"} if ann.is_python else {"id", "cursor"})
    assert message.meta["id"] == sent


def test_a_payload_without_an_id_gets_that_of_the_message(
    connect, library, topic, database
) -> None:
    ann = connect(library)
    ann.join(topic)

    sent = send(database, topic, "greeting", '{"text": "hi"}')

    assert ann.message().payload == {"text": "hi", "id": sent}


def test_what_is_rolled_back_never_arrives(connect, library, topic, database) -> None:
    ann = connect(library)
    ann.join(topic)

    with pytest.raises(ZeroDivisionError), database.transaction():
        send(database, topic, "rolled back")
        _ = 1 / 0
    send(database, topic, "committed")

    assert ann.message().event == "committed"


def test_public_and_private_channels_of_a_topic_are_apart(
    connect, library, topic, database, admit
) -> None:
    admit("ann", topic)
    ann = connect(library, user="ann")
    bob = connect(library)
    ann.join(topic, private=True)
    bob.join(topic)

    send(database, topic, "for members", private=True)
    send(database, topic, "for all")
    send(database, topic, "for members again", private=True)

    assert ann.message().event == "for members"
    assert bob.message().event == "for all"
    assert ann.message().event == "for members again"


def test_a_hundred_messages_of_a_transaction_arrive_in_order(
    connect, library, topic, database
) -> None:
    ann = connect(library)
    ann.join(topic)

    with database.transaction():
        for number in range(100):
            send(database, topic, "count", f'{{"number": {number}}}')

    assert [ann.message().payload["number"] for _ in range(100)] == list(range(100))


def test_numbers_are_what_the_clients_parser_makes_of_their_digits(
    connect, library, topic, database
) -> None:
    ann = connect(library)
    ann.join(topic)

    send(database, topic, "numbers", '{"big": 9007199254740993, "price": 1.10, "id": 1}')

    # A JavaScript number has 53 bits; an int of Python has them all.
    big = 9007199254740993 if ann.is_python else 9007199254740992
    assert ann.message().payload == {"big": big, "price": 1.1, "id": 1}


def test_bytes_arrive_as_an_array_buffer(connect, topic, database) -> None:
    for library in ("supabase-js", "realtime-js"):
        ann = connect(library)
        ann.join(topic)

        sent = database.execute(
            "select realtime.send_binary('\\x00ff7b', 'bytes', %s, false)", [topic]
        ).fetchone()

        message = ann.message()
        assert message[:3] == (topic, "bytes", {"hex": "00ff7b"})
        assert message.meta["id"] == str(sent[0])


def test_bytes_pass_by_a_client_whose_framing_has_none(connect, topic, database) -> None:
    for library in ("supabase-py", "realtime-py"):
        ann = connect(library)
        ann.join(topic)

        database.execute("select realtime.send_binary('\\x00', 'bytes', %s, false)", [topic])
        send(database, topic, f"text for {library}")

        assert ann.message().event == f"text for {library}"


def test_broadcast_changes_in_a_trigger_tells_what_changed(
    connect, library, topic, database, admit
) -> None:
    table = topic.replace(":", "_")
    database.execute(f"""
        create table public.{table} (id bigint primary key, body text);
        create function public.{table}_changes() returns trigger language plpgsql
        security definer set search_path = '' as $$
        begin
            perform realtime.broadcast_changes(
                '{topic}', tg_op, tg_op, tg_table_name, tg_table_schema, new, old
            );
            return null;
        end;
        $$;
        create trigger changes after insert or update or delete on public.{table}
        for each row execute function public.{table}_changes();
    """)
    admit("ann", topic)
    ann = connect(library, user="ann")
    ann.join(topic, private=True)

    database.execute(f"insert into {table} values (1, 'é')")
    database.execute(f"update {table} set body = 'b'")
    database.execute(f"delete from {table}")

    changes = [ann.message() for _ in range(3)]
    assert [change.event for change in changes] == ["INSERT", "UPDATE", "DELETE"]
    for change in changes:
        assert change.payload.pop("id") == change.meta["id"]
    common = {"schema": "public", "table": table}
    first, second = {"id": 1, "body": "é"}, {"id": 1, "body": "b"}
    assert [change.payload for change in changes] == [
        {**common, "operation": "INSERT", "record": first, "old_record": None},
        {**common, "operation": "UPDATE", "record": second, "old_record": first},
        {**common, "operation": "DELETE", "record": None, "old_record": second},
    ]


def test_a_trigger_of_the_command_line_tells_what_changed(
    connect, library, topic, database, client_database_url, admit
) -> None:
    table = topic.replace(":", "_")
    database.execute(f"create table {table} (id bigint primary key, title text)")
    subprocess.run(
        [sys.executable, "-m", "realtime_db", "trigger", "add", table, "--topic", topic + ":{id}"],
        env={**os.environ, "DATABASE_URL": client_database_url},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    admit("ann", f"{topic}:1")
    ann = connect(library, user="ann")
    ann.join(f"{topic}:1", private=True)

    database.execute(f"insert into {table} values (2, 'not hers'), (1, 'write')")
    database.execute(f"update {table} set title = 'read'")

    insert, update = ann.message(), ann.message()
    assert (insert.event, update.event) == ("INSERT", "UPDATE")
    assert insert.payload["record"] == {"id": 1, "title": "write"}
    assert update.payload["record"] == {"id": 1, "title": "read"}
    assert update.payload["old_record"] == {"id": 1, "title": "write"}
