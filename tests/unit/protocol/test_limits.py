"""Rates: a burst, then the average."""

from __future__ import annotations

from realtime_db.protocol.limits import BURST_SECONDS, Rate


def test_a_burst_is_ten_seconds_worth_and_then_the_average_counts() -> None:
    rate = Rate(2)
    assert sum(rate.allow(0.0) for _ in range(100)) == 2 * BURST_SECONDS
    assert [rate.allow(second) for second in (0.4, 0.5, 0.6, 1.0, 1.1)] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_no_more_than_a_burst_is_saved_up() -> None:
    rate = Rate(1)
    rate.allow(0.0)
    assert sum(rate.allow(1e9) for _ in range(100)) == BURST_SECONDS


def test_a_clock_that_goes_back_gives_and_takes_nothing() -> None:
    rate = Rate(1)
    for _ in range(10):
        assert rate.allow(100.0)
    assert not rate.allow(0.0)
    assert not rate.allow(0.5)
    assert rate.allow(1.0)


def test_zero_is_no_limit() -> None:
    rate = Rate(0)
    assert all(rate.allow(0.0) for _ in range(1000))
