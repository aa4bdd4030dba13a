"""Clients to clients: broadcasts on public channels."""

from __future__ import annotations

import pytest


def test_a_broadcast_reaches_its_sender_if_it_wants_and_all_others(connect, library, topic) -> None:
    ann = connect(library)
    bob = connect(library)
    ann.join(topic, broadcast={"self": True, "ack": True})
    bob.join(topic)

    assert ann.send(topic, "greeting", {"text": "hi"}) == "ok"

    assert ann.message() == (topic, "greeting", {"text": "hi"}, None)
    assert bob.message() == (topic, "greeting", {"text": "hi"}, None)


def test_a_sender_without_self_gets_only_what_others_send(connect, library, topic) -> None:
    ann = connect(library)
    bob = connect(library)
    ann.join(topic)
    bob.join(topic)

    ann.send(topic, "own", {})
    assert bob.message().event == "own"
    bob.send(topic, "other", {})

    assert ann.message().event == "other"


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_clients_of_both_framings_talk_with_each_other(connect, topic, vsn) -> None:
    ann = connect("realtime-js", vsn=vsn)
    bob = connect("realtime-py")
    ann.join(topic, broadcast={"ack": True})
    bob.join(topic)

    assert ann.send(topic, "from JavaScript", {"list": [1, None, "é"]}) == "ok"
    assert bob.message() == (topic, "from JavaScript", {"list": [1, None, "é"]}, None)

    bob.send(topic, "from Python", {"list": [1, None, "é"]})
    assert ann.message() == (topic, "from Python", {"list": [1, None, "é"]}, None)


def test_bytes_of_a_client_reach_those_whose_framing_has_them(connect, topic) -> None:
    ann = connect("supabase-js")
    bob = connect("realtime-js")
    old = connect("realtime-js", vsn="1.0.0")
    eve = connect("realtime-py")
    for client in (ann, bob, old, eve):
        client.join(topic)

    ann.send(topic, "bytes", {"hex": "00ff7b22"})
    ann.send(topic, "text", {"after": "bytes"})

    assert bob.message() == (topic, "bytes", {"hex": "00ff7b22"}, None)
    for client in (bob, old, eve):
        assert client.message() == (topic, "text", {"after": "bytes"}, None)


@pytest.mark.parametrize(
    "sub_topic", ["a:b:c", "realtime:x", "Zimmer 7/ß", "部屋:🙂", "a%2Fb?c=d&e#f", "*"]
)
def test_a_topic_may_be_any_text(connect, library, topic, sub_topic) -> None:
    full = f"{sub_topic}:{topic}"
    ann = connect(library)
    bobs = [connect("realtime-js"), connect("realtime-py")]
    for client in (ann, *bobs):
        client.join(full)

    ann.send(full, "größe 🙂", {"é": "🙂"})

    for bob in bobs:
        assert bob.message() == (full, "größe 🙂", {"é": "🙂"}, None)


def test_channels_of_one_connection_are_apart(connect, library, topic) -> None:
    ann = connect(library)
    bob = connect("realtime-js")
    for name in ("a", "b"):
        ann.join(f"{topic}:{name}")
        bob.join(f"{topic}:{name}")

    for name in ("b", "a"):
        bob.send(f"{topic}:{name}", "to", {"name": name})

    assert ann.message() == (f"{topic}:b", "to", {"name": "b"}, None)
    assert ann.message() == (f"{topic}:a", "to", {"name": "a"}, None)


def test_a_channel_that_was_left_gets_nothing_and_can_be_joined_again(
    connect, library, topic
) -> None:
    ann = connect(library)
    bob = connect("realtime-js")
    for name in ("left", "kept"):
        ann.join(f"{topic}:{name}")
        bob.join(f"{topic}:{name}")

    ann.unsubscribe(f"{topic}:left")
    bob.send(f"{topic}:left", "missed", {})
    bob.send(f"{topic}:kept", "got", {})
    assert ann.message().event == "got"

    ann.join(f"{topic}:left")
    # Twice would mean that the server still knows the old channel.
    for number in range(2):
        bob.send(f"{topic}:left", "got again", {"number": number})
        assert ann.message() == (f"{topic}:left", "got again", {"number": number}, None)


def test_presence_disturbs_nothing(connect, library, topic) -> None:
    ann = connect(library)
    bob = connect(library)
    ann.join(topic, presence={"key": "ann", "enabled": True})
    bob.join(topic)

    assert ann.track(topic, {"status": "here"}) == "ok"
    bob.send(topic, "greeting", {})

    assert ann.message().event == "greeting"
