"""The log, at its most talkative, holds no secret, whatever went wrong with one."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from realtime_db.auth import tokens
from tests.server.conftest import DEADLINE_SECONDS, JWT_SECRET, Server, token


class Jwks:
    """Serves a JWKS of one secret, until it is told to fail."""

    def __init__(self, secret: str) -> None:
        self.fails = False
        key = {"kty": "oct", "kid": "k", "k": secret}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(500 if outer.fails else 200)
                self.end_headers()
                self.wfile.write(json.dumps({"keys": [key]}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def jwks() -> Iterator[Jwks]:
    served = Jwks(secrets.token_urlsafe(32))
    yield served
    served.close()


class Secrets:
    """Secrets of a test, each of which is found again in whatever form."""

    def __init__(self) -> None:
        self.all: list[str] = [JWT_SECRET]

    def new(self) -> str:
        """A secret that nothing else looks like."""
        return self.add(f"secret{secrets.token_hex(12)}")

    def add(self, secret: str) -> str:
        # The signature of a token is what makes it one; the rest is no secret by itself.
        self.all.append(secret.rpartition(".")[2] if secret.count(".") == 2 else secret)
        return secret

    def in_text(self, text: str) -> list[str]:
        return [one for one in self.all if one in text or quote(one) in text]


def test_no_secret_is_in_the_log(
    start_server: Callable[..., Server],
    open_events: Callable[..., Any],
    own_database_url: str,
    as_admin: Callable[[str], psycopg.Connection],
    jwks: Jwks,
    tmp_path: Path,
) -> None:
    known = Secrets()
    password = known.add(str(conninfo_to_dict(own_database_url)["password"]))
    file = tmp_path / "secrets"
    file.write_text(known.new())
    server = start_server(
        "--log-level", "debug",
        "--jwt-secrets-file", str(file),
        "--jwks", f"http://127.0.0.1:{jwks.port}/jwks?key={known.new()}",
        "--max-payload-bytes", "1000",
        "--statement-timeout-seconds", "2",
        database_url=own_database_url,
    )  # fmt: skip
    server.said("following the WAL")
    good = [known.add(token()), known.add(token("anon"))]
    unknown_kid = tokens.mint("x" * 32, role="anon", now=time.time(), ttl_seconds=99, kid="new")
    bad = [
        known.add(token(ttl_seconds=-60)),
        known.add(tokens.mint("y" * 32, role="anon", now=time.time(), ttl_seconds=99)),
        known.add(tokens.mint(JWT_SECRET, role=None, now=time.time())),  # type: ignore[arg-type]
        known.add(unknown_kid),
        f"a.b.{known.new()}",
        known.new(),
    ]

    def use(one: str) -> None:
        """A token in all places where there may be one."""
        body = json.dumps({"messages": [{"topic": "t", "event": "e", "payload": {}}]})
        private = "/api/broadcast/deny:1/events/e?private=true"
        for headers in ({"authorization": f"Bearer {one}"}, {"apikey": one}, {"x-api-key": one}):
            server.request("POST", "/api/broadcast", body, headers)
            server.request("POST", private, "{}", headers)
            server.request("POST", "/api/broadcast", f'{{"x": "{one}', headers)
            server.request("GET", "/socket/websocket", headers=headers)
            open_events("topic=open:1&private=true", headers, to=server).close()
        server.request("GET", f"/nowhere?apikey={one}")
        open_events(f"topic=broken:x&private=true&apikey={one}", to=server).close()
        server.exchange(f"GET /?apikey={one} NONSENSE\r\nauthorization: {one}\r\n\r\n".encode())
        url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey={one}&log_level=debug"
        with contextlib.suppress(InvalidStatus), connect(url):
            pass

    def join(one: str) -> None:
        """A token in the payload of a join, and of a renewal; and payloads of all kinds."""
        url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey={good[0]}"
        with connect(url) as client:

            def push(event: str, payload: Any, ref: str = "1") -> None:
                topic = "realtime:open:1"
                client.send(
                    json.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref})
                )

            private = {"config": {"private": True}}
            push("phx_join", {**private, "access_token": one})
            client.recv(DEADLINE_SECONDS)
            push("phx_join", private)
            client.recv(DEADLINE_SECONDS)
            content = known.new()
            for payload in ({"a": content}, {"a": content * 100}, content):
                push("broadcast", {"type": "broadcast", "event": "e", "payload": payload})
            client.send(f"[nonsense {content}")
            client.send(json.dumps({"topic": content}))
            client.send(b"\x07" + content.encode())
            push("access_token", {"access_token": one})
            push("phx_leave", {}, ref="last")
            while json.loads(client.recv(DEADLINE_SECONDS))["ref"] != "last":
                pass

    for one in (*good, *bad):
        use(one)
        join(one)

    # Keys that cannot be read any more, and ones that cannot be used.
    jwks.fails = True
    os.kill(server.pid, signal.SIGHUP)
    server.says("the keys stay as they are")
    jwks.fails = False
    file.write_bytes(b"\xff" + known.new().encode())
    os.kill(server.pid, signal.SIGHUP)
    server.says("the keys stay as they are")

    # A database that goes away.
    admin = as_admin("dbname=postgres")
    name = conninfo_to_dict(own_database_url)["dbname"]
    admin.execute(f"alter database {name} allow_connections false")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
    )
    server.said("the database is not followed")
    use(good[0])
    answers = [server.request("GET", path).body.decode() for path in ("/readyz", "/metrics")]
    admin.execute(f"alter database {name} allow_connections true")

    text = "".join(server.log)
    assert "deny:1" in text  # it does talk
    assert known.in_text(text + "".join(answers)) == []
    assert password in known.all


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--jwks", "http://user:SECRET@127.0.0.1:1/jwks?key=SECRET"],
        ["--jwks", "ftp://user:SECRET@127.0.0.1/jwks"],
    ],
)
def test_a_server_that_cannot_start_does_not_tell_its_secrets(
    options: list[str], served_database_url: str
) -> None:
    url = make_conninfo(served_database_url, host="127.0.0.1", port=1, password="SECRET")

    with pytest.raises(AssertionError) as failed:
        started = Server(url, "--log-level", "debug", *options)
        started.stop()
        raise AssertionError("".join(started.log))

    assert "SECRET" not in str(failed.value)
