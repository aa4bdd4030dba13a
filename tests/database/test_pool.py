"""The pool of a server, when the network to the database forgets its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db import database
from realtime_db.database import Pool
from tests.faults.background import Background
from tests.faults.proxy import Proxy

SIZE = 6
DEADLINE_SECONDS = 60.0


@pytest.fixture
def network(database_url: str) -> Iterator[Proxy]:
    """What is before the database."""
    background = Background()
    proxy = Proxy(background, int(conninfo_to_dict(database_url)["port"]))
    yield proxy
    proxy.close()
    background.close()


def forgets(network: Proxy) -> None:
    """Nothing comes on what is open now, and nobody says why; what is new works."""
    network.stall()
    network.heal(forget=True)


def with_full_pool(
    network: Proxy, url: str, test: Callable[[Pool], Awaitable[None]], statement_seconds: float
) -> None:
    async def run() -> None:
        address = make_conninfo(url, port=network.port)
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            Pool(address, size=SIZE, statement_seconds=statement_seconds) as pool,
        ):
            await fill(pool)
            await test(pool)

    asyncio.run(run())


async def fill(pool: Pool) -> None:
    """Lets it have all the connections that it may."""
    while pool.get_stats()["pool_available"] < SIZE:
        await asyncio.gather(*(use(pool) for _ in range(4 * SIZE)))


async def use(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("select pg_sleep(0.01)")


def test_connections_that_were_idle_are_not_used_when_the_network_forgot_them(
    network: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Pool) -> None:
        for count in (1, 2 * SIZE):
            monkeypatch.setattr(database, "IDLE_SECONDS", DEADLINE_SECONDS)
            await fill(pool)
            monkeypatch.setattr(database, "IDLE_SECONDS", 0.0)
            before = network.accepted
            forgets(network)
            await asyncio.gather(*(use(pool) for _ in range(count)))
            assert network.accepted > before

    # Less than it would take to ask one after the other, and three seconds to connect anew.
    with_full_pool(network, database_url, test, database.CHECK_SECONDS + 3.0)


def test_what_one_connection_finds_holds_for_all_that_are_idle(
    network: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Pool) -> None:
        monkeypatch.setattr(database, "IDLE_SECONDS", DEADLINE_SECONDS)
        forgets(network)
        with pytest.raises(psycopg.OperationalError):
            await use(pool)
        await asyncio.gather(*(use(pool) for _ in range(2 * SIZE)))

    with_full_pool(network, database_url, test, 4.0)
