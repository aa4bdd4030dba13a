"""The corpora of the fuzz targets, and some thousand inputs that are nearly the same.

What `make fuzz` finds new ways with, it adds to `corpus/`. Whatever comes, nothing raises, nothing
hangs, nothing is left behind, and what is sent is well formed; each target says what that means.
"""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest

from realtime_db.transports.http import HttpProtocol, Response
from realtime_db.transports.rfc6455 import Receiver
from realtime_db.wheel import Wheel
from tests.fuzz.mutate import mutants
from tests.fuzz.targets import TARGETS
from tests.fuzz.words import WORDS

CORPUS = Path(__file__).parent / "corpus"
DEADLINE_SECONDS = 240
MUTANTS = {
    "client": 8_000,
    "connection": 2_000,
    "session": 3_000,
    "websocket": 8_000,
    "rest": 8_000,
}
"""How many, of the targets that take longer; of the others `MANY`."""
MANY = 20_000

AGAIN_BYTES = 200_000
"""So much is sent of an input that is repeated, or whose end is, to see whether it is kept."""


class Hangs(Exception):
    """An input takes far too long, or all of them do."""


@contextmanager
def a_deadline() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(DEADLINE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def inputs(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def run(target: str, data: bytes) -> None:
    try:
        TARGETS[target](data)
    except Exception as error:
        raise AssertionError(f"{target} fails with {data!r}") from error


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_comes_does_harm(target: str) -> None:
    corpus = inputs(target)
    assert len(corpus) > 10
    count = MUTANTS.get(target, MANY)

    with a_deadline():
        for data in (b"", *corpus, *mutants(corpus, WORDS[target], count, target)):
            run(target, data)


# What is sent without an end is not kept without an end


class Nowhere:
    """A transport that keeps nothing."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def http() -> Callable[[bytes], object]:
    """Takes what a client sends, who reads its answers."""
    application = SimpleNamespace(
        answer_at_once=lambda request: Response(200, b"ok"), refused=lambda *_: None
    )
    protocol = HttpProtocol(
        application,
        wheel=Wheel(0),
        now=lambda: 0.0,
        max_body_bytes=4_000,
        connections=set(),
    )
    protocol.connection_made(Nowhere())
    return protocol.data_received


def websocket() -> Callable[[bytes], object]:
    return Receiver(max_message_bytes=4_000).receive


@pytest.mark.parametrize(
    ("target", "client", "most"), [("connection", http, 150_000), ("websocket", websocket, 30_000)]
)
def test_what_is_sent_again_and_again_is_not_kept(
    target: str, client: Callable[[], Callable[[bytes], object]], most: int
) -> None:
    tracemalloc.start()
    try:
        some = inputs(target)
        for data in (b"\x00\x00GET /", *some[:: len(some) // 20]):
            for sent in (data[2:] * (AGAIN_BYTES // len(data)), data[2:] + data[-1:] * AGAIN_BYTES):
                take = client()
                before, _ = tracemalloc.get_traced_memory()
                for at in range(0, len(sent), 2_000):
                    take(sent[at : at + 2_000])
                kept = tracemalloc.get_traced_memory()[0] - before
                assert kept < most, f"{kept} bytes of {sent[:2_000]!r} are kept"
    finally:
        tracemalloc.stop()
