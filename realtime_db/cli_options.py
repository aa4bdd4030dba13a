"""What commands of more than one module take. Above: `cli` and `trigger_commands`."""

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
        help="postgresql://user:password@host:5432/database",
    )(command)
