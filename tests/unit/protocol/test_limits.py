"""Rates: a burst, then the average; and what becomes known of what was too much."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from realtime_db.protocol.limits import BURST_SECONDS, CODES, NAMED, SUMMARY_SECONDS, Limits, Rate
from realtime_db.settings import Settings
from realtime_db.wheel import Wheel


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


def test_what_does_not_fit_takes_nothing_and_what_never_fits_is_known() -> None:
    rate = Rate(1)
    assert not rate.allow(0.0, 11)
    assert rate.allow(0.0, 10)
    assert not rate.allow(0.0, 1)
    assert rate.ever_allows(10)
    assert not rate.ever_allows(10.5)
    assert Rate(0).ever_allows(1e9)


class Clocked:
    """Limits whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._wheel = Wheel(0)
        self.limits = Limits(self._wheel, lambda: self.now, logging.getLogger("test"))

    def pass_time(self) -> None:
        self.now += SUMMARY_SECONDS + 1
        self._wheel.advance(self.now)


def test_a_flood_is_said_once_and_then_by_number(caplog: pytest.LogCaptureFixture) -> None:
    clocked = Clocked()
    limits = clocked.limits
    for number in range(1000):
        limits.over("max_payload_bytes", "message %d was not sent", number)
    limits.over("max_connections", "a client was refused")
    clocked.pass_time()
    limits.over("max_payload_bytes", "message %d was not sent", 1000)
    limits.over("max_payload_bytes", "message %d was not sent", 1001)
    clocked.pass_time()
    clocked.pass_time()
    limits.over("max_payload_bytes", "message %d was not sent", 1002)

    assert caplog.messages == [
        "PayloadSizeExceeded: message 0 was not sent",
        "ConnectionRateLimitReached: a client was refused",
        "PayloadSizeExceeded: 999 more within 10 seconds were over max_payload_bytes",
        "PayloadSizeExceeded: message 1000 was not sent",
        "PayloadSizeExceeded: 1 more within 10 seconds were over max_payload_bytes",
        "PayloadSizeExceeded: message 1002 was not sent",
    ]
    assert limits.struck["max_payload_bytes"] == 1003
    assert limits.struck["max_connections"] == 1


def test_no_client_can_hide_which_stored_messages_nobody_got(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clocked = Clocked()
    for number in range(NAMED + 2):
        clocked.limits.over("max_payload_bytes", "a broadcast was not sent")
        clocked.limits.over("max_payload_bytes", "%d was not delivered", number, stored=True)
    clocked.pass_time()
    clocked.limits.over("max_payload_bytes", "%d was not delivered", 100, stored=True)

    said = [text.removeprefix("PayloadSizeExceeded: ") for text in caplog.messages]
    assert said == [
        "a broadcast was not sent",
        *(f"{number} was not delivered" for number in range(NAMED)),
        f"{NAMED + 1} more within 10 seconds were over max_payload_bytes",
        "2 more stored messages within 10 seconds were over max_payload_bytes",
        "100 was not delivered",
    ]
    assert clocked.limits.struck["max_payload_bytes"] == 2 * NAMED + 5


def test_what_was_counted_is_said_at_the_end_and_once(caplog: pytest.LogCaptureFixture) -> None:
    clocked = Clocked()
    for _ in range(3):
        clocked.limits.over("max_payload_bytes", "a broadcast was not sent")
    clocked.limits.over("max_connections", "a client was refused")
    clocked.limits.flush()
    clocked.pass_time()

    assert caplog.messages[2:] == [
        "PayloadSizeExceeded: 2 more within 10 seconds were over max_payload_bytes"
    ]


def test_every_limit_is_a_setting() -> None:
    assert set(CODES) <= {one.name for one in dataclasses.fields(Settings)}


def test_each_limit_has_a_code_of_its_own() -> None:
    assert len(set(CODES.values())) == len(CODES)
