"""What the fuzz targets put around the parsers: a server without a database, sockets without a net.

Tokens and topics decide what the keys and the policies say, so that bytes alone lead everywhere:
a topic with `deny` in it is not allowed, `down` cannot be asked about, `boom` is a defect of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from realtime_db.auth.access import Access, CheckFailed, IncreaseConnectionPool, WriteAccess
from realtime_db.auth.tokens import BadSignature, Claims, MalformedToken, NoSigner
from realtime_db.cursors import Cursor, Snapshot
from realtime_db.hub import Hub
from realtime_db.logs import TextLines
from realtime_db.progress import Progress
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Replay
from realtime_db.protocol.limits import Rate
from realtime_db.protocol.persist import NotStored
from realtime_db.protocol.rechecks import Checked, Revocation
from realtime_db.protocol.services import Extension, Services, Subscriber
from realtime_db.settings import Settings
from realtime_db.stored import ReplayFailed
from realtime_db.wheel import Wheel

NOW = 1_800_000_000.0

LIMITS: dict[str, Any] = {
    "database_url": "",
    "max_payload_bytes": 300,
    "max_frame_bytes": 2_000,
    "max_body_bytes": 4_000,
    "max_channels_per_connection": 3,
    "max_joins_per_second": 1.0,
    "max_messages_per_second": 1.0,
    "max_write_buffer_bytes": 2_000,
    "max_bytes_per_second": 100.0,
    "max_deliveries_per_second": 5.0,
    "recheck_seconds": 50.0,
}


class Boom(Exception):
    """A defect that a target asked for."""


SEEN = Snapshot(5, 9, frozenset([6]))


class Resumption:
    """What came after a cursor: two pages."""

    def __init__(self, topics: Collection[str]) -> None:
        self.seen = SEEN
        self.cursor = "after"
        self.gap = "2027-01-01T00:00:00Z" if any("gap" in topic for topic in topics) else None
        self._topics = () if any("empty" in topic for topic in topics) else topics
        self.is_empty = not self._topics

    async def pages(self) -> AsyncIterator[list[Broadcast]]:
        for number in (7, 8):
            await asyncio.sleep(0)
            for topic in self._topics:
                if "late" in topic:
                    raise ReplayFailed("late")
                yield stored(f"realtime:{topic}", number)


def stored(topic: str, number: int) -> list[Broadcast]:
    """One message of each kind that the database has."""
    return [
        Broadcast(topic, "e", b'{"n":1}', id=f"{number}a", transaction_id=number),
        Broadcast(topic, "e" * 300, b'"text"', id=f"{number}b", transaction_id=number),
        Broadcast(topic, "b", b"\x00\xff\n", id=f"{number}c", binary=True, transaction_id=number),
        Broadcast(topic, "b" * 300, b"", id=f"{number}d", binary=True, transaction_id=number),
    ]


class World:
    """A server whose keys, policies and stored messages are made up."""

    def __init__(self, **settings: Any) -> None:
        self.now = NOW
        self.calls: list[Any] = []
        self.services = Services(
            settings=Settings(**{**LIMITS, **settings}),
            hub=Hub(self.calls.append),
            keys=self,
            policies=self,
            stored=self,
            wheel=Wheel(self.now),
            now=lambda: self.now,
            log=logging.getLogger("realtime_db"),
        )
        self._new_keys = False

    def begin(self) -> None:
        """All limits have room again."""
        self._new_keys = False
        self.services.joins = Rate(self.services.settings.max_joins_per_second)
        self.services.restarting = False
        self.services.replicating = False
        self.services.progress = Progress()
        self.pass_time(100)

    def follow(self) -> None:
        """The WAL is followed, and a first horizon is known."""
        self.services.replicating = True
        progress = self.services.progress
        progress.begin(7)
        progress.look(SEEN, at=10, taken_us=int(self.now) * 1_000_000)
        progress.passed(10)
        progress.settled(10)

    def store(self) -> None:
        """The database stores what clients want stored, and brings it back."""
        services = self.services
        for message in services.to_store.take(100, 100_000):
            failed = NotStored("lost") if "lost" in message.topic else None
            message.done(failed)
            if failed is None:
                besides = services.own.came(message.id)
                services.hub.publish(
                    (message.topic, True),
                    Broadcast(
                        f"realtime:{message.topic}",
                        message.event,
                        message.payload,
                        id=message.id,
                        binary=message.binary,
                        transaction_id=11,
                        cursor=services.progress.cursor(12, 11, 1),
                    ),
                    besides=besides,
                )

    def revoked(self) -> Iterator[Checked]:
        """Whom to ask about again, after rights were taken from everybody."""
        self.services.rechecks.seen([Revocation()])
        while (one := self.services.rechecks.take()) is not None:
            yield one

    def flush(self) -> None:
        """Writes what was published."""
        while self.calls:
            self.calls.pop(0)()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.services.wheel.advance(self.now)

    def check_empty(self) -> None:
        """Nobody is connected, so nothing may be left."""
        services = self.services
        assert services.hub.topics == 0, "a topic is left"
        assert services.presence_hub.topics == 0, "a topic of presence is left"
        assert len(services.presences) == 0, "a presence is left"
        assert not services.to_store, "a message waits to be stored"
        assert not services.own, "a message is still somebody's"
        assert not list(self.revoked()), "somebody is still to be asked about"

    # Keys

    def verify_known(self, token: str, now: float) -> Claims:
        if token == "key":
            return Claims(role="anon", exp=int(self.now) + 10_000, sub=None, json="{}")
        if token == "short":
            return Claims(role="anon", exp=int(self.now) + 20, sub="s", json="{}")
        if token == "new":
            if self._new_keys:
                return Claims(role="anon", exp=int(self.now) + 10_000, sub=None, json="{}")
            raise NoSigner(unknown_kid="new")
        if token == "bad":
            raise BadSignature(unknown_kid="bad")
        raise MalformedToken

    async def verify(self, token: str, now: float) -> Claims:
        await asyncio.sleep(0)
        self._new_keys = True
        return self.verify_known(token, now)

    # Policies

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        await asyncio.sleep(0)
        self._raise_for(topic)
        if "deny" in topic:
            return Access(False, False, "no")
        return Access("mute" not in topic, "blind" not in topic)

    async def write_access(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None = None,
        extension: Extension = "broadcast",
    ) -> WriteAccess:
        await asyncio.sleep(0)
        self._raise_for(topic)
        return WriteAccess("quiet" not in topic, "no", failed="failed" in topic)

    @staticmethod
    def _raise_for(topic: str) -> None:
        if "boom" in topic:
            raise Boom
        if "full" in topic:
            raise IncreaseConnectionPool("full")
        if "down" in topic:
            raise CheckFailed("down")

    # Stored messages

    async def latest(self, topic: str, replay: Replay, services: Services) -> Replayed:
        assert -62_135_596_800_000 <= replay.since_ms < 253_402_300_800_000
        assert replay.limit >= 1
        await asyncio.sleep(0)
        if "lost" in topic:
            raise ReplayFailed("lost")
        return Replayed(stored(f"realtime:{topic}", 7), SEEN, services.progress.here)

    @asynccontextmanager
    async def resume(
        self,
        topics: Collection[str],
        *,
        private: bool,
        cursor: Cursor,
        services: Services,
        subscriber: Subscriber,
    ) -> AsyncIterator[Resumption]:
        assert Cursor.parse(str(cursor)) == cursor
        await asyncio.sleep(0)
        if any("lost" in topic for topic in topics):
            raise ReplayFailed("lost")
        subscriber.hold()
        await asyncio.sleep(0)
        subscriber.skip(SEEN)
        yield Resumption(topics)


class _Errors(logging.Handler):
    """Fails for an error that nobody asked for, and for a line of the log that is two."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []
        self.setFormatter(TextLines())

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = self.format(record)
        if record.levelno >= logging.ERROR and not isinstance(error, Boom):
            self.found.append(text)
        elif error is None and not text.isprintable():
            self.found.append(f"a log line that is not plain: {text!a}")


@contextmanager
def no_errors() -> Iterator[None]:
    """Nothing in the block may log an error."""
    log, errors = logging.getLogger("realtime_db"), _Errors()
    before = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(errors)
    try:
        yield
    finally:
        log.removeHandler(errors)
        log.propagate = before[0]
        log.setLevel(before[1])
    assert not errors.found, errors.found[0]


class Socket:
    """A transport without a socket, as uvloop's behaves.

    Args:
        loop: calls `connection_lost`.
        slow: the client takes nothing until `drain`.
        half: whether our half can be closed alone, as it cannot with TLS.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, slow: bool, half: bool) -> None:
        self._loop = loop
        self._slow = slow
        self._half = half
        self.protocol: Any = None
        self.writes: list[bytes] = []
        self.reading = True
        self.lost = False
        self.ended = False
        self._closing = False
        self._waiting = 0
        self._high = 1_000
        self._paused = False

    def drain(self) -> None:
        """The client takes all that waits."""
        self._waiting = 0
        if self._paused:
            self._paused = False
            self.protocol.resume_writing()

    # What a transport has

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        assert not self.ended, "a write after the end"
        assert not self._closing, "a write after closing"
        self.writes.append(data)
        if self._slow:
            self._waiting += len(data)
            if self._waiting > self._high and not self._paused:
                self._paused = True
                self.protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self.lost = True
        self.protocol.connection_lost(None)

    def can_write_eof(self) -> bool:
        return self._half

    def write_eof(self) -> None:
        assert self._half
        self.ended = True

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return self._waiting

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
