"""LSNs are `int` inside and `16/B374D848` outside."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.errors import DecodeError
from realtime_db.wal.lsn import format_lsn, parse


@given(st.integers(0, 2**64 - 1))
def test_every_lsn_survives_being_written_and_read(lsn: int) -> None:
    assert parse(format_lsn(lsn)) == lsn


def test_an_lsn_is_written_as_postgres_writes_it() -> None:
    assert format_lsn(0x16_B374D848) == "16/B374D848"
    assert format_lsn(0x1_0000000A) == "1/A"


@pytest.mark.parametrize("text", ["", "16", "16/", "/16", "16/B374D8480", "g/1", " 1/1", "1/1\n"])
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(DecodeError, match="not a position"):
        parse(text)


@given(st.text())
def test_any_text_is_an_lsn_or_the_typed_error(text: str) -> None:
    with suppress(DecodeError):
        assert 0 <= parse(text) < 2**64
