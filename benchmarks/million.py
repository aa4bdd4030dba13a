"""Cases: a partition with a million messages, as a busy day leaves it.

A thousand topics have about 1,000 messages each, spread over the hours since midnight; `rare` has
40. Both tables get the same rows, and statistics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from harness import Connection, Place, Row, take_turns

ROWS = 1_000_000
_FILL = """
    insert into {schema}.messages
        (topic, extension, payload, event, private, updated_at, inserted_at)
    select
        case
            when i % 25000 = 0 then 'rare'
            else 'room:' || abs(hashint4(i) % 1000)
        end,
        'broadcast',
        jsonb_build_object('n', i),
        'created',
        true,
        d.inserted_at,
        d.inserted_at
    from generate_series(1, {rows}) as i
    cross join lateral (
        select t.today + i * (t.now - t.today) / {rows} as inserted_at
        from (
            select
                now() at time zone 'utc' as now,
                date_trunc('day', now() at time zone 'utc') as today
        ) as t
        offset 0
    ) as d
"""
_SEND = """
    select count({schema}.send(
        '{{"title": "Buy milk", "owner": "user7@example.com", "done": false}}',
        'created',
        'room:' || abs(hashint4(i + {seed}) % {topics})
    ))
    from generate_series(1, 1000) as i
"""
# PROTOCOL: of a private topic, the latest 25 since then, and not from a future.
_REPLAY = """
    select id, topic, event, payload, private, inserted_at from {schema}.messages
    where topic = 'rare' and extension = 'broadcast' and private = true
        and inserted_at >= (now() at time zone 'utc') - interval '1 day'
        and inserted_at < (now() at time zone 'utc') + interval '1 minute'
    order by inserted_at desc{tie} limit 25
"""


def wal_and_replay(place: Place, rounds: int) -> Iterator[Row]:
    """WAL per message right after a checkpoint; the newest 25 messages of a rare topic."""
    with place.connect() as connection, place.admin() as admin:
        connection.execute("truncate realtime.messages, peer.messages")
        for schema in ("realtime", "peer"):
            connection.execute(_FILL.format(schema=schema, rows=ROWS).encode())
            connection.execute(f"vacuum analyze {schema}.messages".encode())
        for topics in (100, 1000):
            yield _wal(connection, admin, rounds, topics)
        yield _replay(connection, rounds)
        connection.execute("truncate realtime.messages, peer.messages")


def _wal(connection: Connection, admin: Connection, rounds: int, topics: int) -> Row:
    seed = 0

    def turn(schema: str) -> float:
        nonlocal seed
        seed += 1_000_003
        admin.execute("checkpoint")
        before = _wal_position(connection)
        connection.execute(_SEND.format(schema=schema, seed=seed, topics=topics).encode())
        return (_wal_position(connection) - before) / 1000

    samples = take_turns({"ours": partial(turn, "realtime"), "peer": partial(turn, "peer")}, rounds)
    part = samples.ratio("ours", "peer")
    return Row(
        f"WAL per message, {ROWS:,} stored, 1,000 to {topics:,} topics right after a checkpoint",
        got=f"{part.text()} of peer",
        must="0.33 of peer",
        reached=part.middle <= 1 / 3,
        ours=f"{samples.of('ours'):,.0f} B",
        peer=f"{samples.of('peer'):,.0f} B",
    )


def _wal_position(connection: Connection) -> int:
    row = connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


def _replay(connection: Connection, rounds: int) -> Row:
    def turn(schema: str, tie: str) -> float:
        begin = time.perf_counter()
        rows = connection.execute(_REPLAY.format(schema=schema, tie=tie).encode()).fetchall()
        assert len(rows) == 25
        return time.perf_counter() - begin

    samples = take_turns(
        {"ours": partial(turn, "realtime", ", position desc"), "peer": partial(turn, "peer", "")},
        rounds * 4,
    )
    milliseconds = {side: samples.of(side) * 1000 for side in ("ours", "peer")}
    return Row(
        f"the newest 25 messages of a rare topic among {ROWS:,}",
        got=f"{milliseconds['ours']:.2f} ms",
        must="at most 5 ms",
        reached=milliseconds["ours"] <= 5,
        ours=f"{milliseconds['ours']:.2f} ms",
        peer=f"{milliseconds['peer']:.0f} ms",
    )
