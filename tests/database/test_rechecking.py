"""Asking the policies again: once a revocation's transaction can be seen, and a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
from psycopg_pool import AsyncConnectionPool

from realtime_db import server
from realtime_db.auth.tokens import Claims
from realtime_db.protocol.rechecks import Rechecks, Revocation
from realtime_db.rechecking import Rechecking

DEADLINE_SECONDS = 60.0
AT_ONCE = 3


class Watched(Rechecking):
    """Tells how often it looked."""

    looks: asyncio.Semaphore

    async def _ready(
        self, waiting: list[tuple[int, Revocation, float]]
    ) -> list[tuple[int, Revocation, float]]:
        ready = await super()._ready(waiting)
        self.looks.release()
        return ready


class Somebody:
    """Is asked about until the test says that there is an answer."""

    running = 0
    most = 0

    def __init__(self) -> None:
        self.claims: Claims | None = None
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    def forget_rights(self) -> None:
        pass

    async def check_again(self) -> None:
        Somebody.running += 1
        Somebody.most = max(Somebody.most, Somebody.running)
        self.asked.set()
        try:
            await self.answer.wait()
        finally:
            Somebody.running -= 1


def with_rechecks(url: str, test: Callable[[Rechecks, Watched], Awaitable[None]]) -> None:
    async def run() -> None:
        pool = AsyncConnectionPool(url, min_size=1, kwargs={"autocommit": True}, open=False)
        async with asyncio.timeout(DEADLINE_SECONDS), pool:
            rechecks = Rechecks()
            rechecking = Watched(pool, rechecks, at_once=AT_ONCE)  # type: ignore[arg-type]
            rechecking.looks = asyncio.Semaphore(0)
            task = asyncio.create_task(rechecking.run())
            await test(rechecks, rechecking)
            task.cancel()

    asyncio.run(run())


def test_nobody_is_asked_about_before_what_was_revoked_can_be_seen(database_url: str) -> None:
    async def test(rechecks: Rechecks, rechecking: Watched) -> None:
        one = Somebody()
        rechecks.add("room", one)
        with psycopg.connect(database_url) as revoking:
            row = revoking.execute("select pg_current_xact_id()::text").fetchone()
            assert row is not None
            rechecks.revoke(b"{}", int(row[0]))
            for _ in range(3):
                await rechecking.looks.acquire()
            assert not one.asked.is_set()
            assert rechecks.generation == 0
            # Others need not wait for it.
            other = Somebody()
            rechecks.add("hall", other)
            rechecks.revoke(b'{"topic": "hall"}', 0)
            await other.asked.wait()
            assert not one.asked.is_set()
            revoking.commit()
        await one.asked.wait()
        assert rechecks.generation == 2

    with_rechecks(database_url, test)


def test_only_some_are_asked_about_at_once(database_url: str) -> None:
    async def test(rechecks: Rechecks, rechecking: Watched) -> None:
        people = [Somebody() for _ in range(20)]
        for one in people:
            rechecks.add("room", one)
        rechecks.ask_all()
        for one in people:
            await one.asked.wait()
            one.answer.set()
        assert Somebody.most == AT_ONCE

    with_rechecks(database_url, test)


def test_one_with_a_defect_does_not_stop_the_others(database_url: str) -> None:
    class Broken(Somebody):
        async def check_again(self) -> None:
            raise ZeroDivisionError

    async def test(rechecks: Rechecks, rechecking: Watched) -> None:
        for _ in range(AT_ONCE):
            rechecks.ask(Broken())
        one = Somebody()
        rechecks.ask(one)
        await one.asked.wait()

    with_rechecks(database_url, test)


def test_it_ends_though_a_cancellation_comes_together_with_a_connection(database_url: str) -> None:
    """Which Python 3.11 forgets, somewhere in these turns of the loop."""

    async def run() -> None:
        pool = AsyncConnectionPool(
            database_url, min_size=1, max_size=1, kwargs={"autocommit": True}, open=False
        )
        async with asyncio.timeout(DEADLINE_SECONDS), pool:
            for turns in range(10):
                rechecks = Rechecks()
                rechecking = Rechecking(pool, rechecks, at_once=1)  # type: ignore[arg-type]
                connection = await pool.getconn()
                task = asyncio.create_task(rechecking.run())
                rechecks.revoke(b"{}", 1)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert pool.get_stats()["requests_waiting"]
                await pool.putconn(connection)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server._end([task])
                rest = [one for one in asyncio.all_tasks() if "Rechecking" in repr(one.get_coro())]
                assert not rest, f"it goes on after {turns} turns"

    asyncio.run(run())
