"""The commands `realtime-db trigger …`: options in, one call, text out.

Above: `cli`, of which they are a group. Below: `install.triggers`.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from realtime_db import interrupts
from realtime_db.cli_options import Command, database_url


@click.group()
def trigger() -> None:
    """Broadcast what changes in a table: add, list, remove, print."""


def _trigger_options(command: Command) -> Command:
    options = [
        click.argument("table", metavar="[SCHEMA.]TABLE"),
        click.option(
            "--topic", required=True, help="Text with columns in braces, such as 'todo:{id}'."
        ),
        click.option(
            "--name", default="realtime_broadcast", show_default=True, help="Of the trigger."
        ),
        click.option("--events", default="insert,update,delete", show_default=True),
        click.option(
            "--level",
            type=click.Choice(["statement", "row"]),
            default="statement",
            show_default=True,
            help="One insert of messages for all rows of a statement, or one for each row.",
        ),
        click.option("--event", help="What clients listen for; INSERT, UPDATE or DELETE if unset."),
        click.option("--public", is_flag=True, help="For everybody, without asking policies."),
        click.option("--columns", metavar="A,B", help="Send these columns only."),
        click.option("--except-columns", metavar="A,B", help="Send all columns but these."),
        click.option("--no-old-record", is_flag=True, help="Leave out the row as it was."),
        click.option("--when", metavar="SQL", help="Condition over new and old."),
        click.option(
            "--on-send-error",
            type=click.Choice(["warn"]),
            help="An error of broadcasting is a warning and the write goes through.",
        ),
        click.option("--function-schema", help="Of the trigger function; the table's by default."),
        click.option("--replace", is_flag=True, help="Replace the one of this name."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _trigger(table: str, given: dict[str, Any]) -> Any:
    from realtime_db.install import triggers

    def names(text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(name.strip() for name in text.split(","))

    schema, name = triggers.parse_table(table)
    options = {
        "name": given["name"],
        "events": names(given["events"]),
        "level": given["level"],
        "event": given["event"],
        "private": not given["public"],
        "columns": names(given["columns"]),
        "except_columns": names(given["except_columns"]) or (),
        "old_record": not given["no_old_record"],
        "when": given["when"],
        "on_send_error": given["on_send_error"],
        "function_schema": given["function_schema"],
    }
    return triggers.TriggerOptions(name, given["topic"], table_schema=schema, **options)


@trigger.command("add")
@database_url
@_trigger_options
def trigger_add(database_url: str, table: str, replace: bool, **given: Any) -> None:
    """Broadcast the changes of a table from now on.

    The trigger function is copied into your schema and is yours. Messages are private unless
    --public is given: policies on realtime.messages say who may read them.
    """
    from realtime_db.install import triggers

    options = _trigger(table, given)
    found = interrupts.run(triggers.add(database_url, options, replace=replace))
    click.echo(f"{table} broadcasts to {_topics(found)}")
    if options.private:
        click.echo("Its messages are private: policies on realtime.messages say who gets them.")


def _topics(found: list[Any]) -> str:
    if len(found) == 1:
        return str(found[0].options.topic)
    return " and ".join(f"{one.options.topic} ({one.name})" for one in found)


@trigger.command("print", short_help="Print the SQL of `trigger add`; change nothing.")
@database_url
@_trigger_options
def trigger_print(database_url: str, table: str, replace: bool, **given: Any) -> None:
    """Print the SQL of `trigger add`, for your migration tool; change nothing."""
    from realtime_db.install import triggers

    click.echo(
        interrupts.run(triggers.print_sql(database_url, _trigger(table, given), replace=replace))
    )


@trigger.command("list")
@database_url
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def trigger_list(database_url: str, as_json: bool) -> None:
    """List the broadcast triggers of all schemas."""
    from realtime_db.install import triggers

    found = interrupts.run(triggers.list_triggers(database_url))
    if as_json:
        rows = [
            {
                "schema": one.table_schema,
                "table": one.table,
                "name": one.name,
                "topic": one.options.topic,
                "events": list(one.options.events),
                "level": one.options.level,
                "private": one.options.private,
                "enabled": one.enabled,
                "function_schema": one.function_schema,
                "function": one.function,
            }
            for one in found
        ]
        click.echo(json.dumps(rows))
        return
    if not found:
        click.echo("no table of this database has a broadcast trigger")
    for one in found:
        access = "private" if one.options.private else "public"
        state = ", table is gone" if one.table is None else "" if one.enabled else ", disabled"
        function = triggers.table_text(one.function_schema, one.function)
        click.echo(
            f"{shlex.quote(one.table_text)}  {shlex.quote(one.name)}  {one.options.topic}  "
            f"{','.join(one.options.events)}  {one.options.level}, {access}{state}  {function}()"
        )


@trigger.command("remove")
@database_url
@click.argument("table", metavar="[SCHEMA.]TABLE")
@click.option("--name", default="realtime_broadcast", show_default=True, help="Of the trigger.")
def trigger_remove(database_url: str, table: str, name: str) -> None:
    """Drop a broadcast trigger and its function."""
    from realtime_db.install import triggers

    schema, bare = triggers.parse_table(table)
    left = interrupts.run(triggers.remove(database_url, schema, bare, name))
    if left:
        click.echo(f"{table} lost trigger {name}; it still broadcasts to {_topics(left)}")
    else:
        click.echo(f"{table} has no broadcast trigger any more")
