"""Asks the database how the server stands: for `/readyz` and `/metrics`.

Above: `transports.operations`. Below: a connection of its own, for a pool whose connections are all
in use says nothing about the database. Anybody may ask, so there is at most one question at a time,
and its answer is good for a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import psycopg

from realtime_db.database import connect, first_line
from realtime_db.errors import RealtimeDbError
from realtime_db.metrics import DatabaseCounts
from realtime_db.release import check_release

FRESH_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 3.0

# The slot: that of the reader, if its name is known; else whichever feeds somebody from here.
_SLOT: Final = """
    select
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
        pg_wal_lsn_diff(s.confirmed_flush_lsn, '0/0')::bigint,
        pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint,
        s.wal_status,
        s.safe_wal_size
    from (select) as one
    left join pg_replication_slots as s
        on s.database = current_database()
        and s.plugin = 'pgoutput'
        and (s.slot_name = %(slot)s or %(slot)s::text is null and s.active)
    order by s.confirmed_flush_lsn desc
    limit 1
"""
_DAYS: Final = """
    select (now() at time zone 'utc')::date,
        array(select day from realtime.partitions() where attached)
"""


@dataclass(frozen=True, slots=True)
class Reader:
    """How far the reader of the WAL is.

    Attributes:
        slot: the name of its slot.
        received_lsn: all before it has been read.
    """

    slot: str
    received_lsn: int


@dataclass(frozen=True, slots=True)
class Health:
    """How things stood.

    Attributes:
        problem: why the database could not be asked; None if it answered.
        counts: what it said.
    """

    problem: str | None
    counts: DatabaseCounts


class Watch:
    """Asks, and remembers for a second.

    Args:
        database_url: of the owner of `realtime.messages`.
        now: the clock, in seconds.
        reader: how far the reader is; None if there is none, or nobody knows.
    """

    def __init__(
        self, database_url: str, now: Callable[[], float], reader: Callable[[], Reader | None]
    ) -> None:
        self._database_url = database_url
        self._now = now
        self._reader = reader
        self._lag = LagClock()
        self._asked_at = float("-inf")
        self._last: asyncio.Task[Health] | None = None

    async def look(self) -> Health:
        """How things stand, or stood less than a second ago. Never raises."""
        if self._last is None or (
            self._last.done() and not 0 <= self._now() - self._asked_at < FRESH_SECONDS
        ):
            self._asked_at = self._now()
            self._last = asyncio.get_running_loop().create_task(self._ask())
        # One of those who wait may go away; the others still want to know.
        return await asyncio.shield(self._last)

    async def _ask(self) -> Health:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return Health(None, await self._counts())
        except TimeoutError:
            problem = f"no answer within {TIMEOUT_SECONDS:g} s"
        except (RealtimeDbError, psycopg.Error) as error:
            problem = first_line(error)
        return Health(problem, DatabaseCounts())

    async def _counts(self) -> DatabaseCounts:
        reader = self._reader()
        async with connect(self._database_url) as connection:
            await check_release(connection)
            slot = {"slot": None if reader is None else reader.slot}
            row = await (await connection.execute(_SLOT, slot)).fetchone()
            assert row is not None, "a left join from one row"
            current, confirmed, retained, wal_status, safe = row
            row = await (await connection.execute(_DAYS)).fetchone()
            assert row is not None, "no table, so one row"
            today, days = row
        received = confirmed if reader is None else max(reader.received_lsn, confirmed or 0)
        return DatabaseCounts(
            lag_bytes=None if received is None else max(0, current - received),
            lag_seconds=None
            if received is None
            else self._lag.behind(current, received, self._now()),
            retained_bytes=retained,
            wal_status=wal_status,
            safe_bytes=safe,
            partition_days=days_left(today, days),
        )


class LagClock:
    """Since when a reader is behind, as far as those know who look now and then."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float]] = []

    def behind(self, current: int, received: int, now: float) -> float:
        """How many seconds ago the oldest WAL was seen that has not been read yet.

        Args:
            current: where the WAL ends now.
            received: where the reader is.
            now: seconds.
        """
        self._seen = [seen for seen in self._seen if seen[0] > received]
        if current > received and (not self._seen or self._seen[-1][0] < current):
            self._seen.append((current, now))
        return max(0.0, now - self._seen[0][1]) if self._seen else 0.0


def days_left(today: date, days: Iterable[date]) -> int:
    """How many days have a partition, from today on, without a gap."""
    known = set(days)
    count = 0
    while today + timedelta(days=count) in known:
        count += 1
    return count
