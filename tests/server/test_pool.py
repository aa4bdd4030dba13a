"""The connections that ask the policies, when the network forgets them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo

from realtime_db.database import IDLE_SECONDS
from tests.faults.proxy import Proxy
from tests.server.conftest import DEADLINE_SECONDS, Server

POOL_SIZE = 4
IN_THE_POOL = """
    select count(*) from pg_stat_activity
    where datname = current_database() and query like '%from realtime.authorize(%'
"""


def test_nobody_is_refused_for_connections_that_the_network_forgot(
    own_database_url: str, network: Proxy, start_server: Callable[..., Server], private_topic: str
) -> None:
    server = start_server(
        *("--pool-size", str(POOL_SIZE)),
        database_url=make_conninfo(own_database_url, port=network.port),
    )
    path = f"/api/broadcast/{quote(private_topic, safe='')}/events/e?private=true"
    deadline = time.monotonic() + DEADLINE_SECONDS
    with (
        ThreadPoolExecutor(2 * POOL_SIZE) as threads,
        psycopg.connect(own_database_url, autocommit=True) as database,
    ):

        def ask() -> list[int]:
            """The statuses of as many questions at once."""
            answers = [threads.submit(server.post, path, {}) for _ in range(2 * POOL_SIZE)]
            return [answer.result().status for answer in answers]

        while database.execute(IN_THE_POOL).fetchone() < (POOL_SIZE + 1,):  # and this one
            ask()
            assert time.monotonic() < deadline
        time.sleep(IDLE_SECONDS)  # what is used all the time is not looked at
        network.stall()
        network.heal(forget=True)
        assert server.post(path, {}).status == 202
        assert ask() == [202] * 2 * POOL_SIZE
