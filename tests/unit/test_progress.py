"""What the cursors say, with a database and its WAL that are made up of lists."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import pytest

from realtime_db import progress as progress_module
from realtime_db.cursors import END, Cursor, Snapshot, join
from realtime_db.progress import CLOCK_SLACK_US, Progress
from realtime_db.stored import _LAST, _cursor_after, _wanted

CLUSTER = 7
SECOND = 1_000_000
START_US = 1_790_000_000 * SECOND


def looked(progress: Progress, seen: Snapshot, at: int, taken_us: int = START_US) -> None:
    progress.look(seen, at=at, taken_us=taken_us)


@pytest.fixture
def progress() -> Progress:
    one = Progress()
    one.begin(CLUSTER)
    return one


# Horizons


def test_there_is_no_cursor_before_the_source_has_passed_a_look(progress: Progress) -> None:
    progress.handed(5, 90, 1)
    assert (progress.cursor(90, 5, 1), progress.now, progress.here) == ("", "", "")
    looked(progress, Snapshot(6, 6), at=100)
    progress.passed(99)
    assert progress.horizon is None
    progress.passed(100)
    assert Cursor.parse(progress.cursor(110, 7, 1)).horizon.seen == Snapshot(6, 6)


def test_what_comes_after_the_place_of_a_look_passes_it(progress: Progress) -> None:
    looked(progress, Snapshot(6, 6), at=100)
    progress.handed(7, 100, 1)
    assert Cursor.parse(progress.here)[2:] == (100, 7, 1)


def test_the_last_look_that_was_passed_counts(progress: Progress) -> None:
    for number in (6, 7, 8, 9):
        looked(progress, Snapshot(number, number), at=number * 100)
    progress.passed(850)
    assert progress.horizon is not None
    assert progress.horizon.seen == Snapshot(8, 8)


def test_what_has_just_the_order_of_a_place_is_not_settled(progress: Progress) -> None:
    """Where the record of one commit ends, that of the next may begin."""
    looked(progress, Snapshot(6, 6), at=100)
    progress.handed(6, 120, 1)
    progress.settled(120)
    assert Cursor.parse(progress.now)[2:] < (120, 6, 0)


def test_a_message_without_a_transaction_has_no_cursor(progress: Progress) -> None:
    looked(progress, Snapshot(6, 6), at=100)
    progress.passed(100)
    assert progress.cursor(120, 0, 0) == ""


def test_nothing_was_inserted_before_the_look_that_saw_it_begin(progress: Progress) -> None:
    looks = ((Snapshot(5, 5), 0), (Snapshot(5, 9), 60), (Snapshot(9, 20), 120))
    for number, (seen, seconds) in enumerate(looks):
        looked(progress, seen, number, START_US + seconds * SECOND)
        progress.passed(number)
        assert progress.horizon is not None
        # What began after the first look had not begun by then; and after the second, by that.
        known = 60 if number == 2 else 0
        assert progress.horizon.since_us == START_US + known * SECOND - CLOCK_SLACK_US


def test_a_transaction_that_was_open_at_the_first_look_began_nobody_knows_when(
    progress: Progress,
) -> None:
    looked(progress, Snapshot(3, 9), 1)
    progress.passed(1)
    assert progress.horizon is not None
    assert progress.horizon.since_us == 0


def test_another_cluster_or_source_forgets_all(progress: Progress) -> None:
    looked(progress, Snapshot(6, 6), at=100)
    progress.handed(7, 110, 1)
    progress.begin(CLUSTER)
    assert progress.known(Snapshot(3, 3)).transaction_ids == [7]
    progress.begin(CLUSTER, "p")
    assert progress.known(Snapshot(3, 3)).transaction_ids == []
    assert (progress.horizon, progress.here, progress.source) == (None, "", "p")


def test_a_message_without_a_transaction_is_not_waited_for(progress: Progress) -> None:
    progress.handed(0, 90, 1)
    assert progress.unseen() == []
    assert progress.forgettable == END


# Orders


def test_what_no_horizon_shows_is_not_to_be_forgotten_by_the_source(progress: Progress) -> None:
    assert progress.forgettable == END
    progress.handed(5, 90, 1)
    progress.handed(6, 95, 1)
    assert progress.forgettable == 90
    looked(progress, Snapshot(5, 7, frozenset([5])), at=100)  # 5 waits for a standby
    progress.passed(100)
    progress.handed(8, 110, 1)
    assert progress.forgettable == 90
    looked(progress, Snapshot(8, 8), at=110)
    progress.passed(110)
    assert progress.forgettable == 110


def test_what_the_horizon_shows_need_not_be_waited_for(progress: Progress) -> None:
    progress.handed(5, 90, 1)
    progress.handed(8, 95, 1)
    assert progress.unseen() == [5, 8]
    looked(progress, Snapshot(8, 9, frozenset([8])), at=100)  # 8 waits for a standby
    progress.passed(100)
    assert progress.unseen() == [8]


def test_the_order_is_known_of_what_a_snapshot_does_not_show(progress: Progress) -> None:
    for number, order in ((9, 10), (6, 20), (8, 30), (7, 40)):
        progress.handed(number, order, 1)
    known = progress.known(Snapshot(6, 9, frozenset([6, 8])))
    assert dict(zip(known.transaction_ids, known.orders, strict=True)) == {9: 10, 6: 20, 8: 30}


def test_the_oldest_are_forgotten_when_a_look_shows_them(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "MAX_KNOWN", 100)
    one = Progress()
    one.begin(CLUSTER)
    for number in range(10, 1_000):
        if number % 10 == 0:
            looked(one, Snapshot(number, number), at=number * 10)
        one.handed(number, number * 10, 1)
    known = one.known(Snapshot(3, 3))
    assert 40 <= len(known.transaction_ids) <= 130
    assert known.before is not None
    assert all(known.before.shows(n) for n in range(10, 1_000) if n not in known.transaction_ids)


# All together


class Row(NamedTuple):
    transaction_id: int
    position: int
    inserted_us: int


class Client:
    def __init__(self, cursor: str, owed_from: int) -> None:
        self.cursor = cursor
        self.owed_from = owed_from  # in the WAL
        self.seen: Snapshot | None = None
        self.got: list[Row] = []
        self.connected = True
        self.may_repeat = False


class Model:
    """One topic. Commits are in the WAL first, and visible to queries at any time after that."""

    def __init__(self, chance: random.Random, *, remembers: bool) -> None:
        self.chance = chance
        self.remembers = remembers
        self.clock_us = self.latest_us = START_US
        self.next_id, self.position, self.lsn = 10, 0, 1_000
        self.open: dict[int, list[Row]] = {}
        self.wal: list[tuple[int, list[Row]]] = []  # `(commit LSN, rows)`
        self.hidden: set[int] = set()  # committed, and not visible yet
        self.rows: list[Row] = []  # what is stored, also by transactions that are open
        self.clients: list[Client] = []
        self.held: list[tuple[Row, str]] | None = None
        self.restarts = 0
        self.last_horizons: list[Snapshot] = []
        self._serve(0)

    def _serve(self, position: int) -> None:
        self.progress = Progress()
        self.acknowledged, self.brought, self.partly = position, position, 0
        self.progress.begin(CLUSTER)
        self.handed: list[int] = []

    def _place(self) -> int:
        """Where the next commit to be brought is."""
        return self.lsn if self.brought == len(self.wal) else self.wal[self.brought][0]

    # The database

    def write(self) -> None:
        self.open[self.next_id] = []
        self._insert(self.next_id, self.chance.randint(1, 3))
        self.next_id += 1

    def write_more(self) -> None:
        if self.open:
            self._insert(self._any_of(self.open), 1)

    def _any_of(self, these: Collection[Any]) -> Any:
        return self.chance.choice(list(these))

    def _insert(self, transaction_id: int, count: int) -> None:
        for _ in range(count):
            self.position += 1
            row = Row(transaction_id, self.position, self.clock_us)
            self.open[transaction_id].append(row)
            self.rows.append(row)

    def commit(self) -> None:
        if self.open:
            number = self._any_of(self.open)
            self.wal.append((self.lsn, self.open.pop(number)))
            # The next record may begin where this one ends.
            self.lsn += self.chance.choice([50, 58])
            self.hidden.add(number)

    def become_visible(self) -> None:
        if self.hidden:
            self.hidden.remove(self._any_of(self.hidden))

    def roll_back(self) -> None:
        if self.open:
            rows = self.open.pop(self._any_of(self.open))
            self.rows = [row for row in self.rows if row not in rows]

    def pass_time(self) -> None:
        seconds = self.chance.choice([1, 60, 3_600, -5])
        # It may be put back a little.
        self.clock_us = max(self.clock_us + seconds * SECOND, self.latest_us - 9 * SECOND)
        self.latest_us = max(self.latest_us, self.clock_us)

    def snapshot(self) -> Snapshot:
        running = frozenset(self.open) | self.hidden
        return Snapshot(min(running, default=self.next_id), self.next_id, running)

    # The server

    def look(self) -> None:
        self.progress.look(self.snapshot(), at=self.lsn, taken_us=self.clock_us)

    def bring(self, most: int = 6) -> None:
        """Up to so many messages, which may end within a transaction."""
        for _ in range(self.chance.randint(0, most)):
            if self.brought == len(self.wal):
                break
            order, rows = self.wal[self.brought]
            self._hand(order, rows[self.partly])
            self.partly += 1
            if self.partly == len(rows):
                self.brought, self.partly = self.brought + 1, 0
        self.settle()

    def _hand(self, order: int, row: Row) -> None:
        number = row.transaction_id
        if number not in self.handed:
            self.handed.append(number)
        self.progress.handed(number, order, row.position)
        if self.held is not None:
            self.held.append((row, self.progress.cursor(order, number, row.position)))
        for client in self.clients:
            if not client.connected or (client.seen is not None and client.seen.shows(number)):
                continue
            assert row not in client.got or self.restarts, "once, of what comes live"
            client.got.append(row)
            cursor = self.progress.cursor(order, number, row.position)
            client.cursor = cursor or client.cursor

    def settle(self) -> None:
        at = self._place()
        self.progress.passed(at)
        self.progress.settled(at)
        needed = min(at, self.progress.forgettable)
        self.acknowledged = sum(order < needed for order, _ in self.wal[: self.brought])

    def restart(self) -> None:
        """What was not acknowledged comes again, and some of what was: it may not be known yet."""
        for client in self.clients:
            client.connected = False
        self.restarts += 1
        if self.progress.horizon is not None:
            self.last_horizons.append(self.progress.horizon.seen)
        self._serve(max(0, self.acknowledged - self.chance.choice([0, 0, 1, 3])))

    # The clients

    def join(self) -> None:
        if len(self.clients) < 4 and self.progress.horizon is not None:
            self.clients.append(Client(self.progress.here, self.brought))
            if self.partly:
                self.clients[-1].got += self.wal[self.brought][1][: self.partly]

    def hear_a_heartbeat(self) -> None:
        here = [client for client in self.clients if client.connected]
        if here and self.progress.now:
            client = self._any_of(here)
            # It may be told within a transaction, all of which then counts as not given.
            last, now = (Cursor.parse(text)[2:] for text in (client.cursor, self.progress.now))
            client.may_repeat |= now < last
            client.cursor = self.progress.now

    def disconnect(self) -> None:
        if self.clients:
            self._any_of(self.clients).connected = False

    def resume(self) -> None:
        away = [client for client in self.clients if not client.connected]
        if away and self.progress.horizon is not None:
            self._resume(self._any_of(away), meanwhile=6, cut=self.chance.random() < 0.4)

    def _resume(self, client: Client, *, meanwhile: int = 0, cut: bool = False) -> None:
        """Some messages may come live meanwhile, and the client may go before it has got all."""
        self.hidden -= set(self.progress.unseen())  # it waits for these
        given, seen = self.progress.order, self.snapshot()
        self.held = []
        self.bring(meanwhile)
        held, self.held = self.held, None
        cursor = Cursor.parse(client.cursor)
        found = self._stored_after(cursor, seen)
        if not client.may_repeat and self.remembers:
            for row in set(found) & set(client.got):
                assert self._may_come_again(cursor, row), "nothing twice while the order is known"
        known = [row.transaction_id for row in found if row.transaction_id in self.handed]
        if self.remembers:
            assert known == sorted(known, key=self.handed.index), "in the order of delivery"
        others = [row.transaction_id for row in found if row.transaction_id not in self.handed]
        assert others == sorted(others), "or of the ids, as a session has them"
        if cut:
            places = dict(zip(*self.progress.known(cursor.horizon.seen)[:2], strict=True))
            for row in found[: len(found) // 2 + 1]:
                client.got.append(row)
                place = places.get(row.transaction_id, given + 1)
                if place <= given:
                    last = (place, row.transaction_id, row.position)
                    client.cursor = join(cursor.horizon.prefix("w"), *last)
            client.may_repeat = True
            return
        client.got += found
        client.got += [row for row, _ in held if not seen.shows(row.transaction_id)]
        client.seen, client.connected, client.may_repeat = seen, True, True
        client.cursor = _cursor_after(seen, self.clock_us, self.progress)
        for row, after in held:
            if after and not seen.shows(row.transaction_id):
                client.cursor = after

    def _may_come_again(self, cursor: Cursor, row: Row) -> bool:
        """Whether it was forgotten, and the cursor is older than what was not."""
        known = self.progress.known(cursor.horizon.seen)
        return (
            row.transaction_id not in known.transaction_ids
            and row.transaction_id != cursor.transaction_id
            and any(seen.shows(row.transaction_id) for seen in self.last_horizons)
        )

    def _stored_after(self, cursor: Cursor, seen: Snapshot) -> list[Row]:
        """What the query of `stored` does."""
        since_us, gap_us, wanted = _wanted(cursor, seen, self.progress, 0)
        assert gap_us is None
        given: Any = wanted
        ids, orders = (
            [int(n) for n in given[key][1:-1].split(",") if n] for key in ("ids", "orders")
        )
        places = dict(zip(ids, orders, strict=True))
        before, shown = Snapshot.parse(given["before"]), Snapshot.parse(given["seen"])
        last = (given["order"], int(given["transaction_id"]), given["position"])
        found = []
        for row in self.rows:
            number, position, inserted_us = row
            if not seen.shows(number) or inserted_us < since_us or shown.shows(number):
                continue
            place = places.get(number)
            if place is not None and (place, number, position) <= last:
                continue
            if place is None and number == last[1] and position <= last[2]:
                continue
            if place is None:
                place = 0 if before.shows(number) else _LAST
            found.append(((place, number, position), row))
        return [row for _, row in sorted(found)]

    def end(self) -> None:
        """All becomes visible, all is brought, and all come back."""
        self.hidden.clear()
        self.look()
        while self.brought < len(self.wal):
            self.bring()
        self.settle()
        committed = [rows for _, rows in self.wal]
        every = {row for rows in committed for row in rows}
        for client in self.clients:
            if not client.connected:
                self._resume(client)
            owed = {row for rows in committed[client.owed_from :] for row in rows}
            assert owed <= set(client.got), "nothing is missed"
            assert set(client.got) <= every, "and nothing comes of what was rolled back"


STEPS: Final[dict[Callable[[Model], None], float]] = {
    Model.write: 3,
    Model.write_more: 2,
    Model.commit: 4,
    Model.become_visible: 4,
    Model.roll_back: 0.5,
    Model.pass_time: 1,
    Model.look: 3,
    Model.bring: 4,
    Model.settle: 2,
    Model.restart: 0.3,
    Model.join: 1,
    Model.hear_a_heartbeat: 2,
    Model.disconnect: 2,
    Model.resume: 3,
}


@pytest.mark.parametrize("remembers", [True, False])
def test_nothing_is_missed_on_any_way(remembers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ways find more than short ones here, so they are drawn at random."""
    monkeypatch.setattr(progress_module, "MAX_KNOWN", 1_000 if remembers else 4)
    for seed in range(5_000):
        chance = random.Random(seed)
        model = Model(chance, remembers=remembers)
        steps = chance.choices([*STEPS], [*STEPS.values()], k=chance.randint(10, 80))
        try:
            for step in steps:
                step(model)
            model.end()
        except AssertionError as error:
            error.add_note(f"seed {seed}: {' '.join(step.__name__ for step in steps)}")
            raise
