"""Postgres is killed, started again, and ends the server's sessions."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.faults.cluster import Cluster
from tests.faults.ledger import PUBLIC, TOPICS, Ledger
from tests.faults.proxy import Proxy
from tests.faults.served import DEADLINE_SECONDS, Server
from tests.faults.subscribers import EventSource

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
    connections = ledger.connections
    with ledger.writing():
        for _ in rounds(3):
            ledger.arriving(20)
            time.sleep(chance.uniform(0, 0.5))
            cluster.kill() if how == "kill" else cluster.stop()
            time.sleep(chance.uniform(0, 1))
            cluster.start()
        ledger.arriving(20)
    assert ledger.connections == connections, "clients need not have noticed"
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
            walsender = _resting_walsender(admin)
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


def test_a_commit_that_waits_for_a_standby_comes_after_a_restart_of_the_server(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    database_url: str,
    make_proxy: Callable[[int], Proxy],
) -> None:
    """It is in the WAL by then, and not in what queries see."""
    network = make_proxy(server.port)
    ledger.follow(network.port)
    stays = EventSource("an EventSource that stays", [server.port], PUBLIC[:1])
    ledger.add(stays)
    writer = ledger.by_hand()
    with cluster.admin(database_url) as admin, psycopg.connect(database_url) as connection:
        network.refuse()
        admin.execute("alter system set synchronous_standby_names = 'nobody'")
        admin.execute("select pg_reload_conf()")
        try:
            # The setting takes a moment.
            while True:
                writer.committed.update(writer.send(connection, PUBLIC[0]))
                committing = threading.Thread(target=connection.commit, daemon=True)
                committing.start()
                if _waits_for_a_standby(admin, connection.info.backend_pid, committing):
                    break
            ledger.wait(
                lambda: {(got.topic, got.number) for got in list(stays.got)} >= writer.committed,
                lambda: "what waits was not delivered",
            )
            server.stop()
            server.start()
            network.heal()
            # It cannot be read yet, so nobody can be told that he has it all.
            ledger.connected(2)
        finally:
            admin.execute("alter system reset synchronous_standby_names")
            admin.execute("select pg_reload_conf()")
        committing.join(DEADLINE_SECONDS)
        assert not committing.is_alive()
    ledger.settle(at_least=1)


def _waits_for_a_standby(admin: psycopg.Connection, pid: int, committing: threading.Thread) -> bool:
    """Whether a commit waits, or else has ended."""
    while committing.is_alive():
        (event,) = admin.execute(
            "select wait_event from pg_stat_activity where pid = %s", [pid]
        ).fetchone()
        if event == "SyncRep":
            return True
    return False


def _resting_walsender(admin: psycopg.Connection) -> int:
    """The process id of the server's. One that waits has no lock that others may need."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (
        found := admin.execute(
            "select pid from pg_replication_slots join pg_stat_activity on pid = active_pid "
            "where database = current_database() and wait_event like 'WalSender%'"
        ).fetchall()
    ):
        assert time.monotonic() < deadline, "the server has no walsender that waits"
        time.sleep(0.02)
    ((pid,),) = found
    return int(pid)


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
