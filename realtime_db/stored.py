"""Reads stored messages: the latest of a topic (PROTOCOL 7.4), or all that came after a cursor.

Above: the joins and the streams of events, which send them to one client. Below: the pool of the
server, as the owner of `realtime.messages`; the user's right to read has been checked by then.

Both answer with the snapshot that they read in, for the WAL may bring the same later, and look
again while a transaction is missing that the WAL has brought already: a commit is in the WAL first,
and then in snapshots.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from realtime_db.auth.access import CheckFailed, IncreaseConnectionPool
from realtime_db.cursors import Cursor, Snapshot, join
from realtime_db.database import Connection, first_line
from realtime_db.errors import ConnectionFailed
from realtime_db.progress import Known, Progress
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Replay
from realtime_db.protocol.services import Polls, Services, Subscriber

PAGE_MESSAGES: Final = 500
PAGE_BYTES: Final = 262_144

WAIT_SECONDS: Final = 8.0
"""How long a resume waits for others to end; clients wait ten for an answer."""

UNKNOWN_US: Final = 86_400_000_000
"""How long a transaction may have been open, for all that is known if its horizon says nothing."""

# What both read: messages that can be sent.
_MESSAGES: Final = """
    extension = 'broadcast'
    and event is not null
    and (payload is not null or binary_payload is not null)
    and (expires_at is null or expires_at > clock_timestamp() at time zone 'utc')
"""
_LOOK: Final = """
    pg_catalog.pg_current_snapshot()::text,
    (extract(epoch from clock_timestamp()) * 1000000)::bigint
"""

# Of a payload that is too large to be delivered only the size is fetched. `offset 0` has its text
# made once, and not for each time that it is mentioned.
_MESSAGE: Final = """
    m.topic, m.id::text, m.event,
    case when octet_length(content.json) <= %(max_bytes)s then content.json end,
    case when octet_length(m.binary_payload) <= %(max_bytes)s then m.binary_payload end,
    coalesce(octet_length(m.binary_payload), octet_length(content.json)), m.transaction_id::text
"""
_CONTENT: Final = "lateral (select m.payload::text as json offset 0) as content"

# Walks the primary key of each partition backwards, and stops after `limit` rows. There is a row
# for the snapshot even if there is no message.
_LATEST: Final = f"""
    select snapshot.*, {_MESSAGE}
    from (select {_LOOK}) as snapshot (seen, taken)
    left join lateral (
        select * from realtime.messages
        where {_MESSAGES}
            and topic = %(topic)s
            and private
            and inserted_at >= to_timestamp(%(since)s) at time zone 'utc'
            and inserted_at < (now() at time zone 'utc') + interval '1 minute'
        order by inserted_at desc, position desc
        limit %(limit)s
    ) as m on true
    left join {_CONTENT} on true
    order by m.inserted_at, m.position
"""  # noqa: S608 - constants of ours

# The lock first, and then the snapshot: of a partition that is dropped in between, the messages
# would be gone and the partition still be shown.
_BEGIN: Final = """
    begin isolation level repeatable read, read only;
    lock table realtime.messages in access share mode;
    set local statement_timeout = 0
"""
_HEADER: Final = f"""
    select {_LOOK}, (select min(day) from realtime.partitions() where attached)
"""  # noqa: S608 - constants of ours

# What came after a cursor, but for what it says of the order.
_CANDIDATES: Final = f"""
    {_MESSAGES}
    and topic = any (%(topics)s)
    and private = %(private)s
    and inserted_at >= %(since)s
    and not pg_visible_in_snapshot(transaction_id, %(seen)s::text::pg_snapshot)
    and (
        %(until)s::text is null
        or pg_visible_in_snapshot(transaction_id, %(until)s::text::pg_snapshot)
    )
"""
_TRANSACTIONS: Final = f"""
    select distinct transaction_id::text from realtime.messages where {_CANDIDATES}
"""  # noqa: S608 - constants of ours

# Whole rows are sorted by what is small in them; payloads are read afterwards, one by one. An order
# that is not known is that of what was delivered long ago, or of what the WAL is about to bring.
_AFTER: Final = f"""
    select {_MESSAGE}, m.position, m.place, m.underway
    from (
        select
            stored.*,
            known.place,
            known.place is null and not pg_visible_in_snapshot(
                stored.transaction_id, %(before)s::text::pg_snapshot
            ) as underway
        from realtime.messages as stored
        left join unnest(%(ids)s::text::xid8[], %(orders)s::text::bigint[]) as known (id, place)
            on stored.transaction_id = known.id
        where {_CANDIDATES}
            and not coalesce(
                (known.place, transaction_id, position)
                <= (%(order)s, %(transaction_id)s::text::xid8, %(position)s),
                transaction_id = %(transaction_id)s::text::xid8 and position <= %(position)s
            )
        order by underway, coalesce(known.place, 0), transaction_id, position
        offset 0
    ) as m
    cross join {_CONTENT}
"""  # noqa: S608 - constants of ours

_LAST: Final = (1 << 63) - 1
_NOTHING: Final = Snapshot(3, 3)
_EPOCH: Final = datetime(1970, 1, 1)  # as the column has it: UTC, without saying so

_UNDERWAY_SECONDS: Final = (0.0, 0.001, 0.005, 0.02)

# Mostly it is microseconds; the sum is what a join may take.
_PAUSES_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0)


class ReplayFailed(CheckFailed):
    """The stored messages could not be read."""

    join = "UnableToReplayMessages: Realtime was unable to replay messages"


class Resumption:
    """What came after a cursor, up to a moment; made by `StoredMessages.resume`.

    Attributes:
        seen: what there was at that moment. The WAL may bring it later.
        cursor: says that all of it has been given.
        gap: messages up to then may be missing, a time as in ISO 8601; None if none are.
        is_empty: whether nothing came.
    """

    def __init__(
        self,
        seen: Snapshot,
        cursor: str,
        gap: str | None,
        first: list[Broadcast],
        more: AsyncIterator[list[Broadcast]],
    ) -> None:
        self.seen = seen
        self.cursor = cursor
        self.gap = gap
        self.is_empty = not first
        self._first = first
        self._more = more

    async def pages(self) -> AsyncIterator[list[Broadcast]]:
        """The messages in the order in which they were delivered, or would have been.

        Each has a cursor, if its order is known. A page has at most `PAGE_MESSAGES` of them, and
        `PAGE_BYTES` but for the last one. Nothing is read ahead, so take your time.

        Raises:
            ReplayFailed: they could not be read to the end.
        """
        page, self._first = self._first, []
        if page:
            yield page
        async for page in self._more:
            yield page


class StoredMessages:
    """Reads them, over a pool of connections.

    Resumes take half of the connections at most: the policies need some, too.

    Attributes:
        polls: what tells the order of what is stored; None if the WAL does.
    """

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool
        self.polls: Polls | None = None
        self._resumes = asyncio.Semaphore(max(1, pool.max_size // 2))

    async def latest(self, topic: str, replay: Replay, services: Services) -> Replayed:
        """The latest messages of a private topic, oldest first, and what was to be seen.

        Args:
            topic: the sub-topic.
            replay: since when, and how many at most.
            services: what has been handed on is waited for; what is too large is left out.

        Raises:
            ReplayFailed: they could not be read.
        """
        progress = services.progress
        wanted = {
            "topic": topic,
            "since": replay.since_ms / 1000,
            "limit": replay.limit,
            "max_bytes": services.settings.max_payload_bytes,
        }
        unseen = progress.unseen()
        for pause in _PAUSES_SECONDS:
            rows = await self._read(wanted)
            seen = Snapshot.parse(rows[0][0])
            unseen = [number for number in unseen if not seen.shows(number)]
            if not unseen:
                break
            await asyncio.sleep(pause)
        else:
            raise _never_seen(unseen)
        found = [_message(row[2:], services) for row in rows if row[2] is not None]
        messages = [message for message in found if message is not None]
        return Replayed(messages, seen, _cursor_after(seen, rows[0][1], progress))

    async def _read(self, wanted: dict[str, object]) -> list[tuple[Any, ...]]:
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(_LATEST, wanted)
                return await cursor.fetchall()
        except (psycopg.Error, PoolTimeout) as error:
            text = f"stored messages of {wanted['topic']} cannot be read: {first_line(error)}"
            raise ReplayFailed(text) from error

    @asynccontextmanager
    async def resume(
        self,
        topics: Collection[str],
        *,
        private: bool,
        cursor: Cursor,
        services: Services,
        subscriber: Subscriber,
    ) -> AsyncIterator[Resumption]:
        """Reads all that came after a cursor, in one snapshot, while the block lasts.

        Args:
            topics: the sub-topics.
            private: whether the private messages or the public ones.
            cursor: what the subscriber has been given.
            services: know what has been handed on, in which order, and what is too large.
            subscriber: has to keep what is published from his turn on, for some of it may be
                missing here.

        Raises:
            IncreaseConnectionPool: others took too long.
            ReplayFailed: they could not be read.
        """
        progress = services.progress
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._resumes.acquire()
        except TimeoutError:
            raise IncreaseConnectionPool(
                f"too many clients resume: one has waited for {WAIT_SECONDS:.0f} s",
                hint="It tries again by itself. A larger --pool-size serves more of them at once.",
            ) from None
        try:
            async with self._pool.connection() as connection:
                subscriber.hold()
                # All up to here will be seen. Of two that are handed on from now on, the second may
                # be seen and the first not yet, so no cursor may be beyond.
                given = progress.order
                polls = await self._followed(progress)
                until = None if polls is None else await polls.checkpoint()
                seen, taken_us, oldest_us = await self._begin(connection, progress.unseen())
                # What has no order yet comes with the poll that gives it one.
                seen = until or seen
                subscriber.skip(seen)
                since_us, gap_us, wanted = _wanted(cursor, seen, progress, oldest_us)
                wanted |= {"topics": list(topics), "private": private}
                wanted["since"] = _EPOCH + timedelta(microseconds=since_us)
                wanted["until"] = None if until is None else str(until)
                wanted["max_bytes"] = services.settings.max_payload_bytes
                if polls is not None:
                    ids = await (await connection.execute(_TRANSACTIONS, wanted)).fetchall()
                    known = await polls.known(connection, [int(row[0]) for row in ids], since_us)
                    wanted |= _as_arrays(known)
                    given = _LAST
                # Who gets a part of it goes on from there: the horizon is still the one he gave.
                mine = wanted["seen"] != str(_NOTHING)
                prefix = cursor.horizon.prefix(progress.source) if mine else ""
                rows = connection.cursor().stream(_AFTER, wanted)
                async with aclosing(cast("AsyncGenerator[tuple[Any, ...]]", rows)):
                    pages = _pages(rows, prefix, given, services)
                    async with asyncio.timeout(self._pool.timeout):
                        first: list[Broadcast] = await anext(pages, [])
                    gap = None if gap_us is None else iso(gap_us)
                    if gap is not None:
                        services.missed(topics, gap)
                    after = _cursor_after(seen, taken_us, progress)
                    yield Resumption(seen, after, gap, first, pages)
        except (psycopg.Error, PoolTimeout, TimeoutError, ConnectionFailed) as error:
            text = f"stored messages of {', '.join(topics)} cannot be read: {first_line(error)}"
            raise ReplayFailed(text) from error
        finally:
            self._resumes.release()

    async def _followed(self, progress: Progress) -> Polls | None:
        """Waits for a source of messages; returns what tells the order, if it is one that polls."""
        for pause in _PAUSES_SECONDS:
            if progress.horizon is not None and (progress.source == "w" or self.polls is not None):
                return self.polls
            await asyncio.sleep(pause)
        raise ReplayFailed("the database is not followed yet")

    async def _begin(
        self, connection: Connection, unseen: list[int]
    ) -> tuple[Snapshot, int, int | None]:
        """Begins a transaction that sees all that was handed on before.

        Returns:
            What it sees, when that was, and when the oldest day that is stored began.
        """
        for pause in _PAUSES_SECONDS:
            await connection.execute(_BEGIN)
            row = await (await connection.execute(_HEADER)).fetchone()
            assert row is not None, "a select without from has one row"
            seen = Snapshot.parse(row[0])
            unseen = [number for number in unseen if not seen.shows(number)]
            if not unseen:
                day = row[2]
                oldest = None if day is None else (day - _EPOCH.date()).days * 86_400_000_000
                return seen, row[1], oldest
            await connection.execute("rollback")
            await asyncio.sleep(pause)
        raise _never_seen(unseen)


def _wanted(
    cursor: Cursor, seen: Snapshot, progress: Progress, oldest_us: int | None
) -> tuple[int, int | None, dict[str, object]]:
    """Which rows came after a cursor.

    Returns:
        Since when they may have been inserted; up to when some may be missing, if so; and the
        parameters of the query that depend on the cursor.
    """
    horizon, last = cursor.horizon, (0, 0, 0)
    floor_us = horizon.since_us or max(0, horizon.taken_us - UNKNOWN_US)
    if horizon.cluster != progress.cluster or horizon.seen.xmax > seen.xmax:
        # Of another cluster, or of what this one was before it was restored: ids mean nothing.
        before = _NOTHING
        since_us = horizon.since_us or horizon.taken_us
        gap_us = None if horizon.since_us else horizon.taken_us
    else:
        before, since_us, gap_us = horizon.seen, horizon.since_us, None
        if cursor.source == progress.source:
            last = (cursor.order, cursor.transaction_id, cursor.position)
    if oldest_us is None:
        gap_us = max(horizon.taken_us, gap_us or 0)
    elif floor_us < oldest_us:
        gap_us = max(oldest_us, gap_us or 0)
    known = progress.known(before)
    return (
        since_us,
        gap_us,
        {
            "seen": str(before),
            **_as_arrays(known),
            "order": min(last[0], _LAST),
            "transaction_id": str(last[1]),
            "position": min(last[2], _LAST),
        },
    )


def _as_arrays(known: Known) -> dict[str, object]:
    return {
        "ids": f"{{{','.join(map(str, known.transaction_ids))}}}",
        "orders": f"{{{','.join(map(str, known.orders))}}}",
        "before": str(known.before or _NOTHING),
    }


async def _pages(
    rows: AsyncIterator[tuple[Any, ...]], prefix: str, given: int, services: Services
) -> AsyncIterator[list[Broadcast]]:
    """What `_AFTER` reads, a page at a time, with cursors up to the order `given`."""
    progress = services.progress
    page: list[Broadcast] = []
    underway: list[tuple[int, Broadcast]] = []
    size = 0
    try:
        async for *row, position, place, is_underway in rows:
            message = _message(tuple(row), services)
            if message is None:
                continue
            if prefix and place is not None and place <= given:
                cursor = join(prefix, place, message.transaction_id, position)
                message = message._replace(cursor=cursor)
            if is_underway:
                underway.append((position, message))
            else:
                page.append(message)
            size += len(message.payload)
            if size >= PAGE_BYTES or len(page) + len(underway) == PAGE_MESSAGES:
                yield page + await _in_order(underway, progress)
                page, underway, size = [], [], 0
    except psycopg.Error as error:
        raise ReplayFailed(f"stored messages cannot be read: {first_line(error)}") from error
    if page or underway:
        yield page + await _in_order(underway, progress)


async def _in_order(underway: list[tuple[int, Broadcast]], progress: Progress) -> list[Broadcast]:
    """Sorts what the WAL may be about to bring. If it is far behind, by the ids."""
    order_of = progress.order_of
    for pause in _UNDERWAY_SECONDS:
        if all(order_of(message.transaction_id) is not None for _, message in underway):
            break
        await asyncio.sleep(pause)

    def place(one: tuple[int, Broadcast]) -> tuple[int, int, int]:
        position, message = one
        order = order_of(message.transaction_id)
        return _LAST if order is None else order, message.transaction_id, position

    return [message for _, message in sorted(underway, key=place)]


def _message(row: tuple[Any, ...], services: Services) -> Broadcast | None:
    """What `_MESSAGE` reads; None if it is too large."""
    topic, row_id, event, payload, binary, size, transaction_id = row
    if not services.fits(row_id, size, topic):
        return None
    return Broadcast(
        f"realtime:{topic}",
        event,
        payload.encode() if binary is None else binary,
        id=row_id,
        binary=binary is not None,
        transaction_id=int(transaction_id),
    )


def _cursor_after(seen: Snapshot, taken_us: int, progress: Progress) -> str:
    """That of who has been given all that a snapshot shows."""
    if progress.horizon is None:
        return ""
    return str(Cursor(progress.source, progress.horizon_of(seen, taken_us)))


def _never_seen(unseen: Collection[int]) -> ReplayFailed:
    return ReplayFailed(
        f"transaction {min(unseen)} has committed and cannot be seen yet",
        hint="Is a synchronous standby down? Senders wait for it, too.",
    )


def iso(time_us: int) -> str:
    """A time in microseconds since 1970 UTC, as in ISO 8601, to the second and rounded up."""
    moment = datetime.fromtimestamp(-(-time_us // 1_000_000), UTC)
    return moment.isoformat().replace("+00:00", "Z")
