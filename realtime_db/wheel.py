"""Many coarse timers for the price of one: what is due in the same second is run together.

A timer for each connection and channel would cost more than the messages. No I/O here: whoever owns
the loop calls `advance` once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


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
        """Runs what is due, earliest first. A callback that fails does not stop the others."""
        second = int(now)
        if second <= self._second:
            return
        if second - self._second > len(self._slots):  # as after a night's sleep
            due = sorted(slot for slot in self._slots if slot <= second)
        else:
            due = [slot for slot in range(self._second + 1, second + 1) if slot in self._slots]
        # Before the callbacks: what they schedule is not due yet.
        self._second = second
        for slot in due:
            for timer in self._slots.pop(slot):
                callback, timer.callback = timer.callback, None
                if callback is None:
                    continue
                try:
                    callback()
                except Exception:
                    _log.exception("a timer failed")
