"""`realtime-db demo`: a private Postgres, real traffic, and every change arriving as a message.

The tables and the traffic are those of pgbench, which comes with Postgres. Its branch, of which
there is one, is updated by every transaction, so that each one waits for the one before: the old
balance in a message must be the new balance of the message before. That chain, and the sums of
the tables afterwards, are what the demo checks: neither was made by the code that it checks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rich.console import Console

from realtime_db import embedded
from realtime_db.database import connect
from realtime_db.install import migrate, triggers
from realtime_db.wal.pgoutput import Message
from realtime_db.wal.stream import Stream, open_stream

CLIENTS = 4
TRANSACTIONS_PER_CLIENT = 250
SHOWN = 8
SILENCE_SECONDS = 20.0

# Per transaction pgbench updates one row of each of the first three and inserts into the last.
TOPICS = {
    "pgbench_branches": "branch:{bid}",
    "pgbench_tellers": "teller:{tid}",
    "pgbench_accounts": "account:{aid}",
    "pgbench_history": "history:{bid}",
}


@dataclass(slots=True)
class Ledger:
    """What arrived, held against what the tables say."""

    received: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    branch_balances: list[tuple[Decimal, Decimal]] = field(default_factory=list)

    def add(self, message: Message) -> None:
        """Counts a message and remembers what it says of balances."""
        assert message.payload is not None
        change = json.loads(message.payload, parse_float=Decimal, parse_int=Decimal)
        table, record, old = change["table"], change["record"], change["old_record"]
        self.received[table] += 1
        if table == "pgbench_history":
            self.moved[table] += record["delta"]
            return
        balance = next(key for key in record if key.endswith("balance"))
        self.moved[table] += record[balance] - old[balance]
        if table == "pgbench_branches":
            self.branch_balances.append((old[balance], record[balance]))

    def problems(self, transactions: int, moved: int) -> list[str]:
        """What does not add up; empty when all does."""
        found = [
            f"{table}: {transactions} changes were made, {self.received[table]} messages arrived"
            for table in TOPICS
            if self.received[table] != transactions
        ]
        found += [
            f"{table}: the table moved by {moved}, the messages say {self.moved[table]}"
            for table in TOPICS
            if self.moved[table] != moved
        ]
        chain = self.branch_balances
        if any(before[1] != after[0] for before, after in itertools.pairwise(chain)):
            found.append("pgbench_branches: the messages are not in commit order")
        return found


async def run(console: Console) -> int:
    """Runs the demo.

    Returns:
        The exit status: 0 when every change arrived, in commit order.

    Raises:
        RealtimeDbError: Postgres could not be started, or a step failed.
    """
    wanted = CLIENTS * TRANSACTIONS_PER_CLIENT * len(TOPICS)
    console.print("[bold]1[/]  a private Postgres, gone when this ends", end=" … ")
    async with embedded.start() as server:
        console.print(f"{server.url.rsplit('@')[-1]}")

        console.print("[bold]2[/]  realtime-db migrate", end=" … ")
        await migrate.migrate(server.url)
        console.print("realtime.messages, realtime.send, policies, partitions, publication")

        console.print(
            "[bold]3[/]  the tables of pgbench, with a broadcast trigger on each", end=" … "
        )
        await server.run("pgbench", "--initialize", "--quiet")
        for table, topic in TOPICS.items():
            await triggers.add(server.url, triggers.TriggerOptions(table, topic))
        console.print(", ".join(TOPICS.values()))

        console.print(
            f"[bold]4[/]  {CLIENTS} clients of pgbench, {wanted:,} changes, read from the WAL:\n"
        )
        ledger = Ledger()
        async with open_stream(server.url) as stream:
            await stream.start()
            traffic = asyncio.create_task(
                server.run(
                    "pgbench",
                    "--no-vacuum",
                    f"--client={CLIENTS}",
                    "--jobs=2",
                    f"--transactions={TRANSACTIONS_PER_CLIENT}",
                )
            )
            try:
                await _receive(stream, ledger, wanted, console)
            finally:
                await traffic
        transactions, moved = await _what_the_tables_say(server.url)

    received = sum(ledger.received.values())
    problems = ledger.problems(transactions, moved)
    console.print(
        f"\n   {received:,} messages received, {transactions * len(TOPICS):,} changes made"
    )
    for problem in problems:
        console.print(f"   [red]{problem}[/]")
    if problems:
        return 1
    console.print("   [green]All of them, once each, in commit order. Nothing was left behind.[/]")
    return 0


async def _receive(stream: Stream, ledger: Ledger, wanted: int, console: Console) -> None:
    """Takes messages until all have come, or none has for a while; shows some of them."""
    received = 0
    batches = aiter(stream)
    while received < wanted:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                batch = await anext(batches)
        except (TimeoutError, StopAsyncIteration):
            return
        for message in batch.messages:
            ledger.add(message)
            received += 1
            if received <= SHOWN:
                payload = (message.payload or b"").decode()
                console.print(
                    f"   [cyan]{message.topic}[/] [magenta]{message.event}[/] {payload}",
                    soft_wrap=True,
                    highlight=False,
                )
            elif received % (wanted // 4) == 0:
                console.print(f"   … {received:,}", highlight=False)
        stream.acknowledge(batch.end_lsn)


async def _what_the_tables_say(url: str) -> tuple[int, Any]:
    async with connect(url) as connection:
        cursor = await connection.execute("select count(*), sum(delta) from pgbench_history")
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
