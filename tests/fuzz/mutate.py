"""Inputs that are nearly right: those of a corpus, changed a little. The same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_NUMBERS = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00\x00", b"\xff\xff", b"\xff\xff\xff\xff")


def mutants(
    corpus: Sequence[bytes], words: Sequence[bytes], count: int, seed: str
) -> Iterator[bytes]:
    """So many of them.

    Args:
        corpus: inputs that are worth changing.
        words: of the language of the target.
        count: how many.
        seed: others make others.
    """
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            _mutate(data, corpus, words, chance)
        yield bytes(data)


def _mutate(
    data: bytearray, corpus: Sequence[bytes], words: Sequence[bytes], chance: random.Random
) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
    match chance.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.randrange(256)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end] * chance.choice((1, 1, 2, 8))
        case 4:
            data[at : at + chance.choice((0, 4))] = chance.choice(words)
        case 5:
            number = chance.choice(_NUMBERS)
            data[at : at + len(number)] = number
        case _:
            other = chance.choice(corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
