"""What a slot would have brought, read from the table: for one that was lost, dropped, given up.

Above is `following`, which hands it on before what the new slot brings. Below: a connection of its
own, in the snapshot that Postgres exports when it makes a slot. What that shows is read here, what
it does not show comes out of the WAL, so nothing is missed or read twice.

The order of commits is not in the table: messages come in the order of their transactions' ids.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from psycopg import sql

from realtime_db.cursors import Snapshot
from realtime_db.database import Connection, connect
from realtime_db.wal.pgoutput import COLUMNS, SENDABLE, Message

ROWS_AT_ONCE: Final = 500
_EPOCH: Final = datetime(1970, 1, 1)  # UTC, as inserted_at

# `m.` in the order: a bare transaction_id would be the text of the select list.
_MISSED: Final = f"""
    select {COLUMNS}
    from realtime.messages as m
    where m.topic = any (%(topics)s)
        and m.inserted_at >= %(since)s
        and {SENDABLE}
        and (
            %(seen)s::pg_snapshot is null
            or not pg_visible_in_snapshot(m.transaction_id, %(seen)s::pg_snapshot)
        )
    order by m.transaction_id, m.position
"""  # noqa: S608 - constants of ours
_OLDEST: Final = "select min(day) from realtime.partitions() where attached"


class Owed(NamedTuple):
    """From where on messages are owed to subscribers.

    Attributes:
        seen: what had committed by then is not owed; None if ids of transactions mean nothing.
        since_us: what is owed was not inserted before this, in microseconds since 1970 UTC; 0 if
            that is not known.
        taken_us: when that was true.
    """

    seen: Snapshot | None
    since_us: int
    taken_us: int


class Missed:
    """The messages; made by `open_missed`.

    Attributes:
        owed: from where on.
    """

    def __init__(self, connection: Connection, owed: Owed, topics: Collection[str]) -> None:
        self._connection = connection
        self.owed = owed
        self._topics = topics

    async def incomplete_before(self) -> str | None:
        """The time before which messages may be gone with their partitions; None if none are."""
        row = await (await self._connection.execute(_OLDEST)).fetchone()
        oldest: date | None = row[0] if row else None
        since = _time(self.owed.since_us or self.owed.taken_us)
        if oldest is not None and since.date() >= oldest:
            return None
        return f"{oldest or datetime.now(UTC).date()}T00:00:00Z"

    async def pages(self, order: int) -> AsyncIterator[list[Message]]:
        """The messages, some at a time.

        Args:
            order: what to call the position of their commits, which is not known.
        """
        owed = self.owed
        async with self._connection.cursor(name="missed") as cursor:
            await cursor.execute(
                _MISSED,
                {
                    "topics": list(self._topics),
                    "since": _time(owed.since_us),
                    "seen": None if owed.seen is None else str(owed.seen),
                },
            )
            while rows := await cursor.fetchmany(ROWS_AT_ONCE):
                yield [Message.of_row(row, order) for row in rows]


@asynccontextmanager
async def open_missed(
    database_url: str,
    *,
    snapshot: str,
    owed: Owed,
    topics: Collection[str],
    on_connected: Callable[[Connection], object],
) -> AsyncIterator[Missed]:
    """Opens a transaction that sees what a new slot does not bring.

    Args:
        database_url: of the owner of `realtime.messages`.
        snapshot: `Stream.snapshot`; it may end once this has begun.
        owed: from where on.
        topics: those with subscribers.
        on_connected: is given the connection, to `cut` it, say.
    """
    async with connect(database_url) as connection:
        on_connected(connection)
        await connection.execute("set statement_timeout = 0")
        async with connection.transaction():
            await connection.execute("set transaction isolation level repeatable read, read only")
            await connection.execute(
                sql.SQL("set transaction snapshot {}").format(snapshot)  # no place for a parameter
            )
            yield Missed(connection, owed, topics)


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
