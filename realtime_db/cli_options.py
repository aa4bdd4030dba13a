"""What options of more than one command have. Above: `cli` and `trigger_commands`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def database_url(command: Command) -> Command:
    """The option `--database-url`, or DATABASE_URL."""
    return click.option(
        "--database-url",
        envvar="DATABASE_URL",
        show_envvar=True,
        required=True,
        metavar="URL",
        help="postgresql://user:password@host/database",
    )(command)


def not_empty(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuses an empty text, which is mostly a variable of a script that was never set."""
    if value == "":
        raise click.UsageError(f"{param.opts[0]} is empty.", ctx)
    return value
