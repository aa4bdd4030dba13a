"""The unmodified clients, driven against a server that was started as a user starts one.

    test ─ commands ─► driver.js, driver.py ─ supabase-js, realtime-py … ─► realtime-db serve
      ▲                        │
      └──── what they say ─────┘

One program runs all clients of a language, so a test costs no process. Where npm or the Python
packages are missing the tests are skipped; with CI=true or REALTIME_DB_REQUIRE_CLIENTS=1 they fail.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import queue
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from realtime_db.auth import tokens
from tests.conftest import drop_slots

HERE = Path(__file__).resolve().parent
JAVASCRIPT = HERE / "javascript"
REALTIME_DB = (sys.executable, "-m", "realtime_db")
LIBRARIES = ("supabase-js", "realtime-js", "supabase-py", "realtime-py")
REQUIRED = os.environ.get("CI") == "true" or os.environ.get("REALTIME_DB_REQUIRE_CLIENTS") == "1"
DEADLINE_SECONDS = 60.0
JWT_SECRET = secrets.token_urlsafe(32)

POLICIES = """
create table public.members (topic text, user_name text, may_send boolean);
grant select on public.members to authenticated;

create policy "members receive" on realtime.messages
for select to authenticated
using (
    exists (
        select from public.members as m
        where m.topic = realtime.topic()
            and m.user_name = current_setting('request.jwt.claims', true)::json ->> 'sub'
    )
);

create policy "members with the right send" on realtime.messages
for insert to authenticated
with check (
    exists (
        select from public.members as m
        where m.topic = realtime.topic() and m.may_send
            and m.user_name = current_setting('request.jwt.claims', true)::json ->> 'sub'
    )
);
"""


def _missing(reason: str) -> None:
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def token(role: str = "anon", user: str | None = None, *, ttl_seconds: float = 3600.0) -> str:
    """A token that the server takes."""
    return tokens.mint(JWT_SECRET, role=role, sub=user, now=time.time(), ttl_seconds=ttl_seconds)


_ports = itertools.count(20_000 + os.getpid() % 200 * 50)


def port_to_keep() -> int:
    """A free one, which the system gives to nobody who asks for any while it is not in use."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable")


# The database and the server


@pytest.fixture(scope="session")
def client_database_url(
    server_url: str, owner_url: Callable[[str], str], migrated_template: str
) -> Iterator[str]:
    """A database for all tests of this folder, with policies."""
    name = f"clients_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {} owner app").format(
                sql.Identifier(name), sql.Identifier(migrated_template)
            )
        )
        with psycopg.connect(owner_url(name), autocommit=True) as owner:
            owner.execute(POLICIES)
        yield owner_url(name)
        drop_slots(admin, name)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def database(client_database_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection of the owner."""
    with psycopg.connect(client_database_url, autocommit=True) as opened:
        yield opened


def _read(pipe: IO[str], take: Callable[[str | None], None]) -> threading.Thread:
    """Hands on the lines of a pipe, and None at its end."""

    def read() -> None:
        for line in pipe:
            take(line.rstrip("\n"))
        take(None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class Server:
    """`realtime-db serve` on a port that it keeps when it is started again."""

    def __init__(self, database_url: str, *options: str) -> None:
        self._database_url = database_url
        self._options = options
        self.port = port_to_keep()
        self.log: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it listens and follows the WAL."""
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "realtime_db",
                "serve",
                "--port",
                str(self.port),
                *self._options,
            ],
            env={
                **os.environ,
                "DATABASE_URL": self._database_url,
                "REALTIME_DB_JWT_SECRET": JWT_SECRET,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        self._reader = _read(self._process.stderr, lambda line: self._take(line, lines))
        awaited = {"listening on", "following the WAL"}
        try:
            while awaited:
                line = lines.get(timeout=DEADLINE_SECONDS)
                assert line is not None, "the server ended:\n" + "\n".join(self.log)
                awaited = {text for text in awaited if text not in line}
        except BaseException:
            self._process.kill()
            raise

    def _take(self, line: str | None, lines: queue.Queue[str | None]) -> None:
        if line is not None:
            self.log.append(line)
        lines.put(line)

    def stop(self) -> None:
        """As a user ends it."""
        self._process.terminate()
        status = self._process.wait(timeout=DEADLINE_SECONDS)
        self._reader.join()
        self._process.stderr.close()
        assert status == 0, "\n".join(self.log)


@pytest.fixture(scope="session")
def server(client_database_url: str) -> Iterator[Server]:
    """A server with its defaults."""
    running = Server(client_database_url)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def start_server(client_database_url: str) -> Iterator[Callable[..., Server]]:
    """`start_server("--idle-seconds", "1")` -> a server of the test's own."""
    with ExitStack() as stack:

        def start(*options: str) -> Server:
            # Beside the server of all tests.
            started = Server(client_database_url, "--temporary-slot", *options)
            started.start()
            stack.callback(started.stop)
            return started

        yield start


# The clients


class Program:
    """A driver with the clients of one language."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
        self._told: dict[tuple[str, str], queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
        self._numbers = itertools.count(1)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = _read(self._process.stdout, self._take)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def call(self, **command: Any) -> Any:
        """Runs a command; raises ClientError with what the client raised."""
        number = next(self._numbers)
        self._process.stdin.write(json.dumps({"id": number, **command}) + "\n")
        self._process.stdin.flush()
        answer = self._wait(self._answers[number], f"the answer to {command}")
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]

    def next(self, client: str, kind: str) -> dict[str, Any]:
        """What a client was told next, of a kind."""
        return self._wait(self._told[client, kind], f"a {kind} for {client}")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=DEADLINE_SECONDS)
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()

    def _take(self, line: str | None) -> None:
        if line is None:
            return
        said = json.loads(line)
        if "id" in said:
            self._answers[said["id"]].put(said)
        else:
            self._told[said["client"], said["kind"]].put(said)

    def _wait(self, source: queue.Queue[dict[str, Any]], what: str) -> dict[str, Any]:
        try:
            return source.get(timeout=DEADLINE_SECONDS)
        except queue.Empty:
            self._errors.seek(0)
            log = self._errors.read()[-4000:]
            raise AssertionError(f"waited in vain for {what}; the client's log:\n{log}") from None


class ClientError(Exception):
    """What a client raised, in its words."""


class Message(NamedTuple):
    """A broadcast as an application gets it."""

    topic: str
    event: str
    payload: Any
    meta: dict[str, Any] | None


class Status(NamedTuple):
    """What the callback of `subscribe` was told."""

    topic: str
    status: str
    error: str | None


class Client:
    """One client of one library."""

    def __init__(self, program: Program, name: str, library: str) -> None:
        self._program = program
        self._name = name
        self.library = library
        self.is_python = library.endswith("-py")

    def subscribe(self, topic: str, **config: Any) -> None:
        """Wants a channel; `status` says what became of it."""
        self._call("subscribe", topic=topic, config=config)

    def join(self, topic: str, **config: Any) -> None:
        """Gets a channel."""
        self.subscribe(topic, **config)
        assert self.status() == (topic, "SUBSCRIBED", None)

    def resume(self, topic: str, cursor: str | None = None, **config: Any) -> None:
        """Gets a channel that goes on after a cursor, and where it was when it joins again."""
        self._call("resume", topic=topic, config=config, cursor=cursor)
        self.join(topic, **config)

    def status(self) -> Status:
        """The next one of any channel."""
        said = self._program.next(self._name, "status")
        return Status(said["topic"], said["status"], said["error"])

    def message(self) -> Message:
        """The next one of any channel."""
        said = self._program.next(self._name, "message")
        message = said["message"]
        if not self.is_python:
            assert message.pop("type") == "broadcast"
        assert message.keys() <= {"event", "payload", "meta"}
        return Message(said["topic"], message["event"], message["payload"], message.get("meta"))

    def end_of(self, topic: str) -> str:
        """Why the server ended a channel, and that it did."""
        if self.is_python:
            name, status, error = self.status()
            assert (name, status) == (topic, "CHANNEL_ERROR")
            reason = json.loads(error)["message"]
        else:
            said = self._program.next(self._name, "system")
            assert (said["topic"], said["message"]["status"]) == (topic, "error")
            reason = said["message"]["message"]
        assert self.status() == (topic, "CLOSED", None)
        return reason

    def error(self) -> str:
        """What the JavaScript clients' next system message says is wrong."""
        said = self._program.next(self._name, "system")["message"]
        assert said["status"] == "error", said
        return said["message"]

    def send(self, topic: str, event: str, payload: Any, **options: Any) -> str:
        """`persist` is an option of the JavaScript clients."""
        return self._call("send", topic=topic, event=event, payload=payload, **options)

    def http_send(
        self, topic: str, event: str, payload: Any, *, persist: Any = None, **config: Any
    ) -> None:
        """`persist` is an option of the JavaScript clients."""
        options = {} if persist is None else {"persist": persist}
        self._call("httpSend", topic=topic, event=event, payload=payload, config=config, **options)

    def track(self, topic: str, payload: Any) -> str:
        return self._call("track", topic=topic, payload=payload)

    def unsubscribe(self, topic: str) -> None:
        assert self._call("unsubscribe", topic=topic) == "ok"
        assert self.status() == (topic, "CLOSED", None)

    def set_auth(self, new_token: str) -> None:
        self._call("setAuth", token=new_token)

    def close(self) -> None:
        self._call("close")

    def _call(self, what: str, **arguments: Any) -> Any:
        return self._program.call(client=self._name, do=what, **arguments)


@pytest.fixture(scope="session")
def program() -> Iterator[Callable[[str], Program]]:
    """`program("js")` -> the driver of that language, started at its first use."""
    running: dict[str, Program] = {}

    def start(language: str) -> Program:
        if language not in running or not running[language].runs:
            command = _node() if language == "js" else _python()
            running[language] = Program(command, HERE)
        return running[language]

    yield start
    for one in running.values():
        one.close()


def _python() -> list[str]:
    for package in ("realtime", "supabase"):
        if find_spec(package) is None:
            _missing(f"the Python package {package} is not installed")
    return [sys.executable, str(HERE / "python" / "driver.py")]


def _node() -> list[str]:
    if not (shutil.which("node") and shutil.which("npm")):
        _missing("node and npm are not installed")
    installed = JAVASCRIPT / "node_modules" / ".package-lock.json"
    lock = JAVASCRIPT / "package-lock.json"
    with (JAVASCRIPT / "package.json").open() as held:
        # Two runs of the tests must not install into the same folder at once.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            finished = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--fetch-retries=5"],
                cwd=JAVASCRIPT,
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode:
                _missing(f"npm cannot install the clients: {finished.stderr}")
    return ["node", str(JAVASCRIPT / "driver.js")]


@pytest.fixture
def node_modules() -> Path:
    """The clients of JavaScript, for a program of the test's own."""
    _node()
    return JAVASCRIPT / "node_modules"


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    """The test is run with each library."""
    return request.param


@pytest.fixture
def libraries() -> tuple[str, ...]:
    """All of them, for a test that takes its time."""
    return LIBRARIES


@pytest.fixture
def connect(
    request: pytest.FixtureRequest, program: Callable[[str], Program]
) -> Iterator[Callable[..., Client]]:
    """`connect("supabase-js", user="ann")` -> a client, closed after the test.

    Args of it: the library; the user, else nobody; the server, if it is the test's own; further
    options of the library's client (JavaScript only).
    """
    opened: list[Client] = []

    def connect(
        library: str,
        *,
        user: str | None = None,
        to: Server | None = None,
        **options: Any,
    ) -> Client:
        chosen = program(library[-2:])
        name = f"{request.node.name}-{len(opened)}-{library}-{secrets.token_hex(3)}"
        server = to or request.getfixturevalue("server")
        chosen.call(
            client=name,
            do="open",
            library=library,
            url=server.url,
            key=token(),
            token=None if user is None else token("authenticated", user),
            options=options,
        )
        opened.append(Client(chosen, name, library))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def mint() -> Callable[..., str]:
    """`mint("authenticated", "ann", ttl_seconds=60)` -> a token."""
    return token


@pytest.fixture
def topic() -> str:
    """One that no other test has."""
    return f"room:{secrets.token_hex(4)}"


@pytest.fixture
def admit(database: psycopg.Connection) -> Callable[..., None]:
    """`admit("ann", topic, may_send=True)` makes a member, whom the policies know."""

    def admit(user: str, topic: str, *, may_send: bool = False) -> None:
        database.execute(
            "insert into public.members values (%s, %s, %s)",
            [topic, user, may_send],
        )

    return admit
