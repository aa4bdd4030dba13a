"""`make bench-sql`: the database package beside the raw insert and a peer, as a table.

    python benchmarks/bench_sql.py                                 a Postgres of our own
    python benchmarks/bench_sql.py --binaries ~/postgres-15        another release
    python benchmarks/bench_sql.py --database-url postgresql://…   a running server, as superuser

Below: the modules with the cases, and `harness`, which compares. How to read the table, and what
it was last: README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import changes
import delivery
import million
import others
import sends
from harness import Place, Row, place

from realtime_db.errors import RealtimeDbError

Case = Callable[[Place, int], Iterator[Row]]

CASES: dict[str, Case] = {
    "send": sends.send_in_one_transaction,
    "sync": sends.send_one_a_transaction,
    "many": sends.send_many,
    "update": changes.update,
    "insert": changes.insert,
    "delete": changes.delete,
    "xids": changes.transaction_ids,
    "delivery": delivery.last_message,
    "million": million.wal_and_replay,
    "maintain": others.stall,
    "decode": others.decoding,
}
_ROUNDS = 5
_HEADINGS = ("what", "result", "must", "reached", "ours", "raw insert", "peer")


def main() -> int:
    """Runs the cases and prints their table; 0 unless something broke, whatever the figures."""
    options = _parse()
    try:
        with place(
            database_url=options.database_url, binaries=options.binaries, cpu=options.cpu
        ) as where:
            print(_heading(where, options.rounds))
            print(_line(_HEADINGS))
            print(_line(["---"] * len(_HEADINGS)), flush=True)
            for name in options.only:
                begin = time.monotonic()
                for row in CASES[name](where, options.rounds):
                    print(_line(_cells(row)), flush=True)
                _say(f"{name}: {time.monotonic() - begin:.0f} s")
    except RealtimeDbError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_sql.py", description="Measures the SQL of realtime-db beside a peer."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--binaries", type=Path, help="a tree of Postgres to start")
    where.add_argument("--database-url", help="a superuser's, of a running server")
    parser.add_argument(
        "--only",
        type=_cases,
        default=list(CASES),
        metavar="CASE,…",
        help=f"some of {', '.join(CASES)}",
    )
    parser.add_argument("--rounds", type=_positive, default=_ROUNDS, help="how often, at least")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="count the session's processor time where only it works: for a busy machine (Linux)",
    )
    return parser.parse_args()


def _cases(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no case {', '.join(unknown)}; there are {', '.join(CASES)}"
        )
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _heading(where: Place, rounds: int) -> str:
    lz4 = "with" if where.has_lz4 else "without"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, PostgreSQL {where.version} {lz4} lz4, JIT {where.jit}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds. "
        f"{'Processor time. ' if where.cpu else ''}Medians, with quartiles in parentheses.\n"
    )


def _cells(row: Row) -> Iterable[str]:
    reached = {True: "yes", False: "NO", None: ""}[row.reached]
    return (row.what, row.got, row.must, reached, row.ours, row.raw, row.peer)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
