"""The frozen releases in `migrations/`: their order, their checksums, their functions.

Above: `migrate`, which runs the files; `doctor`, which compares functions with them; `freezing`,
which makes them. No I/O but reading files.

For the command line:

    releases(migrations=None) -> list[str]      oldest first
    newest(migrations=None) -> str
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from realtime_db import resources
from realtime_db.errors import InstallError

EXTENSION: Final = "realtime_db"

VERSION = re.compile(r"\d+\.\d+\.\d+")
_INSTALL_FILE = re.compile(rf"{EXTENSION}--({VERSION.pattern})\.sql")
_FUNCTION = re.compile(
    r"^ *create(?: or replace)? function (?P<head>realtime\.(?P<name>\w+)\(.*?)\s+"
    r"(?P<options>language\s.*?)\sas (?P<quote>\$\w*\$)(?P<body>.*?)(?P=quote);",
    re.MULTILINE | re.DOTALL,
)
_SIGNATURE = re.compile(r"^ *comment on function realtime\.(\w+)\(([^)]*)\)\s+is\b", re.MULTILINE)
_REVOKED = re.compile(
    r"^ *revoke (?:all|execute) on function realtime\.(\w+)\([^;]* from public;", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a release.

    Attributes:
        name: without the schema.
        arguments: the types, as in `drop function`.
        head: name, parameters and result, which `create or replace` cannot change.
        options: language, volatility, security and settings, with single spaces.
        body: as `pg_proc.prosrc` has it.
        statement: the whole `create or replace function` statement.
        member: belongs to the extension; those that `realtime.setup()` makes do not.
        public: everybody may call it.
    """

    name: str
    arguments: str
    head: str
    options: str
    body: str
    statement: str
    member: bool
    public: bool

    @property
    def signature(self) -> str:
        """`realtime.name(types)`, for `drop function` and its like."""
        return f"realtime.{self.name}({self.arguments})"

    @property
    def security_definer(self) -> bool:
        """Whether it runs with its owner's rights."""
        return "security definer" in self.options

    @property
    def settings(self) -> frozenset[str]:
        """The names of the settings that it pins."""
        return frozenset(re.findall(r"\bset (\w[\w.]*) (?:=|to)", self.options))


def version_key(release: str) -> tuple[int, ...]:
    """Orders releases by number: 0.10.0 comes after 0.9.0."""
    return tuple(map(int, release.split(".")))


def releases(migrations: Path | None = None) -> list[str]:
    """All frozen releases, oldest first.

    Args:
        migrations: the folder to look in; that of this program by default.
    """
    names = (_INSTALL_FILE.fullmatch(name) for name in checksums(migrations))
    return sorted((match[1] for match in names if match), key=version_key)


def newest(migrations: Path | None = None) -> str:
    """The release that `migrate` brings a database to.

    Raises:
        InstallError: nothing was ever frozen.
    """
    known = releases(migrations)
    if not known:
        raise InstallError(
            "this program comes without a release", hint="make release VERSION=0.1.0"
        )
    return known[-1]


def frozen(name: str, migrations: Path | None = None) -> str:
    """The text of a frozen file, once its checksum was found right.

    Args:
        name: such as `realtime_db--0.1.0.sql`.
        migrations: the folder to look in; that of this program by default.

    Raises:
        InstallError: the file is missing or was changed after its release.
    """
    folder = migrations or resources.migrations()
    path = folder / "sql" / name
    expected = checksums(folder).get(name)
    if expected is None or not path.is_file():
        raise InstallError(f"{path} is not part of a release", hint="Install realtime-db again.")
    content = path.read_bytes()
    if _sha256(content) != expected:
        raise InstallError(
            f"{path} was changed after its release: its checksum differs from SHA256SUMS",
            hint="Install realtime-db again. In a checkout: git checkout migrations",
        )
    return content.decode()


def install_script(release: str, migrations: Path | None = None) -> str:
    """The script that makes all of a release in a database that has nothing."""
    return frozen(install_file(release), migrations)


def functions(release: str, migrations: Path | None = None) -> dict[str, Function]:
    """The functions that a release has, by name."""
    return parse(install_script(release, migrations))


def parse(script: str) -> dict[str, Function]:
    """The functions that a script makes, by name.

    Each has its `comment on function`, which is where the argument types are taken from.

    Raises:
        InstallError: a function has no comment.
    """
    arguments = {name: " ".join(types.split()) for name, types in _SIGNATURE.findall(script)}
    revoked = set(_REVOKED.findall(script))
    return {function.name: function for function in _parse(script, arguments, revoked, member=True)}


def _parse(
    script: str, arguments: Mapping[str, str], revoked: Set[str], *, member: bool
) -> Iterator[Function]:
    for match in _FUNCTION.finditer(script):
        name = match["name"]
        if name not in arguments:
            raise InstallError(
                f"the function realtime.{name} has no comment",
                hint=f"Add to its file: comment on function realtime.{name}(…) is '…';",
            )
        yield Function(
            name=name,
            arguments=arguments[name],
            head=" ".join(match["head"].split()),
            options=" ".join(match["options"].split()),
            body=match["body"],
            statement=re.sub(
                r"^ *create(?: or replace)? function", "create or replace function", match[0]
            ),
            member=member,
            public=name not in revoked,
        )
        # Those that setup() makes stand in its body.
        yield from _parse(match["body"], arguments, revoked, member=False)


def install_file(release: str) -> str:
    """The name of the file that makes all of a release."""
    return f"{EXTENSION}--{release}.sql"


def checksums(migrations: Path | None) -> dict[str, str]:
    """File name -> SHA-256, from `SHA256SUMS`, whose format is that of sha256sum."""
    path = (migrations or resources.migrations()) / "SHA256SUMS"
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name.removeprefix("sql/"): digest for digest, name in lines}


def checksum(text: str) -> str:
    """The SHA-256 of a file with this text."""
    return _sha256(text.encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
