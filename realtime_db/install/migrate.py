"""Installs and upgrades (provisional; see the package docstring)."""

from __future__ import annotations

from realtime_db.database import connect
from realtime_db.install import source


async def migrate(database_url: str) -> None:
    """Brings a database to the newest release."""
    async with connect(database_url, autocommit=False) as connection:
        await connection.execute("create schema realtime")
        await connection.execute(source.install_script().encode())
        await connection.execute("select realtime.setup()")
