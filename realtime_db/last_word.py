"""Ends a process that does not end: whatever it waits for then, nobody else should.

Above is the server, which starts the clock when it is told to end. It has a thread of its own, so
that it comes also when the event loop stands still.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from types import FrameType

log = logging.getLogger("realtime_db")


class LastWord(threading.Timer):
    """Says what has not ended, and ends the process with status 1; unless it is cancelled.

    Args:
        seconds: how long after `start`.
        loop: whose tasks are to end.
    """

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(seconds, self._say)
        self.daemon = True
        self._seconds = seconds
        self._loop = loop

    def _say(self) -> None:
        try:
            waiting = [_describe(task) for task in asyncio.all_tasks(self._loop)]
            log.error(
                "the server did not end within %g s, and is ended; the main thread is at %s, "
                "and what has not ended: %s",
                self._seconds,
                _place(traceback.extract_stack(_main_frame())[-1]),
                "; ".join(sorted(waiting)) or "no task",
            )
        finally:
            os._exit(1)


def _main_frame() -> FrameType | None:
    ident = threading.main_thread().ident
    return None if ident is None else sys._current_frames().get(ident)


def _describe(task: asyncio.Task[object]) -> str:
    """Its name, and where it waits, from the outermost function on."""
    places = []
    awaited: object = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        places.append(_place(traceback.extract_stack(frame)[-1]))
        awaited = getattr(awaited, "cr_await", None)
    return f"{task.get_name()} at {' > '.join(places)}"


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} {os.path.basename(frame.filename)}:{frame.lineno}"
