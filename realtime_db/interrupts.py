"""Ctrl-C: it ends a command with exit status 130, whenever it comes, and nothing half done.

During an import, Python shows a traceback for it, or even loses it. So Ctrl-C ends the process at
once, unless there is something to bring to an end (a transaction, a private Postgres, a slot): that
is cancelled first.

Above: `__main__`, which begins with it, and the commands. It imports little, for it comes first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

EXIT_STATUS: Final = 130

Result = TypeVar("Result")


def end_at_once() -> None:
    """From now on Ctrl-C ends the process at once, unless whoever started it wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os._exit(EXIT_STATUS)


@contextmanager
def cancelling() -> Iterator[None]:
    """In the block, Ctrl-C is KeyboardInterrupt: asyncio cancels what runs; then the process ends.

    Raises:
        SystemExit: after Ctrl-C.
    """
    at_once = signal.getsignal(signal.SIGINT) is _end
    try:
        if at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        sys.exit(EXIT_STATUS)
    finally:
        if at_once:
            signal.signal(signal.SIGINT, _end)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, for what a command does; Ctrl-C cancels it.

    Raises:
        SystemExit: after Ctrl-C.
    """
    import asyncio

    with asyncio.Runner() as runner:
        runner.get_loop()  # half a loop would complain
        with cancelling():
            return runner.run(work)
