"""Opens connections: the one place that turns a URL into one, or into a readable error.

Above: everything that talks to Postgres. Below: psycopg.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db.errors import ConnectionFailed, UnsupportedVersion

CONNECT_TIMEOUT_SECONDS = 10
OLDEST_SERVER = 140000

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def conninfo(database_url: str, **overrides: str) -> str:
    """The connection string for a URL, with our defaults where it says nothing.

    Raises:
        ConnectionFailed: the URL cannot be read.
    """
    try:
        given = conninfo_to_dict(database_url)
    except psycopg.Error as error:
        raise _unreadable() from error
    if _splits_the_password(database_url):
        raise _unreadable()
    defaults = {"application_name": "realtime-db", "connect_timeout": str(CONNECT_TIMEOUT_SECONDS)}
    return make_conninfo("", **{**defaults, **given, **overrides})


def _splits_the_password(database_url: str) -> bool:
    """Whether libpq takes the end of a password for the host, which errors would then show."""
    if not database_url.startswith(("postgresql://", "postgres://")):
        return False
    address, _, path = database_url.partition("://")[2].partition("/")
    return address.count("@") > 1 or "@" in path.partition("?")[0]


def _unreadable() -> ConnectionFailed:
    return ConnectionFailed(
        "the database URL cannot be read",
        hint="It looks like postgresql://user:password@host:5432/database. Percent-encode @, :, /, "
        "?, # and % in the password: %40 is @.",
    )


def describe(database_url: str) -> str:
    """Which database a URL means, without its password: `user@host:port/database`."""
    known = conninfo_to_dict(conninfo(database_url))
    user, host = known.get("user", "(default user)"), known.get("host", "(default host)")
    return f"{user}@{host}:{known.get('port', 5432)}/{known.get('dbname', user)}"


@asynccontextmanager
async def connect(database_url: str, *, autocommit: bool = True) -> AsyncIterator[Connection]:
    """A connection, closed at the end of the block.

    Args:
        database_url: URL or libpq connection string; empty means libpq's own defaults.
        autocommit: false opens a transaction with the first statement.

    Raises:
        ConnectionFailed: not reachable, or login refused.
        UnsupportedVersion: older than PostgreSQL 14.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo(database_url), autocommit=autocommit
        )
    except psycopg.OperationalError as error:
        raise connection_failed(database_url, error) from error
    async with connection:
        check_version(connection.info.server_version)
        yield connection


def cut(connection: Connection) -> None:
    """Ends a connection at once, from this side only: who waits for its answer gets an error.

    To cancel the wait instead would ask the other end, which may be why there is no answer.
    """
    with (
        suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


def impatient(answer_seconds: float) -> type[Connection]:
    """A kind of connection that ends when the database does not answer.

    For limits of the database itself are of no use when its network has forgotten the connection:
    nothing would ever come.

    Args:
        answer_seconds: how long to wait for each answer, more than a statement may take.
    """

    class Impatient(psycopg.AsyncConnection[tuple[Any, ...]]):
        async def wait(self, *given: Any, **named: Any) -> Any:
            timer = asyncio.get_running_loop().call_later(answer_seconds, cut, self)
            try:
                return await super().wait(*given, **named)
            finally:
                timer.cancel()

    return Impatient


def check_version(server_version: int) -> None:
    """Refuses a server (`server_version_num`) that lacks what we build on.

    Raises:
        UnsupportedVersion: older than PostgreSQL 14.
    """
    if server_version < OLDEST_SERVER:
        raise UnsupportedVersion(
            f"the server is PostgreSQL {server_version // 10000}; realtime-db needs 14 or newer",
            hint="Upgrade the server, or use another database.",
        )


def connection_failed(database_url: str, error: Exception) -> ConnectionFailed:
    """The readable form of a failed connection attempt; psycopg's text holds no password."""
    cause = str(error).strip().splitlines()
    return ConnectionFailed(
        f"cannot connect to {describe(database_url)}: {cause[0] if cause else 'unknown cause'}",
        hint="Check --database-url (or DATABASE_URL), and that the server accepts the login.",
    )


def conninfo_url(given: str) -> str:
    """The `postgresql://` URL of a connection string, for people and for other programs."""
    known = conninfo_to_dict(given)
    user, password, name = (
        quote(str(known.get(part) or ""), safe="") for part in ("user", "password", "dbname")
    )
    address = f"{known.get('host', 'localhost')}:{known.get('port', 5432)}"
    return f"postgresql://{user}:{password}@{address}/{name}"
