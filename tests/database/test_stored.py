"""Reading stored messages for a replay or a resume, beside transactions that commit meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from realtime_db import stored
from realtime_db.auth.access import IncreaseConnectionPool
from realtime_db.cursors import Cursor, Snapshot
from realtime_db.progress import Progress
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Replay
from realtime_db.protocol.services import Services
from realtime_db.stored import PAGE_BYTES, PAGE_MESSAGES, ReplayFailed, StoredMessages
from tests.unit import parts

CLUSTER = 7
DAY_US = 86_400_000_000
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


def pool_of(url: str, size: int = 4) -> Any:
    return AsyncConnectionPool(
        url, min_size=1, max_size=size, timeout=20, kwargs={"autocommit": True}, open=False
    )


def serving(progress: Progress, **settings: Any) -> Services:
    """Parts of a server that has got so far."""
    services = parts.services(**settings)
    services.progress = progress
    return services


def latest(
    url: str, committed: list[int], after_first_read: Callable[[], object] | None = None
) -> Replayed:
    async def run() -> Replayed:
        progress = Progress()
        for number in committed:
            progress.handed(number, 1, 1)
        async with pool_of(url) as pool:
            messages = _Watched(pool)
            messages.after_first_read = after_first_read
            return await messages.latest("room", WISH, serving(progress))

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


# After a cursor


class Subscriber:
    """Notes what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def hold(self) -> None:
        self.told.append("hold")

    def skip(self, seen: Snapshot) -> None:
        self.told.append(seen)


class Resumed(NamedTuple):
    """What a resume gave."""

    pages: list[list[Broadcast]]
    seen: Snapshot
    cursor: str
    gap: str | None
    is_empty: bool

    @property
    def events(self) -> list[str]:
        return [message.event for page in self.pages for message in page]


def look(url: str, progress: Progress, at: int = 1) -> None:
    """The server asks the database, and comes past the place where it was."""
    with psycopg.connect(url) as one:
        seen, taken_us = one.execute(
            "select pg_current_snapshot()::text,"
            " (extract(epoch from clock_timestamp()) * 1000000)::bigint"
        ).fetchone()
    progress.look(Snapshot.parse(seen), at=at, taken_us=taken_us)
    progress.passed(at)


@pytest.fixture
def progress(database_url: str) -> Progress:
    one = Progress()
    one.begin(CLUSTER)
    look(database_url, one)
    return one


def here(progress: Progress, **changes: Any) -> Cursor:
    """The cursor of now, with another horizon."""
    assert progress.horizon is not None
    return Cursor(progress.source, progress.horizon._replace(**changes))


def resume(
    url: str,
    progress: Progress,
    cursor: Cursor,
    *,
    topics: list[str] | None = None,
    private: bool = True,
    subscriber: Subscriber | None = None,
    services: Services | None = None,
    between: Callable[[], object] = lambda: None,
) -> Resumed:
    """Resumes, with something that happens `between` the first page and the others."""

    async def run() -> Resumed:
        async with (
            pool_of(url) as pool,
            StoredMessages(pool).resume(
                topics or ["room"],
                private=private,
                cursor=cursor,
                services=services or serving(progress),
                subscriber=subscriber or Subscriber(),
            ) as found,
        ):
            between()
            pages = [page async for page in found.pages()]
            return Resumed(pages, found.seen, found.cursor, found.gap, found.is_empty)

    return asyncio.run(run())


def send_many(connection: psycopg.Connection, count: int, size: int = 1) -> None:
    connection.execute(
        "select realtime.send(jsonb_build_object('x', repeat('x', %s)), n::text, 'room')"
        " from generate_series(1, %s) as n",
        [size, count],
    )


def test_a_resume_gives_what_the_horizon_does_not_show(
    database_url: str, progress: Progress
) -> None:
    with psycopg.connect(database_url) as open_, psycopg.connect(database_url) as other:
        send(open_, "open")
        send(other, "seen")
        other.commit()
        look(database_url, progress)
        cursor = here(progress)
        send(other, "new")
        other.commit()
        open_.commit()
        send(open_, "never")
        found = resume(database_url, progress, cursor)
        open_.rollback()
    assert sorted(found.events) == ["new", "open"]
    assert found.gap is None
    assert resume(database_url, progress, Cursor.parse(found.cursor)).is_empty


def test_a_resume_is_of_one_moment_and_the_next_goes_on_there(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress)
    send_many(connection, PAGE_MESSAGES + 1)
    subscriber = Subscriber()
    found = resume(
        database_url,
        progress,
        cursor,
        subscriber=subscriber,
        between=lambda: send(connection, "meanwhile"),
    )
    assert found.events == [str(n) for n in range(1, PAGE_MESSAGES + 2)]
    assert subscriber.told == ["hold", found.seen]
    assert resume(database_url, progress, Cursor.parse(found.cursor)).events == ["meanwhile"]


def test_pages_are_bounded_in_messages_and_in_bytes(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress)
    send_many(connection, 2 * PAGE_MESSAGES + 5)
    send_many(connection, 9, PAGE_BYTES // 3)
    found = resume(database_url, progress, cursor)
    assert [len(page) for page in found.pages] == [PAGE_MESSAGES, PAGE_MESSAGES, 8, 3, 3]


def test_what_was_handed_on_comes_in_that_order_and_not_twice(
    database_url: str, progress: Progress
) -> None:
    cursor = here(progress)
    with ExitStack() as stack:
        opened = [stack.enter_context(psycopg.connect(database_url)) for _ in range(4)]
        numbers = [send(one, str(n)) for n, one in enumerate(opened)]
        for n in (2, 0, 3, 1):
            opened[n].commit()
    for order, n in enumerate((2, 0, 3), start=100):  # the last one is still on its way
        progress.handed(numbers[n], order, 0)
    assert resume(database_url, progress, cursor).events == ["2", "0", "3", "1"]
    last = cursor._replace(order=101, transaction_id=numbers[0], position=1 << 40)
    assert resume(database_url, progress, last).events == ["3", "1"]
    # Orders of another source mean nothing.
    assert resume(database_url, progress, last._replace(source="p")).events == list("2031")


def test_a_server_that_begins_knows_what_a_cursor_says_itself(
    database_url: str, progress: Progress
) -> None:
    cursor = here(progress)
    with psycopg.connect(database_url) as one:
        numbers = []
        for n in range(4):
            numbers.append(send(one, str(n)))
            send(one, f"{n} more")
            one.commit()
        (position,) = one.execute(
            "select position from realtime.messages where event = '1'"
        ).fetchone()
    other = Progress()
    other.begin(CLUSTER)
    look(database_url, other)
    other.handed(numbers[3], 103, 0)
    # 3 came out of the WAL. Of 0 and 2 it cannot tell whether they came before 1.
    second = cursor._replace(order=101, transaction_id=numbers[1], position=position)
    found = resume(database_url, other, second).events
    assert found == ["0", "0 more", "1 more", "2", "2 more", "3", "3 more"]
    assert len(resume(database_url, other, cursor._replace(order=101)).events) == 8


def test_within_a_transaction_a_cursor_may_be_between_two_messages(
    database_url: str, progress: Progress
) -> None:
    cursor = here(progress)
    with psycopg.connect(database_url) as one:
        number, *_ = [send(one, str(n)) for n in range(5)]
        one.commit()
        (position,) = one.execute(
            "select position from realtime.messages where event = '2'"
        ).fetchone()
    progress.handed(number, 100, position)
    last = cursor._replace(order=100, transaction_id=number, position=position)
    assert resume(database_url, progress, last).events == ["3", "4"]


def test_several_topics_are_resumed_in_one_order(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress)
    for number, topic in enumerate(("room", "news", "room", "other", "news")):
        connection.execute("select realtime.send('{}', %s, %s)", [str(number), topic])
    found = resume(database_url, progress, cursor, topics=["room", "news", "empty"])
    assert found.events == ["0", "1", "2", "4"]
    assert found.pages[0][1].topic == "realtime:news"


def test_a_resume_waits_for_a_commit_that_the_wal_brought_first(
    database_url: str, progress: Progress
) -> None:
    cursor = here(progress)
    with psycopg.connect(database_url) as one:
        number = send(one, "late")
        progress.handed(number, 100, 1)

        class Committing(Subscriber):
            def hold(self) -> None:
                threading.Timer(0.05, one.commit).start()

        found = resume(database_url, progress, cursor, subscriber=Committing())
    assert found.events == ["late"]
    assert found.seen.shows(number)


def test_a_resume_does_not_wait_for_ever(
    database_url: str, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_PAUSES_SECONDS", (0.0, 0.0))
    with pytest.raises(ReplayFailed, match="not followed yet"):
        resume(database_url, Progress(), here(progress))
    with psycopg.connect(database_url) as one:
        progress.handed(send(one, "never"), 100, 1)
        with pytest.raises(ReplayFailed, match="cannot be seen yet"):
            resume(database_url, progress, here(progress))
        one.rollback()


def test_what_the_wal_is_about_to_bring_comes_in_its_order(
    database_url: str, progress: Progress
) -> None:
    cursor = here(progress)
    with ExitStack() as stack:
        opened = [stack.enter_context(psycopg.connect(database_url)) for _ in range(3)]
        numbers = [send(one, str(n)) for n, one in enumerate(opened)]
        for one in opened:
            one.commit()

    def hand_on() -> None:
        for order, n in enumerate((2, 0, 1), start=100):
            progress.handed(numbers[n], order, 1)

    class AtOnce(Subscriber):
        def skip(self, seen: Snapshot) -> None:
            asyncio.get_running_loop().call_later(0.005, hand_on)

    assert resume(database_url, progress, cursor, subscriber=AtOnce()).events == ["2", "0", "1"]


def test_no_cursor_of_a_message_is_beyond_what_was_handed_on_before(
    database_url: str, progress: Progress
) -> None:
    """One that is handed on meanwhile may follow one that cannot be seen yet, and is kept."""
    cursor = here(progress)
    with psycopg.connect(database_url) as first, psycopg.connect(database_url) as other:
        hidden = send(first, "hidden")
        before = send(other, "before")
        other.commit()
        progress.handed(before, 100, 1)
        later = send(other, "later")
        other.commit()

        class HandingOn(Subscriber):
            def skip(self, seen: Snapshot) -> None:
                progress.handed(hidden, 101, 1)
                progress.handed(later, 102, 1)

        found = resume(database_url, progress, cursor, subscriber=HandingOn())
        first.rollback()
    (page,) = found.pages
    assert [message.event for message in page] == ["before", "later"]
    assert [bool(message.cursor) for message in page] == [True, False]
    assert Cursor.parse(page[0].cursor)[1:4] == (cursor.horizon, 100, before)


# Payloads that are too large


def send_sizes(connection: psycopg.Connection) -> None:
    """Two that are at a limit of 100 bytes, and two that are over it, of either kind."""
    for size in (100, 101):
        for name, kind, payload in (
            ("payload", "jsonb", f'"{"ü" * (size // 2 - 1)}{"x" * (size % 2)}"'),
            ("binary_payload", "bytea", b"\0" * size),
        ):
            connection.execute(
                f"insert into realtime.messages (topic, extension, event, {name}, private)"
                f" values ('room', 'broadcast', %s, %s::{kind}, true)",
                [f"{kind} of {size}", payload],
            )


def test_what_is_too_large_to_be_delivered_is_not_resumed_to(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress)
    services = serving(progress, max_payload_bytes=100)
    send_sizes(connection)
    found = resume(database_url, progress, cursor, services=services)
    assert found.events == ["jsonb of 100", "bytea of 100"]
    assert services.limits.struck["max_payload_bytes"] == 2
    # Who got all that he was owed has nothing to ask for.
    connection.execute("delete from realtime.messages where event like '%of 100'")
    found = resume(database_url, progress, cursor, services=services)
    assert found.is_empty
    assert resume(database_url, progress, Cursor.parse(found.cursor), services=services).is_empty
    assert services.limits.struck["max_payload_bytes"] == 4


def test_what_is_too_large_to_be_delivered_is_not_replayed(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    services = serving(progress, max_payload_bytes=100)
    send_sizes(connection)

    async def run() -> Replayed:
        async with pool_of(database_url) as pool:
            return await StoredMessages(pool).latest("room", WISH, services)

    found = asyncio.run(run())
    assert [message.event for message in found.messages] == ["jsonb of 100", "bytea of 100"]
    assert services.limits.struck["max_payload_bytes"] == 2


def test_of_a_payload_that_is_too_large_only_the_size_is_fetched(
    database_url: str,
    connection: psycopg.Connection,
    progress: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[tuple[object, object, int]] = []

    def fits(row: tuple[Any, ...], services: Services) -> None:
        sizes.append(row[3:6])

    monkeypatch.setattr(stored, "_message", fits)
    cursor = here(progress)
    send_sizes(connection)
    resume(database_url, progress, cursor, services=serving(progress, max_payload_bytes=99))
    assert sizes == [(None, None, 100), (None, None, 100), (None, None, 101), (None, None, 101)]


# Gaps


def test_a_partition_that_was_dropped_since_is_a_gap(
    database_url: str,
    connection: psycopg.Connection,
    progress: Progress,
    caplog: pytest.LogCaptureFixture,
) -> None:
    send(connection, "today")
    assert progress.horizon is not None
    days = "select min(day), max(day) from realtime.partitions() where attached"
    oldest, _ = connection.execute(days).fetchone()
    since_us = int((oldest - date(1970, 1, 1)).total_seconds() * 1_000_000)
    cursor = here(progress, since_us=since_us, seen=Snapshot(3, 3))
    assert resume(database_url, progress, cursor).gap is None

    connection.execute("select realtime.drop_partition(%s)", [oldest])

    services = serving(progress)
    with caplog.at_level("INFO"):
        found = resume(database_url, progress, cursor, topics=["room", "news"], services=services)
    assert found.gap == f"{oldest + timedelta(days=1)}T00:00:00Z"
    assert f"whoever resumed room, news was told that messages before {found.gap} " in caplog.text
    assert found.events == ["today"]
    assert (services.resume_gaps, services.gaps) == (1, 0)


def test_without_any_partition_all_may_be_missing(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    for (day,) in connection.execute("select day from realtime.partitions()").fetchall():
        connection.execute("select realtime.drop_partition(%s)", [day])
    found = resume(database_url, progress, here(progress))
    assert found.gap is not None
    assert found.is_empty


@pytest.mark.parametrize(("days", "is_gap"), [(0, False), (30, True)])
def test_a_horizon_that_does_not_know_since_when_is_taken_for_a_day_older(
    database_url: str, progress: Progress, days: int, is_gap: bool
) -> None:
    assert progress.horizon is not None
    taken_us = progress.horizon.taken_us - days * DAY_US
    found = resume(database_url, progress, here(progress, since_us=0, taken_us=taken_us))
    assert (found.gap is not None) is is_gap


def test_a_cursor_of_another_cluster_that_does_not_know_since_when_is_a_gap(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress, cluster=1, since_us=0)
    send(connection, "new")
    found = resume(database_url, progress, cursor)
    assert found.gap == stored.iso(cursor.horizon.taken_us)
    assert found.events == ["new"]


# Many at once


def test_resumes_leave_connections_for_others_and_wait_for_each_other(
    database_url: str, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with pool_of(database_url, size=4) as pool:
            messages = StoredMessages(pool)

            def one() -> Any:
                return messages.resume(
                    ["room"],
                    private=True,
                    cursor=here(progress),
                    services=serving(progress),
                    subscriber=Subscriber(),
                )

            async with one(), one():
                monkeypatch.setattr(stored, "WAIT_SECONDS", 0.05)
                with pytest.raises(IncreaseConnectionPool):
                    async with one():
                        pass
                monkeypatch.setattr(stored, "WAIT_SECONDS", 20)
                waiting = asyncio.create_task(one().__aenter__())
                assert (await messages.latest("room", WISH, serving(progress))).messages == []
            await waiting

    asyncio.run(run())


def test_a_resume_that_is_given_up_gives_its_connection_back(
    database_url: str, connection: psycopg.Connection, progress: Progress
) -> None:
    cursor = here(progress)
    send_many(connection, 50, 1_000_000)

    async def run() -> None:
        async with pool_of(database_url, size=1) as pool:
            messages = StoredMessages(pool)
            for _ in range(3):
                async with messages.resume(
                    ["room"],
                    private=True,
                    cursor=cursor,
                    services=serving(progress),
                    subscriber=Subscriber(),
                ) as found:
                    async for _ in found.pages():
                        break
            assert await messages.latest("room", WISH, serving(progress))

    asyncio.run(run())
