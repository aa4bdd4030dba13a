"""Cases: one message to all subscribers of a topic, and some of them that do not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from server.programs import Load, Server
from server.sides import LIMIT, OURS, Bench, Row, Turns, everybody

_CPU = "srv_us_per_delivery"
_RUN = ("-z", 200, "-W", 0.3, "-d", 1.5)
_STALLED = 10
# 240 KB a second: after 5 s a client that does not read is a megabyte behind, and thrown out.
_STALLED_RUN = ("-n", 1000, "-z", 8000, "-r", 30, "-W", 1, "-d", 7)
_STALLED_KB = 1.5 * 1024


def thousand(bench: Bench) -> Iterator[Row]:
    """1,000 subscribers: single messages, and 8 that are pending at once."""
    with everybody(bench) as servers:
        turns: dict[str, Callable[[], Load]] = {}
        for side, server in servers.items():
            turns[side] = partial(bench.loader.run, server, "-n", 1000, "-w", 1, *_RUN)
            if side != LIMIT:
                turns[f"{side} 8"] = partial(bench.loader.run, server, "-n", 1000, "-w", 8, *_RUN)
        result = bench.take_turns(turns)
    single = result.ratio(LIMIT, OURS, _CPU)
    yield Row(
        "1,000 subscribers, 200 B, single messages",
        f"{single.text()} of C",
        "0.60 of C",
        single.middle >= 0.6,
        {side: _delivery(result, side) for side in servers},
    )
    pending = result.ratio(LIMIT, f"{OURS} 8", _CPU)
    yield Row(
        "the same, 8 pending",
        f"{pending.text()} x C's single",
        "3.5 x C's single",
        pending.middle >= 3.5,
        {side: _delivery(result, f"{side} 8") for side in servers if side != LIMIT},
    )


def ten_thousand(bench: Bench) -> Iterator[Row]:
    """10,000 subscribers, from four source addresses."""
    what = "10,000 subscribers, 200 B, single messages"
    if not bench.many:
        yield Row(what, "skipped: `ulimit -n` is under 10,100", "0.60 of C")
        return
    many = ("-n", 10_000, "-I", 4, "-w", 1, "-z", 200, "-W", 0.5, "-d", 2)
    with bench.begin_ours() as ours, bench.begin_limit() as limit:
        result = bench.take_turns(
            {
                LIMIT: partial(bench.loader.run, limit, *many),
                OURS: partial(bench.loader.run, ours, *many),
            }
        )
    ratio = result.ratio(LIMIT, OURS, _CPU)
    yield Row(
        what, f"{ratio.text()} of C", "0.60 of C", ratio.middle >= 0.6, result.cells(_delivery)
    )


def stalled(bench: Bench) -> Iterator[Row]:
    """10 of 1,000 subscribers that never read: what they cost the others, and in memory."""
    quiet, stalling = "without", "with"
    with bench.begin_ours("--max-write-buffer-bytes", "1048576") as server:
        run = partial(bench.loader.run, server, *_STALLED_RUN)
        result = bench.take_turns({quiet: run, stalling: partial(run, "-S", _STALLED)})
    ratio = result.ratio(stalling, quiet, "p99_us")
    yield Row(
        f"{_STALLED} of 1,000 stalled, 30 messages/s of 8 KB: p99 of the others",
        f"{ratio.text()} x that without",
        "at most 1.5 x",
        ratio.middle <= 1.5,
        {
            OURS: f"{result.of(stalling, 'p99_us') / 1e3:.1f} ms "
            f"({result.of(quiet, 'p99_us') / 1e3:.1f} ms without)"
        },
    )
    grown = [load.rss_max_kb - load.rss_joined_kb for load in result.loads[stalling]]
    thrown_out = result.of(stalling, "slow_closed")
    yield Row(
        "the same: memory for each of the stalled, until it is thrown out",
        f"{max(grown) / _STALLED:,.0f} KB",
        "bounded: 1.5 MB",
        max(grown) / _STALLED <= _STALLED_KB and thrown_out == _STALLED,
        {OURS: f"{thrown_out:.0f} thrown out, {median(grown) / 1024:.1f} MB more in all"},
    )


def _delivery(result: Turns, side: str) -> str:
    return f"{result.of(side, _CPU):.2f} us ({result.of(side, 'dps') / 1e3:,.0f} k/s)"


def messages_in(bench: Bench) -> Iterator[Row]:
    """What clients send, each message to one subscriber."""

    def turn(server: Server) -> Load:
        return bench.loader.run(
            server, "-n", 1, "-P", 10, "-w", 64, "-z", 200, "-W", 0.3, "-d", 1.5
        )

    with everybody(bench) as servers:
        result = bench.take_turns({side: partial(turn, one) for side, one in servers.items()})
    rate = result.per_second(OURS, _CPU)
    yield Row(
        "messages in from 10 clients, each to one subscriber",
        f"{rate.text(0)}/s of a core",
        "40,000/s",
        rate.middle >= 40_000,
        result.cells(_delivery),
    )
