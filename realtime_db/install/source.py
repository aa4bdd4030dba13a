"""The living `sql/` tree as one script; below it `releases`, which freezes that script.

No I/O but reading files. `functions/` is code, one file per function; `schema/` and
`access/` are state, run by `realtime.setup()`, into whose body they are included. So are the
functions on which a table depends: as members of the extension, they would keep it from being
dropped without its table.
"""

from __future__ import annotations

import re
from pathlib import Path

from realtime_db import resources

_INCLUDE = re.compile(r"^( *)-- include: (\S+)\n", re.MULTILINE)


def functions(root: Path | None = None) -> dict[str, str]:
    """Each function's statements by its name, includes resolved, in the order to run them."""
    root = root or resources.sql()
    return {
        path.stem: _resolve_includes(path.read_text(), root)
        for path in sorted((root / "functions").glob("*.sql"))
    }


def install_script(root: Path | None = None) -> str:
    """All functions as one script; `realtime.setup()` is not called in it."""
    return "\n".join(functions(root).values())


def _resolve_includes(text: str, root: Path) -> str:
    def included(match: re.Match[str]) -> str:
        indent, name = match.groups()
        lines = (root / name).read_text().splitlines()
        return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)

    return _INCLUDE.sub(included, text)
