"""The Postgres behind the server that is measured: our embedded one, migrated as the tree is.

Above: the cases that write rows or ask policies. Below: `realtime_db.embedded`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from realtime_db import embedded
from realtime_db.install import migrate
from server.programs import ROOT

# A policy of the usual kind: everybody with a token may read and write some topics.
_POLICIES = """
create policy "bench_readers" on realtime.messages for select to authenticated
using (realtime.topic() like 't%' and extension in ('broadcast', 'presence'));
create policy "bench_writers" on realtime.messages for insert to authenticated
with check (realtime.topic() like 't%');
"""


@dataclass(frozen=True, slots=True)
class Database:
    """A running Postgres.

    Attributes:
        url: a superuser's.
        pid: of the postmaster.
        version: its `server_version`.
    """

    url: str
    pid: int
    version: str

    def processes(self) -> list[int]:
        """The postmaster and its children."""
        return [self.pid, *_children(self.pid)]

    def cpu_seconds(self) -> float:
        """Processor time of those that run now."""
        return sum(map(_cpu_seconds, self.processes()))

    @contextmanager
    def on(self, cores: frozenset[int]) -> Iterator[None]:
        """Lets it run on these cores for a while, which its new processes inherit."""
        before = os.sched_getaffinity(self.pid)
        _move(self.processes(), cores)
        try:
            yield
        finally:
            _move(self.processes(), frozenset(before))


@contextmanager
def database() -> Iterator[Database]:
    """Starts one, migrates it, and removes it at the end."""
    with asyncio.Runner() as runner:
        starting = embedded.start(settings={"shared_buffers": "256MB", "max_wal_size": "4GB"})
        postgres = runner.run(starting.__aenter__())
        try:
            runner.run(migrate.migrate(postgres.url, living=True))
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                for file in sorted((ROOT / "sql_next" / "functions").glob("*.sql")):
                    connection.execute(file.read_bytes())
                connection.execute(_POLICIES.encode())
                version = connection.info.parameter_status("server_version") or "?"
            yield Database(postgres.url, postgres.pid, version.split()[0])
        finally:
            runner.run(starting.__aexit__(None, None, None))


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def _cpu_seconds(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        return 0.0


def _move(processes: list[int], cores: frozenset[int]) -> None:
    for pid in processes:
        try:
            os.sched_setaffinity(pid, cores)
        except ProcessLookupError:
            continue
