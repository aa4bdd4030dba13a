"""Cases that have programs of their own: a sender's stall, and what the WAL reader takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import maintain_stall
import reader
from harness import Place, Row, spread


def stall(place: Place, rounds: int) -> Iterator[Row]:
    """A sender's longest wait for a lock during maintenance, beside a reader of the parent."""
    runs = max(1, rounds // 5)
    ways = asyncio.run(maintain_stall.measure(place.admin_url, runs=runs))
    for way, command in (
        ("program", "realtime-db maintain"),
        ("function", "realtime.maintain()"),
    ):
        longest = ways[way]["lock_max_ms"]
        yield Row(
            f"a sender's longest wait for a lock during {command}, reader of 10 s",
            got=f"{longest:.1f} ms",
            must=f"{maintain_stall.TARGET_MS:g} ms",
            reached=longest <= maintain_stall.TARGET_MS,
            ours=f"{longest:.1f} ms",
            peer=f"{ways['naive']['lock_max_ms']:,.0f} ms",
        )


def decoding(place: Place, rounds: int) -> Iterator[Row]:
    """Messages a second of the decoder alone, and of the reader with its walsender."""
    musts = dict(zip(reader.SHAPES, (150_000, 80_000), strict=True))
    for shape, (messages, per_transaction) in reader.SHAPES.items():
        alone, through = asyncio.run(_decode(place, rounds, messages, per_transaction))
        figure = spread(alone)
        yield Row(
            f"reader, decode only, messages {shape}",
            got=f"{figure.text(0)} /s",
            must=f"{musts[shape]:,} /s",
            reached=figure.middle >= musts[shape],
            ours=f"{spread(through).middle:,.0f} /s with the walsender",
        )


async def _decode(
    place: Place, rounds: int, messages: int, per_transaction: int
) -> tuple[list[float], list[float]]:
    url, slots = place.owner_url, [f"bench_{n}" for n in range(4)]
    for slot in slots:
        await reader.make_slot(url, slot)
    await reader.write(url, messages, per_transaction)
    recorded = await reader.frames(url, slots[0])
    alone = [reader.decode(recorded) for _ in range(rounds)]
    through = [(await reader.read(url, slot, messages))[0] for slot in slots[1:]]
    for slot in slots:
        await reader.drop_slot(url, slot)
    return alone, through
