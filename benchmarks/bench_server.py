"""`make bench-server`: our server beside the limit in C and three peers, as a table.

    python benchmarks/bench_server.py                  ours and C
    python benchmarks/bench_server.py --peers          also websockets, uvicorn and ws, installed
                                                       into a temporary folder
    python benchmarks/bench_server.py --only joins     one case

Below: the folder `server`, with the cases. How to read the table, and what it was last: SERVER.md
beside this file. Needs Linux, two cores, gcc and the headers of OpenSSL.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from server import commits, fanout, joining
from server.database import database
from server.programs import (
    Cores,
    Loader,
    Ours,
    Unavailable,
    allow_files,
    compile_programs,
    temporary_folder,
)
from server.sides import HEADINGS, Bench, Row, install_peers

from realtime_db.errors import RealtimeDbError

Case = Callable[[Bench], Iterator[Row]]

CASES: dict[str, Case] = {
    "fanout": fanout.thousand,
    "many": fanout.ten_thousand,
    "joins": joining.joins,
    "private": joining.private_joins,
    "in": fanout.messages_in,
    "commits": commits.commit_to_client,
    "stalled": fanout.stalled,
}
_MANY_FILES = 10_100
_ROUNDS = 3


def main() -> int:
    """Runs the cases and prints their table; 0 unless something broke, whatever the figures."""
    options = _parse()
    try:
        cores = Cores.divide(first=options.first)
        many = allow_files(_MANY_FILES)
        with temporary_folder() as folder:
            compile_programs(folder)
            peers, notes = install_peers(folder, cores) if options.peers else ({}, [])
            with database() as postgres:
                ours = Ours(postgres.url, cores)
                bench = Bench(
                    cores, Loader(folder), postgres, ours, folder, options.rounds, many, peers
                )
                print(_heading(postgres.version, options, notes))
                print(_line(HEADINGS))
                print(_line(["---"] * len(HEADINGS)), flush=True)
                for name in options.only:
                    begin = time.monotonic()
                    for row in CASES[name](bench):
                        print(_line(row.cells()), flush=True)
                    print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    except (Unavailable, RealtimeDbError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_server.py", description="Measures the server of realtime-db beside others."
    )
    parser.add_argument(
        "--peers", action="store_true", help="install three peers (pip, npm) and measure them too"
    )
    parser.add_argument(
        "--only",
        type=_cases,
        default=list(CASES),
        metavar="CASE,…",
        help=f"some of {', '.join(CASES)}",
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="go before everything else on this machine, which needs root: for latencies on a "
        "machine that is shared; the others will notice",
    )
    parser.add_argument("--rounds", type=_positive, default=_ROUNDS, help="turns of each side")
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


def _heading(postgres: str, options: argparse.Namespace, notes: list[str]) -> str:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = load > cores / 2
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, Python {platform.python_version()}, "
        f"PostgreSQL {postgres}, {options.rounds} rounds; medians, with quartiles in parentheses. "
        "Processor time of the server; by the clock in parentheses.",
        *([f"Peers: {', '.join(notes)}."] if notes else []),
        *(
            [
                f"Others were at work on this machine (load average {load:.1f} before the first "
                f"run), {'behind us' if options.first else 'beside us'}: times are longer than "
                "they would be alone."
            ]
            if busy
            else []
        ),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
