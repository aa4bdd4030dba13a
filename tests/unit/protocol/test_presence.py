"""What is kept of who is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from realtime_db.protocol.presence import Presences

ROOM = ("room", False)


@pytest.mark.parametrize("payload", [b"{}", b"{ }", b'{"a":1}', b'{ "a" : 1.50 } '])
def test_what_was_tracked_is_kept_to_the_digit(payload: bytes) -> None:
    presences = Presences()
    diff = presences.track(ROOM, "me", "k", payload)
    meta = json.loads(diff, parse_float=str)["joins"]["k"]["metas"][0]
    assert isinstance(meta.pop("phx_ref"), str)
    assert meta == json.loads(payload, parse_float=str)


def test_state_is_the_sum_of_the_differences() -> None:
    presences = Presences()
    state: dict[str, dict[str, Any]] = {}

    def apply(diff: bytes | None) -> None:
        assert diff is not None
        changes = json.loads(diff)
        for key, entry in changes["leaves"].items():
            for meta in entry["metas"]:
                del state[key][meta["phx_ref"]]
        for key, entry in changes["joins"].items():
            for meta in entry["metas"]:
                state.setdefault(key, {})[meta["phx_ref"]] = meta

    for owner, key in [("a", "k"), ("b", "k"), ("c", '"\u2713'), ("a", "k")]:
        apply(presences.track(ROOM, owner, key, b'{"by":"%b"}' % owner.encode()))
        there = json.loads(presences.state(ROOM))
        assert {key: entry["metas"] for key, entry in there.items()} == {
            key: [refs[meta["phx_ref"]] for meta in there[key]["metas"]]
            for key, refs in state.items()
        }
        assert sum(map(len, state.values())) == sum(len(one["metas"]) for one in there.values())
    for owner in "abc":
        apply(presences.untrack(ROOM, owner))
    assert not any(state.values())
    assert presences.state(ROOM) == b"{}"
    assert len(presences) == 0


def test_untracking_nothing_is_no_difference() -> None:
    assert Presences().untrack(ROOM, "me") is None
