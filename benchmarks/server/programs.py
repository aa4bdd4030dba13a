"""Programs that run beside the benchmark: ours, the limit in C, the load generator, a Postgres.

Above: the cases. Servers have one core, everything else has the others, so that the load is not
counted as theirs. Every program ends with the block that began it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realtime_db.auth import tokens

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKEN_SECONDS = 6 * 3600.0
_START_SECONDS = 30.0
_RUN_SECONDS = 180.0


class Unavailable(Exception):
    """This machine lacks what a measurement needs; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores are whose.

    Attributes:
        server: the one that servers run on.
        load: those of the load, the database and this program.
    """

    server: int
    load: frozenset[int]

    @classmethod
    def divide(cls, *, first: bool = False) -> Cores:
        """Takes the first core that we may use for the servers, and moves this program away.

        Args:
            first: whether we, and all that we start, go before other programs.
        """
        if not sys.platform.startswith("linux"):
            raise Unavailable("the load generator uses epoll and /proc: run this on Linux")
        one, *others = sorted(os.sched_getaffinity(0))
        if not others:
            raise Unavailable("one core is not enough: the server needs one, and the load another")
        os.sched_setaffinity(0, others)
        if first:
            try:
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            except PermissionError as error:
                raise Unavailable("--first needs root (CAP_SYS_NICE)") from error
        return cls(one, frozenset(others))


def allow_files(count: int) -> bool:
    """Raises the limit of open files for us and what we start; whether so many are possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, count)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        wanted = soft
    return wanted >= count


def compile_programs(folder: Path) -> None:
    """Makes `wsload` and `cfan` in a folder."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Unavailable("gcc is not on PATH, and the load generator is C: install gcc")
    for name, libraries in {"wsload": [], "cfan": ["-lcrypto"]}.items():
        result = subprocess.run(
            [compiler, "-O2", "-w", "-o", folder / name, HERE / f"{name}.c", *libraries],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            hint = ": install the headers of OpenSSL (libssl-dev)" if libraries else ""
            raise Unavailable(f"{name}.c does not compile{hint}\n{result.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs on its core.

    Attributes:
        port: of 127.0.0.1.
        pid: of its only process.
        path: of its WebSocket.
        token: what ours wants in a join; empty for the others.
    """

    port: int
    pid: int
    path: str = "/"
    token: str = ""


@contextmanager
def running(
    command: Sequence[str | Path],
    cores: Cores,
    *,
    listens: str = "",
    port: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, int]]:
    """Runs a server on its core; gives its port and process.

    Args:
        command: its program and arguments.
        cores: which are whose.
        listens: a pattern of its log, whose first group is the port.
        port: the port, if the log does not say it.
        environment: added to ours.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores.server}),
    )
    assert process.stderr is not None
    lines: list[str] = []
    found: list[int] = []
    heard = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            del lines[:-40]
            if listens and not found and (match := re.search(listens, line)):
                found.append(int(match[1]))
                heard.set()
        heard.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if listens:
            heard.wait(_START_SECONDS)
        else:
            _wait_for_port(port, process)
            found.append(port)
        if not found or process.poll() is not None:
            raise Unavailable(f"{command[0]} does not start:\n{''.join(lines)}")
        yield found[0], process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=5)
        process.stderr.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


class Ours:
    """`realtime-db serve`, and tokens that it takes.

    Args:
        database_url: of a database that is migrated.
        cores: which are whose.
    """

    def __init__(self, database_url: str, cores: Cores) -> None:
        self._database_url = database_url
        self._cores = cores
        self._secret = secrets.token_urlsafe(32)

    def token(self, sub: str | None = None) -> str:
        """A token of the role `authenticated`."""
        return tokens.mint(
            self._secret, role="authenticated", sub=sub, now=time.time(), ttl_seconds=TOKEN_SECONDS
        )

    @contextmanager
    def serve(self, *options: str) -> Iterator[Server]:
        """Runs it, with further options of its command line."""
        command = [sys.executable, "-m", "realtime_db", "serve", "--port", "0", *options]
        environment = {"DATABASE_URL": self._database_url, "REALTIME_DB_JWT_SECRET": self._secret}
        key = self.token()
        path = f"/realtime/v1/websocket?apikey={key}&vsn=1.0.0"
        with running(
            command,
            self._cores,
            listens=r"listening on http://[\d.]+:(\d+)",
            environment=environment,
        ) as (port, pid):
            yield Server(port, pid, path, key)


# What supabase-js sends; nobody but ours reads what is in `config`.
_JOIN = (
    '{"topic":"realtime:t%t","event":"phx_join","payload":{"config":{"broadcast":'
    '{"ack":false,"self":false},"presence":{"key":"","enabled":false},"postgres_changes":[],'
    '"private":PRIVATE},"access_token":"TOKEN"},"ref":"1","join_ref":"1"}'
)


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator says; SERVER.md has the meaning of all its fields."""

    figures: Mapping[str, Any]

    def __getattr__(self, name: str) -> float:
        return float(self.figures[name])


class Loader:
    """Runs the load generator.

    Args:
        folder: where it was compiled.
    """

    def __init__(self, folder: Path) -> None:
        self._program = folder / "wsload"

    def run(
        self,
        server: Server,
        *options: str | int | float,
        tokens_file: Path | None = None,
        private: bool = False,
        meanwhile: Callable[[], object] | None = None,
    ) -> Load:
        """One run.

        Args:
            server: where to.
            options: of the load generator.
            tokens_file: the tokens to join with, one for each connection.
            private: whether to join a private topic.
            meanwhile: called while it runs.

        Raises:
            Unavailable: it could not do its work; the message has what it said.
        """
        join = _JOIN.replace("PRIVATE", "true" if private else "false")
        join = join.replace("TOKEN", "%a" if tokens_file else server.token)
        more = ["-A", str(tokens_file)] if tokens_file else []
        process = subprocess.Popen(
            [
                self._program, "-p", str(server.port), "-R", str(server.pid), "-u", server.path,
                "-j", join, "-a", "phx_reply", "-q", join, "-Q", "phx_reply", *more,
                *map(str, options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            if meanwhile is not None:
                meanwhile()
            out, err = process.communicate(timeout=_RUN_SECONDS)
        finally:
            process.kill()  # harmless if it has ended
        if not out or process.returncode:
            raise Unavailable(f"the load generator failed: {err.strip()} {out.strip()[:300]}")
        return Load(json.loads(out))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for programs and packages, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-server-") as name:
        yield Path(name)
