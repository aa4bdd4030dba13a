"""The network fails: between the server and Postgres, and between clients and the server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import psycopg
from psycopg.conninfo import make_conninfo

from tests.faults.cluster import Cluster
from tests.faults.ledger import PUBLIC, Ledger
from tests.faults.proxy import DOWN, UP, Proxy
from tests.faults.served import SOURCES, Server
from tests.faults.subscribers import EventSource

Rounds = Callable[[int], Iterator[int]]
MakeServer = Callable[..., Server]
MakeProxy = Callable[[int], Proxy]


@SOURCES
def test_the_network_to_postgres_fails_and_nothing_is_lost(
    cluster: Cluster,
    make_server: MakeServer,
    make_proxy: MakeProxy,
    ledger: Ledger,
    database_url: str,
    chance: random.Random,
    rounds: Rounds,
) -> None:
    network = make_proxy(cluster.port)
    server = make_server(url=make_conninfo(database_url, port=network.port))
    server.start()
    server.leads()
    ledger.follow(server.port)
    with ledger.writing():
        for _ in rounds(2):
            for fault in (_cut, _stall, _stall_and_cut, _refuse, _truncate_down, _truncate_up):
                ledger.arriving(10)
                fault(network, chance)
                assert network.accepted, "the server goes another way"
        ledger.arriving(20)
    ledger.settle()


@SOURCES
def test_a_network_to_postgres_that_forgets_connections_is_left(
    cluster: Cluster,
    make_server: MakeServer,
    make_proxy: MakeProxy,
    ledger: Ledger,
    database_url: str,
) -> None:
    network = make_proxy(cluster.port)
    server = make_server(url=make_conninfo(database_url, port=network.port))
    server.start()
    server.leads()
    ledger.follow(server.port)
    with ledger.writing():
        ledger.arriving(10)
        network.stall()
        # No reset, no end of file: only that nothing comes says so.
        network.heal(forget=True)
        ledger.arriving(200)
    ledger.settle()


@SOURCES
def test_the_network_to_the_clients_fails_and_nothing_is_lost(
    server: Server,
    make_proxy: MakeProxy,
    ledger: Ledger,
    chance: random.Random,
    rounds: Rounds,
) -> None:
    network = make_proxy(server.port)
    ledger.follow(network.port)
    with ledger.writing():
        for _ in rounds(2):
            for fault in (_cut, _stall, _stall_and_cut, _refuse, _truncate_down, _truncate_up):
                ledger.arriving(5)
                fault(network, chance)
        ledger.arriving(20)
    ledger.settle()
    assert min(ledger.connections) > 4


@SOURCES
def test_a_resume_that_is_cut_goes_on_where_it_was(
    server: Server, make_proxy: MakeProxy, ledger: Ledger, database_url: str
) -> None:
    network = make_proxy(server.port)
    ledger.is_exact = True
    ledger.add(EventSource("who stays", [server.port], PUBLIC[:1]))
    stays = ledger.subscribers[:]
    ledger.follow(network.port)
    network.refuse()
    writer = ledger.by_hand()
    with psycopg.connect(database_url, autocommit=True) as connection:
        sent = [one for _ in range(30) for one in writer.send(connection, PUBLIC[0], 100)]
    writer.committed.update(sent)
    everybody, ledger.subscribers = ledger.subscribers, stays
    ledger.has(writer, sent)
    ledger.subscribers = everybody
    network.heal(down_bytes=300_000)
    ledger.has(writer, sent)
    network.heal()
    assert max(ledger.connections) > 3, "nothing was cut"
    ledger.settle()


# The faults: each leaves a network that works


def _cut(network: Proxy, chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 0.3))
    network.cut()


def _refuse(network: Proxy, chance: random.Random) -> None:
    network.refuse()
    time.sleep(chance.uniform(0, 0.5))
    network.heal()


def _stall(network: Proxy, chance: random.Random) -> None:
    network.stall(*chance.choice(((DOWN,), (UP,), (DOWN, UP))))
    time.sleep(chance.uniform(0, 1))
    network.heal()


def _stall_and_cut(network: Proxy, chance: random.Random) -> None:
    network.stall(*chance.choice(((DOWN,), (UP,), (DOWN, UP))))
    time.sleep(chance.uniform(0, 1))
    network.cut()
    network.heal()


def _truncate_down(network: Proxy, chance: random.Random) -> None:
    network.truncate(DOWN, chance.randint(1, 3000))


def _truncate_up(network: Proxy, chance: random.Random) -> None:
    network.truncate(UP, chance.randint(1, 100))
