"""Cases: `realtime.send` and `realtime.send_many` beside the raw insert and the peer."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

from harness import Connection, Place, Row, Samples, compared, take_turns

MANY = 1_000
_ALONE = 20

_SEND = "select count({}.send(%s::jsonb, 'created', 'room:1')) from generate_series(1, 1000)"
_SEND_ONE = "select {}.send(%s::jsonb, 'created', 'room:1')"
_INSERT_ONE = """
    insert into realtime.messages (payload, event, topic, private, extension)
    values (%s::jsonb, 'created', 'room:1', true, 'broadcast')
"""
# The payloads come from a table: a list of texts would be parsed, on all sides alike.
_BATCH = """
    create temporary table batch as
    select %s::jsonb as payload, %s::jsonb as with_id from generate_series(1, 1000)
"""
_INSERT_MANY = """
    insert into realtime.messages (payload, event, topic, private, extension)
    select with_id, 'created', 'room:1', true, 'broadcast' from batch
"""
_SEND_MANY = """
    select realtime.send_many(array_agg(payload), array['created'], array['room:1']) from batch
"""
_PEER_MANY = "select count(peer.send(payload, 'created', 'room:1')) from batch"
# An insert for each message, as an application writes it, and the least around it.
_SETUP = """
    create schema if not exists plain;
    create or replace function plain.insert_each(payload jsonb) returns void
    language plpgsql as $$
    begin
        for i in 1..1000 loop
            insert into realtime.messages (payload, event, topic, private, extension)
            values (payload, 'created', 'room:1', true, 'broadcast');
        end loop;
    end;
    $$;
"""


def payload(size: int) -> str:
    """JSON of about `size` bytes, such as an application sends: `{"room", "rows": [...]}`."""
    dice = random.Random(size)
    rows: list[dict[str, object]] = []
    while True:
        text = json.dumps({"room": 1, "note": "", "rows": rows})
        if len(text) > size - 120:
            note = ("as was agreed " * 9)[: size - len(text)]
            return json.dumps({"room": 1, "note": note, "rows": rows})
        number = dice.randrange(1_000_000)
        rows.append(
            {
                "key": number,
                "title": f"Buy {dice.choice(['milk', 'bread', 'paper', 'stamps'])}",
                "done": dice.random() < 0.5,
                "owner": f"user{number % 977}@example.com",
                "due": f"2026-08-{dice.randrange(1, 29):02}T10:00:00Z",
            }
        )


def with_id(text: str) -> str:
    """The payload as `realtime.send` stores it: what the raw insert gets."""
    return json.dumps({**json.loads(text), "id": "4b3fdd5e-2f8e-4a4c-9c2e-0f2f5d3a5b11"})


def _empty(connection: Connection) -> None:
    connection.execute("truncate realtime.messages, peer.messages")


def send_in_one_transaction(place: Place, rounds: int) -> Iterator[Row]:
    """`send`, 1,000 in a transaction."""
    for size, must in ((200, 1.1 if place.major >= 18 else 1.2), (4096, 1.8)):
        text = payload(size)
        samples = _each(place, text, rounds * 3)
        note = "" if place.has_lz4 or size < 2000 else ", no lz4"
        label = f"send, 1,000 in a transaction, {len(text):,} B"
        yield compared(label, samples, MANY, "peer", must, note=note)
        yield compared(f"{label}, raw insert", samples, MANY, "raw", None, note=note)


def _each(place: Place, text: str, rounds: int) -> Samples:
    with place.connect() as connection:
        connection.execute(_SETUP)

        def turn(statement: str, value: str) -> float:
            _empty(connection)
            return place.timed(connection, statement, (value,))

        return take_turns(
            {
                "ours": lambda: turn(_SEND.format("realtime"), text),
                "raw": lambda: turn("select plain.insert_each(%s::jsonb)", with_id(text)),
                "peer": lambda: turn(_SEND.format("peer"), text),
            },
            rounds,
        )


def send_one_a_transaction(place: Place, rounds: int) -> Iterator[Row]:
    """`send`, one a transaction, which waits for the disk."""
    text = payload(200)
    with place.connect(synchronous=True) as connection:
        # What the raw insert is compared with waits for the disk as well.
        fsync = connection.execute("select current_setting('fsync')").fetchone()
        assert fsync == ("on",), "this server does not wait for its disk"
        _empty(connection)

        def turn(statement: str, value: str) -> float:
            begin = time.perf_counter()
            for _ in range(_ALONE):
                connection.execute(statement.encode(), (value,), prepare=True)
            return time.perf_counter() - begin

        samples = take_turns(
            {
                "ours": lambda: turn(_SEND_ONE.format("realtime"), text),
                "raw": lambda: turn(_INSERT_ONE, with_id(text)),
                "peer": lambda: turn(_SEND_ONE.format("peer"), text),
            },
            rounds * 5,
        )
    yield compared("send, one a transaction, synchronous", samples, _ALONE, "raw", 0.85)


def send_many(place: Place, rounds: int) -> Iterator[Row]:
    """`send_many` of 1,000, beside the peer's send of each and one insert of all."""
    text = payload(200)
    with place.connect() as connection:
        connection.execute(_BATCH, (text, with_id(text)))

        def turn(statement: str) -> float:
            _empty(connection)
            return place.timed(connection, statement)

        samples = take_turns(
            {
                "ours": lambda: turn(_SEND_MANY),
                "raw": lambda: turn(_INSERT_MANY),
                "peer": lambda: turn(_PEER_MANY),
            },
            rounds * 3,
        )
    yield compared("send_many of 1,000", samples, MANY, "peer", 2.0)
    yield compared("send_many of 1,000, raw insert", samples, MANY, "raw", 0.5)
