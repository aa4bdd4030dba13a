"""What is acknowledged, what is not, and when the server hears of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.errors import DecodeError
from realtime_db.wal.session import Session


def session(start_lsn: int = 100) -> Session:
    return Session(start_lsn=start_lsn, now=0.0, status_interval_seconds=10.0)


def keepalive(end_lsn: int, *, reply: bool = False) -> bytes:
    return struct.pack(">cQqB", b"k", end_lsn, 0, reply)


def positions(frame: bytes) -> tuple[int, int, int]:
    """Written, flushed and applied of a standby status update."""
    kind, written, flushed, applied, _clock, _reply = struct.unpack(">cQQQqB", frame)
    assert kind == b"r"
    return written, flushed, applied


def test_what_was_received_is_written_but_not_flushed_until_it_is_acknowledged() -> None:
    state = session()

    state.transaction_received(200, has_messages=True)
    assert positions(state.status(now=0.0, clock=0.0)) == (200, 100, 100)

    state.acknowledge(200)
    assert positions(state.status(now=0.0, clock=0.0)) == (200, 200, 200)


def test_acknowledging_the_begin_of_a_commit_record_leaves_its_transaction_in_hand() -> None:
    state = session()
    state.transaction_received(200, has_messages=True)

    state.acknowledge(199)

    assert state.acknowledged_lsn == 100


def test_a_transaction_without_messages_is_acknowledged_by_itself() -> None:
    state = session()

    state.transaction_received(200, has_messages=False)

    assert state.acknowledged_lsn == 200


def test_a_transaction_without_messages_waits_for_those_before_it() -> None:
    state = session()
    state.transaction_received(200, has_messages=True)
    state.transaction_received(300, has_messages=False)
    assert state.acknowledged_lsn == 100

    state.acknowledge(200)

    assert state.acknowledged_lsn == 300


def test_a_quiet_database_lets_go_of_its_wal_by_keepalives() -> None:
    state = session()

    state.keepalive(keepalive(500), now=0.0, in_transaction=False)

    assert state.acknowledged_lsn == 500


def test_a_keepalive_acknowledges_nothing_that_is_still_in_hand() -> None:
    state = session()
    state.transaction_received(200, has_messages=True)

    state.keepalive(keepalive(500), now=0.0, in_transaction=False)
    assert state.acknowledged_lsn == 100

    state.acknowledge(200)
    assert state.acknowledged_lsn == 500


def test_a_keepalive_within_a_transaction_acknowledges_nothing() -> None:
    state = session()

    state.keepalive(keepalive(500), now=0.0, in_transaction=True)

    assert state.acknowledged_lsn == 100


def test_acknowledging_what_was_never_received_acknowledges_what_was() -> None:
    state = session()
    state.transaction_received(200, has_messages=True)

    state.acknowledge(10**9)

    assert state.acknowledged_lsn == 200


def test_a_transaction_from_before_the_start_moves_nothing_back() -> None:
    state = session()
    state.transaction_received(50, has_messages=True)
    state.transaction_received(200, has_messages=True)

    state.acknowledge(50)

    assert state.acknowledged_lsn == 100


def test_a_keepalive_that_asks_makes_a_status_update_due() -> None:
    state = session()
    assert not state.status_due(1.0)

    state.keepalive(keepalive(100, reply=True), now=1.0, in_transaction=False)
    assert state.status_due(1.0)

    state.status(now=1.0, clock=0.0)
    assert not state.status_due(1.0)


def test_a_status_update_is_due_one_interval_after_the_last() -> None:
    state = session()
    state.status(now=5.0, clock=0.0)

    assert not state.status_due(14.9)
    assert state.status_due(15.0)
    assert state.status_due_at == 15.0


def test_the_clock_counts_microseconds_since_2000() -> None:
    frame = session().status(now=0.0, clock=946_684_800.5, request_reply=True)

    assert struct.unpack(">cQQQqB", frame)[4:] == (500_000, 1)


@pytest.mark.parametrize("frame", [b"", b"k", keepalive(1) + b"\0", b"x" + keepalive(1)[1:]])
def test_a_frame_that_is_no_keepalive_is_refused(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        session().keepalive(frame, now=0.0, in_transaction=False)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("received"), st.integers(1, 50), st.booleans()),
        st.tuples(st.just("keepalive"), st.integers(0, 50), st.booleans()),
        st.tuples(st.just("acknowledge"), st.integers(0, 400), st.just(False)),
    )
)


@given(steps)
def test_the_flushed_position_only_grows_and_never_passes_a_transaction_in_hand(
    steps: list[tuple[str, int, bool]],
) -> None:
    state, wal, in_hand, before = session(0), 0, list[int](), 0
    for step, amount, flag in steps:
        if step == "acknowledge":
            state.acknowledge(amount)
            in_hand = [lsn for lsn in in_hand if lsn > amount]
        else:
            wal += amount
            if step == "received":
                state.transaction_received(wal, has_messages=flag)
                in_hand += [wal] if flag else []
            else:
                state.keepalive(keepalive(wal), now=0.0, in_transaction=flag)
        written, flushed, applied = positions(state.status(now=0.0, clock=0.0))
        assert before <= flushed == applied <= written <= wal
        assert all(flushed < lsn for lsn in in_hand)
        before = flushed
