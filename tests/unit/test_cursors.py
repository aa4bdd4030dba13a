"""Cursors there and back, and what does not pass for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.cursors import (
    MAX_BYTES,
    Cursor,
    Horizon,
    InvalidCursor,
    Snapshot,
    cluster_id,
    join,
)

NUMBERS = st.integers(0, (1 << 64) - 1)
# What Postgres gives as ids: the lower half counts from 3.
IDS = st.integers(3, (1 << 64) - 1).filter(lambda number: number & 0xFFFFFFFF >= 3)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    ids = sorted(draw(st.sets(IDS, min_size=1, max_size=120)))
    xmax = draw(IDS.filter(lambda number: number >= ids[-1]))
    return Snapshot(ids[0], xmax, frozenset(ids) - {xmax})


@st.composite
def horizons(draw: st.DrawFn) -> Horizon:
    taken = draw(st.integers(0, (1 << 57) - 1))
    since = draw(st.integers(0, taken))
    return Horizon(draw(st.integers(0, (1 << 32) - 1)), draw(snapshots()), taken, since)


CURSORS = st.builds(Cursor, st.sampled_from("wp"), horizons(), NUMBERS, NUMBERS, NUMBERS)


@given(snapshots())
def test_a_snapshot_comes_back_from_the_text_of_postgres(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize(
    ("number", "shown"), [(0, False), (1, True), (9, True), (10, False), (11, True), (15, False)]
)
def test_a_snapshot_shows_what_had_ended(number: int, shown: bool) -> None:
    assert Snapshot.parse("10:15:10,12").shows(number) is shown


@given(CURSORS)
def test_a_cursor_comes_back_or_shows_less(cursor: Cursor) -> None:
    """If there are too many running transactions for its text, some that ended count as open."""
    text = str(cursor)
    assert len(text) <= MAX_BYTES
    assert text.isascii()
    assert text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    back = Cursor.parse(text)
    seen, less = cursor.horizon.seen, back.horizon.seen
    assert back._replace(horizon=cursor.horizon) == cursor
    assert back.horizon._replace(seen=seen) == cursor.horizon
    assert less.xmin == seen.xmin
    assert less.xmax <= seen.xmax
    assert less.running == {number for number in seen.running if number < less.xmax}


@given(horizons().filter(lambda one: len(one.seen.running) <= 5), NUMBERS, NUMBERS, NUMBERS)
def test_a_cursor_with_few_running_transactions_comes_back_whole(
    horizon: Horizon, order: int, transaction_id: int, position: int
) -> None:
    cursor = Cursor("w", horizon, order, transaction_id, position)
    assert Cursor.parse(str(cursor)) == cursor
    assert join(horizon.prefix("w"), order, transaction_id, position) == str(cursor)


def test_a_busy_database_fits() -> None:
    """A hundred connections, each of which began to write within the last thousand."""
    seen = Snapshot(10**12, 10**12 + 1_000, frozenset(range(10**12, 10**12 + 1_000, 24)))
    cursor = Cursor("w", Horizon(1, seen, 1_790_000_000_000_000, 1_789_999_990_000_000))
    assert Cursor.parse(str(cursor)) == cursor


@given(st.text() | st.from_regex(r"[wp][A-Za-z0-9_-]{0,150}\.[A-Za-z0-9_-]{32}", fullmatch=True))
def test_no_text_makes_parsing_fail_in_another_way(text: str) -> None:
    try:
        parsed = Cursor.parse(text)
    except InvalidCursor:
        return
    # What passes, Postgres takes: see `pg_snapshot_in`.
    seen = parsed.horizon.seen
    ids = sorted(seen.running)
    assert all(number & 0xFFFFFFFF >= 3 for number in (seen.xmin, seen.xmax, *ids))
    assert seen.xmin <= seen.xmax
    assert all(seen.xmin <= number < seen.xmax for number in ids)
    assert 0 <= parsed.horizon.since_us <= parsed.horizon.taken_us


@given(CURSORS, st.data())
def test_a_cut_or_changed_cursor_is_none_or_another(cursor: Cursor, data: st.DataObject) -> None:
    text = str(cursor)
    at = data.draw(st.integers(0, len(text) - 1))
    for changed in (text[:at], text[:at] + data.draw(st.characters()) + text[at + 1 :], text + "A"):
        try:
            Cursor.parse(changed)
        except InvalidCursor:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w",
        "w.",
        "x" + "A" * 20 + "." + "A" * 32,
        "w" + "A" * 140 + "." + "A" * 40,
        "w..",
        "wÄ.",
    ],
)
def test_what_no_server_made_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidCursor):
        Cursor.parse(text)


def test_a_failover_makes_another_cluster() -> None:
    before = cluster_id(7_300_000_000_000_000_000, "000000010000000000000042")
    assert before == cluster_id(7_300_000_000_000_000_000, "0000000100000009000000FF")
    assert before != cluster_id(7_300_000_000_000_000_000, "000000020000000000000042")
    assert before != cluster_id(7_300_000_000_000_000_001, "000000010000000000000042")
    assert 0 <= before < 1 << 32
