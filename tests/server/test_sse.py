"""Topics as server-sent events: what EventSource and curl get."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from websockets.sync.client import connect

from realtime_db.auth import tokens
from realtime_db.auth.tokens import Claims
from realtime_db.cursors import Cursor, Horizon, Snapshot
from realtime_db.hub import Hub
from realtime_db.progress import Progress
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.stored import ReplayFailed
from realtime_db.transports.sse import EVENTS, EVENTS_OF_MANY, HEARTBEAT_SECONDS, EventStream
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
        (BROADCAST._replace(id="m"), b""),
        (BROADCAST._replace(id="m\rdata: x"), b""),
        (BROADCAST._replace(id="m", cursor="c", cursor_of_all="all"), b"id: c\n"),
    ],
)
def test_the_id_is_the_cursor(broadcast: Broadcast, line: bytes) -> None:
    event = EVENTS.encode(broadcast)

    assert event is not None
    assert event.startswith(line + b"data: ")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == line.count(b"\n") + 2


def test_who_follows_several_topics_gets_the_cursor_of_all() -> None:
    both = BROADCAST._replace(id="m", cursor="c", cursor_of_all="all")
    assert (EVENTS_OF_MANY.encode(both) or b"").startswith(b"id: all\ndata: ")


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
        ("topic=t", 401, "API key is missing"),
        ("topic=t&apikey=x", 401, "The token provided is not a valid JWT"),
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
    for seconds in (2, 20):  # if the machine stands still, it may be over before it is looked at
        events = open_events(f"topic={topic}&apikey={mint(ttl_seconds=seconds)}")
        if events.status == 200:
            break

    assert events.end().startswith("Token has expired")


# The connection


def test_curl_shows_events_as_they_come(server, topic, mint, follow) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{server.port}/realtime/v1/sse?topic={topic}"
    command = ["curl", "-sN", "-H", f"Authorization: Bearer {mint()}", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout.readline().startswith("retry: ")
        curl.stdout.readline()
        assert curl.stdout.readline().startswith((":", "id: "))
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
        self.closing = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


def test_a_quiet_stream_gets_comments_and_then_its_place() -> None:
    pipe, wheel, progress = Pipe(), Wheel(0), Progress()
    seconds = 0.0
    services: Any = SimpleNamespace(
        hub=Hub(lambda callback: callback()),
        progress=progress,
        wheel=wheel,
        now=lambda: seconds,
        settings=SimpleNamespace(max_write_buffer_bytes=1000),
    )
    EventStream(
        services,
        "",
        Claims("anon", 1000, None, "{}"),
        [("room", False)],
        last_event_id="",
        headers={},
        generation=0,
        transport=pipe,
        streams=set(),
    )
    assert pipe.written.endswith(b"retry: 2000\n\n:\n\n")
    head = pipe.written

    heard = []
    for seconds in (HEARTBEAT_SECONDS, HEARTBEAT_SECONDS + 1, 2 * HEARTBEAT_SECONDS + 3):
        wheel.advance(seconds)
        heard.append(pipe.written.removeprefix(head))
    assert heard == [b"", b":\n\n", b":\n\n:\n\n"]

    progress.look(Snapshot(5, 5), at=9, taken_us=1)
    progress.passed(9)
    progress.settled(9)
    wheel.advance(3 * HEARTBEAT_SECONDS + 5)
    assert pipe.written.endswith(b":\n\nid: %b\n\n" % progress.now.encode())


class Stored:
    """Gives what came after a cursor when the test says so, and may fail then."""

    def __init__(self, *, fails: bool = False) -> None:
        self.ready = asyncio.Event()
        self._fails = fails

    @asynccontextmanager
    async def resume(self, topics: Any, *, subscriber: Any, **_: Any) -> AsyncIterator[Any]:
        subscriber.hold()
        yield SimpleNamespace(
            seen=Snapshot(9, 9), cursor="new", gap=None, is_empty=False, pages=self._pages
        )

    async def _pages(self) -> AsyncIterator[list[Broadcast]]:
        yield [BROADCAST._replace(event="stored", id="1")]
        await self.ready.wait()
        if self._fails:
            raise ReplayFailed("the connection was lost")
        yield [BROADCAST._replace(event="last", id="2")]


def resuming(stored: Stored) -> tuple[EventStream, Pipe, Hub]:
    """A stream of two topics that resumes."""
    pipe, hub = Pipe(), Hub(asyncio.get_running_loop().call_soon)
    services: Any = SimpleNamespace(
        hub=hub,
        progress=Progress(),
        wheel=Wheel(0),
        now=lambda: 0.0,
        stored=stored,
        log=logging.getLogger(),
        settings=SimpleNamespace(max_write_buffer_bytes=10_000),
    )
    stream = EventStream(
        services,
        "",
        Claims("anon", 1000, None, "{}"),
        [("room", False), ("news", False)],
        last_event_id=str(Cursor("w", Horizon(7, Snapshot(5, 5), 2))),
        headers={},
        generation=0,
        transport=pipe,
        streams=set(),
    )
    return stream, pipe, hub


async def _begun(pipe: Pipe, hub: Hub) -> None:
    """The first page has been sent, and something is kept meanwhile."""
    begun = len(pipe.written)
    await _until(lambda: len(pipe.written) > begun)
    hub.publish(("room", False), BROADCAST._replace(event="live", id="3", cursor_of_all="live"))


@pytest.mark.parametrize("how", ["fails", "the server closes", "the client ends its half"])
def test_a_stream_that_ends_while_it_resumes_gives_no_id_of_more_than_it_gave(how: str) -> None:
    async def run() -> bytes:
        stored = Stored(fails=how == "fails")
        stream, pipe, hub = resuming(stored)
        await _begun(pipe, hub)
        if how == "the server closes":
            stream.close("because")
        elif how == "the client ends its half":
            stream.eof_received()
        stored.ready.set()
        await _until(lambda: pipe.closing and not hub.topics)
        hub.publish(("news", False), BROADCAST._replace(event="late", id="4", cursor_of_all="late"))
        for _ in range(9):
            await asyncio.sleep(0)
        return pipe.written

    written = asyncio.run(run())
    assert b"id: w" in written
    assert not any(line in written for line in (b"id: new", b"id: live", b"id: late", b'"live"'))


def test_a_client_that_has_ended_its_half_gets_nothing_more() -> None:
    """What is too much for it would be left out, and what comes later not."""

    async def run() -> tuple[bytes, int]:
        stored = Stored()
        stored.ready.set()
        stream, pipe, hub = resuming(stored)
        await _until(lambda: b'"last"' in pipe.written)
        written = len(pipe.written)
        stream.pause_writing()
        stream.eof_received()
        hub.publish(("news", False), BROADCAST._replace(id="3", cursor_of_all="left out"))
        hub.flush()
        stream.resume_writing()
        hub.publish(("news", False), BROADCAST._replace(id="4", cursor_of_all="later"))
        hub.flush()
        return pipe.written[written:], hub.topics

    assert asyncio.run(run()) == (b"", 0)


def test_a_stream_is_not_moved_on_before_it_has_got_what_it_missed() -> None:
    async def run() -> list[str]:
        pipe, wheel, progress, stored = Pipe(), Wheel(0), Progress(), Stored()
        progress.look(Snapshot(5, 5), at=9, taken_us=2)
        progress.passed(9)
        progress.settled(9)
        assert progress.horizon is not None
        seconds = 0.0
        hub = Hub(asyncio.get_running_loop().call_soon)
        services: Any = SimpleNamespace(
            hub=hub,
            progress=progress,
            wheel=wheel,
            now=lambda: seconds,
            stored=stored,
            settings=SimpleNamespace(max_write_buffer_bytes=10_000),
        )
        last = str(Cursor("w", progress.horizon))
        EventStream(
            services,
            "",
            Claims("anon", 1000, None, "{}"),
            [("room", False)],
            last_event_id=last,
            headers={},
            generation=0,
            transport=pipe,
            streams=set(),
        )
        begun = len(pipe.written)
        await _until(lambda: len(pipe.written) > begun)
        hub.publish(("room", False), BROADCAST._replace(event="live", id="3", cursor="live"))
        seconds = HEARTBEAT_SECONDS + 1
        wheel.advance(seconds)
        stored.ready.set()
        await _until(lambda: b'"live"' in pipe.written)
        seconds = 2 * HEARTBEAT_SECONDS + 3
        wheel.advance(seconds)
        written = pipe.written[begun:].decode().replace(last, "old").replace(progress.now, "now")
        return [event.partition("\n")[0].partition("{")[0] for event in written.split("\n\n")]

    # One message is kept back until it is known whether it is the last.
    assert asyncio.run(run()) == ["id: old", ":", "data: ", "id: new", "id: live", "id: now", ""]


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)


# Resuming


@pytest.fixture
def placed(follow) -> Any:
    """`placed("room")` -> the events of topics, when the server knows where it is."""

    def placed(*topics: str, **more: Any) -> Any:
        deadline = time.monotonic() + 60
        while (events := follow(*topics, **more)).place is None:
            assert time.monotonic() < deadline
            events.close()
        return events

    return placed


def send(connection: Any, topic: str, event: str, private: bool = False) -> None:
    connection.execute("select realtime.send('{}', %s, %s, %s)", [event, topic, private])


@pytest.mark.parametrize("private", [False, True])
def test_a_stream_goes_on_after_the_last_event_id(
    served_database_url, database, follow, placed, private_topic, private
) -> None:
    events, watcher = (placed(private_topic, private=private) for _ in range(2))
    with psycopg.connect(served_database_url) as open_:
        send(open_, private_topic, "open", private)
        send(database, private_topic, "seen", private)
        last = events.event()["id"]
        events.close()
        send(database, private_topic, "between", private)
        open_.commit()
    send(database, private_topic, "other", not private)
    assert [watcher.message()["event"] for _ in range(3)] == ["seen", "between", "open"]

    again = follow(private_topic, private=private, after=last)

    assert again.place == last  # who stops here has got nothing
    first, second = again.event(), again.event()
    assert first["id"] not in (last, second["id"])
    message_id = json.loads(first["data"])["meta"]["id"]
    assert json.loads(first["data"]) == {
        "type": "broadcast",
        "event": "between",
        "payload": {"id": message_id},
        "meta": {"replayed": True, "id": message_id},
        "topic": private_topic,
    }
    assert json.loads(second["data"])["event"] == "open"
    send(database, private_topic, "live", private)
    third = again.event()
    assert (json.loads(third["data"])["event"], len(third)) == ("live", 2)

    send(database, private_topic, "more", private)
    for after, rest in ((second["id"], ["live", "more"]), (third["id"], ["more"])):
        resumed = follow(private_topic, private=private, after=after)
        assert [resumed.message()["event"] for _ in rest] == rest


def test_a_stream_that_got_nothing_goes_on_where_it_began(database, follow, placed, topic) -> None:
    watcher = placed(topic)
    send(database, topic, "before")
    assert watcher.message()["event"] == "before"
    first = placed(topic)
    first.close()
    send(database, topic, "after")

    assert follow(topic, after=first.place).message()["event"] == "after"


def test_one_stream_of_two_topics_misses_nothing_of_either(
    served_database_url, database, follow, placed, topic
) -> None:
    one, two = topic, f"{topic}:two"
    events, watcher = placed(one, two), placed(one, two)
    with psycopg.connect(served_database_url) as open_:
        send(open_, one, "open")
        send(database, two, "a")
        send(database, one, "b")
        assert {events.message()["event"] for _ in "ab"} == {"a", "b"}
        send(database, one, "c")
        last = events.event()["id"]
        events.close()
        send(database, two, "d")
        open_.commit()
        send(database, one, "e")
    while watcher.message()["event"] != "e":
        pass

    again = follow(one, two, after=last)

    heard = [again.message() for _ in range(3)]
    # What was not settled comes again; topics are not ordered among each other.
    while heard[-1]["event"] != "e":
        heard.append(again.message())
    events_heard = [message["event"] for message in heard]
    assert events_heard[-3:] == ["d", "open", "e"]
    assert set(events_heard[:-3]) <= {"a", "b", "c"}
    assert heard[-3]["topic"] == two


def test_a_resume_that_finds_nothing_moves_on(database, follow, placed, topic) -> None:
    first = placed(topic)
    first.close()
    again = follow(topic, after=first.place)
    assert Cursor.parse(again.place).horizon.taken_us > Cursor.parse(first.place).horizon.taken_us


def test_the_last_event_id_may_be_in_the_url_and_the_header_wins(
    database, open_events, placed, topic, mint
) -> None:
    first = placed(topic)
    send(database, topic, "a")
    second = first.event()["id"]
    send(database, topic, "b")
    query = f"topic={topic}&apikey={mint()}&lastEventId={first.place}"

    assert open_events(query).message()["event"] == "a"
    assert open_events(query, {"last-event-id": second}).message()["event"] == "b"


@pytest.mark.parametrize("last", ["2a16a799-cdbf-4742-add4-4fb6a8e44816", "x", "w.w"])
def test_an_id_that_nobody_can_read_is_a_gap(server, follow, placed, topic, last) -> None:
    placed(topic)  # the server knows where it is
    events = follow(topic, after=last)

    # What moves it on is what says that something is missing: nobody can have the one alone.
    gap = events.first
    assert (gap["event"], gap.keys()) == ("gap", {"id", "event", "data"})
    before = datetime.fromisoformat(json.loads(gap["data"])["before"])
    assert abs(before.timestamp() - time.time()) < 60
    server.post(f"/api/broadcast/{topic}/events/e", {})
    assert events.message()["event"] == "e"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("is_empty", [False, True])
def test_an_id_from_before_all_that_is_stored_is_a_gap(
    server, database, follow, placed, topic, count, is_empty
) -> None:
    topics = [topic, f"{topic}:two"][:count]
    cursor = Cursor.parse(placed(*topics).place)
    if not is_empty:
        send(database, topic, "still there")
    long_ago = cursor.horizon.taken_us - 40 * 86_400_000_000
    horizon = cursor.horizon._replace(taken_us=long_ago, since_us=long_ago)
    old = str(cursor._replace(horizon=horizon))
    before = resume_gaps(server)

    events = follow(*topics, after=old)

    gap = events.first
    assert (gap["event"], json.loads(gap["data"]).keys()) == ("gap", {"before"})
    assert (gap["id"] == old) is not is_empty
    assert resume_gaps(server) == before + 1
    assert server.said(rf"whoever resumed {', '.join(topics)} was told that messages before \d")
    if not is_empty:
        assert events.message()["event"] == "still there"


def resume_gaps(server: Any) -> float:
    return float(metrics(server).partition("\nrealtime_db_resume_gaps_total ")[2].split()[0])


def test_a_stream_that_cannot_resume_ends_and_comes_back(
    start_server, served_database_url, placed, follow, topic, mint
) -> None:
    """EventSource gives up on any answer but 200, so the reason is in a comment."""
    server = start_server("--statement-timeout-seconds", "2")
    place = placed(topic, to=server).place
    with psycopg.connect(served_database_url) as other:
        other.execute("lock table realtime.messages in access exclusive mode")
        with server.open() as opened:
            query = f"topic={topic}&apikey={mint()}"
            opened.sendall(
                f"GET /realtime/v1/sse?{query} HTTP/1.1\r\nhost: x\r\n"
                f"last-event-id: {place}\r\n\r\n".encode()
            )
            answer = b""
            while piece := opened.recv(65_536):
                answer += piece
        other.rollback()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b": UnableToReplayMessages: Realtime was unable to replay messages\n\n")
    assert placed(topic, after=place, to=server).place  # which asks again if it cannot yet


def test_a_long_absence_is_made_up_for(database, follow, placed, topic) -> None:
    """More than a stream may be behind."""
    place = placed(topic).place
    database.execute(
        "select realtime.send(jsonb_build_object('n', n, 'x', repeat('x', 20000)), 'e', %s, false)"
        " from generate_series(1, 1000) as n",
        [topic],
    )
    # The server has read it: it might be more than is kept for a stream that resumes.
    other = follow(f"{topic}:other")
    send(database, f"{topic}:other", "later")
    assert other.message()["event"] == "later"

    events = follow(topic, after=place)

    assert [events.message()["payload"]["n"] for _ in range(1000)] == list(range(1, 1001))
    send(database, topic, "live")
    assert events.message()["event"] == "live"


def test_a_retired_key_ends_the_streams_that_it_opened(
    start_server, open_events, tmp_path, topic, mint
) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("a-secret-that-is-retired-soon")
    server = start_server("--jwt-secrets-file", str(secrets))
    retired = tokens.mint(
        "a-secret-that-is-retired-soon", role="anon", now=time.time(), ttl_seconds=3600
    )
    old = open_events(f"topic={topic}&apikey={retired}", to=server)
    new = open_events(f"topic={topic}&apikey={mint()}", to=server)
    secrets.write_text("another-secret-that-nobody-uses")

    os.kill(server.pid, signal.SIGHUP)

    assert old.end() == "Failed to validate JWT signature"
    server.says("1 connections ended: their keys were retired")
    server.post(f"/api/broadcast/{topic}/events/e", {})
    assert new.message()["event"] == "e"


def test_a_stream_that_would_get_too_much_ends(start_server, follow, topic) -> None:
    server = start_server("--max-deliveries-per-second", "0.1")  # and one at once
    events = follow(topic, to=server)

    server.post(f"/api/broadcast/{topic}/events/e", {})
    assert events.message()["event"] == "e"
    server.post(f"/api/broadcast/{topic}/events/e", {})

    assert events.next() == {"": "Too many messages per second"}
    assert events.rest() == b""


def test_policies_see_no_token_of_a_stream(open_events, mint) -> None:
    headers = {"authorization": f"Bearer {mint()}", "apikey": "x", "x-api-key": "x", "cookie": "a"}

    assert open_events("topic=secret:1&private=true", headers).status == 200
