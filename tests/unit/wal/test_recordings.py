"""What real walsenders sent (recordings/), decoded as messages.sql says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from realtime_db.wal.pgoutput import Begin, Commit, Decoder, LogicalMessage, Message, Relation
from realtime_db.wal.session import KEEPALIVE, XLOG_DATA, XLOG_DATA_HEADER_BYTES

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.hex"))


@dataclass
class Replay:
    """A recording's events; `transactions` holds the messages of each that has some."""

    transactions: list[list[Message]] = field(default_factory=list)
    logical: list[LogicalMessage] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    begins: list[Begin] = field(default_factory=list)


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def replay(request: pytest.FixtureRequest) -> Replay:
    result, decoder, open_transaction = Replay(), Decoder(), list[Message]()
    for line in request.param.read_text().splitlines():
        frame = bytes.fromhex(line)
        if frame[0] == KEEPALIVE:
            continue
        assert frame[0] == XLOG_DATA
        match decoder.decode(frame, XLOG_DATA_HEADER_BYTES):
            case Message() as message:
                open_transaction.append(message)
            case Begin() as begin:
                result.begins.append(begin)
            case Commit() as commit:
                result.commits.append(commit)
                if open_transaction:
                    result.transactions.append(open_transaction)
                open_transaction = []
            case LogicalMessage() as logical:
                result.logical.append(logical)
            case Relation() as relation:
                result.relations.append(relation)
    assert not decoder.in_transaction
    return result


def test_both_the_oldest_and_the_newest_server_are_recorded() -> None:
    stems = {path.stem for path in RECORDINGS}
    assert {"pg14", "pg14-everything", "pg18", "pg18-everything"} <= stems


def test_messages_come_per_transaction_in_insert_order(replay: Replay) -> None:
    assert [[message.topic for message in messages] for messages in replay.transactions] == [
        ["room:1"],
        ["room:1", "room:2", "room:3"],
        ["room:2"],
        ["room:4"],
    ]


def test_a_message_has_every_digit_that_was_inserted(replay: Replay) -> None:
    message = replay.transactions[0][0]

    assert message.event == "message"
    assert message.payload is not None
    assert message.payload.decode() == (
        '{"d": 1.10000000000000000001, "n": 9007199254740993, "s": "é"}'
    )
    assert message.private
    assert message.id == "00000000-0000-0000-0000-000000000001"
    assert message.inserted_at == "2026-08-01 12:34:56.789012"
    assert message.binary_payload is None


def test_a_binary_message_has_its_bytes_and_no_payload(replay: Replay) -> None:
    message = replay.transactions[2][0]

    assert (message.payload, message.binary_payload) == (None, b"\x00\xff\x10")


def test_public_messages_are_public(replay: Replay) -> None:
    assert [message.private for message in replay.transactions[1]] == [False, False, False]


def test_messages_of_a_transaction_share_its_ids_and_positions_grow(replay: Replay) -> None:
    first, second, third = replay.transactions[1]

    assert first.position < second.position < third.position
    assert first.transaction_id == second.transaction_id == third.transaction_id > 0
    assert first.commit_lsn == second.commit_lsn == third.commit_lsn


def test_commits_end_after_they_begin_and_in_order(replay: Replay) -> None:
    ends = [commit.end_lsn for commit in replay.commits]

    assert ends == sorted(ends)
    for begin, commit in zip(replay.begins, replay.commits, strict=True):
        assert begin.commit_lsn == commit.commit_lsn < commit.end_lsn
        assert begin.committed_at == commit.committed_at


def test_heartbeats_inside_and_outside_of_transactions_are_returned(replay: Replay) -> None:
    assert {(m.transactional, m.prefix, m.content) for m in replay.logical} == {
        (True, "realtime", b"heartbeat"),
        (False, "realtime", b"outside"),
    }


def test_the_table_is_described_with_its_columns(replay: Replay) -> None:
    relation = replay.relations[0]

    assert (relation.namespace, relation.name) == ("realtime", "messages")
    assert [column.name for column in relation.columns][:3] == ["topic", "extension", "payload"]
    assert [c.name for c in relation.columns if c.is_key] == ["topic", "inserted_at", "position"]
