"""The opening handshake of WebSocket, RFC 6455, on the server's side. No I/O here.

Below is whoever parsed the HTTP request and writes the answer; after it, `rfc6455` takes over. All
extensions are declined, permessage-deflate too ([9.1]: what the server does not list in
`Sec-WebSocket-Extensions` is not in use), and so are all subprotocols. Sections in brackets are the
RFC's.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Mapping
from hashlib import sha1
from typing import Final, NamedTuple

# [1.3] "concatenate this with the Globally Unique Identifier".
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Refused(NamedTuple):
    """Why a request does not become a WebSocket: what to answer over HTTP."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


def check_handshake(
    headers: Mapping[str, str], *, method: str = "GET", http_version: str = "1.1"
) -> str | Refused:
    """Checks a client's request against [4.2.1]; never raises.

    Args:
        headers: by lower-case names; those that came more than once joined by commas, as HTTP says.
        method: of the request line.
        http_version: such as `1.1`.

    Returns:
        The client's key, for `switching_protocols`; or why not.
    """
    if method != "GET" or http_version != "1.1":
        return Refused(400, "A WebSocket begins with a GET request of HTTP/1.1")
    if "host" not in headers:
        return Refused(400, "Header Host is missing")
    if not _has_token(headers, "upgrade", "websocket"):
        return Refused(400, "Header Upgrade does not say websocket")
    if not _has_token(headers, "connection", "upgrade"):
        return Refused(400, "Header Connection does not say Upgrade")
    if headers.get("sec-websocket-version", "").strip() != "13":
        # [4.2.2] 426 "and a |Sec-WebSocket-Version| header field indicating the version(s)".
        text = "Only version 13 of WebSocket is spoken here"
        return Refused(426, text, (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")))
    key = headers.get("sec-websocket-key", "").strip()
    try:
        # "a base64-encoded … value that, when decoded, is 16 bytes in length"
        valid = len(a2b_base64(key, strict_mode=True)) == 16
    except ValueError:
        valid = False
    return key if valid else Refused(400, "Header Sec-WebSocket-Key is not 16 bytes in base64")


def accept_key(key: str) -> str:
    """Answers a client's key: [4.2.2] the base64 of the SHA-1 of it and the GUID."""
    return b64encode(sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def switching_protocols(key: str) -> bytes:
    """The answer that makes the connection a WebSocket [4.2.2]."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
    ).encode()


def _has_token(headers: Mapping[str, str], name: str, token: str) -> bool:
    """[4.2.1] Whether a list of tokens holds this one, "treated as an ASCII case-insensitive"."""
    return any(item.strip().lower() == token for item in headers.get(name, "").split(","))
