"""Each folder of `sql/` holds what its name says, read by Postgres' own parser."""

from __future__ import annotations

from pathlib import Path

import pglast
import pytest
from pglast import ast, enums

from realtime_db import resources
from realtime_db.install import source

FUNCTIONS = sorted((resources.sql() / "functions").glob("*.sql"))
CONSTRAINED = "".join(
    (resources.sql() / "schema" / f"{name}.sql").read_text()
    for name in ("messages", "message_fits")
)
STATE = sorted((resources.sql() / "schema").glob("*.sql"))
ACCESS = sorted((resources.sql() / "access").glob("*.sql"))


def statements(path: Path) -> list[ast.Node]:
    return [raw.stmt for raw in pglast.parse_sql(path.read_text())]


def created(path: Path) -> ast.CreateFunctionStmt:
    (function,) = (s for s in statements(path) if isinstance(s, ast.CreateFunctionStmt))
    return function


def options(function: ast.CreateFunctionStmt) -> dict[str, list[ast.DefElem]]:
    found: dict[str, list[ast.DefElem]] = {}
    for option in function.options or ():
        found.setdefault(option.defname, []).append(option)
    return found


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.stem)
class TestFunctions:
    def test_a_file_makes_the_one_object_it_is_named_after(self, path: Path) -> None:
        function = created(path)

        assert [part.sval for part in function.funcname] == ["realtime", path.stem]
        assert function.replace, "code changes by replacement"

    def test_a_file_says_what_its_object_is_for(self, path: Path) -> None:
        kinds = [type(statement) for statement in statements(path)]

        assert path.read_text().startswith("-- ")
        assert ast.CommentStmt in kinds
        assert set(kinds) <= {ast.CreateFunctionStmt, ast.CommentStmt, ast.GrantStmt}

    def test_definer_functions_pin_the_search_path(self, path: Path) -> None:
        chosen = options(created(path))

        if "security" in chosen and chosen["security"][0].arg.boolval:
            pinned = [option.arg.name for option in chosen.get("set", [])]
            assert "search_path" in pinned
            assert "-- security definer:" in path.read_text(), "say why"

    def test_plpgsql_bodies_parse(self, path: Path) -> None:
        assert pglast.parse_plpgsql(created_text(path))


def created_text(path: Path) -> str:
    text = source.functions()[path.stem]
    return text[: text.index("\ncomment on function")]


@pytest.mark.parametrize("path", STATE, ids=lambda path: path.stem)
def test_schema_files_hold_state_and_may_run_again(path: Path) -> None:
    for statement in statements(path):
        assert not isinstance(statement, ast.GrantStmt | ast.CreatePolicyStmt)
        if isinstance(statement, ast.CreateFunctionStmt):
            assert statement.replace, "and only what a constraint calls"
            assert f"realtime.{statement.funcname[-1].sval}(" in CONSTRAINED
        if isinstance(statement, ast.CreateStmt | ast.CreateSeqStmt):
            assert statement.if_not_exists
        if isinstance(statement, ast.InsertStmt):
            assert statement.onConflictClause.action == enums.OnConflictAction.ONCONFLICT_NOTHING


@pytest.mark.parametrize("path", ACCESS, ids=lambda path: path.stem)
def test_access_files_hold_rights_only(path: Path) -> None:
    assert {type(statement) for statement in statements(path)} <= {ast.DoStmt, ast.GrantStmt}


@pytest.mark.parametrize("path", [*STATE, *ACCESS], ids=lambda path: path.stem)
def test_setup_runs_every_file_of_state_and_access(path: Path) -> None:
    name = path.relative_to(resources.sql())

    assert f"-- include: {name}" in (resources.sql() / "functions" / "setup.sql").read_text()


def test_setup_comes_out_whole() -> None:
    body = source.functions()["setup"]

    assert "-- include:" not in body
    assert "create table if not exists realtime.messages" in body
