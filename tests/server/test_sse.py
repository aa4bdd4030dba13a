"""Topics as server-sent events: what EventSource and curl get."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.sync.client import connect

from realtime_db.auth.tokens import Claims
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.transports.sse import EVENTS, HEARTBEAT_SECONDS, EventStream
from realtime_db.wheel import Wheel

BROADCAST = Broadcast("realtime:room", "e", b'{"a": 1}')


def message(topic: str, event: str = "e", **more: Any) -> dict[str, Any]:
    return {"topic": topic, "event": event, "payload": {}, **more}


# Delivery


def test_the_head_says_that_it_is_a_stream_for_every_page(follow, topic) -> None:
    events = follow(topic)

    assert events.status == 200
    assert events.headers["content-type"] == "text/event-stream"
    assert events.headers["cache-control"] == "no-cache, no-transform"
    assert events.headers["access-control-allow-origin"] == "*"


def test_a_database_message_arrives_with_its_id(database, follow, private_topic) -> None:
    events = follow(private_topic, private=True)

    (row,) = database.execute(
        "insert into realtime.messages (topic, extension, private, event, payload) "
        "values (%s, 'broadcast', true, 'added', '{\"n\": 1.50}') returning id",
        [private_topic],
    ).fetchone()

    fields = events.next()
    assert fields.keys() == {"id", "data"}
    assert fields["id"]
    assert '"n": 1.50' in fields["data"]
    assert json.loads(fields["data"]) == {
        "type": "broadcast",
        "event": "added",
        "payload": {"n": 1.5},
        "meta": {"id": str(row)},
        "topic": private_topic,
    }


def test_one_stream_follows_many_topics_and_names_each(server, follow, topic) -> None:
    other = f"{topic}/ü&=+ ?"
    events = follow(topic, other, topic)

    server.post("/api/broadcast", {"messages": [message(topic, "1"), message(other, "2")]})

    assert [(one["topic"], one["event"]) for one in (events.message(), events.message())] == [
        (topic, "1"),
        (other, "2"),
    ]


def test_bytes_arrive_as_base64_and_say_so(server, follow, topic, mint) -> None:
    events = follow(topic)
    headers = {"apikey": mint(), "content-type": "application/octet-stream"}

    server.request("POST", f"/api/broadcast/{topic}/events/e", b"\x00\xff", headers)

    received = events.message()
    assert received["encoding"] == "base64"
    assert base64.b64decode(received["payload"]) == b"\x00\xff"


def test_what_a_websocket_sends_arrives_as_it_is_with_its_topic(
    server, follow, topic, mint
) -> None:
    events = follow(topic)
    url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey={mint()}&vsn=2.0.0"
    content = {"type": "broadcast", "event": "e", "payload": [1], "more": 2, "topic": "lie"}

    with connect(url) as socket:
        socket.send(json.dumps(["1", "1", f"realtime:{topic}", "phx_join", {}]))
        socket.recv(timeout=20)
        socket.send(json.dumps(["1", "2", f"realtime:{topic}", "broadcast", content]))

        assert events.message() == {**content, "topic": topic}


def test_no_payload_and_no_id_can_forge_an_event(server, follow, topic, mint) -> None:
    events = follow(topic)
    body = b'{\r\n"a"\n\n:\r\r1}'
    forged = {"messages": [message(topic, "b", id="x\n\ndata: {}\n\n")]}

    server.request("POST", f"/api/broadcast/{topic}/events/a", body, {"apikey": mint()})
    server.post("/api/broadcast", forged)

    assert events.message()["payload"] == {"a": 1}
    fields = events.next()
    assert fields.keys() == {"data"}
    assert json.loads(fields["data"])["meta"] == {"id": "x\n\ndata: {}\n\n"}


@pytest.mark.parametrize(
    ("broadcast", "line"),
    [
        (BROADCAST, b""),
        (BROADCAST._replace(id="m"), b"id: m\n"),
        (BROADCAST._replace(id="m", cursor="c"), b"id: c\n"),
        (BROADCAST._replace(id="m\0"), b""),
        (BROADCAST._replace(id="m\rdata: x"), b""),
    ],
)
def test_the_id_is_the_cursor_or_that_of_the_message(broadcast: Broadcast, line: bytes) -> None:
    event = EVENTS.encode(broadcast)

    assert event is not None
    assert event.startswith(line + b"data: ")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == line.count(b"\n") + 2


@pytest.mark.parametrize("whole", [b"{}", b"{ }", b'{"a":1}', b'{"a":1 }', b'{"topic":"lie"}'])
def test_the_topic_is_added_to_any_object(whole: bytes) -> None:
    event = EVENTS.encode(BROADCAST._replace(whole=whole))

    assert event is not None
    received = json.loads(event.removeprefix(b"data: "))
    assert received == {**json.loads(whole), "topic": "room"}


# Who


def test_a_private_topic_needs_the_right_to_read(server, follow, mint) -> None:
    allowed, denied = follow("read:x", private=True), follow("read:x", "secret", private=True)

    assert allowed.status == 200
    assert denied.status == 403
    assert denied.headers["access-control-allow-origin"] == "*"
    assert json.loads(denied.body()) == {
        "error": "Unauthorized: You do not have permissions to read from this Channel topic: secret"
    }


def test_private_and_public_streams_never_meet(server, follow, private_topic) -> None:
    public, private = follow(private_topic), follow(private_topic, private=True)

    server.post(
        "/api/broadcast",
        {"messages": [message(private_topic, "a"), message(private_topic, "b", private=True)]},
    )

    assert public.message()["event"] == "a"
    assert private.message()["event"] == "b"


def test_the_token_may_be_in_the_url_or_in_a_header_which_wins(open_events, topic, mint) -> None:
    good = mint()
    for query, headers, status in (
        (f"apikey={good}", {}, 200),
        ("", {"apikey": good}, 200),
        ("apikey=bad", {"authorization": f"Bearer {good}"}, 200),
        (f"apikey={good}", {"authorization": "Bearer bad"}, 401),
        (f"apikey={good}", {"authorization": f"Basic {good}"}, 401),
        ("", {}, 401),
        (f"apikey={mint(ttl_seconds=-1)}", {}, 401),
    ):
        events = open_events(f"topic={topic}&{query}", headers)
        assert events.status == status, (query, headers)


def test_a_refusal_says_why(server, mint) -> None:
    for query, status, text in (
        ("topic=t", 401, "The token provided is not a valid JWT"),
        (f"topic=t&apikey={mint(ttl_seconds=-9)}", 401, "Token has expired"),
        (f"apikey={mint()}", 422, "TopicNameRequired: You must provide a topic name"),
        (f"topic=&apikey={mint()}", 422, "TopicNameRequired: You must provide a topic name"),
        (
            f"topic={'t' * 247}&apikey={mint()}",
            422,
            "TopicNameTooLong: A topic has at most 246 bytes",
        ),
    ):
        answer = server.request("GET", f"/realtime/v1/sse?{query}")
        assert (answer.status, answer.json) == (status, {"error": text})


def test_the_limits_of_websockets_hold_for_streams(start_server, follow) -> None:
    server = start_server(
        "--max-connections", "1", "--max-channels-per-connection", "1", "--private-only"
    )

    assert follow("a", to=server).status == 403
    assert follow("read:a", "read:b", private=True, to=server).status == 429
    assert follow("read:a", private=True, to=server).status == 200
    assert follow("read:a", private=True, to=server).status == 429


def test_a_stream_ends_with_its_token(open_events, mint, topic) -> None:
    events = open_events(f"topic={topic}&apikey={mint(ttl_seconds=2)}")

    assert events.next()[""].startswith("Token has expired")
    assert events.rest() == b""


# The connection


def test_curl_shows_events_as_they_come(server, topic, mint, follow) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{server.port}/realtime/v1/sse?topic={topic}"
    command = ["curl", "-sN", "-H", f"Authorization: Bearer {mint()}", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout.readline().startswith("retry: ")
        server.post("/api/broadcast", {"messages": [message(topic)]})
        curl.stdout.readline()
        line = curl.stdout.readline()
        curl.terminate()

    assert json.loads(line.removeprefix("data: "))["topic"] == topic


def test_a_client_that_does_not_read_is_thrown_out(start_server, follow, topic) -> None:
    server = start_server("--max-write-buffer-bytes", "100000")
    slow, witness = follow(topic, to=server), follow(topic, to=server)

    large = {"messages": [{**message(topic), "payload": {"a": "x" * 500_000}}]}
    for _ in range(20):
        server.post("/api/broadcast", large)
        witness.message()

    server.says("a slow client was thrown out")
    with pytest.raises(ConnectionResetError):
        slow.rest()


def test_a_message_larger_than_the_buffer_arrives(start_server, follow, topic) -> None:
    server = start_server("--max-write-buffer-bytes", "10000")
    events = follow(topic, to=server)

    payload = {"a": "x" * 2_500_000}
    server.post("/api/broadcast", {"messages": [{**message(topic), "payload": payload}]})
    server_is_alive = server.request("GET", "/healthcheck")

    assert events.message()["payload"] == payload
    assert server_is_alive.status == 200


def test_a_client_that_goes_away_is_forgotten(start_server, follow, topic) -> None:
    server = start_server()
    events = follow(topic, to=server)
    assert 'connections{transport="sse"} 1.0' in metrics(server)

    events.close()

    deadline = time.monotonic() + 20
    while 'connections{transport="sse"} 1.0' in metrics(server):
        assert time.monotonic() < deadline
    assert "realtime_db_topics 0.0" in metrics(server)


def metrics(server: Any) -> str:
    return server.request("GET", "/metrics").body.decode()


class Pipe(asyncio.Transport):
    """A transport that keeps what is written, in place of a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def test_a_quiet_stream_gets_comments() -> None:
    pipe, wheel = Pipe(), Wheel(0)
    seconds = 0.0
    services: Any = SimpleNamespace(
        hub=Hub(lambda callback: callback()),
        wheel=wheel,
        now=lambda: seconds,
        settings=SimpleNamespace(max_write_buffer_bytes=1000),
    )
    claims = Claims("anon", 1000, None, "{}")
    EventStream(services, claims, [("room", False)], transport=pipe, streams=set())
    head = pipe.written

    heard = []
    for seconds in (HEARTBEAT_SECONDS, HEARTBEAT_SECONDS + 1, 2 * HEARTBEAT_SECONDS + 3):
        wheel.advance(seconds)
        heard.append(pipe.written.removeprefix(head))

    assert heard == [b"", b":\n\n", b":\n\n:\n\n"]
