"""Who sent what, and who got it.

    writers ──► realtime.messages ──► the server ──► subscribers
                      │                                  │
                      └────────── the ledger ────────────┘

The table is the truth: a commit whose answer was lost may have happened. Writers number their
messages, for each topic; what they know to be committed has to be in the table, and what they know
to be rolled back must not. After a test every subscriber must have all that is in the table,
nothing else, and each writer's messages of a topic in the order of their numbers, once duplicates
are gone. So must one who comes then and goes on from where all began.

Where a server tells the order of everything at any time, as one that polls does, nothing comes
twice, and the order of a topic is the same for all of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

import psycopg

from tests.faults.background import Background
from tests.faults.subscribers import (
    EventSource,
    Got,
    Library,
    Subscriber,
    Topic,
    WebSocket,
)

SETTLE_SECONDS: Final = 60.0
TOPICS: Final = tuple(
    Topic(f"{kind}:{number}", kind == "private")
    for kind in ("public", "private")
    for number in (1, 2)
)
PUBLIC, PRIVATE = TOPICS[:2], TOPICS[2:]

_STORED: Final = """
    select id::text, topic, payload ->> 'writer', (payload ->> 'number')::integer
    from realtime.messages where payload ? 'writer' order by transaction_id, position
"""


class Writer(threading.Thread):
    """Sends in transactions of all kinds, until it is told to stop.

    Attributes:
        committed: `(topic, number)` of what the database said has been committed.
        undone: of what was rolled back.
        lost: how many times the database did not say.
    """

    def __init__(self, url: str, name: str, chance: random.Random, pause_seconds: float) -> None:
        super().__init__(daemon=True)
        self.name = name
        self.committed: set[tuple[str, int]] = set()
        self.undone: set[tuple[str, int]] = set()
        self.lost = 0
        self._url = url
        self._chance = chance
        self._pause_seconds = pause_seconds
        self._numbers: Counter[str] = Counter()
        self._ended = threading.Event()

    def stop(self) -> None:
        self._ended.set()
        self.join(60)
        assert not self.is_alive(), f"writer {self.name} hangs"

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    while not self._ended.wait(self._chance.random() * 2 * self._pause_seconds):
                        self._transaction(connection)
            except psycopg.Error:
                self.lost += 1
                self._ended.wait(0.05)

    def _transaction(self, connection: psycopg.Connection) -> None:
        """One transaction, of which it is known afterwards what became of it; or it raises."""
        chance = self._chance
        sent: list[tuple[str, int]] = []
        undone: list[tuple[str, int]] = []
        rolls_back = chance.random() < 0.15
        with connection.transaction(force_rollback=rolls_back):
            for topic in chance.sample(TOPICS, chance.randint(1, 3)):
                sent += self.send(connection, topic, chance.choice((1, 1, 1, 2, 7)))
                if chance.random() < 0.2:
                    with connection.transaction(force_rollback=True):  # a savepoint
                        undone += self.send(connection, topic, 2)
                if chance.random() < 0.2:
                    with connection.transaction():  # a savepoint that stays
                        sent += self.send(connection, topic)
            if chance.random() < 0.2:
                # Others commit in between.
                connection.execute("select pg_sleep(%s)", [chance.random() * 0.1])
        if connection.closed:
            # Then the block above ends without a word, if the last thing in it was a savepoint.
            raise psycopg.OperationalError("nobody knows what became of it")
        self.committed.update(() if rolls_back else sent)
        self.undone.update(undone + sent if rolls_back else undone)

    def send(
        self, connection: psycopg.Connection, topic: Topic, count: int = 1
    ) -> list[tuple[str, int]]:
        """Sends messages with the next numbers; what of them is committed is for others to note."""
        first = self._numbers[topic.name] + 1
        self._numbers[topic.name] += count
        last = self._numbers[topic.name]
        if count == 1:
            connection.execute(
                "select realtime.send(jsonb_build_object('writer', %s::text, 'number', %s::int),"
                " 'e', %s, %s)",
                [self.name, first, topic.name, topic.private],
            )
        else:
            connection.execute(
                "insert into realtime.messages (topic, extension, event, private, payload)"
                " select %s, 'broadcast', 'e', %s, jsonb_build_object('writer', %s::text,"
                " 'number', n) from generate_series(%s::int, %s::int) as n",
                [topic.name, topic.private, self.name, first, last],
            )
        return [(topic.name, number) for number in range(first, last + 1)]


class Ledger:
    """Writers and subscribers of one database, and the reckoning.

    Args:
        database_url: for writers, and for the truth: past any fault between server and database.
        background: where subscribers live.
        seed: of all that is random in the writers.
        pause_seconds: of a writer between its transactions, on average.
        is_exact: whether the order of all that is stored is known at any time.

    Attributes:
        is_exact: the same. A test may set it, where what it does takes that from no server.
    """

    def __init__(
        self,
        database_url: str,
        background: Background,
        *,
        seed: int,
        pause_seconds: float = 0.03,
        is_exact: bool = False,
    ) -> None:
        self._url = database_url
        self._background = background
        self._chance = random.Random(seed)
        self._pause_seconds = pause_seconds
        self.is_exact = is_exact
        self._beginnings: list[tuple[Sequence[int], Sequence[Topic], str]] = []
        self.writers: list[Writer] = []
        self.subscribers: list[Subscriber] = []

    # Subscribers

    def follow(self, *ports: int) -> None:
        """Subscribers of each kind, on these ports of this machine; returns when all are ready."""
        event_sources = (
            EventSource("an EventSource of one topic", ports, PUBLIC[:1]),
            EventSource("an EventSource of two public topics", ports, PUBLIC),
            EventSource("an EventSource of two private topics", ports, PRIVATE),
        )
        self.add(
            *event_sources,
            WebSocket("a WebSocket", ports, TOPICS),
            Library("the client", ports, TOPICS),
        )
        self._beginnings = [(ports, one.topics, one.last_event_id) for one in event_sources]

    def add(self, *subscribers: Subscriber) -> list[Future[None]]:
        """Starts them; returns what cancels them when all know where to go on from."""
        started = []
        for one in subscribers:
            self.subscribers.append(one)
            started.append(self._background.spawn(one.run()))
        self.wait(
            lambda: not [one for one in subscribers if not one.is_ready],
            lambda: [
                (one.name, one.connected, one.where, one.refused[-3:], one.failures[-3:])
                for one in subscribers
                if not one.is_ready
            ],
        )
        return started

    def connected(self, more_than: int = 0) -> None:
        """Waits until each subscriber was let in more often than that."""
        self.wait(
            lambda: all(times > more_than for times in self.connections),
            lambda: [(one.name, one.connected, one.failures[-3:]) for one in self.subscribers],
        )

    @property
    def connections(self) -> list[int]:
        """How often each subscriber that says so was let in."""
        return [one.connected for one in self.subscribers if one.connected is not None]

    # Writers

    @contextmanager
    def writing(self, count: int = 3) -> Iterator[list[Writer]]:
        """Writers that go on for the length of the block."""
        started = [
            Writer(
                self._url,
                f"{len(self.writers) + number}",
                random.Random(self._chance.random()),
                self._pause_seconds,
            )
            for number in range(count)
        ]
        self.writers += started
        for one in started:
            one.start()
        try:
            yield started
        finally:
            for one in started:
                one.stop()

    def by_hand(self) -> Writer:
        """A writer that sends what a test tells it to."""
        writer = Writer(self._url, f"{len(self.writers)} by hand", self._chance, 0)
        self.writers.append(writer)
        return writer

    def arriving(self, more: int = 1) -> None:
        """Waits until so many further messages have come to each subscriber."""
        before = [len(one.got) for one in self.subscribers]
        self.wait(
            lambda: all(
                len(one.got) >= had + more
                for one, had in zip(self.subscribers, before, strict=True)
            ),
            lambda: self._report(self.stored()),
        )

    def has(self, writer: Writer, sent: Sequence[tuple[str, int]]) -> None:
        """Waits until what a writer sent has come to each subscriber."""
        wanted = {
            one: {(topic, number) for topic, number in sent if topic in dict(one.topics)}
            for one in self.subscribers
        }
        self.wait(
            lambda: all(
                wanted[one]
                <= {(got.topic, got.number) for got in list(one.got) if got.writer == writer.name}
                for one in self.subscribers
            ),
            lambda: self._report(self.stored()),
        )

    # The reckoning

    def stored(self) -> list[Got]:
        """What is in the table."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            return [Got(*row) for row in connection.execute(_STORED.encode()).fetchall()]

    def settle(self, *, at_least: int = 100) -> None:
        """Waits until everybody has everything, and checks that it is so.

        Args:
            at_least: how many messages there must be, or the test has tested nothing.
        """
        self._barrier()
        stored = self.stored()
        self._check_writers(stored, at_least)
        with self._late():
            self._wait_and_check(stored)

    @contextmanager
    def _late(self) -> Iterator[None]:
        """Some more subscribers, who begin where those of `follow` did."""
        late = []
        for ports, topics, beginning in self._beginnings:
            late.append(EventSource(f"an EventSource that comes late to {topics}", ports, topics))
            late[-1].last_event_id = beginning
        before, self.subscribers = self.subscribers, [*self.subscribers]
        started = self.add(*late)
        try:
            yield
        finally:
            for future in started:
                future.cancel()
            self.subscribers = before

    def _wait_and_check(self, stored: Sequence[Got]) -> None:
        wanted = {
            one: {got.id for got in stored if got.topic in {topic.name for topic in one.topics}}
            for one in self.subscribers
        }
        self.wait(
            lambda: all(
                wanted[one] <= {got.id for got in list(one.got)} for one in self.subscribers
            ),
            lambda: self._report(stored),
        )
        for one in self.subscribers:
            self._check(one, stored)
        if self.is_exact:
            for topic in TOPICS:
                self._check_order(topic)

    def _barrier(self) -> None:
        """A last message on each topic: what came late by mistake has come before it."""
        writer = self.by_hand()
        with psycopg.connect(self._url, autocommit=True) as connection:
            for topic in TOPICS:
                writer.committed.update(writer.send(connection, topic))

    def _check_writers(self, stored: Sequence[Got], at_least: int) -> None:
        assert len(stored) >= at_least, f"only {len(stored)} messages were sent"
        there = {(got.writer, got.topic, got.number) for got in stored}
        for writer in self.writers:
            for topic, number in writer.committed:
                assert (writer.name, topic, number) in there, "the table lost what was committed"
            for topic, number in writer.undone:
                assert (writer.name, topic, number) not in there, "the table kept what was undone"

    def _check(self, one: Subscriber, stored: Sequence[Got]) -> None:
        by_id = {got.id: got for got in stored}
        # Whatever happened behind the server, it knows what it has handed on.
        undisturbed = set(self.connections) == {1}
        seen: set[str] = set()
        last: dict[tuple[str, str], int] = {}
        for got in one.got:
            assert got.id in by_id, f"{one.name} got {got}, which was rolled back or never sent"
            assert got == by_id[got.id], f"{one.name} got {got} for {by_id[got.id]}"
            if got.id in seen:
                is_exact = self.is_exact and (one.is_exact or one.connected == 1)
                if one.once or is_exact or undisturbed:
                    raise AssertionError(f"{one.name} got {got} twice")
                continue
            seen.add(got.id)
            key = (got.topic, got.writer)
            assert got.number > last.get(key, 0), (
                f"{one.name} got {got} after number {last[key]} of the same writer and topic"
            )
            last[key] = got.number
        assert not one.gaps, f"{one.name} was told of gaps that there are not: {one.gaps}"

    def _check_order(self, topic: Topic) -> None:
        """All who have a topic have it in one order."""
        those = [one for one in self.subscribers if topic in one.topics]
        for first, one in pairwise(those):
            for mine, theirs in zip(_once(first, topic), _once(one, topic), strict=True):
                assert mine == theirs, f"{first.name} got {mine} where {one.name} got {theirs}"

    def _report(self, stored: Sequence[Got]) -> str:
        """What is missing, for people."""
        lines = [f"{len(stored)} messages are stored."]
        for one in self.subscribers:
            topics = {topic.name for topic in one.topics}
            ids = {got.id for got in list(one.got)}
            missing = [got for got in stored if got.topic in topics and got.id not in ids]
            if len(lines) > 10:
                return "\n".join([*lines, "…"])
            if not missing and len(self.subscribers) > 10:
                continue
            lines.append(
                f"{one.name} has {len(ids)} and lacks {len(missing)}: {missing[:3]} …"
                f" {missing[-1:]}; it connected {one.connected} times and would go on from"
                f" {one.where}; refusals {one.refused[-3:]}, failures {one.failures[-3:]}"
            )
        return "\n".join(lines)

    def wait(self, done: Callable[[], object], describe: Callable[[], object]) -> None:
        """Waits until something is so, and says what is not at the deadline."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while not done():
            self._background.check()
            assert time.monotonic() < deadline, describe()
            time.sleep(0.02)  # subscribers are in another thread, and there is much to look at


def _once(one: Subscriber, topic: Topic) -> list[Got]:
    """What somebody got of a topic, without duplicates."""
    return list(dict.fromkeys(got for got in one.got if got.topic == topic.name))
