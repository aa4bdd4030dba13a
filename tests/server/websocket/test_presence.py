"""Who is there (PROTOCOL 11)."""

from __future__ import annotations

from collections.abc import Callable
from socket import SHUT_RDWR
from typing import Any

import pytest

Client = Any
Server = Any
Database = Any
BOTH = pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])


def watching(key: str = "", **config: Any) -> dict[str, Any]:
    return {"presence": {"enabled": True, "key": key}, **config}


def track(one: Client, topic: str, payload: Any, event: str = "track") -> str:
    ref = str(one.ref())
    body = {"type": "presence", "event": event, "payload": payload}
    one.send(f"realtime:{topic}", "presence", body, ref=ref)
    return ref


def state(one: Client, topic: str, join_ref: str) -> Any:
    frame = one.receive()
    assert (frame.topic, frame.event, frame.ref) == (f"realtime:{topic}", "presence_state", None)
    assert frame.join_ref == (join_ref if one.v2 else None)
    return frame.payload


def diff(one: Client, topic: str) -> tuple[Any, Any]:
    frame = one.receive()
    assert (frame.topic, frame.event, frame.ref) == (f"realtime:{topic}", "presence_diff", None)
    assert frame.join_ref is None
    assert set(frame.payload) == {"joins", "leaves"}
    return frame.payload["joins"], frame.payload["leaves"]


def answered(one: Client, ref: str) -> Any:
    frame = one.receive()
    assert (frame.event, frame.ref) == ("phx_reply", ref)
    return frame.payload


@BOTH
def test_who_tracks_is_seen_by_all_and_who_comes_later(
    client: Callable[..., Client], topic: str, vsn: str
) -> None:
    ann, bob = client(vsn=vsn), client()
    assert state(ann, topic, ann.join(topic, watching("ann"))) == {}
    assert state(bob, topic, bob.join(topic, watching("bob"))) == {}
    ref = track(ann, topic, {"name": "Ann", "n": 9007199254740993})
    assert answered(ann, ref) == {"status": "ok", "response": {}}
    joins, leaves = diff(ann, topic)
    assert (joins, leaves) == diff(bob, topic)
    (meta,) = joins["ann"]["metas"]
    assert leaves == {}
    assert isinstance(meta["phx_ref"], str)
    assert meta == {"name": "Ann", "n": 9007199254740993, "phx_ref": meta["phx_ref"]}
    late = client(vsn=vsn)
    assert state(late, topic, late.join(topic, watching())) == {"ann": {"metas": [meta]}}


def test_an_update_joins_the_new_and_leaves_the_old(
    client: Callable[..., Client], topic: str
) -> None:
    one = client()
    state(one, topic, one.join(topic, watching("k")))
    answered(one, track(one, topic, {"n": 1}))
    (first,) = diff(one, topic)[0]["k"]["metas"]
    answered(one, track(one, topic, {"n": 2}, event="TRACK"))
    joins, leaves = diff(one, topic)
    (second,) = joins["k"]["metas"]
    assert second["phx_ref"] != first["phx_ref"] == second["phx_ref_prev"]
    assert leaves == {"k": {"metas": [first]}}


@pytest.mark.parametrize("how", ["untrack", "leave", "rejoin", "close", "lose"])
def test_whoever_goes_leaves(client: Callable[..., Client], topic: str, how: str) -> None:
    one, other = client(), client()
    state(other, topic, other.join(topic, watching()))
    state(one, topic, one.join(topic, watching("k")))
    answered(one, track(one, topic, {}))
    joins, _ = diff(other, topic)
    if how == "untrack":
        diff(one, topic)
        assert answered(one, track(one, topic, {}, event="untrack"))["status"] == "ok"
    elif how == "leave":
        one.send(f"realtime:{topic}", "phx_leave")
    elif how == "rejoin":
        one.send(f"realtime:{topic}", "phx_join", {}, ref="x")
    elif how == "close":
        one.socket.close()
    else:
        one.socket.socket.shutdown(SHUT_RDWR)
    assert diff(other, topic) == ({}, joins)


def test_several_may_share_a_key_and_without_one_each_has_its_own(
    client: Callable[..., Client], topic: str
) -> None:
    clients = [client() for _ in range(4)]
    for one, key in zip(clients, ["k", "k", "", ""], strict=True):
        one.join(topic, {"presence": {"key": key}})
        ref = track(one, topic, {})
        assert one.receive().event == "presence_state"
        answered(one, ref)
    late = client()
    there = state(late, topic, late.join(topic, watching()))
    assert len(there) == 3
    assert len(there["k"]["metas"]) == 2
    refs = [meta["phx_ref"] for one in there.values() for meta in one["metas"]]
    assert len(set(refs)) == 4


def test_presence_is_off_until_the_first_track(client: Callable[..., Client], topic: str) -> None:
    quiet, other = client(), client()
    ref = quiet.join(topic)
    other.join(topic, {"presence": {"key": "other"}})
    track(other, topic, {})
    assert [other.receive().event for _ in range(3)] == [
        "presence_state", "phx_reply", "presence_diff",
    ]  # fmt: skip
    quiet.heartbeat()
    track(quiet, topic, {})
    assert list(state(quiet, topic, ref)) == ["other"]


@pytest.mark.parametrize("payload", [1, "x", [], None])
def test_what_is_tracked_must_be_an_object(
    client: Callable[..., Client], topic: str, payload: Any
) -> None:
    one = client()
    one.join(topic)
    assert answered(one, track(one, topic, payload)) == {
        "status": "error",
        "response": {"reason": "Presence track payload must be a map"},
    }


def test_a_client_cannot_choose_its_phx_ref(client: Callable[..., Client], topic: str) -> None:
    one = client()
    state(one, topic, one.join(topic, watching("k")))
    answered(one, track(one, topic, {"phx_ref": "mine"}))
    joins, _ = diff(one, topic)
    assert joins["k"]["metas"][0]["phx_ref"] != "mine"


def test_rights_on_presence_are_apart_from_those_on_broadcasts(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read presence", "write presence")
    database.grant(topic, "bob", "read broadcast", "write broadcast")
    database.grant(topic, "eve", "read presence")
    ann, bob, eve = (client(key=user(name)) for name in ("ann", "bob", "eve"))
    state(ann, topic, ann.join(topic, watching("ann", private=True)))
    bob.join(topic, watching("bob", private=True))
    state(eve, topic, eve.join(topic, watching("eve", private=True)))
    refused = {"status": "error", "response": {}}
    assert answered(eve, track(eve, topic, {})) == refused
    assert answered(bob, track(bob, topic, {})) == refused
    answered(ann, track(ann, topic, {}))
    assert list(diff(ann, topic)[0]) == list(diff(eve, topic)[0]) == ["ann"]
    bob.heartbeat()
    ann.broadcast(topic)
    ann.push(f"realtime:{topic}", "presence", {"event": "untrack"})  # waits behind it
    bob.heartbeat()


def test_private_and_public_presence_are_apart(
    client: Callable[..., Client], database: Database, user: Callable[[str], str], topic: str
) -> None:
    database.grant(topic, "ann", "read presence", "write presence")
    ann, public = client(key=user("ann")), client()
    state(public, topic, public.join(topic, watching()))
    state(ann, topic, ann.join(topic, watching("ann", private=True)))
    answered(ann, track(ann, topic, {}))
    diff(ann, topic)
    public.heartbeat()
