"""Lines of the log, which strangers write parts of."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from realtime_db.logs import JsonLines, TextLines


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("realtime_db", logging.WARNING, "", 0, message, values, None)


def test_a_topic_cannot_begin_a_line_of_its_own() -> None:
    text = TextLines().format(record("join of %s refused", "room\n2026-01-01 ERROR forged\u2028x"))

    assert len(text.splitlines()) == 1
    assert text.endswith("WARNING join of room\\u000a2026-01-01 ERROR forged\\u2028x refused")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("MalformedWebSocketMessage: no V1 frame", "MalformedWebSocketMessage"),
        ("join of realtime:a refused: Unauthorized: You do not have", "Unauthorized"),
        ("listening on http://127.0.0.1:4000", None),
    ],
)
def test_json_has_the_code_that_the_protocol_gives_an_error(message: str, code: str | None) -> None:
    line = json.loads(JsonLines().format(record(message)))

    assert line["message"] == message
    assert line["level"] == "warning"
    assert line.get("code") == code


def test_json_keeps_a_traceback_on_its_line() -> None:
    entry = record("a question failed")
    try:
        raise ValueError("broken")
    except ValueError:
        entry.exc_info = sys.exc_info()

    text = JsonLines().format(entry)

    assert len(text.splitlines()) == 1
    assert "ValueError: broken" in json.loads(text)["traceback"]
