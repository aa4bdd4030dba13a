"""Cursors: where a subscriber goes on after it was away. No I/O here.

Above are the transports, which send them to clients, and `progress`, which makes them; below is
`stored`, which finds what came after one. A cursor says what its holder has been given:

- all that a snapshot of the database shows (`Horizon`): whole transactions, by their ids, so that
  one that was open then and commits later is not missed;
- and, of what it does not show, all up to a message, in the order in which it was delivered.

The second part only keeps duplicates away. A server that no longer knows that order goes by the
first part alone, and ids make the duplicates visible.

To clients a cursor is opaque text. It is not signed: whoever makes one up sees what a policy lets
him see anyway.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from realtime_db.errors import RealtimeDbError

MAX_BYTES: Final = 180
"""Of a cursor's text: with an id, it has to fit into the metadata of a binary frame, 255 bytes."""

_MAX_RUNNING_BYTES: Final = 56
_LAST: Final = Struct(">QQQ")
_LIMIT: Final = 1 << 64

END: Final = _LIMIT - 1


class InvalidCursor(RealtimeDbError):
    """A text that no server of ours made."""


class Snapshot(NamedTuple):
    """Which transactions a query has seen the work of, as in `pg_current_snapshot()`.

    Attributes:
        xmin: all before it had ended.
        xmax: none from here on had.
        running: those in between that had not ended.
    """

    xmin: int
    xmax: int
    running: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Reads `xmin:xmax:xip,…`."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(",") if running else ())))

    def __str__(self) -> str:
        """As Postgres writes it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def shows(self, number: int) -> bool:
        """Whether the work of a transaction, which has committed by now, was there for the query.

        Args:
            number: its id; 0, that of what is not stored, is never shown.
        """
        return 0 < number < self.xmax and (number < self.xmin or number not in self.running)


class Horizon(NamedTuple):
    """A moment of a database, and what had committed by then.

    Attributes:
        cluster: which one: the lower 32 bits of its system identifier. Transaction ids of another
            cluster mean nothing.
        seen: what had committed.
        taken_us: when, in microseconds since 1970 UTC by the clock of the database.
        since_us: nothing that had not committed by then was inserted before this, as well in
            microseconds; 0 if that is not known.
    """

    cluster: int
    seen: Snapshot
    taken_us: int
    since_us: int = 0

    def prefix(self, source: str) -> str:
        """The first part of the texts of all cursors of this horizon."""
        seen = self.seen
        xmax = seen.xmax
        running = bytearray()
        count, last = 0, seen.xmin
        for number in sorted(seen.running):
            if len(running) > _MAX_RUNNING_BYTES:
                # No room: as if none from here on had ended. It only makes duplicates.
                xmax = number
                break
            running += _varint(number - last)
            count, last = count + 1, number
        back = self.taken_us - self.since_us + 1 if self.since_us else 0
        numbers = (self.cluster, self.taken_us, max(0, back), seen.xmin, xmax - seen.xmin, count)
        return source + _encode(b"".join(map(_varint, numbers)) + running)


class Cursor(NamedTuple):
    """Where to go on.

    Attributes:
        source: how the order was made: `w`, by the WAL, or `p`, by polling.
        horizon: all that it shows has been delivered.
        order: of the last message that was delivered: the LSN of its commit, or the number of the
            poll that found it.
        transaction_id: of the same message, which breaks ties.
        position: of the same message, within its transaction.
    """

    source: str
    horizon: Horizon
    order: int = 0
    transaction_id: int = 0
    position: int = 0

    def __str__(self) -> str:
        """At most `MAX_BYTES` of ASCII, safe in JSON, URLs and headers."""
        return join(
            self.horizon.prefix(self.source), self.order, self.transaction_id, self.position
        )

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads the text of a cursor.

        Raises:
            InvalidCursor: it is none.
        """
        try:
            if len(text) > MAX_BYTES or text[:1] not in ("w", "p"):
                raise ValueError
            first, last = text[1:].split(".")
            order, transaction_id, position = _LAST.unpack(_decode(last))
            return cls(text[0], _horizon(_decode(first)), order, transaction_id, position)
        except (ValueError, ArithmeticError, IndexError, StructError) as error:
            raise InvalidCursor("this is no cursor of a message") from error


def cluster_id(system_identifier: int, wal_file: str) -> int:
    """Tells clusters apart, and what becomes of one that is restored or fails over.

    After each of these the WAL has a new timeline, on which a transaction's id may be that of
    another one on the old.

    Args:
        system_identifier: of the cluster.
        wal_file: the name of a file of its WAL, which begins with the timeline.
    """
    return (system_identifier ^ int(wal_file[:8], 16) * 0x9E3779B1) & 0xFFFFFFFF


def join(prefix: str, order: int, transaction_id: int, position: int) -> str:
    """The text of a cursor, from that of its horizon: once for each message, so it is fast."""
    return f"{prefix}.{_encode(_LAST.pack(order, transaction_id, position))}"


def _horizon(data: bytes) -> Horizon:
    numbers = _varints(data)
    cluster, taken, back, xmin, width, count, *deltas = numbers
    if len(deltas) != count or cluster >= 1 << 32 or xmin + width >= _LIMIT:
        raise ValueError
    running, last = [], xmin
    for delta in deltas:
        last += delta
        running.append(last)
    if running and running[-1] >= xmin + width:
        raise ValueError
    # Postgres takes no ids that it never gives: the lower half counts from 3.
    if any(number & 0xFFFFFFFF < 3 for number in (xmin, xmin + width, *running)):
        raise ValueError
    # Beyond these years a timestamp is none.
    if not 0 <= taken - max(0, back - 1) <= taken < 1 << 57:
        raise ValueError
    since = taken - back + 1 if back else 0
    return Horizon(cluster, Snapshot(xmin, xmin + width, frozenset(running)), taken, since)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varints(data: bytes) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if number >= _LIMIT:
                raise ValueError
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError
    return numbers


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    if not text.isascii() or not text.replace("-", "").replace("_", "").isalnum():
        raise ValueError
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
