"""SIGTERM while messages wait to be stored: each is stored or refused, and its sender told."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

Client = Any
Server = Any
Database = Any

RIGHTS = ("read broadcast", "write broadcast")
PRIVATE = {"private": True, "broadcast": {"ack": True}}
RESTARTING = "RealtimeRestarting: Realtime is restarting, please standby"
DEADLINE_SECONDS = 60.0


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    """One whose statements wait for as long as the test wants them to."""
    return start_server("--no-maintain", "--statement-timeout-seconds", "60")


@pytest.fixture
def ann(
    server: Server,
    open_client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
) -> Client:
    """In a private channel to which she may write."""
    database.grant(topic, "ann", *RIGHTS)
    one = open_client(server, key=user("ann"))
    one.join(topic, PRIVATE)
    return one


@pytest.fixture
def persist(push_frame: Callable[..., bytes], topic: str) -> Callable[..., None]:
    """`persist(client, "1")` sends a message that is to be stored, with that ref and event."""
    metadata = json.dumps({"persist": True}).encode()

    def persist(one: Client, ref: str) -> None:
        frame = push_frame(f"realtime:{topic}", ref, b"{}", metadata=metadata, ref=ref)
        one.socket.send(frame)

    return persist


@pytest.fixture
def restarts(server: Server, open_client: Callable[..., Client], topic: str) -> Callable[[], None]:
    """Sends SIGTERM; returns when the server knows."""
    other = open_client(server)

    def restarts() -> None:
        server.signal(signal.SIGTERM)
        for number in itertools.count():
            answer = other.ask_to_join(f"{topic}:{number}").payload
            if answer["status"] == "error":
                assert answer["response"] == {"reason": RESTARTING}
                return

    return restarts


@contextmanager
def nothing_is_stored(database: Database) -> Iterator[None]:
    with psycopg.connect(database.url) as holder:
        holder.execute("lock table realtime.messages in share mode")
        yield


def until_one_waits(database: Database) -> None:
    """Until the server has given something to the database."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not database.execute(
        "select from pg_locks where not granted and relation = 'realtime.messages'::regclass"
    ).fetchall():
        assert time.monotonic() < deadline


def answers(one: Client, count: int) -> dict[str, Any]:
    """What the next replies say, by their refs."""
    replies = [one.receive() for _ in range(count)]
    assert {frame.event for frame in replies} == {"phx_reply"}, replies
    return {str(frame.ref): frame.payload for frame in replies}


def refused(reason: str) -> dict[str, Any]:
    return {"status": "error", "response": {"error": reason}}


def test_what_waits_to_be_stored_is_stored_and_acknowledged(
    server: Server,
    ann: Client,
    persist: Callable[..., None],
    restarts: Callable[[], None],
    database: Database,
    topic: str,
) -> None:
    persist(ann, "0")
    assert answers(ann, 1)["0"]["status"] == "ok"
    with nothing_is_stored(database):
        persist(ann, "1")
        until_one_waits(database)
        for ref in ("2", "3"):
            persist(ann, ref)
        ann.heartbeat()
        restarts()
        persist(ann, "late")
        assert answers(ann, 1) == {"late": refused(RESTARTING)}
    told = answers(ann, 3)
    assert [told[ref]["status"] for ref in "123"] == ["ok"] * 3
    assert ann.closed()[0] == 1012
    assert server.wait() == 0
    rows = database.execute(
        "select event, id::text from realtime.messages where topic = %s", [topic]
    ).fetchall()
    assert {event for event, _ in rows} == set("0123")
    assert {event: id for event, id in rows if event != "0"} == {
        ref: told[ref]["response"]["id"] for ref in "123"
    }


def test_what_cannot_be_stored_in_time_is_refused(
    server: Server,
    ann: Client,
    persist: Callable[..., None],
    restarts: Callable[[], None],
    database: Database,
) -> None:
    persist(ann, "0")
    answers(ann, 1)
    with nothing_is_stored(database):
        persist(ann, "1")
        until_one_waits(database)
        persist(ann, "2")
        ann.heartbeat()
        restarts()
        assert answers(ann, 2) == {
            "1": refused("Tenant database unavailable"),  # who knows: it was given to it
            "2": refused(RESTARTING),
        }
        assert ann.closed()[0] == 1012
        assert server.wait() == 0


def test_what_waits_for_the_policies_is_refused(
    server: Server,
    ann: Client,
    persist: Callable[..., None],
    database: Database,
) -> None:
    with nothing_is_stored(database):  # nor can policies be asked about writing
        persist(ann, "1")
        until_one_waits(database)
        persist(ann, "2")
        ann.heartbeat()
        server.signal(signal.SIGTERM)
        assert answers(ann, 2) == {"1": refused(RESTARTING), "2": refused(RESTARTING)}
        assert ann.closed()[0] == 1012
        assert server.wait() == 0
