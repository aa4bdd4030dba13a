"""How often something may happen, and what becomes known of it when it did not. No I/O here.

Whatever is refused or dropped for a limit goes through `Limits`: it is counted under the name of
the setting, which `/metrics` shows, and logged: the first time at once, and then how many more
there were, so that a flood is not one of the log as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from realtime_db.wheel import Wheel

BURST_SECONDS: Final = 10.0
SUMMARY_SECONDS: Final = 10.0

CODES: Final = {
    "max_payload_bytes": "PayloadSizeExceeded",
    "max_frame_bytes": "FrameSizeExceeded",
    "max_body_bytes": "BodySizeExceeded",
    "max_channels_per_connection": "ChannelRateLimitReached",
    "max_connections": "ConnectionRateLimitReached",
    "max_joins_per_second": "ClientJoinRateLimitReached",
    "max_messages_per_second": "MessagePerSecondRateLimitReached",
    "max_bytes_per_second": "BytePerSecondRateLimitReached",
    "max_deliveries_per_second": "MessagePerSecondRateLimitReached",
    "max_write_buffer_bytes": "SlowClient",
}
"""What the log calls it when a limit strikes, by its setting."""


class Rate:
    """At most so many a second, on average, with a burst of ten seconds' worth.

    Args:
        per_second: the average; 0 is no limit.
    """

    __slots__ = ("_per_second", "_room", "_since")

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._room = per_second * BURST_SECONDS
        self._since: float | None = None

    def allow(self, now: float, amount: float = 1) -> bool:
        """Counts so many more, if there is room for all of them.

        Args:
            now: seconds, of any clock; when it goes back, nothing is gained or lost.
            amount: how many.
        """
        if self.is_exhausted(now, amount):
            return False
        self._room -= amount
        return True

    def is_exhausted(self, now: float, amount: float = 1) -> bool:
        """Whether there is no room for so many more; counts nothing."""
        if not self._per_second:
            return False
        if self._since is not None:
            gained = max(0.0, now - self._since) * self._per_second
            self._room = min(self._per_second * BURST_SECONDS, self._room + gained)
        self._since = now
        return self._room < amount

    def ever_allows(self, amount: float) -> bool:
        """Whether so many at once may be, at any time."""
        return not self._per_second or amount <= self._per_second * BURST_SECONDS


class Limits:
    """Counts and logs what was over a limit.

    Args:
        wheel: for the summaries.
        now: the clock of the wheel.
        log: where to.

    Attributes:
        struck: how often each of `CODES` struck.
    """

    def __init__(self, wheel: Wheel, now: Callable[[], float], log: logging.Logger) -> None:
        self._wheel = wheel
        self._now = now
        self._log = log
        self._unsaid: dict[str, int] = {}
        self.struck = dict.fromkeys(CODES, 0)

    def over(self, limit: str, text: str, *values: object) -> None:
        """Something was over a limit.

        Args:
            limit: one of `CODES`.
            text: what became of it, for the log.
            values: for `text`.
        """
        self.struck[limit] += 1
        if limit in self._unsaid:
            self._unsaid[limit] += 1
            return
        self._log.warning(f"{CODES[limit]}: {text}", *values)
        self._begin(limit)

    def _begin(self, limit: str) -> None:
        """Counts quietly for some seconds."""
        self._unsaid[limit] = 0
        self._wheel.schedule(self._now() + SUMMARY_SECONDS, lambda: self._sum_up(limit))

    def _sum_up(self, limit: str) -> None:
        more = self._unsaid.pop(limit)
        if more:
            text = "%s: %d more in %g seconds were over %s"
            self._log.warning(text, CODES[limit], more, SUMMARY_SECONDS, limit)
            self._begin(limit)
