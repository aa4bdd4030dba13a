"""What `phx_join` asks for: what clients send, and everything that they might."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.cursors import Cursor, Horizon, Snapshot
from realtime_db.protocol.join import (
    REPLAY_NOT_VALID,
    REPLAY_ON_PUBLIC_CHANNEL,
    Join,
    Replay,
    asks_for_cursor,
    parse_join,
)
from realtime_db.protocol.pushes import MalformedFrame

WRONG = [None, 1, 0, "", "yes", [], {}, [True], 1.5]


def parse(payload: object, *, max_replay: int = 25) -> Join:
    return parse_join(json.dumps(payload).encode(), max_replay=max_replay)


def config(**parts: object) -> Join:
    return parse({"config": parts})


def replay(value: object, *, private: object = True) -> Join:
    return config(private=private, broadcast={"replay": value})


# What clients send.


def test_the_join_of_realtime_js_is_read() -> None:
    payload = (
        b'{"config":{"broadcast":{"ack":false,"self":true,"replay":{"since":1700000000000,'
        b'"limit":10}},"presence":{"key":"me","enabled":true},"postgres_changes":[{"event":"*",'
        b'"schema":"public","table":"t","filter":"id=eq.1"}],"private":true}}'
    )
    assert parse_join(payload) == Join(
        private=True,
        broadcast_self=True,
        replay=Replay(1_700_000_000_000, 10),
        presence_enabled=True,
        presence_key="me",
        postgres_changes=({"event": "*", "schema": "public", "table": "t", "filter": "id=eq.1"},),
    )


def test_the_join_of_realtime_py_is_read() -> None:
    payload = (
        b'{"config":{"broadcast":{"ack":true,"self":false},"presence":{"key":"","enabled":false},'
        b'"private":true,"postgres_changes":[]},"access_token":"k"}'
    )
    assert parse_join(payload) == Join(private=True, broadcast_ack=True, access_token="k")


def test_everything_is_optional() -> None:
    assert parse({}) == parse({"config": {}}) == Join()


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert Join() == Join(
        private=False,
        broadcast_ack=False,
        broadcast_self=False,
        replication_ready=False,
        replay=None,
        replay_refusal=None,
        presence_enabled=False,
        presence_key=None,
        postgres_changes=(),
        access_token=None,
    )


def test_unknown_keys_are_ignored() -> None:
    assert parse({"version": "realtime-js/2", "config": {"postgres_changes_options": {}}}) == Join()


# Types.


@pytest.mark.parametrize("text", ["true", "TRUE", "True", "tRuE"])
def test_true_may_be_a_string_in_any_case(text: str) -> None:
    join = config(
        private=text,
        broadcast={"ack": text, "self": text, "replication_ready": text},
        presence={"enabled": text},
    )
    assert join == Join(True, True, True, True, presence_enabled=True)


@pytest.mark.parametrize("text", ["false", "FALSE", "False"])
def test_false_may_be_a_string_in_any_case(text: str) -> None:
    assert config(private=text, broadcast={"ack": text, "self": text}) == Join()


@pytest.mark.parametrize("wrong", WRONG)
def test_flags_of_a_wrong_type_are_off(wrong: object) -> None:
    join = config(
        private=wrong,
        broadcast={"ack": wrong, "self": wrong, "replication_ready": wrong},
        presence={"enabled": wrong},
    )
    assert join == Join()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("part", ["broadcast", "presence", "postgres_changes", "private"])
def test_parts_of_a_wrong_type_fall_back_and_leave_the_others(part: str, wrong: object) -> None:
    good: dict[str, object] = {"private": True, "broadcast": {"ack": True}}
    good.pop(part, None)
    join = config(**good, **{part: wrong})
    assert join == Join(private=part != "private", broadcast_ack=part != "broadcast")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_config_or_payload_of_a_wrong_type_counts_as_none(wrong: object) -> None:
    assert parse({"config": wrong}) == parse(wrong) == Join()


def test_null_items_of_postgres_changes_are_dropped() -> None:
    items = [None, {"event": "INSERT", "schema": "public"}, "x", {"event": "*", "more": [1]}]
    assert config(postgres_changes=items).postgres_changes == (items[1], items[3])


@pytest.mark.parametrize("key", ["", None, 7, {}])
def test_an_empty_presence_key_is_to_be_made_up(key: object) -> None:
    assert config(presence={"key": key}).presence_key is None


# Tokens.


def test_user_token_is_an_alias_of_access_token() -> None:
    assert parse({"user_token": "a.b.c"}).access_token == "a.b.c"
    assert parse({"user_token": "a.b.c", "access_token": None}).access_token == "a.b.c"
    assert parse({"user_token": "a.b.c", "access_token": "d.e.f"}).access_token == "d.e.f"


@pytest.mark.parametrize("token", [None, 1, {}, "sb_publishable_abc", "sb_"])
def test_without_a_jwt_the_token_of_the_connection_counts(token: object) -> None:
    assert parse({"access_token": token}).access_token is None


def test_a_token_that_is_no_jwt_is_left_to_its_check() -> None:
    assert parse({"access_token": ""}).access_token == ""


# Replay.


@pytest.mark.parametrize("value", [{"since": 1}, {}, None, False, "x"])
@pytest.mark.parametrize("private", [False, None, "false"])
def test_replay_on_a_public_channel_is_refused_whatever_its_value(
    value: object, private: object
) -> None:
    join = replay(value, private=private)
    assert (join.replay, join.replay_refusal) == (None, REPLAY_ON_PUBLIC_CHANNEL)
    assert REPLAY_ON_PUBLIC_CHANNEL == (
        "UnableToReplayMessages: Replay is not allowed for public channels"
    )


@pytest.mark.parametrize("value", [None, False, "x", 3, []])
def test_replay_that_is_no_object_is_none_on_a_private_channel(value: object) -> None:
    assert replay(value) == Join(private=True)


@pytest.mark.parametrize(
    "since", [None, "1700000000000", 1.5, 1700000000000.0, True, [], 10**15, -(10**15), 10**40]
)
def test_since_must_be_an_integer_that_is_a_time(since: object) -> None:
    join = replay({"since": since, "limit": 10})
    assert (join.replay, join.replay_refusal) == (None, REPLAY_NOT_VALID)
    assert REPLAY_NOT_VALID == "UnableToReplayMessages: Replay params are not valid"


def test_since_is_required() -> None:
    assert replay({"limit": 10}).replay_refusal == REPLAY_NOT_VALID
    assert replay({}).replay_refusal == REPLAY_NOT_VALID


@pytest.mark.parametrize("since", [0, -1, 253_402_300_799_999, -62_135_596_800_000])
def test_since_may_be_any_time_of_four_digits(since: int) -> None:
    assert replay({"since": since}).replay == Replay(since, 25)


@pytest.mark.parametrize("limit", ["10", 1.5, True, [], {}])
def test_a_limit_that_is_no_integer_is_refused(limit: object) -> None:
    assert replay({"since": 1, "limit": limit}).replay_refusal == REPLAY_NOT_VALID


@pytest.mark.parametrize(
    ("limit", "clamped"), [(-5, 1), (0, 1), (1, 1), (25, 25), (26, 25), (10**30, 25), (None, 25)]
)
def test_the_limit_is_clamped(limit: int | None, clamped: int) -> None:
    assert replay({"since": 1, "limit": limit}).replay == Replay(1, clamped)


CURSOR = Cursor("w", Horizon(1, Snapshot(5, 5), 1_000, 900), 1, 2, 3)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("more", [{}, {"since": 1, "limit": 2}, {"since": "x"}])
def test_a_cursor_counts_before_all_else_and_on_any_channel(private: bool, more: Any) -> None:
    join = replay({"cursor": str(CURSOR), **more}, private=private)
    assert join == Join(private=private, cursor=CURSOR)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("value", ["", "x", 1, True, [], {}, "w" * 1000, str(CURSOR)[:-1]])
def test_what_is_no_cursor_refuses_the_join(private: bool, value: object) -> None:
    join = replay({"cursor": value, "since": 1}, private=private)
    assert (join.cursor, join.replay_refusal) == (None, REPLAY_NOT_VALID)


def test_a_cursor_that_is_null_is_none() -> None:
    assert replay({"cursor": None, "since": 1}).replay == Replay(1, 25)
    assert replay({"cursor": None}, private=False).replay_refusal == REPLAY_ON_PUBLIC_CHANNEL


@pytest.mark.parametrize(
    ("payload", "asks"),
    [
        (b'{"cursor":true}', True),
        (b"{}", False),
        (b'{"cursor":1}', False),
        (b'{"cursor":"true"}', False),
        (b"null", False),
        (b"[true]", False),
        (b"{", False),
        (b"[" * 100_000, False),
    ],
)
def test_a_heartbeat_may_ask_for_a_cursor(payload: bytes, asks: bool) -> None:
    assert asks_for_cursor(payload) is asks


def test_the_limit_of_a_replay_is_a_setting() -> None:
    wish = {"private": True, "broadcast": {"replay": {"since": 1, "limit": 500}}}
    assert parse({"config": wish}, max_replay=1000).replay == Replay(1, 500)
    del wish["broadcast"]["replay"]["limit"]  # type: ignore[index]
    assert parse({"config": wish}, max_replay=1000).replay == Replay(1, 1000)


# Anything.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["true", "sb_x"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["config", "broadcast", "presence", "private", "replay", "since", "limit",
                 "postgres_changes", "access_token", "ack", "key", "enabled"]
            ),
            inner,
        )
    ),
)  # fmt: skip


@given(json_values)
def test_any_json_is_a_join(payload: object) -> None:
    text = json.dumps(payload, ensure_ascii=False).encode(errors="replace")
    join = parse_join(text)
    assert join.replay is None or join.private
    assert join.replay is None or join.replay_refusal is None
    assert all(isinstance(item, dict) for item in join.postgres_changes)


@given(st.binary())
def test_what_is_not_json_is_malformed(payload: bytes) -> None:
    try:
        parse_join(payload)
    except MalformedFrame:
        return
    json.loads(payload)


def test_a_payload_that_nests_too_deeply_is_malformed() -> None:
    with pytest.raises(MalformedFrame):
        parse_join(b"[" * 100_000 + b"]" * 100_000)
