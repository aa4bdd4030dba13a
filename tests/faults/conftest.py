"""What fails, and what has to survive it.

    writers ─► Postgres ◄─ proxy ─ server ◄─ proxy ─ subscribers
        └────────────────── ledger ──────────────────────┘

Each file has a Postgres of its own, so that it can be killed. Whatever a test does to the parts,
the ledger has the last word: every message that was committed came to every subscriber.

A test takes seconds. REALTIME_DB_SOAK_MINUTES=5 makes each test that goes round go round for five
minutes. What is random comes from a seed that a failure prints; REALTIME_DB_FAULT_SEED=… takes the
same one again, though not the same moments: the machine has its own.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.faults.background import Background
from tests.faults.cluster import Cluster
from tests.faults.ledger import Ledger
from tests.faults.proxy import Proxy
from tests.faults.served import Server

SOAK_SECONDS = 60 * float(os.environ.get("REALTIME_DB_SOAK_MINUTES", "0"))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Postgres for the tests of a file, with its `SETTINGS` if it has some."""
    started = Cluster(getattr(request.module, "SETTINGS", None))
    yield started
    started.close()


@pytest.fixture
def database_url(cluster: Cluster) -> Iterator[str]:
    """A database of the test's own, as its plain owner."""
    url = cluster.create_database()
    yield url
    cluster.drop_database(url)


@pytest.fixture
def seed() -> int:
    """Printed, so that pytest shows it if the test fails."""
    number = int(os.environ.get("REALTIME_DB_FAULT_SEED", secrets.randbelow(1 << 32)))
    print(f"REALTIME_DB_FAULT_SEED={number}")
    return number


@pytest.fixture
def chance(seed: int) -> random.Random:
    """What decides when something fails."""
    return random.Random(seed)


@pytest.fixture
def background() -> Iterator[Background]:
    """Where subscribers and proxies live."""
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture
def source() -> str:
    """Where the servers have messages from; `served.SOURCES` makes a test do both."""
    return "wal"


@pytest.fixture
def ledger(database_url: str, background: Background, seed: int, source: str) -> Ledger:
    """Writers and subscribers of the database."""
    return Ledger(database_url, background, seed=seed, is_exact=source == "poll")


@pytest.fixture
def make_server(database_url: str, source: str) -> Iterator[Callable[..., Server]]:
    """`make_server("--pool-size", "2")` -> a server that is not started yet."""
    with ExitStack() as stack:

        def make(*options: str, url: str = database_url) -> Server:
            server = Server(url, "--source", source, *options)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """One that runs."""
    started = make_server()
    started.start()
    started.leads()
    return started


@pytest.fixture
def make_proxy(background: Background) -> Iterator[Callable[[int], Proxy]]:
    """`make_proxy(port)` -> a network before that port."""
    with ExitStack() as stack:

        def make(port: int) -> Proxy:
            proxy = Proxy(background, port)
            stack.callback(proxy.close)
            return proxy

        yield make


@pytest.fixture
def rounds() -> Callable[[int], Iterator[int]]:
    """`rounds(20)` -> 20 rounds; of a soak, as many as fit into its minutes, but not fewer."""

    def rounds(count: int) -> Iterator[int]:
        began, number = time.monotonic(), 0
        while number < count or time.monotonic() < began + SOAK_SECONDS:
            yield number
            number += 1

    return rounds
