"""How often something may happen. No I/O here."""

from __future__ import annotations


class Rate:
    """At most so many a second, on average, with a burst of ten seconds' worth.

    Args:
        per_second: the average; 0 is no limit.
    """

    BURST_SECONDS = 10.0

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._room = per_second * self.BURST_SECONDS
        self._since = 0.0

    def allow(self, now: float) -> bool:
        """Counts one more, if there is room for it.

        Args:
            now: seconds, of any clock that only goes forward.
        """
        if not self._per_second:
            return True
        full = self._per_second * self.BURST_SECONDS
        if self._since:
            self._room = min(full, self._room + (now - self._since) * self._per_second)
        self._since = now
        if self._room < 1:
            return False
        self._room -= 1
        return True
