"""A server that was started as a user starts one, and what it takes to talk to it over a socket."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import queue
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_db.auth import tokens
from realtime_db.transports.http import LINGER_SECONDS
from tests.conftest import drop_slots
from tests.faults.background import Background
from tests.faults.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
JWT_SECRET = secrets.token_urlsafe(32)
DEADLINE_SECONDS = 60.0

# Everybody reads and writes what begins with `open:`, and `secret:` where policies see no token;
# there are topics to be read only and ones whose policies fail. Of `broken` and `slow`, only the
# insert is asked in these tests.
POLICIES = """
create policy "readers" on realtime.messages for select to authenticated
using (
    realtime.topic() like 'open:%' or realtime.topic() like 'read:%'
    or realtime.topic() like 'secret:%' and not current_setting('request.headers')::jsonb
        ?| array['authorization', 'apikey', 'x-api-key', 'cookie']
);

create policy "writers" on realtime.messages for insert to authenticated
with check (
    case
        when realtime.topic() like 'open:%' then true
        when realtime.topic() like 'broken:%' then realtime.topic()::integer > 0
        when realtime.topic() like 'slow:%' then (select pg_sleep(60)) is not null
        when realtime.topic() like 'header:%' then
            current_setting('request.headers', true)::json ->> 'x-team' = 'blue'
        when realtime.topic() like 'secret:%' then
            not current_setting('request.headers')::jsonb
            ?| array['authorization', 'apikey', 'x-api-key', 'cookie']
        else false
    end
);
"""


class Answer(NamedTuple):
    """An answer of HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def token(role: str = "authenticated", *, ttl_seconds: float = 3600.0) -> str:
    """A token that the server takes."""
    return tokens.mint(JWT_SECRET, role=role, sub="ann", now=time.time(), ttl_seconds=ttl_seconds)


class Server:
    """`realtime-db serve` on a free port."""

    def __init__(self, database_url: str, *options: str) -> None:
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "realtime_db", "serve", "--port", "0", *options],
            env={
                **os.environ,
                "DATABASE_URL": database_url,
                "REALTIME_DB_JWT_SECRET": JWT_SECRET,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.says(r"listening on https?://[\d.]+:(\d+)")[1])
            # It follows the WAL before it listens: whoever waits for that still finds it.
            for line in itertools.takewhile(lambda line: "listening on" not in line, self.log):
                self._lines.put(line)
        except BaseException:
            self._end()
            raise

    def _read(self) -> None:
        for line in self._process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put("(the server ended)")

    def says(self, pattern: str) -> re.Match[str]:
        """Waits for a line of the log."""
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE_SECONDS)
            except queue.Empty:
                pytest.fail(f"it does not say {pattern!r}:\n{''.join(self.log)}")
            if match := re.search(pattern, line):
                return match
            assert line != "(the server ended)", "".join(self.log)

    def said(self, pattern: str) -> re.Match[str]:
        """The first line of the log that is so; waits for it if there is none yet."""
        for line in list(self.log):
            if match := re.search(pattern, line):
                return match
        return self.says(pattern)

    def ready(self) -> Answer:
        """Waits until `/readyz` is 200: a busy database may say nothing for a while."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := self.request("GET", "/readyz")).status != 200:
            assert time.monotonic() < deadline, answer.body
            time.sleep(0.02)  # there is nothing to wait for but the answer
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._end()

    def _end(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(timeout=DEADLINE_SECONDS)
        finally:
            self._process.kill()  # harmless if it has ended
            self._reader.join()
            self._process.stderr.close()

    def stop(self) -> None:
        """As a user ends it."""
        status = self._end()
        assert status == 0, "".join(self.log)
        assert "Traceback" not in "".join(self.log), "".join(self.log)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        finally:
            connection.close()

    def post(self, path: str, content: Any, **more: Any) -> Answer:
        """JSON as a user with a good token."""
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {token()}",
            **more.pop("headers", {}),
        }
        return self.request("POST", path, json.dumps(content), headers)

    def open(self) -> socket.socket:
        """A socket to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)

    def exchange(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Sends bytes, and returns everything until the server closes."""
        begun, received = time.monotonic(), b""
        with self.open() as opened:
            # It may have answered and closed before it had everything.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                opened.sendall(data)
            try:
                if half_close:
                    opened.shutdown(socket.SHUT_WR)
                while piece := opened.recv(65_536):
                    received += piece
            except TimeoutError:
                raise
            except OSError:
                # It waits for who was answered to close, but not if all stood still for so long.
                if time.monotonic() - begun < LINGER_SECONDS:
                    raise
            return received


class Events:
    """A stream of server-sent events, read as EventSource reads it.

    Attributes:
        first: the fields of the event that it began with.
        place: the cursor that it began with; None if there is none yet.
    """

    def __init__(
        self, server: Server, query: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._socket = server.open()
        lines = [f"GET /realtime/v1/sse?{query} HTTP/1.1", "host: x"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            self.headers[name] = value
        if self.status == 200:
            assert self._file.readline().startswith(b"retry: ")
            assert self._file.readline() == b"\n"
            self.first = self.next()
            self.place = self.first.get("id")

    def next(self) -> dict[str, str]:
        """The fields of the next event; a comment is one without fields but its own text."""
        fields: dict[str, str] = {}
        while line := self._file.readline().decode():
            if line == "\n":
                return fields
            name, _, value = line.rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        raise EOFError

    def event(self) -> dict[str, str]:
        """The fields of the next event that has more than an id."""
        while "data" not in (fields := self.next()):
            assert set(fields) <= {"", "id"}, fields
        return fields

    def message(self) -> dict[str, Any]:
        """The content of the next event."""
        fields = self.event()
        assert set(fields) <= {"id", "data"}, fields
        return json.loads(fields["data"])

    def body(self) -> bytes:
        """What came instead of a stream."""
        return self._file.read(int(self.headers["content-length"]))

    def end(self) -> str:
        """The comment that the stream ends with, if nothing comes before it but heartbeats."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if text := self.next().get(""):
                assert self.rest() == b""
                return text
        raise AssertionError("the stream did not end")

    def rest(self) -> bytes:
        """What comes until the end."""
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(scope="session")
def served_database_url(
    server_url: str, owner_url: Callable[[str], str], migrated_template: str
) -> Iterator[str]:
    """A database with policies, for all tests of this folder."""
    with _database(server_url, owner_url, migrated_template) as url:
        yield url


class _database:
    """A database in which the server can serve, dropped at the end of the block."""

    def __init__(self, server_url: str, owner_url: Callable[[str], str], template: str) -> None:
        self._server_url = server_url
        self._owner_url = owner_url
        self._template = template
        self._name = f"served_{secrets.token_hex(6)}"

    def __enter__(self) -> str:
        with psycopg.connect(self._server_url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("create database {} template {} owner app").format(
                    sql.Identifier(self._name), sql.Identifier(self._template)
                )
            )
        url = self._owner_url(self._name)
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(POLICIES)
        return url

    def __exit__(self, *_: object) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as admin:
            # A server that still runs would take its slot again, or make another.
            admin.execute(
                sql.SQL("alter database {} allow_connections false").format(
                    sql.Identifier(self._name)
                )
            )
            drop_slots(admin, self._name)
            admin.execute(
                sql.SQL("drop database {} with (force)").format(sql.Identifier(self._name))
            )


@pytest.fixture
def own_database_url(
    server_url: str, owner_url: Callable[[str], str], migrated_template: str
) -> Iterator[str]:
    """A database that a test may break."""
    with _database(server_url, owner_url, migrated_template) as url:
        yield url


@pytest.fixture
def network(own_database_url: str) -> Iterator[Proxy]:
    """What is between a server and Postgres."""
    background = Background()
    proxy = Proxy(background, int(conninfo_to_dict(own_database_url)["port"]))
    yield proxy
    proxy.close()
    background.close()


@pytest.fixture
def as_admin(server_url: str) -> Iterator[Callable[[str], psycopg.Connection]]:
    """`as_admin(url)` -> a superuser's connection to the database of that URL."""
    with ExitStack() as stack:

        def connect(url: str) -> psycopg.Connection:
            name = str(conninfo_to_dict(url)["dbname"])
            where = make_conninfo(server_url, dbname=name)
            return stack.enter_context(psycopg.connect(where, autocommit=True))

        yield connect


@pytest.fixture
def database(served_database_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection of the owner."""
    with psycopg.connect(served_database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(served_database_url: str) -> Iterator[Server]:
    """A server with its defaults, which follows the WAL.

    And nothing else: while it connects again, a test may have taken the right to the WAL away.
    """
    running = Server(served_database_url, "--source", "wal")
    running.says("following the WAL")
    yield running
    running.stop()


@pytest.fixture
def start_server(served_database_url: str) -> Iterator[Callable[..., Server]]:
    """`start_server("--max-body-bytes", "100")` -> a server of the test's own."""
    with ExitStack() as stack:

        def start(*options: str, database_url: str = served_database_url) -> Server:
            if database_url == served_database_url:
                options = ("--temporary-slot", *options)  # beside the server of all tests
            started = Server(database_url, *options)
            stack.callback(started.stop)
            return started

        yield start


@pytest.fixture
def open_events(server: Server) -> Iterator[Callable[..., Events]]:
    """`open_events("topic=room&apikey=…", headers)` -> a stream of events, or its refusal."""
    with ExitStack() as stack:

        def open_events(
            query: str, headers: Mapping[str, str] | None = None, to: Server = server
        ) -> Events:
            events = Events(to, query, headers)
            stack.callback(events.close)
            return events

        yield open_events


@pytest.fixture
def follow(open_events: Callable[..., Events], server: Server) -> Callable[..., Events]:
    """`follow("room")` -> the events of public topics; `private=True` of private ones.

    `after="…"` is the id of the last event before a disconnect, as EventSource sends it.
    """

    def follow(
        *topics: str, private: bool = False, after: str | None = None, to: Server = server
    ) -> Events:
        query = "&".join(f"topic={quote(topic, safe='')}" for topic in topics)
        query += f"&apikey={token()}" + ("&private=true" if private else "")
        return open_events(query, None if after is None else {"last-event-id": after}, to=to)

    return follow


@pytest.fixture
def mint() -> Callable[..., str]:
    """`mint("anon", ttl_seconds=60)` -> a token."""
    return token


@pytest.fixture
def topic() -> str:
    """One that no other test has."""
    return f"room:{secrets.token_hex(4)}"


@pytest.fixture
def private_topic() -> str:
    """One that everybody may read and write, and that no other test has."""
    return f"open:{secrets.token_hex(4)}"
