"""Asks the policies again about those who are on private channels: `protocol.rechecks`' questions.

Above are the channels and the streams of events, each of which knows how to ask about itself; below
is the pool of the server, which joins need as well. So only some are asked about at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from realtime_db.cursors import Snapshot
from realtime_db.database import Connection, first_line
from realtime_db.protocol.rechecks import Rechecks, Revocation

WAIT_SECONDS: Final = 600.0
"""A transaction that cannot be seen by then is of a database that is no more."""

_PAUSES_SECONDS: Final = (0.001, 1.0)

_log = logging.getLogger(__name__)


class Rechecking:
    """Asks, over a pool of connections.

    Args:
        pool: to see by which transactions have ended.
        rechecks: whom to ask about.
        at_once: how many at most.
    """

    def __init__(
        self, pool: AsyncConnectionPool[Connection], rechecks: Rechecks, *, at_once: int
    ) -> None:
        self._pool = pool
        self._rechecks = rechecks
        self._at_once = at_once
        self._news = asyncio.Event()
        self._revoked = asyncio.Event()
        rechecks.wake = self._wake

    def _wake(self) -> None:
        self._news.set()
        self._revoked.set()

    async def run(self) -> None:
        """Asks, for ever."""
        jobs = [self._take_revocations(), *(self._ask() for _ in range(self._at_once))]
        # Unlike a TaskGroup, it hands on a second cancellation (see `server._end`); and with
        # exceptions among the results, it waits until all have ended.
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            one = self._rechecks.take()
            if one is None:
                self._news.clear()
                await self._news.wait()
                continue
            try:
                await one.check_again()
            except Exception:  # a defect of ours; the others need not suffer
                _log.exception("somebody could not be asked about")

    async def _take_revocations(self) -> None:
        """Waits until what a revocation's transaction did can be seen: then policies see it, too.

        A commit is in the WAL first, and then in the snapshots of queries.
        """
        waiting: list[tuple[int, Revocation, float]] = []
        loop = asyncio.get_running_loop()
        pause, longest = _PAUSES_SECONDS
        while True:
            late = loop.time() + WAIT_SECONDS
            new = [(number, what, late) for number, what in self._rechecks.take_revocations()]
            if new:
                waiting += new
                pause = _PAUSES_SECONDS[0]
            if not waiting:
                self._revoked.clear()
                await self._revoked.wait()
                continue
            ready = await self._ready(waiting)
            if ready:
                self._rechecks.seen(what for _, what, _ in ready)
                waiting = [one for one in waiting if one not in ready]
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)

    async def _ready(
        self, waiting: list[tuple[int, Revocation, float]]
    ) -> list[tuple[int, Revocation, float]]:
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute("select pg_catalog.pg_current_snapshot()::text")
                row = await cursor.fetchone()
        except (psycopg.Error, PoolTimeout) as error:
            _log.warning("to ask the policies again waits for the database: %s", first_line(error))
            return []
        except Exception:  # a defect of ours; what waits is tried again
            _log.exception("nobody can be asked about")
            return []
        assert row is not None, "a select without from has one row"
        seen, now = Snapshot.parse(row[0]), asyncio.get_running_loop().time()
        return [one for one in waiting if not one[0] or seen.shows(one[0]) or one[2] < now]
