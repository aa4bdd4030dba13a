"""What following by asking costs (`serve --source poll`): latency, and the database's time.

    python benchmarks/polling.py                  # a private Postgres from the wheel

For a number of topics that somebody follows, in a table of a million messages: how long a poll
takes that finds nothing because nothing happened, one that finds nothing for its topics because
others wrote, and one that finds 100 messages; and from commit to receipt at the default pause.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg

from realtime_db import embedded
from realtime_db.install import migrate
from realtime_db.polling import Poller, open_poller
from realtime_db.progress import Progress

Connection = psycopg.Connection[tuple[Any, ...]]

STORED = 1_000_000
TOPICS = (10, 100, 1_000, 10_000)
ROUNDS = 50
PAUSE_SECONDS = 0.25  # the default of --poll-seconds


async def measure(binaries: Path | None) -> None:
    """Prints a table."""
    async with embedded.start(binaries=binaries) as server:
        await migrate.migrate(server.url)
        with psycopg.connect(server.url, autocommit=True) as writer:
            writer.execute(
                "insert into realtime.messages (topic, extension, event, payload, private)"
                " select 'old:' || n %% 20000, 'broadcast', 'e', '{}', true"
                " from generate_series(1, %s) as n",
                (STORED,),
            )
            writer.execute("vacuum analyze realtime.messages")
            print("topics | nothing happened | others wrote | 100 found | commit to receipt")
            for count in TOPICS:
                print(f"{count} | {' | '.join(await _row(server.url, writer, count))}")


async def _row(url: str, writer: Connection, count: int) -> list[str]:
    topics = [f"old:{number}" for number in range(count)]
    progress = Progress("p")
    async with open_poller(
        url, progress=progress, topics=lambda: topics, interval_seconds=PAUSE_SECONDS
    ) as poller:
        progress.begin(poller.cluster)
        await poller.start()

        def write(topic: str, messages: int) -> None:
            writer.execute(
                "insert into realtime.messages (topic, extension, event, payload, private)"
                " select %s || n %% %s, 'broadcast', 'e', '{}', true"
                " from generate_series(1, %s) as n",
                (topic, count, messages),
            )

        async def poll() -> int:
            batch = await poller.poll()
            progress.passed(poller.received_lsn)
            return len(batch.messages)

        async def timed(before: Callable[[], None], found: int) -> str:
            await poll()
            await poll()
            seconds = []
            for _ in range(ROUNDS):
                before()
                started = time.perf_counter()
                messages = await poll()
                seconds.append(time.perf_counter() - started)
                assert messages == found, (messages, found)
                await poll()  # what noting the last one did
            return _milliseconds(seconds)

        return [
            await timed(lambda: None, 0),
            await timed(lambda: write("other:", 1), 0),
            await timed(lambda: write("old:", 100), 100),
            await _latency(poller, poll, lambda: write("old:", 1)),
        ]


async def _latency(
    poller: Poller, poll: Callable[[], Awaitable[int]], write: Callable[[], None]
) -> str:
    """From a commit to the end of the poll that brings it."""
    await poll()
    committed: list[float] = []
    seconds: list[float] = []

    async def commit() -> None:
        for number in range(ROUNDS):
            # Spread over the pause.
            await asyncio.sleep(PAUSE_SECONDS * (1.2 + number / ROUNDS))
            write()
            committed.append(time.perf_counter())

    writing = asyncio.create_task(commit())
    async for batch in poller:
        if batch.messages:
            seconds.append(time.perf_counter() - committed[len(seconds)])
            if len(seconds) == ROUNDS:
                break
    await writing
    return _milliseconds(seconds)


def _milliseconds(seconds: list[float]) -> str:
    ranked = sorted(seconds)
    return (
        f"{statistics.median(ranked) * 1000:.2f} ms"
        f" ({ranked[len(ranked) // 10] * 1000:.2f} to {ranked[-len(ranked) // 10] * 1000:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, help="binaries of Postgres")
    asyncio.run(measure(parser.parse_args().bin))
