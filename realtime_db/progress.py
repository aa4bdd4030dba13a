"""What has been handed on, and the cursors that say so. No I/O here.

Above is `following`, which tells it what the source of messages brought and what the database said
of its transactions; below are the channels and streams, which give the cursors to their clients,
and `stored`, which asks how what is stored was ordered.

    look      the database was asked which transactions have ended, and where the source was then
    handed    messages of a transaction went to the hub
    passed    the source has brought all up to a place
    settled   what went to the hub has been written to all sockets

A horizon may be used once the source has passed the place where it was when the horizon was taken:
what had committed by then has been delivered by then.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from realtime_db.cursors import END, Horizon, Snapshot, join

MAX_KNOWN: Final = 100_000
"""Of how many transactions the order is remembered."""

CLOCK_SLACK_US: Final = 10_000_000
"""A clock may be put back a little; rows would then be older than their transactions."""

_MAX_LOOKS: Final = 10_000


class Known(NamedTuple):
    """In which order transactions were delivered, as far as this is remembered.

    Attributes:
        transaction_ids: those that the order is known of.
        orders: theirs, LSNs of commits or numbers of polls.
        before: a transaction that is not among them was delivered earlier if this shows it, and
            else has not been delivered yet. None if nothing is remembered.
    """

    transaction_ids: list[int]
    orders: list[int]
    before: Snapshot | None


class Progress:
    """Of one server.

    Args:
        source: the kind of its cursors; see `Cursor.source`.

    Attributes:
        horizon: the last that may be used for messages that go out now; None until there is one.
    """

    def __init__(self, source: str = "w") -> None:
        self.source = source
        self._reset(0)

    def _reset(self, cluster: int) -> None:
        self.cluster = cluster
        self.horizon: Horizon | None = None
        self._horizon_at = 0
        self._prefix = ""
        self._now = ""
        self._waiting: deque[tuple[int, Horizon]] = deque()
        # `(xmax, taken)`: no transaction from xmax on had begun to write by then.
        self._looks: deque[tuple[int, int]] = deque()
        self._orders: dict[int, int] = {}
        self._last = 0
        # Horizons that were passed, of which one shows what gets forgotten.
        self._passed: deque[tuple[int, Snapshot]] = deque()
        self._before: Snapshot | None = None

    def begin(self, cluster: int, source: str | None = None) -> None:
        """A source begins, or begins again.

        What was known stays known, unless it is of another cluster, whose transaction ids and LSNs
        mean nothing here. After a failover to a standby call it with another `source` or `cluster`,
        or use a new one, if orders may have gone back.

        Args:
            cluster: the lower 32 bits of the database's system identifier.
            source: the kind of cursors; None for the same.
        """
        if cluster != self.cluster or (source is not None and source != self.source):
            self._reset(cluster)
            self.source = source or self.source

    # What the database and the source say

    def look(self, seen: Snapshot, *, at: int, taken_us: int) -> None:
        """The database was asked.

        Args:
            seen: which transactions had ended.
            at: where the source's end was after that: an LSN, or the number of the next poll.
                Everything that `seen` shows comes before it.
            taken_us: when `seen` was taken, in microseconds since 1970, by the database's clock.
        """
        looks = self._looks
        looks.append((seen.xmax, taken_us))
        while len(looks) > 1 and looks[1][0] <= seen.xmin:
            looks.popleft()
        if len(looks) > _MAX_LOOKS:
            self._looks = looks = deque(islice(looks, 0, None, 2))
        xmax, taken = looks[0]
        since = max(1, min(taken, taken_us) - CLOCK_SLACK_US) if xmax <= seen.xmin else 0
        self._waiting.append((at, Horizon(self.cluster, seen, taken_us, since)))

    def handed(self, transaction_id: int, order: int) -> None:
        """Messages of a transaction go to the hub; orders never go back.

        Args:
            transaction_id: its id.
            order: the LSN of its commit, or the number of the poll that found it.
        """
        if transaction_id == self._last:
            return
        self._last = transaction_id
        if self._waiting:
            self.passed(order)
        self._orders[transaction_id] = order
        if len(self._orders) > MAX_KNOWN:
            self._forget()

    def passed(self, at: int) -> None:
        """The source has brought, and the hub been given, all that comes before a place."""
        waiting = self._waiting
        if not waiting or waiting[0][0] > at:
            return
        while waiting and waiting[0][0] <= at:
            self._horizon_at, self.horizon = waiting.popleft()
        assert self.horizon is not None
        self._prefix = self.horizon.prefix(self.source)
        if self._before is None:
            self._before = self.horizon.seen
        elif not self._passed or len(self._orders) > MAX_KNOWN // 2:
            self._passed.append((self._horizon_at, self.horizon.seen))
            if len(self._passed) > _MAX_LOOKS:
                self._passed = deque(islice(self._passed, 0, None, 2))

    def settled(self, order: int) -> None:
        """All that went to the hub has been written to the sockets.

        Args:
            order: that of the last message of which this is true; all before it has been, too.
        """
        if self._prefix:
            self._now = join(self._prefix, order, END, END)

    def _forget(self) -> None:
        """Forgets the older half, and remembers a moment that shows it."""
        while self._passed:
            at, seen = self._passed.popleft()
            old = [number for number, order in self._orders.items() if order < at]
            if not old:
                continue
            for number in old:
                del self._orders[number]
            self._before = seen
            if len(self._orders) <= MAX_KNOWN // 2:
                return

    # Cursors

    def cursor(self, order: int, transaction_id: int, position: int) -> str:
        """The text of the cursor after a message, for those who follow its topic only.

        Empty until there is a horizon.
        """
        if not self._prefix:
            return ""
        return join(self._prefix, order, transaction_id, position)

    @property
    def now(self) -> str:
        """The text of the cursor of who has been given all so far, on any topic.

        Empty until there is a horizon.
        """
        return self._now

    # Orders

    def unseen(self) -> list[int]:
        """Transactions that were handed on, and that a query of now may not see yet.

        A commit is in the WAL first and then in the snapshots of queries.
        """
        found = []
        for number in reversed(self._orders):
            if self._orders[number] < self._horizon_at:
                break
            found.append(number)
        return found

    def known(self, seen: Snapshot) -> Known:
        """The order of what a snapshot does not show."""
        ids = [number for number in self._orders if not seen.shows(number)]
        return Known(ids, [self._orders[number] for number in ids], self._before)
