"""Lines of the log: for people, or as JSON for programs. No I/O here.

Topics, reasons and payloads come from strangers, so that neither form lets a line break through.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Final

# `Unauthorized: You do not …`: what the protocol calls an error, wherever it stands in a message.
_CODE: Final = re.compile(r"(?:^|: )([A-Z][A-Za-z]{5,}): ")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """Text on one line, with control characters as `\\u000a`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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
        message = record.getMessage()
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


def configure(*, as_json: bool) -> None:
    """Sends the log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
