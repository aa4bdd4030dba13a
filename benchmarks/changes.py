"""Cases: statements on a table with a broadcast trigger, beside the peer's row trigger.

`ours` has what `realtime-db trigger add --topic 'todo:{id}'` makes, `peer` the documented function
for each row, `raw` no trigger. A session keeps the plan of its first statement, so every timed
statement follows one of a single row in the same session: the worst case, and a usual one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from harness import Connection, Place, Row, Samples, compared, take_turns

from realtime_db.install import triggers

TABLES = {"ours": "ours.todos", "raw": "plain.todos", "peer": "peer.todos"}

_INSERT = (
    "insert into {table} (title, owner, tags) "
    "select 'Buy milk and ' || i, 'user' || i % 977 || '@example.com', array['home', 'shop'] "
    "from generate_series(1, {rows}) as i"
)
_UPDATE = "update {table} set done = not done, changed_at = now() where "
_DELETE = "delete from {table} where "
_EACH = "do $$ begin for i in 2..201 loop " + _UPDATE + "id = i; end loop; end $$"


def make_tables(place: Place, connection: Connection) -> None:
    """The three tables and their triggers, unless they are there."""
    if connection.execute("select to_regclass('ours.todos') is not null").fetchone() == (True,):
        return
    connection.execute("create schema ours; create schema if not exists plain")
    for table in TABLES.values():
        connection.execute(
            f"""
            create table {table} (
                id bigint generated always as identity primary key,
                title text not null,
                done boolean not null default false,
                owner text not null,
                tags text[] not null,
                changed_at timestamptz not null default now()
            )
            """.encode()
        )
    connection.execute(
        "create trigger broadcast after insert or update or delete on peer.todos "
        "for each row execute function peer.broadcast_row()"
    )
    options = triggers.TriggerOptions("todos", "todo:{id}", table_schema="ours")
    asyncio.run(triggers.add(place.owner_url, options))


def fill(connection: Connection, side: str, rows: int) -> None:
    """Puts rows 1 to `rows` into a side's table, with no message stored."""
    table = TABLES[side]
    for statement in (
        f"alter table {table} disable trigger user",
        f"truncate {table} restart identity",
        _INSERT.format(table=table, rows=rows),
        f"alter table {table} enable trigger user",
        f"vacuum analyze {table}",
        "truncate realtime.messages, peer.messages",
    ):
        connection.execute(statement.encode())


def update_statement(side: str, which: str) -> str:
    """An update of the rows `which`."""
    return _UPDATE.format(table=TABLES[side]) + which


def _compare(
    place: Place,
    rounds: int,
    *,
    filled: int,
    first: str,
    second: str,
    rows: int,
    warm_up: bool = True,
) -> Samples:
    """Times `second` after `first` in one session; both have the placeholder {table}."""

    def turn(connection: Connection, side: str) -> float:
        fill(connection, side, filled)
        connection.execute(first.format(table=TABLES[side], rows=1).encode())
        return place.timed(connection, second.format(table=TABLES[side], rows=rows))

    with place.connect() as connection:
        make_tables(place, connection)
        sides = {side: partial(turn, connection, side) for side in TABLES}
        return take_turns(sides, rounds, warm_up=warm_up)


def update(place: Place, rounds: int) -> Iterator[Row]:
    """UPDATE of 1, 1,000, 10,000 and 100,000 rows; what a row costs at 10,000 beside 1,000."""
    first = _UPDATE + "id = 1"
    # 200 of them in a transaction, so that little else is timed.
    samples = _compare(place, rounds * 2, filled=201, first=first, second=_EACH, rows=1)
    yield compared("UPDATE of one row", samples, 200, "peer", 1.0)

    many = 2.0 if place.major >= 18 else 2.5
    cost: dict[int, float] = {}
    for rows, must, turns in (
        (1_000, many, rounds * 2),
        (10_000, many, rounds),
        (100_000, 2.0, min(rounds, 2)),
    ):
        samples = _compare(
            place,
            turns,
            filled=rows + 1,
            first=first,
            second=_UPDATE + "id > 1",
            rows=rows,
            warm_up=rows < 100_000,
        )
        cost[rows] = samples.of("ours") / rows
        yield compared(f"UPDATE of {rows:,} rows", samples, rows, "peer", must)
    factor = cost[10_000] / cost[1_000]
    yield Row(
        "UPDATE, a row's cost at 10,000 beside 1,000",
        got=f"{factor:.2f}",
        must="at most 1.5",
        reached=factor <= 1.5,
    )


def insert(place: Place, rounds: int) -> Iterator[Row]:
    """INSERT of 10,000 rows."""
    samples = _compare(place, rounds, filled=1, first=_INSERT, second=_INSERT, rows=10_000)
    yield compared("INSERT of 10,000 rows", samples, 10_000, "peer", 2.7)


def delete(place: Place, rounds: int) -> Iterator[Row]:
    """DELETE of 10,000 rows."""
    samples = _compare(
        place,
        rounds,
        filled=10_001,
        first=_DELETE + "id = 1",
        second=_DELETE + "id > 1",
        rows=10_000,
    )
    yield compared("DELETE of 10,000 rows", samples, 10_000, "peer", 3.0)


def transaction_ids(place: Place, rounds: int) -> Iterator[Row]:
    """Transaction ids that a message takes beyond the one of its transaction."""
    count = 1_000
    taken: dict[str, dict[str, int]] = {"send": {}, "row of a trigger": {}}

    def next_id(connection: Connection) -> int:
        row = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    with place.connect() as connection:
        make_tables(place, connection)
        for side, schema in (("ours", "realtime"), ("peer", "peer")):
            fill(connection, side, count)
            for what, statement in (
                (
                    "send",
                    f"select count({schema}.send('{{}}', 'e', 't')) "
                    f"from generate_series(1, {count})",
                ),
                ("row of a trigger", update_statement(side, "true")),
            ):
                before = next_id(connection)
                connection.execute(statement.encode())
                # One for the transaction itself, one for the question.
                taken[what][side] = next_id(connection) - before - 2
    for what, sides in taken.items():
        yield Row(
            f"transaction ids per message, {what}",
            got=f"{sides['ours'] / count:g}",
            must="0",
            reached=sides["ours"] == 0,
            ours=f"{sides['ours'] / count:g}",
            peer=f"{sides['peer'] / count:g}",
        )
