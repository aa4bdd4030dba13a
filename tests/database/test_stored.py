"""Reading stored messages for a replay, beside transactions that commit meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from realtime_db import stored
from realtime_db.protocol.broadcast import Replayed
from realtime_db.protocol.join import Replay
from realtime_db.stored import ReplayFailed, StoredMessages

WISH = Replay(since_ms=1, limit=25)


class _Watched(StoredMessages):
    """Tells when it has read once."""

    after_first_read: Callable[[], object] | None = None

    async def _read(self, wanted: dict[str, object]) -> list[tuple[Any, ...]]:
        rows = await super()._read(wanted)
        if self.after_first_read is not None:
            self.after_first_read()
            self.after_first_read = None
        return rows


def latest(
    url: str, committed: list[int], after_first_read: Callable[[], object] | None = None
) -> Replayed:
    async def run() -> Replayed:
        pool = AsyncConnectionPool(url, min_size=1, kwargs={"autocommit": True}, open=False)
        async with pool:
            messages = _Watched(pool)  # type: ignore[arg-type]
            messages.after_first_read = after_first_read
            return await messages.latest("room", WISH, committed)

    return asyncio.run(run())


def send(connection: psycopg.Connection, event: str) -> int:
    connection.execute("select realtime.send('{}', %s, 'room')", [event])
    return int(connection.execute("select pg_current_xact_id()::text").fetchone()[0])


def test_the_snapshot_says_what_there_was_to_be_seen(database_url: str) -> None:
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as other:
        open_ = send(one, "open")
        done = send(other, "done")
        other.commit()
        found = latest(database_url, [])
        assert [message.event for message in found.messages] == ["done"]
        assert found.seen is not None
        assert (found.seen.shows(done), found.seen.shows(open_)) == (True, False)
        one.rollback()


def test_there_is_a_snapshot_even_if_there_is_no_message(database_url: str) -> None:
    found = latest(database_url, [])
    assert found.messages == []
    assert found.seen is not None


def test_a_commit_that_the_wal_brought_first_is_waited_for(database_url: str) -> None:
    with psycopg.connect(database_url) as one:
        number = send(one, "late")
        found = latest(database_url, [number], one.commit)
    assert [message.event for message in found.messages] == ["late"]


def test_a_commit_that_cannot_be_seen_is_not_waited_for_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_PAUSES_SECONDS", (0.0, 0.0))
    with psycopg.connect(database_url) as one:
        number = send(one, "never")
        with pytest.raises(ReplayFailed, match="cannot be seen yet"):
            latest(database_url, [number])
        one.rollback()
