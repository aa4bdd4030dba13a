"""Tokens that are fetched anew when they end, or when a server does not take them any more."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from typing import Final

from realtime_db.client.errors import TokenUnavailable

Source = str | Callable[[], Awaitable[str]]
"""A token, or what gives a new one each time it is called."""

MARGIN_SECONDS: Final = 60.0
"""How long before its end a token is renewed; if it lives shortly, at half of what is left."""

_UNUSABLE_SECONDS: Final = 1.0


class Tokens:
    """The token in use.

    Args:
        source: see `Source`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._token = source if isinstance(source, str) else None
        self._fetching = asyncio.Lock()

    @property
    def renews(self) -> bool:
        """Whether there can be another token."""
        return not isinstance(self._source, str)

    async def get(self, *, unlike: str | None = None) -> str:
        """The token in use, or a new one if that has ended or is `unlike`.

        Raises:
            TokenUnavailable: the callable failed.
        """
        async with self._fetching:
            token = self._token
            if isinstance(self._source, str):
                return self._source
            if token is None or token == unlike or seconds_left(token) < _UNUSABLE_SECONDS:
                try:
                    token = await self._source()
                except Exception as error:
                    raise TokenUnavailable(f"no token: {error!r}") from error
                if not isinstance(token, str):
                    kind = type(token).__name__
                    raise TokenUnavailable(f"no token: the callable gave a value of type {kind}")
                self._token = token
            return token


def seconds_left(token: str) -> float:
    """How long a token lives; for ever, if it does not say."""
    try:
        claims = token.split(".")[1]
        content = json.loads(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(content["exp"]) - time.time()
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return float("inf")


def seconds_to_renewal(token: str) -> float | None:
    """When to fetch the next token, from now; None for never."""
    left = seconds_left(token)
    if left == float("inf"):
        return None
    return max(1.0, left - MARGIN_SECONDS if left > 2 * MARGIN_SECONDS else left / 2)
