"""A Postgres of our own, which can be killed and started again where it was."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db import embedded
from realtime_db.errors import EmbeddedPostgresError
from realtime_db.install import migrate
from tests.faults import ports

OWNER = "app"
RESTART_SECONDS = 60.0
SETTINGS = {
    # A process that is killed loses nothing that it wrote: only a machine does.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "log_min_messages": "fatal",
}
POLICIES = """
create policy "readers" on realtime.messages for select to authenticated using (true);
"""


class Cluster:
    """The server, and databases in it.

    Args:
        settings: of postgresql.conf, over those of this module.
        data: a folder that every account may enter; None makes one.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, data: Path | None = None) -> None:
        self._folder = None
        if data is None:
            # Not where pytest would put it: only root may enter there.
            self._folder = Path(tempfile.mkdtemp(prefix="faults-"))
            self._folder.chmod(0o755)
            data = self._folder / "data"
        self._data = data
        self._settings = {**SETTINGS, **(settings or {})}
        self._runner = asyncio.Runner()
        # It keeps its port when it is started again.
        self._reserved = ports.reserve()
        self._port = int(self._reserved.getsockname()[1])
        self._running: Any = None
        self._template = ""
        self.start()
        self._password = secrets.token_urlsafe(12)
        with self.admin() as admin:
            admin.execute(
                sql.SQL("create role {} login createrole replication password {}").format(
                    sql.Identifier(OWNER), self._password
                )
            )

    # Its life

    def start(self) -> None:
        """Starts it, always on the same port; returns when it answers."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            starting = embedded.start(
                self._data,
                binaries=os.environ.get("REALTIME_DB_TEST_BINARIES"),
                settings=self._settings,
                port=self._port,
            )
            try:
                server = self._runner.run(starting.__aenter__())
            except EmbeddedPostgresError:
                # Backends of one that was killed may need a moment to notice.
                if time.monotonic() > deadline:
                    raise
                continue
            self._running = starting
            self._pid = server.pid
            self.url = server.url
            return

    def kill(self) -> None:
        """`kill -9` of the postmaster. Its backends end by themselves when they notice."""
        os.kill(self._pid, signal.SIGKILL)
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether there is a postmaster."""
        return self._running is not None and Path(f"/proc/{self._pid}").exists()

    def stop(self) -> None:
        """An orderly end, if it still runs."""
        if self._running is not None:
            self._runner.run(self._running.__aexit__(None, None, None))
            self._running = None

    def restart(self) -> None:
        """As an administrator does it."""
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        self._runner.close()
        self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    # Databases

    @property
    def port(self) -> int:
        return self._port

    def admin(self, url: str | None = None) -> psycopg.Connection:
        """A superuser's connection, to the database of that URL if there is one."""
        name = "postgres" if url is None else str(conninfo_to_dict(url)["dbname"])
        return psycopg.connect(make_conninfo(self.url, dbname=name), autocommit=True)

    def create_database(self) -> str:
        """One that was migrated; the URL of its plain owner."""
        if not self._template:
            self._template = self._create("template1")
            url = self.owner_url(self._template)
            asyncio.run(migrate.migrate(url, living=True))
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute(POLICIES)
        return self.owner_url(self._create(self._template))

    def owner_url(self, name: str, port: int | None = None) -> str:
        return make_conninfo(
            self.url,
            user=OWNER,
            password=self._password,
            dbname=name,
            **({} if port is None else {"port": port}),
        )

    def _create(self, template: str) -> str:
        name = f"faults_{secrets.token_hex(4)}"
        with self.admin() as admin:
            admin.execute(
                sql.SQL("create database {} template {} owner {}").format(
                    *map(sql.Identifier, (name, template, OWNER))
                )
            )
        return name

    def drop_database(self, url: str) -> None:
        """With its slots."""
        name = str(conninfo_to_dict(url)["dbname"])
        with self.admin() as admin:
            admin.execute(
                "select pg_terminate_backend(active_pid, 60000) from pg_replication_slots "
                "where database = %s and active",
                [name],
            )
            admin.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
                "where database = %s",
                [name],
            )
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
