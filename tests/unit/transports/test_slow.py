"""What becomes of a client that does not take what it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from realtime_db.auth.tokens import Claims
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.frames import V2
from realtime_db.transports import slow
from realtime_db.transports.slow import DRAIN_SECONDS, DRAINED_BYTES
from realtime_db.transports.websocket import WebSocketProtocol
from tests.unit import parts


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


class Behind(asyncio.Transport):
    """A transport whose client takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.writes.append(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


def test_a_websocket_whose_client_has_ended_its_half_gets_nothing_more() -> None:
    """What is too much for it would be left out, and what comes later not."""

    async def run() -> tuple[int, int]:
        served = parts.services()
        keys: Any = SimpleNamespace(verify_known=lambda *_: Claims("anon", 1000, None, "{}"))
        served.keys = keys
        pipe = Behind()
        socket = WebSocketProtocol(served, V2, "key", {}, transport=pipe, clients=set())
        socket.connection.receive(b'["1","1","realtime:room","phx_join",{}]', binary=False)
        assert served.hub.topics == 1
        written = len(pipe.writes)
        socket.pause_writing()
        socket.eof_received()
        served.hub.publish(parts.KEY, Broadcast("realtime:room", "left out", b"{}"))
        socket.resume_writing()
        served.hub.publish(parts.KEY, Broadcast("realtime:room", "later", b"{}"))
        return len(pipe.writes) - written, served.hub.topics

    assert asyncio.run(run()) == (0, 0)
