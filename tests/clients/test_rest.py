"""Clients that send over REST."""

from __future__ import annotations

import pytest


def test_an_http_send_reaches_subscribers(connect, library, topic) -> None:
    name = f"{topic}/ü:%2F?"
    ann = connect(library)
    bobs = [connect("realtime-js"), connect("realtime-py")]
    for bob in bobs:
        bob.join(name)

    ann.http_send(name, "größe/1", {"text": "hi"})

    for bob in bobs:
        assert bob.message() == (name, "größe/1", {"text": "hi"}, None)


def test_an_http_send_of_bytes_reaches_subscribers(connect, library, topic) -> None:
    ann = connect(library)
    bob = connect("realtime-js")
    bob.join(topic)

    ann.http_send(topic, "bytes", {"hex": "00ff7b"})

    assert bob.message() == (topic, "bytes", {"hex": "00ff7b"}, None)


def test_an_http_send_to_a_private_topic_needs_the_right_to_write(
    connect, library, topic, admit
) -> None:
    admit("ann", topic, may_send=True)
    admit("bob", topic)
    ann = connect(library, user="ann")
    bob = connect(library, user="bob")
    receiver = connect("realtime-js", user="bob")
    receiver.join(topic, private=True)

    with pytest.raises(Exception, match="Unauthorized"):
        bob.http_send(topic, "refused", {"a": 1}, private=True)
    ann.http_send(topic, "heard", {"a": 1}, private=True)

    assert receiver.message() == (topic, "heard", {"a": 1}, None)


def test_a_send_before_the_join_goes_over_rest(connect, topic) -> None:
    bob = connect("realtime-py")
    bob.join(topic)

    for library in ("supabase-js", "realtime-js"):
        ann = connect(library)
        assert ann.send(topic, "early", {"from": library}) == "ok"
        assert bob.message() == (topic, "early", {"from": library}, None)
