"""The inspector: one page at `/` that joins channels and shows what arrives.

Above: `application`, which knows the URL. The page is `inspector.html`, which is read once; it
speaks the protocol itself, to the server that it came from. Payloads are anybody's, so the page may
run its own script and nothing else, and talk to nobody else: the policy names both by their hashes.
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from realtime_db.transports.http import Response

_FILE: Final = Path(__file__).with_name("inspector.html")


@cache
def page() -> Response:
    """The answer to `GET /`."""
    body = _FILE.read_bytes()
    policy = (
        "default-src 'none'",
        # For a WebSocket too: `self` is the host and the port, whatever the scheme.
        "connect-src 'self'",
        "img-src data:",
        f"script-src {_hash(body, b'script')}",
        f"style-src {_hash(body, b'style')}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup, even by mistake.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    headers = (
        ("content-security-policy", "; ".join(policy)),
        ("cache-control", "no-cache"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    )
    return Response(200, body, "text/html; charset=utf-8", headers)


def _hash(body: bytes, tag: bytes) -> str:
    """Names the text of the page's one element of a tag, as a Content-Security-Policy does."""
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text).digest()).decode()}'"
