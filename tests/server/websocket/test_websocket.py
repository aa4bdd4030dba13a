"""Handshakes, framings, heartbeats, bad frames and the end of connections (PROTOCOL 1 to 4)."""

from __future__ import annotations

import base64
import json
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])


# Handshakes


@pytest.mark.parametrize("path", ["/socket/websocket", "/realtime/v1/websocket"])
@pytest.mark.parametrize("vsn", [None, "1.0.0", "1.0.7", "2.0.0", "2.0.3"])
def test_both_paths_and_all_versions_are_served(
    client: Callable[..., Client], path: str, vsn: str | None, topic: str
) -> None:
    client(path=path, vsn=vsn).join(topic)


def test_the_header_wins_over_the_parameter(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    client(key="nonsense", headers={"x-api-key": token()}).join(topic)
    with pytest.raises(InvalidStatus):
        client(headers={"x-api-key": "nonsense"})


def test_origin_subprotocols_and_compression_do_not_matter(
    client: Callable[..., Client], topic: str
) -> None:
    one = client(origin="https://elsewhere.example", subprotocols=["phoenix"])
    assert one.socket.subprotocol is None
    assert one.socket.protocol.extensions == []
    one.join(topic)


def refusal(client: Callable[..., Client], **options: Any) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as refused:
        client(**options)
    response = refused.value.response
    body = json.loads(response.body) if response.body else None
    if body is not None:
        assert response.headers["content-type"].startswith("application/json")
    return response.status_code, body


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


MALFORMED = "The token provided is not a valid JWT"
MISSING = "Fields `role` and `exp` are required in JWT"
NO_SIGNER = "Failed to generate JWT signer, check your JWT secret or JWKS configuration"


def test_a_handshake_without_a_key_is_refused(client: Callable[..., Client]) -> None:
    assert refusal(client, key="") == (401, {"error": "API key is missing"})


@pytest.mark.parametrize(
    "key", ["x", "a.b", "a.b.c", "sb_publishable_x", f"{part(1)}.{part({})}.x"]
)
def test_a_handshake_with_no_jwt_is_refused(client: Callable[..., Client], key: str) -> None:
    assert refusal(client, key=key) == (401, {"error": MALFORMED})


def test_a_handshake_with_a_wrong_signature_is_refused(
    client: Callable[..., Client], token: Callable[..., str]
) -> None:
    text = "Failed to validate JWT signature"
    assert refusal(client, key=token(secret="another")) == (401, {"error": text})


def test_a_handshake_with_an_expired_token_is_refused(
    client: Callable[..., Client], token: Callable[..., str]
) -> None:
    assert refusal(client, key=token(ttl_seconds=-9)) == (401, {"error": "Token has expired"})


def test_a_handshake_without_role_is_refused(
    client: Callable[..., Client], token: Callable[..., str]
) -> None:
    assert refusal(client, key=token(role=None)) == (401, {"error": MISSING})


@pytest.mark.parametrize("algorithm", ["none", "HS1", "RS256"])
def test_a_handshake_with_another_algorithm_is_refused(
    client: Callable[..., Client], algorithm: str
) -> None:
    key = f"{part({'alg': algorithm})}.{part({'role': 'anon', 'exp': 9e9})}.AAAA"
    assert refusal(client, key=key) == (401, {"error": NO_SIGNER})


def test_a_handshake_with_a_key_that_the_jwks_lacks_is_refused(
    start_server: Callable[..., Server], open_client: Callable[..., Client], tmp_path: Path
) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text('{"keys": []}')
    server = start_server("--jwks", str(jwks))
    key = f"{part({'alg': 'ES256', 'kid': 'k1'})}.{part({'role': 'anon', 'exp': 9e9})}.AAAA"
    text = (
        'Failed to generate JWT signer for key ID (kid) "k1", '
        "check your JWT secret or JWKS configuration"
    )
    assert refusal(lambda **more: open_client(server, **more), key=key) == (401, {"error": text})
    one = open_client(server)
    assert one.refused("room", access_token=key) == f"JwtSignerError: {text}"


@pytest.mark.parametrize("vsn", ["3.0.0", "2.1.0", "2", "", "x"])
def test_a_handshake_of_another_version_is_forbidden_without_a_word(
    client: Callable[..., Client], vsn: str
) -> None:
    assert refusal(client, vsn=vsn) == (403, None)


def test_a_handshake_of_another_websocket_version_is_refused(
    server: Server, token: Callable[..., str]
) -> None:
    with socket.create_connection((server.host, server.port), 60) as raw:
        raw.sendall(
            f"GET /socket/websocket?apikey={quote(token())} HTTP/1.1\r\nHost: x\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        head = raw.recv(4096).lower()
    assert head.startswith(b"http/1.1 426 ")
    assert b"sec-websocket-version: 13" in head


def test_whitespace_and_escapes_in_a_key_do_not_matter(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    key = token()
    client(key=f" {key[:20]}\n{key[20:]}").join(topic)


# Heartbeats and framing


@BOTH
@pytest.mark.parametrize("ref", ["5", None])
def test_a_heartbeat_is_answered_with_its_ref(
    client: Callable[..., Client], vsn: str, ref: str | None
) -> None:
    one = client(vsn=vsn)
    one.send("phoenix", "heartbeat", {}, ref=ref)
    frame = one.receive()
    assert (frame.topic, frame.event, frame.ref) == ("phoenix", "phx_reply", ref)
    assert frame.payload == {"status": "ok", "response": {}}
    assert frame.join_ref is None


def test_the_frames_are_literal(client: Callable[..., Client]) -> None:
    v1, v2 = client(vsn="1.0.0"), client()
    v1.socket.send('{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}')
    assert v1.receive().raw == (
        '{"topic":"phoenix","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":null}'
    )
    v2.socket.send('[null,"1","phoenix","heartbeat",{},"extra",1]')
    assert v2.receive().raw == ('[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]')


BAD_TEXT = [
    "", " ", "{", "null", "1", '"x"', "[]", "[1,2,3,4]", '[null,null,"a","b"]', "{}",
    '[1,"1","realtime:a","phx_join",{}]', '{"topic":1,"event":"e","payload":{},"ref":null}',
    '{"topic":"a","event":"e","payload":{}}', "[" * 10_000, '[null,"1","t","e",NaN]',
]  # fmt: skip
BAD_BINARY = [b"", b"\0", b"\3", b"\3\1\1\1\1\1", b"\3\0\0\xff\0\0\1abc", b"\4\0\0\0\0", b"\xff",
              b"\3\0\0\1\1\0\1te{", b"\3\0\0\1\1\0\2te{}"]  # fmt: skip


@BOTH
def test_malformed_frames_are_dropped_and_the_connection_stays(
    client: Callable[..., Client], vsn: str, topic: str
) -> None:
    one = client(vsn=vsn)
    one.join(topic, {"broadcast": {"self": True}})
    for bad in [*BAD_TEXT, *BAD_BINARY]:
        one.socket.send(bad)
    one.heartbeat()
    one.broadcast(topic)
    assert one.receive().event == "broadcast"


def test_a_hundred_thousand_random_frames_disturb_nobody(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    healthy, wild = client(), client()
    healthy.join(topic)
    chance = random.Random(1)
    alphabet = [
        '"',
        "[",
        "]",
        "{",
        "}",
        ",",
        "null",
        "phx_join",
        topic,
        "realtime:",
        "1",
        "\\",
        "é",
    ]
    for number in range(100):
        for _ in range(1000):
            if chance.random() < 0.5:
                wild.socket.send("".join(chance.choices(alphabet, k=chance.randrange(12))))
            else:
                kind = b"\3" if chance.random() < 0.5 else b""
                wild.socket.send(kind + chance.randbytes(chance.randrange(24)))
        database.send(topic, str(number), {"n": number})
    assert [healthy.receive().payload["event"] for _ in range(100)] == [
        str(number) for number in range(100)
    ]
    wild.heartbeat()
    healthy.heartbeat()


def test_text_that_is_no_utf_8_closes_with_1007(client: Callable[..., Client]) -> None:
    one = client()
    one.socket.send(b"\xff\xfe", text=True)
    assert one.closed()[0] == 1007


@pytest.mark.parametrize("size", [5_000_001, 9_000_000])
def test_an_oversized_message_closes_with_1009(client: Callable[..., Client], size: int) -> None:
    one = client()
    one.socket.send(b"\0" * size)
    assert one.closed()[0] == 1009


def test_a_message_of_five_million_bytes_is_read(client: Callable[..., Client]) -> None:
    one = client()
    one.socket.send(b"\0" * 5_000_000)
    one.heartbeat()


def test_a_close_is_answered_with_its_code(client: Callable[..., Client]) -> None:
    one = client()
    one.socket.close(3000, "bye")
    assert one.socket.close_code == 3000


# The end


def test_a_client_that_says_nothing_is_closed(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    server = start_server("--idle-seconds", "3")
    silent = open_client(server, ping_interval=None)
    silent.join(topic)
    assert silent.closed()[0] == 1001


def test_a_client_that_does_not_answer_a_close_is_reset(
    start_server: Callable[..., Server], token: Callable[..., str]
) -> None:
    server = start_server("--idle-seconds", "1")
    with socket.create_connection((server.host, server.port), 60) as mute:
        mute.sendall(
            f"GET /socket/websocket?apikey={quote(token())} HTTP/1.1\r\nHost: x\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        received = b""
        with pytest.raises(ConnectionResetError):
            while piece := mute.recv(4096):
                received += piece
    head, _, frames = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frames.startswith(b"\x88")


def test_a_client_without_channels_is_closed(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str
) -> None:
    server = start_server("--no-channel-seconds", "3", "--idle-seconds", "60")
    with_channel = open_client(server)
    with_channel.join(topic)
    without = open_client(server)
    assert without.closed()[0] == 1001
    with_channel.heartbeat()


@BOTH
def test_sigterm_tells_the_channels_and_closes_with_1012(
    start_server: Callable[..., Server], open_client: Callable[..., Client], topic: str, vsn: str
) -> None:
    server = start_server()
    one, idle = open_client(server, vsn=vsn), open_client(server)
    refs = [one.join(topic), one.join(f"{topic}:2")]
    server.signal(signal.SIGTERM)
    for ref, channel in zip(refs, [topic, f"{topic}:2"], strict=True):
        frame = one.receive()
        assert (frame.event, frame.topic, frame.ref) == ("system", f"realtime:{channel}", None)
        assert frame.join_ref == (ref if vsn == "2.0.0" else None)
        assert frame.payload == {
            "extension": "system",
            "status": "ok",
            "message": "Server requested disconnect",
            "channel": channel,
        }
    assert one.closed()[0] == idle.closed()[0] == 1012
    assert server.wait() == 0


def test_sigterm_does_not_wait_for_a_client_that_does_not_answer(
    start_server: Callable[..., Server], token: Callable[..., str]
) -> None:
    server = start_server()
    with socket.create_connection((server.host, server.port), 60) as mute:
        mute.sendall(
            f"GET /socket/websocket?apikey={quote(token())} HTTP/1.1\r\nHost: x\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert mute.recv(4096).startswith(b"HTTP/1.1 101 ")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_sighup_reads_the_keys_again(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    token: Callable[..., str],
    tmp_path: Path,
    topic: str,
) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("first-secret-of-some-length")
    server = start_server("--jwt-secrets-file", str(secrets), secret=None)
    old = token(secret="first-secret-of-some-length")
    new = token(secret="second-secret-of-some-length")
    joined = open_client(server, key=old)
    ref = joined.join(topic)
    assert joined.refused(topic + "2", access_token=new).startswith("JwtSignatureError")
    secrets.write_text("first-secret-of-some-length\nsecond-secret-of-some-length\n")
    server.signal(signal.SIGHUP)
    server.wait_for("keys were read again")
    joined.join(topic + "2", access_token=new)

    # A retired key ends its channels, and a connection that was opened with it.
    mixed = open_client(server, key=new)
    mixed_ref = mixed.join(topic, access_token=old)
    mixed.join(topic + "2")
    secrets.write_text("second-secret-of-some-length")
    server.signal(signal.SIGHUP)
    server.wait_for("keys were read again", 2)
    system, closed = mixed.receive(), mixed.receive()
    assert system.payload["message"] == "Failed to validate JWT signature"
    assert (closed.event, closed.ref) == ("phx_close", mixed_ref)
    mixed.heartbeat()
    goodbye = [joined.receive() for _ in range(2)]
    assert {one.payload["message"] for one in goodbye} == {"Server requested disconnect"}
    assert goodbye[0].join_ref == ref
    assert joined.closed() == (1012, "Keys have changed")
    assert refusal(lambda **more: open_client(server, **more), key=old)[0] == 401
