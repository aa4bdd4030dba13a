"""What the connections of a server share, and whom they ask. No I/O here.

Above is the server, which puts it together; below are the connections and channels. `Keys`,
`Policies` and `Stored` are what the parts with I/O have to offer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, Protocol

from realtime_db.auth.access import Access, WriteAccess
from realtime_db.auth.tokens import Claims
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Replayed
from realtime_db.protocol.join import Replay
from realtime_db.protocol.limits import Rate
from realtime_db.protocol.presence import Presences
from realtime_db.settings import Settings
from realtime_db.wheel import Wheel

COMMITTED: Final = 4096
"""How many transactions may be on their way from the WAL to the snapshots at once."""

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


class Stored(Protocol):
    """What reads stored messages; `stored` in the server."""

    async def latest(self, topic: str, replay: Replay, committed: Collection[int] = ()) -> Replayed:
        """What there is, of all `committed` transactions at least; raises CheckFailed."""


class WalReader(Protocol):
    """What follows the WAL; `wal.stream` in the server."""

    @property
    def slot_name(self) -> str:
        """The slot that it reads."""

    @property
    def received_lsn(self) -> int:
        """How far it has got."""


class Services:
    """What the connections of a server share.

    Attributes:
        presence_hub: brings presence to those on a topic who may know.
        joins: how many of them there may be.
        presences: who is where.
        dropped_too_large: broadcasts of clients over the size limit.
        slow_clients: those that were thrown out.
        committed: the latest transactions that the WAL brought, oldest first. It may bring one
            before queries see it: a commit is in the WAL first, and then in their snapshots.
        restarting: whether the server is about to end.
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
        self.presence_hub = Hub(hub.call_soon)
        self.keys = keys
        self.policies = policies
        self.stored = stored
        self.wheel = wheel
        self.now = now
        self.log = log
        self.joins = Rate(settings.max_joins_per_second)
        self.presences = Presences()
        self.dropped_too_large = 0
        self.slow_clients = 0
        self.restarting = False
        self.reader: WalReader | None = None
        self.committed: deque[int] = deque(maxlen=COMMITTED)
        self._replicating = False
        self._awaiting_replication: dict[Callable[[], None], None] = {}

    @property
    def replicating(self) -> bool:
        """Whether the database stream runs."""
        return self._replicating

    @replicating.setter
    def replicating(self, replicating: bool) -> None:
        self._replicating = replicating
        if replicating:
            self.committed.clear()  # of another server, if there was a failover
            waiting, self._awaiting_replication = self._awaiting_replication, {}
            for tell in waiting:
                tell()

    def await_replication(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once the database stream runs, which may be now."""
        if self._replicating:
            tell()
        else:
            self._awaiting_replication[tell] = None

    def forget_replication(self, tell: Callable[[], None]) -> bool:
        """Takes `await_replication` back; whether `tell` was still waiting."""
        return self._awaiting_replication.pop(tell, tell) is None
