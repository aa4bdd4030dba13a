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
from psycopg_pool import AsyncConnectionPool

from realtime_db.errors import ConnectionFailed, UnsupportedVersion

CONNECT_TIMEOUT_SECONDS = 10
IDLE_SECONDS = 1.0
CHECK_SECONDS = 2.0
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


class Pool(AsyncConnectionPool[Connection]):
    """Connections in autocommit to share, and to leave when the database does not answer.

    For limits of the database itself are of no use when its network has forgotten a connection:
    nothing would ever come. What was not used for a second is asked first whether it still is
    there, and as soon as one is not, all that are idle are replaced: they went the same way.

    Args:
        database_url: URL or libpq connection string.
        size: how many at most.
        statement_seconds: how long a statement may take, and how long to wait for a connection.

    Raises:
        ConnectionFailed: the URL cannot be read.
    """

    def __init__(self, database_url: str, *, size: int, statement_seconds: float) -> None:
        self._answer_seconds = 2 * statement_seconds
        self._check_seconds = min(CHECK_SECONDS, statement_seconds / 2)
        self._replaced_at = float("-inf")
        self._replacing: asyncio.Task[None] | None = None
        limit = f"-c statement_timeout={int(statement_seconds * 1000)}"
        super().__init__(
            conninfo(database_url, options=limit),
            min_size=1,
            max_size=size,
            timeout=statement_seconds,
            connection_class=self._kind(),
            kwargs={"autocommit": True},
            check=self._is_there,
            open=False,
        )

    def _kind(self) -> type[Connection]:
        """Connections that end when an answer does not come."""
        pool = self

        class Impatient(_Heard):
            async def wait(self, *given: Any, **named: Any) -> Any:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(pool._answer_seconds, pool._silent, self)
                try:
                    answer = await super().wait(*given, **named)
                finally:
                    timer.cancel()
                self.heard_at = loop.time()
                return answer

        return Impatient

    async def _is_there(self, connection: Connection) -> None:
        """Raises if a connection that was idle does not answer."""
        assert isinstance(connection, _Heard)
        loop = asyncio.get_running_loop()
        if loop.time() - connection.heard_at < IDLE_SECONDS:
            return
        timer = loop.call_later(self._check_seconds, cut, connection)
        try:
            await connection.execute("")
        except psycopg.OperationalError:
            await self._replace(connection)
            raise
        finally:
            timer.cancel()

    def _silent(self, connection: _Heard) -> None:
        cut(connection)
        self._replacing = asyncio.get_running_loop().create_task(self._replace(connection))

    async def _replace(self, silent: _Heard) -> None:
        """Replaces those that are idle, unless that was done after this one was last heard of."""
        if silent.heard_at > self._replaced_at:
            self._replaced_at = asyncio.get_running_loop().time()
            await self.drain()


class _Heard(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that knows when the database last answered, by the clock of the loop."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.heard_at = asyncio.get_running_loop().time()


def first_line(error: BaseException) -> str:
    """What an error says, without the lines below it that show a statement or a hint."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
