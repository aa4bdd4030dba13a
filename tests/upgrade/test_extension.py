"""The extension: installed by `make install`, used by a plain owner."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
import pytest

from realtime_db.errors import ManagedByExtension
from realtime_db.install import doctor, inspect, migrate, releases, uninstall

if TYPE_CHECKING:
    from .conftest import ExtensionServer

Describe = Callable[[str], dict[str, str]]

EVERY_RELEASE = releases.releases()
UPDATES = list(itertools.pairwise(EVERY_RELEASE))


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def install(url: str, release: str | None = None) -> None:
    version = f" version '{release}'" if release else ""
    execute(url, f"create extension realtime_db{version}", "select realtime.setup()")


def members(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            """
            select pg_describe_object(d.classid, d.objid, d.objsubid)
            from pg_depend as d inner join pg_extension as e on d.refobjid = e.oid
            where d.deptype = 'e' and e.extname = 'realtime_db'
            order by 1
            """
        )
        return [name for (name,) in rows]


def messages(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "select id::text, payload::text from realtime.messages order by id"
        ).fetchall()


def test_a_plain_owner_creates_the_extension_and_sends_a_message(
    extension_database_url: str,
) -> None:
    install(extension_database_url)

    execute(extension_database_url, "select realtime.send('{}', 'event', 'topic')")

    assert len(messages(extension_database_url)) == 1


def test_the_extension_makes_the_same_objects_as_migrate(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    by_extension, by_migrate = (extension_server.create_database() for _ in range(2))

    install(by_extension)
    asyncio.run(migrate.migrate(by_migrate))

    assert describe(by_extension) == describe(by_migrate)


def test_the_offline_script_run_by_psql_makes_the_same_objects_as_migrate(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    by_script, by_migrate = (extension_server.create_database() for _ in range(2))

    script = asyncio.run(migrate.script())
    extension_server.run("psql", by_script, "--quiet", "--set=ON_ERROR_STOP=1", stdin=script)
    asyncio.run(migrate.migrate(by_migrate))

    assert describe(by_script) == describe(by_migrate)
    assert asyncio.run(inspect.status(by_script)).state is inspect.State.CURRENT


@pytest.mark.parametrize(("old", "new"), UPDATES)
def test_an_updated_extension_equals_a_new_one(
    extension_server: ExtensionServer, describe: Describe, old: str, new: str
) -> None:
    updated, created = (extension_server.create_database() for _ in range(2))
    install(updated, old)
    before = describe(updated)

    execute(updated, f"alter extension realtime_db update to '{new}'", "select realtime.setup()")
    install(created, new)

    assert describe(updated) == describe(created) != before
    assert members(updated) == members(created)


@pytest.mark.parametrize(("old", "new"), UPDATES)
def test_an_extension_that_went_back_equals_one_of_the_release_before(
    extension_server: ExtensionServer, describe: Describe, old: str, new: str
) -> None:
    back, created = (extension_server.create_database() for _ in range(2))
    install(back, new)

    execute(back, f"alter extension realtime_db update to '{old}'", "select realtime.setup()")
    install(created, old)

    assert describe(back) == describe(created)
    assert members(back) == members(created)


def test_only_functions_are_members_of_the_extension(extension_database_url: str) -> None:
    install(extension_database_url)

    assert members(extension_database_url)
    assert all(name.startswith("function ") for name in members(extension_database_url))


@pytest.mark.parametrize("release", EVERY_RELEASE)
def test_the_extension_adopts_what_migrate_installed(
    extension_server: ExtensionServer, describe: Describe, release: str
) -> None:
    adopted, created = (extension_server.create_database() for _ in range(2))
    asyncio.run(migrate.migrate(adopted, to=release))
    execute(adopted, "select realtime.send('{}', 'event', 'topic')")

    execute(
        adopted,
        "create extension realtime_db version 'unpackaged'",
        f"alter extension realtime_db update to '{release}'",
        "alter extension realtime_db update",
        "select realtime.setup()",
    )
    install(created)

    assert describe(adopted) == describe(created)
    assert members(adopted) == members(created)
    assert len(messages(adopted)) == 1
    assert asyncio.run(inspect.status(adopted)).managed_by is inspect.Manager.EXTENSION


def test_creating_the_extension_over_an_installation_says_how_to_adopt_it(
    extension_database_url: str,
) -> None:
    asyncio.run(migrate.migrate(extension_database_url))

    with pytest.raises(psycopg.Error, match="already installed") as raised:
        execute(extension_database_url, "create extension realtime_db")

    assert "version 'unpackaged'" in str(raised.value.diag.message_hint)


def test_after_adoption_the_extension_can_be_dropped_and_migrate_takes_over(
    extension_database_url: str,
) -> None:
    asyncio.run(migrate.migrate(extension_database_url))
    execute(
        extension_database_url,
        "create extension realtime_db version 'unpackaged'",
        "alter extension realtime_db update",
        "drop extension realtime_db",
    )

    asyncio.run(migrate.migrate(extension_database_url))

    found = asyncio.run(inspect.status(extension_database_url))
    assert (found.state, found.managed_by) == (
        inspect.State.CURRENT,
        inspect.Manager.MIGRATE,
    )


def test_adopting_another_release_than_the_installed_one_says_how_to_go_on(
    extension_database_url: str,
) -> None:
    asyncio.run(migrate.migrate(extension_database_url, to=EVERY_RELEASE[0]))
    execute(extension_database_url, "create extension realtime_db version 'unpackaged'")

    with pytest.raises(psycopg.errors.RaiseException) as caught:
        execute(extension_database_url, "alter extension realtime_db update")

    hint = caught.value.diag.message_hint
    assert hint is not None
    execute(extension_database_url, *hint.split("; "))
    assert asyncio.run(inspect.status(extension_database_url)).state is inspect.State.CURRENT


def test_adopting_an_empty_database_says_how_to_install(extension_database_url: str) -> None:
    execute(extension_database_url, "create extension realtime_db version 'unpackaged'")

    with pytest.raises(psycopg.errors.RaiseException, match="nothing to adopt") as caught:
        execute(extension_database_url, "alter extension realtime_db update")

    hint = caught.value.diag.message_hint
    assert hint is not None
    execute(extension_database_url, *hint.split("; "))
    assert asyncio.run(inspect.status(extension_database_url)).state is inspect.State.CURRENT


def test_a_dump_with_live_partitions_is_restored_with_every_row(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    source, target = (extension_server.create_database() for _ in range(2))
    install(source)
    execute(
        source,
        "select realtime.send(jsonb_build_object('n', n), 'event', 'topic') "
        "from generate_series(1, 50) as n",
        "insert into realtime.messages (topic, extension, event, payload, inserted_at) "
        "values ('topic', 'broadcast', 'tomorrow', '1', "
        "(now() at time zone 'utc') + interval '1 day')",
    )

    dump = extension_server.run("pg_dump", source)
    extension_server.run("psql", target, "--quiet", "--set=ON_ERROR_STOP=1", stdin=dump)

    assert len(messages(target)) == 51
    assert messages(target) == messages(source)
    assert describe(target) == describe(source)


def test_a_restored_database_goes_on_sending(extension_server: ExtensionServer) -> None:
    source, target = (extension_server.create_database() for _ in range(2))
    install(source)
    dump = extension_server.run("pg_dump", source)
    extension_server.run("psql", target, "--quiet", "--set=ON_ERROR_STOP=1", stdin=dump)

    execute(target, "select realtime.setup()", "select realtime.send('{}', 'event', 'topic')")

    assert len(messages(target)) == 1


def test_drop_extension_keeps_the_messages(extension_database_url: str) -> None:
    install(extension_database_url)
    execute(extension_database_url, "select realtime.send('{}', 'event', 'topic')")

    execute(extension_database_url, "drop extension realtime_db")

    assert len(messages(extension_database_url)) == 1


def test_an_extension_that_is_created_again_equals_a_new_one_and_has_the_messages(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    again, created = (extension_server.create_database() for _ in range(2))
    install(again)
    execute(
        again,
        "select realtime.send('{}', 'event', 'topic')",
        "drop extension realtime_db",
    )

    install(again)
    install(created)

    assert describe(again) == describe(created)
    assert len(messages(again)) == 1


def test_migrate_goes_on_where_a_dropped_extension_left_off(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    again, created = (extension_server.create_database() for _ in range(2))
    install(again)
    execute(
        again,
        "select realtime.send('{}', 'event', 'topic')",
        "drop extension realtime_db",
    )

    asyncio.run(migrate.migrate(again))
    asyncio.run(migrate.migrate(created))

    assert describe(again) == describe(created)
    assert len(messages(again)) == 1


def test_migrate_rollback_and_uninstall_leave_an_extension_alone(
    extension_database_url: str,
) -> None:
    install(extension_database_url)

    for change, say in (
        (migrate.migrate, "alter extension realtime_db update"),
        (migrate.rollback, "alter extension realtime_db update to"),
        (uninstall.uninstall, "drop extension realtime_db"),
    ):
        with pytest.raises(ManagedByExtension, match=say):
            asyncio.run(change(extension_database_url))


def test_uninstall_removes_what_a_dropped_extension_left(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    used, fresh = (extension_server.create_database() for _ in range(2))
    install(used)
    execute(used, "drop extension realtime_db")

    asyncio.run(uninstall.uninstall(used))

    assert describe(used) == describe(fresh)


def test_status_tells_how_far_an_extension_is(extension_database_url: str) -> None:
    execute(extension_database_url, f"create extension realtime_db version '{EVERY_RELEASE[0]}'")
    created = asyncio.run(inspect.status(extension_database_url))
    assert created.state is inspect.State.INCOMPLETE
    assert created.hint == "select realtime.setup();"

    execute(extension_database_url, created.hint)
    behind = asyncio.run(inspect.status(extension_database_url))
    if UPDATES:
        assert behind.state is inspect.State.BEHIND
        assert behind.hint is not None
        execute(extension_database_url, *behind.hint.split("; "))

    current = asyncio.run(inspect.status(extension_database_url))
    assert (current.state, current.managed_by) == (
        inspect.State.CURRENT,
        inspect.Manager.EXTENSION,
    )


def test_doctor_finds_nothing_wrong_with_an_extension(extension_database_url: str) -> None:
    install(extension_database_url)

    report = asyncio.run(doctor.examine(extension_database_url))

    assert report.ok, report.as_text()
    assert report.checks[-1].name == "live probe"


def test_doctor_makes_a_missing_member_a_member_again(
    extension_server: ExtensionServer,
) -> None:
    broken, whole = (extension_server.create_database() for _ in range(2))
    install(broken)
    install(whole)
    execute(
        broken,
        "alter extension realtime_db drop function realtime.topic()",
        "drop function realtime.topic()",
    )

    report = asyncio.run(doctor.examine(broken, probe=False))
    [mend] = [check.mend for check in report.checks if check.name == "functions"]
    assert mend is not None
    execute(broken, mend)

    assert members(broken) == members(whole)


def test_a_dump_of_a_migrated_database_is_restored_with_every_row(
    extension_server: ExtensionServer, describe: Describe
) -> None:
    source, target = (extension_server.create_database() for _ in range(2))
    asyncio.run(migrate.migrate(source))
    execute(source, "select realtime.send('{}', 'event', 'topic')")

    dump = extension_server.run("pg_dump", source)
    extension_server.run("psql", target, "--quiet", "--set=ON_ERROR_STOP=1", stdin=dump)

    assert messages(target) == messages(source)
    assert describe(target) == describe(source)
    assert asyncio.run(inspect.status(target)).state is inspect.State.CURRENT


def test_nobody_can_put_a_function_of_ours_there_beforehand(
    extension_database_url: str,
) -> None:
    execute(
        extension_database_url,
        "create schema realtime",
        "create function realtime.topic() returns text language sql as $$ select 'mine' $$",
    )

    with pytest.raises(psycopg.Error):
        execute(extension_database_url, "create extension realtime_db")
