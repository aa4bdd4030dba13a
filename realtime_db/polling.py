"""Follows `realtime.messages` by asking for what is new, where the WAL cannot be followed.

Above is `following`, which takes the batches as it takes those of `wal.stream`; below is one
connection of the owner of `realtime.messages`.

A poll brings what its snapshot shows and that of the poll before does not: whole transactions, as
they become visible, and the rows of each as they were inserted. A transaction that was open for
long is found by its id, so nothing is missed for it and nobody waits for it. Each poll that found
something is kept in `realtime.polls`, and by these the order of what is stored can be told at any
time, also after a crash.

Only topics that somebody follows are asked for, each by a short scan of the primary key.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from operator import attrgetter, methodcaller
from typing import Any, Final

import psycopg

from realtime_db.cursors import Snapshot, cluster_id
from realtime_db.database import Connection, connect, first_line
from realtime_db.errors import MissingRight, NotInstalled, RealtimeDbError
from realtime_db.leadership import IDLE_SECONDS
from realtime_db.progress import CLOCK_SLACK_US, Known, Progress
from realtime_db.wal.pgoutput import COLUMNS, REVOCATIONS, SENDABLE, Message
from realtime_db.wal.slot import connection_lost
from realtime_db.wal.stream import Batch

TOPICS_AT_ONCE: Final = 2_000
FORGET_SECONDS: Final = 600.0
AHEAD_SECONDS: Final = 86_400.0

# Rows of transactions that began to write after the last poll, so they are not older than it.
_BEGUN_SINCE: Final = f"""
    select {COLUMNS}
    from unnest(%(topics)s::text[]) as followed (topic)
    cross join lateral (
        select * from realtime.messages as m
        where m.topic = followed.topic
            and m.inserted_at >= to_timestamp(%(since)s) at time zone 'utc'
            and m.inserted_at < to_timestamp(%(until)s) at time zone 'utc'
            and m.transaction_id >= %(xmax)s::text::xid8
            and {SENDABLE}
    ) as m
"""  # noqa: S608 - constants of ours

# Those of transactions that were open by then and have ended since. It reads further back, and is
# asked only if there are any.
_ENDED_SINCE: Final = f"""
    select {COLUMNS}
    from unnest(%(topics)s::text[]) as followed (topic)
    cross join lateral (
        select * from realtime.messages as m
        where m.topic = followed.topic
            and m.inserted_at >= to_timestamp(%(since)s) at time zone 'utc'
            and m.inserted_at < to_timestamp(%(until)s) at time zone 'utc'
            and m.transaction_id = any (%(ids)s::text[]::xid8[])
            and {SENDABLE}
    ) as m
"""  # noqa: S608 - constants of ours

_CLUSTER: Final = """
    select system_identifier::text, left(pg_walfile_name(pg_current_wal_lsn()), 8)
    from pg_control_system()
"""
_LOOK: Final = """
    select pg_current_snapshot()::text, (extract(epoch from clock_timestamp()) * 1000000)::bigint
"""
_FORGET: Final = """
    delete from realtime.polls as p
    where p.taken_at < (now() at time zone 'utc') - make_interval(
        days => (select s.retention_days + 1 from realtime.settings as s)
    )
"""
_POLLS: Final = """
    select id, seen::text from realtime.polls
    where id >= coalesce((
        select max(id) from realtime.polls where taken_at < to_timestamp(%s) at time zone 'utc'
    ), 0)
    order by id
"""


@asynccontextmanager
async def open_poller(
    database_url: str,
    *,
    progress: Progress,
    topics: Callable[[], Collection[str]],
    interval_seconds: float,
    on_connected: Callable[[Connection], object] = lambda connection: None,
) -> AsyncIterator[Poller]:
    """Opens a connection; `Poller.start` begins.

    Args:
        database_url: of the owner of `realtime.messages`.
        progress: is told what was seen.
        topics: those that somebody follows.
        interval_seconds: the pause between two polls.
        on_connected: is given the connection, to `cut` it, say.

    Raises:
        ConnectionFailed: the database cannot be reached.
        NotInstalled: it has no table `realtime.polls`.
        MissingRight: the tables are not to be read.
    """
    async with connect(database_url) as connection:
        on_connected(connection)
        try:
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            # The next leader writes the same polls. It must not wait for a transaction of one that
            # stands still.
            await connection.execute(
                "select set_config('statement_timeout', '0', false),"
                " set_config('idle_in_transaction_session_timeout', %s, false)",
                (str(round(IDLE_SECONDS * 1000)),),
            )
            cursor = await connection.execute(_CLUSTER)
            row = await cursor.fetchone()
        except psycopg.Error as error:
            raise _failed(error) from error
        assert row is not None, "a function has a row"
        yield Poller(
            connection, cluster_id(int(row[0]), row[1]), progress, topics, interval_seconds
        )


class Poller:
    """Committed messages as they are found; made by `open_poller`.

    Orders, and `Message.commit_lsn` with them, are the numbers of the polls, doubled: the odd ones
    are the moments between two polls.

    Attributes:
        cluster: see `cursors.cluster_id`.
        polls: how often the database was asked for messages.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: int,
        progress: Progress,
        topics: Callable[[], Collection[str]],
        interval_seconds: float,
    ) -> None:
        self.cluster = cluster
        self._connection = connection
        self._progress = progress
        self._topics = topics
        self._interval_seconds = interval_seconds
        self._polling = asyncio.Lock()
        self._number = 0
        self._recorded = self._seen = Snapshot(0, 0)
        self._taken_us = 0
        self._again = False
        self._forget_at = 0.0
        self.polls = 0

    async def start(self) -> None:
        """Begins with what commits from now on, or where a poller before this one ended.

        That is what `progress` knows of, whose `begin` has been called.

        Raises:
            ConnectionFailed: the connection ended.
            NotInstalled, MissingRight: the tables are not to be read.
        """
        async with self._polling:
            try:
                async with self._connection.transaction():
                    seen, taken_us = await self._look()
                    cursor = await self._connection.execute("select max(id) from realtime.polls")
                    row = await cursor.fetchone()
                    self._number = row[0] if row and row[0] is not None else 0
                    if self._progress.horizon is None:
                        await self._record(seen)
            except psycopg.Error as error:
                raise _failed(error) from error
            before = self._progress.horizon
            if before is None:
                self._brought(seen, taken_us)
            else:
                # A poll may have been noted whose messages did not arrive here.
                self._again = True
                self._seen, self._taken_us = before.seen, before.taken_us

    @property
    def received_lsn(self) -> int:
        """Up to which order everything has been brought: between two polls."""
        return 2 * self._number + 1

    def __aiter__(self) -> Poller:
        return self

    async def __anext__(self) -> Batch:
        """The next poll, after a pause. See `poll`."""
        await asyncio.sleep(self._interval_seconds)
        return await self.poll()

    async def poll(self) -> Batch:
        """What is new, which may be nothing.

        Raises:
            ConnectionFailed: the connection ended.
            NotInstalled, MissingRight: the tables are not to be read.
        """
        async with self._polling:
            try:
                messages = await self._poll()
            except psycopg.Error as error:
                raise _failed(error) from error
            return Batch(messages, 2 * self._number, [])

    async def checkpoint(self) -> Snapshot:
        """Makes an order of all that has been seen: what a resume may read, and no more.

        What it does not show comes with a later poll, to who follows the topic by now.
        """
        async with self._polling:
            if self._recorded != self._seen:
                try:
                    async with self._connection.transaction():
                        await self._record(self._seen)
                except psycopg.Error as error:
                    raise _failed(error) from error
                self._progress.look(self._seen, at=self.received_lsn, taken_us=self._taken_us)
            return self._recorded

    async def known(
        self, connection: Connection, transaction_ids: Collection[int], since_us: int
    ) -> Known:
        """In which order transactions were delivered, by the polls that are kept.

        Args:
            connection: in the transaction that reads the messages.
            transaction_ids: of stored messages.
            since_us: none of them was to be seen before this, in microseconds since 1970 UTC.
        """
        cursor = await connection.execute(_POLLS, (since_us / 1e6,))
        rows = await cursor.fetchall()
        seen = [Snapshot.parse(row[1]) for row in rows]
        ids, orders = [], []
        for one in transaction_ids:
            # What a poll shows, all later ones show.
            first = bisect_left(seen, True, key=methodcaller("shows", one))
            if first < len(seen):
                ids.append(one)
                orders.append(2 * rows[first][0])
        return Known(ids, orders, None)

    async def _poll(self) -> list[Message]:
        """One look; a second one, for the rows, only if anything has happened."""
        connection = self._connection
        async with connection.transaction():
            seen, taken_us = await self._look()
            topics = [*self._topics(), REVOCATIONS]
            if seen == self._seen:
                return []
            rows = await self._rows(seen, taken_us, topics)
            if rows:
                await self._record(seen)
            orders = dict.fromkeys((int(row[7]) for row in rows), 2 * self._number)
            if rows and self._again:
                told = await self.known(connection, orders, self._taken_us)
                orders = dict(zip(told.transaction_ids, told.orders, strict=True))
            now = asyncio.get_running_loop().time()
            if now >= self._forget_at:
                self._forget_at = now + FORGET_SECONDS
                await connection.execute(_FORGET)
        self._again = False
        self._brought(seen, taken_us)
        messages = [Message.of_row(row, orders[int(row[7])]) for row in rows]
        messages.sort(key=attrgetter("commit_lsn", "transaction_id", "position"))
        return messages

    async def _look(self) -> tuple[Snapshot, int]:
        """The snapshot of the transaction that this begins, and the time."""
        cursor = await self._connection.execute(_LOOK)
        row = await cursor.fetchone()
        assert row is not None, "a select without from has one row"
        return Snapshot.parse(row[0]), row[1]

    async def _rows(
        self, seen: Snapshot, taken_us: int, topics: list[str]
    ) -> list[tuple[Any, ...]]:
        """What a snapshot shows and the last one did not, in its order."""
        self.polls += 1
        last = self._seen
        ended = [number for number in last.running if seen.shows(number)]
        horizon = self._progress.horizon
        since_us = 0 if horizon is None else horizon.since_us
        rows: list[tuple[Any, ...]] = []
        for first in range(0, len(topics), TOPICS_AT_ONCE):
            asked: dict[str, object] = {
                "topics": topics[first : first + TOPICS_AT_ONCE],
                # The partitions of the days ahead are left alone.
                "until": taken_us / 1e6 + AHEAD_SECONDS,
                "since": max(0, self._taken_us - CLOCK_SLACK_US) / 1e6,
                "xmax": str(last.xmax),
            }
            rows += await (await self._connection.execute(_BEGUN_SINCE, asked)).fetchall()
            if ended:
                asked |= {"since": since_us / 1e6, "ids": list(map(str, ended))}
                rows += await (await self._connection.execute(_ENDED_SINCE, asked)).fetchall()
        return rows

    async def _record(self, seen: Snapshot) -> None:
        await self._connection.execute(
            "insert into realtime.polls (id, seen) values (%s, %s::pg_snapshot)",
            (self._number + 1, str(seen)),
        )
        self._number += 1
        self._recorded = seen

    def _brought(self, seen: Snapshot, taken_us: int) -> None:
        self._seen, self._taken_us = seen, taken_us
        self._progress.look(seen, at=self.received_lsn, taken_us=taken_us)


def _failed(error: psycopg.Error) -> RealtimeDbError:
    if isinstance(error, psycopg.errors.UndefinedTable):
        return NotInstalled(
            f"the database cannot be polled: {first_line(error)}", hint="Run: realtime-db migrate"
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return MissingRight(
            f"the database cannot be polled: {first_line(error)}",
            hint="Connect as the owner of realtime.messages.",
        )
    return connection_lost(str(error))
