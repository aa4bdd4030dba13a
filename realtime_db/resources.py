"""Finds `sql/` and `migrations/`: in a wheel below the package, in a checkout beside it.

And says how to install what is missing.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for root in (_PACKAGE / "_files", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"realtime_db was installed without its folder {name}/")


def sql() -> Path:
    """The living SQL tree: `schema/`, `functions/`, `access/`, `templates/`."""
    return _folder("sql")


def migrations() -> Path:
    """The frozen releases: `env.py`, `versions/`, `sql/`, `SHA256SUMS`."""
    return _folder("migrations")


def pip_install(extras: str) -> str:
    """The command for extras such as `embedded,server`; no index has the package."""
    return f"In a checkout of realtime-db: pip install '.[{extras}]'"
