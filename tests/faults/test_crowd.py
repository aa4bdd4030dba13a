"""A thousand clients."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.faults.background import Background
from tests.faults.cluster import Cluster
from tests.faults.ledger import PRIVATE, PUBLIC, Ledger
from tests.faults.served import DEADLINE_SECONDS, Server
from tests.faults.subscribers import EventSource, Stalled, Topic

CLIENTS = 1000
STALLED = 10
ATTEMPTS = 3  # for a machine that stands still now and then
FAT = Topic("public:fat", False)
FAT_BYTES = 400_000  # one with each of the others
MESSAGES = 30


class Watcher(EventSource):
    """Notes how long messages took."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seconds: list[float] = []

    def take(self, topic: str, broadcast: dict[str, Any]) -> None:
        super().take(topic, broadcast)
        if "at" in broadcast["payload"]:
            self.seconds.append(time.time() - broadcast["payload"]["at"])


@pytest.fixture
def ledger(database_url: str, background: Background, seed: int) -> Ledger:
    """Its writers are slow: each message is a thousand."""
    return Ledger(database_url, background, seed=seed, pause_seconds=0.3)


def test_a_thousand_clients_that_come_back_at_once_lose_nothing(
    server: Server, ledger: Ledger, rounds: Callable[[int], Iterator[int]]
) -> None:
    ledger.add(*(EventSource(f"client {n}", [server.port], PUBLIC[:1]) for n in range(CLIENTS)))
    for _ in rounds(1):
        with ledger.writing(1):
            ledger.arriving(3)
            times = min(ledger.connections)
            server.kill()
            server.start()
            ledger.connected(times)
            ledger.arriving(3)
        ledger.settle(at_least=10)


def test_ten_clients_that_stall_harm_nobody_but_themselves(
    make_server: Callable[..., Server], ledger: Ledger, database_url: str
) -> None:
    server = make_server("--max-write-buffer-bytes", "1000000")
    server.start()
    server.leads()
    watchers = [Watcher(f"client {n}", [server.port], PUBLIC[:1]) for n in range(CLIENTS - STALLED)]
    stalled = [Stalled(f"stalled {n}", [server.port], (PUBLIC[0], FAT)) for n in range(STALLED)]
    ledger.add(*watchers, *stalled)
    calm = _p99_seconds(database_url, watchers)
    for _ in range(ATTEMPTS):
        busy = _p99_beside(stalled, watchers, server, ledger, database_url)
        # Fan-out takes what it takes on this machine; waiting for somebody would take for ever.
        if busy < 5 * calm + 1:
            return
    raise AssertionError(f"p99 {busy:.3f} s beside stalled clients, {calm:.3f} s without")


def _p99_beside(
    stalled: list[Stalled],
    watchers: list[Watcher],
    server: Server,
    ledger: Ledger,
    database_url: str,
) -> float:
    """How long messages take to the watchers beside clients that stall, until they are awake."""
    thrown_out = server.metric("realtime_db_slow_clients_total")
    for one in stalled:
        one.failures.clear()  # from when all came at once, or woke
        one.sleep()
    memory = server.memory_bytes()
    busy = _p99_seconds(database_url, watchers, fat=True)
    grown = server.memory_bytes() - memory

    # Without a limit it would be more than 100 MB.
    assert grown < 60_000_000, f"{grown} bytes for {STALLED} clients that do not read"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while server.metric("realtime_db_slow_clients_total") < thrown_out + STALLED:
        assert time.monotonic() < deadline, "not all that stalled were thrown out"
    for one in stalled:
        one.wake()
    ledger.settle(at_least=2 * MESSAGES)
    for one in stalled:
        assert "ConnectionResetError" in "".join(one.failures[:1]), "it was not reset"
    return busy


def test_clients_that_stall_while_they_resume_leave_room_for_others(
    cluster: Cluster, server: Server, ledger: Ledger, database_url: str
) -> None:
    first = EventSource("who was there", [server.port], (FAT,))
    ledger.add(first)
    stalled = [Stalled(f"stalled {n}", [server.port], (FAT,)) for n in range(2 * STALLED)]
    for one in stalled:
        one.last_event_id = first.last_event_id
        one.is_asleep = True
    writer = ledger.by_hand()
    with psycopg.connect(database_url, autocommit=True) as connection:
        for number in range(1, MESSAGES + 1):
            _send(connection, writer.name, number, FAT, filler_bytes=FAT_BYTES)
    ledger.add(*stalled)
    deadline = time.monotonic() + DEADLINE_SECONDS
    with cluster.admin(database_url) as admin:
        while admin.execute(_IN_TRANSACTIONS).fetchone()[0] < STALLED // 2:
            assert time.monotonic() < deadline, "nobody is held up"
            time.sleep(0.02)
    other = EventSource("who asks for a policy", [server.port], PRIVATE)
    ledger.add(other)
    assert (other.connected, other.refused) == (1, []), "there was no connection for it"
    for one in stalled:
        one.is_asleep = False
        one.wake()
    ledger.settle(at_least=MESSAGES)


_IN_TRANSACTIONS = """
    select count(*) from pg_stat_activity where datname = current_database()
    and application_name = 'realtime-db' and backend_type = 'client backend'
    and xact_start < clock_timestamp() - interval '0.3 s'
"""
_rounds = itertools.count(1)


def _p99_seconds(url: str, watchers: list[Watcher], *, fat: bool = False) -> float:
    """How long messages take to the watchers, perhaps beside some that are not for them."""
    for one in watchers:
        one.seconds.clear()
    writer = f"timed {next(_rounds)}"
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(1, MESSAGES + 1):
            if fat:
                _send(connection, f"{writer} fat", number, FAT, filler_bytes=FAT_BYTES)
            _send(connection, writer, number, PUBLIC[0])
            deadline = time.monotonic() + 60
            while any(len(one.seconds) < number for one in watchers):
                assert time.monotonic() < deadline, f"message {number} is not with everybody"
                time.sleep(0.01)
    return statistics.quantiles([one for each in watchers for one in each.seconds], n=100)[-1]


def _send(
    connection: psycopg.Connection, writer: str, number: int, topic: Topic, filler_bytes: int = 0
) -> None:
    connection.execute(
        "select realtime.send(jsonb_build_object('writer', %s::text, 'number', %s::int, 'at',"
        " extract(epoch from clock_timestamp()), 'filler', repeat('x', %s)), 'e', %s, false)",
        [writer, number, filler_bytes, topic.name],
    )
