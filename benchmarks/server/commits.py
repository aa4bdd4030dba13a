"""Case: from a row that is written to the clients that get it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from statistics import median

import psycopg

from server.programs import Load
from server.sides import OURS, Bench, Row

_ROWS_PER_SECOND = 1000
_WRITERS = 4
_SUBSCRIBERS = 100
_SECONDS = 8.0
# The row holds when it was written, on the clock of the load generator. So its way begins with its
# commit, and contains the disk. %s is how far the clocks are apart; the zeros make it 19 digits.
_SEND = """
select realtime.send(
    jsonb_build_object(
        's',
        '@@' || lpad((extract(epoch from clock_timestamp()) * 1e9 - %s)::bigint::text, 19, '0')
    ),
    'x', 't0', false
)
"""


def commit_to_client(bench: Bench) -> Iterator[Row]:
    """1,000 rows a second, each in a transaction of its own, to 100 subscribers."""
    inserts: list[float] = []
    with bench.begin_ours() as server:

        def turn() -> Load:
            return bench.loader.run(
                server, "-n", _SUBSCRIBERS, "-P", 0, "-W", 1.5, "-d", 4,
                meanwhile=lambda: inserts.extend(_write(bench.database.url)),
            )  # fmt: skip

        result = bench.take_turns({OURS: turn})
    written = len(inserts) / bench.rounds / _SECONDS
    for figure, name, most in (("p50_us", "p50", 1.5), ("p99_us", "p99", 10.0)):
        milliseconds = result.of(OURS, figure) / 1e3
        yield Row(
            f"commit to client, {written:,.0f} rows/s to {_SUBSCRIBERS} subscribers: {name}",
            f"{milliseconds:.2f} ms",
            f"at most {most:g} ms",
            milliseconds <= most,
            {OURS: f"the statement and its commit: {_share(inserts, name):.2f} ms"},
        )


def _share(inserts: list[float], name: str) -> float:
    ordered = sorted(inserts)
    return (median(ordered) if name == "p50" else ordered[int(len(ordered) * 0.99)]) * 1e3


def _write(url: str) -> list[float]:
    """Writes for a while; the seconds that each insert with its commit took."""
    inserts: list[float] = []
    begin = time.monotonic()
    apart = time.time_ns() - time.monotonic_ns()

    def write(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            step = _WRITERS / _ROWS_PER_SECOND
            due = begin + step * number / _WRITERS
            while due < begin + _SECONDS:
                if (wait := due - time.monotonic()) > 0:
                    time.sleep(wait)
                due += step
                start = time.monotonic()
                connection.execute(_SEND, (apart,))
                inserts.append(time.monotonic() - start)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(_WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return inserts
