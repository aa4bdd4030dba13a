"""What the life of the source of messages promises, whatever the connections do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.cursors import Snapshot
from realtime_db.errors import SlotError
from realtime_db.following import Following
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import V2, Framing
from realtime_db.protocol.services import Services
from realtime_db.settings import Settings
from realtime_db.wal.pgoutput import Message
from realtime_db.wal.stream import Batch
from realtime_db.wheel import Wheel

KEY = "room", False
NOBODY: Any = None
NOTHING = Snapshot(1, 1)


def following(
    call_soon: Callable[[Callable[[], None]], object] = lambda call: call(), **settings: Any
) -> tuple[Following, Services]:
    given = Settings(database_url="", **settings)
    stored: Any = SimpleNamespace(polls=None)
    services = Services(
        settings=given,
        hub=Hub(call_soon),
        keys=NOBODY,
        policies=NOBODY,
        stored=stored,
        wheel=Wheel(0.0),
        now=lambda: 0.0,
        log=logging.getLogger(),
    )
    return Following(given, services, lambda: None), services


def message(commit: int, position: int) -> Message:
    return Message(
        "room", "e", b"1", False, f"{commit}-{position}", "", None, commit, position, 10 * commit
    )


def batch(*messages: Message) -> Batch:
    return Batch(list(messages), 0, [])


def test_a_batch_is_acknowledged_only_when_every_subscriber_has_been_written_to() -> None:
    async def hand_on() -> int:
        loop = asyncio.get_running_loop()
        subject, services = following(loop.call_soon)
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
            services.hub.subscribe(KEY, spoken, write)
        subject._hand_on(batch(message(1, 1)))
        await subject._written()
        return written

    assert asyncio.run(hand_on()) == 10_000


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.integers(1, 4)), max_size=6),
)
def test_whatever_comes_again_is_handed_on_once(
    sizes: list[int], connections: list[tuple[int, int, int]]
) -> None:
    """Each connection begins with some whole transaction, and ends at any message."""
    subject, services = following()
    got: list[str] = []
    services.hub.tap(KEY, lambda broadcast: got.append(broadcast.id))
    transactions = [[message(n, p) for p in range(1, size + 1)] for n, size in enumerate(sizes, 1)]
    acknowledged = 0
    for again, count, batch_size in [*connections, (len(sizes), 1000, 3)]:
        subject._stop()
        first = max(0, acknowledged - again)
        stream = [one for transaction in transactions[first:] for one in transaction][:count]
        for at in range(0, len(stream), batch_size):
            subject._hand_on(batch(*stream[at : at + batch_size]))
        # No connection begins after what has not been handed on in whole.
        acknowledged = sum(
            sum(one.startswith(f"{number}-") for one in got) == size
            for number, size in enumerate(sizes, 1)
        )

    assert got == [one.id for transaction in transactions for one in transaction]


def test_orders_of_another_cluster_are_forgotten_and_what_is_owed_goes_by_time() -> None:
    subject, services = following()
    services.progress.begin(7)
    subject._identify(7, "w")
    subject._hand_on(batch(message(5, 1)))
    assert services.progress.known(NOTHING).transaction_ids == [5]

    subject._identify(8, "w")

    assert services.progress.cluster == 8
    assert services.progress.known(NOTHING).transaction_ids == []
    assert subject._owed().seen is None
    # The same commit is another one there.
    got: list[str] = []
    services.hub.tap(KEY, lambda broadcast: got.append(broadcast.id))
    subject._hand_on(batch(message(1, 1)))
    assert got == ["1-1"]


def test_a_slot_of_a_name_that_is_not_ours_is_refused_before_anything_begins() -> None:
    with pytest.raises(SlotError, match="begins with realtime_db_"):
        following(slot="mine")
