"""Which messages a subscription has had, by their ids. No I/O here.

A resume may bring again what the horizon of its cursor does not show: what was stored in the last
seconds before it, if the server does not know the order of that. So an id is remembered until the
transaction of its message is shown by a horizon that is older than the one in use, for the next
server may be some seconds behind this one. What a resume brings comes without its transaction; of
those ids the last many are remembered, and always all that came since the cursor moved.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from realtime_db.cursors import Cursor, Horizon, InvalidCursor

MAX_IDS: Final = 100_000
KEEP_US: Final = 30_000_000
"""How much older a horizon has to be, in microseconds."""


class Seen:
    """The ids of what may come again."""

    def __init__(self) -> None:
        # id -> transaction; 0 if it is not known
        self._ids: dict[str, int] = {}
        self._prefix = ""
        self._horizons: deque[Horizon] = deque()

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, cursor: str = "") -> None:
        """A message came.

        Args:
            id: its own.
            cursor: its own, if it has one.
        """
        parsed = _parse(cursor) if cursor else None
        self._ids[id] = 0 if parsed is None else parsed.transaction_id

    def moved(self, cursor: str) -> None:
        """A resume would use this cursor from now on."""
        prefix = cursor.partition(".")[0]
        if prefix != self._prefix:
            self._prefix = prefix
            parsed = _parse(cursor)
            if parsed is not None:
                self._forget(parsed.horizon)
        while len(self._ids) > MAX_IDS:
            del self._ids[next(iter(self._ids))]

    def _forget(self, now: Horizon) -> None:
        horizons = self._horizons
        if horizons and horizons[-1].cluster != now.cluster:  # its numbers mean nothing there
            horizons.clear()
            self._ids = dict.fromkeys(self._ids, 0)
        horizons.append(now)
        old = None
        while horizons[0].taken_us <= now.taken_us - KEEP_US:
            old = horizons.popleft()
        if old is not None:
            shows = old.seen.shows
            self._ids = {id: number for id, number in self._ids.items() if not shows(number)}


def _parse(cursor: str) -> Cursor | None:
    try:
        return Cursor.parse(cursor)
    except InvalidCursor:
        return None
