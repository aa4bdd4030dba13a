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

A server that begins knows the order only of what its source brings. So the source is kept from
forgetting what the last horizon does not show: those who resume with it after a crash are asked
about the order of just that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import islice, takewhile
from operator import itemgetter
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
        # Ids to orders, in the order of the orders; and those that `horizon` does not show.
        self._orders: dict[int, int] = {}
        self._unseen: list[int] = []
        self._forget_at = MAX_KNOWN
        self._last = (0, 0, 0)
        # `(at, seen)` of horizons that were passed.
        self._passed: list[tuple[int, Snapshot]] = []
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
            self._looks = deque(islice(looks, 0, None, 2))
        self._waiting.append((at, self.horizon_of(seen, taken_us)))

    def horizon_of(self, seen: Snapshot, taken_us: int) -> Horizon:
        """What a snapshot says, with what is known of the times of transactions.

        Args:
            seen: no older than the last look.
            taken_us: when it was taken.
        """
        since = 0
        for xmax, taken in self._looks:
            if xmax > seen.xmin:
                break
            since = max(1, min(taken, taken_us) - CLOCK_SLACK_US)
        return Horizon(self.cluster, seen, taken_us, since)

    def handed(self, transaction_id: int, order: int, position: int) -> None:
        """A message goes to the hub; orders never go back.

        Args:
            transaction_id: of the transaction that stored it; 0 if that is not known.
            order: the LSN of its commit, or the number of the poll that found it.
            position: of the message, within the transaction.
        """
        known = transaction_id == self._last[1]
        self._last = (order, transaction_id, position)
        if known:
            return
        if self._waiting:
            self.passed(order)
        if not transaction_id:
            return
        self._unseen.append(transaction_id)
        self._orders[transaction_id] = order
        if len(self._orders) > self._forget_at:
            self._forget()

    def passed(self, at: int) -> None:
        """The source has brought, and the hub been given, all that comes before a place."""
        waiting = self._waiting
        if not waiting or waiting[0][0] > at:
            return
        while waiting and waiting[0][0] <= at:
            self._horizon_at, self.horizon = waiting.popleft()
        assert self.horizon is not None
        shows = self.horizon.seen.shows
        self._unseen = [number for number in self._unseen if not shows(number)]
        self._prefix = self.horizon.prefix(self.source)
        if self._before is None:
            self._before = self.horizon.seen
        self._passed.append((self._horizon_at, self.horizon.seen))
        if len(self._passed) > _MAX_LOOKS:
            self._passed = self._passed[::2]

    def settled(self, order: int) -> None:
        """All that went to the hub and comes before a place has been written to the sockets.

        Args:
            order: the place. What has just that order is not meant: where one commit ends, the
                next may begin.
        """
        if self._prefix:
            self._now = join(self._prefix, order, 0, 0)

    def _forget(self) -> None:
        """Forgets about the older half, as far as a moment is remembered that shows it."""
        orders = self._orders
        middle = next(islice(orders.values(), len(orders) // 2, None))
        moment = bisect_right(self._passed, middle, key=itemgetter(0)) - 1
        if moment >= 0:
            at, self._before = self._passed[moment]
            for number in [*takewhile(lambda number: orders[number] < at, orders)]:
                if self._before.shows(number):  # one may have waited for a standby
                    del orders[number]
            del self._passed[:moment]
        self._forget_at = max(MAX_KNOWN, len(orders) + MAX_KNOWN // 10)

    # Cursors

    def cursor(self, order: int, transaction_id: int, position: int) -> str:
        """The text of the cursor after a message, for those who follow its topic only.

        Empty until there is a horizon, and for what no transaction stored.
        """
        if not self._prefix or not transaction_id:
            return ""
        return join(self._prefix, order, transaction_id, position)

    @property
    def now(self) -> str:
        """The text of the cursor of who has been given all so far, on any topic.

        Empty until there is a horizon.
        """
        return self._now

    @property
    def here(self) -> str:
        """The text of the cursor of who begins to follow a topic, and gets all from now on.

        Empty until the database was asked once.
        """
        if self._prefix:
            return join(self._prefix, *self._last)
        if self._waiting:
            # Whatever committed after that look, it is only more than he is owed.
            return join(self._waiting[-1][1].prefix(self.source), 0, 0, 0)
        return ""

    # Orders

    @property
    def order(self) -> int:
        """That of the last message that was handed on."""
        return self._last[0]

    def order_of(self, transaction_id: int) -> int | None:
        """That of a transaction; None if it is not remembered, or not handed on yet."""
        return self._orders.get(transaction_id)

    def unseen(self) -> list[int]:
        """Transactions that were handed on, and that a query of now may not see yet.

        A commit is in the WAL first and then in the snapshots of queries.
        """
        return self._unseen.copy()

    @property
    def forgettable(self) -> int:
        """The source may forget what comes before this order: every horizon from now on shows it.

        Those of clients may be older. What they say is still right, but of what was delivered since
        then some may come twice after a crash.
        """
        return self._orders[self._unseen[0]] if self._unseen else END

    def known(self, seen: Snapshot) -> Known:
        """The order of what a snapshot does not show, as far as it was handed on."""
        orders = self._orders
        ids = [number for number in seen.running if number in orders]
        # The others are at the end of what is remembered. Of two moments before the snapshot, they
        # had not begun to write by the later one, so they come after the place of the earlier.
        later = bisect_right(self._passed, seen.xmax, key=_xmax) - 1
        first = self._passed[later - 1][0] if later > 0 else 0
        for number in reversed(orders):
            if orders[number] < first:
                break
            if number >= seen.xmax:
                ids.append(number)
        return Known(ids, [orders[number] for number in ids], self._before)


def _xmax(passed: tuple[int, Snapshot]) -> int:
    return passed[1].xmax
