"""A server that asks the table, since it may not read the WAL: the same to its clients."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.server.conftest import Events, Server, token

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def serve(own_database_url: str) -> Iterator[Callable[..., Server]]:
    """`serve()` -> a server that polls; what still runs at the end is stopped."""
    started: list[Server] = []

    def serve(*options: str) -> Server:
        started.append(Server(own_database_url, *(options or ("--source", "poll"))))
        started[-1].said("asking realtime.messages")
        return started[-1]

    yield serve
    for server in started:
        if server.runs:
            server.stop()


@pytest.fixture
def owner(own_database_url: str) -> Iterator[Connection]:
    with psycopg.connect(own_database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def follow() -> Iterator[Callable[..., Events]]:
    """`follow(server, last=None)` -> what EventSource gets; closed at the end."""
    with contextlib.ExitStack() as stack:

        def follow(server: Server, last: str | None = None, query: str = "topic=room") -> Events:
            headers = {} if last is None else {"last-event-id": last}
            return stack.enter_context(
                contextlib.closing(Events(server, f"{query}&apikey={token()}", headers))
            )

        yield follow


def send(connection: Connection, text: str, topic: str = "room") -> None:
    connection.execute("select realtime.send(to_jsonb(%s::text), 'e', %s, false)", (text, topic))


def received(events: Events, count: int) -> tuple[list[str], str]:
    """The next payloads, and the cursor after them."""
    texts, cursor = [], ""
    for _ in range(count):
        event = events.event()
        cursor = event["id"]
        texts.append(json.loads(event["data"])["payload"])
    return texts, cursor


def test_a_row_that_commits_arrives(serve, follow, owner) -> None:
    events = follow(serve())
    for number in range(3):
        send(owner, str(number))
    assert received(events, 3)[0] == ["0", "1", "2"]


def test_what_committed_while_no_server_ran_comes_to_who_resumes(serve, follow, owner) -> None:
    server = serve()
    events = follow(server)
    send(owner, "before")
    _, cursor = received(events, 1)
    server.kill()
    send(owner, "meanwhile")
    again = follow(serve(), cursor)
    send(owner, "after")
    assert received(again, 2)[0] == ["meanwhile", "after"]


def test_a_transaction_that_was_open_before_the_disconnect_is_not_missed(
    serve, follow, owner, own_database_url
) -> None:
    server = serve()
    with psycopg.connect(own_database_url) as late:
        send(late, "late")
        events = follow(server)
        send(owner, "early")
        _, cursor = received(events, 1)
        events.close()
        late.commit()
    assert received(follow(server, cursor), 1)[0] == ["late"]


def test_a_message_that_came_is_not_sent_again_and_its_neighbours_are(
    serve, follow, owner, own_database_url
) -> None:
    server = serve()
    events = follow(server)
    with psycopg.connect(own_database_url) as writer:
        for number in range(5):
            send(writer, str(number))
    _, cursor = received(events, 2)
    events.close()
    send(owner, "next")
    assert received(follow(server, cursor), 4)[0] == ["2", "3", "4", "next"]


def test_auto_polls_if_the_login_may_not_replicate_and_says_why(
    serve, follow, own_database_url, as_admin
) -> None:
    admin = as_admin(own_database_url)
    with contextlib.ExitStack() as stack:
        admin.execute("alter role app noreplication")
        stack.callback(admin.execute, "alter role app replication")
        server = serve("--source", "auto")
        assert server.said("the WAL cannot be followed, so the table is asked.*REPLICATION")
        events = follow(server)
        with psycopg.connect(own_database_url, autocommit=True) as owner:
            send(owner, "hello")
        assert received(events, 1)[0] == ["hello"]
        server.ready()


def test_a_revocation_is_found(serve, follow, owner) -> None:
    server = serve()
    events = follow(server, query="topic=open:x&private=true")
    assert events.status == 200
    owner.execute('drop policy "readers" on realtime.messages')
    owner.execute("select realtime.revoke('open:x')")
    assert b"data:" not in events.rest()


@pytest.mark.parametrize("seed", [1, 2])
def test_everybody_gets_one_order_whenever_he_comes_and_goes(
    serve, follow, own_database_url, seed
) -> None:
    """Three followers, of whom two disconnect at random moments, and a server that is killed."""
    chance = random.Random(seed)
    server = serve("--source", "poll", "--poll-seconds", "0.02")
    total = 240
    cursors: list[str | None] = [follow(server).place for _ in range(3)]
    got: list[list[str]] = [[], [], []]

    def write(name: int) -> None:
        with psycopg.connect(own_database_url) as writer:
            sent = 0
            while sent < total // 3:
                for _ in range(min(1 + sent % 3, total // 3 - sent)):
                    send(writer, f"{name}:{sent}")
                    sent += 1
                writer.execute("select pg_sleep(%s)", (0.01 * (name + 1),))
                writer.commit()

    writers = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for writer in writers:
        writer.start()
    killed = False
    while any(len(one) < total for one in got):
        for who in range(3):
            if len(got[who]) == total:
                continue
            events = follow(server, cursors[who])
            texts, cursors[who] = received(
                events, min(total - len(got[who]), chance.randrange(1, 60))
            )
            got[who] += texts
            events.close()
        if not killed and len(got[0]) > total // 3:
            killed = True
            server.kill()
            server = serve("--source", "poll", "--poll-seconds", "0.02")
    for writer in writers:
        writer.join()
    assert len(set(got[0])) == total
    assert got[1] == got[0]
    assert got[2] == got[0]
