"""Case: an update of 100,000 rows, from its start to its last message at a reader of the WAL."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from changes import fill, make_tables, update_statement
from harness import Connection, Place, Row, compared, spread, take_turns

from realtime_db.wal.stream import open_stream

ROWS = 100_000
_DEADLINE_SECONDS = 180.0
_SCHEMAS = {"ours": "realtime", "peer": "peer"}


@dataclass(slots=True)
class _Reader:
    """Counts messages in a thread, beside the session that writes.

    Attributes:
        ready: the stream has started.
        seen: how many messages have arrived.
        finished_at: `time.perf_counter()` when the last of `ROWS` arrived.
        failure: why it ended early.
    """

    url: str
    schema: str
    ready: threading.Event = field(default_factory=threading.Event)
    seen: int = 0
    finished_at: float = 0.0
    failure: Exception | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._read())
        except Exception as error:
            self.failure = error
        finally:
            self.ready.set()

    async def _read(self) -> None:
        async with (
            asyncio.timeout(_DEADLINE_SECONDS),
            open_stream(
                self.url, publication=f"{self.schema}_messages", schema=self.schema
            ) as stream,
        ):
            await stream.start()
            self.ready.set()
            async for batch in stream:
                self.seen += len(batch.messages)
                stream.acknowledge(batch.end_lsn)
                if self.seen >= ROWS:
                    self.finished_at = time.perf_counter()
                    return


def last_message(place: Place, rounds: int) -> Iterator[Row]:
    """From the start of an update of 100,000 rows to the last message at the reader."""
    after_commit: dict[str, list[float]] = {"ours": [], "peer": []}

    def turn(connection: Connection, side: str) -> float:
        fill(connection, side, ROWS + 1)
        connection.execute(update_statement(side, "id = 1").encode())
        reader = _Reader(place.owner_url, _SCHEMAS[side])
        thread = threading.Thread(target=reader.run)
        thread.start()
        try:
            reader.ready.wait()
            begin = time.perf_counter()
            connection.execute(update_statement(side, "id > 1").encode())
            committed = time.perf_counter()
        finally:
            thread.join()
        if reader.failure:
            raise reader.failure
        _wait_for_walsender(connection)
        after_commit[side].append(reader.finished_at - committed)
        return reader.finished_at - begin

    with place.connect() as connection:
        make_tables(place, connection)
        sides = {side: partial(turn, connection, side) for side in after_commit}
        samples = take_turns(sides, max(1, rounds // 3), warm_up=False)
    yield compared(
        f"UPDATE of {ROWS:,} rows, from its start to the last message at the reader",
        samples,
        ROWS,
        "peer",
        5.0,
    )
    waits = {side: spread(values) for side, values in after_commit.items()}
    yield Row(
        "the same, from the commit to the last message",
        got=f"{waits['ours'].text()} s",
        must="at most 1.5 s",
        reached=waits["ours"].middle <= 1.5,
        ours=f"{waits['ours'].middle:.2f} s",
        peer=f"{waits['peer'].middle:.2f} s",
    )


def _wait_for_walsender(connection: Connection) -> None:
    """Its work goes on for seconds after its client has gone, and would slow the next turn."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    busy = (
        "select exists (select from pg_replication_slots "
        "where database = current_database() and active)"
    )
    while connection.execute(busy).fetchone() == (True,) and time.monotonic() < deadline:
        time.sleep(0.1)
