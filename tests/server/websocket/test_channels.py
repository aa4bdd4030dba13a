"""Joining, leaving and what goes wrong with it (PROTOCOL 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])


# phx_join


@BOTH
def test_a_join_is_answered_with_no_changes(
    client: Callable[..., Client], topic: str, vsn: str
) -> None:
    joined = client(vsn=vsn)
    joined.join(topic)
    joined.heartbeat()  # nothing else came


@pytest.mark.parametrize("sub_topic", ["a:b:c", "a/b", "two words", "ünï✓", "realtime:x", "'; --"])
def test_a_topic_is_any_text(client: Callable[..., Client], sub_topic: str) -> None:
    one = client()
    one.join(sub_topic, {"broadcast": {"self": True}})
    one.broadcast(sub_topic, "e", {"n": 1})
    assert one.receive().topic == f"realtime:{sub_topic}"


def test_a_join_without_join_ref_counts_by_its_ref(
    client: Callable[..., Client], topic: str
) -> None:
    one = client()
    one.send(f"realtime:{topic}", "phx_join", {}, ref="7")
    assert one.receive().join_ref == "7"
    one.send(f"realtime:{topic}", "phx_leave", {}, ref="8")
    assert [one.receive().join_ref for _ in range(2)] == ["7", "7"]


def test_parts_of_the_wrong_type_do_not_refuse_a_join(
    client: Callable[..., Client], topic: str
) -> None:
    config = {"broadcast": 1, "presence": [], "postgres_changes": "x", "private": "false", "new": 1}
    client().join(topic, config, user_token=None)


def test_booleans_may_be_strings(client: Callable[..., Client], topic: str) -> None:
    one = client()
    one.join(topic, {"broadcast": {"ack": "TRUE", "self": "True"}, "private": "FALSE"})
    one.broadcast(topic, ref="b")
    events = {one.receive().event, one.receive().event}
    assert events == {"broadcast", "phx_reply"}


def test_requested_changes_are_answered_with_ids_and_an_honest_error(
    client: Callable[..., Client], topic: str
) -> None:
    wanted = [
        {"event": "*", "schema": "public", "table": "t", "filter": "id=eq.1"},
        {"event": "INSERT", "schema": "public"},
    ]
    one = client()
    frame = one.ask_to_join(topic, {"postgres_changes": [wanted[0], None, wanted[1]]}, ref="1")
    given = frame.payload["response"]["postgres_changes"]
    assert all(isinstance(item["id"], int) for item in given)
    assert given == [{**item, "id": got["id"]} for item, got in zip(wanted, given, strict=True)]
    system = one.receive()
    assert (system.event, system.join_ref, system.ref) == ("system", "1", None)
    assert system.payload == {
        "extension": "postgres_changes",
        "status": "error",
        "message": "postgres_changes are not served here: use broadcast triggers",
        "channel": topic,
    }


@BOTH
def test_replication_ready_is_told(client: Callable[..., Client], topic: str, vsn: str) -> None:
    one = client(vsn=vsn)
    ref = one.join(topic, {"broadcast": {"replication_ready": True}})
    frame = one.receive()
    assert (frame.event, frame.ref) == ("system", None)
    assert frame.join_ref == (ref if vsn == "2.0.0" else None)
    assert frame.payload == {
        "extension": "system",
        "status": "ok",
        "message": "Replication connection established",
        "channel": topic,
    }


# Refusals, in the order of the checks


def test_a_topic_needs_a_name(client: Callable[..., Client]) -> None:
    one = client()
    assert one.refused("") == "TopicNameRequired: You must provide a topic name"
    one.heartbeat()


def test_a_topic_of_ten_thousand_characters_is_refused(client: Callable[..., Client]) -> None:
    one = client()
    assert one.refused("ä" * 10_000) == (
        "TopicNameTooLong: A topic has at most 246 bytes, this one 20000"
    )
    one.join("x" * 246)
    assert one.refused("x" * 247).startswith("TopicNameTooLong")


def test_private_only_refuses_public_channels(
    start_server: Callable[..., Server],
    open_client: Callable[..., Client],
    database: Database,
    user: Callable[[str], str],
    topic: str,
) -> None:
    one = open_client(start_server("--private-only"), key=user("ann"))
    reason = "PrivateOnly: This project only allows private channels"
    assert one.refused(topic) == one.refused(topic, access_token="no.jwt.here") == reason
    assert one.refused("") == "TopicNameRequired: You must provide a topic name"
    database.grant(topic, "ann", "read broadcast")
    one.join(topic, {"private": True})


def test_a_private_channel_needs_the_right_to_read(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = client(key=user("ann"))
    one.join(topic, {"private": True})
    other = client(key=user("bob"))
    reason = f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"
    assert other.refused(topic, {"private": True}) == reason
    other.heartbeat()
    other.join(topic, {"private": True}, access_token=user("ann"))


def test_the_right_to_read_presence_is_enough_to_join_but_brings_no_broadcasts(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read presence")
    database.grant(topic, "bob", "read broadcast")
    ann, bob = client(key=user("ann")), client(key=user("bob"))
    ann.join(topic, {"private": True})
    bob.join(topic, {"private": True})
    database.send(topic, private=True)
    assert bob.receive().event == "broadcast"
    ann.heartbeat()


def test_a_policy_that_raises_denies(
    client: Callable[..., Client], user: Callable[[str], str]
) -> None:
    assert client(key=user("ann")).refused("broken", {"private": True}) == (
        "Unauthorized: You do not have permissions to read from this Channel topic: broken"
    )


@pytest.mark.parametrize("role", ["nobody_such", "app", "postgres", "pg_monitor", "'; drop x; --"])
def test_a_role_that_does_not_exist_or_is_not_for_tokens_is_denied(
    client: Callable[..., Client], token: Callable[..., str], role: str, topic: str
) -> None:
    assert client(key=token(role)).refused(topic, {"private": True}) == (
        f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"
    )


def test_policies_see_the_headers_of_the_handshake(
    client: Callable[..., Client], user: Callable[[str], str]
) -> None:
    private = {"private": True}
    client(key=user("ann"), headers={"X-Tenant": "acme"}).join("by-header", private)
    assert client(key=user("ann"), headers={"X-Tenant": "other"}).refused("by-header", private)


SQL = "'); drop table realtime.messages; -- $$ \\' \" %s {} \u0007"


def test_sql_in_topics_claims_and_headers_is_harmless(
    client: Callable[..., Client], database: Database, token: Callable[..., str]
) -> None:
    key = token("authenticated", SQL, role2=SQL)
    database.grant(SQL, SQL, "read broadcast", "write broadcast")
    header = SQL.replace("\u0007", "")
    one = client(key=key, headers={"x-evil": header})
    one.join(SQL, {"private": True, "broadcast": {"ack": True}})
    one.broadcast(SQL, SQL, {SQL: SQL}, ref="1")
    assert one.receive().payload["status"] == "ok"
    assert database.send(SQL, private=True)
    assert one.receive().payload["meta"]


def test_a_topic_that_postgres_has_no_text_for_is_denied(
    client: Callable[..., Client], user: Callable[[str], str]
) -> None:
    one = client(key=user("ann"))
    assert one.refused("nul\u0000", {"private": True}).startswith("Unauthorized")
    one.join("nul\u0000")


# Joining again, leaving, and what is not joined


@BOTH
def test_joining_a_joined_topic_closes_the_old_channel_first(
    client: Callable[..., Client], topic: str, vsn: str
) -> None:
    one = client(vsn=vsn)
    first = one.join(topic)
    one.send(f"realtime:{topic}", "phx_join", {}, ref="again", join_ref="again")
    closed, reply = one.receive(), one.receive()
    assert (closed.event, closed.ref, closed.payload) == ("phx_close", first, {})
    assert (reply.event, reply.ref) == ("phx_reply", "again")
    if vsn == "2.0.0":
        assert (closed.join_ref, reply.join_ref) == (first, "again")


def test_a_topic_joined_again_gets_messages_once(
    client: Callable[..., Client], database: Database, topic: str
) -> None:
    one = client()
    one.join(topic)
    one.send(f"realtime:{topic}", "phx_join", {}, ref="again", join_ref="again")
    assert [one.receive().event for _ in range(2)] == ["phx_close", "phx_reply"]
    database.send(topic)
    assert one.receive().event == "broadcast"
    one.heartbeat()


def test_a_join_that_is_overtaken_by_another_leaves_nothing_behind(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = client(key=user("ann"))
    replay = {"private": True, "broadcast": {"replay": {"since": 1}}}
    for ref in "123":
        one.send(f"realtime:{topic}", "phx_join", {"config": replay}, ref=ref, join_ref=ref)
    while (frame := one.receive()).ref != "3":
        assert frame.ref in "12"
    database.send(topic, private=True)
    assert one.receive().event == "broadcast"
    one.heartbeat()


@BOTH
def test_a_leave_is_answered_and_the_channel_closed(
    client: Callable[..., Client], database: Database, topic: str, vsn: str
) -> None:
    one = client(vsn=vsn)
    ref = one.join(topic)
    reply = one.push(f"realtime:{topic}", "phx_leave")
    assert reply.payload == {"status": "ok", "response": {}}
    closed = one.receive()
    assert (closed.event, closed.ref, closed.payload) == ("phx_close", ref, {})
    if vsn == "2.0.0":
        assert reply.join_ref == closed.join_ref == ref
    other = client()
    other.join(topic)
    database.send(topic)
    assert other.receive().event == "broadcast"
    one.heartbeat()


def test_a_leave_right_behind_a_private_join_comes_after_its_reply(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read broadcast")
    one = client(key=user("ann"))
    config = {"config": {"private": True}}
    one.send(f"realtime:{topic}", "phx_join", config, ref="1", join_ref="1")
    one.send(f"realtime:{topic}", "phx_leave", ref="2", join_ref="1")
    frames = [one.receive() for _ in range(3)]
    assert [(frame.event, frame.ref) for frame in frames] == [
        ("phx_reply", "1"),
        ("phx_reply", "2"),
        ("phx_close", "1"),
    ]


def test_pushes_behind_a_join_that_is_refused_are_unmatched(
    client: Callable[..., Client], user: Callable[[str], str], topic: str
) -> None:
    one = client(key=user("ann"))
    config = {"config": {"private": True}}
    one.send(f"realtime:{topic}", "phx_join", config, ref="1", join_ref="1")
    one.broadcast(topic, ref="2", join_ref="1")
    one.send(f"realtime:{topic}", "phx_leave", ref="3", join_ref="1")
    assert one.receive().payload["response"]["reason"].startswith("Unauthorized")
    assert one.receive().payload == {
        "status": "error",
        "response": {"reason": "unmatched topic"},
    }
    assert one.receive().payload == {"status": "ok", "response": {}}


@BOTH
@pytest.mark.parametrize("event", ["broadcast", "access_token", "presence", "anything"])
def test_a_push_to_a_topic_that_is_not_joined_is_unmatched(
    client: Callable[..., Client], topic: str, vsn: str, event: str
) -> None:
    reply = client(vsn=vsn).push(f"realtime:{topic}", event)
    assert reply.payload == {"status": "error", "response": {"reason": "unmatched topic"}}
    assert reply.join_ref is None


@pytest.mark.parametrize("full", ["room", "phoenix", "", "Realtime:room", "presence:room"])
def test_a_join_of_a_topic_without_the_prefix_is_unmatched(
    client: Callable[..., Client], full: str
) -> None:
    one = client()
    one.send(full, "phx_join", {}, ref="1", join_ref="1")
    frame = one.receive()
    assert (frame.topic, frame.ref, frame.join_ref) == (full, "1", None)
    assert frame.payload == {"status": "error", "response": {"reason": "unmatched topic"}}


def test_a_leave_of_a_topic_that_is_not_joined_is_answered_ok(
    client: Callable[..., Client], topic: str
) -> None:
    reply = client().push(f"realtime:{topic}", "phx_leave")
    assert reply.payload == {"status": "ok", "response": {}}
    assert reply.join_ref is None


def test_an_unknown_event_is_ignored(client: Callable[..., Client], topic: str) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}})
    one.send(f"realtime:{topic}", "wave", {"a": 1}, ref="9")
    one.heartbeat()
    one.broadcast(topic)
    assert one.receive().event == "broadcast"


def test_a_stale_join_ref_on_a_push_is_accepted(client: Callable[..., Client], topic: str) -> None:
    one = client()
    one.join(topic, {"broadcast": {"self": True}})
    one.broadcast(topic, join_ref="stale")
    assert one.receive().event == "broadcast"


def test_ten_thousand_channels_on_one_socket(client: Callable[..., Client], topic: str) -> None:
    one = client()
    for number in range(10_000):
        one.send(f"realtime:{topic}:{number}", "phx_join", {}, ref=str(number))
    for number in range(10_000):
        frame = one.receive()
        assert (frame.ref, frame.payload["status"]) == (str(number), "ok")
    one.broadcast(f"{topic}:9999", ref="x")
    other = client()
    other.join(f"{topic}:5000")
    other.broadcast(f"{topic}:5000", "hello")
    assert one.receive().payload["event"] == "hello"
