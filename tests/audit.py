"""`make audit`: what tools that look for weaknesses say of the code, the SQL and what we depend on.

    bandit      the Python
    pgspot      the SQL as the next release would freeze it, and what the trigger command writes
    pip-audit   the packages that a server has, against the known vulnerabilities

Fails on every finding that is not explained here, and on explanations that explain nothing. The
tools live in `.venv/audit`, for pgspot needs one pglast and no other. pip-audit needs a service
that knows vulnerabilities; where none can be reached, it says so and counts as passed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from realtime_db.install import freezing, releases, trigger_template
from realtime_db.install.trigger_options import TriggerOptions

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv" / "audit" / "bin"

# bandit's numbers are those of ruff's S rules, and a `noqa: S…` at the line explains it to both.
# These are explained in pyproject.toml, but for B404: that subprocess is imported.
BANDIT = {"B101", "B404", "B603", "B607"}
BANDIT_AT = {
    (
        "realtime_db/install/trigger_template.py",
        "B608",
    ): "the condition is SQL of who adds a trigger"
}

OWN_WORK = "setup() refuses to go on from what a stranger made: sql/schema/owners.sql"
UPDATE = "an update replaces our own functions; nobody else may create in our schema"
HOT = "inlined, or called for each message: qualifies every name instead of pinning a search_path"
EXACT = (
    "cannot be qualified; compares text with text or integer with integer, for which pg_catalog has"
    " an operator that fits exactly"
)
GUARD = (
    "runs once, at the installation; create extension pins the search_path, and migrate uses the"
    " installer's own, in which pg_catalog is first"
)

# What pgspot finds, as a pattern over the file's name and its words, and why it may stay.
PGSPOT = {
    r"PS012: .* realtime\.(settings|messages|send_errors|polls) ": OWN_WORK,
    r"PS011: .* realtime\.messages_position ": OWN_WORK,
    r"PS002: .* realtime\.(explain_misfit|message_fits)\(": OWN_WORK,
    r"update .*PS002: ": UPDATE,
    r"PS005: .* realtime\.(authorize|broadcast_changes|message_fits|send|send_binary|send_many"
    r"|topic|version)\(": HOT,
    r"PS001: .* NULLIF\(pg_catalog\.current_setting\('realtime\.topic', TRUE\), ''\)": EXACT,
    r"PS001: .* pg_catalog\.cardinality\((events|topics)\) IS DISTINCT FROM wanted": EXACT,
    r"(install|adoption) .*(PS001|PS016|PS017): .*(pg_proc|pronamespace|proname|pronargs"
    r"|regnamespace|installed <>|format) ?": GUARD,
}


def main() -> int:
    failures = [*bandit(), *pgspot(), *pip_audit()]
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _run(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


def bandit() -> Iterator[str]:
    """What has no `noqa` at its line."""
    found = json.loads(
        _run(TOOLS / "bandit", "-q", "-f", "json", "-r", "realtime_db", "migrations")
    )
    explained = 0
    unused = BANDIT_AT.keys() - {(one["filename"], one["test_id"]) for one in found["results"]}
    for path, number in unused:
        yield f"bandit: {number} is not found in {path} any more"
    for error in found["errors"]:
        yield f"bandit cannot read {error['filename']}: {error['reason']}"
    for result in found["results"]:
        number = result["test_id"]
        lines = (ROOT / result["filename"]).read_text().splitlines()
        where = "\n".join(lines[line - 1] for line in result["line_range"])
        explained_at = (result["filename"], number) in BANDIT_AT
        if number in BANDIT or explained_at or f"noqa: S{number[1:]}" in where:
            explained += 1
        else:
            yield f"{result['filename']}:{result['line_number']}: {number} {result['issue_text']}"
    print(f"bandit: {explained} findings are explained")


def pgspot() -> Iterator[str]:
    """What the allow-list does not explain, and what in it explains nothing."""
    used: set[str] = set()
    explained = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _scripts(Path(folder)):
            for line in _run(TOOLS / "pgspot", path).splitlines():
                if not re.match(r"PS\d+: ", line):
                    continue
                finding = f"{name} {line}"
                patterns = {pattern for pattern in PGSPOT if re.match(rf"(.* )?{pattern}", finding)}
                used |= patterns
                explained += bool(patterns)
                if not patterns:
                    yield f"pgspot: {finding}"
    for pattern in PGSPOT.keys() - used:
        yield f"pgspot: nothing is found any more that {pattern} would explain"
    print(f"pgspot: {explained} findings are explained")


def _scripts(folder: Path) -> Iterator[tuple[str, Path]]:
    """What would be frozen now, and two triggers."""
    for name in ("sql", "migrations"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "realtime_db.control"):
        shutil.copy(ROOT / name, folder)
    freezing.freeze("999.0.0", folder)
    frozen = folder / "migrations" / "sql"
    yield "install", frozen / "realtime_db--999.0.0.sql"
    yield "adoption", frozen / "realtime_db--unpackaged--999.0.0.sql"
    yield "update", frozen / f"realtime_db--{releases.newest()}--999.0.0.sql"
    for level in ("statement", "row"):
        options = TriggerOptions(
            "todos", "todo:{id}", level=level, columns=("id", "title"), on_send_error="warn"
        )
        path = folder / f"{level}.sql"
        path.write_text(trigger_template.render(options))
        yield f"{level} trigger", path


def pip_audit() -> Iterator[str]:
    """Known vulnerabilities of what `realtime-db[server]` brings."""
    packages = sorted(_packages("realtime-db", {"server"}))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version(name)}\n" for name in packages)
        file.flush()
        answer = _run(
            *(TOOLS / "pip-audit", "--requirement", file.name, "--disable-pip", "--no-deps"),
            *("--progress-spinner", "off", "--format", "json"),
        )
    found = json.loads(answer)["dependencies"] if answer else []
    known = [package for package in found if "vulns" in package]
    for package in known:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "nothing yet"
            yield (
                f"pip-audit: {package['name']} {package['version']} has {vulnerability['id']},"
                f" fixed by {fixed}"
            )
    print(f"pip-audit: {len(known)} of {len(packages)} packages could be looked up")


def _packages(name: str, extras: set[str]) -> set[str]:
    """What a package needs, and what that needs."""
    found: set[str] = set()
    for text in requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        try:
            version(requirement.name)
        except PackageNotFoundError:
            continue
        needed = requirement.name.lower().replace("_", "-")
        if needed not in found:
            found |= {needed} | _packages(needed, requirement.extras)
    return found


if __name__ == "__main__":
    sys.exit(main())
