"""Postgres is killed, started again, and ends the server's sessions."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.faults.cluster import Cluster
from tests.faults.ledger import TOPICS, Ledger
from tests.faults.proxy import Proxy
from tests.faults.served import DEADLINE_SECONDS, Server

Rounds = Callable[[int], Iterator[int]]


@pytest.mark.parametrize(("how", "source"), [("kill", "wal"), ("kill", "poll"), ("stop", "wal")])
def test_postgres_ends_and_comes_back_and_nothing_is_lost(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    chance: random.Random,
    rounds: Rounds,
    how: str,
) -> None:
    ledger.follow(server.port)
    with ledger.writing():
        for _ in rounds(3):
            ledger.arriving(20)
            time.sleep(chance.uniform(0, 0.5))
            cluster.kill() if how == "kill" else cluster.stop()
            time.sleep(chance.uniform(0, 1))
            cluster.start()
        ledger.arriving(20)
    assert set(ledger.connections) == {1}, "clients need not have noticed"
    ledger.is_exact = True
    ledger.settle()


@pytest.mark.parametrize(
    ("whose", "source"),
    [("walsender", "wal"), ("client backend", "wal"), ("client backend", "poll")],
)
def test_sessions_of_the_server_are_terminated_and_nothing_is_lost(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    database_url: str,
    chance: random.Random,
    rounds: Rounds,
    whose: str,
) -> None:
    ledger.follow(server.port)
    with ledger.writing(), cluster.admin(database_url) as admin:
        for _ in rounds(6):
            ledger.arriving(5)
            time.sleep(chance.uniform(0, 0.5))
            _terminate(admin, whose)
        ledger.arriving(20)
    # Else the server may have found its own lock still taken, and sent them away.
    if set(ledger.connections) == {1}:
        ledger.is_exact = True
    ledger.settle()


def test_what_a_resume_gave_before_the_wal_did_does_not_come_again(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    database_url: str,
    make_proxy: Callable[[int], Proxy],
    rounds: Rounds,
) -> None:
    network = make_proxy(server.port)
    ledger.is_exact = True
    ledger.follow(network.port)
    writer = ledger.by_hand()
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        cluster.admin(database_url) as admin,
    ):
        for _ in rounds(2):
            ((walsender,),) = admin.execute(
                "select active_pid from pg_replication_slots where database = current_database()"
            ).fetchall()
            os.kill(walsender, signal.SIGSTOP)
            try:
                network.refuse()
                sent = [one for topic in TOPICS for one in writer.send(connection, topic, 10)]
                writer.committed.update(sent)
                network.heal()
                ledger.has(writer, sent)
            finally:
                os.kill(walsender, signal.SIGCONT)
            ledger.settle(at_least=10)


def _terminate(admin: psycopg.Connection, whose: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    # After the one before, the server may not be back yet.
    while not admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and backend_type = %s "
        "and application_name = 'realtime-db'",
        [whose],
    ).fetchall():
        assert time.monotonic() < deadline, f"the server has no {whose}"
        time.sleep(0.02)
