"""Which tokens are good, and in which words the others are refused (PROTOCOL 1, 5 and 6)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from realtime_db.auth import tokens
from realtime_db.auth.tokens import (
    KeySet,
    TokenError,
    UnusableKey,
    VerifiedTokens,
    mint,
    stands_for_connection_key,
    token_that_counts,
    verify,
)

NOW = 1_700_000_000
SECRET = "a secret that is shared, of 32 characters or more"
OTHER_SECRET = "another secret, for after the rotation, also long"
OCT_SECRET = b"a secret that only the JWKS knows, long enough too"
KEYS = KeySet([SECRET])
GOOD = {"role": "authenticated", "exp": NOW + 60, "sub": "ann"}

MALFORMED = "The token provided is not a valid JWT"
SIGNER = "Failed to generate JWT signer, check your JWT secret or JWKS configuration"
SIGNER_FOR = (
    'Failed to generate JWT signer for key ID (kid) "{}", '
    "check your JWT secret or JWKS configuration"
)
SIGNATURE = "Failed to validate JWT signature"
MISSING = "Fields `role` and `exp` are required in JWT"

RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = {
    "ES256": ECKey.generate_key("P-256", {"kid": "ec"}),
    "ES384": ECKey.generate_key("P-384", {"kid": "ec384"}),
    "ES512": ECKey.generate_key("P-521", {"kid": "ec512"}),
}
ED25519 = OKPKey.generate_key("Ed25519", {"kid": "ed"})
ED448 = OKPKey.generate_key("Ed448", {"kid": "ed448"})
X25519 = OKPKey.generate_key("X25519", {"kid": "x"})
OCT = {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(OCT_SECRET).decode().rstrip("=")}
JWKS = {
    "keys": [
        *(key.as_dict(private=False) for key in (RSA, *EC.values(), ED25519, ED448, X25519)),
        OCT,
    ]
}
WITH_JWKS = KeySet([SECRET], JWKS)

ASYMMETRIC = [
    *((alg, RSA) for alg in ("RS256", "RS384", "RS512")),
    *EC.items(),
    ("EdDSA", ED25519),
    ("Ed25519", ED25519),
    ("EdDSA", ED448),
    ("Ed448", ED448),
]
ASYMMETRIC_IDS = [f"{alg}-{key.kid}" for alg, key in ASYMMETRIC]


def part(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def signed(
    claims: object, *, secret: str | bytes = SECRET, alg: str = "HS256", **header: object
) -> str:
    """A token made by hand, so that nothing keeps us from making bad ones."""
    content = f"{part({'alg': alg, **header})}.{part(claims)}"
    key = secret.encode() if isinstance(secret, str) else secret
    digest = hmac.new(key, content.encode(), getattr(hashlib, f"sha{alg[2:]}")).digest()
    return f"{content}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def unsigned(encoded_claims: str) -> str:
    return f"{part({'alg': 'HS256'})}.{encoded_claims}.AAAA"


def asymmetric(alg: str, key: Key, claims: object = GOOD, **header: object) -> str:
    content = f"{part({'alg': alg, 'kid': key.kid, **header})}.{part(claims)}"
    signature = JWSRegistry.algorithms[alg].sign(content.encode(), key)
    return f"{content}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def refusal(token: str, keys: KeySet = KEYS, now: float = NOW) -> TokenError:
    with pytest.raises(TokenError) as raised:
        verify(token, keys, now)
    return raised.value


def texts(token: str, keys: KeySet = KEYS) -> tuple[str, str, str]:
    error = refusal(token, keys)
    return error.handshake, error.join, error.close


# Section 6: which algorithms


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_the_shared_secret_signs_with_every_hs_algorithm(alg: str) -> None:
    claims = verify(signed(GOOD, alg=alg), KEYS, NOW)

    assert (claims.role, claims.sub, claims.exp) == ("authenticated", "ann", NOW + 60)
    assert json.loads(claims.json) == GOOD


def test_claims_keep_every_digit_of_their_numbers() -> None:
    text = f'{{"role":"anon","exp":{NOW + 1},"n":12345678901234567890.10}}'

    assert verify(signed(text), KEYS, NOW).json == text


def test_a_kid_does_not_disturb_a_token_of_the_shared_secret() -> None:
    token = signed(GOOD, kid="whatever")

    assert verify(token, KEYS, NOW).role == "authenticated"
    assert verify(token, WITH_JWKS, NOW).role == "authenticated"


def test_an_oct_key_of_the_tokens_kid_is_used_instead_of_the_shared_secret() -> None:
    token = signed(GOOD, secret=OCT_SECRET, kid="oct")

    assert verify(token, WITH_JWKS, NOW).role == "authenticated"
    padded = KeySet([SECRET], {"keys": [OCT | {"k": OCT["k"] + "=="}]})
    assert verify(token, padded, NOW).role == "authenticated"
    assert texts(signed(GOOD, kid="oct"), WITH_JWKS)[0] == SIGNATURE
    assert texts(token)[0] == SIGNATURE


def test_a_kid_of_another_type_of_key_leaves_the_shared_secret() -> None:
    assert verify(signed(GOOD, kid="rsa"), WITH_JWKS, NOW).role == "authenticated"


@pytest.mark.parametrize(("alg", "key"), ASYMMETRIC, ids=ASYMMETRIC_IDS)
def test_a_key_of_the_jwks_chosen_by_kid_verifies(alg: str, key: Key) -> None:
    assert verify(asymmetric(alg, key), WITH_JWKS, NOW).sub == "ann"


@pytest.mark.parametrize(("alg", "key"), ASYMMETRIC, ids=ASYMMETRIC_IDS)
def test_a_changed_token_of_a_jwks_key_is_refused(alg: str, key: Key) -> None:
    head, _, signature = asymmetric(alg, key).split(".")

    assert texts(f"{head}.{part({**GOOD, 'role': 'service_role'})}.{signature}", WITH_JWKS) == (
        SIGNATURE,
        f"JwtSignatureError: {SIGNATURE}",
        SIGNATURE,
    )


@pytest.mark.parametrize("signature", ["", "AA", "A" * 86, "A" * 342], ids=len)
@pytest.mark.parametrize(("alg", "key"), ASYMMETRIC, ids=ASYMMETRIC_IDS)
def test_a_signature_of_any_length_is_refused_and_not_an_accident(
    alg: str, key: Key, signature: str
) -> None:
    head, claims, _ = asymmetric(alg, key).split(".")

    assert refusal(f"{head}.{claims}.{signature}", WITH_JWKS).join.startswith("JwtSignatureError")


def test_a_kid_is_required_for_asymmetric_algorithms() -> None:
    token = f"{part({'alg': 'RS256'})}.{part(GOOD)}.AAAA"

    assert texts(token, WITH_JWKS) == (SIGNER, f"JwtSignerError: {SIGNER}", SIGNER)


@pytest.mark.parametrize("kid", ["rotated", "ec", "half a pair \ud800"])
def test_a_kid_that_the_jwks_lacks_is_named(kid: str) -> None:
    token = f"{part({'alg': 'RS256', 'kid': kid})}.{part(GOOD)}.AAAA"
    text = SIGNER_FOR.format(kid.replace("\ud800", "?"))

    assert texts(token, WITH_JWKS) == (text, f"JwtSignerError: {text}", text)
    assert refusal(token, WITH_JWKS).unknown_kid == kid


def test_an_asymmetric_token_without_any_jwks_has_no_signer() -> None:
    assert texts(asymmetric("RS256", RSA))[0] == SIGNER
    assert texts(asymmetric("RS256", RSA), KeySet([SECRET], {"keys": []}))[0] == (
        SIGNER_FOR.format("rsa")
    )


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "hs256", "PS256", "ES256K", "HS1"])
def test_other_algorithms_are_refused(alg: str) -> None:
    for signature in ("", "AAAA"):
        token = f"{part({'alg': alg, 'kid': 'rsa'})}.{part(GOOD)}.{signature}"
        assert texts(token, WITH_JWKS) == (SIGNER, f"JwtSignerError: {SIGNER}", SIGNER)


@pytest.mark.parametrize("header", [{}, {"alg": None}, {"alg": 1}, {"alg": ["HS256"]}])
def test_a_header_that_names_no_algorithm_is_refused(header: dict[str, Any]) -> None:
    assert texts(f"{part(header)}.{part(GOOD)}.AAAA")[0] == SIGNER


def test_a_public_key_is_no_secret_for_hmac() -> None:
    # The classic confusion: the attacker knows the public key and signs with its bytes.
    for encoding in ("PEM", "DER"):
        public = RSA.as_bytes(encoding=encoding, private=False)
        token = signed(GOOD, secret=public, kid="rsa")
        assert texts(token, WITH_JWKS)[0] == SIGNATURE
        assert texts(token, KeySet([], JWKS))[0] == SIGNER
        with pytest.raises(UnusableKey):
            KeySet([public])


def test_a_key_of_another_curve_or_purpose_has_no_signer() -> None:
    for alg, kid in [("ES256", "ec384"), ("Ed448", "ed"), ("EdDSA", "x")]:
        token = f"{part({'alg': alg, 'kid': kid})}.{part(GOOD)}.{'A' * 86}"
        assert texts(token, WITH_JWKS)[0] == SIGNER


def test_what_a_header_calls_critical_is_not_understood() -> None:
    assert texts(signed(GOOD, crit=["b64"], b64=False))[0] == SIGNER


def test_without_a_secret_nothing_is_signed_with_it() -> None:
    assert texts(signed(GOOD), KeySet())[0] == SIGNER
    assert texts(signed(GOOD, secret=b""), KeySet())[0] == SIGNER


# Rotation


def test_every_one_of_several_secrets_is_good() -> None:
    keys = KeySet([OTHER_SECRET, SECRET])

    assert verify(signed(GOOD), keys, NOW)
    assert verify(signed(GOOD, secret=OTHER_SECRET), keys, NOW)
    assert refusal(signed(GOOD, secret="a third one"), keys).close == SIGNATURE


def test_every_one_of_several_keys_of_a_kid_is_good() -> None:
    twin = ECKey.generate_key("P-256", {"kid": "ec"})
    keys = KeySet([], {"keys": [key.as_dict(private=False) for key in (EC["ES256"], twin)]})

    assert verify(asymmetric("ES256", EC["ES256"]), keys, NOW)
    assert verify(asymmetric("ES256", twin), keys, NOW)


def test_a_wrong_signature_tells_of_a_kid_that_may_be_new() -> None:
    token = signed(GOOD, secret=OCT_SECRET, kid="new")

    assert refusal(token, WITH_JWKS).unknown_kid == "new"
    assert refusal(token).unknown_kid is None, "there is no JWKS that could have it"
    assert refusal(signed(GOOD, kid="oct"), WITH_JWKS).unknown_kid is None


def test_keys_that_nobody_could_use_are_left_out() -> None:
    odd = [
        None,
        {"kty": "EC", "kid": "a"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "oct", "kid": "b", "k": "ä"},
        {"kty": "oct", "kid": "c", "k": ""},
        {"kty": "RSA", "kid": "d", "n": "AA", "e": "AQAB"},
        {"kty": "EC", "kid": "e", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        {"kty": ["EC"], "kid": "f"},
    ]
    keys = KeySet([], {"keys": [*odd, RSA.as_dict(private=False)]})

    assert len(keys.skipped) == len(odd)
    assert verify(asymmetric("RS256", RSA), keys, NOW)


def test_a_jwks_key_verifies_whatever_its_other_members_say() -> None:
    jwk = {**RSA.as_dict(private=True), "use": "enc", "key_ops": ["sign"], "alg": "PS256"}

    assert verify(asymmetric("RS256", RSA), KeySet([], {"keys": [jwk]}), NOW)


@pytest.mark.parametrize("jwks", [{}, {"keys": None}, {"keys": {}}, [], "keys"])
def test_what_is_no_jwks_is_said_so(jwks: Any) -> None:
    with pytest.raises(UnusableKey):
        KeySet([], jwks)


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(UnusableKey, match="the secret is empty"):
        KeySet([""])
    with pytest.raises(UnusableKey, match="the secret is empty"):
        mint("", role="anon", now=NOW)


# Form


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "..",
        f"{part({'alg': 'HS256'})}.{part(GOOD)}",
        f"{part({'alg': 'HS256'})}.{part(GOOD)}.a b!",
        f"{part({'alg': 'HS256'})}.{part(GOOD)}.A",
        f"{part('[]')}.{part(GOOD)}.AAAA",
        f"{part({'alg': 'HS256'})}.{part('[1]')}.AAAA",
        f"{part({'alg': 'HS256'})}.{part('null')}.AAAA",
        unsigned(part("{")),
        unsigned(part("[" * 30_000)),
        unsigned(base64.urlsafe_b64encode(b'{"a":"\xff"}').decode().rstrip("=")),
        signed('{"exp": NaN}'),
        signed('{"exp": ' + "9" * 5000 + "}"),
        signed(GOOD) + "=",
        signed(GOOD).replace(".", "%ZZ."),
        signed(GOOD) + "%00",
        signed(GOOD) + "\u00a0",
        "ä" + signed(GOOD),
        "\ud800" + signed(GOOD),
        signed({**GOOD, "filler": "x" * 70_000}),
    ],
    ids=lambda token: token[:12] or "empty",
)
def test_what_is_no_jwt_is_malformed(token: str) -> None:
    assert texts(token) == (MALFORMED, f"MalformedJWT: {MALFORMED}", MALFORMED)


def test_whitespace_is_removed_and_percent_escapes_are_decoded_first() -> None:
    token = signed(GOOD)
    odd = f" {token[:9]}\r\n\t{token[9:20]}%20%0A%2e".replace("%2e", "") + token[20:] + "\n"

    assert verify(odd.replace(".", "%2E"), KEYS, NOW).sub == "ann"


# Times


@pytest.mark.parametrize("exp", [NOW + 1, NOW + 0.5, NOW + 1e6, 10**300])
def test_exp_in_the_future_after_rounding_is_good(exp: float) -> None:
    assert verify(signed({**GOOD, "exp": exp}), KEYS, NOW).exp > NOW


@pytest.mark.parametrize(
    ("exp", "ago"), [(NOW, 0), (NOW + 0.49, 0), (NOW - 1, 1), (NOW - 90.5, 90), (1, NOW - 1)]
)
def test_exp_not_in_the_future_has_expired(exp: float, ago: int) -> None:
    text = f"Token has expired {ago} seconds ago"

    assert texts(signed({**GOOD, "exp": exp})) == (
        "Token has expired",
        f"InvalidJWTToken: {text}",
        text,
    )


@pytest.mark.parametrize("exp", [0, -1, 0.4, -0.5, -1e300, "1e400", True, None, "soon", [], {}])
def test_exp_that_is_no_time_is_invalid(exp: object) -> None:
    claims = json.dumps({**GOOD, "exp": exp}).replace('"1e400"', "1e400")

    assert texts(signed(claims)) == (
        "Token has expired",
        "InvalidJWTToken: Token expiration time is invalid",
        "Token expiration time is invalid",
    )


@pytest.mark.parametrize("iat", [0, NOW - 5, NOW + 5, NOW + 0.25, -7])
def test_iat_may_be_any_number(iat: float) -> None:
    assert verify(signed({**GOOD, "iat": iat}), KEYS, NOW)


@pytest.mark.parametrize("iat", ["yesterday", None, True, []])
def test_iat_that_is_no_number_is_refused(iat: object) -> None:
    assert refusal(signed({**GOOD, "iat": iat})).close == MALFORMED


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"exp": NOW + 60},
        {"role": "anon"},
        {"role": None, "exp": NOW + 60},
        {"role": 7, "exp": NOW + 60},
    ],
    ids=str,
)
def test_role_and_exp_are_required(claims: dict[str, Any]) -> None:
    assert texts(signed(claims)) == (MISSING, f"InvalidJWTToken: {MISSING}", MISSING)


def test_a_sub_is_not_required() -> None:
    assert verify(signed({"role": "anon", "exp": NOW + 1}), KEYS, NOW).sub is None
    assert verify(signed({**GOOD, "sub": 7}), KEYS, NOW).sub is None


# Order of the checks: form, signer, signature, exp and iat, missing claims


def test_form_is_checked_before_the_signer() -> None:
    assert refusal(f"{part({'alg': 'none'})}.{part([])}.").close == MALFORMED


def test_the_signer_is_checked_before_the_signature() -> None:
    assert refusal(f"{part({'alg': 'none'})}.{part({'exp': 1})}.AAAA").close == SIGNER


def test_the_signature_is_checked_before_the_times() -> None:
    assert refusal(signed({"exp": 1}, secret="wrong")).close == SIGNATURE


def test_exp_is_checked_before_missing_claims() -> None:
    assert refusal(signed({"exp": 1})).handshake == "Token has expired"


def test_iat_is_checked_before_missing_claims() -> None:
    assert refusal(signed({"iat": "x"})).close == MALFORMED


# Whatever comes


def base64_parts() -> st.SearchStrategy[str]:
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
    headers = st.fixed_dictionaries(
        {
            "alg": st.sampled_from(["HS256", "RS256", "ES256", "EdDSA", "Ed448", "none"])
            | json_values
        },
        optional={"kid": st.sampled_from(["rsa", "ec", "ed", "oct"]) | json_values},
    )
    claims = st.fixed_dictionaries(
        {}, optional={"role": json_values, "exp": json_values, "iat": json_values}
    )
    three = st.tuples(
        headers.map(part) | st.text(),
        claims.map(part) | st.text(),
        st.binary().map(lambda signature: base64.urlsafe_b64encode(signature).decode().rstrip("=")),
    ).map(".".join)
    return three | st.text() | st.text(string.ascii_letters + ".%-_= \n")


@given(base64_parts())
def test_no_string_raises_anything_but_a_token_error(token: str) -> None:
    with pytest.raises(TokenError):
        verify(token, WITH_JWKS, NOW)


@given(
    st.dictionaries(
        st.sampled_from(["role", "exp", "iat", "sub"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_no_signed_claims_raise_anything_but_a_token_error(claims: dict[str, Any]) -> None:
    try:
        found = verify(signed(claims), KEYS, NOW)
    except TokenError:
        return
    assert found.exp > NOW
    assert found.role == claims["role"]


@given(st.integers(0, 10_000))
def test_no_changed_character_leaves_a_token_good(position: int) -> None:
    token = signed(GOOD)
    position %= len(token) - 1  # the last one has two bits that say nothing
    other = "A" if token[position] != "A" else "B"

    refusal(token[:position] + other + token[position + 1 :])


# The cache


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified in full."""
    seen: list[str] = []
    original = tokens.verify

    def counted(token: str, keys: KeySet, now: float) -> tokens.Claims:
        seen.append(token)
        return original(token, keys, now)

    monkeypatch.setattr(tokens, "verify", counted)
    return seen


def test_a_token_that_was_good_is_verified_once(verifications: list[str]) -> None:
    cache, token = VerifiedTokens(), signed(GOOD)

    assert cache.verify(token, KEYS, NOW) is cache.verify(token, KEYS, NOW + 30)
    assert verifications == [token]


def test_a_remembered_token_still_expires() -> None:
    cache, token = VerifiedTokens(), signed(GOOD)
    cache.verify(token, KEYS, NOW + 59)

    with pytest.raises(TokenError) as raised:
        cache.verify(token, KEYS, NOW + 60)
    assert raised.value.close == "Token has expired 0 seconds ago"
    assert len(cache) == 0

    with pytest.raises(TokenError) as raised:
        cache.verify(token, KEYS, NOW + 62.9)
    assert raised.value.close == "Token has expired 2 seconds ago"


def test_bad_tokens_are_not_remembered() -> None:
    cache = VerifiedTokens()
    for token in ("x", signed(GOOD, secret="wrong"), signed({})):
        with pytest.raises(TokenError):
            cache.verify(token, KEYS, NOW)

    assert len(cache) == 0


def test_new_keys_make_the_cache_forget() -> None:
    cache, token = VerifiedTokens(), signed(GOOD)
    cache.verify(token, KEYS, NOW)

    with pytest.raises(TokenError):
        cache.verify(token, KeySet([OTHER_SECRET]), NOW)


def test_the_cache_forgets_the_least_recently_used(verifications: list[str]) -> None:
    cache = VerifiedTokens(max_tokens=2)
    first, second, third = (signed({**GOOD, "sub": name}) for name in "abc")
    for token in (first, second, first, third, first, second):
        cache.verify(token, KEYS, NOW)

    assert verifications == [first, second, third, second]
    assert len(cache) == 2


def test_a_huge_token_is_good_but_not_remembered() -> None:
    cache = VerifiedTokens()

    assert cache.verify(signed({**GOOD, "filler": "x" * 9_000}), KEYS, NOW)
    assert len(cache) == 0


# sb_ keys and minting


@pytest.mark.parametrize("token", ["sb_publishable_1", "sb_secret_2", "", None, 7, {}])
def test_no_token_and_sb_keys_stand_for_the_key_of_the_connection(token: object) -> None:
    assert stands_for_connection_key(token)
    assert token_that_counts(token, "the key") == "the key"


def test_a_token_of_the_join_counts_more_than_the_key() -> None:
    assert not stands_for_connection_key("eyJ")
    assert token_that_counts("eyJ", "the key") == "eyJ"


def test_a_minted_token_is_good_until_its_time_is_over() -> None:
    token = mint(SECRET, role="authenticated", sub="ann", now=NOW, ttl_seconds=10)
    claims = verify(token, KEYS, NOW)

    assert json.loads(claims.json) == {
        "role": "authenticated",
        "sub": "ann",
        "iat": NOW,
        "exp": NOW + 10,
    }
    assert refusal(token, now=NOW + 10).close == "Token has expired 0 seconds ago"


def test_a_minted_token_takes_more_claims_and_a_kid() -> None:
    token = mint(
        OCT_SECRET,
        role="anon",
        now=NOW,
        claims={"exp": NOW + 5, "a": [1]},
        algorithm="HS512",
        kid="oct",
    )

    claims = verify(token, WITH_JWKS, NOW)
    assert (claims.exp, json.loads(claims.json)["a"]) == (NOW + 5, [1])


@pytest.mark.parametrize("algorithm", ["none", "RS256", "HS1"])
def test_only_a_shared_secret_mints(algorithm: str) -> None:
    with pytest.raises(UnusableKey):
        mint(SECRET, role="anon", now=NOW, algorithm=algorithm)


def test_a_short_secret_makes_no_noise() -> None:
    # Warnings are errors in these tests.
    assert verify(mint("short", role="anon", now=NOW), KeySet(["short"]), NOW)
