"""What a stranger put into the schema before it was installed gets no say in it afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from realtime_db.install import source

STRANGER = f"stranger_{secrets.token_hex(4)}"

# As whoever calls it: the stranger becomes a superuser if that is one.
SEIZE = f"""
    create function realtime.seize() returns trigger language plpgsql as $$
    begin
        alter role {STRANGER} superuser;
        return new;
    end;
    $$
"""
SETTINGS = """
    create table realtime.settings (
        only_row boolean primary key default true, retention_days integer default 3,
        days_ahead integer default 7, max_payload_bytes integer default 3000500
    )
"""
SEIZE_SETTINGS = """
    create trigger seize before insert on realtime.settings
    for each row execute function realtime.seize()
"""
FITS = """
    create function realtime.message_fits(
        topic text, event text, payload jsonb, binary_payload bytea
    ) returns boolean language plpgsql stable as $$ begin return true; end; $$
"""


@pytest.fixture
def database(server_url: str, create_database: Callable[..., str]) -> Iterator[str]:
    """A superuser's URL of a database in which the stranger may make schemas."""
    name = psycopg.conninfo.conninfo_to_dict(create_database())["dbname"]
    url = make_conninfo(server_url, dbname=name)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"create role {STRANGER}")
        admin.execute(f"grant create on database {name} to {STRANGER}")
        yield url
        admin.execute(f"drop owned by {STRANGER} cascade")
        admin.execute(f"drop role {STRANGER}")


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (["create schema realtime", SEIZE, SETTINGS, SEIZE_SETTINGS], "table realtime.settings"),
        (
            ["create schema realtime", "create table realtime.messages ()"],
            "table realtime.messages",
        ),
        (["create schema realtime", FITS], "function realtime.message_fits"),
        (["create schema realtime"], "schema realtime"),
    ],
    ids=["settings", "messages", "function", "schema"],
)
def test_setup_refuses_to_trust_what_a_stranger_made(
    database: str, made: list[str], named: str
) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"set role {STRANGER}")
        for statement in made:
            admin.execute(statement)
        admin.execute("reset role")
        admin.execute(source.install_script().encode())

        with pytest.raises(errors.InsufficientPrivilege, match=f"{named}.* owned by {STRANGER}"):
            admin.execute("select realtime.setup()")

        row = admin.execute("select rolsuper from pg_roles where rolname = %s", [STRANGER])
        assert row.fetchone() == (False,)


def test_a_superuser_may_call_setup_again_for_the_owner_of_the_database(
    server_url: str, database_url: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(make_conninfo(server_url, dbname=name), autocommit=True) as admin:
        admin.execute("select realtime.setup()")
