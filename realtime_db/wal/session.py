"""What a replication session has received and acknowledged. No I/O here.

Manual, "55.4. Streaming Replication Protocol": the server sends XLogData (`w`) and keepalives
(`k`); the client sends standby status updates (`r`) with three positions. This module keeps the
positions and makes the updates; `stream` moves the bytes.

Received and acknowledged are two things. A transaction counts as received when its Commit has been
decoded, and as acknowledged when whoever took it says that it has been handed on. Only the second
is reported as flushed, because the server never sends again what is reported so.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from struct import error as StructError
from typing import Final

from realtime_db.errors import DecodeError

XLOG_DATA: Final = 0x77  # w
KEEPALIVE: Final = 0x6B  # k

# 'w', start of the data, current end of WAL, clock: the pgoutput message follows.
XLOG_DATA_HEADER_BYTES: Final = 25

_KEEPALIVE: Final = Struct(">BQqB")
_STATUS: Final = Struct(">cQQQqB")

# Postgres counts time from 2000-01-01 UTC.
_POSTGRES_EPOCH_SECONDS: Final = 946_684_800


class Session:
    """Positions of one `START_REPLICATION`, and when the server wants to hear of them.

    Times are seconds: `now` of a monotonic clock, `clock` since 1970.

    Args:
        start_lsn: where the stream starts; everything before it counts as acknowledged.
        now: the time at the start.
        status_interval_seconds: how often to report when nothing else asks for it. It has to be
            well below `wal_sender_timeout` (60 s by default).
    """

    __slots__ = ("_acknowledged", "_due", "_interval", "_pending", "_received")

    def __init__(
        self, *, start_lsn: int, now: float, status_interval_seconds: float = 10.0
    ) -> None:
        self._received = start_lsn
        self._acknowledged = start_lsn
        self._pending: deque[int] = deque()
        self._interval = status_interval_seconds
        self._due = now + status_interval_seconds

    @property
    def received_lsn(self) -> int:
        """The end of the last whole transaction, or the last keepalive's position if later."""
        return self._received

    @property
    def acknowledged_lsn(self) -> int:
        """Where the server may forget the WAL: never beyond a transaction that is still in hand."""
        return self._acknowledged

    @property
    def status_due_at(self) -> float:
        """The time at which the next status update is due."""
        return self._due

    def transaction_received(self, end_lsn: int, *, has_messages: bool) -> None:
        """Notes a Commit.

        Args:
            end_lsn: `Commit.end_lsn`.
            has_messages: whether somebody has to acknowledge it. A transaction without messages
                is acknowledged together with those before it.
        """
        if has_messages:
            self._pending.append(end_lsn)
        self._advance(end_lsn)

    def acknowledge(self, lsn: int) -> None:
        """Notes that every transaction that ends at or before `lsn` has been handed on.

        An older position changes nothing, and one beyond what has been received acknowledges what
        has been received: what has not been received cannot have been handed on.
        """
        pending = self._pending
        while pending and pending[0] <= lsn:
            self._acknowledged = max(self._acknowledged, pending.popleft())
        self._advance(self._received)

    def _advance(self, received: int) -> None:
        # Positions only grow: some releases of Postgres would move a slot backwards if told so.
        self._received = max(self._received, received)
        if not self._pending:
            self._acknowledged = self._received

    def keepalive(self, frame: bytes, *, now: float, in_transaction: bool) -> None:
        """Takes a keepalive.

        Its position says how far the server has read the WAL. Every transaction that committed
        before it has been sent by then, so with nothing in hand it may be acknowledged: that is
        how a quiet database lets go of its WAL.

        Args:
            frame: `[k, end of WAL, clock, reply requested]`, 18 bytes.
            now: the time.
            in_transaction: whether a transaction has begun that has not ended.

        Raises:
            DecodeError: the frame is not that.
        """
        try:
            kind, end_lsn, _clock, reply = _KEEPALIVE.unpack(frame)
        except StructError as error:
            raise DecodeError(f"a keepalive of {len(frame)} bytes instead of 18") from error
        if kind != KEEPALIVE:
            raise DecodeError(f"a frame of kind {bytes([kind])!r} instead of a keepalive")
        if not in_transaction:
            self._advance(end_lsn)
        if reply:
            self._due = now

    def status_due(self, now: float) -> bool:
        """Whether the server should hear from us now."""
        return now >= self._due

    def status(self, *, now: float, clock: float, request_reply: bool = False) -> bytes:
        """Makes a standby status update, and counts it as sent.

        Args:
            now: the time; the next update is due one interval later.
            clock: the time since 1970.
            request_reply: asks the server for a keepalive.

        Returns:
            `[r, written, flushed, applied, clock, reply requested]`, 34 bytes.
        """
        self._due = now + self._interval
        return _STATUS.pack(
            b"r",
            self._received,
            self._acknowledged,
            self._acknowledged,
            round((clock - _POSTGRES_EPOCH_SECONDS) * 1_000_000),
            request_reply,
        )
