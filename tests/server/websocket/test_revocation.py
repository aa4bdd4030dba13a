"""Rights that are taken away from those who are on a channel: at once, and by and by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Client = Any
Server = Any
Database = Any

READ = "read broadcast"
WRITE = "write broadcast"
PRIVATE = {"private": True}


@pytest.fixture
def join(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> Callable[..., Client]:
    """`join("ann", *rights)` -> a client in the private channel of the test."""

    def join(name: str, *rights: str, at: str = topic, config: Any = PRIVATE) -> Client:
        database.grant(at, name, *(rights or (READ,)))
        one = client(key=user(name))
        one.join(at, config)
        return one

    return join


def take_away(database: Database, topic: str, sub: str, revoke: str = "") -> None:
    """Takes all rights of a user, and says so."""
    with database.connection.transaction():
        database.execute("delete from public.rights where topic = %s and sub = %s", [topic, sub])
        database.execute(revoke or "select realtime.revoke(%s)", None if revoke else [topic])


def ended(one: Client, topic: str) -> str:
    """The channel is ended by the server; returns the reason."""
    system, closed = one.receive(), one.receive()
    assert (system.event, system.payload["status"]) == ("system", "error"), system
    assert (closed.event, closed.topic) == ("phx_close", f"realtime:{topic}")
    reason: str = system.payload["message"]
    return reason


def goes_on(one: Client, database: Database, topic: str) -> None:
    """Nothing is asked about it any more, and the next that comes is sent now."""
    one.push(f"realtime:{topic}", "presence", {"event": "untrack"})  # waits behind a question
    sent = database.send(topic, "still here", private=True)
    assert one.receive().payload["payload"]["id"] == sent


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_who_may_no_longer_read_is_closed_at_once_and_nobody_else(
    join: Callable[..., Client], client: Callable[..., Client], database: Database,
    user: Callable[[str], str], topic: str, vsn: str,
) -> None:  # fmt: skip
    bob = join("bob")
    database.grant(topic, "ann", READ)
    ann = client(key=user("ann"), vsn=vsn)
    ann.join(topic, PRIVATE)

    take_away(database, topic, "ann")

    reason = f"You no longer have permission to read from this Channel topic: {topic}"
    assert ended(ann, topic) == reason
    goes_on(bob, database, topic)
    ann.heartbeat()
    assert ann.refused(topic, PRIVATE).startswith("Unauthorized")


@pytest.mark.parametrize(
    ("revoke", "asked"),
    [
        ("select realtime.revoke()", True),
        ("select realtime.revoke(sub => 'ann')", True),
        ("select realtime.revoke(role => 'authenticated')", True),
        ("select realtime.revoke(role => 'authenticated', sub => 'ann')", True),
        ("select realtime.revoke('another')", False),
        ("select realtime.revoke(sub => 'bob')", False),
        ("select realtime.revoke(role => 'anon')", False),
        ("select realtime.revoke(role => 'anon', sub => 'ann')", False),
    ],
)
def test_those_are_asked_about_whom_it_names(
    join: Callable[..., Client], database: Database, topic: str, revoke: str, asked: bool
) -> None:
    ann, witness = join("ann"), join("eve", at=f"{topic}:2")
    take_away(database, topic, "ann", revoke)
    if asked:
        assert "no longer" in ended(ann, topic)
        return
    # A later one is done after it.
    take_away(database, f"{topic}:2", "eve", f"select realtime.revoke('{topic}:2')")
    ended(witness, f"{topic}:2")
    goes_on(ann, database, topic)


def test_one_that_rolls_back_does_nothing(
    join: Callable[..., Client], database: Database, topic: str
) -> None:
    ann, witness = join("ann"), join("eve", at=f"{topic}:2")
    database.revoke(topic)
    with psycopg.connect(database.url) as other:
        other.execute("select realtime.revoke(%s)", [topic])
        other.rollback()
    take_away(database, f"{topic}:2", "eve", f"select realtime.revoke('{topic}:2')")
    ended(witness, f"{topic}:2")
    goes_on(ann, database, topic)


def test_public_channels_are_not_asked_about(
    client: Callable[..., Client], join: Callable[..., Client], database: Database, topic: str
) -> None:
    public = client()
    public.join(topic)
    ann = join("ann")
    take_away(database, topic, "ann")
    ended(ann, topic)
    public.heartbeat()


def test_the_right_to_write_is_asked_about_again(
    join: Callable[..., Client], database: Database, topic: str
) -> None:
    ann = join("ann", READ, WRITE, config={"private": True, "broadcast": {"self": True}})
    witness = join("eve", at=f"{topic}:2")
    ann.broadcast(topic, "may")
    assert ann.receive().payload["event"] == "may"

    database.revoke(topic, WRITE)
    database.execute("select realtime.revoke(%s)", [topic])
    take_away(database, f"{topic}:2", "eve", f"select realtime.revoke('{topic}:2')")
    ended(witness, f"{topic}:2")
    ann.broadcast(topic, "may not")

    # Which waits until that was denied.
    goes_on(ann, database, topic)


def test_who_may_no_longer_track_is_gone_from_presence(
    join: Callable[..., Client], database: Database, topic: str
) -> None:
    config = {"private": True, "presence": {"key": "ann", "enabled": True}}
    rights = ("read presence", "read broadcast", "write presence")
    ann = join("ann", *rights, config=config)
    assert ann.receive().event == "presence_state"
    ann.send(f"realtime:{topic}", "presence", {"event": "track", "payload": {}}, ref="t")
    assert {ann.receive().event, ann.receive().event} == {"presence_diff", "phx_reply"}

    database.revoke(topic, "write presence")
    database.execute("select realtime.revoke(%s)", [topic])

    diff = ann.receive()
    assert (diff.event, list(diff.payload["leaves"])) == ("presence_diff", ["ann"])
    goes_on(ann, database, topic)


def test_who_loses_presence_only_is_closed_too(
    join: Callable[..., Client], database: Database, topic: str
) -> None:
    ann = join("ann", READ, "read presence")
    database.revoke(topic, "read presence")
    database.execute("select realtime.revoke(%s)", [topic])
    assert "no longer" in ended(ann, topic)


def test_who_gains_a_right_by_then_has_it(
    join: Callable[..., Client], database: Database, topic: str
) -> None:
    ann = join("ann", "read presence")
    database.grant(topic, "ann", READ)
    database.execute("select realtime.revoke(%s)", [topic])
    deadline = time.monotonic() + 20
    frame = None
    while frame is None or frame.event != "broadcast":
        assert time.monotonic() < deadline
        database.send(topic, "for ann", private=True)
        ann.send("phoenix", "heartbeat", ref="h")
        frame = ann.receive()
    assert frame.payload["event"] == "for ann"


def test_revocations_are_neither_delivered_nor_replayed(
    join: Callable[..., Client], client: Callable[..., Client], database: Database,
    user: Callable[[str], str],
) -> None:  # fmt: skip
    hidden = "realtime:revocations"
    ann = join("ann", at=hidden)
    database.execute("select realtime.revoke(%s)", [hidden])
    goes_on(ann, database, hidden)
    one = client(key=user("ann"))
    one.join(hidden, {"private": True, "broadcast": {"replay": {"since": 1}}})
    assert one.receive().payload["event"] == "still here"
    one.heartbeat()


def test_a_channel_that_waits_for_another_answer_is_asked_about_after_it(
    join: Callable[..., Client], database: Database, topic: str, server: Server
) -> None:
    """Its right to write is asked about while a lock holds the answer back."""
    ann = join("ann", READ, WRITE)
    with psycopg.connect(database.url) as other:
        other.execute("lock table public.rights in access exclusive mode")
        ann.broadcast(topic)
        _wait_until_somebody_waits(database)
        other.execute("delete from public.rights where topic = %s", [topic])
        other.execute("select realtime.revoke(%s)", [topic])
        other.commit()
    assert "no longer" in ended(ann, topic)


def _wait_until_somebody_waits(database: Database) -> None:
    deadline = time.monotonic() + 20
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    waiting += " and datname = current_database()"
    while not database.execute(waiting).fetchone()[0]:
        assert time.monotonic() < deadline


def test_thousands_of_channels_are_asked_about(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    """With a pool of ten connections, and nobody else is refused for it."""
    names = [f"{topic}:{number}" for number in range(2000)]
    database.execute(
        "insert into public.rights select name, 'ann', 'read', 'broadcast'"
        " from unnest(%s::text[]) as name",
        [names],
    )
    ann = client(key=user("ann"))
    for name in names:
        ann.join(name, PRIVATE)
    odd = set(names[1::2])
    with database.connection.transaction():
        database.execute("delete from public.rights where topic = any (%s)", [list(odd)])
        database.execute("select realtime.revoke(sub => 'ann')")
    closed = set()
    while len(closed) < len(odd):
        frame = ann.receive()
        if frame.event == "phx_close":
            closed.add(frame.topic.removeprefix("realtime:"))
    assert closed == odd
    goes_on(ann, database, names[0])


# By and by


def test_rights_are_asked_about_again_after_an_interval(
    start_server: Callable[..., Server], open_client: Callable[..., Client], database: Database,
    user: Callable[[str], str], topic: str,
) -> None:  # fmt: skip
    server = start_server("--recheck-seconds", "1", "--temporary-slot")
    database.grant(topic, "ann", READ)
    database.grant(topic, "bob", READ)
    ann, bob = open_client(server, key=user("ann")), open_client(server, key=user("bob"))
    for one in (ann, bob):
        one.join(topic, PRIVATE)

    database.execute("delete from public.rights where topic = %s and sub = 'ann'", [topic])

    assert "no longer" in ended(ann, topic)
    goes_on(bob, database, topic)
