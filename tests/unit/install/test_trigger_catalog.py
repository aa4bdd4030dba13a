from __future__ import annotations

import json

import pytest

from realtime_db.errors import MissingRight, NotInstalled, TriggerError
from realtime_db.install.trigger_catalog import read_list, read_table, refuse
from realtime_db.install.trigger_options import Table, TriggerOptions

TODOS = TriggerOptions("todos", "todo:{id}")


def facts(**changed: object) -> str:
    known: dict[str, object] = {
        "installed": True,
        "user": "app",
        "kind": "r",
        "temporary": False,
        "columns": {"id": "bigint"},
        "primary_key": ["id"],
        "may_trigger": True,
        "function_schema_exists": True,
        "may_create": True,
        "may_use": True,
        "may_insert": True,
        "policies_apply": False,
        "policy": False,
        "alike": None,
        "triggers": None,
        "function_exists": False,
        "function_is_ours": False,
        "function_in_use": False,
    }
    return json.dumps(known | changed)


def test_nothing_stands_in_the_way_of_a_plain_table_of_one_s_own() -> None:
    refuse(TODOS, facts(), None)

    assert read_table(TODOS, facts()) == Table({"id": "bigint"}, ("id",), False)


def test_a_foreign_table_is_refused() -> None:
    with pytest.raises(TriggerError, match=r"public\.todos cannot have.*\n.*a foreign table"):
        read_table(TODOS, facts(kind="f"))


def test_a_missing_right_comes_with_its_grant() -> None:
    with pytest.raises(MissingRight) as raised:
        refuse(TODOS, facts(user='o"d', may_create=False, may_insert=False), None)

    assert raised.value.hint == (
        'As their owner: grant create on schema "public" to "o""d"; '
        'grant insert on table realtime.messages to "o""d";'
    )


def test_a_policy_that_lets_the_role_insert_is_enough() -> None:
    refuse(TODOS, facts(policies_apply=True, policy=True), None)

    with pytest.raises(MissingRight, match="no policy"):
        refuse(TODOS, facts(policies_apply=True), None)


def test_a_missing_schema_for_the_function_and_a_missing_installation_are_named() -> None:
    with pytest.raises(TriggerError, match="no schema public for the trigger function"):
        refuse(TODOS, facts(function_schema_exists=False, may_create=None), None)
    with pytest.raises(NotInstalled, match="not installed"):
        refuse(TODOS, facts(installed=False, may_use=None), None)


def test_a_comment_that_somebody_changed_is_passed_over() -> None:
    row = {
        "table_schema": "public",
        "table": "todos",
        "function_schema": "public",
        "function": "f",
        "comment": "realtime-db trigger: {broken",
        "triggers": [],
    }

    assert read_list(json.dumps([row])) == []
