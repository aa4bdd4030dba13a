"""Two servers, of which one leads."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator

from tests.faults.ledger import Ledger
from tests.faults.served import DEADLINE_SECONDS, SOURCES, Server

Rounds = Callable[[int], Iterator[int]]
MakeServer = Callable[..., Server]


def test_of_two_servers_that_start_at_once_one_leads(
    make_server: MakeServer, ledger: Ledger, rounds: Rounds
) -> None:
    servers = [make_server(), make_server()]
    for server in servers:
        server.start()
    _lead(servers)
    ledger.follow(*(one.port for one in servers))
    with ledger.writing():
        for _ in rounds(3):
            ledger.arriving(10)
            _lead(servers)
            for server in servers:
                server.kill()
            for server in servers:
                server.begin()
            for server in servers:
                server.says("listening on")
            _lead(servers)
        ledger.arriving(10)
    ledger.settle()


@SOURCES
def test_leaders_are_killed_and_frozen_and_stopped_and_nothing_is_lost(
    make_server: MakeServer, ledger: Ledger, chance: random.Random, rounds: Rounds
) -> None:
    servers = [make_server(), make_server()]
    for server in servers:
        server.start()
    _lead(servers)
    ledger.follow(*(one.port for one in servers))
    with ledger.writing():
        for _ in rounds(2):
            for fault in (_kill, _freeze, _stop):
                ledger.arriving(10)
                time.sleep(chance.uniform(0, 0.5))
                leader, standby = _lead(servers)
                fault(leader, standby)
        ledger.arriving(20)
    ledger.settle()


def _kill(leader: Server, standby: Server) -> None:
    leader.kill()
    standby.leads()
    leader.start()


def _stop(leader: Server, standby: Server) -> None:
    leader.stop()
    standby.leads()
    leader.start()


def _freeze(leader: Server, standby: Server) -> None:
    """As a machine that swaps, or is moved: it does not know how long it was away."""
    leader.signal(signal.SIGSTOP)
    try:
        standby.leads()
    finally:
        leader.signal(signal.SIGCONT)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while leader.is_ready():
        assert time.monotonic() < deadline, "it believes that it leads still"
    # The other does, unless the database did not answer it just now: then either may be next.
    _lead([leader, standby])


def _lead(servers: list[Server]) -> tuple[Server, Server]:
    """The one that leads, and the other; waits until there is one."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        ready = [server for server in servers if server.is_ready()]
        if len(ready) == 2:
            # The first may have lost it before the other was asked.
            assert not ready[0].is_ready(), "two servers lead"
        elif ready:
            return ready[0], next(server for server in servers if server is not ready[0])
        assert time.monotonic() < deadline, "".join(servers[0].log + servers[1].log)
