"""Whom Postgres runs as: it refuses to run as root, so root lends it somebody else's account."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from realtime_db.errors import EmbeddedPostgresError


@dataclass(frozen=True, slots=True)
class Account:
    """An account that is not root."""

    uid: int
    gid: int

    def refusal(self, *command: str | Path) -> str | None:
        """Run a command as this account; None if it succeeds, else what it complains about."""
        try:
            done = subprocess.run(
                command,
                user=self.uid,
                group=self.gid,
                extra_groups=[],
                cwd="/",
                env=bare_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return done.stderr.strip() or f"status {done.returncode}" if done.returncode else None

    def refusal_to_enter(self, folder: str | Path) -> str | None:
        """None if this account may enter the folder, else what it complains about."""
        return self.refusal("/bin/sh", "-c", 'cd "$0"', folder)


def account_for(data: Path | None) -> Account | None:
    """Choose the account; None: we are an ordinary user, and so is Postgres.

    Args:
        data: the folder of the data, if it is kept.

    Raises:
        EmbeddedPostgresError: we are root, and there is no account to lend.
    """
    if os.geteuid() != 0:
        return None
    if data and (data / "PG_VERSION").exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)  # Postgres wants its folder's owner
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is no account 'postgres' or 'nobody' for it.",
        hint="Run realtime-db as an ordinary user.",
    )


def bare_environment() -> dict[str, str]:
    """For Postgres: what programs need to run, and none of our caller's PGDATA or secrets."""
    names = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ} | {"LC_ALL": "C"}
