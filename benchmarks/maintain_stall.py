"""How long a sender has to wait beside partition maintenance.

    python benchmarks/maintain_stall.py                         a private Postgres 18
    python benchmarks/maintain_stall.py --binaries /opt/pg14    another one
    python benchmarks/maintain_stall.py --url postgresql://…    a server; its superuser

In each run a session holds `select … from realtime.messages` open in a transaction for ten seconds,
another sends, one message a transaction, as fast as it can, and maintenance makes partitions that
are missing and drops old ones. Two figures of each run, from when maintenance begins until a second
after it ends:

    send    the sender's longest transaction; on a busy machine mostly the wait for a processor
    lock    its longest wait for a lock, as Postgres logs it: what maintenance is to blame for

The ways to maintain take turns:

    nothing     no maintenance: what the machine itself does to a sender
    program     realtime-db maintain
    function    select realtime.maintain()
    naive       create table … partition of, drop table

Target for program and function: 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import date, timedelta
from multiprocessing.connection import Connection

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded
from realtime_db.install import source
from realtime_db.retention.maintenance import run_once
from realtime_db.retention.plan import partition_name

TARGET_MS = 20.0
READER_SECONDS = 10.0
OLD_DAYS = 3
MESSAGES_A_DAY = 1000
_DAY = timedelta(days=1)

Database = psycopg.AsyncConnection[tuple[object, ...]]

_SPAWN = multiprocessing.get_context("spawn")


async def measure(
    server_url: str, *, runs: int = 3, reader_seconds: float = READER_SECONDS
) -> dict[str, dict[str, float]]:
    """Way -> `send_median_ms`, `send_max_ms`, `lock_median_ms`, `lock_max_ms` over the runs.

    Args:
        server_url: of a superuser; each run makes a database and drops it.
        runs: of each way, in turns.
        reader_seconds: how long the reader holds the table.
    """
    longest: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, maintain in WAYS.items():
            longest[way].append(await _one_run(server_url, maintain, reader_seconds))
    return {
        way: {
            f"{what}_{of}_ms": figure(pair[n] for pair in pairs)
            for n, what in enumerate(("send", "lock"))
            for of, figure in (("median", statistics.median), ("max", max))
        }
        for way, pairs in longest.items()
    }


async def _one_run(
    server_url: str, maintain: Callable[[str], Awaitable[None]], reader_seconds: float
) -> tuple[float, float]:
    name = f"bench_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    url = make_conninfo(server_url, dbname=name)
    async with await _open(server_url) as admin:
        await admin.execute(sql.SQL("create database {}").format(identifier))
        try:
            await _prepare(url)
            return await _longest_send(url, maintain, reader_seconds)
        finally:
            await admin.execute(sql.SQL("drop database {} with (force)").format(identifier))


async def _prepare(url: str) -> None:
    """Old partitions with messages, and the last day ahead missing."""
    async with await _open(url) as connection:
        await connection.execute("create schema realtime")
        await connection.execute(source.install_script().encode())
        await connection.execute("select realtime.setup()")
        today = await _today(connection)
        for n in range(OLD_DAYS):
            day = today - (4 + n) * _DAY
            await connection.execute("select realtime.create_partition(%s)", [day])
            await connection.execute(
                "insert into realtime.messages (topic, extension, event, payload, inserted_at) "
                "select 'topic', 'broadcast', 'event', '{}', %s from generate_series(1, %s)",
                [day, MESSAGES_A_DAY],
            )
        await connection.execute(
            sql.SQL("drop table {}").format(
                sql.Identifier("realtime", partition_name(today + 7 * _DAY))
            )
        )


async def _longest_send(
    url: str, maintain: Callable[[str], Awaitable[None]], reader_seconds: float
) -> tuple[float, float]:
    reading = asyncio.Event()

    async def read() -> None:
        async with await _open(url) as connection, connection.transaction():
            await connection.execute("select count(*) from realtime.messages")
            reading.set()
            await asyncio.sleep(reader_seconds)

    # A process of its own, so that what maintenance does in Python does not count.
    ours, theirs = _SPAWN.Pipe()
    sender = _SPAWN.Process(target=_send, args=(url, theirs), daemon=True)
    sender.start()
    theirs.close()
    await asyncio.to_thread(ours.recv)  # it is warm
    reader = asyncio.create_task(read())
    await reading.wait()
    begin = time.monotonic()
    await maintain(url)
    await reader
    await asyncio.sleep(1)
    ours.send("stop")
    sends = await asyncio.to_thread(ours.recv)
    sender.join()
    during = [(send, lock) for at, send, lock in sends if at + send / 1000 > begin]
    return max(send for send, _ in during), max(lock for _, lock in during)


def _send(url: str, parent: Connection) -> None:
    """Sends until it is told to stop.

    Tells the parent when it is warm, and in the end of each send when it began (monotonic, s), how
    long it took and how long it waited for locks (ms).
    """
    sends: list[tuple[float, float, float]] = []
    waited: list[float] = []

    def on_notice(notice: psycopg.errors.Diagnostic) -> None:
        if found := re.search(r"acquired .* after ([\d.]+) ms", notice.message_primary or ""):
            waited.append(float(found[1]))

    with psycopg.connect(url, autocommit=True) as connection:
        connection.add_notice_handler(on_notice)
        connection.execute(
            "set deadlock_timeout = '1ms'; set log_lock_waits = on; set client_min_messages = log"
        )
        while not parent.poll():
            waited.clear()
            begin = time.monotonic()
            connection.execute("select realtime.send('{}', 'event', 'topic')")
            sends.append((begin, 1000 * (time.monotonic() - begin), sum(waited)))
            if len(sends) == 100:
                parent.send("warm")
    parent.send(sends)


async def _nothing(url: str) -> None:
    """No maintenance."""


async def _program(url: str) -> None:
    report = await run_once(url, detach_timeout_seconds=60)
    assert len(report.dropped) == OLD_DAYS, report
    assert len(report.created) == 1, report


async def _function(url: str) -> None:
    async with await _open(url) as connection:
        for _ in range(60):
            cursor = await connection.execute("select action from realtime.maintain()")
            if ("left",) not in await cursor.fetchall():
                return
    raise AssertionError("realtime.maintain() always leaves something")


async def _naive(url: str) -> None:
    async with await _open(url) as connection:
        today = await _today(connection)
        ahead = today + 7 * _DAY
        await connection.execute(
            sql.SQL(
                "create table {} partition of realtime.messages for values from ({}) to ({})"
            ).format(
                sql.Identifier("realtime", partition_name(ahead)), str(ahead), str(ahead + _DAY)
            )
        )
        for n in range(OLD_DAYS):
            old = sql.Identifier("realtime", partition_name(today - (4 + n) * _DAY))
            await connection.execute(sql.SQL("drop table {}").format(old))


WAYS: dict[str, Callable[[str], Awaitable[None]]] = {
    "nothing": _nothing,
    "program": _program,
    "function": _function,
    "naive": _naive,
}


async def _open(url: str) -> Database:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def _today(connection: Database) -> date:
    cursor = await connection.execute("select (clock_timestamp() at time zone 'utc')::date")
    row = await cursor.fetchone()
    assert row
    assert isinstance(row[0], date)
    return row[0]


async def _main(arguments: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        url = arguments.url
        if url is None:
            # A sender that waits for a disk that others use too says nothing about locks.
            starting = embedded.start(binaries=arguments.binaries, settings={"fsync": "off"})
            url = (await stack.enter_async_context(starting)).url
        results = await measure(url, runs=arguments.runs)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{arguments.runs} runs, ms    send median       max   lock median       max")
    for way, figures in results.items():
        verdict = (
            f"target {TARGET_MS:g}: {'met' if figures['lock_max_ms'] <= TARGET_MS else 'missed'}"
        )
        print(
            f"{way:10}"
            + "".join(
                f"{figure:{width}.1f}"
                for figure, width in zip(figures.values(), (16, 10, 14, 10), strict=True)
            )
            + f"   {verdict if way in ('program', 'function') else ''}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", help="of a superuser; a private Postgres is started without")
    parser.add_argument("--binaries", help="a tree of Postgres binaries for the private one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asyncio.run(_main(parser.parse_args()))
