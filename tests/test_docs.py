"""Every page of the documentation does what it says.

A page's ```sql blocks run verbatim and in their order, in a fresh migrated database of its own, as
the plain owner. What a page claims about them, it claims like this:

    select realtime.send('{}', 'greeting', null); -- error: RT002
    delete from todos;                            -- warning: RT002

The first must fail with that SQLSTATE, the second must warn with it; any other error or warning
fails the test. A ```text block directly after a ```sql block is what its statements return, as
`psql -At` prints it: a line for each row, `|` between columns; `…` stands for any text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from realtime_db.cli import main as command_line
from realtime_db.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REFERENCE = (DOCS / "sql.md").read_text()
FUNCTIONS = {path.stem: path.read_text() for path in (ROOT / "sql" / "functions").glob("*.sql")}
INTERNAL = {
    "authorize",
    "role_refusal",
    "explain_misfit",
    "explain_refusal",
    "message_fits",
    "warn_null_topic",
    "warn_send_error",
}

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SQL_AND_RESULT = re.compile(
    r"^```sql\n(?P<sql>.*?)^```\n(?:\n*```text\n(?P<result>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
# A statement ends at a semicolon that ends a line and is not between two $$.
STATEMENT = re.compile(
    r"(?P<text>(?:\$\$.*?\$\$|.)*?;)[ ]*(?:--[ ](?P<kind>error|warning):[ ](?P<code>\w{5}))?[ ]*\n",
    re.DOTALL,
)

KINDS = {"timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz"}

Connection = psycopg.Connection[tuple[Any, ...]]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Statement:
    text: str
    error: str | None
    warning: str | None


def statements(block: str) -> list[Statement]:
    found = list(STATEMENT.finditer(block))
    rest = block[found[-1].end() if found else 0 :]
    assert not re.sub(r"--.*", "", rest).strip(), f"no statement ends here: {rest}"
    return [
        Statement(
            text=match["text"].strip(),
            error=match["code"] if match["kind"] == "error" else None,
            warning=match["code"] if match["kind"] == "warning" else None,
        )
        for match in found
    ]


def run(connection: Connection, statement: Statement) -> list[str]:
    """Runs it, checks its error and its warning; returns its rows."""
    warnings: list[str | None] = []

    def heard(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warnings.append(notice.sqlstate)

    connection.add_notice_handler(heard)
    result = connection.pgconn.exec_(statement.text.encode())
    connection.remove_notice_handler(heard)
    code = result.error_field(pq.DiagnosticField.SQLSTATE)
    assert (code.decode() if code else None) == statement.error, (
        f"{statement.text}\n{result.error_message.decode()}"
    )
    assert warnings == ([statement.warning] if statement.warning else []), statement.text
    return [
        "|".join(
            (result.get_value(row, column) or b"").decode() for column in range(result.nfields)
        )
        for row in range(result.ntuples)
    ]


def matches(printed: list[str], shown: list[str]) -> bool:
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in shown]
    return len(printed) == len(shown) and all(
        re.fullmatch(pattern, line) for pattern, line in zip(patterns, printed, strict=True)
    )


@pytest.fixture
def drop_roles(server_url: str, connection: Connection) -> Iterator[Callable[[str], None]]:
    """Drops the roles that a page makes, for they belong to the whole server."""
    missing: list[str] = []

    def existing(name: str) -> bool:
        query = "select from pg_roles where rolname = %s"
        return connection.execute(query, [name]).fetchone() is not None

    def remember(page: str) -> None:
        roles = re.findall(r"^create role (\w+)", page, re.MULTILINE)
        missing.extend(role for role in roles if not existing(role))

    yield remember
    url = make_conninfo(server_url, dbname=connection.info.dbname)
    with psycopg.connect(url, autocommit=True) as admin:
        for role in filter(existing, missing):
            name = sql.Identifier(role)
            admin.execute(sql.SQL("drop owned by {0}; drop role {0}").format(name))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_sql_of_a_page_does_what_the_page_says(
    page: Path, connection: Connection, drop_roles: Callable[[str], None]
) -> None:
    drop_roles(page.read_text())
    connection.execute("select realtime.maintain()")  # the template may be of yesterday
    for match in SQL_AND_RESULT.finditer(page.read_text()):
        printed = [row for one in statements(match["sql"]) for row in run(connection, one)]
        if match["result"] is not None:
            shown = match["result"].splitlines()
            assert matches(printed, shown), f"{match['sql']}\nprints {printed}\nnot    {shown}"


def test_a_block_is_split_at_the_ends_of_its_statements() -> None:
    body = "do $$\nbegin\n    null;\nend;\n$$;"
    block = f"select 1;\n{body} -- error: RT001\nselect 2; -- warning: RT002\n"

    assert statements(block) == [
        Statement("select 1;", None, None),
        Statement(body, "RT001", None),
        Statement("select 2;", None, "RT002"),
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert file.is_relative_to(ROOT), f"{target}: outside of the project"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_the_index_lists_every_page_once() -> None:
    listed = re.findall(r"^\| \[[^]]+\]\((\w+\.md)\) \|", (DOCS / "README.md").read_text(), re.M)

    assert sorted(listed) == sorted({path.name for path in DOCS.glob("*.md")} - {"README.md"})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_on_a_page_exists(page: Path) -> None:
    named_there = set(re.findall(r"\brealtime-db ([a-z]+)\b(?! *\()", "\n".join(code(page))))

    assert named_there <= set(command_line.commands)


def code(page: Path) -> list[str]:
    """What stands in code blocks other than ```text, and between backticks."""
    text = page.read_text()
    blocks = [body for language, body in BLOCK.findall(text) if language != "text"]
    return blocks + re.findall(r"`([^`]+)`", BLOCK.sub("", text))


def commands(group: click.Group, prefix: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


def test_every_command_has_a_section_in_its_order_and_no_other_does() -> None:
    page = (DOCS / "commands.md").read_text()

    parts = re.split(r"^## `(.+)`\n", page, flags=re.MULTILINE)
    assert parts[1::2] == list(commands(command_line, "realtime-db"))
    for name, section in zip(parts[1::2], parts[2::2], strict=True):
        assert f"\n{name}" in section, f"{name}: no example"
        assert "xit status" in section, f"{name}: no exit status"


def shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if field.name == "port" or isinstance(field.default, str):
        return str(field.default)
    return f"{field.default:,}".removesuffix(".0")


def test_the_settings_of_the_server_are_listed_with_their_defaults() -> None:
    page = (DOCS / "server.md").read_text()
    options = {option.name: option for option in command_line.commands["serve"].params}

    listed = re.findall(r"^\| `(--[\w-]+)` \|(.*?)\|", page.split("\n## Limits")[0], re.MULTILINE)
    assert [(option, default.strip()) for option, default in listed] == [
        (options[field.name].opts[0], shown_default(field))
        for field in dataclasses.fields(Settings)
    ]
    for name, option in options.items():
        variable = "REALTIME_DB_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
        assert option.envvar == ("DATABASE_URL" if name == "database_url" else variable)


def test_every_sqlstate_of_ours_that_is_raised_is_documented_and_no_other() -> None:
    everything = "".join(path.read_text() for path in (ROOT / "sql").rglob("*.sql"))
    raised = set(re.findall(r"errcode = '(RT\d{3})'", everything))

    assert raised
    assert set(re.findall(r"^\| `(RT\d{3})` \|", REFERENCE, re.MULTILINE)) == raised


def sections() -> dict[str, str]:
    """Heading -> text, of the sections of docs/sql.md that are about one function or table."""
    parts = re.split(r"^## `realtime\.(\w+)`\n", REFERENCE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.split("\n## ")[0] for part in parts[2::2]), strict=True))


def test_every_public_function_has_a_section_and_the_internal_ones_a_paragraph() -> None:
    tables = {"messages", "settings", "send_errors"}

    assert set(sections()) - tables == set(FUNCTIONS) - INTERNAL
    internal = REFERENCE.split("\n## Internal functions\n")[1]
    assert set(re.findall(r"`realtime\.(\w+)`", internal)) == INTERNAL


def test_each_section_begins_with_the_signature_that_the_database_has(
    connection: Connection,
) -> None:
    rows = connection.execute(
        "select proname, pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc "
        "where pronamespace = 'realtime'::regnamespace"
    ).fetchall()

    for name, arguments, result in rows:
        if name in INTERNAL:
            continue
        signature = f"realtime.{name}({arguments}) returns {result}"
        shown = sections()[name].strip().removeprefix("```\n").split("```")[0]
        assert tidy(shown) == tidy(signature)


def tidy(signature: str) -> str:
    text = " ".join(signature.lower().replace("::text", "").split())
    text = re.sub(r"\(\((.*?)\)\)::", r"(\1)::", text)
    return text.replace("( ", "(").replace(" )", ")")


def test_each_table_is_documented_with_its_columns(connection: Connection) -> None:
    for table in ("messages", "settings", "send_errors"):
        columns = connection.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
            [f"realtime.{table}"],
        ).fetchall()

        shown = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", sections()[table], re.MULTILINE)
        assert shown == [(name, KINDS.get(kind, kind)) for name, kind in columns]
