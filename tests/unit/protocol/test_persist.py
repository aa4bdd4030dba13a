"""What is on its way to the database, and what comes back."""

from __future__ import annotations

import pytest

from realtime_db.hub import Subscription
from realtime_db.protocol import persist
from realtime_db.protocol.persist import (
    MAX_TTL_SECONDS,
    NOT_VALID,
    Outgoing,
    OwnMessages,
    Persist,
    ToStore,
    read_persist,
)


@pytest.mark.parametrize(
    ("wish", "read"),
    [
        (None, None),
        (False, None),
        (True, Persist()),
        ({}, Persist()),
        ({"ttl": None, "more": 1}, Persist()),
        ({"ttl": 1}, Persist(1)),
        ({"ttl": 10**30}, Persist(MAX_TTL_SECONDS)),
        ({"ttl": 0}, NOT_VALID),
        ({"ttl": True}, NOT_VALID),
        ({"ttl": 1.0}, NOT_VALID),
        ("true", NOT_VALID),
        (1, NOT_VALID),
    ],
)
def test_wishes(wish: object, read: object) -> None:
    assert read_persist(wish) == read


def outgoing(name: str, payload: bytes = b"{}") -> Outgoing:
    return Outgoing(name, "room", "e", payload, False, None, lambda failed: None)


def test_the_oldest_are_taken_first_and_not_too_many() -> None:
    woken: list[int] = []
    to_store = ToStore()
    to_store.wake = lambda: woken.append(1)
    for name, size in (("a", 1), ("b", 90), ("c", 20), ("d", 500), ("e", 1)):
        to_store.put(outgoing(name, b"x" * size))
    assert len(woken) == 5
    taken = []
    while to_store:
        taken.append("".join(message.id for message in to_store.take(3, 100)))
    assert taken == ["abc", "d", "e"]
    assert to_store.take(3, 100) == []


class Sender:
    """In place of a `Persister`."""

    def __init__(self) -> None:
        self.came_back: list[str] = []
        self.subscription = Subscription(("room", True), None, None, None, None)  # type: ignore[arg-type]

    def came(self, message_id: str) -> Subscription:
        self.came_back.append(message_id)
        return self.subscription


def test_each_message_comes_back_once_to_its_sender() -> None:
    own, sender = OwnMessages(), Sender()
    own.add("1", sender)  # type: ignore[arg-type]
    own.add("2", sender)  # type: ignore[arg-type]
    own.forget("2")
    assert [own.came(name) for name in "1123"] == [sender.subscription, None, None, None]
    assert sender.came_back == ["1"]
    assert not own


def test_what_never_comes_back_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persist, "MAX_OWN", 3)
    own, sender = OwnMessages(), Sender()
    for number in range(5):
        own.add(str(number), sender)  # type: ignore[arg-type]
    assert sender.came_back == ["0", "1"]
    assert own.came("2") is sender.subscription
