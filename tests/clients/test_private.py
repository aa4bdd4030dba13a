"""Private channels: policies, tokens and replay."""

from __future__ import annotations

import json

import pytest


def send(database, topic: str, event: str) -> None:
    database.execute("select realtime.send('{}', %s, %s, true)", [event, topic])


def test_a_member_joins_and_receives(connect, library, topic, database, admit) -> None:
    admit("ann", topic)
    ann = connect(library, user="ann")

    ann.join(topic, private=True)
    send(database, topic, "for members")

    assert ann.message().event == "for members"


@pytest.mark.parametrize("user", [None, "eve"])
def test_nobody_else_joins_and_the_client_is_told_why(connect, library, topic, admit, user) -> None:
    admit("ann", topic)
    eve = connect(library, user=user)

    eve.subscribe(topic, private=True)

    reason = f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"
    name, status, error = eve.status()
    assert (name, status) == (topic, "CHANNEL_ERROR")
    assert (json.loads(error)["reason"] if eve.is_python else error) == reason
    # The connection is as good as before.
    eve.subscribe("lobby")
    while (status := eve.status())[0] == topic:
        assert status == (topic, "CHANNEL_ERROR", error)  # it tries again after a second
    assert status == ("lobby", "SUBSCRIBED", None)


def test_only_who_may_write_is_heard(connect, library, topic, admit) -> None:
    admit("ann", topic, may_send=True)
    admit("bob", topic)
    admit("eve", topic)
    ann = connect(library, user="ann")
    bob = connect(library, user="bob")
    eve = connect(library, user="eve")
    for client in (ann, bob, eve):
        client.join(topic, private=True)

    eve.send(topic, "refused", {})
    # A channel's pushes are taken in their order, so this one comes after the refusal.
    eve.unsubscribe(topic)
    ann.send(topic, "heard", {})

    assert bob.message() == (topic, "heard", {}, None)


def test_a_new_token_is_taken_while_it_lets_the_user_read(
    connect, library, topic, database, admit, mint
) -> None:
    for user in ("ann", "bob"):
        admit(user, topic)
    client = connect(library, user="ann")
    client.join(topic, private=True)

    client.set_auth(mint("authenticated", "bob"))
    send(database, topic, "as bob")
    assert client.message().event == "as bob"

    client.set_auth(mint("authenticated", "eve"))
    assert client.end_of(topic) == (
        f"You do not have permissions to read from this Channel topic: {topic}"
    )


def test_a_token_that_ran_out_ends_the_channel_until_there_is_a_new_one(
    connect, libraries, topic, database, admit, mint
) -> None:
    admit("ann", topic)
    clients = [connect(library, user="ann") for library in libraries]
    for client in clients:
        client.set_auth(mint("authenticated", "ann", ttl_seconds=5))
        client.join(topic, private=True)

    for client in clients:
        assert client.end_of(topic).startswith("Token has expired ")
        client.set_auth(mint("authenticated", "ann"))
        client.join(topic, private=True)
    send(database, topic, "again")

    for client in clients:
        assert client.message().event == "again"


def plain(message):
    """Without its cursor, of which the Python clients know nothing."""
    meta = {key: value for key, value in message.meta.items() if key != "cursor"}
    return message._replace(meta=meta)


def test_a_replay_gives_the_latest_messages_since_then(
    connect, library, topic, database, admit
) -> None:
    admit("ann", topic)
    watcher = connect("realtime-js", user="ann")
    watcher.join(topic, private=True)
    database.execute(
        "insert into realtime.messages (topic, extension, event, payload, private, inserted_at) "
        "select %s, 'broadcast', 'too old', '{}', true, now() at time zone 'utc' - interval '1h'",
        [topic],
    )
    for event in ("a", "b", "c"):
        send(database, topic, event)
    # Once the watcher has them they are not news to a client that joins now.
    _, *sent = (watcher.message() for _ in range(4))
    since = database.execute(
        "select floor(extract(epoch from inserted_at at time zone 'utc') * 1000)::bigint "
        "from realtime.messages where id = %s",
        [sent[0].meta["id"]],
    ).fetchone()[0]
    replayed = [message._replace(meta={"replayed": True, **message.meta}) for message in sent]

    all_since = connect(library, user="ann")
    all_since.join(topic, private=True, broadcast={"replay": {"since": since}})
    latest = connect(library, user="ann")
    latest.join(topic, private=True, broadcast={"replay": {"since": since, "limit": 2}})
    send(database, topic, "live")

    live = watcher.message()
    assert [message.event for message in replayed] == ["a", "b", "c"]
    wanted = [plain(message) for message in (*replayed, live)]
    assert [plain(all_since.message()) for _ in range(4)] == wanted
    assert [plain(latest.message()) for _ in range(3)] == wanted[1:]
