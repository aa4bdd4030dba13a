"""Broadcasts by HTTP, and what WebSocket clients of both framings get of them (PROTOCOL 8)."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from websockets.sync.client import ClientConnection, connect

LAYOUTS = ("/api/broadcast", "/realtime/v1/api/broadcast")
BYTES = {"content-type": "application/octet-stream"}


class Channel:
    """A client that has joined topics on one WebSocket."""

    def __init__(self, socket: ClientConnection, vsn: str) -> None:
        self._socket = socket
        self._vsn = vsn

    def join(self, topic: str, *, private: bool = False) -> None:
        payload = {"config": {"private": private}}
        full = f"realtime:{topic}"
        frame: Any = ["1", "1", full, "phx_join", payload]
        if self._vsn == "1.0.0":
            frame = {"topic": full, "event": "phx_join", "payload": payload, "ref": "1"}
        self._socket.send(json.dumps(frame))
        answer = self.next()
        payload = answer["payload"] if isinstance(answer, dict) else answer[4]
        assert payload["status"] == "ok", answer

    def next(self) -> Any:
        """The next frame: JSON, or bytes."""
        frame = self._socket.recv(timeout=20)
        return frame if isinstance(frame, bytes) else json.loads(frame)


@pytest.fixture
def open_channel(server, mint) -> Iterator[Callable[..., Channel]]:
    """`open_channel("2.0.0", to=server)` -> a client without a topic yet."""
    with ExitStack() as stack:

        def open_channel(vsn: str = "2.0.0", to=server) -> Channel:
            url = f"ws://127.0.0.1:{to.port}/socket/websocket?apikey={mint()}&vsn={vsn}"
            return Channel(stack.enter_context(connect(url)), vsn)

        yield open_channel


@pytest.fixture
def listen(open_channel) -> Callable[..., Channel]:
    """`listen(topic)` -> a client that has joined it."""

    def listen(topic: str, vsn: str = "2.0.0", *, private: bool = False, **more: Any) -> Channel:
        channel = open_channel(vsn, **more)
        channel.join(topic, private=private)
        return channel

    return listen


def message(topic: str, event: str = "e", payload: Any = None, **more: Any) -> dict[str, Any]:
    return {"topic": topic, "event": event, "payload": payload or {}, **more}


def batch(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def single(topic: str, event: str = "e", query: str = "", base: str = LAYOUTS[0]) -> str:
    return f"{base}/{quote(topic, safe='')}/events/{quote(event, safe='')}{query}"


def text(topic: str, event: str, payload: Any, **more: Any) -> list[Any]:
    """The frame of V2 in which a message of a batch comes."""
    content = {"type": "broadcast", "event": event, "payload": payload, **more}
    return [None, None, f"realtime:{topic}", "broadcast", content]


def binary(topic: str, event: str, payload: bytes, *, encoding: int) -> bytes:
    """The frame of V2 in which a single message comes."""
    full, name = f"realtime:{topic}".encode(), event.encode()
    return bytes((4, len(full), len(name), 0, encoding)) + full + name + payload


def accepted(answer: Any) -> bool:
    return (answer.status, answer.body) == (202, b"")


# Delivery


@pytest.mark.parametrize("path", LAYOUTS)
def test_a_batch_arrives_in_text_frames_in_its_order(server, listen, topic, path) -> None:
    modern, old = listen(topic), listen(topic, "1.0.0")

    answer = server.post(path, batch(message(topic, "a", {"n": 1}), message(topic, "b", {"n": 2})))

    assert accepted(answer)
    assert [modern.next(), modern.next()] == [
        text(topic, "a", {"n": 1}),
        text(topic, "b", {"n": 2}),
    ]
    assert old.next() == {
        "topic": f"realtime:{topic}",
        "event": "broadcast",
        "payload": {"type": "broadcast", "event": "a", "payload": {"n": 1}},
        "ref": None,
    }


@pytest.mark.parametrize("base", LAYOUTS)
def test_a_single_json_message_arrives_in_a_binary_frame(server, listen, topic, base) -> None:
    channel = listen(topic)

    assert accepted(server.post(single(topic, "hi", base=base), {"n": 1}))

    assert channel.next() == binary(topic, "hi", b'{"n": 1}', encoding=1)


@pytest.mark.parametrize("body", [b"\x00\xff{", b""])
def test_a_single_message_of_bytes_arrives_as_they_are(server, listen, topic, mint, body) -> None:
    channel = listen(topic)

    answer = server.request("POST", single(topic), body, {"apikey": mint(), **BYTES})

    assert accepted(answer)
    assert channel.next() == binary(topic, "e", body, encoding=0)


@pytest.mark.parametrize("name", ["a/b", "ä ö", "100%", "a?b#c", "a%2Fb", "..", "events"])
def test_a_topic_and_an_event_are_split_before_they_are_decoded(
    server, listen, topic, name
) -> None:
    channel = listen(f"{topic}{name}")

    assert accepted(server.post(single(f"{topic}{name}", name), {}))

    assert channel.next() == binary(f"{topic}{name}", name, b"{}", encoding=1)


@pytest.mark.parametrize("payload", [b'{"n": 12345678901234567890.100}', b'{"\xc3\xbc":1e400}'])
def test_every_digit_of_a_payload_survives(server, listen, topic, mint, payload) -> None:
    channel = listen(topic)

    body = b'{"messages":[{"topic":"%b","event":"e","payload":%b}]}' % (topic.encode(), payload)
    one = server.request("POST", single(topic), payload, {"apikey": mint()})
    many = server.request("POST", "/api/broadcast", body, {"apikey": mint()})

    assert accepted(one)
    assert accepted(many)
    assert channel.next() == binary(topic, "e", payload, encoding=1)
    assert payload.decode() in channel._socket.recv(timeout=20)


@pytest.mark.parametrize("value", [b"[1,2]", b'"text"', b"null", b" 7 "])
def test_a_single_payload_that_is_no_object_is_wrapped(server, listen, topic, mint, value) -> None:
    channel = listen(topic)

    assert accepted(server.request("POST", single(topic), value, {"apikey": mint()}))

    payload = b'{"_json":%b}' % value.strip()
    assert channel.next() == binary(topic, "e", payload, encoding=1)


def test_no_single_payload_is_an_empty_object(server, listen, topic, mint) -> None:
    channel = listen(topic)

    assert accepted(server.request("POST", single(topic), b"", {"apikey": mint()}))

    assert channel.next() == binary(topic, "e", b"{}", encoding=1)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", None]
)
def test_json_may_have_parameters_or_no_content_type(
    server, listen, topic, mint, content_type
) -> None:
    channel = listen(topic)
    headers = {"apikey": mint()} | ({"content-type": content_type} if content_type else {})

    assert accepted(server.request("POST", single(topic), b'{"a":1}', headers))

    assert channel.next() == binary(topic, "e", b'{"a":1}', encoding=1)


def test_the_id_of_a_message_in_a_batch_arrives_as_its_meta(server, listen, topic) -> None:
    channel = listen(topic)

    assert accepted(server.post("/api/broadcast", batch(message(topic, id="x-1"))))

    assert channel.next() == text(topic, "e", {}, meta={"id": "x-1"})


def test_unknown_query_parameters_are_ignored(server, listen, topic, mint) -> None:
    channel = listen(topic)
    query = f"?apikey=nonsense&vsn=2.0.0&unknown=true&unknown%5Bttl%5D=60&{'a' * 3000}"

    assert accepted(server.post(f"/api/broadcast{query}", batch(message(topic, "a"))))
    assert accepted(server.post(single(topic, "b", query), {}))

    assert channel.next()[4]["event"] == "a"
    assert channel.next() == binary(topic, "b", b"{}", encoding=1)


# Private topics


def test_public_messages_go_out_first_and_private_ones_by_topic(
    server, open_channel, topic, private_topic
) -> None:
    first, second = f"{private_topic}:1", f"{private_topic}:2"
    channel = open_channel()
    channel.join(topic)
    channel.join(first, private=True)
    channel.join(second, private=True)

    answer = server.post(
        "/api/broadcast",
        batch(
            message(first, "1", private=True),
            message(topic, "2"),
            message(second, "3", private=True),
            message(first, "4", private=True),
            message(topic, "5"),
        ),
    )

    assert accepted(answer)
    assert [channel.next()[4]["event"] for _ in range(5)] == ["2", "5", "1", "4", "3"]


def test_private_and_public_subscribers_never_meet(server, listen, private_topic) -> None:
    public, private = listen(private_topic), listen(private_topic, private=True)

    assert accepted(server.post(single(private_topic, "a", "?private=true"), {}))
    assert accepted(server.post(single(private_topic, "b"), {}))

    assert private.next() == binary(private_topic, "a", b"{}", encoding=1)
    assert public.next() == binary(private_topic, "b", b"{}", encoding=1)


def test_a_batch_drops_what_may_not_be_written_silently(
    server, open_channel, private_topic
) -> None:
    denied, broken = f"read:{private_topic}", f"broken:{private_topic}"
    channel = open_channel()
    channel.join(private_topic, private=True)
    channel.join(denied, private=True)

    answer = server.post(
        "/api/broadcast",
        batch(
            message(denied, "denied", private=True),
            message(broken, "broken", private=True),
            message(private_topic, "allowed", private=True),
        ),
    )
    assert accepted(server.post(single(private_topic, "last", "?private=true"), {}))

    assert accepted(answer)
    assert channel.next() == text(private_topic, "allowed", {})
    assert channel.next() == binary(private_topic, "last", b"{}", encoding=1)


def test_a_single_private_message_without_the_write_right_is_403(server) -> None:
    answer = server.post(single("read:x", query="?private=true"), {})

    assert (answer.status, answer.json) == (403, {"message": "Unauthorized"})


def test_a_policy_that_fails_is_422(server) -> None:
    answer = server.post(single("broken:x", query="?private=TRUE"), {})

    assert (answer.status, answer.json) == (422, {"message": "RLS policy error"})


def test_a_role_that_does_not_exist_is_422(server, mint) -> None:
    headers = {"authorization": f"Bearer {mint('nobody_here')}"}
    answer = server.post(single("open:x", query="?private=true"), {}, headers=headers)

    assert (answer.status, answer.json) == (422, {"message": "RLS policy error"})


@pytest.mark.parametrize(("team", "status"), [("blue", 202), ("red", 403)])
def test_policies_see_the_headers_of_the_request(server, team, status) -> None:
    answer = server.post(single("header:x", query="?private=true"), {}, headers={"X-Team": team})

    assert answer.status == status


def test_a_policy_that_takes_too_long_is_422_and_a_pool_in_use_429(start_server) -> None:
    server = start_server("--statement-timeout-seconds", "1", "--pool-size", "1")
    path = single("slow:x", query="?private=true")

    slow, too_many = (422, "Query canceled"), (429, "Connection pool exhausted")
    with concurrent.futures.ThreadPoolExecutor(3) as threads:

        def ask() -> set[tuple[int, str]]:
            answers = [threads.submit(server.post, path, {}) for _ in range(3)]
            return {(answer.result().status, answer.result().json["message"]) for answer in answers}

        # A busy machine may need a second for the first connection, or between two of the three.
        seen: set[tuple[int, str]] = set()
        deadline = time.monotonic() + 60
        while seen != {slow, too_many}:
            assert time.monotonic() < deadline, seen
            seen |= ask()
            assert seen <= {slow, too_many}


def test_an_error_of_the_check_sends_nothing_of_a_batch(start_server, listen, topic) -> None:
    server = start_server("--statement-timeout-seconds", "3")
    channel = listen(topic, to=server)

    answer = server.post(
        "/api/broadcast", batch(message(topic, "lost"), message("slow:x", private=True))
    )
    assert accepted(server.post(single(topic, "next"), {}))

    assert (answer.status, answer.json) == (422, {"message": "Query canceled"})
    assert channel.next() == binary(topic, "next", b"{}", encoding=1)


def test_no_partition_for_today_is_422(start_server, own_database_url) -> None:
    server = start_server("--no-maintain", database_url=own_database_url)
    with psycopg.connect(own_database_url, autocommit=True) as owner:
        for (name,) in owner.execute("select partition_name from realtime.partitions()").fetchall():
            owner.execute(f"drop table realtime.{name}")

    answer = server.post(single("open:x", query="?private=true"), {})

    assert (answer.status, answer.json) == (422, {"message": "Missing messages partition"})


# Who


def test_a_missing_or_bad_token_is_401(server, topic, mint) -> None:
    good = mint()
    for headers in (
        {},
        {"apikey": ""},
        {"apikey": "nonsense"},
        {"apikey": mint(ttl_seconds=-1)},
        {"apikey": good[:-2] + ("AA" if good[-2:] != "AA" else "BB")},
        {"authorization": f"Bearer {mint(ttl_seconds=-1)}"},
        {"authorization": "Bearer"},
        {"authorization": good},
        {"authorization": f"Basic {good}"},
        {"authorization": f"Bearer {good} {good}"},
        {"authorization": "", "apikey": good},
        {"authorization": "Bearer nonsense", "apikey": good},
    ):
        for path in ("/api/broadcast", single(topic), single(topic, query="?private=true")):
            answer = server.request("POST", path, b"{}", headers)
            assert (answer.status, answer.json) == (401, {"message": "Unauthorized"}), headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_authorization_wins_over_the_apikey(server, topic, mint, scheme) -> None:
    headers = {"authorization": f"{scheme} {mint()}", "apikey": "nonsense"}

    assert accepted(server.request("POST", single(topic), b"{}", headers))


def test_an_apikey_alone_is_enough(server, topic, mint) -> None:
    assert accepted(server.request("POST", single(topic), b"{}", {"apikey": mint("anon")}))


# What is wrong


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        ({}, ["can't be blank"]),
        ({"messages": []}, ["can't be blank"]),
        ({"messages": None}, ["can't be blank"]),
        ([], ["can't be blank"]),
        ({"messages": {}}, ["is invalid"]),
        ({"messages": ["x"]}, ["is invalid"]),
        (batch(message("t"), {}), [
            {},
            {
                "topic": ["can't be blank"],
                "event": ["can't be blank"],
                "payload": ["can't be blank"],
            },
        ]),
        (batch({"topic": "", "event": " ", "payload": None}), [
            {
                "topic": ["can't be blank"],
                "event": ["can't be blank"],
                "payload": ["can't be blank"],
            },
        ]),
        (batch({"topic": 1, "event": {}, "payload": [], "private": "x", "id": 7}), [
            {
                "topic": ["is invalid"],
                "event": ["is invalid"],
                "payload": ["is invalid"],
                "private": ["is invalid"],
                "id": ["is invalid"],
            },
        ]),
        (batch(message("ü" * 124)), [{"topic": ["should be at most 246 bytes"]}]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_batch_is_422_for_each_message(server, content, errors) -> None:
    answer = server.post("/api/broadcast", content)

    assert (answer.status, answer.json) == (422, {"errors": {"messages": errors}})


def test_one_bad_message_keeps_the_whole_batch_back(server, listen, topic) -> None:
    channel = listen(topic)

    assert server.post("/api/broadcast", batch(message(topic, "lost"), {})).status == 422
    assert accepted(server.post("/api/broadcast", batch(message(topic, "next"))))

    assert channel.next() == text(topic, "next", {})


def test_a_payload_over_the_limit_is_422(start_server, topic, mint) -> None:
    server = start_server("--max-payload-bytes", "20")
    large, fits = {"a": "x" * 12}, {"a": "x" * 11}

    many = server.post("/api/broadcast", batch(message(topic, payload=large), message(topic)))
    one = server.post(single(topic), large)
    raw = server.request("POST", single(topic), b"x" * 21, {"apikey": mint(), **BYTES})

    too_large = ["Payload size exceeds tenant limit"]
    assert (many.status, many.json) == (422, {"errors": {"messages": [{"payload": too_large}, {}]}})
    assert (one.status, one.json) == (422, {"errors": {"payload": too_large}})
    assert (raw.status, raw.json) == (422, {"errors": {"payload": too_large}})
    assert accepted(server.post("/api/broadcast", batch(message(topic, payload=fits))))
    assert accepted(server.post(single(topic), fits))


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b'{"messages":[{]}', b'"\xff"', b"[" * 100_000, b"{}{}", b"\x00"],
    ids=range(7),
)
def test_a_body_that_is_not_json_is_400(server, topic, mint, body) -> None:
    for path in ("/api/broadcast", single(topic)):
        answer = server.request("POST", path, body, {"apikey": mint()})
        assert (answer.status, answer.json) == (400, {"message": "The body is not JSON"})


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_neither_json_nor_bytes_is_415(server, topic, mint, content_type) -> None:
    headers = {"apikey": mint(), "content-type": content_type}
    answer = server.request("POST", single(topic), b"a=1", headers)

    assert (answer.status, answer.json) == (
        415,
        {"error": "Unsupported Media Type. Use application/json or application/octet-stream"},
    )


def test_names_that_do_not_fit_into_a_frame_are_422(server, topic, mint) -> None:
    long_topic = server.post(single("t" * 247), {})
    long_event = server.request("POST", single(topic, "ü" * 128), b"", {"apikey": mint(), **BYTES})

    assert (long_topic.status, long_topic.json["message"]) == (
        422,
        "topic should be at most 246 bytes",
    )
    assert (long_event.status, long_event.json["message"]) == (
        422,
        "event should be at most 255 bytes in a binary message",
    )
    assert accepted(server.post(single("t" * 246), {}))


@pytest.mark.parametrize("value", ["1", "yes", "", "null"])
def test_private_is_never_taken_for_public(server, topic, mint, value) -> None:
    for answer in (
        server.post(single(topic, query=f"?private={value}"), {}),
        server.request("GET", f"/realtime/v1/sse?topic=t&private={value}&apikey={mint()}"),
    ):
        assert answer.status == 422
        assert "private must be true or false" in answer.json.values()


def test_a_long_event_of_json_still_arrives(server, listen, topic) -> None:
    channel = listen(topic)

    assert accepted(server.post(single(topic, "e" * 300), {}))

    assert channel.next() == text(topic, "e" * 300, {})


def test_a_topic_that_is_not_utf8_is_400(server, mint) -> None:
    path = "/api/broadcast/%ff/events/e"

    assert server.request("POST", path, b"{}", {"apikey": mint()}).status == 400


def test_more_messages_than_a_user_may_send_are_429(start_server, topic, mint) -> None:
    server = start_server("--max-messages-per-second", "0.2")  # two at once
    two = batch(*[message(topic)] * 2)
    mine = {"authorization": f"Bearer {mint()}"}
    yours = {"authorization": f"Bearer {mint('anon')}"}

    three = server.post("/api/broadcast", batch(*[message(topic)] * 3), headers=mine)
    assert (three.status, three.json) == (
        429,
        {"message": "Too many messages to broadcast, please reduce the batch size"},
    )
    assert accepted(server.post("/api/broadcast", two, headers=mine))
    for answer in (
        server.post("/api/broadcast", two, headers=mine),
        server.post(single(topic, query="?private=true"), {}, headers=mine),
    ):
        assert (answer.status, answer.json) == (
            429,
            {"message": "You have exceeded your rate limit"},
        )
    assert accepted(server.post("/api/broadcast", two, headers=yours))


def test_more_bytes_than_a_user_may_send_are_429(start_server, topic, mint) -> None:
    server = start_server("--max-bytes-per-second", "100")  # a thousand at once
    payload = {"a": "x" * 980}  # it takes ten seconds until there is room for another

    assert accepted(server.post(single(topic), payload))
    answer = server.post(single(topic), payload)
    never = server.post(single(topic), {"a": "x" * 1000})

    assert (answer.status, answer.json) == (429, {"message": "You have exceeded your rate limit"})
    assert (never.status, never.json) == (
        429,
        {"message": "Too many messages to broadcast, please reduce the batch size"},
    )
    server.says("BytePerSecondRateLimitReached: a request with 1 messages of 98. bytes")


def test_where_all_is_private_a_public_broadcast_is_refused(
    start_server, topic, private_topic, follow
) -> None:
    server = start_server("--private-only")
    events = follow(private_topic, private=True, to=server)
    private = {**message(private_topic), "private": True}

    for answer in (
        server.post(single(topic), {}),
        server.post("/api/broadcast", batch(message(topic))),
        server.post("/api/broadcast", batch(private, message(topic))),
    ):
        assert (answer.status, answer.json) == (
            403,
            {"message": "PrivateOnly: This project only allows private channels"},
        )
    assert accepted(server.post("/api/broadcast", batch({**private, "event": "mine"})))
    assert events.message()["event"] == "mine"


def test_policies_see_headers_but_no_token(server, mint) -> None:
    headers = {"apikey": mint(), "x-api-key": mint(), "cookie": "a=b", "x-team": "blue"}

    assert accepted(server.post(single("secret:1", query="?private=true"), {}, headers=headers))
    assert accepted(server.post(single("header:1", query="?private=true"), {}, headers=headers))


# Browsers


@pytest.mark.parametrize("path", [*LAYOUTS, single("t"), "/realtime/v1/sse", "/nowhere"])
def test_every_answer_may_be_read_by_every_page(server, path) -> None:
    for method in ("POST", "PUT", "GET"):
        answer = server.request(method, path)
        assert answer.status >= 400
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", [*LAYOUTS, single("t"), "/realtime/v1/sse"])
def test_a_preflight_allows_what_the_clients_send(server, path) -> None:
    wanted = "apikey,authorization,content-type,x-client-info,x-mine"
    for headers in ({}, {"access-control-request-headers": wanted}):
        answer = server.request(
            "OPTIONS",
            path,
            headers={"origin": "http://x", "access-control-request-method": "POST", **headers},
        )
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "*"
        method = "GET" if path.endswith("sse") else "POST"
        assert method in answer.headers["access-control-allow-methods"].split(", ")
        allowed = {h.strip() for h in answer.headers["access-control-allow-headers"].split(",")}
        assert {"apikey", "authorization", "content-type", "x-client-info"} <= allowed
    assert "x-mine" in allowed


def test_another_method_is_405_and_another_path_404(server) -> None:
    answer = server.request("PUT", "/api/broadcast")

    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
    assert server.request("POST", "/api/broadcast/t/events").status == 404
    assert server.request("POST", "/api/broadcast//events/e").status == 404
