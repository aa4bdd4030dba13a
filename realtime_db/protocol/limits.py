"""How often something may happen. No I/O here."""

from __future__ import annotations

from typing import Final

BURST_SECONDS: Final = 10.0


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

    def allow(self, now: float) -> bool:
        """Counts one more, if there is room for it.

        Args:
            now: seconds, of any clock; when it goes back, nothing is gained or lost.
        """
        if self.is_exhausted(now):
            return False
        self._room -= 1
        return True

    def is_exhausted(self, now: float) -> bool:
        """Whether there is no room for one more; counts nothing."""
        if not self._per_second:
            return False
        if self._since is not None:
            gained = max(0.0, now - self._since) * self._per_second
            self._room = min(self._per_second * BURST_SECONDS, self._room + gained)
        self._since = now
        return self._room < 1
