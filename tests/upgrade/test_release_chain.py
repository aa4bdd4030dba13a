"""The frozen releases: unchanged, connected, and equal to the living tree when run one by one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from pytest_alembic.tests import (  # noqa: F401  (collected by their names)
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)

from realtime_db import resources
from realtime_db.install import inspect, migrate, releases, source

Describe = Callable[[str], dict[str, str]]

RELEASES = releases.releases()
MIGRATIONS = resources.migrations()


@pytest.fixture
def alembic_config() -> dict[str, Any]:
    # The first release does not go away by a downgrade, but by `uninstall`.
    return {
        "script_location": str(MIGRATIONS),
        "minimum_downgrade_revision": RELEASES[0],
        "version_table": inspect.VERSION_TABLE,
        "version_table_schema": "realtime",
    }


@pytest.fixture
def alembic_engine(empty_database_url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(empty_database_url),
        poolclass=sqlalchemy.NullPool,
    )
    yield engine
    engine.dispose()


def run_script(url: str, script: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create schema realtime")
        connection.execute(script.encode())
        connection.execute("select realtime.setup()")


@pytest.mark.parametrize("release", RELEASES)
def test_the_updates_up_to_a_release_equal_its_install_script(
    create_database: Callable[..., str], describe: Describe, release: str
) -> None:
    by_updates, at_once = create_database(), create_database()

    asyncio.run(migrate.migrate(by_updates, to=release))
    run_script(at_once, releases.install_script(release))

    assert describe(by_updates) == describe(at_once)


def test_all_releases_and_the_unreleased_changes_equal_the_living_tree(
    create_database: Callable[..., str], describe: Describe
) -> None:
    by_updates, at_once = create_database(), create_database()

    asyncio.run(migrate.migrate(by_updates, living=True))
    run_script(at_once, source.install_script())

    assert describe(by_updates) == describe(at_once)


def test_setup_called_again_changes_nothing(empty_database_url: str, describe: Describe) -> None:
    asyncio.run(migrate.migrate(empty_database_url))
    before = describe(empty_database_url)

    with psycopg.connect(empty_database_url) as connection:
        connection.execute("select realtime.setup()")

    assert describe(empty_database_url) == before


@pytest.mark.parametrize("path", sorted((MIGRATIONS / "sql").iterdir()), ids=lambda path: path.name)
def test_a_frozen_file_is_as_it_was_when_it_was_released(path: Path) -> None:
    assert releases.frozen(path.name)


def test_the_program_the_control_file_and_the_function_name_the_newest_release() -> None:
    project = resources.sql().parent
    newest = releases.newest()

    assert f'\nversion = "{newest}"\n' in (project / "pyproject.toml").read_text()
    assert f"default_version = '{newest}'" in (project / "realtime_db.control").read_text()
    assert f"select '{newest}'" in source.functions()["version"]


@pytest.mark.parametrize("release", RELEASES)
def test_the_script_for_a_dba_begins_at_what_is_installed(
    create_database: Callable[..., str], describe: Describe, release: str
) -> None:
    by_script, by_migrate = create_database(), create_database()
    asyncio.run(migrate.migrate(by_script, to=release))
    asyncio.run(migrate.migrate(by_migrate))

    script = asyncio.run(migrate.script(by_script))
    with psycopg.connect(by_script, autocommit=True) as connection:
        connection.execute(script.encode())

    assert describe(by_script) == describe(by_migrate)
    assert asyncio.run(inspect.status(by_script)).state is inspect.State.CURRENT


@pytest.mark.skipif(len(RELEASES) < 2, reason="one release, so no update")
def test_the_script_for_another_release_stops_before_it_changes_anything(
    create_database: Callable[..., str], describe: Describe
) -> None:
    first, newest = create_database(), create_database()
    asyncio.run(migrate.migrate(first, to=RELEASES[0]))
    asyncio.run(migrate.migrate(newest))
    before = describe(newest)
    script = asyncio.run(migrate.script(first))

    with (
        psycopg.connect(newest, autocommit=True) as connection,
        pytest.raises(psycopg.errors.RaiseException, match=f"with realtime-db {RELEASES[0]}"),
    ):
        connection.execute(script.encode())

    assert describe(newest) == before


def test_the_schema_is_the_one_in_schema_sql(extension_server: Any) -> None:
    if extension_server.major != 18:
        pytest.skip("tests/schema.sql is a dump of PostgreSQL 18")
    golden = Path(__file__).parent.parent / "schema.sql"
    url = extension_server.create_database()
    asyncio.run(migrate.migrate(url, living=True))

    dump = extension_server.dump_schema(url)

    if os.environ.get("REFRESH_SCHEMA"):
        golden.write_text(dump)
    assert dump == golden.read_text(), (
        "If you meant to change the schema, look at the difference, then: "
        "REFRESH_SCHEMA=1 pytest tests/upgrade -k schema_sql"
    )
