"""What the connections of a server share, and whom they ask. No I/O here.

Above is the server, which puts it together; below are the connections and channels. `Keys`,
`Policies` and `Stored` are what the parts with I/O have to offer.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from realtime_db.auth.access import Access, WriteAccess
from realtime_db.auth.tokens import Claims
from realtime_db.cursors import Cursor, Snapshot
from realtime_db.hub import Hub
from realtime_db.progress import Known, Progress
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.join import Replay
from realtime_db.protocol.limits import Limits, Rate
from realtime_db.protocol.persist import OwnMessages, ToStore
from realtime_db.protocol.presence import Presences
from realtime_db.protocol.rechecks import Rechecks
from realtime_db.settings import Settings
from realtime_db.wheel import Wheel

Extension = Literal["broadcast", "presence"]


class Keys(Protocol):
    """What verifies tokens; `auth.keys` in the server."""

    def verify_known(self, token: str, now: float) -> Claims:
        """With the keys that there are; raises TokenError."""

    async def verify(self, token: str, now: float) -> Claims:
        """With new keys, if it names one that is not known; raises TokenError."""


class Policies(Protocol):
    """What asks the policies; `auth.policies` in the server."""

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        """Raises CheckFailed."""

    async def write_access(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None = None,
        extension: Extension = "broadcast",
    ) -> WriteAccess:
        """Raises CheckFailed."""


class Polls(Protocol):
    """What asks the table for what is new; `polling` in the server."""

    async def checkpoint(self) -> Snapshot:
        """What has an order by now, and so may be sent again; raises RealtimeDbError."""

    async def known(
        self, connection: Any, transaction_ids: Collection[int], since_us: int
    ) -> Known:
        """The order of transactions, asked in the transaction that reads their messages."""


class Stored(Protocol):
    """What reads stored messages; `stored` in the server.

    Attributes:
        polls: what tells the order of what is stored; None if the WAL does.
    """

    polls: Polls | None

    async def latest(self, topic: str, replay: Replay, services: Services) -> Replayed:
        """What there is, of all that was handed on at least; raises CheckFailed."""

    def resume(
        self,
        topics: Collection[str],
        *,
        private: bool,
        cursor: Cursor,
        services: Services,
        subscriber: Subscriber,
    ) -> AbstractAsyncContextManager[Resumption]:
        """What came after a cursor, while the block lasts; raises CheckFailed."""


class Subscriber(Protocol):
    """Who is sent what is stored: a channel, or a stream of events."""

    def hold(self) -> None:
        """Keeps what is published from now on."""

    def skip(self, seen: Snapshot) -> None:
        """Forgets of it what a snapshot shows: that comes from the table."""


class Resumption(Protocol):
    """What came after a cursor, up to a moment."""

    @property
    def seen(self) -> Snapshot:
        """What there was at that moment. The WAL may bring it later."""

    @property
    def cursor(self) -> str:
        """Says that all of it has been given."""

    @property
    def gap(self) -> str | None:
        """Messages up to this time may be missing."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing came."""

    def pages(self) -> AsyncIterator[list[Broadcast]]:
        """The messages in their order; raises CheckFailed."""


class WalReader(Protocol):
    """What follows the WAL; `wal.stream` in the server."""

    @property
    def slot_name(self) -> str:
        """The slot that it reads."""

    @property
    def received_lsn(self) -> int:
        """How far it has got."""


class RevocationRow(Protocol):
    """What `realtime.revoke` wrote, as it comes back; `wal.pgoutput` in the server."""

    @property
    def payload(self) -> bytes | None: ...

    @property
    def transaction_id(self) -> int: ...


class Services:
    """What the connections of a server share.

    Attributes:
        presence_hub: brings presence to those on a topic who may know.
        joins: how many of them there may be.
        presences: who is where.
        limits: where everything goes that is over one.
        progress: what has been handed on of what is stored.
        rechecks: who is on private channels; `rechecking` asks the policies about them again.
        to_store: what clients want stored; `storing` does it.
        own: which of the stored messages that come back are whose.
        restarting: whether the server is about to end.
        standby: whether another server leads; clients are sent away then.
        leading: whether this one does, or needs no leader.
        slot_state: why messages do not come, while they do not.
        recoveries: how often a slot was lost, and what it did not bring came from the table.
        gaps: how often some of that was no longer stored.
        resume_gaps: how often somebody resumed to what may be no longer stored.
        reader: what follows the WAL; None while nothing does.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        hub: Hub,
        keys: Keys,
        policies: Policies,
        stored: Stored,
        wheel: Wheel,
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.presence_hub = Hub(
            hub.call_soon, max_per_second=settings.max_deliveries_per_second, now=now
        )
        self.keys = keys
        self.policies = policies
        self.stored = stored
        self.wheel = wheel
        self.now = now
        self.log = log
        self.joins = Rate(settings.max_joins_per_second)
        self.presences = Presences()
        self.limits = Limits(wheel, now, log)
        self.restarting = self.standby = self.leading = False
        self.slot_state = "the database is not followed"
        self.recoveries = self.gaps = self.resume_gaps = 0
        self.reader: WalReader | None = None
        self.progress = Progress()
        self.rechecks = Rechecks(settings.recheck_seconds)
        self.to_store = ToStore()
        self.own = OwnMessages()
        self._replicating = self._has_replicated = False
        self._awaiting_replication: dict[Callable[[], None], None] = {}

    @property
    def replicating(self) -> bool:
        """Whether the database stream runs."""
        return self._replicating

    @replicating.setter
    def replicating(self, replicating: bool) -> None:
        self._replicating = replicating
        if replicating:
            if self._has_replicated:
                self.rechecks.ask_all()
            self._has_replicated = True
            waiting, self._awaiting_replication = self._awaiting_replication, {}
            for tell in waiting:
                tell()

    def fits(self, message_id: str, payload_bytes: int, topic: str) -> bool:
        """Whether a stored message may be delivered; counts one that is too large."""
        if payload_bytes <= self.settings.max_payload_bytes:
            return True
        text = "message %s of %d bytes to %s was not delivered"
        values = (message_id, payload_bytes, topic)
        self.limits.over("max_payload_bytes", text, *values, stored=True)
        return False

    def missed(self, topics: Collection[str], before: str) -> None:
        """Counts somebody who resumes, and is told that messages may be missing.

        Args:
            topics: the sub-topics.
            before: the time up to which, as in ISO 8601.
        """
        self.resume_gaps += 1
        text = "whoever resumed %.300s was told that messages before %s may be missing"
        self.log.info(text, ", ".join(topics), before)

    def revoke(self, row: RevocationRow) -> None:
        """Asks the policies again about those whom a revocation is about."""
        self.rechecks.revoke(row.payload, row.transaction_id)

    def await_replication(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once the database stream runs, which may be now."""
        if self._replicating:
            tell()
        else:
            self._awaiting_replication[tell] = None

    def forget_replication(self, tell: Callable[[], None]) -> bool:
        """Takes `await_replication` back; whether `tell` was still waiting."""
        return self._awaiting_replication.pop(tell, tell) is None
