"""Asks the policies on `realtime.messages`, as the user, what they let the user do (PROTOCOL 10).

Above: the channels and REST, which ask at a join, at a new token and at the first broadcast. Below:
the SQL function `realtime.authorize`, which does all of it in one round trip and stores nothing.

A policy that says no, or fails, is an answer: `Access` or `WriteAccess` with a reason for the log.
When the question could not be asked, a `CheckFailed` says so in the words of the protocol.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Literal

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from realtime_db.auth.access import (
    Access,
    CheckFailed,
    DatabaseLackOfConnections,
    IncreaseConnectionPool,
    MissingPartition,
    QueryCanceled,
    UnableToConnectToProject,
    WriteAccess,
)
from realtime_db.auth.tokens import Claims
from realtime_db.database import Connection

Extension = Literal["broadcast", "presence"]

# No flush at the end: what was written has been rolled back, so there is nothing to keep. The
# setting ends with the transaction, which is this statement.
_AUTHORIZE: Final = """
select pg_catalog.set_config('synchronous_commit', 'off', true),
    a.broadcast, a.presence, a.refusal, a.refusal_code
from realtime.authorize(%s, %s::jsonb, %s::jsonb, %s) as a
"""
# As jsonb takes them: it knows no U+0000 and no half of a surrogate pair.
_NOT_TEXT: Final = "the topic, the claims or the headers hold what this database has no text for"


class Policies:
    """Asks, over a pool of connections.

    The pool's login must own `realtime.messages` or have its rights (or BYPASSRLS), and must have
    been granted the roles that tokens name. Its connections should be in autocommit, or each
    question costs two round trips more, and have a `statement_timeout`.
    """

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool
        self._connection_errors = 0

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        """What a user may read of a private topic.

        Args:
            topic: the sub-topic, without `realtime:`.
            claims: of the user's token.
            headers: of the user's request, for policies that look at them.

        Raises:
            CheckFailed: the policies could not be asked.
        """
        broadcast, presence, reason, _ = await self._ask(topic, claims, headers, None)
        return Access(broadcast, presence, reason)

    async def write_access(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None = None,
        extension: Extension = "broadcast",
    ) -> WriteAccess:
        """Whether a user may send to a private topic, or track presence in it.

        Args:
            topic: the sub-topic, without `realtime:`.
            claims: of the user's token.
            headers: of the user's request, for policies that look at them.
            extension: which of the two is to be written.

        Raises:
            CheckFailed: the policies could not be asked.
        """
        broadcast, presence, reason, code = await self._ask(topic, claims, headers, extension)
        granted = broadcast if extension == "broadcast" else presence
        return WriteAccess(granted, reason, failed=code not in (None, "42501"))

    async def _ask(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None,
        write_extension: Extension | None,
    ) -> tuple[bool, bool, str | None, str | None]:
        parameters = (topic, claims.json, json.dumps(dict(headers or {})), write_extension)
        try:
            async with self._connection() as connection:
                cursor = await connection.execute(_AUTHORIZE, parameters)
                row = await cursor.fetchone()
        except (errors.DataError, errors.ProgramLimitExceeded, UnicodeEncodeError):
            # From psycopg for what cannot be sent, from Postgres for what is no jsonb; errors of
            # the policies are caught in the function.
            return False, False, _NOT_TEXT, "22021"
        except psycopg.Error as error:
            raise _check_failed(error) from error
        assert row is not None
        _, broadcast, presence, reason, code = row
        return broadcast, presence, reason, code

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.connection() as connection:
                self._connection_errors = self._count_connection_errors()
                yield connection
        except TooManyRequests as error:
            raise IncreaseConnectionPool(str(error)) from error
        except PoolTimeout as error:
            # The pool waits as patiently for a database that is down as for a free connection;
            # what tells them apart is whether it has failed to connect since it last could.
            if self._count_connection_errors() > self._connection_errors:
                raise UnableToConnectToProject(
                    "the database cannot be reached",
                    hint="Check --database-url (or DATABASE_URL), and that the server accepts it.",
                ) from error
            raise IncreaseConnectionPool(
                f"all {self._pool.max_size} connections were in use for too long",
                hint="Let the pool have more connections.",
            ) from error

    def _count_connection_errors(self) -> int:
        return self._pool.get_stats().get("connections_errors", 0)


def _check_failed(error: psycopg.Error) -> CheckFailed:
    cause = error.diag.message_primary or str(error) or type(error).__name__
    state = error.sqlstate or ""
    if state == "RT003":
        return MissingPartition(
            "realtime.messages has no partition for today",
            hint="Run `realtime-db maintain`, and let it run every day.",
        )
    if state in ("57014", "55P03", "40P01", "40001"):
        return QueryCanceled(f"the policies were not asked to the end: {cause}")
    if state.startswith("53"):
        return DatabaseLackOfConnections(f"the database lacks resources: {cause}")
    if isinstance(error, psycopg.OperationalError):
        return UnableToConnectToProject(f"the connection to the database was lost: {cause}")
    if state == "42501":
        return CheckFailed(
            f"the server may not ask the policies: {cause}",
            hint="Let it log in as the owner of realtime.messages, or as a role that was granted "
            "that owner; then it may also execute realtime.authorize.",
        )
    return CheckFailed(f"the policies could not be asked: {cause}")
