"""Lines of the log: for people, or as JSON for programs. No I/O here.

Topics, reasons and payloads come from strangers, so that neither form lets a line break through.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Final

STILL_SECONDS: Final = 30.0
MAX_STILL_SECONDS: Final = 1800.0
_MAX_CAUSES: Final = 100

# `Unauthorized: You do not …`: what the protocol calls an error, wherever it stands in a message.
_CODE: Final = re.compile(r"(?:^|: )([A-Z][A-Za-z]{5,}): ")
_OBJECT: Final = re.compile(r"<.*>")
_HINT: Final = re.compile(r"\n {2}(?! )")
_LINE_BREAK: Final = re.compile(r"\s*[\r\n]\s*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """Text on one line, and control characters as `\\u001b`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", _on_a_line(text))


def _on_a_line(text: str) -> str:
    """A hint, which stands below what it is about, becomes a sentence; a line break a space."""
    return _LINE_BREAK.sub(" ", _HINT.sub(". ", text))


class TextLines(logging.Formatter):
    """`2026-11-24 09:00:00,000 INFO message`; a traceback keeps its lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escape(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `message`, and `code` and `traceback` if any.

    `code` is what the protocol calls the error, such as `Unauthorized`.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = _on_a_line(record.getMessage())
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": message,
        }
        if found := _CODE.search(message):
            line["code"] = found[1]
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Complaints:
    """Causes of failure, each said once, and then that it is so still, at growing intervals.

    Args:
        log: where to.
        now: seconds.
    """

    def __init__(self, log: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._said: dict[str, tuple[float, float]] = {}

    def say(self, cause: str, *, level: int = logging.ERROR) -> None:
        """Logs a cause that has come up, perhaps again, if it is time to."""
        if text := self.due(cause):
            self._log.log(level, "%s", text)

    def due(self, cause: str) -> str | None:
        """What there is to say of a cause that has come up; None if it was said lately."""
        now = self._now()
        if cause not in self._said:
            if len(self._said) >= _MAX_CAUSES:
                self._said.clear()
            self._said[cause] = now, STILL_SECONDS
            return cause
        said_at, pause = self._said[cause]
        if now - said_at < pause:
            return None
        self._said[cause] = now, min(pause * 2, MAX_STILL_SECONDS)
        return f"still: {cause}"

    def over(self) -> None:
        """What failed has succeeded: the next failure is a new one."""
        self._said.clear()


class PoolFilter(logging.Filter):
    """Keeps psycopg from saying the same for each connection, and from showing Python's objects."""

    def __init__(self) -> None:
        super().__init__()
        self._complaints = Complaints(logging.getLogger())

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = self._complaints.due(_OBJECT.sub("one of ours", record.getMessage()))
        record.msg, record.args = text, ()
        return text is not None


def configure(*, as_json: bool, level: str = "info") -> None:
    """Sends the log to stderr.

    Args:
        as_json: one JSON object a line.
        level: the least that is logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(handlers=[handler], level=level.upper())
    for name in ("psycopg", "psycopg.pool"):  # filters do not count for loggers below
        logging.getLogger(name).addFilter(PoolFilter())
