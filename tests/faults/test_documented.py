"""The page of guarantees names the test of each fault."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "guarantees.md"


def test_the_documentation_lists_the_tests_that_there_are() -> None:
    listed = set(re.findall(r"`(test_\w+\.py)` `(test_\w+)`", PAGE.read_text()))
    there = {
        (path.name, name)
        for path in HERE.glob("test_*.py")
        if path != Path(__file__).resolve()
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert listed == there
