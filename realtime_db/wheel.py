"""Many coarse timers for the price of one: what is due in the same second is run together.

A timer for each connection and channel would cost more than the messages. No I/O here: whoever owns
the loop calls `advance` once a second.
"""

from __future__ import annotations

from collections.abc import Callable


class Timer:
    """A scheduled call; `cancel` takes it back."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Takes it back; harmless if it has run."""
        self.callback = None


class Wheel:
    """Timers by the second in which they are due.

    Args:
        now: the first second.
    """

    def __init__(self, now: float) -> None:
        self._second = int(now)
        self._slots: dict[int, list[Timer]] = {}

    def schedule(self, at: float, callback: Callable[[], None]) -> Timer:
        """Calls back in the second that follows `at`, and never before it."""
        timer = Timer(callback)
        self._slots.setdefault(max(int(at), self._second) + 1, []).append(timer)
        return timer

    def advance(self, now: float) -> None:
        """Runs what is due."""
        while self._second < int(now):
            self._second += 1
            for timer in self._slots.pop(self._second, ()):
                callback, timer.callback = timer.callback, None
                if callback is not None:
                    callback()
