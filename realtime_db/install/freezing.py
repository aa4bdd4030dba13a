"""How a release is made of the living `sql/` tree.

Above: `make release`, and `migrate`, which runs what is not released yet for those who work on it.
Below: `releases`, what is frozen already, and `source`, the living tree. No I/O but reading and
writing files.

`make release VERSION=0.2.0` calls `python -m realtime_db.install.freezing 0.2.0`, which writes,
named as `create extension` wants them:

    sql/realtime_db--0.2.0.sql              everything, for a database that has nothing
    sql/realtime_db--0.1.0--0.2.0.sql       from the release before
    sql/realtime_db--0.2.0--0.1.0.sql       back to it
    sql/realtime_db--unpackaged--0.2.0.sql  lets the extension adopt what `migrate` installed
    versions/0_2_0.py                       the alembic revision that runs these files

and sets the version in `sql/functions/version.sql`, `pyproject.toml` and `realtime_db.control`.

What an update does is worked out: functions that are gone are dropped, so are those of which
`create or replace` cannot change the head, and then all functions are made again. Tables are the
business of `realtime.setup()`, which converges. What it cannot converge goes by hand into
`sql/updates/0.1.0--0.2.0.sql` and `sql/updates/0.2.0--0.1.0.sql`, which come first in the files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from realtime_db import resources
from realtime_db.errors import InstallError, RealtimeDbError
from realtime_db.install import source
from realtime_db.install.releases import (
    EXTENSION,
    VERSION,
    Function,
    checksum,
    checksums,
    install_file,
    install_script,
    newest,
    parse,
    releases,
    version_key,
)

_RIGHTS = re.compile(r"^(?:grant|revoke) [^;]* on function realtime\.[^;]*;", re.MULTILINE)
_ABSENT: Final = """\
do $$
begin
    if exists (
        select from pg_proc
        where pronamespace = to_regnamespace('realtime') and proname = 'version'
    ) then
        raise exception 'realtime-db was already installed here by `realtime-db migrate`'
        using hint =
            'To hand it over to the extension: create extension realtime_db version '
            '''unpackaged''; alter extension realtime_db update; select realtime.setup();';
    end if;
end;
$$;
"""

_CREATE = re.compile(r"^create function realtime\.", re.MULTILINE)
_CREATE_OR_REPLACE = re.compile(r"^create or replace function realtime\.", re.MULTILINE)

_CONTROL = """\
comment = 'Broadcast from Postgres: commit a row, and every subscriber gets it'
default_version = '{version}'
schema = realtime
relocatable = false
# Not `trusted`: the objects would belong to the bootstrap superuser.
superuser = false
"""

_REVISION = '''\
"""{version}, written by `make release`: runs the frozen files as they are."""

from realtime_db.install import migrate

revision = "{version}"
down_revision = {previous!r}


def upgrade() -> None:
    migrate.run_frozen("{up}")


def downgrade() -> None:
    {down}
'''


def update_script(old: str, new: str, by_hand: str = "") -> str:
    """The script that turns the functions of one install script into those of another.

    Args:
        old: the install script of what is there.
        new: the install script of what shall be there.
        by_hand: statements that come first.

    Raises:
        InstallError: what `setup()` makes changed in a way that only a human can mend.
    """
    before, after = parse(old), parse(new)
    changed = [
        function
        for name, function in before.items()
        if name not in after
        or (after[name].head, after[name].member) != (function.head, function.member)
    ]
    for function in changed:
        # A table depends on it, or it changes hands between setup() and the extension.
        stays = function.member and (function.name not in after or after[function.name].member)
        if not stays and f"realtime.{function.name}" not in by_hand:
            raise InstallError(
                f"realtime.{function.name}, which setup() makes, is gone or has another head, and "
                "`create or replace` cannot do that",
                hint="Write into sql/updates/ what happens to it and to what depends on it.",
            )
    gone = [function.signature for function in changed if function.member]
    drops = "".join(f"drop function if exists {signature};\n" for signature in gone)
    # `create or replace` keeps rights, also those that are no longer wanted.
    rights = "".join(
        _undo(statement) + "\n"
        for statement in _RIGHTS.findall(old)
        if statement not in new and not any(signature in statement for signature in gone)
    )
    replaced = _CREATE.sub("create or replace function realtime.", new)
    parts = (by_hand, drops, rights, replaced)
    return "\n".join(f"{part.strip()}\n" for part in parts if part.strip())


def _undo(statement: str) -> str:
    """`revoke … from public;` -> `grant … to public;`, and the other way round."""
    verb, rest = statement.split(maxsplit=1)
    there, back = ("from", "to") if verb == "revoke" else ("to", "from")
    target, role = rest.rsplit(f" {there} ", 1)
    return f"{'grant' if verb == 'revoke' else 'revoke'} {target} {back} {role}"


def living_update(migrations: Path | None = None, sql: Path | None = None) -> str:
    """From the newest release to the living `sql/` tree: what developers and tests run."""
    tree = sql or resources.sql()
    release = newest(migrations)
    by_hand = "".join(
        path.read_text()
        for path in sorted((tree / "updates").glob(f"{release}--*.sql"))
        if version_key(path.stem.split("--")[1]) > version_key(release)
    )
    return update_script(install_script(release, migrations), source.install_script(tree), by_hand)


def freeze(version: str, project: Path) -> list[Path]:
    """Freezes the living tree as a release.

    Args:
        version: of three numbers; newer than all others, or one that is frozen already, which
            then must not differ.
        project: the checkout, with `sql/` and `migrations/`.

    Returns:
        The files that were written.

    Raises:
        InstallError: the version is wrong, or frozen with other contents.
    """
    if not VERSION.fullmatch(version):
        raise InstallError(f"{version!r} is not a version", hint="make release VERSION=0.1.0")
    migrations = project / "migrations"
    known = releases(migrations)
    if known and version not in known and version_key(version) < version_key(known[-1]):
        raise InstallError(f"{version} is older than the newest release, {known[-1]}")
    earlier = [release for release in known if version_key(release) < version_key(version)]
    previous = earlier[-1] if earlier else None

    tree = _with_version(source.functions(project / "sql"), version)
    contents = _contents(version, previous, tree, project)
    sums = checksums(migrations)
    changed = [
        name for name, text in contents.items() if sums.get(name) not in (None, checksum(text))
    ]
    if changed or (version in known and not contents.keys() <= sums.keys()):
        raise InstallError(
            f"{version} is frozen, and sql/ is not what it was then: {', '.join(changed)}",
            hint="Databases may have it already. Give the changes the next version.",
        )

    written = {migrations / "sql" / name: text for name, text in contents.items()}
    sums |= {name: checksum(text) for name, text in contents.items()}
    written[migrations / "SHA256SUMS"] = "".join(
        f"{digest}  sql/{name}\n" for name, digest in sorted(sums.items())
    )
    written[migrations / "versions" / f"{version.replace('.', '_')}.py"] = _revision(
        version, previous
    )
    if version == max([*known, version], key=version_key):
        written |= _version_files(version, project)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(written)


def _contents(
    version: str, previous: str | None, tree: Mapping[str, str], project: Path
) -> dict[str, str]:
    """The frozen SQL files of a release: name -> text."""
    # Without `or replace`, nobody can have put a function of that name there beforehand.
    install = _CREATE_OR_REPLACE.sub("create function realtime.", "\n".join(tree.values()))
    found = {function.name for function in parse(install).values() if function.member}
    if odd := found ^ tree.keys():
        raise InstallError(
            f"sql/functions: not one function of its name in a file each: {', '.join(sorted(odd))}"
        )
    contents = {
        install_file(version): _head(f"{version} for a database without it", _ABSENT) + install,
        f"{EXTENSION}--unpackaged.sql": _head("what `realtime-db migrate` installed, unadopted"),
        f"{EXTENSION}--unpackaged--{version}.sql": _head(f"the adoption of {version}")
        + _adoption(version, parse(install)),
    }
    if previous is None:
        return contents
    old = install_script(previous, project / "migrations")
    for here, there, before, after in (
        (previous, version, old, install),
        (version, previous, install, old.split("\n\n", 1)[1]),
    ):
        by_hand = project / "sql" / "updates" / f"{here}--{there}.sql"
        contents[f"{EXTENSION}--{here}--{there}.sql"] = _head(f"from {here} to {there}") + (
            update_script(before, after, by_hand.read_text() if by_hand.is_file() else "")
        )
    return contents


# ruff's S608 sees a query made of strings; these strings are names that we chose.
def _adoption(version: str, members: Mapping[str, Function]) -> str:
    adds = "\n".join(
        f"alter extension {EXTENSION} add function {function.signature};"
        for function in members.values()
        if function.member
    )
    return f"""\
do $$
declare
    installed text;
begin
    if exists (
        select from pg_proc
        where pronamespace = 'realtime'::regnamespace and proname = 'version' and pronargs = 0
    ) then
        installed := realtime.version();
    end if;
    if installed is null then
        raise exception 'there is nothing to adopt in schema realtime'
        using hint =
            'drop extension {EXTENSION}; create extension {EXTENSION}; '
            'select realtime.setup();';
    end if;
    if installed <> '{version}' then
        raise exception 'schema realtime has release %, not {version}', installed
        using hint = format(
            'alter extension {EXTENSION} update to %L; alter extension {EXTENSION} update; '
            'select realtime.setup();',
            installed
        );
    end if;
end;
$$;

{adds}

-- From now on pg_extension says which release this is.
drop table if exists realtime.realtime_db_release;
"""  # noqa: S608


def _revision(version: str, previous: str | None) -> str:
    if previous is None:
        up, down = install_file(version), "migrate.refuse_to_remove()"
    else:
        up = f"{EXTENSION}--{previous}--{version}.sql"
        down = f'migrate.run_frozen("{EXTENSION}--{version}--{previous}.sql")'
    text = _REVISION.format(version=version, previous=previous, up=up, down=down)
    return text.replace(repr(previous), f'"{previous}"' if previous else "None")


def _version_files(version: str, project: Path) -> dict[Path, str]:
    """Every other file that names the newest version."""
    function = project / "sql" / "functions" / "version.sql"
    pyproject = project / "pyproject.toml"
    return {
        function: _set_version(function.read_text(), version),
        pyproject: re.sub(
            r'^version = ".*"$',
            f'version = "{version}"',
            pyproject.read_text(),
            count=1,
            flags=re.M,
        ),
        project / f"{EXTENSION}.control": _CONTROL.format(version=version),
    }


def _with_version(tree: Mapping[str, str], version: str) -> dict[str, str]:
    if "version" not in tree:
        raise InstallError("sql/functions/version.sql is missing")
    return {**tree, "version": _set_version(tree["version"], version)}


def _set_version(text: str, version: str) -> str:
    return re.sub(rf"select '{VERSION.pattern}'", f"select '{version}'", text)


def _head(what: str, guard: str = "") -> str:
    """The first lines of a frozen file, up to its first empty one."""
    return f"-- realtime_db: {what}. Frozen by `make release`; never edited.\n{guard}\n"


def main(arguments: list[str]) -> int:
    """Freezes one release: `python -m realtime_db.install.freezing 0.2.0`."""
    project = resources.sql().parent
    if len(arguments) != 1 or not (project / "pyproject.toml").is_file():
        print("In a checkout: make release VERSION=0.2.0", file=sys.stderr)
        return 2
    try:
        for path in freeze(arguments[0], project):
            print(path.relative_to(project))
    except RealtimeDbError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
