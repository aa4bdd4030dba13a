"""What becomes of a client that does not take what it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from realtime_db.transports import slow
from realtime_db.transports.slow import DRAIN_SECONDS, DRAINED_BYTES


class Pipe:
    """A transport whose client takes so much at each look."""

    def __init__(self, waiting: int, takes: int) -> None:
        self.waiting = waiting
        self.takes = takes
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        self.waiting = max(0, self.waiting - self.takes)
        return self.waiting

    def is_closing(self) -> bool:
        return self.aborted

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True


def drain(pipe: Pipe, seconds_a_look: float) -> tuple[bool, Counter[str]]:
    struck: Counter[str] = Counter()
    clock = 0.0

    def now() -> float:
        nonlocal clock
        clock += seconds_a_look
        return clock

    def over(limit: str, *_: object) -> None:
        struck[limit] += 1

    services: Any = SimpleNamespace(now=now, limits=SimpleNamespace(over=over))
    transport: Any = pipe
    return asyncio.run(slow.drained(transport, services)), struck


def test_a_client_that_takes_what_is_written_is_waited_for() -> None:
    pipe = Pipe(waiting=10 * DRAINED_BYTES, takes=2 * DRAINED_BYTES)
    assert drain(pipe, DRAIN_SECONDS / 10) == (True, Counter())
    assert pipe.waiting <= DRAINED_BYTES


def test_a_client_that_does_not_is_thrown_out_in_the_end() -> None:
    pipe = Pipe(waiting=10 * DRAINED_BYTES, takes=1)
    assert drain(pipe, DRAIN_SECONDS / 10) == (False, {"max_write_buffer_bytes": 1})
    assert pipe.aborted


def test_a_client_that_went_away_is_not_waited_for() -> None:
    pipe = Pipe(waiting=10 * DRAINED_BYTES, takes=0)
    pipe.aborted = True
    assert drain(pipe, 0.0) == (False, Counter())
