"""`realtime-db demo`: a private Postgres, real traffic, and every change arriving at a client.

The tables and the traffic are those of pgbench, which comes with Postgres. The client is a
WebSocket that joins private channels, as a browser would. pgbench's branch, of which there is one,
is updated by every transaction, so that each one waits for the one before: the old balance in a
message must be the new balance of the message before. That chain, and the sums of the tables
afterwards, are what the demo checks: neither was made by the code that it checks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rich.console import Console
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket

from realtime_db import embedded, server
from realtime_db.auth import tokens
from realtime_db.database import connect
from realtime_db.install import migrate, triggers
from realtime_db.settings import Settings

CLIENTS = 4
TRANSACTIONS_PER_CLIENT = 250
SHOWN = 8
SILENCE_SECONDS = 20.0

# Per transaction pgbench updates one row of each of the first three and inserts into the last.
TRIGGERS = {
    "pgbench_branches": "branch:{bid}",
    "pgbench_tellers": "teller:{tid}",
    "pgbench_accounts": "accounts",
    "pgbench_history": "history",
}
TOPICS = ["branch:1", *(f"teller:{number}" for number in range(1, 11)), "accounts", "history"]


@dataclass(slots=True)
class Ledger:
    """What arrived, held against what the tables say."""

    received: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    branch_balances: list[tuple[Decimal, Decimal]] = field(default_factory=list)

    def add(self, change: dict[str, Any]) -> None:
        """Counts a change and remembers what it says of balances."""
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
            for table in TRIGGERS
            if self.received[table] != transactions
        ]
        found += [
            f"{table}: the table moved by {moved}, the messages say {self.moved[table]}"
            for table in TRIGGERS
            if self.moved[table] != moved
        ]
        chain = itertools.pairwise(self.branch_balances)
        if any(before[1] != after[0] for before, after in chain):
            found.append("pgbench_branches: the messages are not in commit order")
        return found


async def run(console: Console) -> int:
    """Runs the demo.

    Returns:
        The exit status: 0 when every change arrived, in commit order.

    Raises:
        RealtimeDbError: Postgres could not be started, or a step failed.
    """
    wanted = CLIENTS * TRANSACTIONS_PER_CLIENT * len(TRIGGERS)
    console.print("[bold]1[/]  a private Postgres, gone when this ends", end=" … ")
    async with embedded.start() as postgres:
        console.print(f"{postgres.url.rsplit('@')[-1]}")

        console.print("[bold]2[/]  realtime-db migrate", end=" … ")
        await migrate.migrate(postgres.url)
        console.print("realtime.messages, realtime.send, policies, partitions, publication")

        console.print("[bold]3[/]  pgbench's tables, with broadcast triggers", end=" … ")
        await postgres.run("pgbench", "--initialize", "--quiet")
        for table, topic in TRIGGERS.items():
            await triggers.add(
                postgres.url, triggers.TriggerOptions(table, topic, except_columns=("filler",))
            )
        console.print(", ".join(TRIGGERS.values()))

        console.print("[bold]4[/]  realtime-db serve", end=" … ")
        async with _client(postgres.url) as (address, websocket):
            console.print(f"{address}, one client with {len(TOPICS)} private channels")
            console.print(
                f"[bold]5[/]  {CLIENTS} clients of pgbench make {wanted:,} changes; "
                "the WebSocket gets:\n"
            )
            ledger = Ledger()
            traffic = asyncio.create_task(
                postgres.run(
                    "pgbench",
                    "--no-vacuum",
                    f"--client={CLIENTS}",
                    "--jobs=2",
                    f"--transactions={TRANSACTIONS_PER_CLIENT}",
                )
            )
            try:
                await _receive(websocket, ledger, wanted, console)
            except BaseException:
                # Ctrl-C reached pgbench too; how it ended then is nobody's concern.
                traffic.cancel()
                await asyncio.gather(traffic, return_exceptions=True)
                raise
            await traffic
        transactions, moved = await _what_the_tables_say(postgres.url)

    received = sum(ledger.received.values())
    problems = ledger.problems(transactions, moved)
    changes = transactions * len(TRIGGERS)
    console.print(f"\n   {received:,} messages received, {changes:,} changes made")
    for problem in problems:
        console.print(f"   [red]{problem}[/]")
    if problems:
        return 1
    console.print("   [green]All of them, once each, in commit order. Nothing was left behind.[/]")
    return 0


@asynccontextmanager
async def _client(database_url: str) -> AsyncIterator[tuple[str, ClientConnection]]:
    """A server, and a WebSocket that has joined the topics."""
    secret = secrets.token_urlsafe(32)
    key = tokens.mint(secret, role="service_role", now=time.time(), ttl_seconds=3600)
    settings = Settings(
        database_url=database_url,
        port=0,
        jwt_secrets=(secret,),
        maintain=False,
        temporary_slot=True,
    )
    async with server.serve(settings) as running:
        await running.following.wait()
        address = f"{running.host}:{running.port}"
        url = f"ws://{address}/realtime/v1/websocket?apikey={key}&vsn=1.0.0"
        async with connect_websocket(url, proxy=None) as websocket:
            for topic in TOPICS:
                join = {"config": {"private": True}}
                await websocket.send(
                    json.dumps(
                        {
                            "topic": f"realtime:{topic}",
                            "event": "phx_join",
                            "payload": join,
                            "ref": topic,
                        }
                    )
                )
                reply = json.loads(await websocket.recv())
                assert reply["payload"]["status"] == "ok", reply
            yield address, websocket


async def _receive(
    websocket: ClientConnection, ledger: Ledger, wanted: int, console: Console
) -> None:
    """Takes messages until all have come, or none has for a while; shows some of them."""
    received = 0
    while received < wanted:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                text = await websocket.recv()
        except TimeoutError:
            return
        message = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        if message["event"] != "broadcast":
            continue
        ledger.add(message["payload"]["payload"])
        received += 1
        if received <= SHOWN:
            shown = json.dumps(message["payload"]["payload"], default=int)
            topic, event = message["topic"], message["payload"]["event"]
            console.print(
                f"   [cyan]{topic}[/] [magenta]{event}[/] {shown}", soft_wrap=True, highlight=False
            )
        elif received % (wanted // 4) == 0:
            console.print(f"   … {received:,}", highlight=False)


async def _what_the_tables_say(url: str) -> tuple[int, Any]:
    async with connect(url) as connection:
        cursor = await connection.execute("select count(*), sum(delta) from pgbench_history")
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
