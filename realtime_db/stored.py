"""Reads stored messages for a replay (PROTOCOL 7.4).

Above: the joins, which want the latest of a topic. Below: the pool of the server, as the owner of
`realtime.messages`; the user's right to read has been checked by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from realtime_db.auth.access import CheckFailed
from realtime_db.cursors import Snapshot
from realtime_db.database import Connection
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Replay

# Walks the primary key of each partition backwards, and stops after `limit` rows. There is a row
# for the snapshot even if there is no message.
_LATEST: Final = """
    select snapshot.taken::text, latest.id::text, latest.event, latest.payload::text,
        latest.binary_payload, latest.transaction_id::text
    from (select pg_catalog.pg_current_snapshot() as taken) as snapshot
    left join lateral (
        select * from realtime.messages
        where topic = %(topic)s
            and extension = 'broadcast'
            and private
            and event is not null
            and (payload is not null or binary_payload is not null)
            and inserted_at >= to_timestamp(%(since)s) at time zone 'utc'
            and inserted_at < (now() at time zone 'utc') + interval '1 minute'
        order by inserted_at desc, position desc
        limit %(limit)s
    ) as latest on true
    order by latest.inserted_at, latest.position
"""


# Mostly it is microseconds; the sum is what a join may take.
_PAUSES_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0)


class ReplayFailed(CheckFailed):
    """The stored messages could not be read."""

    join = "UnableToReplayMessages: Realtime was unable to replay messages"


class StoredMessages:
    """Reads them, over a pool of connections."""

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    async def latest(self, topic: str, replay: Replay, committed: Collection[int] = ()) -> Replayed:
        """The latest messages of a private topic, oldest first, and what was to be seen.

        Args:
            topic: the sub-topic.
            replay: since when, and how many at most.
            committed: transactions whose messages the subscriber has missed; looks again until
                they can be seen, for a commit is in the WAL before it is in snapshots.

        Raises:
            ReplayFailed: they could not be read.
        """
        wanted = {"topic": topic, "since": replay.since_ms / 1000, "limit": replay.limit}
        unseen = list(committed)
        for pause in _PAUSES_SECONDS:
            rows = await self._read(wanted)
            seen = Snapshot.parse(rows[0][0])
            unseen = [number for number in unseen if not seen.shows(number)]
            if not unseen:
                break
            await asyncio.sleep(pause)
        else:
            raise ReplayFailed(
                f"transaction {unseen[0]} has committed and cannot be seen yet",
                hint="Is a synchronous standby down? Senders wait for it, too.",
            )
        messages = [
            Broadcast(
                f"realtime:{topic}",
                event,
                payload.encode() if binary is None else binary,
                id=row_id,
                binary=binary is not None,
                transaction_id=int(transaction_id),
            )
            for _, row_id, event, payload, binary, transaction_id in rows
            if row_id is not None
        ]
        return Replayed(messages, seen)

    async def _read(self, wanted: dict[str, object]) -> list[tuple[Any, ...]]:
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(_LATEST, wanted)
                return await cursor.fetchall()
        except (psycopg.Error, PoolTimeout) as error:
            text = f"stored messages of {wanted['topic']} cannot be read: {error}"
            raise ReplayFailed(text) from error
