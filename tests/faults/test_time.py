"""Days pass: partitions come and go while subscribers follow, and come back.

The clock of the database goes on as it does; what tells rows and maintenance the day is set by
hand, ahead of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import psycopg
import pytest

from realtime_db.cursors import Cursor
from realtime_db.retention import maintenance
from tests.faults.ledger import PUBLIC, TOPICS, Ledger
from tests.faults.proxy import Proxy
from tests.faults.served import SOURCES, Server
from tests.faults.subscribers import EventSource, WebSocket

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

FAKE_CLOCK = """
create table public.clock (ahead interval not null);
insert into public.clock values ('0');
create function public.fake_now() returns timestamp language sql volatile
as $$ select (clock_timestamp() at time zone 'utc') + c.ahead from public.clock as c $$;
alter table realtime.messages alter column inserted_at set default public.fake_now();
"""


class Clock:
    """What rows and maintenance take for now."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(FAKE_CLOCK)

    def close(self) -> None:
        self._connection.close()

    def now(self) -> datetime:
        (now,) = self._connection.execute("select public.fake_now()").fetchone()
        return now

    def forward(self, to: datetime) -> None:
        """Puts it forward, and does what a timer would have done by then."""
        self._connection.execute(
            "update public.clock set ahead = ahead + (%s - public.fake_now())", [to]
        )

    def maintain(self) -> maintenance.Report:
        """As the server does it every hour."""
        report = asyncio.run(maintenance.run_once(self._url, today=self.now().date()))
        assert report.ok, report.as_text()
        return report

    def execute(self, query: str, *parameters: object) -> None:
        self._connection.execute(query.encode(), parameters)


@pytest.fixture
def clock(database_url: str) -> Iterator[Clock]:
    """A clock that can be put forward."""
    opened = Clock(database_url)
    yield opened
    opened.close()


@pytest.fixture
def server(make_server: Callable[..., Server], clock: Clock) -> Server:
    """One that leaves maintenance to the test, and its day."""
    started = make_server("--no-maintain")
    started.start()
    started.leads()
    return started


@SOURCES
def test_messages_around_midnight_come_in_order_and_after_it(
    server: Server,
    ledger: Ledger,
    clock: Clock,
    database_url: str,
    make_proxy: Callable[[int], Proxy],
) -> None:
    network = make_proxy(server.port)
    ledger.follow(network.port)
    midnight = datetime.combine(clock.now().date() + DAY, datetime.min.time())
    clock.forward(midnight - timedelta(minutes=1))  # a busy machine may stand still for seconds
    writer = ledger.by_hand()
    with ledger.writing(), psycopg.connect(database_url) as connection:
        # One transaction on both sides of it, committed while nobody is there.
        sent = writer.send(connection, PUBLIC[0], 5)
        ledger.arriving(10)
        network.refuse()
        clock.forward(midnight + timedelta(milliseconds=1))
        sent += writer.send(connection, PUBLIC[0], 5)
        connection.commit()
        writer.committed.update(sent)
        network.heal()
        ledger.arriving(20)
    ledger.settle(at_least=40)
    with psycopg.connect(database_url) as connection:
        (days,) = connection.execute(
            "select count(distinct inserted_at::date) from realtime.messages "
            "where payload ->> 'writer' = %s",
            [writer.name],
        ).fetchone()
    assert days == 2, "the transaction is in one partition only"


def test_a_day_of_maintenance_every_hour_loses_nothing(
    server: Server,
    ledger: Ledger,
    clock: Clock,
    make_proxy: Callable[[int], Proxy],
) -> None:
    network = make_proxy(server.port)
    began = clock.now()
    old = [began.date() - days * DAY for days in range(1, 5)]
    clock.execute("update realtime.settings set retention_days = 1")
    for day in old:
        clock.execute("select realtime.create_partition(%s)", day)
        clock.execute(
            "insert into realtime.messages (topic, extension, event, payload, inserted_at)"
            " select %s, 'broadcast', 'e', '{}', %s::date + n * interval '1 second'"
            " from generate_series(1, 100) as n",
            PUBLIC[0].name,
            day,
        )
    ledger.follow(network.port)
    dropped: list[str] = []
    with ledger.writing(2):
        for hour in range(1, 25):
            clock.forward(began + hour * HOUR)
            if hour % 3 == 0:
                network.cut()
            dropped += clock.maintain().dropped
            ledger.arriving(3)
    ledger.settle()
    assert sorted(dropped) == sorted(f"messages_{day:%Y_%m_%d}" for day in old)
    assert clock.now().date() > began.date(), "no midnight came"


def test_who_was_away_for_longer_than_retention_is_told(
    server: Server, ledger: Ledger, make_proxy: Callable[[int], Proxy]
) -> None:
    network = make_proxy(server.port)
    event_source = EventSource("an EventSource", [network.port], PUBLIC)
    web_socket = WebSocket("a WebSocket", [network.port], TOPICS)
    ledger.add(event_source, web_socket)
    with ledger.writing(1):
        ledger.arriving(5)
    network.refuse()
    _wait_until_away(ledger)
    with ledger.writing(1):
        # As if it had been 30 days: no partition is so old.
        event_source.last_event_id = _aged(event_source.last_event_id)
        web_socket.cursors = {topic: _aged(text) for topic, text in web_socket.cursors.items()}
        network.heal()
        ledger.wait(
            lambda: event_source.gaps and len(web_socket.gaps) >= len(TOPICS),
            lambda: f"not told: {event_source.gaps}, for each topic {web_socket.gaps}",
        )
    for one in ledger.subscribers:
        one.gaps.clear()
    ledger.settle(at_least=9)  # what is still there comes


def _wait_until_away(ledger: Ledger) -> None:
    """Returns when each subscriber was refused: what it had in hand moves it no further then."""

    def attempts() -> list[int]:
        return [len(one.failures) + len(one.refused) for one in ledger.subscribers]

    before = attempts()
    # The first may be the end of the connection that it had.
    ledger.wait(
        lambda: all(now > had + 1 for now, had in zip(attempts(), before, strict=True)),
        lambda: f"not refused: {attempts()}, before {before}",
    )


def _aged(text: str) -> str:
    cursor = Cursor.parse(text)
    ago_us = 30 * 86_400_000_000
    horizon = cursor.horizon._replace(
        taken_us=cursor.horizon.taken_us - ago_us,
        since_us=max(0, cursor.horizon.since_us - ago_us),
    )
    return str(cursor._replace(horizon=horizon))
