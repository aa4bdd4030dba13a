"""`realtime.send_many`: many messages with one statement."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[tuple[Any, ...]]

SEND_MANY = "select realtime.send_many(%s::jsonb[], %s::text[], %s::text[])"
STORED = "select topic, event, payload - 'id' from realtime.messages order by inserted_at, position"


def test_each_message_has_its_own_event_and_topic(connection: Connection) -> None:
    sent = connection.execute(
        SEND_MANY, [[Jsonb({"n": 1}), Jsonb({"n": 2})], ["a", "b"], ["x", "y"]]
    ).fetchone()

    assert sent == (2,)
    assert connection.execute(STORED).fetchall() == [("x", "a", {"n": 1}), ("y", "b", {"n": 2})]


def test_one_event_and_one_topic_serve_all(connection: Connection) -> None:
    connection.execute(
        "select realtime.send_many(array_agg(jsonb_build_object('n', i) order by i), "
        "array['tick'], array['clock']) from generate_series(1, 1000) as i"
    )

    stored = connection.execute(STORED).fetchall()
    assert stored == [("clock", "tick", {"n": i}) for i in range(1, 1001)]


def test_each_payload_carries_its_message_s_id(connection: Connection) -> None:
    connection.execute(SEND_MANY, [[Jsonb({}), Jsonb({"id": 1}), Jsonb(3)], ["e"], ["t"]])

    rows = connection.execute(
        "select payload, id::text from realtime.messages order by inserted_at, position"
    ).fetchall()
    assert [row[0] for row in rows] == [{"id": rows[0][1]}, {"id": 1}, 3]


def test_none_at_all_is_fine(connection: Connection) -> None:
    assert connection.execute(SEND_MANY, [[], ["e"], ["t"]]).fetchone() == (0,)


@pytest.mark.parametrize(
    ("payloads", "events", "topics", "code"),
    [
        ([Jsonb(1), Jsonb(2)], ["e"], ["a", "b", "c"], "2202E"),
        ([Jsonb(1), Jsonb(2)], [], ["a"], "2202E"),
        (None, ["e"], ["a"], "2202E"),
        ([Jsonb(1), None], ["e"], ["a"], "RT004"),
        ([Jsonb(1), Jsonb(2)], ["e"], ["a", None], "RT002"),
        ([Jsonb(1), Jsonb(2)], ["e", None], ["a"], "RT004"),
        ([Jsonb(1), Jsonb(2)], ["e"], ["a", "b" * 247], "RT005"),
    ],
)
def test_one_message_that_cannot_be_sent_refuses_all(
    connection: Connection, payloads: object, events: object, topics: object, code: str
) -> None:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(SEND_MANY, [payloads, events, topics])

    assert raised.value.sqlstate == code
    assert raised.value.diag.message_hint
    assert connection.execute(STORED).fetchall() == []


def test_policies_see_the_topic_of_each_row(connection: Connection) -> None:
    connection.execute(
        "create policy own on realtime.messages for insert to authenticated "
        "with check (realtime.topic() = topic and topic like 'room:%')"
    )
    with connection.transaction():
        connection.execute("set local role authenticated")
        connection.execute(SEND_MANY, [[Jsonb({}), Jsonb({})], ["e"], ["room:1", "room:2"]])

    with (
        connection.transaction(force_rollback=True),
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("set local role authenticated")
        connection.execute(SEND_MANY, [[Jsonb(1), Jsonb(2)], ["e"], ["room:1", "hall:2"]])

    assert connection.execute("select count(*) from realtime.messages").fetchone() == (2,)


def test_a_writer_whom_no_policy_lets_in_is_told_the_mend(connection: Connection) -> None:
    with (
        connection.transaction(force_rollback=True),
        pytest.raises(psycopg.errors.InsufficientPrivilege) as raised,
    ):
        connection.execute("set local role anon")
        connection.execute(SEND_MANY, [[Jsonb(1)], ["e"], ["room:1"]])

    assert "security definer" in str(raised.value.diag.message_hint)


def test_with_on_send_error_warn_the_write_survives(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("set local realtime.on_send_error = 'warn'")
        lost = connection.execute(SEND_MANY, [[Jsonb(1)], ["e"], [None]]).fetchone()
        kept = connection.execute(SEND_MANY, [[Jsonb(1)], ["e"], ["t"]]).fetchone()

    assert (lost, kept) == ((0,), (1,))
    assert connection.execute("select error_code from realtime.send_errors").fetchall() == [
        ("RT002",)
    ]
