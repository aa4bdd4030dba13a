"""Lines of the log, which strangers write parts of."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from realtime_db.errors import RealtimeDbError
from realtime_db.logs import Complaints, JsonLines, PoolFilter, TextLines


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("realtime_db", logging.WARNING, "", 0, message, values, None)


def test_a_topic_cannot_begin_a_line_of_its_own() -> None:
    text = TextLines().format(record("join of %s refused", "room\n2026-01-01 ERROR forged\u2028x"))

    assert len(text.splitlines()) == 1
    assert text.endswith("WARNING join of room 2026-01-01 ERROR forged\\u2028x refused")


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


def test_a_hint_stands_on_the_same_line() -> None:
    error = RealtimeDbError("cannot connect to app@db:5432/app: refused", hint="Check the URL.")

    text = TextLines().format(record("the database is not followed: %s", error))
    line = json.loads(JsonLines().format(record("the database is not followed: %s", error)))

    assert text.endswith("cannot connect to app@db:5432/app: refused. Check the URL.")
    assert line["message"].endswith("cannot connect to app@db:5432/app: refused. Check the URL.")


def test_a_cause_is_said_once_and_then_at_growing_intervals() -> None:
    now = 0.0
    complaints = Complaints(logging.getLogger("test"), lambda: now)
    said = {}
    for second in range(300):
        now = float(second)
        if text := complaints.due("no database"):
            said[second] = text

    assert said == {
        0: "no database",
        30: "still: no database",
        90: "still: no database",
        210: "still: no database",
    }
    assert complaints.due("no password") == "no password"
    complaints.over()
    assert complaints.due("no database") == "no database"


def test_intervals_do_not_grow_for_ever() -> None:
    now = 0.0
    complaints = Complaints(logging.getLogger("test"), lambda: now)
    said = []
    for minute in range(1000):
        now = 60.0 * minute
        if complaints.due("no database"):
            said.append(minute)

    assert said[-1] - said[-2] == 30


def test_what_psycopg_says_is_for_people_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = logging.getLogger("psycopg.pool")
    configured = PoolFilter()
    pool.addFilter(configured)
    try:
        for address in (1, 2):
            pool.warning("discarding closed connection: %s", f"<a.<locals>.B [BAD] at {address}>")
    finally:
        pool.removeFilter(configured)

    assert caplog.messages == ["discarding closed connection: one of ours"]
