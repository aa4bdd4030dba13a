"""The server is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, takewhile

import psycopg
import pytest

from tests.faults.cluster import Cluster
from tests.faults.ledger import PUBLIC, Ledger
from tests.faults.proxy import Proxy
from tests.faults.served import SOURCES, Server
from tests.faults.subscribers import EventSource, Library, WebSocket

Rounds = Callable[[int], Iterator[int]]


@SOURCES
def test_a_server_that_is_killed_twenty_times_loses_nothing(
    server: Server, ledger: Ledger, chance: random.Random, rounds: Rounds
) -> None:
    ledger.follow(server.port)
    with ledger.writing():
        for number in rounds(20):
            if number % 4 == 0:
                ledger.arriving(5)
            time.sleep(chance.uniform(0, 0.8))
            server.kill()
            server.start()
    ledger.settle(at_least=1000)


def test_what_was_handed_over_and_not_acknowledged_comes_again(
    server: Server, ledger: Ledger, database_url: str, cluster: Cluster, rounds: Rounds
) -> None:
    # Their cursors are of the topic that is written to, so they are no older than what is in hand,
    # and with that the slot brings the order of all that they may be asked about.
    ledger.is_exact = True
    ports, topics = [server.port], PUBLIC[:1]
    ledger.add(
        EventSource("an EventSource", ports, topics),
        WebSocket("a WebSocket", ports, topics),
        Library("the client", ports, topics),
    )
    writer = ledger.by_hand()
    in_hand = 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        # On a busy machine a round may take so long that the slot knows by then.
        more = takewhile(lambda _: not in_hand, range(20))
        for _ in chain(rounds(3), more):
            (before,) = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
            sent = writer.send(connection, PUBLIC[0], 10)
            writer.committed.update(sent)
            ledger.has(writer, sent)
            server.kill()
            # It says once a second what it has handed over, which may have been just now.
            is_in_hand = _confirmed(cluster, database_url) <= before
            in_hand += is_in_hand
            ledger.is_exact &= is_in_hand
            # Also what nobody had been given yet.
            writer.committed.update(writer.send(connection, PUBLIC[0], 10))
            server.start()
            ledger.settle(at_least=10)
    assert in_hand, "nothing was in hand: the slot knew already"


def _confirmed(cluster: Cluster, database_url: str) -> int:
    """What the slot was told, once nobody reads it any more."""
    deadline = time.monotonic() + 30
    with cluster.admin(database_url) as admin:
        while True:
            active, lsn = admin.execute(
                "select active, confirmed_flush_lsn - '0/0' from pg_replication_slots"
                " where database = current_database()"
            ).fetchone()
            if not active:
                return int(lsn)
            assert time.monotonic() < deadline, "the walsender does not end"
            time.sleep(0.02)  # nothing says when it has ended


@SOURCES
@pytest.mark.parametrize("count", [5000])
def test_the_rest_of_a_transaction_comes_after_a_crash_in_its_middle(
    server: Server, ledger: Ledger, database_url: str, count: int, rounds: Rounds
) -> None:
    ledger.follow(server.port)
    writer = ledger.by_hand()
    for _ in rounds(2):
        had = [len(one.got) for one in ledger.subscribers]
        with psycopg.connect(database_url) as connection:
            sent = writer.send(connection, PUBLIC[0], count)
        writer.committed.update(sent)
        deadline = time.monotonic() + 30
        while had == [len(one.got) for one in ledger.subscribers]:
            assert time.monotonic() < deadline, "nothing of it came"
        server.kill()
        server.start()
        ledger.settle(at_least=count)


@SOURCES
def test_a_transaction_that_commits_after_later_ones_is_not_missed(
    server: Server,
    ledger: Ledger,
    database_url: str,
    make_proxy: Callable[[int], Proxy],
    rounds: Rounds,
) -> None:
    network = make_proxy(server.port)
    ledger.follow(network.port)
    for _ in rounds(1):
        for commits_while_away, killed in ((True, False), (False, False), (True, True)):
            long = ledger.by_hand()
            with psycopg.connect(database_url) as connection:
                sent = long.send(connection, PUBLIC[0], 3)  # it has its id from here on
                with ledger.writing(2):
                    ledger.arriving(20)
                    times = min(ledger.connections)
                    network.refuse()
                    if killed:
                        server.kill()
                        server.start()
                    if commits_while_away:
                        connection.commit()
                    network.heal()
                    ledger.connected(times)
                    ledger.arriving(20)
                    connection.commit()
            long.committed.update(sent)
            ledger.settle()
