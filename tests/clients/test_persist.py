"""Broadcasts that the JavaScript clients want stored, and rights that are taken away."""

from __future__ import annotations

import pytest

JAVASCRIPT = ["supabase-js", "realtime-js"]


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_a_stored_broadcast_is_delivered_and_replayed(connect, library, topic, admit) -> None:
    admit("ann", topic, may_send=True)
    admit("bob", topic)
    ann, bob = connect(library, user="ann"), connect(library, user="bob")
    ann.join(topic, private=True, broadcast={"ack": True})
    bob.join(topic, private=True)

    assert ann.send(topic, "kept", {"n": 1}, persist=True) == "ok"
    assert ann.send(topic, "for a minute", {"hex": "00ff"}, persist={"ttl": 60}) == "ok"
    live = [bob.message() for _ in range(2)]
    assert ann.send(topic, "lost", {"n": 2}) == "ok"
    live.append(bob.message())

    assert [(one.event, one.payload) for one in live] == [
        ("kept", {"n": 1}), ("for a minute", {"hex": "00ff"}), ("lost", {"n": 2})
    ]  # fmt: skip
    late = connect(library, user="bob")
    late.join(topic, private=True, broadcast={"replay": {"since": 1}})
    replayed = [late.message() for _ in range(2)]
    assert [one.meta["id"] for one in replayed] == [one.meta["id"] for one in live[:2]]
    assert [one.payload for one in replayed] == [one.payload for one in live[:2]]


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_a_refusal_is_told_in_words(connect, library, topic, admit) -> None:
    admit("ann", topic, may_send=True)
    admit("eve", topic)
    ann, eve = connect(library, user="ann"), connect(library, user="eve")
    for client in (ann, eve):
        client.join(topic, private=True, broadcast={"ack": True})

    assert eve.send(topic, "e", {}, persist=True).startswith("Unauthorized")
    assert ann.send(topic, "e", {}, persist={"ttl": 0}).startswith("persist must be true")
    assert ann.send(topic, "e", {"a": "\x00"}, persist=True).startswith("the message holds")


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_without_ack_a_refusal_is_told_all_the_same(connect, library, topic, admit) -> None:
    admit("ann", topic, may_send=True)
    admit("eve", topic)
    ann, eve = connect(library, user="ann"), connect(library, user="eve")
    for client in (ann, eve):
        client.join(topic, private=True)

    assert ann.send(topic, "e", {}, persist={"ttl": 0}) == "ok"
    assert ann.error().startswith("persist must be true")
    assert ann.send(topic, "e", {"a": "\x00"}, persist=True) == "ok"
    assert ann.error().startswith("the message holds")
    assert eve.send(topic, "e", {}, persist=True) == "ok"
    assert eve.error().startswith("Unauthorized")

    assert ann.send(topic, "kept", {}, persist=True) == "ok"  # the channel goes on
    assert eve.message().event == "kept"


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_an_http_send_can_be_stored(connect, library, topic, admit, database) -> None:
    admit("ann", topic, may_send=True)
    ann = connect(library, user="ann")

    ann.http_send(topic, "kept", {"n": 1}, private=True, persist=True)
    ann.http_send(topic, "for a minute", {"n": 2}, private=True, persist={"ttl": 60})
    with pytest.raises(Exception, match="persist must be true"):
        ann.http_send(topic, "refused", {"n": 3}, private=True, persist={"ttl": -1})

    assert database.execute(
        "select event, expires_at is null from realtime.messages where topic = %s"
        " order by inserted_at",
        [topic],
    ).fetchall() == [("kept", True), ("for a minute", False)]


def test_who_loses_the_right_to_read_is_closed_at_once(
    connect, library, topic, admit, database
) -> None:
    for user in ("ann", "bob"):
        admit(user, topic)
    ann, bob = connect(library, user="ann"), connect(library, user="bob")
    for client in (ann, bob):
        client.join(topic, private=True)

    with database.transaction():
        database.execute(
            "delete from public.members where topic = %s and user_name = 'ann'", [topic]
        )
        database.execute("select realtime.revoke(%s, sub => 'ann')", [topic])

    assert ann.end_of(topic) == (
        f"You no longer have permission to read from this Channel topic: {topic}"
    )
    database.execute("select realtime.send('{}', 'still here', %s)", [topic])
    assert bob.message().event == "still here"
