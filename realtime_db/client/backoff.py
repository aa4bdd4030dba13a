"""How long to wait before the next try, so that a thousand clients do not come at once."""

from __future__ import annotations

import random
from typing import Final

FIRST_SECONDS: Final = 0.1
MAX_SECONDS: Final = 10.0


class Backoff:
    """Waits that double, each with full jitter: anything between nothing and all of it."""

    def __init__(self) -> None:
        self._seconds = FIRST_SECONDS

    def reset(self) -> None:
        """It went well: the next wait is short."""
        self._seconds = FIRST_SECONDS

    def next_seconds(self) -> float:
        """The next wait."""
        seconds = random.uniform(0, self._seconds)  # noqa: S311 - no secret
        self._seconds = min(MAX_SECONDS, 2 * self._seconds)
        return seconds
