"""What a broadcast trigger is asked to do, and the names it does it with. No I/O here.

Above: `trigger_template`, which renders it. Below: nothing but the errors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, Literal

from realtime_db.errors import TriggerError

DEFAULT_NAME = "realtime_broadcast"
EVENTS = ("insert", "update", "delete")

_NAME_BYTES = 63
_TOPIC_BYTES = 246
_EVENT_BYTES = 255
# Reserved in PL/pgSQL, which looks for them to find the end of an expression.
_RESERVED = re.compile(
    "all|begin|by|case|declare|else|end|execute|for|foreach|from|if|in|into|loop|not|null|or"
    "|strict|then|to|using|when|while"
)


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """What to broadcast, and how.

    Args:
        table: its name as it is, without quotes: `todos`, `My Table`.
        topic: text with columns in braces, `todo:{id}`; `{{` and `}}` are braces. A deleted row
            gives the values that it had. A row with a null in its topic is not broadcast.
        table_schema: the table's schema.
        name: of the trigger; `_insert`, `_update` and `_delete` are added.
        events: which of insert, update and delete.
        level: `statement`, one insert of messages for all rows of a statement; or `row`.
        event: what clients listen for; None is the operation, INSERT, UPDATE or DELETE.
        private: only for subscribers whom the policies let read the topic.
        columns: the columns to send; None means all, also those that are added later.
        except_columns: columns to leave out of all.
        old_record: whether an update sends the row as it was. A delete always does.
        when: SQL condition over `new` and `old`; an insert's old and a delete's new row are null.
        on_send_error: `warn` turns every error of broadcasting into a warning; None does what the
            setting `realtime.on_send_error` says when the trigger fires.
        function_schema: where the trigger function goes; None is the table's schema.

    Raises:
        TriggerError: options that contradict each other or cannot be.
    """

    table: str
    topic: str
    _: KW_ONLY
    table_schema: str = "public"
    name: str = DEFAULT_NAME
    events: tuple[str, ...] = EVENTS
    level: Literal["statement", "row"] = "statement"
    event: str | None = None
    private: bool = True
    columns: tuple[str, ...] | None = None
    except_columns: tuple[str, ...] = ()
    old_record: bool = True
    when: str | None = None
    on_send_error: Literal["warn"] | None = None
    function_schema: str | None = None

    def __post_init__(self) -> None:
        asked = {event.lower() for event in self.events}
        if not asked or not asked <= set(EVENTS):
            raise TriggerError(
                f"a trigger cannot be for {', '.join(sorted(self.events)) or 'no event'}",
                hint=f"Choose from {', '.join(EVENTS)}. A truncate broadcasts nothing.",
            )
        set_field = functools.partial(object.__setattr__, self)
        set_field("events", tuple(event for event in EVENTS if event in asked))
        set_field("columns", None if self.columns is None else tuple(self.columns))
        set_field("except_columns", tuple(self.except_columns))
        if self.level not in ("statement", "row"):
            raise TriggerError(f"no level {self.level!r}", hint="Choose statement or row.")
        if self.on_send_error not in (None, "warn"):
            raise TriggerError(
                f"on_send_error cannot be {self.on_send_error!r}", hint="Choose warn, or leave it."
            )
        if self.columns is not None and (self.except_columns or not self.columns):
            raise TriggerError(
                "columns to send and columns to leave out exclude each other"
                if self.except_columns
                else "no columns to send",
                hint="Name at least one column to send, or some to leave out.",
            )
        if self.when is not None and not self.when.strip():
            raise TriggerError("the condition is empty", hint="Leave `when` out, or say when.")
        self._check_lengths()

    def _check_lengths(self) -> None:
        if not self.topic:
            raise TriggerError("the topic is empty", hint="Give one, such as todo:{id}.")
        for what, text, most in (
            ("trigger name", self.name, _NAME_BYTES - len("_insert")),
            ("event", "-" if self.event is None else self.event, _EVENT_BYTES),
            ("topic", "".join(t for t, _ in parse_topic(self.topic)) or "-", _TOPIC_BYTES),
        ):
            if not 0 < len(text.encode()) <= most:
                raise TriggerError(
                    f"the {what} is {len(text.encode())} bytes long", hint=f"Use 1 to {most}."
                )

    @property
    def schema(self) -> str:
        """The schema of the trigger function."""
        return self.function_schema or self.table_schema

    @property
    def function(self) -> str:
        """The name of the trigger function: table and trigger, shortened if too long."""
        name = f"{self.table}_{self.name}"
        if len(name.encode()) <= _NAME_BYTES:
            return name
        # Names of tables that begin alike must not meet, so the digest is of all of it.
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        start = _cut(self.table, 20)
        return f"{start}_{digest}_{_cut(self.name, _NAME_BYTES - len(start.encode()) - 10)}"

    def trigger(self, event: str) -> str:
        """The name of the trigger for insert, update or delete."""
        return f"{self.name}_{event}"

    def to_json(self) -> str:
        """One line that `from_json` reads; what differs from the defaults."""
        given = {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}
        return json.dumps(given, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> TriggerOptions:
        """The options that `to_json` wrote.

        Raises:
            TriggerError: not written by `to_json`.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise TriggerError(f"not the options of a trigger: {text}") from error


_DEFAULTS: Mapping[str, Any] = {
    "table": None,
    "topic": None,
    **{
        name: field.default
        for name, field in TriggerOptions.__dataclass_fields__.items()
        if name not in ("table", "topic")
    },
}


@dataclass(frozen=True, slots=True)
class Table:
    """What rendering has to know of a table.

    Attributes:
        columns: name -> type, as format_type() spells it; None if there is no database to ask.
            Then no name is checked, and the SQL is right for whatever the table is.
        primary_key: names of its columns, in order; empty if there is none.
        partitioned: None if unknown.
    """

    columns: Mapping[str, str] | None = None
    primary_key: tuple[str, ...] = ()
    partitioned: bool | None = None


UNKNOWN = Table()


def parse_topic(pattern: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column after it, which is None at the end.

    Raises:
        TriggerError: a brace without its partner, or nothing in braces.
    """
    parts: list[tuple[str, str | None]] = []
    text, position = "", 0
    while position < len(pattern):
        if pattern[position : position + 2] in ("{{", "}}"):
            text += pattern[position]
            position += 2
        elif pattern[position] in "{}":
            found = re.compile(r"\{([^{}]+)\}").match(pattern, position)
            if not found:
                raise TriggerError(
                    f"the topic {pattern!r} has a brace without its partner, or nothing in it",
                    hint="Write todo:{id} for the column id; {{ and }} are plain braces.",
                )
            parts.append((text, found[1]))
            text, position = "", found.end()
        else:
            text += pattern[position]
            position += 1
    return [*parts, (text, None)] if text or not parts else parts


def parse_table(text: str, default_schema: str = "public") -> tuple[str, str]:
    """Schema and name from what SQL would understand: `todos`, `app.todos`, `"My Schema"."T"`.

    Raises:
        TriggerError: not the name of a table.
    """
    part = r'("(?:[^"]|"")+"|[^\W\d][\w$]*)'
    found = re.fullmatch(rf"(?:{part}\.)?{part}", text)
    if not found:
        raise TriggerError(
            f"{text!r} is not the name of a table",
            hint="Write schema.table, with double quotes where SQL needs them; in a shell, single "
            """ones around it all: 'public."My Table"'.""",
        )
    schema, name = (
        part and (part[1:-1].replace('""', '"') if part.startswith('"') else part.lower())
        for part in found.groups()
    )
    return schema or default_schema, name


def table_text(schema: str, name: str) -> str:
    """What `parse_table` reads."""
    return f"{after_dot(schema)}.{after_dot(name)}"


def identifier(name: str) -> str:
    """A name in double quotes."""
    if "\0" in name or not name:
        raise TriggerError(f"{name!r} is not a name")
    return '"{}"'.format(name.replace('"', '""'))


def qualified(schema: str, name: str) -> str:
    """`schema.name`; public is the one schema that is known to need no quotes."""
    return f"{'public' if schema == 'public' else identifier(schema)}.{after_dot(name)}"


def literal(text: str) -> str:
    """A string constant on one line, whatever standard_conforming_strings says."""
    if "\0" in text:
        raise TriggerError("text in SQL cannot hold a zero byte")
    quoted = text.replace("'", "''")
    if not re.search(r"[\\\r\n]", quoted):
        return f"'{quoted}'"
    quoted = quoted.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"E'{quoted}'"


def after_dot(name: str) -> str:
    """A name where SQL takes any word, quoted only if needed."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) and not _RESERVED.fullmatch(name)
    return name if plain else identifier(name)


def _cut(name: str, most_bytes: int) -> str:
    return name.encode()[:most_bytes].decode(errors="ignore")
