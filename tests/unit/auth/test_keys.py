"""Where keys come from, and when they are read again; over a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from realtime_db.auth.keys import MAX_FILE_BYTES, Keys
from realtime_db.auth.tokens import BadSignature, NoSigner, UnusableKey, mint

NOW = 1_700_000_000
SECRET = "a secret that is shared, of 32 characters or more"
FIRST, SECOND = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("first", "second"))


def jwks(*keys: ECKey) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


def token(key: ECKey, **header: object) -> str:
    claims = {"role": "anon", "exp": NOW + 60}
    return jwt.encode({"alg": "ES256", "kid": key.kid, **header}, claims, key)


class Endpoint(ThreadingHTTPServer):
    """Serves a JWKS, and counts how often it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = jwks(FIRST)
        self.status = 200
        self.location = ""
        self.requests = 0
        self.before: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/jwks.json"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.before()
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("location", self.server.location)
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine; all of a test in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_secrets_and_a_jwks_from_a_url(endpoint: Endpoint, run: Run) -> None:
    keys = Keys(secrets=[SECRET], jwks=endpoint.url)
    run(keys.reload())

    assert run(keys.verify(token(FIRST), NOW)).role == "anon"
    assert run(keys.verify(mint(SECRET, role="anon", now=NOW), NOW)).role == "anon"
    assert endpoint.requests == 1


def test_a_jwks_and_secrets_from_files(tmp_path: Path, run: Run) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(FIRST))
    (tmp_path / "secrets").write_text(f"\n  {SECRET}\r\n\nan older one\n")
    keys = Keys(secrets_file=tmp_path / "secrets", jwks=str(tmp_path / "jwks.json"))
    run(keys.reload())

    assert run(keys.verify(token(FIRST), NOW))
    for secret in (SECRET, "an older one"):
        assert run(keys.verify(mint(secret, role="anon", now=NOW), NOW))


def test_reload_reads_rotated_secrets_and_retires_old_ones(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "secrets"
    file.write_text("old")
    keys = Keys(secrets_file=file)
    run(keys.reload())
    old, new = (mint(secret, role="anon", now=NOW) for secret in ("old", "new"))
    assert run(keys.verify(old, NOW))

    file.write_text("new")
    run(keys.reload())

    assert run(keys.verify(new, NOW))
    with pytest.raises(BadSignature):
        run(keys.verify(old, NOW))


def test_an_unknown_kid_makes_the_jwks_be_read_again(endpoint: Endpoint, run: Run) -> None:
    clock = Clock()
    keys = Keys(jwks=endpoint.url, reload_interval_seconds=30, monotonic=clock)
    run(keys.reload())
    endpoint.content = jwks(FIRST, SECOND)
    clock.now += 30

    assert run(keys.verify(token(SECOND), NOW)).role == "anon"
    assert endpoint.requests == 2


def test_an_unknown_oct_kid_makes_the_jwks_be_read_again(endpoint: Endpoint, run: Run) -> None:
    clock = Clock()
    keys = Keys(secrets=[SECRET], jwks=endpoint.url, monotonic=clock)
    run(keys.reload())
    oct_key = {"kty": "oct", "kid": "third", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"}
    endpoint.content = json.dumps({"keys": [oct_key]}).encode()
    clock.now += 30

    good = mint(b"secret-secret-secret", role="anon", now=NOW, kid="third")
    assert run(keys.verify(good, NOW)).role == "anon"


def test_made_up_kids_do_not_make_it_be_read_more_often(endpoint: Endpoint, run: Run) -> None:
    clock = Clock()
    keys = Keys(jwks=endpoint.url, reload_interval_seconds=30, monotonic=clock)
    run(keys.reload())

    for number in range(20):
        clock.now += 2
        with pytest.raises(NoSigner) as raised:
            run(keys.verify(token(FIRST, kid=f"made up {number}"), NOW))
        assert f"made up {number}" in raised.value.join

    assert endpoint.requests == 2


def test_many_tokens_of_a_new_key_at_once_wait_for_one_reload(endpoint: Endpoint, run: Run) -> None:
    clock = Clock()
    keys = Keys(jwks=endpoint.url, reload_interval_seconds=30, monotonic=clock)
    run(keys.reload())
    endpoint.content = jwks(SECOND)
    clock.now += 30

    async def many() -> list[object]:
        return await asyncio.gather(*(keys.verify(token(SECOND), NOW) for _ in range(20)))

    assert len(run(many())) == 20
    assert endpoint.requests == 2


def test_the_event_loop_runs_on_while_a_jwks_is_fetched(endpoint: Endpoint, run: Run) -> None:
    arrived, go_on = threading.Event(), threading.Event()
    endpoint.before = lambda: (arrived.set(), go_on.wait(10))
    keys = Keys(secrets=[SECRET], jwks=endpoint.url)

    async def meanwhile() -> None:
        reloading = asyncio.create_task(keys.reload())
        await asyncio.to_thread(arrived.wait, 10)
        assert not reloading.done()
        go_on.set()
        await reloading

    run(meanwhile())
    assert run(keys.verify(token(FIRST), NOW))


def test_the_same_keys_again_keep_what_was_verified(endpoint: Endpoint, run: Run) -> None:
    keys = Keys(jwks=endpoint.url)
    run(keys.reload())
    before = keys.current
    run(keys.reload())

    assert keys.current is before


def test_a_failed_reload_keeps_the_keys_and_says_so(
    endpoint: Endpoint, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keys = Keys(jwks=endpoint.url, monotonic=clock)
    run(keys.reload())
    endpoint.status = 503
    clock.now += 30

    with pytest.raises(NoSigner):
        run(keys.verify(token(SECOND), NOW))
    with pytest.raises(NoSigner):
        run(keys.verify(token(SECOND), NOW))

    assert run(keys.verify(token(FIRST), NOW)).role == "anon"
    assert "the keys stay as they are" in caplog.text
    assert endpoint.requests == 2, "a failure counts as a reload"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b'{"keys": 1}',
        b"[" * 100_000,
        jwks(FIRST) + b" " * MAX_FILE_BYTES,
    ],
    ids=["nothing", "html", "bytes", "list", "number", "deep", "large"],
)
def test_what_is_no_jwks_is_refused_in_a_sentence(
    endpoint: Endpoint, run: Run, tmp_path: Path, content: bytes
) -> None:
    endpoint.content = content
    file = tmp_path / "jwks.json"
    file.write_bytes(content)

    for source in (endpoint.url, str(file)):
        with pytest.raises(UnusableKey) as raised:
            run(Keys(jwks=source).reload())
        assert len(content) > MAX_FILE_BYTES or "--jwks" in str(raised.value.hint)


def test_a_server_that_is_not_there_is_named_without_its_password(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    keys = Keys(jwks=f"http://ann:hidden@127.0.0.1:{port}/jwks.json?key=hidden")

    with pytest.raises(UnusableKey) as raised:
        run(keys.reload())

    assert f"127.0.0.1:{port}/jwks.json" in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_what_speaks_no_http_is_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_nonsense, args=(server,))
        thread.start()
        with pytest.raises(UnusableKey):
            run(Keys(jwks=f"http://127.0.0.1:{server.getsockname()[1]}/").reload())
        thread.join()


def _answer_nonsense(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"220 mail.example.com ESMTP\r\n")


def test_a_server_that_is_silent_is_given_up(endpoint: Endpoint, run: Run) -> None:
    over = threading.Event()
    endpoint.before = lambda: over.wait(10)

    with pytest.raises(UnusableKey):
        run(Keys(jwks=endpoint.url, fetch_timeout_seconds=0.1).reload())
    over.set()


def test_a_redirect_may_not_lead_to_a_file(endpoint: Endpoint, run: Run, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(FIRST))
    endpoint.status, endpoint.location = 302, (tmp_path / "jwks.json").as_uri()

    with pytest.raises(UnusableKey):
        run(Keys(jwks=endpoint.url).reload())


def test_a_redirect_to_another_url_is_followed(endpoint: Endpoint, run: Run) -> None:
    with Endpoint() as target:
        thread = threading.Thread(target=target.serve_forever, args=(0.01,))
        thread.start()
        endpoint.status, endpoint.location = 302, target.url
        keys = Keys(jwks=endpoint.url)
        run(keys.reload())
        target.shutdown()
        thread.join()

    assert run(keys.verify(token(FIRST), NOW))


def test_an_unusable_key_is_logged_and_left_out(
    endpoint: Endpoint, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    both = json.loads(endpoint.content)["keys"] + [{"kty": "EC", "kid": "broken"}]
    endpoint.content = json.dumps({"keys": both}).encode()
    keys = Keys(jwks=endpoint.url)
    with caplog.at_level(logging.WARNING):
        run(keys.reload())

    assert "key 1 of the JWKS" in caplog.text
    assert run(keys.verify(token(FIRST), NOW))


def test_missing_files_are_named(tmp_path: Path, run: Run) -> None:
    missing = tmp_path / "missing"
    for keys in (Keys(jwks=str(missing)), Keys(secrets_file=missing)):
        with pytest.raises(UnusableKey, match="missing") as raised:
            run(keys.reload())
        assert raised.value.hint


def test_a_file_without_a_secret_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "secrets").write_text(" \n")

    with pytest.raises(UnusableKey):
        run(Keys(secrets_file=tmp_path / "secrets").reload())


@pytest.mark.parametrize("secrets", [[], [SECRET]], ids=["alone", "with a secret"])
def test_a_server_does_not_start_without_a_key(
    endpoint: Endpoint, run: Run, secrets: list[str]
) -> None:
    endpoint.content = json.dumps({"keys": [{"kty": "EC", "kid": "broken"}]}).encode()
    keys = Keys(secrets=secrets, jwks=endpoint.url)

    if secrets:
        run(keys.reload())
    else:
        with pytest.raises(UnusableKey, match="no key"):
            run(keys.reload())


def test_a_jwks_that_has_lost_its_keys_retires_them(endpoint: Endpoint, run: Run) -> None:
    keys = Keys(jwks=endpoint.url)
    run(keys.reload())
    endpoint.content = jwks()
    run(keys.reload())

    with pytest.raises(NoSigner):
        run(keys.verify(token(FIRST), NOW))


@pytest.mark.parametrize(("length", "warned"), [(31, True), (32, False)])
def test_a_secret_that_could_be_guessed_is_warned_of(
    run: Run, caplog: pytest.LogCaptureFixture, length: int, warned: bool
) -> None:
    run(Keys(secrets=[SECRET, "x" * length]).reload())

    assert ("shorter than 32 bytes" in caplog.text) is warned
