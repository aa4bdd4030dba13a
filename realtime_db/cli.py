"""The command `realtime-db`: options in, one call, text and an exit status out.

Below: everything; `trigger_commands` has the group `trigger`. Each command is a few lines; what it
does is in the module it calls. Exit status 1 is an error, 2 wrong usage, 130 Ctrl-C; `status` has
more, which its help lists.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from realtime_db import interrupts, resources
from realtime_db.cli_options import Command
from realtime_db.cli_options import database_url as _database_url
from realtime_db.cli_options import not_empty as _not_empty
from realtime_db.errors import RealtimeDbError
from realtime_db.settings import MAX_SLOT_LAG_BYTES, Settings
from realtime_db.trigger_commands import trigger

# What a full disk, a quota or a broken one says.
_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class _Main(click.Group):
    """Shows our errors as text, not as a traceback, and in the order of a first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *given: Any, **named: Any) -> Any:
        try:
            return super().main(*given, **named)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            _say_error(f"cannot write {error.filename or 'the output'}: {error.strerror}")
            _give_up_output()
        sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RealtimeDbError as error:
            text = str(error)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("realtime_db"):
                raise
            text = (
                f"this command needs the package {error.name}\n"
                f"  {resources.pip_install('embedded,server')}"
            )
        _say_error(text)
        return ctx.exit(1)


def _say_error(text: str) -> None:
    click.secho("error: ", fg="red", nl=False, err=True)
    click.echo(text, err=True)


def _give_up_output() -> None:
    """Drops what could not be written: Python would try again when it exits, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Duration(click.ParamType[float]):
    """`90s`, `15m`, `1h`, `1d`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        match = re.fullmatch(r"(\d+)([smhd]?)", str(value))
        if not match or not int(match[1]):
            self.fail(f"{value!r} is no duration; write 90s, 15m or 1h", param, ctx)
        return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"])


class _FloatRange(click.FloatRange):
    """As click's, which takes `nan` for a number within any range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is no number", param, ctx)
        return number


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="realtime-db", prog_name="realtime-db")
def main() -> None:
    """Broadcast from Postgres: commit a row, and every subscriber gets it.

    \b
    First steps:
      realtime-db demo                                       see it work, no Postgres
      export DATABASE_URL=postgresql://…                     your database, 14 or newer
      realtime-db migrate                                    install the schema realtime
      realtime-db doctor                                     is all that it needs there?
      realtime-db trigger add todos --topic 'todo:{id}'      broadcast a table's changes
      realtime-db tail                                       watch them arrive
    """


@main.command(short_help="See it work: a private Postgres, real traffic, every change.")
def demo() -> None:
    """A private Postgres, real traffic, and every change arriving as a message.

    Needs the extras (in a checkout: pip install '.[embedded,server]'). Takes a few seconds and
    leaves nothing behind. Exit status 0: every change arrived, once, in commit order.
    """
    from rich.console import Console

    from realtime_db import demo as demonstration

    sys.exit(interrupts.run(demonstration.run(Console())))


@main.command()
@_database_url
@click.option(
    "--to",
    metavar="RELEASE",
    callback=_not_empty,
    help="Stop at this release instead of the newest.",
)
@click.option("--sql", "as_sql", is_flag=True, help="Print the script instead of running it.")
@click.option("--dry-run", is_flag=True, help="Run everything, then roll it back.")
@click.option(
    "--wait", type=_Duration(), default="30s", show_default=True, help="How long to wait for locks."
)
def migrate(database_url: str, to: str | None, as_sql: bool, dry_run: bool, wait: float) -> None:
    """Install realtime-db, or bring it to the newest release.

    Run it as the role that shall own the schema `realtime`; it needs CREATE on the database and no
    superuser. Running it again, or twice at the same time, does no harm. `--sql` prints what it
    would run, for a DBA to run with psql.
    """
    from realtime_db.install import migrate as installer

    if as_sql:
        click.echo(interrupts.run(installer.script(database_url, to=to)))
        return
    limits = installer.Limits(wait_seconds=wait)
    _report(interrupts.run(installer.migrate(database_url, to=to, dry_run=dry_run, limits=limits)))


@main.command()
@_database_url
@click.option(
    "--to",
    metavar="RELEASE",
    callback=_not_empty,
    help="Go back to this release instead of the one before.",
)
@click.option("--dry-run", is_flag=True, help="Run everything, then roll it back.")
def rollback(database_url: str, to: str | None, dry_run: bool) -> None:
    """Go back to the release before; messages are kept."""
    from realtime_db.install import migrate as installer

    _report(interrupts.run(installer.rollback(database_url, to=to, dry_run=dry_run)))


def _report(outcome: Any) -> None:
    for warning in outcome.warnings:
        click.secho("warning: ", fg="yellow", nl=False, err=True)
        click.echo(warning, err=True)
    click.echo(str(outcome))


@main.command()
@_database_url
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(database_url: str, as_json: bool) -> None:
    """What is installed, and by whom.

    \b
    Exit status:
      0  up to date
      3  behind: realtime-db migrate
      4  not installed
      5  newer than this program
      6  foreign: a schema realtime that is not ours
      7  incomplete: an installation that was interrupted
    """
    from realtime_db.install import inspect

    found = interrupts.run(inspect.status(database_url))
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        click.echo(found.detail)
        if found.hint:
            click.echo(f"  {found.hint}")
    sys.exit(found.exit_code)


@main.command(short_help="Check all that delivery needs, and send a message through.")
@_database_url
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(database_url: str, as_json: bool) -> None:
    """Check every right, setting and object that delivery needs, and send a message through.

    Each failure comes with the statement that mends it. Exit status 0: no failure; warnings are
    none.
    """
    from realtime_db.install import doctor as examination

    found = interrupts.run(examination.examine(database_url))
    click.echo(found.as_json() if as_json else found.as_text())
    sys.exit(0 if found.ok else 1)


@main.command(short_help="Make the partitions of the next days, drop old ones.")
@_database_url
@click.option("--every", type=_Duration(), help="Run on, as a daemon; for instance 1h.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each run.")
@click.option(
    "--max-slot-lag-bytes",
    type=click.IntRange(0),
    default=MAX_SLOT_LAG_BYTES,
    show_default=True,
    envvar="REALTIME_DB_MAX_SLOT_LAG_BYTES",
    show_envvar=True,
    help="A server's slot that nobody reads and that holds back more WAL is dropped. 0: never.",
)
def maintain(
    database_url: str, every: float | None, as_json: bool, max_slot_lag_bytes: int
) -> None:
    """Make the partitions of the days ahead, drop those past retention.

    Run it at least once a day, as the owner of realtime.messages; no sender waits for it.
    `realtime.settings` says how many days ahead (7) and how many to keep (3). Exit status 0:
    partitions for today and tomorrow are there and nothing went wrong.
    """
    from realtime_db.retention import maintenance

    def show(report: maintenance.Report) -> None:
        text = report.as_text if every is None else report.as_log
        click.echo(report.as_json() if as_json else text())

    if every is None:
        report = interrupts.run(
            maintenance.run_once(database_url, max_slot_lag_bytes=max_slot_lag_bytes)
        )
        show(report)
        sys.exit(0 if report.ok else 1)
    interrupts.run(
        maintenance.run_every(
            database_url,
            interval_seconds=every,
            on_report=show,
            max_slot_lag_bytes=max_slot_lag_bytes,
        )
    )


@main.command()
@click.option("--pg-cron", is_flag=True, help="The statement for pg_cron.")
@click.option("--systemd", is_flag=True, help="A service and a timer.")
@click.option("--kubernetes", is_flag=True, help="A CronJob.")
@click.option("--install", is_flag=True, help="With --pg-cron: schedule it, do not print.")
@click.option(
    "--cron-database",
    metavar="NAME",
    callback=_not_empty,
    help="With --pg-cron: the database it is in.",
)
@click.option(
    "--image", callback=_not_empty, help="With --kubernetes: has realtime-db on its PATH."
)
@click.option(
    "--database-url",
    envvar="DATABASE_URL",
    show_envvar=True,
    metavar="URL",
    help="With --install or --cron-database: of the owner of realtime.messages.",
)
def schedule(
    pg_cron: bool,
    systemd: bool,
    kubernetes: bool,
    install: bool,
    cron_database: str | None,
    image: str | None,
    database_url: str | None,
) -> None:
    """Print the hourly job that runs `maintain`, or install it.

    Choose one of --pg-cron, --systemd and --kubernetes.
    """
    from realtime_db.retention import schedule as jobs

    if pg_cron + systemd + kubernetes != 1:
        raise click.UsageError("Choose one of --pg-cron, --systemd and --kubernetes.")
    if install and not pg_cron:
        raise click.UsageError("--install goes with --pg-cron; print the others, and put it there.")
    if install:
        if database_url is None:
            raise click.UsageError("--install needs --database-url (or DATABASE_URL).")
        job = interrupts.run(jobs.install_pg_cron(database_url, cron_database=cron_database))
        click.echo(f"pg_cron runs the maintenance every hour, as job {job}")
    elif pg_cron and cron_database is not None:
        if database_url is None:
            raise click.UsageError("--cron-database needs --database-url (or DATABASE_URL).")
        click.echo(jobs.pg_cron_elsewhere(database_url, cron_database), nl=False)
    elif kubernetes:
        if image is None:
            raise click.UsageError("--kubernetes needs --image, which has realtime-db on its PATH.")
        click.echo(jobs.kubernetes(image=image), nl=False)
    elif systemd:
        executable = shutil.which("realtime-db") or "/usr/local/bin/realtime-db"
        click.echo(jobs.systemd(executable=executable), nl=False)
    else:
        click.echo(jobs.pg_cron(), nl=False)


@main.command()
@_database_url
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each message.")
@click.option("--from-start", is_flag=True, help="First show the messages that are stored.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N messages.")
def tail(
    database_url: str, topics: tuple[str, ...], as_json: bool, from_start: bool, count: int | None
) -> None:
    """Watch messages arrive out of the WAL as they commit.

    All topics, or those given; `*` in one stands for any text. Needs wal_level = logical and a role
    with REPLICATION; uses a temporary slot, so nothing stays behind.
    """
    from realtime_db import tail as tailing

    with interrupts.cancelling():
        status = tailing.run(
            database_url, topics, json_lines=as_json, from_start=from_start, count=count
        )
    sys.exit(status)


def _server_options(command: Command) -> Command:
    """An option for every field of `Settings` but the database."""
    for one in reversed(dataclasses.fields(Settings)):
        if one.name == "database_url":
            continue
        flag = "--" + one.name.replace("_", "-")
        many = one.default == ()
        if isinstance(one.default, bool):
            kind: dict[str, Any] = {"is_flag": True}
            flag = f"{flag}/--no{flag[1:]}" if one.default else flag
        elif "Path" in str(one.type):
            kind = {"type": click.Path(path_type=Path, exists=True, dir_okay=False)}
        elif one.metadata["choices"]:
            kind = {"type": click.Choice(one.metadata["choices"])}
        elif one.metadata["within"]:
            least, most = one.metadata["within"]
            within = _FloatRange if one.type == "float" else click.IntRange
            kind = {"type": within(least, most)}
        else:
            kind = {"type": str} if many else {"type": str, "callback": _not_empty}
        command = click.option(
            flag.removesuffix("s") if many else flag,
            one.name,
            default=one.default,
            multiple=many,
            show_default=one.default not in ((), None) and one.default is not False,
            envvar=f"REALTIME_DB_{one.name.removesuffix('s') if many else one.name}".upper(),
            show_envvar=True,
            help=one.metadata["help"],
            **kind,
        )(command)
    return command


@main.command(short_help="Bring messages to clients, over WebSocket, SSE and REST.")
@_database_url
@_server_options
def serve(**options: Any) -> None:
    """Bring committed messages to WebSocket clients, and clients' broadcasts to each other.

    Speaks the protocol of Supabase Realtime: supabase-js and realtime-py work unmodified. Run it as
    the owner of realtime.messages with REPLICATION. SIGHUP reads the keys again; SIGTERM tells the
    clients, and ends.
    """
    _serve(Settings(**options))


def _serve(settings: Settings) -> None:
    from realtime_db import server

    if not (settings.jwt_secrets or settings.jwt_secrets_file or settings.jwks):
        raise click.UsageError("No key: give --jwt-secret, --jwt-secrets-file or --jwks.")
    if settings.slot is not None and settings.temporary_slot:
        raise click.UsageError("--slot names a slot that stays: not with --temporary-slot.")
    with interrupts.cancelling():
        status = server.run(settings)
    sys.exit(status)


@main.command()
@click.option(
    "--jwt-secret",
    "jwt_secrets",
    multiple=True,
    envvar="REALTIME_DB_JWT_SECRET",
    show_envvar=True,
    required=True,
    help="The shared secret that the server has. Of several, which white space separates in the "
    "variable, the first signs.",
)
@click.option("--role", default="anon", show_default=True, help="The Postgres role it stands for.")
@click.option("--sub", help="The user.")
@click.option("--ttl", type=_Duration(), default="30d", show_default=True)
def token(jwt_secrets: tuple[str, ...], role: str, sub: str | None, ttl: float) -> None:
    """Mint a key for development: a JWT that the server takes."""
    from realtime_db.auth import tokens

    if not role:
        raise click.UsageError("--role is empty: name a role of Postgres, such as anon.")
    click.echo(tokens.mint(jwt_secrets[0], role=role, sub=sub, now=time.time(), ttl_seconds=ttl))


@main.command(short_help="Run everything on this machine, with a private Postgres.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the database between runs.  [default: "
    "~/.local/share/realtime-db; for root /var/lib/realtime-db]",
)
@click.option("--host", default="127.0.0.1", show_default=True, callback=_not_empty)
@click.option("--port", type=click.IntRange(0, 65_535), default=4000, show_default=True)
def dev(data: Path | None, host: str, port: int) -> None:
    """Run everything on this machine: a private Postgres, migrated, with keys and a server.

    Needs the extras `embedded` and `server`. Data and keys are kept between runs.
    """
    from realtime_db import development

    with interrupts.cancelling():
        development.run(data, host=host, port=port)


@main.command()
@_database_url
@click.option("--dry-run", is_flag=True, help="List what would go and what depends on it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--cascade",
    is_flag=True,
    help="Also drop what depends on it: views, broadcast triggers; not functions of yours.",
)
def uninstall(database_url: str, dry_run: bool, yes: bool, cascade: bool) -> None:
    """Remove realtime-db with all messages; roles stay.

    Refuses while something depends on it.
    """
    from realtime_db.install import uninstall as removal

    if dry_run or not yes:
        click.echo(interrupts.run(removal.look(database_url)).as_text())
    if dry_run:
        return
    if not yes:
        click.confirm("Remove all of this?", abort=True)
    click.echo(interrupts.run(removal.uninstall(database_url, cascade=cascade)))


@main.group()
def slot() -> None:
    """The replication slots of servers: look at them, drop one."""


@slot.command("status", short_help="Show the slots of servers, and the WAL held back for each.")
@_database_url
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def slot_status(database_url: str, as_json: bool) -> None:
    """Show the slots of this database's servers, and how much WAL is held back for each."""
    from realtime_db.wal import slots

    found, limit = interrupts.run(slots.status(database_url))
    click.echo(
        json.dumps([dataclasses.asdict(one) for one in found])
        if as_json
        else slots.status_as_text(found, limit)
    )


@slot.command("drop", short_help="Drop the slot of a server that will not run again.")
@_database_url
@click.option(
    "--slot", "name", metavar="NAME", callback=_not_empty, help="Which, if there are several."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def slot_drop(database_url: str, name: str | None, yes: bool) -> None:
    """Drop the slot of a server that will not run again, so that no WAL is kept for it.

    What it had not brought stays in realtime.messages, for clients that resume. A server that
    starts makes a new one.
    """
    from realtime_db.wal import slots

    chosen = interrupts.run(slots.choose(database_url, name))
    if not yes:
        click.confirm(f"Drop replication slot {chosen}?", abort=True)
    interrupts.run(slots.drop_from(database_url, chosen))
    click.echo(f"replication slot {chosen} was dropped")


main.add_command(trigger)
