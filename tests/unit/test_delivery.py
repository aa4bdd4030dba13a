"""Each message reaches the hub once, whatever the connections do that bring it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from realtime_db.cursors import Snapshot
from realtime_db.delivery import Delivery
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import V2, Framing
from realtime_db.recovery import Owed
from realtime_db.transports.sse import EVENTS
from realtime_db.wal.pgoutput import Message
from tests.unit.parts import KEY, message, services


def test_nothing_counts_as_written_before_it_is_for_every_subscriber() -> None:
    async def hand_on() -> int:
        served = services(asyncio.get_running_loop().call_soon)
        wire: Framing = V2
        written = 0

        def write(data: bytes) -> None:
            nonlocal written
            written += 1

        class Wire:
            def encode(self, broadcast: Broadcast) -> bytes | None:
                frame = broadcast.encode(wire)
                return None if frame is None else frame.data

        spoken = Wire()
        for _ in range(10_000):
            served.hub.subscribe(KEY, spoken, write)
        delivery = Delivery(served)
        delivery.streamed([message(1, 1)])
        await delivery.written()
        return written

    assert asyncio.run(hand_on()) == 10_000


class _Nothing:
    """A slot was made anew, and the table has nothing of what the old one had not brought."""

    owed = Owed(None, 0, 0)

    async def pages(self, order: int) -> AsyncIterator[list[Message]]:
        for page in ():
            yield page


def test_subscribers_are_told_of_a_gap_before_a_cursor_says_more() -> None:
    async def hand_on() -> int:
        served = services(asyncio.get_running_loop().call_soon)
        told = 0

        def write(data: bytes) -> None:
            nonlocal told
            told += 1

        for _ in range(10_000):
            served.hub.subscribe(KEY, EVENTS, write)
        delivery = Delivery(served)
        delivery.tell_missing("2026-08-01T00:00:00Z")
        missed: Any = _Nothing()
        await delivery.recovered(missed, 5)
        return told

    assert asyncio.run(hand_on()) == 10_000


def test_who_resumed_before_a_failover_gets_what_has_the_ids_of_what_he_has() -> None:
    served = services()
    delivery = Delivery(served)
    got: list[bytes] = []
    served.hub.subscribe(KEY, EVENTS, got.append, seen=Snapshot(10, 10))
    delivery.streamed([message(5, 1)])
    assert got == []
    delivery.forget()  # the database is another one
    delivery.streamed([message(6, 1)])
    assert len(got) == 1


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.integers(1, 4)), max_size=6),
)
def test_what_the_wal_brings_again_is_handed_on_once(
    sizes: list[int], connections: list[tuple[int, int, int]]
) -> None:
    """Each connection begins with some whole transaction, and ends at any message."""
    served = services()
    delivery = Delivery(served)
    got: list[str] = []
    served.hub.tap(KEY, lambda broadcast: got.append(broadcast.id))
    transactions = [[message(n, p) for p in range(1, size + 1)] for n, size in enumerate(sizes, 1)]
    acknowledged = 0
    for again, count, batch_size in [*connections, (len(sizes), 1000, 3)]:
        delivery.begin()
        first = max(0, acknowledged - again)
        stream = [one for transaction in transactions[first:] for one in transaction][:count]
        for at in range(0, len(stream), batch_size):
            delivery.streamed(stream[at : at + batch_size])
        # No connection begins after what has not been handed on in whole.
        acknowledged = sum(
            sum(one.startswith(f"{number}-") for one in got) == size
            for number, size in enumerate(sizes, 1)
        )

    assert got == [one.id for transaction in transactions for one in transaction]


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=5),
)
def test_what_a_poll_finds_again_is_handed_on_once(
    polls: list[list[int]], connections: list[tuple[int, int]]
) -> None:
    """A poll finds whole transactions, and one after it may find the same and more."""
    served = services()
    delivery = Delivery(served)
    got: list[str] = []
    served.hub.tap(KEY, lambda broadcast: got.append(broadcast.id))
    found = [
        [
            message(10 * number + n, position)._replace(commit_lsn=2 * number)
            for n, size in enumerate(sizes)
            for position in range(1, size + 1)
        ]
        for number, sizes in enumerate(polls, 1)
    ]
    done = 0
    for again, count in [*connections, (len(polls), len(polls))]:
        first = max(0, done - again)
        done = max(done, first + count)
        delivery.polled([one for poll in found[first : first + count] for one in poll])

    assert got == [one.id for poll in found for one in poll]
