from __future__ import annotations

import re
from typing import Any

import pglast
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.errors import TriggerError
from realtime_db.install.trigger_options import Table, TriggerOptions
from realtime_db.install.trigger_template import condition_check, render, statements

TODOS = Table({"id": "bigint", "title": "text"}, ("id",), False)
NAMES = st.text(min_size=1, max_size=10).filter(
    lambda name: "\0" not in name and name.isprintable() and not set(name) & set("{}")
)


def rendered(table: Table = TODOS, **options: Any) -> str:
    return render(TriggerOptions(**{"table": "todos", "topic": "todo:{id}", **options}), table)


@pytest.mark.parametrize("level", ["statement", "row"])
@pytest.mark.parametrize("partitioned", [None, False, True])
@pytest.mark.parametrize("old_record", [False, True])
@pytest.mark.parametrize("when", [None, "new.title <> old.title", "new.id > 0", "old.id > 0"])
@pytest.mark.parametrize("on_send_error", [None, "warn"])
def test_every_choice_of_options_is_sql_that_parses(
    level: str, partitioned: bool | None, old_record: bool, when: str | None, on_send_error: Any
) -> None:
    script = rendered(
        Table(TODOS.columns, ("id",), partitioned),
        level=level,
        old_record=old_record,
        when=when,
        on_send_error=on_send_error,
    )

    assert len(pglast.parse_sql(script)) == 6
    pglast.parse_plpgsql(re.sub(r"#variable_conflict \w+", "", script.split(";\n\nrevoke")[0]))
    assert "__" not in script


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_name_breaks_out_of_its_quotes(schema: str, table: str, column: str, text: str) -> None:
    known = Table({column: "text", "other": "text"}, (column,), True)
    options = TriggerOptions(
        table,
        text + "{" + column + "}",
        table_schema=schema,
        name=text,
        event=text,
        except_columns=[column],
    )

    parsed = [pglast.parse_sql(statement) for statement in statements(options, known)]

    assert [len(statement) for statement in parsed] == [1] * 6


def test_only_a_table_that_moves_rows_pays_for_counting_them() -> None:
    assert "count(*)" not in rendered()
    assert "count(*)" in rendered(Table(TODOS.columns, ("id",), True))
    assert "count(*)" in rendered(Table())


def test_an_update_without_old_record_is_not_paired() -> None:
    script = rendered(old_record=False)

    assert "row_number" not in script
    assert "old table as old_rows" not in script.split("after update")[1].split("create")[0]


def test_only_a_condition_over_pairs_turns_planner_methods_off() -> None:
    assert "enable_" not in rendered()
    assert "enable_" not in rendered(when="new.id > 0", old_record=False)
    assert rendered(when="new.id > 0").count("set enable_") == 2


def test_a_function_that_always_warns_has_one_copy_of_each_insert() -> None:
    assert rendered().count("insert into realtime.messages") == 6
    assert rendered(on_send_error="warn").count("insert into realtime.messages") == 3


def test_a_column_that_the_table_lacks_is_refused_unless_the_table_is_unknown() -> None:
    with pytest.raises(TriggerError, match=r"public\.todos has no column x.*named in topic"):
        rendered(topic="{x}")
    with pytest.raises(TriggerError, match="is left to send"):
        rendered(except_columns=["id", "title"])

    assert "new.x" in rendered(Table(), topic="{x}")


def test_more_columns_than_a_function_takes_arguments_are_sent_in_several_calls() -> None:
    columns = [f"c{i}" for i in range(120)]
    script = rendered(Table(dict.fromkeys(columns, "text")), topic="x", columns=columns)

    calls = re.findall(r"jsonb_build_object\(('c.*?)\)", script)
    assert calls
    assert all(call.count(",") < 100 for call in calls)


def test_a_row_trigger_asks_the_condition_itself_where_it_has_both_rows() -> None:
    triggers = rendered(level="row", when="new.title <> old.title").split("create trigger ")[1:]

    assert ["when (" in trigger for trigger in triggers] == [False, True, False]


def test_the_check_of_a_condition_reads_no_row() -> None:
    assert condition_check(TriggerOptions("todos", "x")) is None
    check = condition_check(TriggerOptions("To dos", "x", when="new.a > 0 -- why"))

    assert check is not None
    assert len(pglast.parse_sql(check)) == 1
    assert check.endswith("limit 0")
