"""What is installed in a database, and by whom; it changes nothing and needs no rights.

Above: the command line (`realtime-db status`), `migrate`, `uninstall` and `doctor`, which decide by
what they see here. Below: the system catalogs, and `releases` for what this program knows.

For the command line:

    await status(database_url) -> Installation
    Installation.state / .release / .newest / .managed_by / .detail / .hint
    Installation.exit_code, Installation.as_dict()

Exit codes: 0 up to date, 3 behind, 4 not installed, 5 newer than this program, 6 foreign,
7 incomplete. (1 and 2 are errors and wrong usage.)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from realtime_db.database import Connection, connect
from realtime_db.install import releases

VERSION_TABLE: Final = "realtime_db_release"

# As alembic makes it.
_CREATE_VERSION_TABLE: Final = (
    "create table realtime.realtime_db_release (version_num varchar(32) not null, "
    "constraint realtime_db_release_pkc primary key (version_num));"
)
_STAMP: Final = (
    "delete from realtime.realtime_db_release; "
    "insert into realtime.realtime_db_release values ('<release>');"
)

# Owners of the schema `realtime` in Supabase's databases.
_SUPABASE_OWNERS: Final = ("supabase_admin", "supabase_realtime_admin")

# Only catalogs, which everybody may read: `to_regclass` and `realtime.version()` need USAGE on the
# schema. The body of version() is `select '0.1.0'`.
_LOOK: Final = """
    with here as (select oid, nspowner from pg_namespace where nspname = 'realtime'),
    tables as (
        select c.oid, c.relname, c.relowner
        from pg_class as c inner join here on c.relnamespace = here.oid
        where c.relkind in ('r', 'p')
    )
    select
        (select pg_get_userbyid(nspowner) from here) as schema_owner,
        (select extversion from pg_extension where extname = 'realtime_db') as extension,
        (select count(*) from pg_class, here where relnamespace = here.oid)
        + (select count(*) from pg_proc, here where pronamespace = here.oid)
        + (select count(*) from pg_type, here where typnamespace = here.oid) as objects,
        exists (select from tables where relname = 'schema_migrations') as supabase,
        exists (select from tables where relname = %(version_table)s) as version_table,
        (
            select substring(p.prosrc from $r$'(\\d+\\.\\d+\\.\\d+)'$r$)
            from pg_proc as p inner join here on p.pronamespace = here.oid
            where p.proname = 'version' and p.pronargs = 0
        ) as functions,
        (
            select pg_get_userbyid(t.relowner) from tables as t
            where t.relname = 'messages' and 2 = (
                select count(*) from pg_attribute as a
                where a.attrelid = t.oid and a.attname in ('transaction_id', 'position')
            )
        ) as messages_owner,
        coalesce((
            select has_schema_privilege(here.oid, 'usage') and has_table_privilege(t.oid, 'select')
            from tables as t, here where t.relname = %(version_table)s
        ), false) as version_table_readable
"""


class State(StrEnum):
    """How a database relates to this program."""

    CURRENT = "up to date"
    BEHIND = "behind"
    ABSENT = "not installed"
    NEWER = "newer than this program"
    FOREIGN = "foreign"
    INCOMPLETE = "incomplete"


EXIT_CODES: Final = {
    State.CURRENT: 0,
    State.BEHIND: 3,
    State.ABSENT: 4,
    State.NEWER: 5,
    State.FOREIGN: 6,
    State.INCOMPLETE: 7,
}


class Manager(StrEnum):
    """Who installed it, and so upgrades it."""

    MIGRATE = "migrate"
    EXTENSION = "extension"


@dataclass(frozen=True, slots=True)
class Installation:
    """What is in a database.

    Attributes:
        state: see `State`.
        release: what is installed; None if nothing is, or nothing of ours.
        newest: what this program would install.
        managed_by: who upgrades it; None if nothing is installed.
        schema_owner: the owner of the schema `realtime`; None if there is none.
        messages_owner: the owner of `realtime.messages`, if that table is ours.
        detail: one sentence for people.
        hint: what to type next; None if there is nothing to do.
    """

    state: State
    release: str | None
    newest: str
    managed_by: Manager | None
    schema_owner: str | None
    messages_owner: str | None
    detail: str
    hint: str | None

    @property
    def exit_code(self) -> int:
        """The exit status of `realtime-db status`."""
        return EXIT_CODES[self.state]

    def as_dict(self) -> dict[str, Any]:
        """For `realtime-db status --json`."""
        return {
            "state": self.state.value,
            "release": self.release,
            "newest": self.newest,
            "managed_by": self.managed_by.value if self.managed_by else None,
            "detail": self.detail,
            "hint": self.hint,
        }


async def status(database_url: str) -> Installation:
    """What is installed in a database.

    Raises:
        ConnectionFailed, UnsupportedVersion: see `database.connect`.
    """
    async with connect(database_url) as connection:
        return await look(connection)


async def look(connection: Connection) -> Installation:
    """What is installed in the database of a connection."""
    cursor = await connection.execute(_LOOK, {"version_table": VERSION_TABLE})
    row = await cursor.fetchone()
    assert row is not None, "a select without from has a row"
    names = (column.name for column in cursor.description or ())
    facts = dict(zip(names, row, strict=True))
    stamped = None
    if facts["version_table_readable"]:
        cursor = await connection.execute("select version_num from realtime.realtime_db_release")
        stamped = next(iter(await cursor.fetchone() or [None]))
    else:
        # Who may not read it still learns what the functions say.
        stamped = facts["functions"] if facts["version_table"] else None
    return _judge(facts, stamped)


def _judge(facts: dict[str, Any], stamped: str | None) -> Installation:
    """Pure: from what the catalogs say to what that means."""
    newest = releases.newest()
    extension, functions = facts["extension"], facts["functions"]
    ours = facts["version_table"] or extension or facts["messages_owner"]

    def found(
        state: State,
        detail: str,
        hint: str | None = None,
        release: str | None = None,
        managed_by: Manager | None = None,
    ) -> Installation:
        return Installation(
            state=state,
            release=release,
            newest=newest,
            managed_by=managed_by,
            schema_owner=facts["schema_owner"],
            messages_owner=facts["messages_owner"],
            detail=detail,
            hint=hint,
        )

    if extension:
        return _judge_extension(extension, facts["messages_owner"], found, newest)
    if (facts["supabase"] or facts["schema_owner"] in _SUPABASE_OWNERS) and not ours:
        return found(
            State.FOREIGN,
            "the schema realtime of this database belongs to Supabase Realtime",
            "realtime-db needs a database of its own for that schema; this one has what it has.",
        )
    if not facts["objects"]:
        return found(State.ABSENT, "realtime-db is not installed", "realtime-db migrate")
    if not ours and functions is None:
        return found(
            State.FOREIGN,
            "the schema realtime of this database holds objects that are not of realtime-db",
            "Move them: alter schema realtime rename to …; or use another database.",
        )
    if not facts["version_table"] and functions is None:
        return found(
            State.ABSENT,
            "realtime-db is not installed; its messages are still there and will be kept",
            "realtime-db migrate",
        )
    if stamped is None or stamped != functions or not facts["messages_owner"]:
        return found(
            State.INCOMPLETE,
            "a half-finished installation: "
            f"the version table says {stamped or 'nothing'}, the functions are those of "
            f"{functions or 'no release'}, and realtime.messages is "
            f"{'there' if facts['messages_owner'] else 'missing'}",
            _completion(facts, functions),
            stamped or functions,
            Manager.MIGRATE,
        )
    state, detail = _compare(stamped, newest)
    hint = {
        State.BEHIND: "realtime-db migrate",
        State.NEWER: f"Install realtime-db {stamped} or newer.",
    }.get(state)
    return found(state, detail, hint, stamped, Manager.MIGRATE)


def _completion(facts: dict[str, Any], functions: str | None) -> str:
    """What makes a half-finished installation whole, without losing messages."""
    if functions is None:
        return "realtime-db doctor prints the statements that make the missing functions."
    if not facts["messages_owner"]:
        return "select realtime.setup();"
    stamp = _STAMP.replace("<release>", functions)
    return stamp if facts["version_table"] else f"{_CREATE_VERSION_TABLE} {stamp}"


def _judge_extension(
    release: str, messages_owner: str | None, found: Any, newest: str
) -> Installation:
    """The same for a database where `create extension` was used."""
    answer: Installation
    if release == "unpackaged":
        answer = found(
            State.INCOMPLETE,
            "the extension was created to adopt what is there, and did not yet",
            "alter extension realtime_db update; select realtime.setup();",
            None,
            Manager.EXTENSION,
        )
    elif messages_owner is None:
        answer = found(
            State.INCOMPLETE,
            f"the extension realtime_db {release} was created, but not set up",
            "select realtime.setup();",
            release,
            Manager.EXTENSION,
        )
    else:
        state, detail = _compare(release, newest)
        hint = {
            State.BEHIND: "alter extension realtime_db update; select realtime.setup();",
            State.NEWER: f"Install realtime-db {release} or newer.",
        }.get(state)
        answer = found(state, detail, hint, release, Manager.EXTENSION)
    return answer


def _compare(release: str, newest: str) -> tuple[State, str]:
    here, there = releases.version_key(release), releases.version_key(newest)
    if here == there:
        return State.CURRENT, f"realtime-db {release} is installed and up to date"
    if here < there:
        return State.BEHIND, f"realtime-db {release} is installed; {newest} is out"
    return (
        State.NEWER,
        f"realtime-db {release} is installed; this program knows releases up to {newest}",
    )
