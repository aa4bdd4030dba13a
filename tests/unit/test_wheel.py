"""The wheel: never early, in order, and nothing is lost."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.wheel import Wheel


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30),
    st.lists(st.floats(0, 60), min_size=1, max_size=20).map(sorted),
)
def test_what_is_due_runs_once_never_early_and_earliest_first(
    timers: list[tuple[int, bool]], ticks: list[float]
) -> None:
    wheel = Wheel(1000.0)
    ran: list[int] = []
    for number, (at, cancel) in enumerate(timers):
        timer = wheel.schedule(1000.0 + at, lambda number=number: ran.append(number))
        if cancel:
            timer.cancel()
    for tick in ticks:
        wheel.advance(1000.0 + tick)
        due = {n for n, (at, cancel) in enumerate(timers) if not cancel and at + 1 <= tick}
        assert due == set(ran)
        assert len(ran) == len(set(ran))
    assert [timers[n][0] for n in ran] == sorted(timers[n][0] for n in ran)


def test_what_is_overdue_runs_with_the_next_tick() -> None:
    wheel = Wheel(1000.5)
    ran: list[str] = []
    wheel.schedule(0.0, lambda: ran.append("late"))
    wheel.advance(1000.9)
    assert ran == []
    wheel.advance(1001.0)
    assert ran == ["late"]


def test_what_is_scheduled_for_the_past_waits_for_the_next_second() -> None:
    wheel = Wheel(0.0)
    wheel.advance(5.0)
    ran: list[int] = []
    wheel.schedule(0.0, lambda: ran.append(1))
    wheel.advance(5.9)
    assert ran == []
    wheel.advance(6.0)
    assert ran == [1]


def test_a_callback_may_schedule_itself_again() -> None:
    wheel = Wheel(0.0)
    ran: list[int] = []

    def again() -> None:
        ran.append(1)
        wheel.schedule(0.0, again)

    wheel.schedule(0.0, again)
    for second in (1, 2, 3):
        wheel.advance(float(second))
    assert len(ran) == 3


def test_a_callback_may_cancel_another_of_the_same_second() -> None:
    wheel = Wheel(0.0)
    ran: list[str] = []
    wheel.schedule(1.0, lambda: other.cancel())
    other = wheel.schedule(1.0, lambda: ran.append("other"))
    wheel.advance(5.0)
    assert ran == []


def test_a_callback_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    wheel = Wheel(0.0)
    ran: list[str] = []
    wheel.schedule(1.0, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    wheel.schedule(1.0, lambda: ran.append("next"))
    with caplog.at_level(logging.ERROR):
        wheel.advance(2.0)
    assert ran == ["next"]
    assert "a timer failed" in caplog.text


def test_a_clock_that_jumps_a_century_or_back_does_no_harm() -> None:
    wheel = Wheel(0.0)
    ran: list[str] = []
    wheel.schedule(1.0, lambda: ran.append("a"))
    wheel.advance(-1e9)
    wheel.advance(3e9)
    assert ran == ["a"]
