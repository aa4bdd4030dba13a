"""Brings the keys that tokens are verified with: from the settings, files and a JWKS.

Above: the server, which makes one `Keys` and asks it about every token. Below: `tokens`, which does
the deciding. A JWKS is fetched once and again when a token names a key that it lacks, but not more
often than every `reload_interval_seconds`, for anybody can make up the name of a key.

A reload that fails keeps the keys that there are and says so in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from realtime_db.auth.tokens import (
    JWKS_HINT,
    Claims,
    KeySet,
    TokenError,
    UnusableKey,
    VerifiedTokens,
)

MAX_FILE_BYTES: Final = 1_048_576
FETCH_TIMEOUT_SECONDS: Final = 5.0
RELOAD_INTERVAL_SECONDS: Final = 30.0
SAFE_SECRET_BYTES: Final = 32

_log = logging.getLogger(__name__)


class Keys:
    """Verifies tokens with the keys of a server, which it reloads when it must.

    Nothing is known before `reload` has succeeded for the first time.
    """

    def __init__(
        self,
        *,
        secrets: Iterable[str] = (),
        secrets_file: Path | None = None,
        jwks: str | None = None,
        reload_interval_seconds: float = RELOAD_INTERVAL_SECONDS,
        fetch_timeout_seconds: float = FETCH_TIMEOUT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Says where the keys come from; nothing is read yet.

        Args:
            secrets: shared secrets, all of them good.
            secrets_file: a file with more of them, one a line, so that they can be rotated
                without a restart.
            jwks: the path or the http(s) URL of a JWKS.
            reload_interval_seconds: at most one reload in that time because of unknown keys.
            fetch_timeout_seconds: for the whole of a fetch.
            monotonic: the clock that measures the interval.
        """
        self._secrets = tuple(secrets)
        self._secrets_file = secrets_file
        self._jwks = jwks
        self._reload_interval_seconds = reload_interval_seconds
        self._fetch_timeout_seconds = fetch_timeout_seconds
        self._monotonic = monotonic
        self._reloaded_at: float | None = None
        self._reloading = asyncio.Lock()
        self._verified = VerifiedTokens()
        self._content: tuple[tuple[str, ...], bytes | None] | None = None
        self.current = KeySet()

    async def reload(self) -> None:
        """Reads all of it again; at the start, on SIGHUP, and now and then to retire old keys.

        Raises:
            UnusableKey: something cannot be read or used; the keys that there are stay.
        """
        async with self._reloading:
            await self._read()

    def verify_known(self, token: str, now: float) -> Claims:
        """Checks a token with the keys that there are, at once.

        Args:
            token: as it came.
            now: seconds since 1970.

        Raises:
            TokenError: it is refused; `verify` may find the key if `unknown_kid` is set.
        """
        return self._verified.verify(token, self.current, now)

    async def verify(self, token: str, now: float) -> Claims:
        """Checks a token, with new keys if it names one that is not known.

        Args:
            token: as it came.
            now: seconds since 1970.

        Raises:
            TokenError: it is refused.
        """
        used = self.current
        try:
            return self._verified.verify(token, used, now)
        except TokenError as error:
            if error.unknown_kid is None:
                raise
            if not await self._look_for_new_keys(used):
                raise
        return self._verified.verify(token, self.current, now)

    async def _look_for_new_keys(self, used: KeySet) -> bool:
        """Whether there are other keys now than those that were `used`."""
        async with self._reloading:
            # Whoever waited for the lock has what the one before it has read.
            if self._may_reload():
                try:
                    await self._read()
                except UnusableKey as error:
                    _log.warning("the keys stay as they are: %s", error)
            return self.current is not used

    def _may_reload(self) -> bool:
        if self._reloaded_at is None:
            return True
        return self._monotonic() - self._reloaded_at >= self._reload_interval_seconds

    async def _read(self) -> None:
        # A failure counts as well, or an endpoint that is down would be asked for every token.
        self._reloaded_at = self._monotonic()
        content = await asyncio.to_thread(self._load)
        if content == self._content:
            return  # the same keys, with which tokens have been verified already
        secrets, jwks = content
        name = _without_password(self._jwks or "")
        keys = KeySet(secrets, None if jwks is None else _parse(jwks, name))
        for reason in keys.skipped:
            _log.warning("%s: %s", name, reason)
        # Later, a JWKS without keys retires them all.
        if jwks is not None and not keys and self._content is None:
            raise UnusableKey(f"{name} has no key that can be used", hint=JWKS_HINT)
        if any(len(secret.encode()) < SAFE_SECRET_BYTES for secret in secrets):
            _log.warning(
                "a shared secret is shorter than %d bytes: it could be guessed from a token",
                SAFE_SECRET_BYTES,
            )
        self.current, self._content = keys, content

    def _load(self) -> tuple[tuple[str, ...], bytes | None]:
        secrets = self._secrets
        if self._secrets_file is not None:
            secrets += _secrets_in(self._secrets_file)
        if self._jwks is None:
            return secrets, None
        if urlsplit(self._jwks).scheme in ("http", "https"):
            return secrets, _fetch(self._jwks, self._fetch_timeout_seconds)
        if "://" in self._jwks:
            raise UnusableKey(
                f"{_without_password(self._jwks)} is no JWKS that can be fetched",
                hint="Give the path of a file, or an http or https URL.",
            )
        return secrets, _read_file(Path(self._jwks))


def _secrets_in(path: Path) -> tuple[str, ...]:
    try:
        lines = _read_file(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UnusableKey(f"{path} is not UTF-8") from error
    secrets = tuple(line.strip() for line in lines if line.strip())
    if not secrets:
        raise UnusableKey(f"{path} holds no secret", hint="Write one secret on each line.")
    return secrets


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnusableKey(
            f"cannot read {path}: {error.strerror or error}",
            hint="Give the path of a file that this account may read.",
        ) from error
    return _not_too_large(content, str(path))


def _fetch(url: str, timeout_seconds: float) -> bytes:
    # Not the default opener, which also knows file: and ftp:, to which a redirect could lead.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + timeout_seconds
    content = b""
    try:
        request = urllib.request.Request(  # noqa: S310  the opener has no other schemes
            url, headers={"Accept": "application/json", "User-Agent": "realtime-db"}
        )
        with opener.open(request, timeout=timeout_seconds) as response:
            # The timeout is that of one read: a server that drips would hold us for ever.
            while len(content) <= MAX_FILE_BYTES and (piece := response.read1(65_536)):
                content += piece
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {timeout_seconds:g} s")
    # HTTPException, of an answer that is no HTTP, is neither an OSError nor a ValueError.
    except Exception as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = getattr(error, "reason", None) or error
        raise UnusableKey(
            f"cannot fetch {_without_password(url)}: {reason}", hint="Check the URL of the JWKS."
        ) from error
    return _not_too_large(content, _without_password(url))


def _without_password(url: str) -> str:
    if "://" not in url:
        return url  # the path of a file
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _not_too_large(content: bytes, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise UnusableKey(f"{name} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _parse(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnusableKey(
            f"{name} is no JSON: {error}",
            hint=JWKS_HINT,
        ) from error
