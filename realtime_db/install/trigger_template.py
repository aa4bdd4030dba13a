"""Renders broadcast triggers: what to broadcast in, SQL for the user's schema out.

Above: `triggers`, which runs the SQL, and `realtime_db.alembic`. Below: `trigger_options`, and
`sql/templates/`, which it fills in. No I/O here but reading those templates.

A placeholder in a template is `__name__`, so that a template is SQL that can be read and linted.
Each template is filled once, in one pass, so nothing that a user wrote is ever taken for one.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from realtime_db import resources
from realtime_db.errors import TriggerError
from realtime_db.install.trigger_options import (
    UNKNOWN,
    Table,
    TriggerOptions,
    after_dot,
    identifier,
    literal,
    parse_topic,
    qualified,
)

MARKER = "realtime-db trigger: "
"""What follows it in the comment on a function are its options, as JSON."""

# jsonb_build_object takes 100 arguments.
_PAIRS_PER_CALL = 50
_TRANSITIONS = {"insert": ("new",), "update": ("new", "old"), "delete": ("old",)}


def render(options: TriggerOptions, table: Table = UNKNOWN) -> str:
    """The function, its rights and comment, and the triggers, as one script.

    Raises:
        TriggerError: a column that the table does not have.
    """
    return "\n\n".join(f"{statement};" for statement in statements(options, table)) + "\n"


def statements(options: TriggerOptions, table: Table = UNKNOWN) -> list[str]:
    """What `render` joins, without semicolons, for drivers that run one at a time."""
    rendering = _Rendering(options, table)
    function = qualified(options.schema, options.function)
    comment = (
        f"Broadcasts changes of {options.table_schema}.{options.table}. {MARKER}{options.to_json()}"
    )
    return [
        rendering.function(),
        f"revoke all on function {function}() from public",
        f"comment on function {function}() is\n{literal(comment)}",
        *(rendering.trigger(event) for event in options.events),
    ]


def drop_statements(
    table_schema: str, table: str, triggers: Iterable[str], function_schema: str, function: str
) -> list[str]:
    """What removes the triggers and their function, without semicolons."""
    on = qualified(table_schema, table)
    return [
        *(f"drop trigger if exists {identifier(trigger)} on {on}" for trigger in triggers),
        drop_function(function_schema, function),
    ]


def drop_function(schema: str, name: str) -> str:
    """What removes a function that no trigger calls."""
    return f"drop function if exists {qualified(schema, name)}()"


def condition_check(options: TriggerOptions) -> str | None:
    """A query that fails if the condition does; None without one. It reads no row."""
    if options.when is None:
        return None
    row = f"(select (null::{qualified(options.table_schema, options.table)}).*)"
    return f"select from {row} as new cross join {row} as old\nwhere (\n{options.when}\n) limit 0"


@dataclass(frozen=True, slots=True)
class _Rendering:
    options: TriggerOptions
    table: Table

    def __post_init__(self) -> None:
        named = {
            "topic": [column for _, column in parse_topic(self.options.topic) if column],
            "columns": self.options.columns or (),
            "except_columns": self.options.except_columns,
        }
        for where, columns in named.items():
            for column in columns:
                if self.table.columns is not None and column not in self.table.columns:
                    raise TriggerError(
                        f"{self._name} has no column {column}, which is named in {where}",
                        hint=f"Its columns are {', '.join(self.table.columns)}.",
                    )
        left = set(self.table.columns or ()) - set(self.options.except_columns)
        if self.table.columns is not None and not left:
            raise TriggerError(f"no column of {self._name} is left to send")

    @property
    def _name(self) -> str:
        return f"{self.options.table_schema}.{self.options.table}"

    def function(self) -> str:
        settings = ""
        if self.options.level == "statement":
            if self.options.when is not None and self._pairs_updates:
                # The session keeps the plan of its first statement, which may have been of one
                # row; a nested loop would take quadratic time for many.
                settings = "set enable_nestloop = off\nset enable_mergejoin = off"
            body = self._guarded(self._statement_body)
        else:
            body = self._guarded(self._row_body)
        return _fill(
            f"{self.options.level}_function.sql",
            quote=_dollar_quote(body),
            function=qualified(self.options.schema, self.options.function),
            settings=settings,
            body=body,
        ).removesuffix(";")

    def trigger(self, event: str) -> str:
        if self.options.level == "statement":
            referencing = "referencing " + " ".join(
                f"{side} table as {side}_rows" for side in self._sides(event)
            )
        else:
            referencing = ""
        return _fill(
            "trigger.sql",
            trigger=after_dot(self.options.trigger(event)),
            event=event,
            table=qualified(self.options.table_schema, self.options.table),
            referencing=referencing,
            level=self.options.level,
            when=f"when (\n{self.options.when}\n)" if self._when_in_trigger(event) else "",
            function=qualified(self.options.schema, self.options.function),
        ).removesuffix(";")

    # --- what the condition reads: if in doubt, more than it does ---

    def _when_reads(self, side: str) -> bool:
        return bool(re.search(rf"\b{side}\b", self.options.when or "", re.IGNORECASE))

    def _when_in_trigger(self, event: str) -> bool:
        """Whether the row-level trigger itself can check: it may not name a row it lacks."""
        missing = {"new", "old"} - set(_TRANSITIONS[event])
        return (
            self.options.level == "row"
            and self.options.when is not None
            and not any(self._when_reads(side) for side in missing)
        )

    def _sides(self, event: str) -> tuple[str, ...]:
        """The rows, new and old, that the function reads on an event."""
        if event == "update" and not (self.options.old_record or self._when_reads("old")):
            return ("new",)
        return _TRANSITIONS[event]

    @property
    def _pairs_updates(self) -> bool:
        return "update" in self.options.events and len(self._sides("update")) == 2

    # --- fragments ---

    def _guarded(self, body: _Fragment) -> str:
        """A body at indent 4, whose errors become warnings if somebody wants that."""
        if self.options.on_send_error == "warn":
            return _fill("warn.plpgsql", indent=4, body=body(8))
        warn = _fill("warn.plpgsql", indent=8, body=body(12))
        return _fill("warn_if_set.plpgsql", indent=4, warn=warn, body=body(8))

    def _statement_body(self, indent: int) -> str:
        pad = " " * indent
        events = self.options.events
        lines = [_fill("no_partition.plpgsql", indent=indent)]
        if len(events) == 1:
            return f"{lines[0]}\n{pad}{self._on_event(events[0], indent)}"
        for event in events:
            word = "elsif" if len(lines) > 1 else "if"
            lines.append(f"{pad}{word} tg_op = '{event.upper()}' then")
            lines.append(f"{pad}    {self._on_event(event, indent + 4)}")
        return "\n".join([*lines, f"{pad}end if;"])

    def _on_event(self, event: str, indent: int) -> str:
        if event != "update" or len(self._sides(event)) == 1:
            return self._insert(self._rows(event, indent + 4), indent)
        numbers = ("row_number() over ()",) * 2
        if self.table.partitioned is False:
            return self._insert(self._pairs(*numbers, indent + 4), indent)
        by_number = self._insert(self._pairs(*numbers, indent + 8), indent + 4)
        by_key = self._insert(self._pairs(*self._keys(), indent + 8), indent + 4)
        return _fill("moved.plpgsql", indent=indent, by_number=by_number, by_key=by_key)

    def _keys(self) -> tuple[str, str]:
        """What pairs new with old by the primary key; without one, nothing does."""
        key = self.table.primary_key
        if not key:
            return "0", "null::integer"
        new, old = (
            f"jsonb_build_array({', '.join(f'{side}.{after_dot(column)}' for column in key)})"
            for side in ("new", "old")
        )
        return new, old

    def _insert(self, rows: str, indent: int) -> str:
        return _fill(
            "messages.sql",
            indent=indent,
            event=self._event,
            schema=self._names[0],
            table=self._names[1],
            private=self._private,
            rows=rows,
        )

    def _rows(self, event: str, indent: int) -> str:
        has = _TRANSITIONS[event]
        side = has[0]
        source, where = f"{side}_rows as {side}", ""
        if self.options.when is not None:
            where = self._where
            other = "old" if side == "new" else "new"
            if self._when_reads(other):
                absent = _fill("absent.sql", rows=f"{side}_rows", side=other)
                source += f"\n{' ' * indent}{absent}"
        return _fill(
            "rows.sql",
            indent=indent,
            topic=self._topic(side),
            record=self._record("new") if side == "new" else "null::jsonb",
            old_record=self._record("old") if side == "old" else "null::jsonb",
            source=source,
            where=where,
        )

    def _pairs(self, new_pair: str, old_pair: str, indent: int) -> str:
        conditional = self.options.when is not None
        dropped = (_PAIR,) if conditional else ()
        return _fill(
            "pairs_when.sql" if conditional else "pairs.sql",
            indent=indent,
            topic=self._topic("new"),
            record=self._record("new", dropped),
            old_record=self._record("old", dropped) if self.options.old_record else "null::jsonb",
            new_pair=new_pair,
            old_pair=old_pair,
            where=self._where if conditional else "",
        )

    def _row_body(self, indent: int) -> str:
        condition = "topic <> ''"
        checked = [e.upper() for e in self.options.events if self._when_in_trigger(e)]
        if self.options.when is not None and len(checked) < len(self.options.events):
            condition += f"\n{' ' * indent}    and (\n{self.options.when}\n)"
        has_old = "tg_op <> 'INSERT'" if self.options.old_record else "tg_op = 'DELETE'"
        return _fill(
            "row_body.plpgsql",
            indent=indent,
            condition=condition,
            old_topic=self._topic("old"),
            new_topic=self._topic("new"),
            schema=self._names[0],
            table=self._names[1],
            record=self._record("new"),
            has_old_record=has_old,
            old_record=self._record("old"),
            event=self._event,
            private=self._private,
        )

    @property
    def _where(self) -> str:
        return f"where (\n{self.options.when}\n)"

    @property
    def _event(self) -> str:
        return "tg_op" if self.options.event is None else literal(self.options.event)

    @property
    def _private(self) -> str:
        return "true" if self.options.private else "false"

    @property
    def _names(self) -> tuple[str, str]:
        """Schema and table as sent. A row trigger's own would be those of the partition."""
        if self.options.level == "row" and self.table.partitioned is not False:
            return literal(self.options.table_schema), literal(self.options.table)
        return "tg_table_schema", "tg_table_name"

    def _topic(self, side: str) -> str:
        """The topic as an expression over `new` or `old`; null if a column in it is."""
        parts: list[str] = []
        for text, column in parse_topic(self.options.topic):
            if text:
                parts.append(literal(text))
            if column is not None:
                parts.append(self._text(f"{side}.{after_dot(column)}", column))
        return " || ".join(parts)

    def _text(self, value: str, column: str) -> str:
        """A value as text that no setting of the writer's session changes."""
        spelled = "" if self.table.columns is None else self.table.columns[column]
        if spelled in _PLAIN_TYPES or spelled.startswith("character varying"):
            return f"{value}::text"
        if spelled.startswith("timestamp") and spelled.endswith("with time zone"):
            value = f"({value} at time zone 'utc')"
        return f"(to_jsonb({value}) #>> '{{}}')"

    def _record(self, side: str, without: tuple[str, ...] = ()) -> str:
        columns = self.options.columns
        if columns is not None:
            pairs = [f"{literal(name)}, {side}.{after_dot(name)}" for name in columns]
            calls = [
                f"jsonb_build_object({', '.join(pairs[at : at + _PAIRS_PER_CALL])})"
                for at in range(0, len(pairs), _PAIRS_PER_CALL)
            ]
            return " || ".join(calls)
        # `new.*`, for a table may have a column called new. PL/pgSQL's own has no star.
        row = f"to_jsonb({side}{'' if self.options.level == 'row' else '.*'})"
        without = (*self.options.except_columns, *without)
        return f"{row} - array[{', '.join(literal(name) for name in without)}]" if without else row


_PAIR = "realtime:pair"
_PLAIN_TYPES = frozenset({"smallint", "integer", "bigint", "numeric", "uuid", "text", "boolean"})


class _Fragment(Protocol):
    def __call__(self, indent: int) -> str: ...


def _dollar_quote(body: str) -> str:
    tags = ("$$", *(f"$body{number or ''}$" for number in range(1000)))
    return next(tag for tag in tags if tag not in f"{body}$")


@functools.cache
def _template(name: str) -> str:
    return (resources.sql() / "templates" / name).read_text().rstrip()


def _fill(template: str, *, indent: int = 0, quote: str = "$$", **fragments: str) -> str:
    """A template with its placeholders replaced; all lines but the first are indented.

    Only the template's own lines are: a line break in a name or a condition is not ours to move.
    """
    text = textwrap.indent(_template(template), " " * indent).lstrip().replace("$$", quote)
    for name, fragment in fragments.items():
        if not fragment:
            text = re.sub(rf"^ *(-- )?__{name}__\n", "", text, flags=re.MULTILINE)
    return re.sub(r"(?:-- )?__([a-z_]+?)__", lambda found: fragments[found[1]], text)
