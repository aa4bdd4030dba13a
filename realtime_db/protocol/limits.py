"""How often something may happen, and what becomes known of it when it did not. No I/O here.

Whatever is refused or dropped for a limit goes through `Limits`: it is counted under the name of
the setting, which `/metrics` shows, and logged: the first of some seconds at once, and then how
many more there were, so that a flood is not one of the log as well. Stored messages are counted by
themselves, for nothing that a client does may hide which of them nobody got.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from realtime_db.wheel import Wheel

BURST_SECONDS: Final = 10.0
SUMMARY_SECONDS: Final = 10.0
NAMED: Final = 20
"""How many stored messages are logged one by one, of those in `SUMMARY_SECONDS`."""

CODES: Final = {
    "max_payload_bytes": "PayloadSizeExceeded",
    "max_frame_bytes": "FrameSizeExceeded",
    "max_body_bytes": "BodySizeExceeded",
    "max_channels_per_connection": "ChannelRateLimitReached",
    "max_connections": "ConnectionRateLimitReached",
    "max_joins_per_second": "ClientJoinRateLimitReached",
    "max_messages_per_second": "MessagePerSecondRateLimitReached",
    "max_bytes_per_second": "BytePerSecondRateLimitReached",
    "max_deliveries_per_second": "DeliveryPerSecondRateLimitReached",
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
        # (limit, whether stored messages) -> how many in the last seconds
        self._counts: dict[tuple[str, bool], int] = {}
        self.struck = dict.fromkeys(CODES, 0)

    def over(self, limit: str, text: str, *values: object, stored: bool = False) -> None:
        """Something was over a limit.

        Args:
            limit: one of `CODES`.
            text: what became of it, for the log.
            values: for `text`.
            stored: whether it was a stored message, which `text` names.
        """
        self.struck[limit] += 1
        kind = (limit, stored)
        if kind not in self._counts:
            self._counts[kind] = 0
            self._wheel.schedule(self._now() + SUMMARY_SECONDS, lambda: self._sum_up(kind))
        self._counts[kind] += 1
        if self._counts[kind] <= _most(stored):
            self._log.warning(f"{CODES[limit]}: {text}", *values)

    def flush(self) -> None:
        """Says what has been counted: the server is about to end."""
        for kind in list(self._counts):
            self._sum_up(kind)

    def _sum_up(self, kind: tuple[str, bool]) -> None:
        limit, stored = kind
        more = self._counts.pop(kind, 0) - _most(stored)
        if more > 0:
            what = f"{more} more stored messages" if stored else f"{more} more"
            text = "%s: %s within %g seconds were over %s"
            self._log.warning(text, CODES[limit], what, SUMMARY_SECONDS, limit)


def _most(stored: bool) -> int:
    """How many are logged one by one."""
    return NAMED if stored else 1
