"""The decoder, against an encoder written from the manual's section 55.9 and against any bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.errors import DecodeError
from realtime_db.wal.pgoutput import (
    Begin,
    Column,
    Commit,
    Decoder,
    Event,
    LogicalMessage,
    Message,
    Relation,
)

OID = 16384
COLUMNS = [
    "topic", "extension", "payload", "event", "private", "updated_at", "inserted_at", "id",
    "binary_payload", "transaction_id", "position",
]  # fmt: skip


def encode(event: Event, columns: list[str] = COLUMNS) -> bytes:
    """What the walsender sends for an event; a message as a row of these columns."""
    match event:
        case Begin(commit_lsn, committed_at, xid):
            return struct.pack(">cQqI", b"B", commit_lsn, committed_at, xid)
        case Commit(commit_lsn, end_lsn, committed_at):
            return struct.pack(">cBQQq", b"C", 0, commit_lsn, end_lsn, committed_at)
        case Relation(oid, namespace, name, identity, described):
            return (
                struct.pack(">cI", b"R", oid)
                + text(namespace)
                + text(name)
                + struct.pack(">cH", identity.encode(), len(described))
                + b"".join(
                    struct.pack(">B", column.is_key)
                    + text(column.name)
                    + struct.pack(">Ii", column.type_oid, column.type_modifier)
                    for column in described
                )
            )
        case LogicalMessage(transactional, lsn, prefix, content):
            return (
                struct.pack(">cBQ", b"M", transactional, lsn)
                + text(prefix)
                + struct.pack(">I", len(content))
                + content
            )
        case Message():
            return row({**fields(event), "extension": b"broadcast"}, columns)


def fields(message: Message) -> dict[str, bytes | None]:
    binary = message.binary_payload
    return {
        "topic": message.topic.encode(),
        "payload": message.payload,
        "event": message.event.encode(),
        "private": b"t" if message.private else b"f",
        "updated_at": message.inserted_at.encode(),
        "inserted_at": message.inserted_at.encode(),
        "id": message.id.encode(),
        "binary_payload": None if binary is None else b"\\x" + binary.hex().encode(),
        "transaction_id": str(message.transaction_id).encode(),
        "position": str(message.position).encode(),
    }


def row(values: dict[str, bytes | None], columns: list[str] = COLUMNS) -> bytes:
    encoded = struct.pack(">cIcH", b"I", OID, b"N", len(columns))
    for column in columns:
        value = values.get(column)
        encoded += b"n" if value is None else b"t" + struct.pack(">I", len(value)) + value
    return encoded


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation(columns: list[str] = COLUMNS, *, name: str = "messages", oid: int = OID) -> Relation:
    described = tuple(Column(False, column, 25, -1) for column in columns)
    return Relation(oid, "realtime", name, "d", described)


def in_transaction(
    columns: list[str] = COLUMNS, *, commit_lsn: int = 1, transaction_id: int = 7
) -> Decoder:
    """A decoder that knows the table and has seen a transaction begin."""
    decoder = Decoder()
    decoder.decode(encode(relation(columns)))
    decoder.decode(encode(Begin(commit_lsn, 0, transaction_id & 0xFFFFFFFF)))
    return decoder


lsns = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
oids = st.integers(0, 2**32 - 1)
bodies = st.one_of(
    st.tuples(st.binary(), st.none()),
    st.tuples(st.none(), st.binary()),
)
messages = st.builds(
    lambda body, **others: Message(payload=body[0], binary_payload=body[1], **others),
    body=bodies,
    topic=names,
    event=names,
    private=st.booleans(),
    id=st.uuids().map(str),
    inserted_at=st.datetimes().map(str),
    transaction_id=st.integers(0, 2**64 - 1),
    position=st.integers(-(2**63), 2**63 - 1),
    commit_lsn=lsns,
)
columns_in_any_order = st.permutations(COLUMNS)
relations = st.builds(
    Relation,
    oid=oids,
    namespace=names.filter(bool),
    name=names,
    replica_identity=st.sampled_from("dnfi"),
    columns=st.lists(
        st.builds(
            Column,
            is_key=st.booleans(),
            name=names,
            type_oid=oids,
            type_modifier=st.integers(-(2**31), 2**31 - 1),
        )
    ).map(tuple),
)
logical_messages = st.builds(
    LogicalMessage,
    transactional=st.booleans(),
    lsn=lsns,
    prefix=names,
    content=st.binary(),
)
MESSAGE = Message(
    topic="room:1",
    event="e",
    payload=b'{"n": 1.10000000000000000001}',
    private=True,
    id=str(UUID(int=1)),
    inserted_at="2026-08-01 12:34:56.789012",
    binary_payload=None,
    transaction_id=7,
    position=3,
    commit_lsn=1,
)


@given(messages, columns_in_any_order)
def test_a_row_is_the_message_that_was_inserted_whatever_the_order_of_columns(
    message: Message, columns: list[str]
) -> None:
    decoder = in_transaction(
        columns, commit_lsn=message.commit_lsn, transaction_id=message.transaction_id
    )

    decoded = decoder.decode(encode(message, columns))

    assert decoded == message
    assert isinstance(decoded, Message)
    assert encode(decoded, columns) == encode(message, columns)


def test_a_transaction_id_that_is_not_that_of_the_commit_counts_for_none() -> None:
    """Whoever may insert a row may write anything there."""
    for claimed in (8, (1 << 32) + 8, (1 << 63)):
        decoded = in_transaction().decode(encode(MESSAGE._replace(transaction_id=claimed)))
        assert decoded == MESSAGE._replace(transaction_id=0)


@given(st.one_of(st.builds(Begin, lsns, times, oids), relations, logical_messages))
def test_other_events_survive_decoding_and_encoding(event: Event) -> None:
    decoded = Decoder().decode(encode(event))

    assert decoded == event
    assert encode(decoded) == encode(event)


@given(lsns, lsns, times)
def test_a_commit_says_where_its_record_ends(begin: int, end: int, at: int) -> None:
    commit = Commit(begin, end, at)

    assert in_transaction().decode(encode(commit)) == commit


@given(st.binary())
def test_any_bytes_are_an_event_or_the_typed_error(data: bytes) -> None:
    for decoder in (Decoder(), in_transaction()):
        with suppress(DecodeError):
            decoder.decode(data)


@given(messages, st.data())
def test_a_damaged_row_is_a_row_or_the_typed_error(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        in_transaction().decode(bytes(damaged))


@given(
    st.one_of(messages, relations, logical_messages, st.builds(Commit, lsns, lsns, times)),
    st.data(),
)
def test_a_message_cut_short_is_refused(event: Event, data: st.DataObject) -> None:
    whole = encode(event)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    with pytest.raises(DecodeError):
        in_transaction().decode(cut)


@given(st.one_of(messages, relations, logical_messages, st.builds(Commit, lsns, lsns, times)))
def test_bytes_after_the_end_of_a_message_are_refused(event: Event) -> None:
    with pytest.raises(DecodeError):
        in_transaction().decode(encode(event) + b"\0")


def test_a_message_may_begin_anywhere_in_a_buffer() -> None:
    assert in_transaction().decode(b"header" + encode(MESSAGE), 6) == MESSAGE


@pytest.mark.parametrize(
    "changes",
    [
        {"extension": b"presence"},
        {"extension": None},
        {"event": None},
        {"private": None},
        {"payload": None, "binary_payload": None},
    ],
)
def test_rows_that_no_client_gets_are_skipped(changes: dict[str, bytes | None]) -> None:
    values = {**fields(MESSAGE), "extension": b"broadcast"}
    assert in_transaction().decode(row(values)) == MESSAGE

    assert in_transaction().decode(row({**values, **changes})) is None


def test_rows_of_other_tables_are_skipped() -> None:
    decoder = in_transaction()
    decoder.decode(encode(relation(["a"], name="others", oid=7)))

    assert decoder.decode(struct.pack(">cIcHcI", b"I", 7, b"N", 1, b"t", 1) + b"x") is None


def test_a_table_that_changed_its_columns_is_read_by_the_new_ones() -> None:
    decoder = in_transaction()
    columns = ["added", *reversed(COLUMNS)]

    decoder.decode(encode(relation(columns)))

    assert decoder.decode(encode(MESSAGE, columns)) == MESSAGE


def test_a_table_of_supabase_realtime_without_our_columns_can_be_read() -> None:
    columns = COLUMNS[:8]

    decoded = in_transaction(columns).decode(encode(MESSAGE, columns))

    assert decoded == MESSAGE._replace(transaction_id=0, position=0)


def test_a_table_without_a_column_that_we_need_is_named_in_the_error() -> None:
    with pytest.raises(DecodeError, match=r"realtime\.messages has no column event, id"):
        Decoder().decode(encode(relation([c for c in COLUMNS if c not in ("event", "id")])))


@pytest.mark.parametrize("kind", "OYTUD")
def test_messages_that_carry_nothing_for_us_are_skipped(kind: str) -> None:
    assert in_transaction().decode(kind.encode() + b"whatever follows") is None


@pytest.mark.parametrize("kind", "SEcAbPKrp\0")
def test_messages_of_later_protocol_versions_are_refused(kind: str) -> None:
    with pytest.raises(DecodeError, match="no message of protocol version 1"):
        in_transaction().decode(kind.encode() + bytes(30))


def test_a_row_of_an_unknown_table_is_refused() -> None:
    decoder = Decoder()
    decoder.decode(encode(Begin(1, 0, 1)))

    with pytest.raises(DecodeError, match="not as it was described"):
        decoder.decode(encode(MESSAGE))


def test_rows_and_commits_outside_a_transaction_are_refused() -> None:
    decoder = in_transaction()
    decoder.decode(encode(Commit(1, 2, 0)))

    for event in (MESSAGE, Commit(3, 4, 0)):
        with pytest.raises(DecodeError, match="transaction"):
            decoder.decode(encode(event))


def test_a_transaction_inside_another_is_refused() -> None:
    with pytest.raises(DecodeError, match="inside another"):
        in_transaction().decode(encode(Begin(2, 0, 2)))
