"""Cases: connecting and joining, and what a connection takes while it says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from server.programs import Load, Server
from server.sides import LIMIT, OURS, Bench, Row, Turns

_CPU = "conn_cpu_us"
_JOINS = 5000
_PRIVATE_JOINS = 2000


def joins(bench: Bench) -> Iterator[Row]:
    """Connections that join one topic, each with a token of its own, and then are idle."""
    tokens_file = bench.token_file(_JOINS)
    sides: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        OURS: bench.begin_ours,
        LIMIT: bench.begin_limit,
        **bench.peers,
    }

    def turn(side: str) -> Load:
        with sides[side]() as server:  # a new one, which knows none of the tokens
            if side == OURS:
                bench.loader.run(server, "-n", 20, "-d", 0.1)  # all modules and pools are there
            mine = tokens_file if side == OURS else None
            return bench.loader.run(server, "-n", _JOINS, "-d", 0.2, tokens_file=mine)

    result = bench.take_turns({side: partial(turn, side) for side in sides})
    rate = result.per_second(OURS, _CPU)
    yield Row(
        "connect, upgrade and join, HS256 checked",
        f"{rate.text(0)}/s of a core",
        "5,000/s",
        rate.middle >= 5000,
        result.cells(_join),
    )
    memory = result.of(OURS, "kb_per_conn")
    yield Row(
        "memory of an idle joined connection",
        f"{memory:.1f} KB",
        "6 KB",
        memory <= 6,
        result.cells(lambda turns, side: f"{turns.of(side, 'kb_per_conn'):.1f} KB"),
    )


def private_joins(bench: Bench) -> Iterator[Row]:
    """Joins of a private topic: a policy is asked about each."""
    tokens_file = bench.token_file(_PRIVATE_JOINS)
    database_us = []

    def turn() -> Load:
        with bench.begin_ours() as server:
            begin = bench.database.cpu_seconds()
            load = bench.loader.run(
                server, "-n", _PRIVATE_JOINS, "-d", 0.2, tokens_file=tokens_file, private=True
            )
            database_us.append((bench.database.cpu_seconds() - begin) / _PRIVATE_JOINS * 1e6)
            return load

    # The database works as much for it as the server: it may have all cores.
    with bench.database.on(bench.cores.load | {bench.cores.server}):
        result = bench.take_turns({OURS: turn})
    rate = result.per_second(OURS, _CPU)
    yield Row(
        "the same, private, with a policy",
        f"{rate.text(0)}/s of a core",
        "1,500/s",
        rate.middle >= 1500,
        {OURS: f"{_join(result, OURS)}, and {sorted(database_us)[len(database_us) // 2]:.0f} us "
         "of the database"},
    )  # fmt: skip


def _join(result: Turns, side: str) -> str:
    return f"{result.of(side, _CPU):.0f} us ({result.of(side, 'conn_per_s'):,.0f}/s)"
