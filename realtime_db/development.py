"""`realtime-db dev`: all of it on one machine, for those who build something with it.

A private Postgres whose data is kept, the database package, keys, the server and maintenance. The
server logs in as a plain owner, as it would anywhere else. What one start printed is true after the
next one too, for the folder of the data also keeps

    jwt-secret         signs the keys; a key is as old as this file, and so comes out the same
    database-password  of the owner
    postgres-port      taken again, unless another program has it
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import Final

import psycopg
import uvloop
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.console import Console

from realtime_db import embedded, server
from realtime_db.auth import tokens
from realtime_db.database import conninfo_url
from realtime_db.embedded.folders import find_tree, read
from realtime_db.errors import EmbeddedPostgresError
from realtime_db.install import migrate
from realtime_db.settings import Settings

OWNER: Final = "app"  # not "realtime": "$user" leads the search path
KEY_SECONDS: Final = 10 * 365 * 86400.0

_SNIPPET: Final = """\
import {{ createClient }} from '@supabase/supabase-js'
import ws from 'ws'

const key = '{anon}'
const supabase = createClient('{url}', key, {{ realtime: {{ transport: ws }} }})
supabase.channel('room:1')
  .on('broadcast', {{ event: '*' }}, (message) => console.log(message))
  .subscribe((status, error) => console.log(status, error ?? ''))"""


def run(data: Path | None, *, host: str, port: int) -> None:
    """Runs until SIGTERM or Ctrl-C, which ends it orderly once it has said what it runs.

    Args:
        data: the folder to keep data and keys in; None is `~/.local/share/realtime-db`, or
            `/var/lib/realtime-db` for root, whose home the account of Postgres cannot enter.
        host: where the server listens.
        port: where the server listens.

    Raises:
        RealtimeDbError: the folder cannot be used, the port is taken, or something does not start.
        KeyboardInterrupt: Ctrl-C while it was starting.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    folder, console = data or _default_folder(), Console()
    server.listen(host, port).close()  # before anything is made
    console.print(f"starting a private Postgres in {folder} …", soft_wrap=True, highlight=False)
    _make(folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(folder, host, port, console))


def _default_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/realtime-db")
    try:
        home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise EmbeddedPostgresError(
            "this account has no home folder to keep the data in",
            hint="Give a folder that this account may write: --data PATH",
        ) from error
    return home / "realtime-db"


def _make(folder: Path) -> None:
    """Makes the folder and its files, or sees that they may be written.

    Raises:
        EmbeddedPostgresError: they may not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _kept_secret(folder / "jwt-secret")
        _kept_secret(folder / "database-password")
        (folder / "postgres-port").open("a").close()
    except OSError as error:
        raise EmbeddedPostgresError(
            f"{folder} cannot keep the data: {error.strerror or error}",
            hint="Give a folder that this account may write: --data PATH",
        ) from error


async def _run(folder: Path, host: str, port: int, console: Console) -> None:
    secret = _kept_secret(folder / "jwt-secret")
    password = _kept_secret(folder / "database-password")
    port_file = folder / "postgres-port"
    last = _port_in(port_file)
    async with embedded.start(folder / "postgres", port_if_free=last) as postgres:
        if last not in (0, postgres.port):
            console.print(
                f"[yellow]Another program has port {last}: DATABASE_URL has a new one.[/]\n"
            )
        port_file.write_text(f"{postgres.port}\n")
        url = await _own_database(postgres.url, password)
        await migrate.migrate(url)
        settings = Settings(database_url=url, host=host, port=port, jwt_secrets=(secret,))
        async with server.serve(settings) as running:
            await running.following.wait()
            await server.until_signalled(running, lambda: _explain(console, running, url, folder))


def _kept_secret(path: Path) -> str:
    if not read(path).strip():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text().strip()


def _port_in(path: Path) -> int:
    """The port in the file, or 0."""
    text = read(path).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 65_536 else 0


async def _own_database(admin_url: str, password: str) -> str:
    """A database of a plain owner, made once; the URL of the owner."""
    name = sql.Identifier(OWNER)
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as admin:
        cursor = await admin.execute("select from pg_roles where rolname = %s", [OWNER])
        if not cursor.rowcount:
            await admin.execute(sql.SQL("create role {} login createrole replication").format(name))
        await admin.execute(sql.SQL("alter role {} password {}").format(name, password))
        cursor = await admin.execute("select from pg_database where datname = %s", [OWNER])
        if not cursor.rowcount:
            await admin.execute(sql.SQL("create database {} owner {}").format(name, name))
    return conninfo_url(make_conninfo(admin_url, user=OWNER, password=password, dbname=OWNER))


def _explain(console: Console, running: server.Server, database_url: str, folder: Path) -> None:
    file, psql = folder.resolve() / "jwt-secret", find_tree(None) / "bin" / "psql"
    secret, made = _kept_secret(file), file.stat().st_mtime

    def key(role: str) -> str:
        return tokens.mint(secret, role=role, now=made, ttl_seconds=KEY_SECONDS)

    def show(text: str, *, markup: bool = True) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=markup)

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(running.host, running.host)  # noqa: S104
    url = f"http://[{host}]:{running.port}" if ":" in host else f"http://{host}:{running.port}"
    anon = key("anon")
    show(f"[bold]URL[/]           {url}")
    if host != running.host:
        show("              (it listens on all addresses of this machine)")
    show(f"[bold]inspector[/]     {url}/#key={anon}")
    show(f"[bold]anon key[/]      {anon}")
    show(f"[bold]service key[/]   {key('service_role')}")
    show(
        "[bold]user key[/]      realtime-db token --role authenticated --sub ann "
        f'--jwt-secret "$(cat {shlex.quote(str(file))})"'
    )
    show(f"[bold]DATABASE_URL[/]  {database_url}")
    show(f"[bold]psql[/]          {shlex.quote(str(psql))} {shlex.quote(database_url)}")
    show(f"[bold]data[/]          {folder}")
    show(
        "\nListen: put this into listen.mjs, then: "
        "npm install @supabase/supabase-js ws && node listen.mjs\n"
    )
    show(_SNIPPET.format(url=url, anon=anon), markup=False)
    show("\nSend: select realtime.send('{\"hello\": 1}', 'greeting', 'room:1', false);")
    show("\nCtrl-C ends it.")
