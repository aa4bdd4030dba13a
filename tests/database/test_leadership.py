"""The lock that says who reads a slot."""

from __future__ import annotations

import asyncio

from realtime_db.leadership import open_session


def test_the_lock_tells_who_has_it(database_url: str) -> None:
    async def compete() -> None:
        async with open_session(database_url) as one, open_session(database_url) as other:
            assert await other.holder("a") is None
            assert await one.try_lock("a")
            assert not await other.try_lock("a")
            assert await other.holder("a") == one.backend_pid != other.backend_pid
            assert await other.holder("b") is None

    asyncio.run(compete())
