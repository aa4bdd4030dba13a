"""`realtime.send` and `realtime.send_binary`: what is stored, what is refused, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[tuple[Any, ...]]

SEND = "select realtime.send(%s, %s, %s, %s)"
STORED = "select topic, event, payload, binary_payload, private, extension from realtime.messages"


def test_send_returns_the_id_of_the_row_that_it_stored(connection: Connection) -> None:
    sent = connection.execute("select realtime.send('{\"a\": 1}', 'event', 'topic')").fetchone()

    stored = connection.execute("select id, payload from realtime.messages").fetchone()

    assert sent is not None
    assert stored == (sent[0], {"a": 1, "id": str(sent[0])})


def test_the_documented_call_with_a_string_payload_stores_a_public_message(
    connection: Connection,
) -> None:
    connection.execute("SELECT realtime.send(to_jsonb('{}'::text), 'event', 'topic', FALSE);")

    assert connection.execute(STORED).fetchall() == [
        ("topic", "event", "{}", None, False, "broadcast")
    ]


@pytest.mark.parametrize("payload", [[1, 2], "text", 12.5, True, None, {}])
def test_any_json_value_is_a_payload(connection: Connection, payload: object) -> None:
    connection.execute(SEND, [Jsonb(payload), "event", "topic", True])

    stored = connection.execute("select payload, id::text from realtime.messages").fetchone()

    assert stored is not None
    expected = {"id": stored[1]} if payload == {} else payload
    assert stored[0] == expected


def test_an_id_in_the_payload_is_kept(connection: Connection) -> None:
    connection.execute(SEND, [Jsonb({"id": 7}), "event", "topic", True])

    assert connection.execute("select payload from realtime.messages").fetchone() == ({"id": 7},)


def test_messages_are_private_unless_told_otherwise(connection: Connection) -> None:
    connection.execute("select realtime.send('{}', 'event', 'topic')")
    connection.execute(SEND, [Jsonb({}), "event", "topic", None])

    assert connection.execute("select private from realtime.messages").fetchall() == [
        (True,),
        (True,),
    ]


@pytest.mark.parametrize("payload", [b"\x00\xff", b""])
def test_send_binary_stores_the_bytes(connection: Connection, payload: bytes) -> None:
    connection.execute("select realtime.send_binary(%b, 'event', 'topic', false)", [payload])

    assert connection.execute(STORED).fetchall() == [
        ("topic", "event", None, payload, False, "broadcast")
    ]


def test_an_untyped_literal_is_not_ambiguous(connection: Connection) -> None:
    connection.execute("select realtime.send('{}', 'event', 'topic')")
    connection.execute("select realtime.send_binary('\\x00', 'event', 'topic')")

    assert connection.execute("select count(*) from realtime.messages").fetchone() == (2,)


@pytest.mark.parametrize("function", ["send", "send_binary"])
@pytest.mark.parametrize(
    ("payload", "event", "topic", "code", "names"),
    [
        ("{}", "event", None, "RT002", "topic"),
        ("{}", "event", "", "RT002", "topic"),
        (None, "event", "room", "RT004", "room"),
        ("{}", None, "room", "RT004", "event"),
        ("{}", "event", "é" * 124, "RT005", "248 bytes"),
        ("{}", "e" * 256, "room", "RT005", "256 bytes"),
    ],
)
def test_a_message_that_could_not_be_delivered_is_an_error_with_a_hint(
    connection: Connection,
    function: str,
    payload: str | None,
    event: str | None,
    topic: str | None,
    code: str,
    names: str,
) -> None:
    call = sql.SQL("select realtime.{}(%s, %s, %s)").format(sql.Identifier(function))

    with pytest.raises(psycopg.Error) as raised:
        connection.execute(call, [payload, event, topic])

    assert raised.value.sqlstate == code
    assert names in str(raised.value.diag.message_primary)
    assert raised.value.diag.message_hint
    assert connection.execute("select count(*) from realtime.messages").fetchone() == (0,)


def test_the_longest_topic_and_event_fit(connection: Connection) -> None:
    connection.execute(SEND, [Jsonb(1), "é" * 127, "é" * 123, True])

    assert connection.execute("select count(*) from realtime.messages").fetchone() == (1,)


@pytest.mark.parametrize(
    ("call", "value"),
    [("send(to_jsonb(%s::text)", "x" * 70_000), ("send_binary(%s::bytea", b"x" * 70_000)],
)
def test_a_payload_over_the_setting_is_refused_with_both_sizes(
    connection: Connection, call: str, value: object
) -> None:
    connection.execute("update realtime.settings set max_payload_bytes = 65536")

    with pytest.raises(psycopg.Error, match=r"room is 7000\d bytes; at most 65536") as raised:
        connection.execute(f"select realtime.{call}, 'event', 'room')".encode(), [value])

    assert raised.value.sqlstate == "RT001"
    assert "max_payload_bytes" in str(raised.value.diag.message_hint)


def test_a_payload_at_the_limit_is_sent(connection: Connection) -> None:
    connection.execute("update realtime.settings set max_payload_bytes = 65536")

    connection.execute(SEND, [Jsonb("x" * 65534), "event", "topic", True])

    assert connection.execute(
        "select octet_length(payload::text) from realtime.messages"
    ).fetchone() == (65536,)


def test_an_insert_without_send_is_checked_too(connection: Connection) -> None:
    insert = (
        "insert into realtime.messages (topic, extension, payload, binary_payload, event) "
        "values (%s, 'broadcast', %s, %s, 'e')"
    )
    for values, code in [
        (["t" * 247, None, None], "RT005"),
        (["", None, None], "RT002"),
        (["room", Jsonb("x" * 3_000_600), None], "RT001"),
        (["room", None, b"x" * 3_000_600], "RT001"),
        (["room", Jsonb(1), b"1"], "RT006"),
    ]:
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(insert, values)
        assert raised.value.sqlstate == code


def test_without_a_partition_for_today_the_error_names_it_and_the_mend(
    connection: Connection,
) -> None:
    for (name,) in connection.execute(
        "select partition_name from realtime.partitions()"
    ).fetchall():
        connection.execute(sql.SQL("drop table realtime.{}").format(sql.Identifier(name)))

    with pytest.raises(psycopg.Error, match="no partition for today, messages_20") as raised:
        connection.execute("select realtime.send('{}', 'event', 'topic')")

    assert raised.value.sqlstate == "RT003"
    assert "realtime-db maintain" in str(raised.value.diag.message_hint)


def test_an_error_takes_the_transaction_with_it(connection: Connection) -> None:
    connection.execute("create table todos (id int)")

    with pytest.raises(psycopg.Error), connection.transaction():
        connection.execute("insert into todos values (1)")
        connection.execute("select realtime.send('{}', 'event', null)")

    assert connection.execute("select count(*) from todos").fetchone() == (0,)


def test_with_on_send_error_warn_the_write_survives_and_the_warning_is_the_reference_s(
    connection: Connection,
) -> None:
    warnings: list[str] = []
    connection.add_notice_handler(lambda note: warnings.append(str(note.message_primary)))
    connection.execute("create table todos (id int)")

    with connection.transaction():
        connection.execute("set local realtime.on_send_error = 'warn'")
        connection.execute("insert into todos values (1)")
        lost = connection.execute("select realtime.send('{}', 'event', null)").fetchone()
        lost_bytes = connection.execute("select realtime.send_binary('', 'e', null)").fetchone()
        sent = connection.execute("select realtime.send('{}', 'event', 'topic')").fetchone()

    assert lost == lost_bytes == (None,)
    assert sent is not None
    assert sent[0] is not None
    assert connection.execute("select count(*) from todos").fetchone() == (1,)
    assert connection.execute("select count(*) from realtime.messages").fetchone() == (1,)
    assert warnings == ["WarnSendingBroadcastMessage: the message has no topic: it is null"] * 2


def test_warn_ends_with_its_transaction(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("set local realtime.on_send_error = 'warn'")
        connection.execute("select realtime.send('{}', 'event', 'topic')")

    with pytest.raises(psycopg.Error, match="no topic"):
        connection.execute("select realtime.send('{}', 'event', null)")


def test_a_send_uses_no_transaction_id_beyond_its_transaction_s(connection: Connection) -> None:
    with connection.transaction():
        for _ in range(100):
            connection.execute("select realtime.send('{}', 'event', 'topic')")

    # A row of a subtransaction would have an xmin of its own.
    found = connection.execute(
        "select count(*), count(distinct xmin::text) from realtime.messages"
    ).fetchone()
    assert found == (100, 1)


def test_send_tells_policies_the_topic(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("select realtime.send('{}', 'event', 'room:1')")
        assert connection.execute("select realtime.topic()").fetchone() == ("room:1",)

    assert connection.execute("select realtime.topic()").fetchone() == (None,)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "UTC"])
def test_inserted_at_is_utc_in_any_time_zone(connection: Connection, zone: str) -> None:
    connection.execute("select set_config('timezone', %s, false)", [zone])
    connection.execute("select realtime.send('{}', 'event', 'topic')")

    row = connection.execute(
        "select abs(extract(epoch from inserted_at - now() at time zone 'utc')) < 60, "
        "tableoid::regclass::text = 'realtime.messages_' || "
        "to_char(now() at time zone 'utc', 'YYYY_MM_DD') from realtime.messages"
    ).fetchone()

    assert row == (True, True)


def test_messages_of_one_transaction_come_back_in_the_order_they_were_sent(
    connection: Connection,
) -> None:
    with connection.transaction():
        for number in range(300):
            connection.execute(SEND, [Jsonb(number), "event", "topic", True])
    connection.execute(
        "insert into realtime.messages (topic, extension, event, payload) "
        "select 'topic', 'broadcast', 'event', to_jsonb(i) from generate_series(300, 999) as i"
    )

    rows = connection.execute(
        "select payload from realtime.messages where topic = 'topic' order by inserted_at, position"
    ).fetchall()

    assert [row[0] for row in rows] == list(range(1000))


def test_a_row_knows_its_transaction(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("select realtime.send('{}', 'event', 'topic')")
        row = connection.execute(
            "select transaction_id = pg_current_xact_id() from realtime.messages"
        ).fetchone()

    assert row == (True,)


def test_a_writer_whom_no_policy_lets_in_is_told_the_two_mends(
    connection: Connection, database_url: str
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("set local role authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
            connection.execute("select realtime.send('{}', 'event', 'room:1')")

    hint = str(raised.value.diag.message_hint)
    assert "authenticated" in str(raised.value)
    assert "security definer" in hint
    assert "for insert to authenticated with check" in hint


def test_a_policy_lets_a_writer_send_to_its_topics_only(connection: Connection) -> None:
    connection.execute(
        "create policy room_1 on realtime.messages for insert to authenticated "
        "with check (realtime.topic() = 'room:1')"
    )
    with connection.transaction():
        connection.execute("set local role authenticated")
        connection.execute("select realtime.send('{}', 'event', 'room:1')")

    with (
        connection.transaction(force_rollback=True),
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("set local role authenticated")
        connection.execute("select realtime.send('{}', 'event', 'room:2')")

    assert connection.execute("select topic from realtime.messages").fetchall() == [("room:1",)]


def test_service_role_may_send_and_read_all(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("set local role service_role")
        connection.execute("select realtime.send('{}', 'event', 'room:1')")
        assert connection.execute("select topic from realtime.messages").fetchall() == [("room:1",)]


def test_without_a_policy_nobody_else_reads(connection: Connection) -> None:
    connection.execute("select realtime.send('{}', 'event', 'room:1')")

    for role in ("anon", "authenticated"):
        with connection.transaction():
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
            assert connection.execute("select * from realtime.messages").fetchall() == []


def test_the_documented_policy_lets_authenticated_receive(connection: Connection) -> None:
    connection.execute(
        'CREATE POLICY "authenticated can receive broadcasts" ON "realtime"."messages" '
        "FOR SELECT TO authenticated USING ( true );"
    )
    connection.execute("select realtime.send('{}', 'event', 'room:1')")

    with connection.transaction():
        connection.execute("set local role authenticated")
        assert connection.execute("select topic from realtime.messages").fetchall() == [("room:1",)]


def test_a_partition_is_closed_to_whom_default_privileges_open_it(
    connection: Connection,
) -> None:
    connection.execute("alter default privileges in schema realtime grant all on tables to anon")
    connection.execute("select realtime.create_partition(current_date + 40)")
    connection.execute(
        "insert into realtime.messages (topic, extension, inserted_at) "
        "values ('t', 'broadcast', current_date + 40)"
    )
    day = connection.execute("select to_char(current_date + 40, 'YYYY_MM_DD')").fetchone()
    assert day is not None

    with connection.transaction():
        connection.execute("set local role anon")
        read = sql.SQL("select * from realtime.{}").format(sql.Identifier(f"messages_{day[0]}"))
        assert connection.execute(read).fetchall() == []


def test_a_hostile_search_path_changes_nothing(connection: Connection) -> None:
    connection.execute("create schema hostile")
    connection.execute(
        "create function hostile.set_config(text, text, boolean) returns text language plpgsql "
        "as $$ begin raise exception 'hostile'; end $$"
    )
    connection.execute(
        "create function hostile.octet_length(text) returns integer language plpgsql "
        "as $$ begin raise exception 'hostile'; end $$"
    )
    connection.execute("set search_path = hostile, pg_catalog")

    connection.execute("select realtime.send('{}', 'event', 'topic')")

    assert connection.execute("select count(*) from realtime.messages").fetchone() == (1,)


def test_the_newest_of_a_topic_are_read_from_the_primary_key_without_a_sort(
    connection: Connection,
) -> None:
    connection.execute(
        "insert into realtime.messages (topic, extension, event, payload, private) "
        "select 't' || i % 2, 'broadcast', 'e', '{}', true from generate_series(1, 20000) as i"
    )
    connection.execute("analyze realtime.messages")
    plan = connection.execute(
        "explain (costs off) select * from realtime.messages where topic = 't1' "
        "and inserted_at >= (now() at time zone 'utc') - interval '1 hour' "
        "and extension = 'broadcast' and private "
        "order by inserted_at desc, position desc limit 25"
    ).fetchall()
    text = "\n".join(row[0] for row in plan)

    assert "Index Scan Backward" in text
    assert "Sort" not in text


def test_a_payload_limit_of_nonsense_is_refused(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("update realtime.settings set max_payload_bytes = 0")


def test_settings_have_one_row(connection: Connection) -> None:
    for again in (True, False):
        with pytest.raises(psycopg.errors.IntegrityError):
            connection.execute("insert into realtime.settings (only_row) values (%s)", [again])


def test_every_public_object_has_a_comment(connection: Connection) -> None:
    uncommented = connection.execute(
        """
        select p.proname from pg_proc as p
        where p.pronamespace = 'realtime'::regnamespace
            and obj_description(p.oid, 'pg_proc') is null
        union all
        select c.relname || coalesce('.' || a.attname, '')
        from pg_class as c
        left join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
        where c.oid in (
                'realtime.messages'::regclass,
                'realtime.settings'::regclass
            )
            and col_description(c.oid, a.attnum) is null
        """
    ).fetchall()

    assert uncommented == []


def test_setup_may_be_called_again(connection: Connection) -> None:
    connection.execute("select realtime.send('{}', 'event', 'topic')")
    connection.execute("update realtime.settings set retention_days = 5")

    connection.execute("select realtime.setup()")

    assert connection.execute("select count(*) from realtime.messages").fetchone() == (1,)
    assert connection.execute("select retention_days from realtime.settings").fetchone() == (5,)


def test_setup_makes_the_partitions_of_the_days_ahead(connection: Connection) -> None:
    days = connection.execute(
        "select min(day) = (now() at time zone 'utc')::date - 1, "
        "max(day) = (now() at time zone 'utc')::date + 7, count(*), bool_and(attached) "
        "from realtime.partitions()"
    ).fetchone()

    assert days == (True, True, 9, True)


def test_roles_that_exist_already_are_used_as_they_are(
    create_database: Callable[..., str], migrated_template: str
) -> None:
    with psycopg.connect(create_database(migrated_template), autocommit=True) as owner:
        for role in ("anon", "authenticated", "service_role"):
            with owner.transaction():
                owner.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
                assert owner.execute("select current_user").fetchone() == (role,)


def test_what_warn_swallowed_is_counted_whoever_wrote(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("set local role anon")
        connection.execute("set local realtime.on_send_error = 'warn'")
        connection.execute("select realtime.send('{}', 'event', null)")
        connection.execute("select realtime.send('{}', 'event', 'topic')")

    counted = connection.execute("select error_code, message from realtime.send_errors").fetchall()
    assert [code for code, _ in counted] == ["RT002", "42501"]
    assert "anon" in counted[1][1]


def test_a_writer_without_the_right_to_insert_is_told_both_mends(
    connection: Connection, server_url: str
) -> None:
    connection.execute("create role test_writer")
    try:
        connection.execute("grant usage on schema realtime to test_writer")
        connection.execute("grant test_writer to current_user")
        with (
            connection.transaction(force_rollback=True),
            pytest.raises(psycopg.errors.InsufficientPrivilege) as raised,
        ):
            connection.execute("set local role test_writer")
            connection.execute("select realtime.send('{}', 'event', 'room:1')")
    finally:
        connection.execute("drop owned by test_writer")
        connection.execute("drop role test_writer")

    hint = str(raised.value.diag.message_hint)
    assert "grant insert on realtime.messages to test_writer" in hint
    assert "security definer" in hint


def test_a_partition_of_somebody_else_takes_the_message(connection: Connection) -> None:
    for (name,) in connection.execute(
        "select partition_name from realtime.partitions()"
    ).fetchall():
        connection.execute(sql.SQL("drop table realtime.{}").format(sql.Identifier(name)))
    connection.execute("create table realtime.all_days partition of realtime.messages default")

    connection.execute("select realtime.send('{}', 'event', 'topic')")

    assert connection.execute("select count(*) from realtime.all_days").fetchone() == (1,)


def test_setup_gives_back_what_a_hand_took(connection: Connection) -> None:
    connection.execute("alter table realtime.messages drop constraint messages_fit")
    connection.execute("alter table realtime.messages disable row level security")
    connection.execute("alter publication realtime_messages drop table realtime.messages")

    connection.execute("select realtime.setup()")

    with pytest.raises(psycopg.Error, match="247 bytes long"):
        connection.execute(SEND, [Jsonb(1), "event", "t" * 247, True])
    assert connection.execute(
        "select relrowsecurity from pg_class where oid = 'realtime.messages'::regclass"
    ).fetchone() == (True,)
    assert connection.execute(
        "select tablename from pg_publication_tables where pubname = 'realtime_messages'"
    ).fetchall() == [("messages",)]


def test_setup_runs_beside_senders_and_readers(connection: Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as sender:
        sender.execute("select realtime.send('{}', 'event', 'topic')")
        connection.execute("set lock_timeout = '2s'")

        connection.execute("select realtime.setup()")
