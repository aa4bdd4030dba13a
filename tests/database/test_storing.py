"""Storing what clients want stored: many at once, in their order, and why not."""

from __future__ import annotations

import asyncio
import uuid

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from realtime_db.protocol.persist import NotStored, Outgoing, ToStore
from realtime_db.storing import Storing

DEADLINE_SECONDS = 60.0
NO_TEXT = NotStored("the message holds what the database has no text for")


def store(
    url: str,
    payloads: list[bytes],
    *,
    topic: str = "room",
    connect_seconds: float = DEADLINE_SECONDS,
) -> list[NotStored | None]:
    """What became of each."""

    async def run() -> list[NotStored | None]:
        results: dict[int, NotStored | None] = {}
        pool = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=2,
            timeout=connect_seconds,
            kwargs={"autocommit": True},
            open=False,
        )
        async with asyncio.timeout(DEADLINE_SECONDS), pool:
            to_store, done = ToStore(), asyncio.Event()
            storing = asyncio.create_task(Storing(pool, to_store).run())  # type: ignore[arg-type]
            await asyncio.sleep(0)

            def take(number: int, failed: NotStored | None) -> None:
                results[number] = failed
                if len(results) == len(payloads):
                    done.set()

            for number, payload in enumerate(payloads):
                to_store.put(
                    Outgoing(
                        str(uuid.uuid4()),
                        topic,
                        f"e{number}",
                        payload,
                        False,
                        None,
                        lambda failed, number=number: take(number, failed),
                    )
                )
            await done.wait()
            storing.cancel()
        return [results[number] for number in range(len(payloads))]

    return asyncio.run(run())


def test_many_are_stored_with_few_commits_in_their_order(
    database_url: str, connection: psycopg.Connection
) -> None:
    assert store(database_url, [b"%d" % number for number in range(1200)]) == [None] * 1200
    rows = connection.execute(
        "select payload from realtime.messages order by transaction_id, position"
    ).fetchall()
    assert [payload for (payload,) in rows] == list(range(1200))
    commits = connection.execute(
        "select count(distinct transaction_id) from realtime.messages"
    ).fetchone()
    assert commits == (3,)


def test_those_that_cannot_be_stored_keep_no_other_back(
    database_url: str, connection: psycopg.Connection
) -> None:
    bad = {3, 77, 78, 199}
    payloads = [rb'"\u0000"' if n in bad else b"%d" % n for n in range(200)]
    results = store(database_url, payloads)
    assert results == [NO_TEXT if n in bad else None for n in range(200)]
    rows = connection.execute(
        "select payload from realtime.messages order by transaction_id, position"
    ).fetchall()
    assert [payload for (payload,) in rows] == [n for n in range(200) if n not in bad]


def test_without_a_partition_nothing_is_stored(
    database_url: str, connection: psycopg.Connection
) -> None:
    connection.execute("select realtime.drop_partition((now() at time zone 'utc')::date)")
    assert store(database_url, [b"1", b"2"]) == [NotStored("Missing messages partition")] * 2


def test_a_database_that_is_away_is_said_to_be(owner_url) -> None:
    url = psycopg.conninfo.make_conninfo(owner_url("nowhere"), port="1")
    stored = store(url, [b"1", b"2"], connect_seconds=1.0)
    assert stored == [NotStored("Tenant database unavailable")] * 2


def test_a_table_that_is_locked_cancels_the_query(
    database_url: str, connection: psycopg.Connection
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("lock table realtime.messages in access exclusive mode")
        connection.execute(
            sql.SQL(
                "alter role current_user in database {} set statement_timeout = '200ms'"
            ).format(sql.Identifier(connection.info.dbname))
        )
        assert store(database_url, [b"1"]) == [NotStored("Query canceled")]


@pytest.mark.parametrize("topic", ["a\x00b", "t" * 247])
def test_a_topic_that_does_not_fit_is_refused(database_url: str, topic: str) -> None:
    (failed,) = store(database_url, [b"1"], topic=topic)
    assert failed is not None
    assert failed.status == 422
