"""A server that is told to end ends, whatever it waits for."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

from psycopg.conninfo import make_conninfo

from tests.faults.proxy import Proxy
from tests.server.conftest import DEADLINE_SECONDS, JWT_SECRET, Server

# A server with a task that cannot be cancelled, and no patience.
STUBBORN = """
import asyncio, os, sys
from realtime_db import server
from realtime_db.settings import Settings

async def stubborn(*given, **named):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

server.maintenance.run_every = stubborn
server.END_SECONDS = server.AGAIN_SECONDS
server.LAST_SECONDS = 3.0
settings = Settings(database_url=sys.argv[1], port=0, jwt_secrets=(sys.argv[2],), log_json=True)
sys.exit(server.run(settings))
"""


def test_it_ends_though_the_database_does_not_answer(
    own_database_url: str, network: Proxy, start_server: Callable[..., Server]
) -> None:
    server = start_server(database_url=make_conninfo(own_database_url, port=network.port))
    server.said("following the WAL")
    network.stall()
    server.stop()  # which looks at its status


def test_what_does_not_end_is_named_and_ended(own_database_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, own_database_url, JWT_SECRET],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stderr.readline, "")
        assert any("listening on" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "the server did not end within 3 s" in said
    assert "maintenance at _maintain server.py:" in said
    assert "> stubborn <string>:" in said
