"""An event loop in a thread, so that a test can be plain code while sockets are served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
CALL_SECONDS = 60.0


class Background:
    """The loop; `close` cancels what runs in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._spawned: list[Future[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs it there, and waits for what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_SECONDS)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        """Runs it there, until it ends, is cancelled, or this is closed."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        # Kept, for a loop has no strong hold of its tasks.
        self._spawned.append(future)
        return future

    def check(self) -> None:
        """Raises what one of those raised that should never end."""
        for future in self._spawned:
            if future.done() and not future.cancelled():
                future.result()

    def close(self) -> None:
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # What somebody does not read is never flushed, and so would never be closed.
    for transport in list(asyncio.get_running_loop()._transports.values()):
        transport.abort()
    # What was aborted is closed in the next turns.
    for _ in range(3):
        await asyncio.sleep(0)
