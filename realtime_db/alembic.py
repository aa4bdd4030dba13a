"""Broadcast triggers as alembic operations, for migrations of the users' own tables.

    import realtime_db.alembic  # registers them

    def upgrade() -> None:
        op.add_broadcast_trigger("todos", "todo:{id}")

    def downgrade() -> None:
        op.drop_broadcast_trigger("todos")

They run in the migration's own connection and transaction, with any driver. `alembic upgrade --sql`
has no database to ask about the table: the SQL then is right for whatever the table is, and no
name in it is checked.

Above: users' migrations. Below: `install.trigger_catalog` and `install.trigger_template`, which
`realtime-db trigger` runs as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy
from alembic.operations import MigrateOperation, Operations

from realtime_db.errors import TriggerError
from realtime_db.install import trigger_catalog as catalog
from realtime_db.install import trigger_template as template
from realtime_db.install.trigger_options import DEFAULT_NAME, EVENTS, TriggerOptions


@Operations.register_operation("add_broadcast_trigger")
class AddBroadcastTrigger(MigrateOperation):
    """Broadcasts the changes of a table."""

    def __init__(self, trigger: TriggerOptions, *, replace: bool = False) -> None:
        self.trigger = trigger
        self.replace = replace

    @classmethod
    def add_broadcast_trigger(
        cls,
        operations: Operations,
        table_name: str,
        topic: str,
        *,
        schema: str = "public",
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Makes a broadcast trigger.

        Args:
            table_name: the table's name as it is, without quotes.
            topic: text with columns in braces: `todo:{id}`.
            schema: the table's schema.
            replace: drop the trigger of this name first, if there is one.
            options: any other field of `TriggerOptions`: events, columns, when, ...

        Raises:
            TriggerError: it cannot be made as asked.
            MissingRight, NotInstalled: as `realtime-db trigger add`.
        """
        trigger = TriggerOptions(table_name, topic, table_schema=schema, **options)
        operations.invoke(cls(trigger, replace=replace))

    def reverse(self) -> MigrateOperation:
        return DropBroadcastTrigger(
            self.trigger.table,
            table_schema=self.trigger.table_schema,
            name=self.trigger.name,
            function_schema=self.trigger.function_schema,
        )


@Operations.register_operation("drop_broadcast_trigger")
class DropBroadcastTrigger(MigrateOperation):
    """Drops a broadcast trigger and its function."""

    def __init__(
        self,
        table: str,
        *,
        table_schema: str = "public",
        name: str = DEFAULT_NAME,
        function_schema: str | None = None,
    ) -> None:
        self.table = table
        self.table_schema = table_schema
        self.name = name
        self.function_schema = function_schema

    @classmethod
    def drop_broadcast_trigger(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str = "public",
        name: str = DEFAULT_NAME,
        function_schema: str | None = None,
    ) -> None:
        """Drops a broadcast trigger and its function.

        Args:
            table_name: the table's name as it is, without quotes.
            schema: the table's schema.
            name: of the trigger, if it was given one.
            function_schema: of its function, if it was given one; only `--sql` needs it.

        Raises:
            TriggerError: there is none of that name on that table.
        """
        operation = cls(table_name, table_schema=schema, name=name, function_schema=function_schema)
        operations.invoke(operation)


@Operations.implementation_for(AddBroadcastTrigger)
def _add(operations: Operations, operation: AddBroadcastTrigger) -> None:
    options = operation.trigger
    if operations.get_context().as_sql:
        drop = _drop_by_name(options) if operation.replace else []
        _run(operations, [*drop, *template.statements(options)])
        return
    facts = _ask(operations, catalog.facts_query(options))
    table = catalog.read_table(options, facts)
    existing = None
    if operation.replace:
        triggers = catalog.read_list(_ask(operations, catalog.list_query()))
        existing = catalog.find(triggers, options.table_schema, options.table, options.name)
    catalog.refuse(options, facts, existing)
    # Also a function without triggers, left behind when its table was dropped.
    drop = [template.drop_function(options.schema, options.function)]
    _run(operations, catalog.drop_statements(existing) if existing else drop)
    _run(operations, template.statements(options, table))
    if query := template.condition_check(options):
        _run(operations, [query])


@Operations.implementation_for(DropBroadcastTrigger)
def _drop(operations: Operations, operation: DropBroadcastTrigger) -> None:
    schema, table, name = operation.table_schema, operation.table, operation.name
    if operations.get_context().as_sql:
        options = TriggerOptions(
            table, "-", table_schema=schema, name=name, function_schema=operation.function_schema
        )
        _run(operations, _drop_by_name(options))
        return
    triggers = catalog.read_list(_ask(operations, catalog.list_query()))
    existing = catalog.find(triggers, schema, table, name)
    if existing is None:
        raise TriggerError(
            f"{schema}.{table} has no broadcast trigger {name}",
            hint="`realtime-db trigger list` shows all of them.",
        )
    _run(operations, catalog.drop_statements(existing))


def _drop_by_name(options: TriggerOptions) -> list[str]:
    triggers = [options.trigger(event) for event in EVENTS]
    return template.drop_statements(
        options.table_schema, options.table, triggers, options.schema, options.function
    )


def _ask(operations: Operations, query: str) -> str:
    return str(_execute(operations, query).scalar_one())


def _run(operations: Operations, statements: Sequence[str]) -> None:
    for statement in statements:
        if operations.get_context().as_sql:
            operations.get_context().impl.static_output(f"{statement};\n")
        else:
            _execute(operations, statement)


def _execute(operations: Operations, statement: str) -> sqlalchemy.CursorResult[Any]:
    # Past text(), which takes `:id` for a parameter, and with none, or `%` would begin one.
    return operations.get_bind().exec_driver_sql(
        statement, execution_options={"no_parameters": True}
    )
