from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.errors import TriggerError
from realtime_db.install.trigger_options import (
    TriggerOptions,
    after_dot,
    identifier,
    literal,
    parse_table,
    parse_topic,
    qualified,
)

SQL_TEXT = st.text().filter(lambda text: "\0" not in text)


def test_a_topic_is_text_and_columns_in_turn() -> None:
    assert parse_topic("todo:{id}") == [("todo:", "id")]
    assert parse_topic("{a}{b c}/x") == [("", "a"), ("", "b c"), ("/x", None)]
    assert parse_topic("plain") == [("plain", None)]
    assert parse_topic("{{{id}}}") == [("{", "id"), ("}", None)]
    assert parse_topic("{a:b!r.c}") == [("", "a:b!r.c")]


@pytest.mark.parametrize("pattern", ["{", "}", "{}", "a{b", "a}b", "{a{b}}", "{a}}"])
def test_a_brace_without_its_partner_is_refused(pattern: str) -> None:
    with pytest.raises(TriggerError, match="a brace without its partner"):
        parse_topic(pattern)


@given(st.lists(st.tuples(st.text(), st.text(min_size=1))))
def test_every_topic_is_parsed_as_it_was_built(parts: list[tuple[str, str]]) -> None:
    parts = [(text, column.replace("{", "").replace("}", "") or "c") for text, column in parts]
    pattern = "".join(
        text.replace("{", "{{").replace("}", "}}") + "{" + column + "}" for text, column in parts
    )

    assert [part for part in parse_topic(pattern) if part != ("", None)] == parts


@given(st.text())
def test_any_topic_is_parsed_or_refused(pattern: str) -> None:
    try:
        parse_topic(pattern)
    except TriggerError:
        assert "{" in pattern or "}" in pattern


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("todos", ("public", "todos")),
        ("App.Todos", ("app", "todos")),
        ('"App"."To.d""os"', ("App", 'To.d"os')),
        ('app."select"', ("app", "select")),
        ("naïve$1", ("public", "naïve$1")),
    ],
)
def test_a_table_is_named_as_in_sql(text: str, expected: tuple[str, str]) -> None:
    assert parse_table(text) == expected


@pytest.mark.parametrize("text", ["", "a.b.c", "my table", '"open', '""', "1a", "a;b", "a."])
def test_what_sql_would_not_take_for_a_table_is_refused(text: str) -> None:
    with pytest.raises(TriggerError, match="is not the name of a table"):
        parse_table(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"events": ["truncate"]}, "cannot be for truncate"),
        ({"events": []}, "cannot be for no event"),
        ({"level": "table"}, "no level 'table'"),
        ({"on_send_error": "ignore"}, "on_send_error cannot be 'ignore'"),
        ({"columns": ["a"], "except_columns": ["b"]}, "exclude each other"),
        ({"columns": []}, "no columns to send"),
        ({"when": " \n"}, "the condition is empty"),
        ({"name": ""}, "trigger name is 0 bytes"),
        ({"name": "é" * 29}, "trigger name is 58 bytes"),
        ({"event": ""}, "event is 0 bytes"),
        ({"event": "é" * 128}, "event is 256 bytes"),
        ({"topic": ""}, "topic is empty"),
        ({"topic": "x" * 247 + "{id}"}, "topic is 247 bytes"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TriggerError, match=message):
        TriggerOptions(**{"table": "todos", "topic": "x", **options})


def test_options_survive_the_comment_that_they_are_kept_in() -> None:
    options = TriggerOptions(
        "to'd\"os", "{é}\n\\", events=["DELETE", "insert"], columns=["a", "b"], private=False
    )

    assert TriggerOptions.from_json(options.to_json()) == options
    assert options.events == ("insert", "delete")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"table": "a", "topic": "b", "x": 1}', "null"])
def test_options_that_somebody_else_wrote_are_refused(text: str) -> None:
    with pytest.raises(TriggerError, match="not the options of a trigger"):
        TriggerOptions.from_json(text)


@given(st.text(min_size=1, max_size=63), st.text(min_size=1, max_size=27))
def test_a_function_name_fits_and_differs_between_tables(table: str, name: str) -> None:
    first = TriggerOptions(table, "x", name=name[:14])
    second = TriggerOptions(table + "x", "x", name=name[:14])

    assert len(first.function.encode()) <= 63
    assert first.function != second.function


@given(SQL_TEXT)
def test_a_literal_is_one_line_and_ends_where_it_should(text: str) -> None:
    quoted = literal(text)

    assert "\n" not in quoted
    inner = quoted[2:-1] if quoted.startswith("E") else quoted[1:-1]
    assert "'" not in inner.replace("''", "")
    if quoted.startswith("E"):
        inner = inner.replace("\\\\", "\1").replace("\\n", "\n").replace("\\r", "\r")
        inner = inner.replace("\1", "\\")
    assert inner.replace("''", "'") == text or "\1" in text


@given(SQL_TEXT.filter(bool))
def test_an_identifier_ends_where_it_should(name: str) -> None:
    quoted = identifier(name)

    assert quoted[1:-1].replace('""', '"') == name
    assert '"' not in quoted[1:-1].replace('""', "")


def test_a_name_is_quoted_only_where_it_has_to_be() -> None:
    assert after_dot("plain_1") == "plain_1"
    assert after_dot("Mixed") == '"Mixed"'
    assert after_dot("then") == '"then"'
    assert qualified("public", "select") == "public.select"
    assert qualified("user", "todos") == '"user".todos'


def test_a_zero_byte_is_refused() -> None:
    for quote in (identifier, literal):
        with pytest.raises(TriggerError):
            quote("a\0b")
