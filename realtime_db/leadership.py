"""Which of several servers reads a slot: the one that holds a lock in the database.

Above is `following`. Below: a connection of its own, which is never silent for long. The database
ends a session that says nothing for `IDLE_SECONDS`, and with it the lock; so that of a leader that
was cut off, or stands still, is free by then. A leader that gets no answer for `ANSWER_SECONDS`
gives up before that, and leaves its connections as they are: their other ends may be out of reach.

What the session asks, to be heard of, is of use as well: which transactions have ended, and how the
slot stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from realtime_db.cursors import Snapshot
from realtime_db.database import Connection, connect, conninfo, cut, first_line
from realtime_db.errors import ConnectionFailed
from realtime_db.release import check_release
from realtime_db.wal.slots import default_name

IDLE_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.75
ANSWER_SECONDS: Final = 2.0  # with the pause before it less than IDLE_SECONDS
TRY_SECONDS: Final = 0.5
CONNECT_SECONDS: Final = 3

# Our own name in the key keeps it apart from locks of others.
_LOCK: Final = "select pg_try_advisory_lock(hashtextextended('realtime-db leads ' || %s, 0))"

# An advisory lock with one key has the upper half of it as classid and the lower as objid, and 1
# as objsubid (manual, pg_locks).
_HOLDER: Final = """
    select (
        select l.pid
        from pg_locks as l
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
            and l.database = (select oid from pg_database where datname = current_database())
            and l.classid::bigint << 32 | l.objid::bigint
                = hashtextextended('realtime-db leads ' || %s, 0)
    )
"""

# The place is read after the snapshot: what the snapshot shows comes before it. Where a record
# would begin on a new page, none ends: the source says that it is at the page.
_LOOK: Final = """
    select pg_current_snapshot()::text,
        wal.at - case when mod(wal.at, 8192) <= 40 then mod(wal.at, 8192) else 0 end,
        (extract(epoch from clock_timestamp()) * 1000000)::bigint,
        s.active_pid, s.wal_status, (pg_current_wal_lsn() - s.restart_lsn)::bigint
    from (select pg_current_wal_insert_lsn() - '0/0'::pg_lsn as at) as wal
    left join pg_replication_slots as s on s.slot_name = %s
"""


class Look(NamedTuple):
    """What the database said.

    Attributes:
        seen: which transactions had ended.
        at: where its WAL ended after that.
        taken_us: when, in microseconds since 1970 UTC, by its clock.
        reader_pid: of the walsender that reads the slot; None if nobody does.
        wal_status: of the slot; None if there is none.
        retained_bytes: of WAL that is kept for the slot.
    """

    seen: Snapshot
    at: int
    taken_us: int
    reader_pid: int | None = None
    wal_status: str | None = None
    retained_bytes: int | None = None


class Session:
    """A session with a database that neither side believes in for long without a word.

    Made by `open_session`. Everything raises ConnectionFailed if it has ended.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def check_release(self) -> None:
        """See `release.check_release`."""
        with self._in_time():
            await check_release(self._connection)

    async def try_lock(self, name: str) -> bool:
        """Gets the lock of the reader of a slot, unless another session has it."""
        (locked,) = await self._ask(_LOCK, name)
        return bool(locked)

    async def holder(self, name: str) -> int | None:
        """The process id of the session that has the lock; None if nobody has."""
        (pid,) = await self._ask(_HOLDER, name)
        return None if pid is None else int(pid)

    @property
    def backend_pid(self) -> int:
        """The process id of this session at the database."""
        return self._connection.info.backend_pid

    async def slot_name(self) -> str:
        """The name of the database's slot, unless another was given."""
        with self._in_time():
            return await default_name(self._connection)

    async def look(self, slot: str | None) -> Look:
        """Asks how things stand.

        Args:
            slot: the name of the slot; None if there is none yet.
        """
        seen, at, taken_us, *of_slot = await self._ask(_LOOK, slot)
        return Look(Snapshot.parse(seen), int(at), taken_us, *of_slot)

    async def watch(self, slot: Callable[[], str | None], tell: Callable[[Look], object]) -> None:
        """Looks again and again, until the session ends.

        Args:
            slot: gives the name of the slot.
            tell: is told.
        """
        while True:
            tell(await self.look(slot()))
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, query: LiteralString, *parameters: Any) -> tuple[Any, ...]:
        with self._in_time():
            row = await (await self._connection.execute(query, parameters)).fetchone()
        assert row is not None, "each of these has a row"
        return row

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Cuts the connection unless the answer comes in time."""
        timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, cut, self._connection)
        try:
            yield
        except psycopg.OperationalError as error:
            raise ConnectionFailed(
                f"the database said nothing for {ANSWER_SECONDS:g} s, or ended the session: "
                f"{first_line(error)}"
            ) from error
        finally:
            timer.cancel()


@asynccontextmanager
async def open_session(database_url: str) -> AsyncIterator[Session]:
    """Opens a session that ends when its other side is out of reach.

    Raises:
        ConnectionFailed, UnsupportedVersion: see `database.connect`.
    """
    async with connect(conninfo(database_url, connect_timeout=str(CONNECT_SECONDS))) as connection:
        session = Session(connection)
        await session._ask(
            "select set_config('idle_session_timeout', %s, false),"
            " set_config('statement_timeout', '0', false)",
            str(round(IDLE_SECONDS * 1000)),
        )
        try:
            yield session
        finally:
            with suppress(psycopg.Error):
                await connection.close()
