"""Cursors in the hands of the unmodified clients: they reach the application, and harm nobody."""

from __future__ import annotations

import time

import pytest


def send(database, topic: str, event: str, private: bool = True) -> None:
    database.execute("select realtime.send('{}', %s, %s, %s)", [event, topic, private])


def placed_message(client, database, topic: str, private: bool = True):
    """A message with a cursor, which the server does not know in its first second."""
    deadline = time.monotonic() + 20
    while True:
        send(database, topic, "seen", private)
        if "cursor" in (message := client.message()).meta:
            return message
        assert time.monotonic() < deadline


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_the_cursor_of_a_message_reaches_the_application(
    connect, topic, database, admit, vsn
) -> None:
    admit("ann", topic)
    ann = connect("supabase-js", user="ann", vsn=vsn)
    ann.join(topic, private=True)
    cursor = placed_message(ann, database, topic).meta["cursor"]
    ann.unsubscribe(topic)
    send(database, topic, "missed")

    again = connect("supabase-js", user="ann", vsn=vsn)
    again.join(topic, private=True, broadcast={"replay": {"cursor": cursor}})

    missed = again.message()
    assert (missed.event, missed.meta["replayed"]) == ("missed", True)
    send(database, topic, "live")
    assert again.message().event == "live"


def test_python_clients_take_messages_with_cursors_and_pass_them_over(
    connect, topic, database, admit
) -> None:
    admit("ann", topic)
    for library in ("realtime-py", "supabase-py"):
        watcher = connect("realtime-js", user="ann")
        watcher.join(topic, private=True)
        cursor = placed_message(watcher, database, topic).meta["cursor"]
        send(database, topic, "missed")

        client = connect(library, user="ann")
        client.join(topic, private=True, broadcast={"replay": {"cursor": cursor}})

        missed = client.message()
        assert (missed.event, missed.meta.keys()) == ("missed", {"id", "replayed"})
        send(database, topic, "live")
        live = client.message()
        assert (live.event, live.meta.keys()) == ("live", {"id"})


@pytest.mark.parametrize("private", [True, False])
def test_a_channel_goes_on_where_it_was_when_its_client_joins_again(
    connect, start_server, topic, database, admit, private
) -> None:
    """The server is away meanwhile; the client asks for what it missed by itself."""
    admit("ann", topic)
    server = start_server()
    clients = [
        connect(library, user="ann", to=server) for library in ("supabase-js", "realtime-js")
    ]
    for client in clients:
        client.resume(topic, private=private)
    placed_message(clients[0], database, topic, private)
    send(database, topic, "last", private)
    for client in clients:
        while client.message().event != "last":
            pass

    server.stop()
    send(database, topic, "missed", private)
    server.start()

    for client in clients:
        assert client.status()[:2] == (topic, "CHANNEL_ERROR")
        while (status := client.status())[1] != "SUBSCRIBED":
            assert status[1] == "CHANNEL_ERROR"
        # The new server does not know in which order the old one sent the last of them.
        while (message := client.message()).event in ("seen", "last"):
            assert message.meta["replayed"]
        assert message.event == "missed"
    send(database, topic, "live", private)
    for client in clients:
        assert client.message().event == "live"
