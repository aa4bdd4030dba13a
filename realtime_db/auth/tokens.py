"""Whether a token is good, and what it claims (PROTOCOL 6). No I/O here.

Above: the transports (key of a connection, bearer of REST) and the channels (token of a join).
Below: joserfc, for keys and signatures. `keys` makes the `KeySet`; time is an argument, in seconds
since 1970.

`verify` raises `TokenError` and nothing else, whatever the string. The error holds the literal
texts of the protocol: `handshake` (section 1), `join` and `close` (section 5).
"""

from __future__ import annotations

import json
import math
import re
import warnings
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, OctKey
from joserfc.jws import JWSRegistry

from realtime_db.errors import RealtimeDbError

MAX_TOKEN_CHARACTERS: Final = 65_536
"""A longer token is malformed: a stranger must not make us parse megabytes."""

JWKS_HINT: Final = "Give --jwks what your identity provider names as its jwks_uri, or a copy of it."

_KEY_TYPES: Final = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
    **dict.fromkeys(("RS256", "RS384", "RS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519", "Ed448"), "OKP"),
}
# The rest of a JWK (`use`, `key_ops`, a private `d`) is none of a verifier's business.
_PUBLIC_MEMBERS: Final = {"oct": "k", "RSA": "n e", "EC": "crv x y", "OKP": "crv x"}
_ALGORITHMS: Final = {name: JWSRegistry.algorithms[name] for name in _KEY_TYPES}
_PART: Final = re.compile(r"[A-Za-z0-9_-]*")
_WHITESPACE: Final = re.compile(r"\s+", re.ASCII)
# What is not JSON is a ValueError, what is nested too deeply a RecursionError.
_JSON_ERRORS: Final = (ValueError, RecursionError)


class UnusableKey(RealtimeDbError):
    """A secret or a JWKS with which no token can be verified."""


class TokenError(RealtimeDbError):
    """A token is refused.

    Attributes:
        code: what the protocol calls this kind of refusal.
        handshake: the text of the 401 that refuses a connection.
        close: the text of the `system` message that ends a channel.
        join: the reason of the error reply that refuses a join.
        unknown_kid: the key that the token names, if the JWKS lacks it. It may be a new one.
    """

    code: ClassVar[str]

    def __init__(
        self, close: str, *, handshake: str | None = None, unknown_kid: str | None = None
    ) -> None:
        super().__init__(close)
        self.close = close
        self.handshake = handshake or close
        self.unknown_kid = unknown_kid

    @property
    def join(self) -> str:
        return f"{self.code}: {self.close}"


class MalformedToken(TokenError):
    """No JWT at all."""

    code = "MalformedJWT"

    def __init__(self) -> None:
        super().__init__("The token provided is not a valid JWT")


class NoSigner(TokenError):
    """Its algorithm is not accepted, or there is no key for it."""

    code = "JwtSignerError"

    def __init__(self, *, unknown_kid: str | None = None) -> None:
        which = ""
        if unknown_kid is not None:
            # JSON can hold half a surrogate pair; what we answer must be UTF-8.
            name = unknown_kid.encode("utf-8", "replace").decode("utf-8")
            which = f' for key ID (kid) "{name}"'
        super().__init__(
            f"Failed to generate JWT signer{which}, check your JWT secret or JWKS configuration",
            unknown_kid=unknown_kid,
        )


class BadSignature(TokenError):
    """Somebody else signed it, or it was changed."""

    code = "JwtSignatureError"

    def __init__(self, *, unknown_kid: str | None = None) -> None:
        super().__init__("Failed to validate JWT signature", unknown_kid=unknown_kid)


class Expired(TokenError):
    """Its time is over."""

    code = "InvalidJWTToken"

    def __init__(self, seconds_ago: int) -> None:
        super().__init__(
            f"Token has expired {seconds_ago} seconds ago", handshake="Token has expired"
        )
        self.seconds_ago = seconds_ago


class InvalidExpiry(TokenError):
    """Its `exp` is no time: not a number, or zero or less after rounding."""

    code = "InvalidJWTToken"

    def __init__(self) -> None:
        super().__init__("Token expiration time is invalid", handshake="Token has expired")


class MissingClaims(TokenError):
    """It has no `role` that names one, or no `exp`."""

    code = "InvalidJWTToken"

    def __init__(self) -> None:
        super().__init__("Fields `role` and `exp` are required in JWT")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says.

    Attributes:
        role: the Postgres role to ask as.
        exp: when it ends, in whole seconds since 1970; check `check_expiry` before each use.
        sub: the user, if the token names one.
        json: all claims, as the JSON text that was signed.
    """

    role: str
    exp: int
    sub: str | None
    json: str

    def check_expiry(self, now: float) -> None:
        """Raises `Expired` if the token has ended.

        Args:
            now: seconds since 1970.
        """
        if self.exp <= int(now):
            raise Expired(int(now) - self.exp)


class KeySet:
    """The keys that tokens may be signed with. It is not changed: a reload makes another one."""

    __slots__ = ("_jwks", "_kids", "_secrets", "skipped")

    def __init__(
        self, secrets: Iterable[str | bytes] = (), jwks: Mapping[str, Any] | None = None
    ) -> None:
        """Takes the keys in.

        Args:
            secrets: shared secrets. Any of them is good, so a new one can be rolled out before
                the old one is retired.
            jwks: `{"keys": […]}`. Keys that nobody could use are left out; `skipped` says why.

        Raises:
            UnusableKey: a secret is empty or a public key, or `jwks` is no JWKS.
        """
        self.skipped: list[str] = []
        self._secrets = tuple(map(_import_secret, secrets))
        self._jwks: dict[tuple[str, str], list[Key]] | None = None
        if jwks is not None:
            self._jwks = {}
            for number, jwk in enumerate(_jwks_keys(jwks)):
                try:
                    type_and_kid, key = _import_jwk(jwk)
                except UnusableKey as error:
                    self.skipped.append(f"key {number} of the JWKS: {error.message}")
                else:
                    self._jwks.setdefault(type_and_kid, []).append(key)
        self._kids = {kid for _, kid in self._jwks or ()}

    def __bool__(self) -> bool:
        """Whether there is any key."""
        return bool(self._secrets or self._jwks)

    def _signers(self, header: Mapping[str, Any]) -> tuple[Any, Iterable[Key], str | None]:
        """The algorithm that a header names, the keys to try, and its kid if we lack it."""
        alg, kid = header.get("alg"), header.get("kid")
        # "crit" lists what a verifier must understand (RFC 7515, 4.1.11); we understand nothing.
        if not isinstance(alg, str) or alg not in _KEY_TYPES or "crit" in header:
            raise NoSigner
        key_type = _KEY_TYPES[alg]
        # Only with a JWKS can a key be new.
        known = not isinstance(kid, str) or self._jwks is None or kid in self._kids
        unknown_kid = None if known else kid
        keys: Iterable[Key] = ()
        if isinstance(kid, str) and self._jwks is not None:
            keys = self._jwks.get((key_type, kid), ())
            if not keys and key_type != "oct":
                raise NoSigner(unknown_kid=kid)
        if not keys and key_type == "oct":
            keys = self._secrets
        algorithm = _ALGORITHMS[alg]
        keys = [key for key in keys if _fits(algorithm, key)]
        if not keys:
            raise NoSigner
        return algorithm, keys, unknown_kid


def verify(token: str, keys: KeySet, now: float) -> Claims:
    """Checks a token, in the order of PROTOCOL 6: form, signer, signature, times, missing claims.

    Args:
        token: as it came, percent-escapes and whitespace included.
        keys: the keys that may have signed it.
        now: seconds since 1970.

    Raises:
        TokenError: it is refused. Nothing else is raised, whatever the string.
    """
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise MalformedToken
    token = _WHITESPACE.sub("", unquote(token))
    parts = token.split(".")
    if len(parts) != 3:
        raise MalformedToken
    header, _ = _json_object(parts[0])
    claims, text = _json_object(parts[1])
    signature = _decode(parts[2])

    algorithm, signers, unknown_kid = keys._signers(header)
    signed = token[: len(parts[0]) + 1 + len(parts[1])].encode("ascii")
    if not any(_verifies(algorithm, signed, signature, key) for key in signers):
        raise BadSignature(unknown_kid=unknown_kid)

    exp = claims.get("exp")
    if "exp" in claims:
        exp = _round(exp)
        if exp is None or exp <= 0:
            raise InvalidExpiry
        if exp <= int(now):
            raise Expired(int(now) - exp)
    if "iat" in claims and _round(claims["iat"]) is None:
        raise MalformedToken
    role, sub = claims.get("role"), claims.get("sub")
    if exp is None or not isinstance(role, str):
        raise MissingClaims
    return Claims(role=role, exp=exp, sub=sub if isinstance(sub, str) else None, json=text)


class VerifiedTokens:
    """Remembers tokens that were good: verifying one again takes 0.3 us instead of 40 and more.

    The least recently used are forgotten first, and all of them when the keys change.
    """

    MAX_CHARACTERS: Final = 8_192

    def __init__(self, max_tokens: int = 10_000) -> None:
        self._max_tokens = max_tokens
        self._keys: KeySet | None = None
        self._claims: OrderedDict[str, Claims] = OrderedDict()

    def verify(self, token: str, keys: KeySet, now: float) -> Claims:
        """As `tokens.verify`; the time is looked at every time."""
        if keys is not self._keys:
            self._claims.clear()
            self._keys = keys
        claims = self._claims.get(token)
        if claims is None:
            claims = verify(token, keys, now)
            if len(token) <= self.MAX_CHARACTERS:
                self._claims[token] = claims
                if len(self._claims) > self._max_tokens:
                    self._claims.popitem(last=False)
            return claims
        try:
            claims.check_expiry(now)
        except Expired:
            del self._claims[token]
            raise
        self._claims.move_to_end(token)
        return claims

    def __len__(self) -> int:
        return len(self._claims)


def stands_for_connection_key(token: object) -> bool:
    """Whether a client's token is no token of its own: none, or a publishable or secret key."""
    return not isinstance(token, str) or not token or token.startswith("sb_")


def token_that_counts(token: object, connection_key: str) -> str:
    """The token of a join, or the key of the connection if the join has none of its own.

    Args:
        token: `access_token` (or `user_token`) of the join, whatever type it has.
        connection_key: the key that the connection was opened with.
    """
    if isinstance(token, str) and not stands_for_connection_key(token):
        return token
    return connection_key


def mint(
    secret: str | bytes,
    *,
    role: str,
    now: float,
    ttl_seconds: float = 3600,
    sub: str | None = None,
    claims: Mapping[str, Any] | None = None,
    algorithm: str = "HS256",
    kid: str | None = None,
) -> str:
    """Makes a token, for development and tests.

    Args:
        secret: the shared secret.
        role: the Postgres role that it is asked as.
        now: seconds since 1970; becomes `iat`.
        ttl_seconds: how long it is good; negative makes one that has expired.
        sub: the user.
        claims: more claims, which win over the others.
        algorithm: HS256, HS384 or HS512.
        kid: the key's name, if it has one.

    Raises:
        UnusableKey: the secret is empty or a public key, or there is no such algorithm.
    """
    if _KEY_TYPES.get(algorithm) != "oct":
        raise UnusableKey(f"{algorithm} does not sign with a shared secret")
    content = {"role": role, "iat": int(now), "exp": int(now + ttl_seconds)}
    if sub is not None:
        content |= {"sub": sub}
    header = {"alg": algorithm} if kid is None else {"alg": algorithm, "kid": kid}
    key = _import_secret(secret)
    return jwt.encode(header, content | dict(claims or {}), key, algorithms=[algorithm])


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decode_json: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _json_object(part: str) -> tuple[dict[str, Any], str]:
    try:
        text = _decode(part).decode("utf-8")
        value = _decode_json(text)
    except _JSON_ERRORS as error:
        raise MalformedToken from error
    if not isinstance(value, dict):
        raise MalformedToken
    return value, text


def _decode(part: str) -> bytes:
    if not _PART.fullmatch(part):
        raise MalformedToken
    try:
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as error:
        raise MalformedToken from error


def _verifies(algorithm: Any, signed: bytes, signature: bytes, key: Key) -> bool:
    try:
        return bool(algorithm.verify(signed, signature, key))
    except (JoseError, ValueError):
        # joserfc says False for all that we know of; whatever else it may be, it is no signature.
        return False


def _fits(algorithm: Any, key: Key) -> bool:
    try:
        algorithm.check_key(key)
    except JoseError:
        return False
    # EdDSA is for two curves out of four, and joserfc finds out only when it verifies.
    return key.key_type != "OKP" or getattr(key, "curve_name", None) in ("Ed25519", "Ed448")


def _round(value: object) -> int | None:
    """Rounds half up, as Elixir does for what is positive; None for what is no number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return math.floor(value + 0.5)
    return None


def _jwks_keys(jwks: Mapping[str, Any]) -> list[Any]:
    keys = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(keys, list):
        raise UnusableKey('the JWKS is no JSON object of the form {"keys": […]}', hint=JWKS_HINT)
    return keys


def _import_jwk(jwk: object) -> tuple[tuple[str, str], Key]:
    if not isinstance(jwk, Mapping):
        raise UnusableKey("it is no JSON object")
    key_type, kid = jwk.get("kty"), jwk.get("kid")
    if not isinstance(key_type, str) or key_type not in _PUBLIC_MEMBERS:
        raise UnusableKey("its kty is none of oct, RSA, EC and OKP")
    if not isinstance(kid, str):
        raise UnusableKey("it has no kid, by which tokens would choose it")
    members: dict[str, Any] = {name: jwk.get(name) for name in _PUBLIC_MEMBERS[key_type].split()}
    if not all(isinstance(value, str) for value in members.values()):
        raise UnusableKey(f"a key of type {key_type} needs {', '.join(members)}")
    if key_type == "oct":
        try:
            members["k"] = _decode(members["k"].rstrip("="))
        except MalformedToken as error:
            raise UnusableKey("its k is no base64url") from error
    return (key_type, kid), _import(key_type, members)


def _import_secret(secret: str | bytes) -> Key:
    if not secret:
        raise UnusableKey(
            "the secret is empty", hint="Make one, for instance with: openssl rand -base64 32"
        )
    return _import("oct", {"k": secret})


def _import(key_type: str, members: Mapping[str, Any]) -> Key:
    with warnings.catch_warnings():
        # Whether a secret is long enough is for who chose it.
        warnings.simplefilter("ignore")
        try:
            if key_type == "oct":
                return OctKey.import_key(members["k"])
            return JWKRegistry.import_key({"kty": key_type, **members})
        except (JoseError, ValueError) as error:
            raise UnusableKey(f"a key of type {key_type} cannot be used: {error}") from error
