"""What a check of `doctor` answers, and how checks ask.

Above: `check_server` and `check_objects`. Below: the catalogs.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from psycopg import sql

from realtime_db.database import Connection


class Outcome(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  (not a password)
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: of the thing that was looked at.
        outcome: a failure keeps messages from being delivered, or delivers them to the wrong ones.
        detail: what was found, in one line.
        mend: the statement that mends it, below a comment if this login is not who may run it;
            None if all is well.
    """

    name: str
    outcome: Outcome
    detail: str
    mend: str | None = None


Finding = Awaitable[list[Check]]


async def rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    """All rows of a query."""
    cursor = await connection.execute(query.encode(), parameters or None)
    return await cursor.fetchall()


def as_administrator(statement: str, then: str = "") -> str:
    """A statement that the login of the server should not be able to run."""
    return f"-- As an administrator{then}:\n{statement}"


def counted(count: int, what: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} {what}{'s' * (count != 1)}"


def table_name(table: str) -> str:
    """`realtime.table`, quoted."""
    return sql.Identifier("realtime", table).as_string()


def identifier(name: str | None) -> str:
    """A quoted name."""
    return sql.Identifier(name or "").as_string()


def literal(text: str) -> str:
    """A quoted string."""
    return sql.Literal(text).as_string()
