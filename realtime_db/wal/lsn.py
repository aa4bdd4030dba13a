"""Positions in the WAL. No I/O here.

An LSN is an `int` in this codebase: the number of bytes since the beginning of the WAL, so that
`<` and `max()` mean what they say. People and SQL write it as two hexadecimal halves:
`16/B374D848`.
"""

from __future__ import annotations

import re

from realtime_db.errors import DecodeError

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


def parse(text: str) -> int:
    """Reads the form that Postgres prints (type `pg_lsn`).

    Args:
        text: two hexadecimal numbers of up to 8 digits with a slash, such as `16/B374D848`.

    Raises:
        DecodeError: the text is anything else.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise DecodeError(f"{text!r} is not a position in the WAL, such as 16/B374D848")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """Writes the form that Postgres reads: `format_lsn(0x16B374D848)` is `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFF_FFFF:X}"
