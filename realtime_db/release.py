"""Which release of the SQL objects the server needs.

A database may have a newer one, so migrate first, and then restart the servers.
"""

from __future__ import annotations

from typing import Final

import psycopg

from realtime_db.database import Connection
from realtime_db.errors import NotInstalled
from realtime_db.install.releases import version_key

NEEDED: Final = "0.4.0"
"""The oldest one that all statements of the server work with."""


async def check_release(connection: Connection) -> None:
    """Makes sure that a database has what the server needs.

    Raises:
        NotInstalled: it has not.
    """
    try:
        row = await (await connection.execute("select realtime.version()")).fetchone()
    except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName):
        database = connection.info.dbname
        raise NotInstalled(
            f"realtime-db is not installed in database {database}", hint="Run: realtime-db migrate"
        ) from None
    assert row is not None, "a select without from has one row"
    if version_key(row[0]) < version_key(NEEDED):
        raise NotInstalled(
            f"database {connection.info.dbname} has realtime-db {row[0]}, and this server needs "
            f"{NEEDED}",
            hint="Run: realtime-db migrate",
        )
