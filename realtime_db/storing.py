"""Stores what clients want stored (PROTOCOL 7.5): `persist.ToStore` to `realtime.messages`.

Above are the channels and REST, which have checked the right to write; below is the pool of the
server, as the owner of the table. From there the messages come back as any other.

One statement at a time stores all that has come meanwhile. So the order of each sender is that of
the commits, and a channel that sends much does not wait for one commit a message.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from realtime_db.database import Connection, first_line
from realtime_db.protocol.persist import IS_RESTARTING, NotStored, Outgoing, ToStore

MAX_MESSAGES: Final = 500
MAX_BYTES: Final = 8_000_000

_STORE: Final = """
    insert into realtime.messages
        (id, topic, extension, event, payload, binary_payload, private, expires_at)
    select m.id, m.topic, 'broadcast', m.event, m.payload::jsonb, m.binary_payload, true,
        (clock_timestamp() at time zone 'utc') + m.ttl_seconds * interval '1 second'
    from unnest(
        %s::uuid[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::bigint[]
    ) as m (id, topic, event, payload, binary_payload, ttl_seconds)
"""

_UNAVAILABLE: Final = NotStored("Tenant database unavailable")

_log = logging.getLogger(__name__)


class Storing:
    """Stores, over a pool of connections.

    Args:
        pool: of the owner of `realtime.messages`, in autocommit.
        to_store: where the messages come from.
    """

    def __init__(self, pool: AsyncConnectionPool[Connection], to_store: ToStore) -> None:
        self._pool = pool
        self._to_store = to_store
        self._in_hand: dict[str, Outgoing] = {}
        self._news = asyncio.Event()
        to_store.wake = self._news.set

    async def run(self) -> None:
        """Stores what comes, until no more is taken and all that was has been answered."""
        while True:
            while messages := self._to_store.take(MAX_MESSAGES, MAX_BYTES):
                self._in_hand = {message.id: message for message in messages}
                await self._store(messages)
            if self._to_store.is_closed:
                return
            self._news.clear()
            await self._news.wait()

    def give_up(self) -> None:
        """Refuses all that has not been stored: there is no more time.

        What is in the hands of the database may be stored all the same, as after any answer that
        did not come.
        """
        self._answer(list(self._in_hand.values()), _UNAVAILABLE)
        while messages := self._to_store.take(MAX_MESSAGES, MAX_BYTES):
            self._in_hand = {message.id: message for message in messages}
            self._answer(messages, NotStored(IS_RESTARTING, 503))

    async def _store(self, messages: list[Outgoing]) -> None:
        failed = await self._insert(messages)
        if failed is not None and len(messages) > 1 and _is_of_the_message(failed):
            # One of them is to blame; the others are found by halves.
            half = len(messages) // 2
            await self._store(messages[:half])
            await self._store(messages[half:])
            return
        reason = None if failed is None else _reason(failed)
        if failed is not None and not _is_of_the_message(failed):
            _log.warning(
                "%d messages of clients were not stored: %s", len(messages), first_line(failed)
            )
        self._answer(messages, reason)

    def _answer(self, messages: list[Outgoing], reason: NotStored | None) -> None:
        for message in messages:
            if self._in_hand.pop(message.id, None) is None:
                continue  # we gave up before it was stored
            try:
                message.done(reason)
            except Exception:  # a defect of ours; the others need not suffer
                _log.exception("a message that was stored could not be answered")

    async def _insert(self, messages: list[Outgoing]) -> Exception | None:
        columns: tuple[list[Any], ...] = (
            [one.id for one in messages],
            [one.topic for one in messages],
            [one.event for one in messages],
            [None if one.binary else one.payload.decode() for one in messages],
            [one.payload if one.binary else None for one in messages],
            [one.ttl_seconds for one in messages],
        )
        try:
            async with self._pool.connection() as connection:
                await connection.execute(_STORE, columns)
        except (psycopg.Error, PoolTimeout, UnicodeEncodeError) as error:
            return error
        return None


def _is_of_the_message(error: Exception) -> bool:
    """Whether another message might have been stored."""
    if isinstance(error, errors.DataError | errors.ProgramLimitExceeded | UnicodeEncodeError):
        return True
    state = getattr(error, "sqlstate", None) or ""
    return state.startswith("RT") or state == "23514"


def _reason(error: Exception) -> NotStored:
    """For the sender: what is wrong with the message, and no details of the database."""
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.Error) and state.startswith("RT"):
        return NotStored(error.diag.message_primary or str(error))
    if state == "23514":
        return NotStored("Missing messages partition")
    if _is_of_the_message(error):
        return NotStored("the message holds what the database has no text for")
    if state in ("57014", "55P03", "40P01", "40001"):
        return NotStored("Query canceled")
    if isinstance(error, psycopg.OperationalError):  # a pool that waited in vain is one, too
        return _UNAVAILABLE
    return NotStored("Unable to store the message", 500)
