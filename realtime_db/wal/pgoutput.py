"""Bytes of the `pgoutput` plugin in, messages of `realtime.messages` out. No I/O here.

Below is `stream`, which takes these bytes out of COPY BOTH frames; above is whoever hands messages
on. The format is that of the manual, "55.9. Logical Replication Message Formats", with
`proto_version` 1: a transaction arrives whole, after it committed, as Begin, changes, Commit.

A `Decoder` raises `DecodeError` on bytes that the manual does not allow, and nothing else.

It runs once per message on the hot path, which explains its shape: one pass over the columns, no
object per column, and `Message` is a named tuple, because a frozen dataclass of this size takes
1.5 us to make where the tuple takes 0.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

from realtime_db.errors import DecodeError

_BEGIN: Final = Struct(">QqI")
_COMMIT: Final = Struct(">BQQq")
_INSERT: Final = Struct(">IcH")
_RELATION_TAIL: Final = Struct(">cH")
_COLUMN: Final = Struct(">Ii")
_VALUE: Final = Struct(">xI")
_LOGICAL: Final = Struct(">BQ")
_UINT32: Final = Struct(">I")

# Messages that carry nothing for us: Origin, Type, Truncate, Update, Delete. The publication only
# publishes inserts, but somebody may have altered it, and that must not stop the messages.
_IGNORED: Final = frozenset(b"OYTUD")

# The columns without which a row is no message. The others came with releases of ours, so that
# a table made by Supabase Realtime can be read too.
_REQUIRED: Final = ("topic", "extension", "payload", "event", "private", "inserted_at", "id")
_OPTIONAL: Final = ("binary_payload", "transaction_id", "position")


REVOCATIONS: Final = "realtime:revocations"

# A row of realtime.messages, called m: what `Message.of_row` reads, and whether it is for anybody.
COLUMNS: Final = """
    m.topic, m.event, m.payload::text, m.private, m.id::text, m.inserted_at::text,
    m.binary_payload, m.transaction_id::text, m.position, m.extension
"""
SENDABLE: Final = """
    m.private is not null
    and (m.payload is not null or m.binary_payload is not null)
    and (m.extension = 'broadcast' and m.event is not null or m.extension = 'revocation')
"""
"""The topic of the rows that `realtime.revoke` writes."""


class Message(NamedTuple):
    """One committed row of `realtime.messages`, ready to be spliced into a frame.

    Attributes:
        topic: without the `realtime:` prefix that clients put on the wire.
        event: the event's name.
        payload: the JSON text in UTF-8 as Postgres prints it, never parsed, so that every digit of
            a number survives; None for a binary message.
        private: whether only private subscribers get it.
        id: the row's uuid; clients see it as `meta.id`.
        inserted_at: UTC, as Postgres prints it: `2026-08-01 12:34:56.789012`.
        binary_payload: the bytes of a binary message, else None.
        transaction_id: the writer's 64-bit transaction id; 0 if the table has no such column, or
            the row says another one, as one that was restored, replicated or forged.
        position: grows within a transaction; 0 if the table has no such column.
        commit_lsn: where the transaction's commit record begins; equal for all its messages and
            growing from one transaction to the next. To acknowledge, use `Commit.end_lsn`.
        extension: `broadcast`; or `revocation`, which is for servers and not for subscribers. Its
            event is empty, and `payload` says whom to ask the policies about (`realtime.revoke`).
    """

    topic: str
    event: str
    payload: bytes | None
    private: bool
    id: str
    inserted_at: str
    binary_payload: bytes | None
    transaction_id: int
    position: int
    commit_lsn: int
    extension: str = "broadcast"

    @classmethod
    def of_row(cls, row: tuple[Any, ...], commit_lsn: int) -> Message:
        """A message that was read from the table and not from the WAL.

        Args:
            row: `COLUMNS`.
            commit_lsn: what stands for it.
        """
        topic, event, payload, private, row_id, inserted_at, binary, number, position, kind = row
        text = None if payload is None else payload.encode()
        return cls(
            topic, event or "", text, private, row_id, inserted_at, binary,
            int(number or 0), position or 0, commit_lsn, kind,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction begins; its changes follow.

    Attributes:
        commit_lsn: where its commit record begins.
        committed_at: microseconds since 2000-01-01 UTC.
        xid: the low 32 bits of its transaction id.
    """

    commit_lsn: int
    committed_at: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction is complete.

    Attributes:
        commit_lsn: where its commit record begins.
        end_lsn: where it ends. Acknowledging this position, and no less, tells the server never to
            send the transaction again.
        committed_at: microseconds since 2000-01-01 UTC.
    """

    commit_lsn: int
    end_lsn: int
    committed_at: int


class Column(NamedTuple):
    """A column as a Relation message describes it."""

    is_key: bool
    name: str
    type_oid: int
    type_modifier: int


@dataclass(frozen=True, slots=True)
class Relation:
    """The shape of a table; sent before its first row, and again when it changes."""

    oid: int
    namespace: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What `pg_logical_emit_message` wrote, such as a heartbeat.

    Attributes:
        transactional: whether it belongs to the transaction around it.
        lsn: where it is in the WAL.
        prefix: the name that its writer gave.
        content: its bytes.
    """

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


Event = Message | Begin | Commit | Relation | LogicalMessage

_RowReader = Callable[[list[bytes | None], Begin], "Message | None"]


class Decoder:
    """Turns one stream of pgoutput messages into events.

    It remembers the tables that Relation messages described and the transaction that is open, so
    one decoder belongs to one `START_REPLICATION`.

    Args:
        namespace: the schema of the messages table.
        table: its name; rows of other tables are skipped.
    """

    __slots__ = ("_begin", "_columns", "_namespace", "_readers", "_table")

    def __init__(self, *, namespace: str = "realtime", table: str = "messages") -> None:
        self._namespace = namespace
        self._table = table
        self._begin: Begin | None = None
        self._columns: dict[int, int] = {}
        self._readers: dict[int, _RowReader | None] = {}

    @property
    def in_transaction(self) -> bool:
        """Whether a Begin has been seen whose Commit has not."""
        return self._begin is not None

    def decode(self, data: bytes, offset: int = 0) -> Event | None:
        """Decodes one message.

        Args:
            data: a buffer that ends where the message ends.
            offset: where the message begins in it, so that a frame's header need not be cut off.

        Returns:
            The event, or None for what concerns nobody: other tables, presence rows, rows without
            event, payload or `private`, and changes that are not inserts.

        Raises:
            DecodeError: the bytes are not what the manual says.
        """
        try:
            kind = data[offset]
            if kind == 73:  # I
                return self._insert(data, offset + 1)
            if kind == 66:  # B
                return self._begins(data, offset + 1)
            if kind == 67:  # C
                return self._commit(data, offset + 1)
            if kind == 82:  # R
                return self._relation(data, offset + 1)
            if kind == 77:  # M
                return _logical_message(data, offset + 1)
        except (StructError, IndexError, ValueError) as error:
            # Cut short (struct, index), or text that is not UTF-8 or not a number (value).
            raise _garbage(data, offset, str(error)) from error
        if kind in _IGNORED:
            return None
        raise _garbage(data, offset, "no message of protocol version 1 begins so")

    def _begins(self, data: bytes, at: int) -> Begin:
        _end(data, at + _BEGIN.size)
        if self._begin is not None:
            raise ValueError("a transaction begins inside another")
        self._begin = Begin(*_BEGIN.unpack_from(data, at))
        return self._begin

    def _commit(self, data: bytes, at: int) -> Commit:
        _end(data, at + _COMMIT.size)
        if self._begin is None:
            raise ValueError("a commit without a transaction")
        _flags, commit_lsn, end_lsn, committed_at = _COMMIT.unpack_from(data, at)
        self._begin = None
        return Commit(commit_lsn, end_lsn, committed_at)

    def _insert(self, data: bytes, at: int) -> Message | None:
        oid, new, count = _INSERT.unpack_from(data, at)
        if self._begin is None:
            raise ValueError("a row outside a transaction")
        if new != b"N":
            raise ValueError("a row without its new values")
        if count != self._columns.get(oid):
            raise ValueError(f"a row of {count} columns for table {oid}, not as it was described")
        reader = self._readers[oid]
        if reader is None:
            return None
        at += 7
        values: list[bytes | None] = []
        append = values.append
        unpack = _VALUE.unpack_from
        for _ in range(count):
            # 't' (116) is text. A value is at least five bytes unless it is null, and the last
            # column may be: hence the look before the leap.
            if data[at] == 116:
                start = at + 5
                at = start + unpack(data, at)[0]
                append(data[start:at])
            elif data[at] == 110:  # n: null
                at += 1
                append(None)
            else:
                # 'u' is an unchanged value, which an insert cannot have; 'b' is binary, which is
                # not sent unless asked for.
                raise ValueError(f"a value of kind {data[at : at + 1]!r}")
        if at != len(data):
            raise ValueError("the row's values do not end where the message ends")
        return reader(values, self._begin)

    def _relation(self, data: bytes, at: int) -> Relation:
        (oid,) = _UINT32.unpack_from(data, at)
        namespace, at = _string(data, at + 4)
        name, at = _string(data, at)
        identity, count = _RELATION_TAIL.unpack_from(data, at)
        at += _RELATION_TAIL.size
        columns = []
        for _ in range(count):
            is_key = data[at] == 1
            column, at = _string(data, at + 1)
            columns.append(Column(is_key, column, *_COLUMN.unpack_from(data, at)))
            at += _COLUMN.size
        _end(data, at)
        # An empty namespace means pg_catalog.
        relation = Relation(
            oid, namespace or "pg_catalog", name, identity.decode("ascii"), tuple(columns)
        )
        ours = (relation.namespace, name) == (self._namespace, self._table)
        self._readers[oid] = _row_reader(relation) if ours else None
        self._columns[oid] = count
        return relation


def _row_reader(relation: Relation) -> _RowReader:
    """Makes the function that picks a message's fields out of a row of this shape."""
    index = {column.name: at for at, column in enumerate(relation.columns)}
    missing = [name for name in _REQUIRED if name not in index]
    if missing:
        raise ValueError(
            f"table {relation.namespace}.{relation.name} has no column {', '.join(missing)}"
        )
    # A column that the table does not have is read from an extra null at the end of the row.
    absent = len(relation.columns)
    extra = any(name not in index for name in _OPTIONAL)
    topic, extension, payload, event, private, inserted_at, row_id = (
        index[name] for name in _REQUIRED
    )
    binary_payload, transaction_id, position = (index.get(name, absent) for name in _OPTIONAL)
    make = tuple.__new__

    def read(row: list[bytes | None], begin: Begin) -> Message | None:
        if extra:
            row.append(None)
        # The rows that nobody gets (PROTOCOL, "From the database").
        kind = row[extension]
        if kind != b"broadcast" and kind != b"revocation":
            return None
        body = row[payload]
        binary = row[binary_payload]
        event_name = row[event] if kind == b"broadcast" else b""
        is_private = row[private]
        if event_name is None or is_private is None or (body is None and binary is None):
            return None
        topic_name = row[topic]
        inserted = row[inserted_at]
        uuid = row[row_id]
        if topic_name is None or inserted is None or uuid is None:
            raise ValueError("null in topic, inserted_at or id")
        number = int(row[transaction_id] or 0)
        return make(
            Message,
            (
                topic_name.decode(),
                event_name.decode(),
                body,
                is_private == b"t",
                uuid.decode(),
                inserted.decode(),
                None if binary is None else _bytea(binary),
                number if number & 0xFFFFFFFF == begin.xid else 0,
                int(row[position] or 0),
                begin.commit_lsn,
                "broadcast" if kind == b"broadcast" else "revocation",
            ),
        )

    return read


def _bytea(text: bytes) -> bytes:
    r"""Reads the hex output of bytea, `\x00ff`; `stream` makes sure that the server prints that."""
    if text[:2] != b"\\x":
        raise ValueError("a bytea that is not in hex format")
    return bytes.fromhex(text[2:].decode("ascii"))


def _logical_message(data: bytes, at: int) -> LogicalMessage:
    flags, lsn = _LOGICAL.unpack_from(data, at)
    prefix, at = _string(data, at + _LOGICAL.size)
    (size,) = _UINT32.unpack_from(data, at)
    at += 4
    _end(data, at + size)
    return LogicalMessage(bool(flags & 1), lsn, prefix, data[at:])


def _string(data: bytes, at: int) -> tuple[str, int]:
    """Reads text up to its null byte, and says where the next field begins."""
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def _end(data: bytes, at: int) -> None:
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where {at} were announced")


def _garbage(data: bytes, offset: int, why: str) -> DecodeError:
    head = data[offset : offset + 16].hex(" ")
    return DecodeError(
        f"the walsender sent {len(data) - offset} bytes that are no pgoutput message"
        f" ({head} …): {why}",
        hint="Is something between this program and the database, such as a connection pooler?",
    )
