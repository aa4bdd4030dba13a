"""Each message reaches the hub once, whatever the connections do that bring it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from realtime_db.delivery import Delivery
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import V2, Framing
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
