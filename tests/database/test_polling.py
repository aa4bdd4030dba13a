"""Following the table by asking: nothing missed, nothing twice, one order that never changes."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from realtime_db.cursors import Snapshot
from realtime_db.database import connect
from realtime_db.polling import Poller, open_poller
from realtime_db.progress import Progress
from realtime_db.wal.pgoutput import Message

TOPICS = ["room:1", "room:2"]
DEADLINE_SECONDS = 60.0


def runs(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


@asynccontextmanager
async def polling(database_url: str, topics: list[str] = TOPICS) -> AsyncIterator[Poller]:
    progress = Progress("p")
    async with open_poller(
        database_url, progress=progress, topics=lambda: topics, interval_seconds=0.005
    ) as poller:
        progress.begin(poller.cluster)
        await poller.start()
        yield poller


async def take(poller: Poller, count: int) -> list[Message]:
    messages: list[Message] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for batch in poller:
            messages += batch.messages
            assert batch.end_lsn < poller.received_lsn
            if len(messages) >= count:
                return messages
    raise AssertionError("a poller does not end")


def send(connection: psycopg.Connection, text: str, topic: str = "room:1") -> None:
    connection.execute("select realtime.send(to_jsonb(%s::text), 'e', %s)", (text, topic))


def texts(messages: list[Message]) -> list[str]:
    return [(message.payload or b"").decode().strip('"') for message in messages]


@runs
async def test_what_commits_is_found_once_and_in_the_order_of_its_rows(database_url) -> None:
    async with polling(database_url) as poller:
        with psycopg.connect(database_url) as writer:
            for number in range(5):
                send(writer, str(number), TOPICS[number % 2])
        assert texts(await take(poller, 5)) == list("01234")
        with psycopg.connect(database_url) as writer:
            send(writer, "last")
        assert texts(await take(poller, 1)) == ["last"]


@runs
async def test_what_rolled_back_or_was_there_before_is_not_found(database_url) -> None:
    with psycopg.connect(database_url) as writer:
        send(writer, "before")
    async with polling(database_url) as poller:
        with psycopg.connect(database_url) as writer:
            send(writer, "rolled back")
            writer.rollback()
            send(writer, "after")
        assert texts(await take(poller, 1)) == ["after"]


@runs
async def test_a_transaction_that_was_open_for_long_is_found_when_it_commits(database_url) -> None:
    with psycopg.connect(database_url) as early, psycopg.connect(database_url) as late:
        send(early, "from before the first poll")
        async with polling(database_url) as poller:
            send(late, "long")
            for number in range(20):
                with psycopg.connect(database_url) as short:
                    send(short, str(number))
                assert texts(await take(poller, 1)) == [str(number)]
            early.commit()
            assert texts(await take(poller, 1)) == ["from before the first poll"]
            late.commit()
            assert texts(await take(poller, 1)) == ["long"]


@runs
async def test_a_poller_that_stands_still_does_not_hold_up_the_next(database_url) -> None:
    async with polling(database_url) as still:
        with pytest.raises(psycopg.Error, match="idle-in-transaction"):
            async with still._connection.transaction():
                await still._record(Snapshot(3, 3))
                async with asyncio.timeout(DEADLINE_SECONDS), polling(database_url) as following:
                    with psycopg.connect(database_url) as writer:
                        send(writer, "comes")
                    assert texts(await take(following, 1)) == ["comes"]


@runs
async def test_what_did_not_arrive_of_a_poll_that_was_noted_comes_with_its_number(
    database_url,
) -> None:
    progress = Progress("p")
    found = []
    for text in ("lost", "after"):
        async with open_poller(
            database_url, progress=progress, topics=lambda: TOPICS, interval_seconds=0.005
        ) as poller:
            progress.begin(poller.cluster)
            await poller.start()
            if not found:
                progress.passed(poller.received_lsn)
            with psycopg.connect(database_url) as writer:
                send(writer, text)
            found.append(await take(poller, 1))
            # Here its connection ends, and nobody has been told.
    ((lost,), again) = found
    assert texts(again) == ["lost", "after"]
    assert again[0] == lost
    assert again[1].commit_lsn > lost.commit_lsn


@runs
async def test_topics_that_nobody_follows_are_left_alone(database_url) -> None:
    async with polling(database_url, ["room:1"]) as poller:
        with psycopg.connect(database_url) as writer:
            send(writer, "unheard", "room:2")
            send(writer, "heard")
        assert texts(await take(poller, 1)) == ["heard"]


@runs
async def test_an_idle_database_is_not_written_to(database_url, connection) -> None:
    async with polling(database_url) as poller:
        with psycopg.connect(database_url) as writer:
            send(writer, "one")
        await take(poller, 1)
        count = "select count(*) from realtime.polls"
        before = connection.execute(count).fetchone()
        for _ in range(20):
            assert (await poller.poll()).messages == []
        assert connection.execute(count).fetchone() == before


@pytest.mark.parametrize("seed", range(5))
@runs
async def test_the_order_that_the_polls_tell_is_the_one_in_which_it_came(
    database_url, connection, seed
) -> None:
    chance = random.Random(seed)
    writers = [psycopg.connect(database_url) for _ in range(4)]
    came: list[Message] = []
    sent = 0
    try:
        async with polling(database_url) as poller:
            for _ in range(60):
                writer = chance.choice(writers)
                for _ in range(chance.randrange(3)):
                    send(writer, str(sent), chance.choice(TOPICS))
                    sent += 1
                if chance.random() < 0.5:
                    writer.commit()
                if chance.random() < 0.5:
                    await asyncio.wait_for(poller.checkpoint(), DEADLINE_SECONDS)
                if chance.random() < 0.5:
                    came += (await poller.poll()).messages
            for writer in writers:
                writer.commit()
            while len(came) < sent:
                came += await take(poller, 1)
            async with connect(database_url) as reader:
                ids = {message.transaction_id for message in came}
                told = await poller.known(reader, ids, 0)
    finally:
        for writer in writers:
            writer.close()
    assert sorted(map(int, texts(came))) == list(range(sent))

    orders = dict(zip(told.transaction_ids, told.orders, strict=True))
    assert [orders[message.transaction_id] for message in came] == [
        message.commit_lsn for message in came
    ]
    by_order = sorted(came, key=lambda m: (orders[m.transaction_id], m.transaction_id, m.position))
    assert by_order == came
