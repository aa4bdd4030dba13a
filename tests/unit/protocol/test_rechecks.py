"""Whom a revocation concerns, and in which order they are asked about."""

from __future__ import annotations

import json
import math

import pytest

from realtime_db.auth.tokens import Claims
from realtime_db.protocol.rechecks import Rechecks, Revocation


class Somebody:
    def __init__(self, role: str = "authenticated", sub: str | None = None) -> None:
        self.claims: Claims | None = Claims(role=role, exp=1, sub=sub, json="{}")
        self.forgot = 0

    def forget_rights(self) -> None:
        self.forgot += 1

    async def check_again(self) -> None:
        raise AssertionError("not here")


def taken(rechecks: Rechecks) -> list[object]:
    found = []
    while (one := rechecks.take()) is not None:
        found.append(one)
    return found


@pytest.fixture
def rechecks() -> Rechecks:
    return Rechecks()


def test_each_is_asked_about_once_whatever_how_many_revocations(rechecks: Rechecks) -> None:
    ann, bob, eve = Somebody(sub="ann"), Somebody(sub="bob"), Somebody("anon")
    for topic, one in (("a", ann), ("b", ann), ("a", bob), ("b", eve)):
        rechecks.add(topic, one)
    rechecks.seen([Revocation("a"), Revocation(sub="ann"), Revocation("a", sub="ann")])
    assert taken(rechecks) == [ann, bob]
    assert (ann.forgot, bob.forgot, eve.forgot) == (2, 1, 0)


@pytest.mark.parametrize(
    ("revocation", "concerned"),
    [
        (Revocation(), "ann bob nobody"),
        (Revocation(role="authenticated"), "ann bob"),
        (Revocation(sub="ann"), "ann"),
        (Revocation(role="anon", sub="ann"), ""),
        (Revocation(role="anon"), "nobody"),
        (Revocation("room"), "ann bob nobody"),
        (Revocation("room", sub="bob"), "bob"),
        (Revocation("another"), ""),
    ],
)
def test_what_it_names_must_all_be_so(
    rechecks: Rechecks, revocation: Revocation, concerned: str
) -> None:
    people = {"ann": Somebody(sub="ann"), "bob": Somebody(sub="bob"), "nobody": Somebody("anon")}
    for one in people.values():
        rechecks.add("room", one)
    rechecks.seen([revocation])
    assert taken(rechecks) == [people[name] for name in concerned.split()]


def test_who_has_no_claims_yet_may_be_anybody(rechecks: Rechecks) -> None:
    one = Somebody()
    one.claims = None
    rechecks.add("room", one)
    rechecks.seen([Revocation(sub="ann")])
    assert taken(rechecks) == [one]


def test_who_has_left_is_not_asked_about(rechecks: Rechecks) -> None:
    one = Somebody()
    rechecks.add("room", one)
    rechecks.ask(one)
    rechecks.remove("room", one)
    rechecks.remove("room", one)
    rechecks.seen([Revocation("room")])
    assert taken(rechecks) == []


@pytest.mark.parametrize("payload", [None, b"null", b"[]", b'{"topic": 1}', b"no json"])
def test_what_cannot_be_read_means_everybody(rechecks: Rechecks, payload: bytes | None) -> None:
    rechecks.revoke(payload, 7)
    assert rechecks.take_revocations() == [(7, Revocation())]
    assert rechecks.take_revocations() == []


def test_it_is_read_as_the_function_writes_it(rechecks: Rechecks) -> None:
    rechecks.revoke(json.dumps({"sub": None, "role": "anon", "topic": "é"}).encode(), 7)
    assert rechecks.take_revocations() == [(7, Revocation("é", "anon"))]


def test_those_who_came_together_are_not_all_due_together() -> None:
    due = [Rechecks(300.0).next_at(1000.0) for _ in range(100)]
    assert all(1150 <= at <= 1300 for at in due)
    assert max(due) - min(due) > 50
    assert Rechecks(0.0).next_at(1000.0) == math.inf
