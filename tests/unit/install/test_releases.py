"""Freezing the living tree, and reading what was frozen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pglast
import pytest
from pglast import ast

from realtime_db import resources
from realtime_db.errors import InstallError
from realtime_db.install import freezing, releases, source

PING = """\
-- Answers.
create or replace function realtime.ping(who text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select 'pong'
$$;

comment on function realtime.ping(text) is 'Answers.';
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with the living tree and without a release."""
    shutil.copytree(resources.sql(), tmp_path / "sql")
    shutil.rmtree(tmp_path / "sql" / "updates", ignore_errors=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0.0.0"\n')
    return tmp_path


def write(project: Path, name: str, text: str) -> None:
    path = project / "sql" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def read(project: Path, name: str) -> str:
    return releases.frozen(f"realtime_db--{name}.sql", project / "migrations")


def snapshot(project: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}


def let_setup_make(project: Path, text: str) -> None:
    write(project, "schema/ping.sql", text)
    setup = project / "sql" / "functions" / "setup.sql"
    if "schema/ping.sql" not in setup.read_text():
        setup.write_text(
            setup.read_text().replace("begin\n", "begin\n    -- include: schema/ping.sql\n", 1)
        )


def two_releases(project: Path, before: str, after: str) -> tuple[str, str]:
    """Freezes two releases that differ in `ping`; the texts of update and rollback."""
    for version, text in (("0.1.0", before), ("0.2.0", after)):
        if text:
            write(project, "functions/ping.sql", text)
        else:
            (project / "sql" / "functions" / "ping.sql").unlink(missing_ok=True)
        freezing.freeze(version, project)
    return read(project, "0.1.0--0.2.0"), read(project, "0.2.0--0.1.0")


def test_the_install_script_replaces_nothing_that_is_there(project: Path) -> None:
    freezing.freeze("0.1.0", project)

    script = read(project, "0.1.0")

    assert "\ncreate function realtime.topic(" in script
    assert "\ncreate or replace function" not in script


def test_updates_and_rollbacks_replace_what_is_there(project: Path) -> None:
    for script in two_releases(project, PING, PING.replace("pong", "peng")):
        assert "\ncreate or replace function realtime.ping(" in script
        assert "\ncreate function" not in script


def test_freezing_sets_the_version_wherever_it_is_named(project: Path) -> None:
    freezing.freeze("3.2.1", project)

    assert "select '3.2.1'" in (project / "sql/functions/version.sql").read_text()
    assert 'version = "3.2.1"' in (project / "pyproject.toml").read_text()
    assert "default_version = '3.2.1'" in (project / "realtime_db.control").read_text()
    assert "select '3.2.1'" in read(project, "3.2.1")


def test_the_extension_is_neither_superuser_s_nor_trusted(project: Path) -> None:
    freezing.freeze("0.1.0", project)

    settings = (project / "realtime_db.control").read_text().splitlines()

    assert "superuser = false" in settings
    assert not any(line.startswith("trusted") for line in settings)


def test_freezing_the_same_tree_again_changes_nothing(project: Path) -> None:
    freezing.freeze("0.1.0", project)
    before = snapshot(project)

    freezing.freeze("0.1.0", project)

    assert snapshot(project) == before


def test_a_frozen_release_is_never_frozen_with_other_contents(project: Path) -> None:
    freezing.freeze("0.1.0", project)
    write(project, "functions/ping.sql", PING)
    before = snapshot(project)

    with pytest.raises(InstallError, match="the next version"):
        freezing.freeze("0.1.0", project)

    assert snapshot(project) == before


def test_a_release_is_never_older_than_the_newest(project: Path) -> None:
    freezing.freeze("0.10.0", project)

    with pytest.raises(InstallError, match=r"older than the newest release, 0\.10\.0"):
        freezing.freeze("0.9.0", project)


@pytest.mark.parametrize("version", ["", "1", "0.1", "v0.1.0", "0.1.0-rc1", "../0.1.0"])
def test_a_version_has_three_numbers(project: Path, version: str) -> None:
    with pytest.raises(InstallError, match="not a version"):
        freezing.freeze(version, project)


def test_releases_are_ordered_by_number(project: Path) -> None:
    for version in ("0.2.0", "0.9.0", "0.10.0"):
        freezing.freeze(version, project)

    assert releases.releases(project / "migrations") == ["0.2.0", "0.9.0", "0.10.0"]
    assert releases.newest(project / "migrations") == "0.10.0"
    assert read(project, "0.9.0--0.10.0")


def test_a_new_function_is_dropped_by_the_rollback_only(project: Path) -> None:
    update, rollback = two_releases(project, "", PING)

    assert "drop function" not in update
    assert "drop function if exists realtime.ping(text);" in rollback
    assert "function realtime.ping(\n" not in rollback


def test_a_function_that_is_gone_is_dropped_by_the_update(project: Path) -> None:
    update, rollback = two_releases(project, PING, "")

    assert "drop function if exists realtime.ping(text);" in update
    assert "create or replace function realtime.ping(" in rollback


def test_a_changed_body_drops_nothing(project: Path) -> None:
    for script in two_releases(project, PING, PING.replace("pong", "peng")):
        assert "drop function" not in script


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("returns text", "returns varchar"),
        ("who text", "whom text"),
        ("who text)", "who text = '')"),
    ],
    ids=["result", "parameter name", "default"],
)
def test_a_changed_head_drops_the_function_before_it_is_made_again(
    project: Path, old: str, new: str
) -> None:
    for script in two_releases(project, PING, PING.replace(old, new)):
        drop = script.index("drop function if exists realtime.ping(text);")
        assert drop < script.index("create or replace function realtime.ping(")


def test_a_changed_type_drops_the_function_with_the_old_type(project: Path) -> None:
    after = PING.replace("who text", "who integer").replace("ping(text)", "ping(integer)")

    update, rollback = two_releases(project, PING, after)

    assert "drop function if exists realtime.ping(text);" in update
    assert "drop function if exists realtime.ping(integer);" in rollback


def test_rights_that_are_no_longer_wanted_are_taken_back(project: Path) -> None:
    revoked = PING + "revoke execute on function realtime.ping(text) from public;\n"

    update, rollback = two_releases(project, PING, revoked)

    assert "grant execute on function realtime.ping(text) to public;" not in update
    assert "grant execute on function realtime.ping(text) to public;" in rollback


def test_statements_by_hand_come_first(project: Path) -> None:
    write(project, "updates/0.1.0--0.2.0.sql", "drop table realtime.forth;\n")
    write(project, "updates/0.2.0--0.1.0.sql", "drop table realtime.back;\n")

    update, rollback = two_releases(project, PING, "")

    assert update.index("drop table realtime.forth;") < update.index("drop function")
    assert rollback.index("drop table realtime.back;") < rollback.index("create or replace")
    assert "forth" not in rollback
    assert "back;" not in update


def test_adoption_adds_every_member_and_nothing_else(project: Path) -> None:
    freezing.freeze("0.1.0", project)

    adoption = read(project, "unpackaged--0.1.0")

    wanted = releases.functions("0.1.0", project / "migrations").values()
    assert [line for line in adoption.splitlines() if line.startswith("alter extension")] == [
        f"alter extension realtime_db add function {function.signature};"
        for function in wanted
        if function.member
    ]


def test_a_file_that_was_changed_after_its_release_is_refused(project: Path) -> None:
    freezing.freeze("0.1.0", project)
    path = project / "migrations" / "sql" / "realtime_db--0.1.0.sql"
    path.write_text(path.read_text() + "-- just a comment\n")

    with pytest.raises(InstallError, match="changed after its release"):
        read(project, "0.1.0")


def test_a_file_that_is_missing_is_refused(project: Path) -> None:
    freezing.freeze("0.1.0", project)
    (project / "migrations" / "sql" / "realtime_db--0.1.0.sql").unlink()

    with pytest.raises(InstallError, match="not part of a release"):
        read(project, "0.1.0")


def test_a_function_without_a_comment_is_refused(project: Path) -> None:
    write(project, "functions/ping.sql", PING.partition("comment on")[0])

    with pytest.raises(InstallError, match=r"realtime\.ping has no comment"):
        freezing.freeze("0.1.0", project)


def test_a_file_named_otherwise_than_its_function_is_refused(project: Path) -> None:
    write(project, "functions/pong.sql", PING)

    with pytest.raises(InstallError, match="ping, pong"):
        freezing.freeze("0.1.0", project)


def test_a_function_that_setup_makes_is_no_member_of_the_extension(project: Path) -> None:
    let_setup_make(project, PING)

    freezing.freeze("0.1.0", project)

    found = releases.functions("0.1.0", project / "migrations")
    assert not found["ping"].member
    assert found["setup"].member
    assert "function realtime.ping" not in read(project, "unpackaged--0.1.0")
    assert "    create or replace function realtime.ping(" in read(project, "0.1.0")


def test_a_function_of_setup_with_another_head_needs_statements_by_hand(project: Path) -> None:
    let_setup_make(project, PING)
    freezing.freeze("0.1.0", project)
    let_setup_make(project, PING.replace("who text", "whom text"))

    with pytest.raises(InstallError, match=r"realtime\.ping.*another head"):
        freezing.freeze("0.2.0", project)

    write(project, "updates/0.1.0--0.2.0.sql", "drop function realtime.ping(text);\n")
    write(project, "updates/0.2.0--0.1.0.sql", "drop function realtime.ping(text);\n")
    freezing.freeze("0.2.0", project)


def test_parsing_agrees_with_postgres_own_parser() -> None:
    script = source.install_script()
    mine = {name: f for name, f in releases.parse(script).items() if f.member}

    theirs = {}
    for statement in pglast.parse_sql(script):
        node = statement.stmt
        if isinstance(node, ast.CreateFunctionStmt):
            options = {option.defname: option.arg for option in node.options}
            (body,) = options["as"]
            theirs[node.funcname[-1].sval] = (body.sval, "security" in options)

    assert {name: (f.body, f.security_definer) for name, f in mine.items()} == theirs
