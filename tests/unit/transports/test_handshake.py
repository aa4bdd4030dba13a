"""The opening handshake: RFC 6455's own example, what it refuses, and the `websockets` client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from realtime_db.transports.handshake import (
    Refused,
    accept_key,
    check_handshake,
    switching_protocols,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "host": "server.example.com",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-key": KEY,
    "sec-websocket-version": "13",
    "origin": "http://example.com",
}


def test_the_example_of_the_rfc_is_accepted() -> None:
    assert check_handshake(HEADERS) == KEY
    assert accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert switching_protocols(KEY) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upgrade", "WebSocket"),
        ("upgrade", "h2c, websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("connection", "upgrade,keep-alive"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ("sec-websocket-protocol", "chat"),
        ("origin", "null"),
    ],
)
def test_tokens_count_in_lists_and_any_case_and_offers_do_not_disturb(
    name: str, value: str
) -> None:
    assert check_handshake({**HEADERS, name: value}) == KEY


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "13, 8", "x"])
def test_another_version_is_refused_with_426_and_the_right_one(version: str | None) -> None:
    headers = dict(HEADERS)
    del headers["sec-websocket-version"]
    if version is not None:
        headers["sec-websocket-version"] = version
    refused = check_handshake(headers)
    assert isinstance(refused, Refused)
    assert refused.status == 426
    assert ("Sec-WebSocket-Version", "13") in refused.headers


@pytest.mark.parametrize("name", ["host", "upgrade", "connection", "sec-websocket-key"])
def test_a_missing_header_is_refused_by_name(name: str) -> None:
    refused = check_handshake({key: HEADERS[key] for key in HEADERS if key != name})
    assert isinstance(refused, Refused)
    assert refused.status == 400
    assert name.title().replace("Websocket", "WebSocket") in refused.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upgrade", "h2c"),
        ("upgrade", "websockets"),
        ("connection", "keep-alive"),
        ("connection", "not-upgrade"),
        ("sec-websocket-key", ""),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j"),
        ("sec-websocket-key", KEY + "AA"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"),
        ("sec-websocket-key", "dGhl IHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-key", f"{KEY}, {KEY}"),
        ("sec-websocket-key", "é" * 24),
    ],
)
def test_a_wrong_header_is_refused(name: str, value: str) -> None:
    refused = check_handshake({**HEADERS, name: value})
    assert isinstance(refused, Refused)
    assert refused.status == 400


def test_only_get_of_http_1_1_is_accepted() -> None:
    assert isinstance(check_handshake(HEADERS, method="POST"), Refused)
    assert isinstance(check_handshake(HEADERS, http_version="1.0"), Refused)


@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), st.text()))
def test_any_headers_are_accepted_or_refused(headers: dict[str, str]) -> None:
    assert isinstance(check_handshake({**HEADERS, **headers}), (str, Refused))


def test_a_client_of_websockets_that_offers_compression_opens_without() -> None:
    client = ClientProtocol(parse_uri("ws://localhost/socket/websocket"))
    request = client.connect()
    request.headers["Sec-WebSocket-Extensions"] = "permessage-deflate"
    key = check_handshake({name.lower(): value for name, value in request.headers.raw_items()})
    assert isinstance(key, str)
    client.send_request(request)
    client.receive_data(switching_protocols(key))
    assert client.handshake_exc is None
    assert client.state is State.OPEN
    assert client.extensions == []
