"""Streams of events whose user may no longer read."""

from __future__ import annotations

import secrets

import psycopg
import pytest

POLICY = """
create table if not exists public.listeners (topic text);
grant select on public.listeners to authenticated;
drop policy if exists "listeners" on realtime.messages;
create policy "listeners" on realtime.messages for select to authenticated
using (exists (select from public.listeners as l where l.topic = realtime.topic()));
"""


@pytest.fixture
def admitted(database: psycopg.Connection) -> str:
    """A topic that may be read until a row is deleted."""
    topic = f"listeners:{secrets.token_hex(4)}"
    database.execute(POLICY)
    database.execute("insert into public.listeners values (%s)", [topic])
    return topic


def test_a_stream_ends_with_the_reason_and_is_refused_then(
    database, follow, private_topic, admitted
) -> None:
    other = follow(private_topic, private=True)
    events = follow(private_topic, admitted, private=True)

    with database.transaction():
        database.execute("delete from public.listeners where topic = %s", [admitted])
        database.execute("select realtime.revoke(%s)", [admitted])

    text = f"You no longer have permission to read from this Channel topic: {admitted}"
    assert events.end() == text
    assert follow(admitted, private=True).status == 403
    database.execute("select realtime.send('{}', 'e', %s)", [private_topic])
    assert other.message()["event"] == "e"


def test_a_topic_of_several_lines_makes_no_event_of_the_reason(database, follow, admitted) -> None:
    forged = f"{admitted}\ndata: forged"
    database.execute("insert into public.listeners values (%s)", [forged])
    events = follow(forged, private=True)
    database.execute("delete from public.listeners where topic = %s", [forged])
    database.execute("select realtime.revoke(%s)", [forged])
    assert events.end().endswith(f": {admitted} data: forged")


def test_a_stream_that_may_still_read_goes_on(database, follow, admitted) -> None:
    events, witness = follow(admitted, private=True), f"{admitted}:2"
    database.execute("insert into public.listeners values (%s)", [witness])
    ending = follow(witness, private=True)

    database.execute("select realtime.revoke(%s)", [admitted])
    database.execute("delete from public.listeners where topic = %s", [witness])
    database.execute("select realtime.revoke(%s)", [witness])
    assert "You no longer" in ending.end()

    database.execute("select realtime.send('{}', 'e', %s)", [admitted])
    assert events.message()["event"] == "e"


def test_rights_are_asked_about_again_after_an_interval(
    database, start_server, follow, admitted
) -> None:
    server = start_server("--recheck-seconds", "1", "--temporary-slot")
    server.says("following the WAL")
    events = follow(admitted, private=True, to=server)
    database.execute("delete from public.listeners where topic = %s", [admitted])
    assert "You no longer" in events.end()
