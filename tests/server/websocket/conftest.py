"""Sockets against a server that was started as a user starts one, and no client library of ours.

    test ─► Client ─► realtime-db serve ─► Postgres
                                           ▲
    test ─► database ──────────────────────┘

A test waits for frames, never for time to pass. That nothing has come is known by a heartbeat: its
reply is the next frame, and what was sent before it would have come first.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from realtime_db.auth import tokens
from tests.conftest import drop_slots

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_SECONDS = 60.0
SECRET = secrets.token_urlsafe(32)

RIGHTS = """
create table public.rights (
    topic text not null, sub text not null, operation text not null, extension text not null
);
grant select on public.rights to authenticated;

create policy "who may read" on realtime.messages for select to authenticated
using (
    exists (
        select from public.rights as r
        where r.topic = realtime.topic() and r.operation = 'read'
            and r.extension = messages.extension
            and r.sub = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'
    )
);

create policy "who may write" on realtime.messages for insert to authenticated
with check (
    exists (
        select from public.rights as r
        where r.topic = realtime.topic() and r.operation = 'write'
            and r.extension = messages.extension
            and r.sub = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'
    )
);

create policy "who has the header" on realtime.messages for select to authenticated
using (
    realtime.topic() = 'by-header'
    and current_setting('request.headers', true)::jsonb ->> 'x-tenant' = 'acme'
);

create policy "broken" on realtime.messages for select to authenticated
using (case when realtime.topic() = 'broken' then 1 / (length(topic) - 6) = 1 else false end);
"""


def mint(
    role: str = "anon",
    sub: str | None = None,
    *,
    secret: str = SECRET,
    ttl_seconds: float = 3600.0,
    **claims: Any,
) -> str:
    """A token; the server takes it unless it has another secret."""
    return tokens.mint(
        secret, role=role, sub=sub, now=time.time(), ttl_seconds=ttl_seconds, claims=claims
    )


# The database


class Database:
    """The owner's connection, and rights of users."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)

    def execute(self, query: str, parameters: Any = None) -> psycopg.Cursor[Any]:
        return self.connection.execute(query.encode(), parameters)

    def grant(self, topic: str, sub: str, *rights: str) -> None:
        """Such as `read broadcast`."""
        for right in rights:
            operation, extension = right.split()
            self.execute(
                "insert into public.rights values (%s, %s, %s, %s)",
                [topic, sub, operation, extension],
            )

    def revoke(self, topic: str, right: str = "% %") -> None:
        operation, extension = right.split()
        self.execute(
            "delete from public.rights where topic = %s and operation like %s"
            " and extension like %s",
            [topic, operation, extension],
        )

    def send(
        self, topic: str, event: str = "e", payload: Any = None, *, private: bool = False
    ) -> str:
        row = self.execute(
            "select realtime.send(%s::jsonb, %s, %s, %s)::text",
            [json.dumps({} if payload is None else payload), event, topic, private],
        ).fetchone()
        return str(row[0])


@pytest.fixture(scope="session")
def database(
    server_url: str, owner_url: Callable[[str], str], migrated_template: str
) -> Iterator[Database]:
    """A database for all tests of this folder, with a table that says who may do what."""
    name = f"sockets_{secrets.token_hex(6)}"
    identifier, template = sql.Identifier(name), sql.Identifier(migrated_template)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {} owner app").format(identifier, template)
        )
        opened = Database(owner_url(name))
        opened.execute(RIGHTS)
        yield opened
        opened.connection.close()
        drop_slots(admin, name)
        admin.execute(sql.SQL("drop database {} with (force)").format(identifier))


# The server


class Server:
    """`realtime-db serve` on a free port."""

    def __init__(self, database_url: str, *options: str, secret: str | None = SECRET) -> None:
        environment = os.environ | {"DATABASE_URL": database_url}
        if secret is not None:
            environment["REALTIME_DB_JWT_SECRET"] = secret
        self._process = subprocess.Popen(
            [sys.executable, "-m", "realtime_db", "serve", "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self.log: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            address = self.wait_for(r"listening on http://([^:]+):(\d+)")
            self.host, self.port = address[1], int(address[2])
            self.wait_for(r"following the WAL")
        except BaseException:
            self.stop()
            raise

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.log.append(line)
                self._news.notify_all()
        with self._news:
            self.log.append("(the server ended)")
            self._news.notify_all()

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The line of the log with this pattern; the `count`th."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._news:
            while True:
                found = [match for line in self.log if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                assert self.log[-1:] != ["(the server ended)"], "".join(self.log)
                assert self._news.wait(deadline - time.monotonic()), "".join(self.log)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(DEADLINE_SECONDS)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(DEADLINE_SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()
        assert not [line for line in self.log if "Traceback" in line], "".join(self.log)


@pytest.fixture
def start_server(database: Database) -> Iterator[Callable[..., Server]]:
    """Starts servers with options of their own."""
    with ExitStack() as stack:

        def start(*options: str, **more: Any) -> Server:
            # Beside the server of all tests.
            server = Server(database.url, "--temporary-slot", *options, **more)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="session")
def server(database: Database) -> Iterator[Server]:
    """The server of all tests that need no options."""
    started = Server(database.url, "--max-channels-per-connection", "20000")
    yield started
    started.stop()


# The client


class Frame(NamedTuple):
    """What came.

    Attributes:
        raw: the message as it came: text, or bytes.
        meta: of a binary frame, decoded.
    """

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Any
    raw: str | bytes
    meta: Any = None


def decode(raw: str | bytes) -> Frame:
    """Reads either framing, as strictly as the clients do."""
    if isinstance(raw, str):
        message = json.loads(raw)
        if isinstance(message, list):
            assert len(message) == 5
            assert message[4] is not None
            return Frame(*message, raw=raw)
        assert set(message) == {"topic", "event", "payload", "ref"}
        assert message["payload"] is not None
        return Frame(None, **{key: message[key] for key in ("ref", "topic", "event")},
                     payload=message["payload"], raw=raw)  # fmt: skip
    kind, topic_size, event_size, meta_size, encoding = raw[:5]
    assert kind == 4
    fields, at = [], 5
    for size in (topic_size, event_size, meta_size):
        fields.append(raw[at : at + size])
        at += size
    topic, event, meta = fields
    user = json.loads(raw[at:]) if encoding == 1 else raw[at:]
    payload = {"type": "broadcast", "event": event.decode(), "payload": user}
    parsed = json.loads(meta) if meta else None
    if parsed is not None:
        payload["meta"] = parsed
    return Frame(None, None, topic.decode(), "broadcast", payload, raw, parsed)


def kind_3(
    topic: str,
    event: str,
    payload: bytes,
    *,
    encoding: int = 1,
    ref: str = "",
    join_ref: str = "",
    metadata: bytes = b"",
) -> bytes:
    """A user broadcast push, as realtime-js sends it."""
    fields = [join_ref.encode(), ref.encode(), topic.encode(), event.encode(), metadata]
    return b"".join([bytes((3, *map(len, fields), encoding)), *fields, payload])


class Client:
    """One WebSocket, speaking either framing.

    Attributes:
        cursor, gap: what the last join was answered, if anything.
    """

    def __init__(self, socket: ClientConnection, vsn: str | None) -> None:
        self.cursor: str | None = None
        self.gap: str | None = None
        self.socket = socket
        self.v2 = vsn is not None and vsn.startswith("2")
        self._refs = itertools.count(1)

    def ref(self) -> str:
        return str(next(self._refs))

    def send(
        self,
        topic: str,
        event: str,
        payload: Any = None,
        *,
        ref: str | None = None,
        join_ref: str | None = None,
    ) -> None:
        """Sends a push; `topic` with its prefix. A payload of bytes is JSON already."""
        body = payload.decode() if isinstance(payload, bytes) else json.dumps(payload or {})
        refs = json.dumps(join_ref), json.dumps(ref), json.dumps(topic), json.dumps(event)
        if self.v2:
            self.socket.send("[{},{},{},{},{}]".format(*refs, body))
        else:
            self.socket.send(
                '{{"join_ref":{},"ref":{},"topic":{},"event":{},"payload":{}}}'.format(*refs, body)
            )

    def push(self, topic: str, event: str, payload: Any = None) -> Frame:
        """Sends and returns the reply, which must be the next frame."""
        ref = self.ref()
        self.send(topic, event, payload, ref=ref)
        frame = self.receive()
        assert (frame.event, frame.ref, frame.topic) == ("phx_reply", ref, topic)
        return frame

    def join(self, sub_topic: str, config: Any = None, **payload: Any) -> str:
        """Joins, and returns the join_ref."""
        ref = self.ref()
        frame = self.ask_to_join(sub_topic, config, ref=ref, **payload)
        self.cursor = frame.payload["response"].pop("cursor", None)
        self.gap = frame.payload["response"].pop("gap", None)
        assert frame.payload == {"status": "ok", "response": {"postgres_changes": []}}
        return ref

    def refused(self, sub_topic: str, config: Any = None, **payload: Any) -> str:
        """Is refused, and returns the reason."""
        frame = self.ask_to_join(sub_topic, config, **payload)
        assert set(frame.payload) == {"status", "response"}
        assert frame.payload["status"] == "error"
        assert list(frame.payload["response"]) == ["reason"]
        return str(frame.payload["response"]["reason"])

    def ask_to_join(
        self, sub_topic: str, config: Any = None, *, ref: str | None = None, **payload: Any
    ) -> Frame:
        ref = ref or self.ref()
        topic = f"realtime:{sub_topic}"
        if config is not None:
            payload["config"] = config
        self.send(topic, "phx_join", payload, ref=ref, join_ref=ref)
        frame = self.receive()
        assert (frame.event, frame.ref, frame.topic) == ("phx_reply", ref, topic)
        assert frame.join_ref == (ref if self.v2 else None)
        return frame

    def broadcast(self, sub_topic: str, event: str = "e", payload: Any = None, **more: Any) -> None:
        body = {"type": "broadcast", "event": event, "payload": payload or {}}
        self.send(f"realtime:{sub_topic}", "broadcast", body, **more)

    def receive(self) -> Frame:
        """The next frame, or a failure at the deadline."""
        return decode(self.socket.recv(DEADLINE_SECONDS))

    def heartbeat(self) -> None:
        """Nothing has come but what was received: the reply is the next frame."""
        ref = f"heartbeat {self.ref()}"
        self.send("phoenix", "heartbeat", ref=ref)
        frame = self.receive()
        assert (frame.ref, frame.topic, frame.event) == (ref, "phoenix", "phx_reply"), frame

    def closed(self) -> tuple[int, str]:
        """Waits for the end; returns its code and reason. What still came is left out."""
        with pytest.raises(ConnectionClosed) as ended:
            while True:
                self.socket.recv(DEADLINE_SECONDS)
        assert ended.value.rcvd is not None, f"no Close frame: {ended.value}"
        return ended.value.rcvd.code, ended.value.rcvd.reason


@pytest.fixture
def open_client() -> Iterator[Callable[..., Client]]:
    """`open_client(server, vsn="2.0.0", key=…)` -> a connected client."""
    with ExitStack() as stack:

        def open_(
            server: Server,
            *,
            vsn: str | None = "2.0.0",
            key: str | None = None,
            path: str = "/realtime/v1/websocket",
            headers: dict[str, str] | None = None,
            max_queue: int | None = None,
            **options: Any,
        ) -> Client:
            query = {"apikey": mint() if key is None else key}
            if vsn is not None:
                query["vsn"] = vsn
            socket = connect(
                f"ws://{server.host}:{server.port}{path}?{urlencode(query)}",
                additional_headers=headers,
                open_timeout=DEADLINE_SECONDS,
                max_size=None,
                max_queue=max_queue,
                **options,
            )
            stack.callback(socket.close)
            return Client(socket, vsn)

        yield open_


@pytest.fixture
def client(server: Server, open_client: Callable[..., Client]) -> Callable[..., Client]:
    """Opens clients of the shared server."""
    return lambda **options: open_client(server, **options)


@pytest.fixture
def token() -> Callable[..., str]:
    """`token(role="anon", sub=None, secret=…, ttl_seconds=3600, **claims)`."""
    return mint


@pytest.fixture
def user(token: Callable[..., str]) -> Callable[[str], str]:
    """`user("ann")` -> a token of that user."""
    return lambda sub: token("authenticated", sub)


@pytest.fixture
def push_frame() -> Callable[..., bytes]:
    """Makes a user broadcast push, kind 3."""
    return kind_3


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"room:{secrets.token_hex(4)}"
