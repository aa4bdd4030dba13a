"""Which partitions to make, to finish detaching and to drop. No I/O here.

    today, what is there, the policy ──► make_plan ──► actions, in the order to do them

`maintenance` looks into the database, asks for a plan and carries it out. A day is a UTC day and
has one partition. `realtime.maintain()` follows the same rules in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum

_DAY = timedelta(days=1)


class State(Enum):
    """Where a partition stands between made and gone."""

    ATTACHED = "attached"
    """Messages go there."""
    DETACHING = "detaching"
    """A `detach … concurrently` was begun and not finished; no other can begin meanwhile."""
    DETACHED = "detached"
    """No partition any more, or not yet."""


class Kind(Enum):
    """What to do with a partition."""

    CREATE = "create"
    """Make it, or attach it again if there is a detached table."""
    FINALIZE = "finalize"
    """Finish the detach that was interrupted."""
    DROP = "drop"
    """Detach it if it is attached, and drop it with its messages."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A row of `realtime.partitions()`.

    Attributes:
        name: `messages_YYYY_MM_DD`.
        day: the UTC day it holds.
        state: where it stands.
        leaving: we began to remove it. A detached table without this mark is somebody's archive.
    """

    name: str
    day: date
    state: State = State.ATTACHED
    leaving: bool = False

    @property
    def kept_by_hand(self) -> bool:
        """Somebody detached it to keep it: not ours to drop."""
        return self.state is State.DETACHED and not self.leaving


@dataclass(frozen=True, slots=True)
class Policy:
    """The row of `realtime.settings`.

    Attributes:
        retention_days: whole days that messages are kept before their partition is dropped.
        days_ahead: days after today that have a partition.
    """

    retention_days: int = 3
    days_ahead: int = 7

    def wanted(self, today: date) -> list[date]:
        """Today and the days ahead."""
        return [today + n * _DAY for n in range(self.days_ahead + 1)]

    def keep_from(self, today: date) -> date:
        """The oldest day that is kept."""
        return today - self.retention_days * _DAY


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do with the partition of one day."""

    kind: Kind
    day: date

    @property
    def name(self) -> str:
        """The partition's name."""
        return partition_name(self.day)


def partition_name(day: date) -> str:
    """`messages_YYYY_MM_DD`."""
    return f"messages_{day.isoformat().replace('-', '_')}"


def make_plan(today: date, existing: Iterable[Partition], policy: Policy) -> tuple[Action, ...]:
    """What to do, in this order.

    First the days that have no partition, the nearest first, since a day without one loses
    messages; then the interrupted detaches, which may have to wait for others' transactions; then
    what has to be attached again; at last the drops, the oldest first.

    Args:
        today: the UTC day of the server's clock.
        existing: what `realtime.partitions()` lists.
        policy: what `realtime.settings` says.

    Returns:
        The actions; none if all is as it should be. Carried out in full, the next plan for the
        same day is empty.
    """
    known = {partition.day: partition for partition in existing}
    keep_from = policy.keep_from(today)
    wanted = [
        day
        for day in policy.wanted(today)
        if day not in known or known[day].state is not State.ATTACHED
    ]
    # Retention may have been raised while they were on their way out.
    spared = [
        day
        for day, partition in sorted(known.items())
        if keep_from <= day < today and partition.leaving and partition.state is not State.ATTACHED
    ]
    detaching = [day for day, found in sorted(known.items()) if found.state is State.DETACHING]
    doomed = [
        day
        for day, partition in sorted(known.items())
        if day < keep_from and not partition.kept_by_hand
    ]
    blocked = set(detaching)
    return (
        *(Action(Kind.CREATE, day) for day in wanted if day not in blocked),
        *(Action(Kind.FINALIZE, day) for day in detaching),
        *(Action(Kind.CREATE, day) for day in wanted if day in blocked),
        *(Action(Kind.CREATE, day) for day in spared),
        *(Action(Kind.DROP, day) for day in doomed),
    )


def days_left(today: date, existing: Iterable[Partition]) -> int:
    """How many days after today have a partition, without a gap.

    Returns:
        0 if only today has one, and -1 if not even today has: then no message can be sent.
    """
    attached = {partition.day for partition in existing if partition.state is State.ATTACHED}
    count = 0
    while today + count * _DAY in attached:
        count += 1
    return count - 1
