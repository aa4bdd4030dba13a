"""The server's replication slot is taken from it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator

import psycopg

from tests.faults.cluster import Cluster
from tests.faults.ledger import Ledger
from tests.faults.served import DEADLINE_SECONDS, Server

SETTINGS = {"max_slot_wal_keep_size": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
Rounds = Callable[[int], Iterator[int]]


def test_the_slot_is_dropped_and_nothing_is_lost(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    database_url: str,
    chance: random.Random,
    rounds: Rounds,
) -> None:
    ledger.follow(server.port)
    with ledger.writing(), cluster.admin(database_url) as admin:
        for number in rounds(4):
            ledger.arriving(20)
            # It cannot make another one at once, so that there is something to miss.
            _wait_for_slot(admin)
            server.signal(signal.SIGSTOP)
            try:
                _drop_slots(admin)
                time.sleep(chance.uniform(0, 0.5) if number % 2 else 4)
            finally:
                server.signal(signal.SIGCONT)
        ledger.arriving(20)
    ledger.settle()


def test_the_slot_is_invalidated_and_nothing_is_lost(
    cluster: Cluster, server: Server, ledger: Ledger, database_url: str, rounds: Rounds
) -> None:
    ledger.follow(server.port)
    with ledger.writing(), cluster.admin(database_url) as admin:
        for _ in rounds(1):
            ledger.arriving(20)
            _wait_for_slot(admin)
            server.signal(signal.SIGSTOP)
            try:
                _invalidate_slots(admin)
            finally:
                server.signal(signal.SIGCONT)
            ledger.arriving(20)
    ledger.settle()


def _wait_for_slot(admin: psycopg.Connection) -> None:
    """Returns when a slot is read that lasts: one that is still being made ends with its maker.

    Messages alone do not tell: what was in hand comes when the slot is gone, and what is stored.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not admin.execute(
        "select from pg_replication_slots join pg_stat_replication on pid = active_pid "
        "where database = current_database() and wal_status <> 'lost' and state <> 'startup'"
    ).fetchall():
        assert time.monotonic() < deadline, "the server has no slot"
        time.sleep(0.02)


def _drop_slots(admin: psycopg.Connection) -> None:
    admin.execute(
        "select pg_terminate_backend(active_pid, 60000) from pg_replication_slots "
        "where database = current_database() and active"
    )
    dropped = admin.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
        "where database = current_database()"
    ).fetchall()
    assert dropped, "the server has no slot that lasts"


def _invalidate_slots(admin: psycopg.Connection) -> None:
    """Writes so much WAL that the server of the slot must give it up."""
    deadline = time.monotonic() + 60
    status = "reserved"
    while status != "lost":
        assert time.monotonic() < deadline, status
        admin.execute(
            "create table filler as select repeat('x', 1000) from generate_series(1, 20000)"
        )
        admin.execute("drop table filler")
        admin.execute("select pg_switch_wal()")
        admin.execute("checkpoint")
        found = admin.execute(
            "select wal_status from pg_replication_slots where database = current_database()"
        ).fetchone()
        assert found, "the server has no slot that lasts"
        (status,) = found
