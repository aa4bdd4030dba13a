"""What alembic runs first: where the book is kept, and in whose transaction.

`realtime_db.install.migrate` hands over its connection; tests may hand over an engine.
"""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy
from alembic import context

from realtime_db.install import inspect

# On its own databases, Supabase keeps realtime.schema_migrations; this name cannot meet it.
OPTIONS: dict[str, Any] = {
    "version_table": inspect.VERSION_TABLE,
    "version_table_schema": "realtime",
}

# The version table is the first thing that alembic makes. `if not exists` asks for the right to
# create a schema even if it exists.
SCHEMA = """
do $$
begin
    if to_regnamespace('realtime') is null then
        create schema realtime;
    end if;
end;
$$
"""

# A script was made for one release: it must not be run on another.
GUARD = """
do $$
begin
    if not exists (select from realtime.realtime_db_release where version_num = '{start}') then
        raise exception 'this script is for a database with realtime-db {start}';
    end if;
end;
$$
"""


def run_offline() -> None:
    """Prints the script."""
    context.configure(
        dialect_name="postgresql", output_buffer=context.config.output_buffer, **OPTIONS
    )
    start = context.get_starting_revision_argument()
    with context.begin_transaction():
        context.execute(GUARD.format(start=start) if start else SCHEMA)
        context.run_migrations()


def run_online() -> None:
    """Runs it, in one transaction."""
    given = context.config.attributes["connection"]
    is_engine = isinstance(given, sqlalchemy.Engine)
    with given.begin() if is_engine else contextlib.nullcontext(given) as connection:
        context.configure(connection=connection, **OPTIONS)
        connection.exec_driver_sql(SCHEMA)
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
