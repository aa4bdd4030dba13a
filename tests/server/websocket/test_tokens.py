"""Tokens of channels: at the join, renewed, and at their end (PROTOCOL 5 and 6)."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
MISSING = "Fields `role` and `exp` are required in JWT"


def renew(one: Client, topic: str, token: Any) -> None:
    one.send(f"realtime:{topic}", "access_token", {"access_token": token})


def ended(one: Client, topic: str, join_ref: str) -> str:
    """The channel is ended by the server; returns the message."""
    system, closed = one.receive(), one.receive()
    assert (system.event, system.topic, system.ref) == ("system", f"realtime:{topic}", None)
    assert set(system.payload) == {"extension", "status", "message", "channel"}
    assert (system.payload["extension"], system.payload["status"]) == ("system", "error")
    assert system.payload["channel"] == topic
    assert (closed.event, closed.payload, closed.ref) == ("phx_close", {}, join_ref)
    if one.v2:
        assert system.join_ref == closed.join_ref == join_ref
    reply = one.push(f"realtime:{topic}", "broadcast")
    assert reply.payload["response"] == {"reason": "unmatched topic"}
    return str(system.payload["message"])


# At the join


@pytest.mark.parametrize("name", ["access_token", "user_token"])
def test_the_token_of_the_join_counts(
    client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
    name: str,
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = client()
    one.join(topic, {"private": True}, **{name: user("ann")})
    other = client(key=user("ann"))
    assert other.refused(topic, {"private": True}, **{name: user("bob")}).startswith("Unauth")


@pytest.mark.parametrize("stand_in", [None, "sb_publishable_abc", "sb_secret_abc"])
def test_without_a_token_the_key_of_the_connection_counts(
    client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
    stand_in: str | None,
) -> None:
    database.grant(topic, "ann", "read broadcast")
    client(key=user("ann")).join(topic, {"private": True}, access_token=stand_in)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_bad_token_refuses_the_join_with_its_reason(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    one = client()

    def reason(bad: str) -> str:
        return str(one.refused(topic, access_token=bad))

    assert reason("x.y.z") == "MalformedJWT: The token provided is not a valid JWT"
    assert reason(token(secret="another")) == (
        "JwtSignatureError: Failed to validate JWT signature"
    )
    assert re.fullmatch(
        r"InvalidJWTToken: Token has expired ([7-9]|\d\d) seconds ago",
        reason(token(ttl_seconds=-7)),
    )
    assert reason(token(role=None)) == f"InvalidJWTToken: {MISSING}"
    assert reason(token(exp=0)) == "InvalidJWTToken: Token expiration time is invalid"
    assert reason(token(exp=-5)) == "InvalidJWTToken: Token expiration time is invalid"
    assert reason(f"{part({'alg': 'none'})}.{part({'role': 'anon', 'exp': 9e9})}.") == (
        "JwtSignerError: Failed to generate JWT signer, check your JWT secret or JWKS configuration"
    )
    one.heartbeat()
    one.join(topic)


def test_the_token_is_checked_before_the_policies_and_after_the_name(
    client: Callable[..., Client], topic: str
) -> None:
    one = client()
    assert one.refused(topic, {"private": True}, access_token="x").startswith("MalformedJWT")
    assert one.refused("", access_token="x").startswith("TopicNameRequired")


def test_decimals_and_a_far_future_are_good(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    now = time.time()
    client(key=token(exp=now + 100.5, iat=now - 0.5)).join(topic)
    client(key=token(exp=10**400)).join(topic)


# Renewal


def test_a_good_token_is_taken_without_a_word(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    database.grant(topic, "bob", "read broadcast", "write broadcast")
    one = client(key=user("ann"))
    one.join(topic, {"private": True, "broadcast": {"self": True}})
    one.broadcast(topic, "denied")
    renew(one, topic, user("bob"))
    one.broadcast(topic, "granted")  # the right to write was forgotten
    assert one.receive().payload["event"] == "granted"
    renew(one, topic, user("ann"))
    one.broadcast(topic, "denied")
    renew(one, topic, user("bob"))
    one.broadcast(topic, "granted again")
    assert one.receive().payload["event"] == "granted again"


@pytest.mark.parametrize("ignored", [None, "sb_publishable_x", 1, {}, []])
def test_what_is_no_token_is_ignored(
    client: Callable[..., Client], topic: str, ignored: Any
) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}})
    renew(one, topic, ignored)
    one.send(f"realtime:{topic}", "access_token", {})
    one.send(f"realtime:{topic}", "access_token", [1])
    one.heartbeat()
    one.broadcast(topic)
    assert one.receive().event == "broadcast"


def test_the_token_in_use_is_ignored(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    key = user("ann")
    one = client(key=key)
    one.join(topic, {"private": True})
    database.revoke(topic)
    renew(one, topic, key)
    one.heartbeat()
    database.send(topic, private=True)
    assert one.receive().event == "broadcast"


@BOTH
def test_a_bad_token_ends_the_channel_and_no_other(
    client: Callable[..., Client], token: Callable[..., str], topic: str, vsn: str
) -> None:
    one = client(vsn=vsn)
    one.join(f"{topic}:other", {"broadcast": {"self": True}})
    messages = []
    for bad in ("x", token(role=None), token(secret="another"), token(ttl_seconds=-7)):
        ref = one.join(topic)
        renew(one, topic, bad)
        messages.append(ended(one, topic, ref))
    assert messages[:3] == [
        "The token provided is not a valid JWT",
        MISSING,
        "Failed to validate JWT signature",
    ]
    assert re.fullmatch(r"Token has expired ([7-9]|\d\d) seconds ago", messages[3])
    one.broadcast(f"{topic}:other")
    assert one.receive().event == "broadcast"


def test_a_token_that_may_read_nothing_ends_a_private_channel(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = client(key=user("ann"))
    ref = one.join(topic, {"private": True})
    renew(one, topic, user("bob"))
    assert ended(one, topic, ref) == (
        f"You do not have permissions to read from this Channel topic: {topic}"
    )


@pytest.mark.parametrize("kept", ["broadcast", "presence"])
def test_a_token_that_may_read_less_ends_a_private_channel(
    client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
    kept: str,
) -> None:
    database.grant(topic, "ann", "read broadcast", "read presence")
    database.grant(topic, "bob", f"read {kept}")
    one = client(key=user("ann"))
    ref = one.join(topic, {"private": True})
    renew(one, topic, user("bob"))
    assert ended(one, topic, ref) == (
        f"You no longer have permission to read from this Channel topic: {topic}"
    )


def test_a_token_that_may_read_more_brings_broadcasts(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read presence")
    database.grant(topic, "bob", "read broadcast", "read presence")
    one = client(key=user("ann"))
    one.join(topic, {"private": True})
    renew(one, topic, user("bob"))
    # Waits behind the question, so that its reply says that it was answered.
    one.push(f"realtime:{topic}", "presence", {"event": "untrack"})
    database.send(topic, private=True)
    assert one.receive().event == "broadcast"


def test_public_channels_are_never_checked_against_policies(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}})
    renew(one, topic, token("nobody_such"))
    one.broadcast(topic)
    assert one.receive().event == "broadcast"


def test_a_channel_joined_again_while_its_new_token_is_checked_leaves_nothing_behind(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    database.grant(topic, "bob", "read broadcast")
    one = client(key=user("ann"))
    one.join(topic, {"private": True})
    renew(one, topic, user("bob"))
    private = {"config": {"private": True}}
    one.send(f"realtime:{topic}", "phx_join", private, ref="again", join_ref="again")
    assert [one.receive().event for _ in range(2)] == ["phx_close", "phx_reply"]
    database.send(topic, private=True)
    assert one.receive().event == "broadcast"
    one.heartbeat()


def test_a_token_cannot_be_renewed_while_the_database_does_not_answer(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = open_client(start_server("--statement-timeout-seconds", "3"), key=user("ann"))
    ref = one.join(topic, {"private": True})
    with database.connection.transaction():
        database.execute("lock table realtime.messages in access exclusive mode")
        renew(one, topic, user("bob"))
        assert ended(one, topic, ref) == "Query was cancelled, please try again"


# The end


@BOTH
def test_a_channel_ends_with_its_token_and_the_others_stay(
    client: Callable[..., Client], token: Callable[..., str], topic: str, vsn: str
) -> None:
    one = client(vsn=vsn, key=token(ttl_seconds=5))
    one.join(f"{topic}:long", {"broadcast": {"self": True}}, access_token=token())
    ref = one.join(topic)
    assert re.fullmatch(r"Token has expired \d+ seconds ago", ended(one, topic, ref))
    # The key of the connection has ended too, but this channel has its own.
    one.broadcast(f"{topic}:long")
    assert one.receive().event == "broadcast"
    assert one.refused(topic).startswith("InvalidJWTToken: Token has expired")


def test_a_renewed_token_puts_off_the_end(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}}, access_token=token(ttl_seconds=5))
    renew(one, topic, token())
    ref = one.join(f"{topic}:short", access_token=token(ttl_seconds=5))
    assert ended(one, f"{topic}:short", ref)
    one.broadcast(topic)
    assert one.receive().event == "broadcast"


def test_a_renewed_token_brings_the_end_forward(
    client: Callable[..., Client], token: Callable[..., str], topic: str
) -> None:
    one = client()
    ref = one.join(topic)
    renew(one, topic, token(ttl_seconds=2))
    assert re.fullmatch(r"Token has expired \d+ seconds ago", ended(one, topic, ref))
