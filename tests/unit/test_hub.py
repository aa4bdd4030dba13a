"""Who gets what, in which order, and in how many writes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from realtime_db.cursors import Snapshot
from realtime_db.hub import WRITES_PER_TURN, Hub
from realtime_db.protocol.broadcast import Broadcast

KEY = ("room", False)


class Loop:
    """What calls back in the next turn."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def run(self) -> None:
        while self.calls:
            self.turn()


class Plain:
    """Encodes the event alone; counts."""

    def __init__(self, *, deaf_to: str = "") -> None:
        self.encoded = 0
        self._deaf_to = deaf_to

    def encode(self, message: Broadcast) -> bytes | None:
        self.encoded += 1
        if message.event == "defect":
            raise ValueError(message.event)
        return None if message.event == self._deaf_to else message.event.encode()


def message(event: str, transaction_id: int = 0) -> Broadcast:
    return Broadcast("realtime:room", event, b"{}", transaction_id=transaction_id)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def hub(loop: Loop) -> Hub:
    return Hub(loop.call_soon)


def test_one_write_for_all_that_is_published_in_a_turn(hub: Hub, loop: Loop) -> None:
    wire, writes = Plain(), list[bytes]()
    for _ in range(3):
        hub.subscribe(KEY, wire, writes.append)
    for event in "abc":
        hub.publish(KEY, message(event))
    assert (writes, len(loop.calls)) == ([], 1)
    loop.run()
    assert writes == [b"abc"] * 3
    assert wire.encoded == 3
    assert (hub.deliveries, hub.delivered_bytes) == (9, 9)


def test_topics_and_private_and_public_are_apart(hub: Hub, loop: Loop) -> None:
    wire, writes = Plain(), list[bytes]()
    hub.subscribe(KEY, wire, writes.append)
    hub.publish(("room", True), message("private"))
    hub.publish(("other", False), message("other"))
    loop.run()
    assert writes == []


def test_a_sender_gets_all_but_its_own(hub: Hub, loop: Loop) -> None:
    wire, mine, theirs = Plain(), list[bytes](), list[bytes]()
    me = hub.subscribe(KEY, wire, mine.append)
    hub.subscribe(KEY, wire, theirs.append)
    hub.publish(KEY, message("a"), besides=me)
    hub.publish(KEY, message("b"))
    loop.run()
    hub.publish(KEY, message("c"), besides=me)
    loop.run()
    assert (mine, theirs) == ([b"b"], [b"ab", b"c"])


def test_a_message_that_a_wire_has_no_frame_for_is_left_out(hub: Hub, loop: Loop) -> None:
    deaf, all_of_it = list[bytes](), list[bytes]()
    hub.subscribe(KEY, Plain(deaf_to="b"), deaf.append)
    hub.subscribe(KEY, Plain(), all_of_it.append)
    for event in "abc":
        hub.publish(KEY, message(event))
    loop.run()
    assert (deaf, all_of_it) == ([b"ac"], [b"abc"])


def test_whoever_had_a_replay_skips_what_its_query_saw(hub: Hub, loop: Loop) -> None:
    wire, replayed, fresh = Plain(), list[bytes](), list[bytes]()
    hub.subscribe(KEY, wire, replayed.append, seen=Snapshot.parse("10:20:12,15"))
    hub.subscribe(KEY, wire, fresh.append)
    for number in (9, 11, 12, 15, 19, 20, 21, 0):
        hub.publish(KEY, message(f"{number} ", number))
    loop.run()
    assert replayed == [b"12 15 20 21 0 "]
    assert fresh == [b"9 11 12 15 19 20 21 0 "]
    hub.publish(KEY, message("19", 19))
    loop.run()
    assert len(replayed) == 1


def test_a_fan_out_is_cut_into_slices_and_keeps_the_order(hub: Hub, loop: Loop) -> None:
    wire = Plain()
    writes: list[list[bytes]] = [[] for _ in range(2 * WRITES_PER_TURN + 1)]
    for one in writes:
        hub.subscribe(KEY, wire, one.append)
    other = list[bytes]()
    hub.subscribe(("other", False), wire, other.append)
    hub.publish(KEY, message("a"))
    loop.turn()
    assert sum(map(len, writes)) == WRITES_PER_TURN
    hub.publish(KEY, message("b"))
    hub.publish(("other", False), message("x"))
    loop.turn()
    assert other == [b"x"]
    loop.run()
    assert writes == [[b"a", b"b"]] * len(writes)


def test_whoever_leaves_between_slices_gets_nothing_more(hub: Hub, loop: Loop) -> None:
    wire, last = Plain(), list[bytes]()
    for _ in range(WRITES_PER_TURN):
        hub.subscribe(KEY, wire, lambda data: None)
    leaving = hub.subscribe(KEY, wire, last.append)
    hub.publish(KEY, message("a"))
    loop.turn()
    hub.unsubscribe(leaving)
    loop.run()
    assert last == []


def test_a_socket_that_is_gone_stops_nobody(hub: Hub, loop: Loop) -> None:
    wire, writes = Plain(), list[bytes]()

    def gone(data: bytes) -> None:
        raise RuntimeError("closed")

    hub.subscribe(KEY, wire, gone)
    hub.subscribe(KEY, wire, writes.append)
    hub.publish(KEY, message("a"))
    loop.run()
    assert writes == [b"a"]


def test_a_defect_in_one_topic_does_not_reach_the_others(
    hub: Hub, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    wire, writes = Plain(), list[bytes]()
    hub.subscribe(KEY, wire, writes.append)
    hub.subscribe(("other", False), wire, writes.append)
    hub.publish(KEY, message("defect"))
    hub.publish(("other", False), message("x"))
    with caplog.at_level(logging.ERROR):
        loop.run()
    hub.publish(KEY, message("a"))
    loop.run()
    assert writes == [b"x", b"a"]


def test_a_write_may_unsubscribe_anybody(hub: Hub, loop: Loop) -> None:
    wire = Plain()
    subscriptions = []

    def leave(data: bytes) -> None:
        for one in subscriptions:
            hub.unsubscribe(one)

    subscriptions += [hub.subscribe(KEY, wire, leave) for _ in range(3)]
    hub.publish(KEY, message("a"))
    loop.run()
    assert not hub.has_subscribers(KEY)
    assert hub.topics == 0


def test_unsubscribing_twice_is_harmless_and_nothing_stays(hub: Hub) -> None:
    wire = Plain()
    one = hub.subscribe(KEY, wire, bytes, seen=Snapshot(1, 2))
    two = hub.subscribe(KEY, wire, bytes)
    hub.unsubscribe(one)
    hub.unsubscribe(one)
    assert hub.has_subscribers(KEY)
    assert not hub._topics[KEY].skipping
    hub.unsubscribe(two)
    hub.unsubscribe(two)
    assert hub.topics == 0


def test_a_tap_sees_what_is_published_and_settle_ends_what_came_before(
    hub: Hub, loop: Loop
) -> None:
    wire, before, after, tapped = Plain(), list[bytes](), list[bytes](), list[Broadcast]()
    for _ in range(WRITES_PER_TURN + 1):
        hub.subscribe(KEY, wire, before.append)
    tap = hub.tap(KEY, tapped.append)
    hub.publish(KEY, message("a"))
    loop.turn()  # a slice of it
    hub.publish(KEY, message("b"))
    hub.settle(KEY)
    hub.untap(tap)
    hub.subscribe(KEY, wire, after.append)
    hub.publish(KEY, message("c"))
    loop.run()
    assert [one.event for one in tapped] == ["a", "b"]
    assert after == [b"c"]
    assert b"".join(before).count(b"b") == WRITES_PER_TURN + 1


def test_a_tap_alone_keeps_a_topic(hub: Hub) -> None:
    tap = hub.tap(KEY, print)
    assert hub.has_subscribers(KEY)
    hub.untap(tap)
    hub.untap(tap)
    assert hub.topics == 0


# What has been written


def test_a_mark_is_written_once_all_slices_are(hub: Hub, loop: Loop) -> None:
    wire = Plain()
    for _ in range(WRITES_PER_TURN + 1):
        hub.subscribe(KEY, wire, lambda data: None)
    hub.publish(KEY, message("a"))
    mark = hub.mark()
    assert not hub.is_written(mark)
    loop.turn()
    assert not hub.is_written(mark)
    hub.publish(KEY, message("b"))
    later = hub.mark()
    loop.turn()
    assert hub.is_written(mark)
    assert not hub.is_written(later)
    loop.run()
    assert hub.is_written(later)
    assert hub.mark() == []


def test_a_mark_does_not_wait_for_a_topic_that_everybody_left(hub: Hub, loop: Loop) -> None:
    """And that others have joined since: what was pending is lost with who should have got it."""
    one = hub.subscribe(KEY, Plain(), lambda data: None)
    hub.publish(KEY, message("a"))
    mark = hub.mark()
    hub.unsubscribe(one)
    hub.subscribe(KEY, Plain(), lambda data: None)
    hub.publish(KEY, message("b"))
    loop.run()
    assert hub.is_written(mark)


def test_who_takes_a_message_may_end_with_it(hub: Hub) -> None:
    taken: list[str] = []

    def take(one: Broadcast) -> None:
        taken.append(one.event)
        hub.untap(tap)

    tap = hub.tap(KEY, take)
    hub.tap(KEY, lambda one: taken.append(one.event.upper()))
    for event in "ab":
        hub.publish(KEY, message(event))
    assert taken == ["a", "A", "B"]


# A limit


def test_who_would_get_too_much_is_told_and_gets_none_of_it(loop: Loop) -> None:
    seconds = 0.0
    hub = Hub(loop.call_soon, max_per_second=0.2, now=lambda: seconds)
    written: list[bytes] = []
    told: list[str] = []
    mine = hub.subscribe(KEY, Plain(), written.append, over=lambda: told.append("mine"))
    hub.subscribe(KEY, Plain(), written.append, over=lambda: told.append("yours"))
    hub.subscribe(KEY, Plain(), written.append)
    hub.subscribe(("other", False), Plain(), written.append, over=lambda: told.append("other"))

    for event in "ab":  # ten seconds' worth
        hub.publish(KEY, message(event))
    loop.run()
    assert written == [b"ab"] * 3
    hub.publish(KEY, message("c"), besides=mine)
    loop.run()
    assert (written, told) == ([b"ab"] * 3, ["yours"])  # who sent all of it got none of it
    hub.publish(("other", False), message("d"))
    seconds = 5.0
    hub.publish(KEY, message("e"))
    loop.run()

    assert written[3:] == [b"d", b"e", b"e", b"e"]
    assert told == ["yours"]


def test_telling_many_that_it_is_too_much_is_cut_into_slices(loop: Loop) -> None:
    hub = Hub(loop.call_soon, max_per_second=0.1, now=lambda: 0.0)
    wire = Plain()
    told: list[int] = []
    for number in range(2 * WRITES_PER_TURN):
        hub.subscribe(KEY, wire, lambda data: None, over=lambda number=number: told.append(number))

    for _ in range(2):
        hub.publish(KEY, message("e"))
    loop.turn()
    assert len(told) == WRITES_PER_TURN
    loop.run()
    assert told == list(range(2 * WRITES_PER_TURN))
