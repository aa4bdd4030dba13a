"""Connections: idle ones, and servers that go away."""

from __future__ import annotations


def test_clients_come_back_when_the_server_was_restarted(
    connect, libraries, start_server, topic, database, admit
) -> None:
    admit("ann", topic)
    server = start_server()
    clients = [connect(library, user="ann", to=server) for library in libraries]
    for client in clients:
        client.join(topic, private=True)

    server.stop()
    server.start()

    for client in clients:
        assert client.status()[:2] == (topic, "CHANNEL_ERROR")
        while (status := client.status()) != (topic, "SUBSCRIBED", None):
            assert status[:2] == (topic, "CHANNEL_ERROR")
    database.execute("select realtime.send('{}', 'again', %s, true)", [topic])
    for client in clients:
        assert client.message().event == "again"


def test_heartbeats_keep_an_idle_client(connect, start_server, topic, database) -> None:
    server = start_server("--idle-seconds", "8")
    # Its client gives up when the answer takes longer than that.
    beating = connect("supabase-js", to=server, heartbeatIntervalMs=3_000)
    silent = connect("realtime-js", to=server, heartbeatIntervalMs=60_000)
    beating.join(topic)
    silent.join(topic)

    # The one that says nothing is closed, and comes back as clients do.
    assert silent.status()[:2] == (topic, "CHANNEL_ERROR")
    assert silent.status() == (topic, "SUBSCRIBED", None)

    # The other one, idle for longer, heard nothing of that.
    beating.unsubscribe(topic)
