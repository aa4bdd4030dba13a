"""The client: its pure parts, and all of it against a server that does what the test says.

`Server` below speaks the protocol as far as a test makes it: a test takes what the client sent and
decides what comes back, so that a connection can be lost at each step.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from realtime_db.client import (
    Client,
    ClientError,
    ConnectRefused,
    JoinRefused,
    Message,
    MessagesMissing,
    NotAnswered,
    PayloadUnreadable,
    SendRefused,
    Subscription,
    TokenUnavailable,
    seen,
    wire,
)
from realtime_db.client.backoff import FIRST_SECONDS, MAX_SECONDS, Backoff
from realtime_db.client.channel import Channel
from realtime_db.client.client import socket_url
from realtime_db.client.connection import is_of_the_token, passes
from realtime_db.client.seen import Seen
from realtime_db.client.tokens import seconds_left, seconds_to_renewal
from realtime_db.cursors import Cursor, Horizon, Snapshot
from realtime_db.protocol.frames import V2
from realtime_db.protocol.join import parse_join
from realtime_db.protocol.pushes import decode_v2

DEADLINE_SECONDS = 60.0
TOPIC = "realtime:room"


def cursor(number: int, *, shown_before: int = 3, seconds: int = 0, cluster: int = 7) -> str:
    """After the message of a transaction, when all transactions before another were shown."""
    horizon = Horizon(cluster, Snapshot(shown_before, shown_before), 1_000_000 * (1 + seconds))
    return str(Cursor("w", horizon, order=number, transaction_id=number))


def test(body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Makes a test of a coroutine, with a deadline."""

    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await body()

    def run() -> None:
        asyncio.run(limited())

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


test.__test__ = False


# A server that does what it is told


class Told:
    """One connection of a client."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.key = socket.request.headers["x-api-key"]
        self.path = socket.request.path
        self.pushes: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def run(self) -> None:
        with suppress(ConnectionClosed):
            async for data in self.socket:
                binary = isinstance(data, bytes)
                push = decode_v2(data if binary else data.encode(), binary=binary)
                self.pushes.put_nowait(push)
        self.closed.set()

    async def next(self, event: str) -> Any:
        """The next push of this event; heartbeats that come before it are answered."""
        while True:
            push = await self.pushes.get()
            if push.event == event:
                return push
            assert push.event == "heartbeat", push
            await self.send(V2.reply("phoenix", join_ref=None, ref=push.ref).data)

    async def joined(self, *, topic: str = TOPIC, **response: Any) -> Any:
        """Waits for a join and takes it."""
        push = await self.next("phx_join")
        assert push.topic == topic
        await self.reply(push, **response)
        return json.loads(push.payload)

    async def reply(self, push: Any, **response: Any) -> None:
        data = json.dumps({"postgres_changes": [], **response}).encode()
        join_ref = push.join_ref
        await self.send(V2.reply(push.topic, join_ref=join_ref, ref=push.ref, response=data).data)
        self.join_ref = join_ref

    async def refuse(self, reason: str) -> Any:
        push = await self.next("phx_join")
        refused = V2.refuse(push.topic, reason, join_ref=push.join_ref, ref=push.ref)
        await self.send(refused.data)
        return json.loads(push.payload)

    async def end(self, reason: str, topic: str = TOPIC) -> None:
        """Ends the channel, as for an expired token."""
        await self.send(V2.system(topic, reason, join_ref=self.join_ref, ok=False).data)
        await self.send(V2.close(topic, join_ref=self.join_ref).data)

    async def message(
        self, id: str = "", at: str = "", payload: Any = None, topic: str = TOPIC
    ) -> None:
        """A stored message, live."""
        meta = {"id": id} if id else {}
        if at:
            meta["cursor"] = at
        frame = V2.user_broadcast(
            topic,
            "e",
            json.dumps(payload).encode(),
            meta=json.dumps(meta).encode() if meta else b"",
        )
        await self.send(frame.data)

    async def replay(self, id: str, at: str = "", payload: Any = None) -> None:
        """A stored message, for who resumes."""
        meta = {"id": id, "replayed": True} | ({"cursor": at} if at else {})
        content = {"type": "broadcast", "event": "e", "payload": payload, "meta": meta}
        frame = V2.text(TOPIC, "broadcast", json.dumps(content).encode(), join_ref=self.join_ref)
        await self.send(frame.data)

    async def send(self, data: bytes) -> None:
        if data[:1] == b"[":
            await self.socket.send(data.decode())
        else:
            await self.socket.send(data)

    async def drop(self) -> None:
        """As when the server is killed."""
        self.socket.transport.abort()
        await self.closed.wait()


class Server:
    """Attributes: `answers`, what to say to the next handshakes instead of yes."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Told] = asyncio.Queue()
        self.answers: list[tuple[int, str]] = []
        self.handshakes: list[str] = []
        self.url = ""

    async def accept(self) -> Told:
        return await self.connections.get()

    def check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request.headers["x-api-key"])
        if not self.answers:
            return None
        status, text = self.answers.pop(0)
        return connection.respond(HTTPStatus(status), json.dumps({"error": text}))

    async def serve(self, socket: ServerConnection) -> None:
        told = Told(socket)
        self.connections.put_nowait(told)
        await told.run()


@asynccontextmanager
async def a_server() -> AsyncIterator[Server]:
    server = Server()
    async with serve(
        server.serve, "127.0.0.1", 0, process_request=server.check, close_timeout=0.1
    ) as listening:
        server.url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/socket"
        yield server


@asynccontextmanager
async def a_client(**options: Any) -> AsyncIterator[tuple[Server, Client]]:
    async with a_server() as server, Client(server.url, "key", **options) as client:
        yield server, client


def soon(awaitable: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(awaitable)


async def enter(subscription: Subscription, server: Server) -> Told:
    """Joins; returns the connection."""
    entering = soon(subscription.__aenter__())
    connection = await server.accept()
    await connection.joined(cursor=cursor(1))
    await entering
    return connection


async def ids(subscription: Subscription, count: int) -> list[str | None]:
    return [(await anext(subscription)).id for _ in range(count)]


def replay_of(join: dict[str, Any]) -> Any:
    return join["config"]["broadcast"].get("replay")


# Messages


@test
async def test_messages_come_in_their_order_with_all_that_is_known_of_them() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", private=False)
        first = soon(anext(room))
        connection = await server.accept()
        join = await connection.joined(cursor=cursor(1))
        await connection.message("a", cursor(2), {"n": 1})
        await connection.message(payload=[2])
        await connection.send(V2.user_broadcast(TOPIC, "b", b"\0\1", binary=True).data)

        assert join["config"] == {"broadcast": {"ack": True, "self": False}, "private": False}
        assert join["access_token"] == connection.key == "key"
        assert connection.path == "/socket/websocket?vsn=2.0.0"
        assert await first == Message("room", "e", b'{"n": 1}', id="a", cursor=cursor(2))
        second = await anext(room)
        assert (second.id, second.cursor, second.payload) == (None, cursor(2), [2])
        third = await anext(room)
        assert (third.event, third.payload, third.binary) == ("b", b"\0\1", True)


@test
async def test_one_connection_carries_all_subscriptions() -> None:
    async with a_client() as (server, client):
        async with asyncio.TaskGroup() as group:
            rooms = [client.subscribe(name) for name in ("x", "y")]
            taken = [group.create_task(anext(room)) for room in rooms]
            connection = await server.accept()
            for name in ("x", "y"):
                await connection.joined(topic=f"realtime:{name}")
            await connection.message("for y", topic="realtime:y")
            await connection.message("for x", topic="realtime:x")
        assert [task.result().id for task in taken] == ["for x", "for y"]
        assert server.connections.empty()


@test
async def test_a_topic_is_followed_once_by_a_client() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        with pytest.raises(ClientError, match="follows 'room' already"):
            await anext(client.subscribe("room"))
        await connection.joined()
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_a_cursor_of_another_process_is_where_it_begins() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", cursor=cursor(5))
        taken = soon(ids(room, 3))
        connection = await server.accept()
        join = await connection.joined(cursor=cursor(5))
        await connection.replay("f")
        await connection.replay("g", cursor(7))
        await connection.message("h", cursor(8))

        assert replay_of(join) == {"cursor": cursor(5)}
        assert await taken == ["f", "g", "h"]


@test
async def test_the_cursor_of_a_message_is_the_last_that_is_safe() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", cursor=cursor(5))
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(5))
        await connection.replay("f")
        await connection.replay("g", cursor(7))

        assert (await taken).cursor == room.cursor == cursor(5)
        assert (await anext(room)).cursor == room.cursor == cursor(7)


# Lost connections


@test
async def test_a_resume_goes_on_after_what_was_received() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await connection.message("a", cursor(2))
        await taken
        await connection.drop()

        connection = await server.accept()
        assert replay_of(await connection.joined(cursor=cursor(2))) == {"cursor": cursor(2)}


@test
async def test_a_connection_lost_before_any_message_resumes_where_the_join_began() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await connection.drop()

        connection = await server.accept()
        assert replay_of(await connection.joined()) == {"cursor": cursor(1)}


@test
async def test_a_join_that_was_not_answered_is_asked_again() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", cursor=cursor(3))
        taken = soon(anext(room))
        for _ in range(3):
            connection = await server.accept()
            await connection.next("phx_join")
            await connection.drop()
        connection = await server.accept()
        join = await connection.joined(cursor=cursor(3))
        await connection.replay("d", cursor(4))

        assert replay_of(join) == {"cursor": cursor(3)}
        assert (await taken).id == "d"


@test
async def test_a_resume_that_breaks_off_begins_again_and_nothing_comes_twice() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", cursor=cursor(1))
        taken = soon(ids(room, 4))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await connection.replay("a")
        await connection.replay("b")
        await connection.drop()
        connection = await server.accept()
        again = await connection.joined(cursor=cursor(1))
        for name in "abc":
            await connection.replay(name)
        await connection.replay("d", cursor(9))

        assert replay_of(again) == {"cursor": cursor(1)}
        assert await taken == ["a", "b", "c", "d"]
        await connection.drop()
        connection = await server.accept()
        assert replay_of(await connection.joined()) == {"cursor": cursor(9)}


@test
async def test_what_waits_survives_a_lost_connection() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await connection.message("a", cursor(2))
        await connection.message(payload="not stored")
        await connection.message("b", cursor(3))
        await connection.socket.close(1012)  # after all of it
        connection = await server.accept()
        assert replay_of(await connection.joined(cursor=cursor(3))) == {"cursor": cursor(3)}
        await connection.message("c", cursor(4))

        assert await ids(room, 4) == ["a", None, "b", "c"]


@test
async def test_a_last_message_that_was_known_moves_the_cursor() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await connection.message("a", cursor(2))
        await taken
        await connection.drop()
        connection = await server.accept()
        await connection.joined(cursor=cursor(2))
        await connection.replay("a", cursor(6))
        taken = soon(anext(room))
        await connection.message("b")

        assert (await taken).cursor == cursor(6)


@test
async def test_a_silent_connection_is_given_up() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("realtime_db.client.connection.ANSWER_SECONDS", 0.2)
        async with a_client(heartbeat_seconds=0.2) as (server, client):
            taken = soon(anext(client.subscribe("room")))
            connection = await server.accept()
            await connection.next("phx_join")  # and no answer, to heartbeats neither
            await connection.closed.wait()
            patch.undo()
            connection = await server.accept()
            await connection.joined()
            await connection.message("a")
            assert (await taken).id == "a"


@test
async def test_answered_heartbeats_keep_a_connection() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("realtime_db.client.connection.ANSWER_SECONDS", 2.0)
        async with a_client(heartbeat_seconds=0.2) as (server, client):
            taken = soon(anext(client.subscribe("room")))
            connection = await server.accept()
            await connection.joined(cursor=cursor(1))
            for _ in range(14):  # for longer than it waits for one answer
                push = await connection.pushes.get()
                assert json.loads(push.payload) == {"cursor": True}
                await connection.send(V2.reply("phoenix", join_ref=None, ref=push.ref).data)
            await connection.message("a")
            assert (await taken).id == "a"
            assert server.connections.empty()


# Gaps


@test
async def test_a_gap_is_raised_once_and_then_it_goes_on() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room", cursor=cursor(1))
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(8), gap="2026-02-03T04:05:06.700Z")
        await connection.send(
            V2.system(
                TOPIC,
                "MessagesMissing: messages before 2026-02-03T04:05:06.700Z are no longer stored",
                join_ref=connection.join_ref,
                ok=False,
            ).data
        )
        await connection.message("a", cursor(9))

        with pytest.raises(MessagesMissing) as caught:
            await taken
        assert caught.value.topic == "room"
        assert caught.value.before == datetime(2026, 2, 3, 4, 5, 6, 700_000, UTC)
        assert caught.value.cursor == room.cursor == cursor(8)
        assert (await anext(room)).id == "a"


@test
async def test_a_gap_of_the_server_itself_is_raised_as_well() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await connection.message("a", cursor(2))
        text = "MessagesMissing: messages before 2026-02-03T04:05:06Z are no longer stored"
        await connection.send(V2.system(TOPIC, text, join_ref=None, ok=False).data)
        await connection.message("b", cursor(9))

        assert (await anext(room)).id == "a"
        with pytest.raises(MessagesMissing) as caught:
            await anext(room)
        assert caught.value.before == datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
        assert caught.value.cursor == cursor(2)
        assert (await anext(room)).id == "b"


@test
async def test_a_connection_lost_before_there_was_a_cursor_is_a_gap() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(ids(room, 2))
        connection = await server.accept()
        await connection.joined()
        await connection.message("a")
        await connection.drop()
        connection = await server.accept()
        await connection.joined(cursor=cursor(5))

        with pytest.raises(MessagesMissing, match="no cursor") as caught:
            await taken
        assert (caught.value.before, caught.value.cursor) == (None, cursor(5))


@test
async def test_a_gap_comes_after_the_messages_before_it() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await connection.message("a", cursor(2))
        await connection.socket.close()
        connection = await server.accept()
        await connection.joined(cursor=cursor(8), gap="2026-02-03T04:05:06Z")

        assert (await anext(room)).id == "a"
        with pytest.raises(MessagesMissing):
            await anext(room)


# Heartbeats and cursors


@test
async def test_a_heartbeat_moves_the_cursor_of_a_topic_on_which_nothing_happens() -> None:
    async with a_client(heartbeat_seconds=0.1) as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await beaten(connection, cursor(5))
        await connection.message()
        await taken
        assert room.cursor == cursor(5)
        await connection.drop()
        connection = await server.accept()
        assert replay_of(await connection.joined()) == {"cursor": cursor(5)}


async def beaten(connection: Told, at: str) -> None:
    """Answers the next heartbeat."""
    push = await connection.pushes.get()
    assert push.event == "heartbeat"
    response = json.dumps({"cursor": at}).encode()
    await connection.send(V2.reply("phoenix", join_ref=None, ref=push.ref, response=response).data)


@test
async def test_a_heartbeat_does_not_overtake_what_waits_for_the_application() -> None:
    async with a_client(heartbeat_seconds=0.1) as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await connection.message("a", cursor(2))
        await beaten(connection, cursor(5))
        await connection.message("b")
        await connection.pushes.get()  # the next heartbeat: all of that has been read

        assert room.cursor == cursor(1)
        assert (await anext(room)).cursor == room.cursor == cursor(2)
        assert (await anext(room)).cursor == room.cursor == cursor(5)


# Back-pressure


@test
async def test_a_slow_application_holds_up_the_server_and_loses_nothing() -> None:
    async with a_client(max_waiting=10) as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        payload = "x" * 100_000
        sending = soon(burst(connection, 400, payload))
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done, "40 MB went to an application that takes nothing"
        assert await ids(room, 400) == [f"m{number}" for number in range(400)]
        await sending


async def burst(connection: Told, count: int, payload: Any) -> None:
    for number in range(count):
        await connection.message(f"m{number}", cursor(number + 2), payload)


@test
async def test_an_application_that_is_behind_can_send_and_gets_its_answer() -> None:
    async with a_client(max_waiting=3) as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await burst(connection, 50, None)
        sent = soon(room.send("e", {}))
        push = await connection.next("broadcast")
        await connection.reply(push)
        await sent
        assert await ids(room, 50) == [f"m{number}" for number in range(50)]


@test
async def test_who_was_thrown_out_for_being_slow_comes_back_after_catching_up() -> None:
    async with a_client(max_waiting=2) as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        await burst(connection, 2, None)
        sent = soon(room.send("e", {}))  # so that it reads on, and notices
        await connection.next("broadcast")
        await connection.socket.close()
        with pytest.raises(NotAnswered):
            await sent
        connection = await server.accept()
        joins = soon(connection.next("phx_join"))
        done, _ = await asyncio.wait([joins], timeout=0.3)
        assert not done
        assert await ids(room, 2) == ["m0", "m1"]
        push = await joins
        assert replay_of(json.loads(push.payload)) == {"cursor": cursor(3)}


# Refusals


@test
async def test_a_refusal_that_passes_is_tried_again() -> None:
    async with a_client() as (server, client):
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        await connection.refuse("IncreaseConnectionPool: Please increase your pool")
        await connection.refuse("UnableToReplayMessages: Realtime was unable to replay messages")
        await connection.joined()
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_a_refusal_that_stays_is_raised_and_may_be_tried_again() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.refuse("Unauthorized: You do not have permissions")
        with pytest.raises(JoinRefused, match="Unauthorized") as caught:
            await taken
        assert (caught.value.topic, caught.value.reason[:12]) == ("room", "Unauthorized")

        taken = soon(anext(room))
        await connection.joined()
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_entering_a_subscription_raises_what_its_join_is_refused_for() -> None:
    async with a_client() as (server, client):
        entered = soon(client.subscribe("room", cursor="nonsense").__aenter__())
        connection = await server.accept()
        await connection.refuse("UnableToReplayMessages: Replay params are not valid")
        with pytest.raises(JoinRefused, match="Replay params"):
            await entered


@test
async def test_a_standby_is_asked_again_until_it_leads() -> None:
    async with a_client() as (server, client):
        server.answers = [(503, "This server is a standby")] * 3
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        await connection.joined()
        await connection.message("a")
        assert (await taken).id == "a"
        assert len(server.handshakes) == 4


@test
async def test_of_several_servers_that_which_leads_is_used() -> None:
    async with a_server() as standby, a_server() as leader:
        standby.answers = [(503, "This server is a standby")] * 100
        nobody = "http://127.0.0.1:9"
        async with Client([nobody, standby.url, leader.url], "key") as client:
            room = client.subscribe("room")
            taken = soon(anext(room))
            connection = await leader.accept()
            await connection.joined(cursor=cursor(1))
            await connection.message("a", cursor(2))
            await taken
            # The other takes over.
            leader.answers, standby.answers = standby.answers, []
            await connection.drop()
            connection = await standby.accept()
            assert replay_of(await connection.joined()) == {"cursor": cursor(2)}


@test
async def test_a_key_that_is_not_taken_is_raised() -> None:
    async with a_client() as (server, client):
        server.answers = [(401, "Token has expired")]
        room = client.subscribe("room")
        with pytest.raises(ConnectRefused, match="Token has expired") as caught:
            await anext(room)
        assert caught.value.status == 401
        assert "key" not in str(caught.value)
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined()
        await connection.message("a")
        assert (await taken).id == "a"


# Tokens


def a_token(name: str, seconds: float = 3600) -> str:
    claims = json.dumps({"sub": name, "exp": time.time() + seconds}).encode()
    return f"{name}.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.x"


def giver(*tokens: str) -> Callable[[], Awaitable[str]]:
    """Gives one after the other, and the last for ever."""
    left = list(tokens)

    async def give() -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    return give


@test
async def test_a_refused_token_is_renewed_once() -> None:
    first, second, third = (a_token(name) for name in "abc")
    async with a_client(token=giver(first, second, third)) as (server, client):
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        joins = [await connection.refuse("InvalidJWTToken: Token has expired 5 seconds ago")]
        joins.append(await connection.refuse("Unauthorized: You do not have permissions"))
        with pytest.raises(JoinRefused, match="Unauthorized"):
            await taken
        assert [join["access_token"] for join in joins] == [first, second]


@test
async def test_a_channel_that_was_ended_for_its_token_comes_back_with_another() -> None:
    first, second = a_token("a"), a_token("b")
    async with a_client(token=giver(first, second)) as (server, client):
        room = client.subscribe("room")
        taken = soon(ids(room, 2))
        connection = await server.accept()
        joins = [await connection.joined(cursor=cursor(1))]
        await connection.message("a", cursor(2))
        await connection.end("Token has expired 0 seconds ago")
        joins.append(await connection.joined(cursor=cursor(2)))
        await connection.replay("b", cursor(3))

        assert await taken == ["a", "b"]
        assert [join["access_token"] for join in joins] == [first, second]
        assert replay_of(joins[1]) == {"cursor": cursor(2)}


@test
async def test_a_channel_whose_only_token_ended_is_raised() -> None:
    async with a_client() as (server, client):
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        await connection.joined()
        await connection.end("Token has expired 0 seconds ago")
        await connection.refuse("InvalidJWTToken: Token has expired 0 seconds ago")
        with pytest.raises(JoinRefused, match="Token has expired"):
            await taken


@test
async def test_a_channel_that_crashed_is_joined_again() -> None:
    async with a_client() as (server, client):
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await connection.send(V2.error(TOPIC, join_ref=connection.join_ref).data)
        assert replay_of(await connection.joined(cursor=cursor(1))) == {"cursor": cursor(1)}
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_a_token_is_renewed_before_it_ends_and_the_channel_stays() -> None:
    first, second = a_token("a", 2.5), a_token("b")
    async with a_client(token=giver(first, second)) as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        push = await connection.next("access_token")
        assert json.loads(push.payload) == {"access_token": second}
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_a_key_may_be_renewed_as_well() -> None:
    first, second = a_token("a"), a_token("b")
    async with a_server() as server, Client(server.url, giver(first, second)) as client:
        server.answers = [(401, "Token has expired")]
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        join = await connection.joined()
        await connection.message("a")
        await taken
        assert server.handshakes == [first, second]
        assert join["access_token"] == second


@test
async def test_a_callable_that_fails_is_raised_with_its_cause() -> None:
    async def fails() -> str:
        raise LookupError("no session")

    async with a_client(token=fails) as (_, client):
        with pytest.raises(TokenUnavailable, match="no session") as caught:
            await anext(client.subscribe("room"))
        assert isinstance(caught.value.__cause__, LookupError)


# Sending


@test
async def test_a_broadcast_is_sent_on_the_subscription_and_answered() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        sent = soon(client.send("room", "e", {"n": Decimal("1.50")}))
        push = await connection.next("broadcast")
        await connection.reply(push)

        assert await sent is None
        assert (push.topic, push.user_event, push.payload) == (TOPIC, "e", b'{"n":1.50}')
        assert (push.metadata, push.binary) == (None, False)


@test
async def test_a_stored_broadcast_returns_its_id_and_does_not_come_back() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        connection = await enter(room, server)
        sent = soon(room.send("e", b"\0", ttl_seconds=60))
        push = await connection.next("broadcast")
        await connection.reply(push, id="mine")
        assert await sent == "mine"
        assert (push.metadata, push.payload, push.binary) == ({"persist": {"ttl": 60}}, b"\0", True)
        await connection.drop()

        connection = await server.accept()
        await connection.joined(cursor=cursor(1))
        await connection.replay("mine")
        await connection.replay("other", cursor(3))
        assert (await anext(room)).id == "other"


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b'"payload_size_exceeded"', "payload_size_exceeded"),
        (b'{"error":"cannot be stored"}', "cannot be stored"),
        (b'{"reason":"unmatched topic"}', "unmatched topic"),
    ],
)
def test_a_refused_broadcast_is_raised(response: bytes, text: str) -> None:
    @test
    async def body() -> None:
        async with a_client() as (server, client):
            sent = soon(client.send("room", "e", {}, persist=True))
            connection = await server.accept()
            await connection.joined()
            push = await connection.next("broadcast")
            assert push.metadata == {"persist": True}
            reply = V2.reply(TOPIC, join_ref=None, ref=push.ref, response=response, ok=False)
            await connection.send(reply.data)
            with pytest.raises(SendRefused, match=text):
                await sent

    body()


@test
async def test_a_payload_that_is_no_json_is_refused_before_anything_is_sent() -> None:
    async with a_client() as (server, client):
        with pytest.raises(ValueError, match="JSON has no nan"):
            await client.send("room", "e", {"a": float("nan")})
        with pytest.raises(TypeError, match="JSON has no set"):
            await client.subscribe("room").send("e", {"a": {1}})
        assert server.handshakes == []


@test
async def test_a_broadcast_to_another_topic_joins_it_and_leaves_it() -> None:
    async with a_client() as (server, client):
        sent = soon(client.send("room", "e", {}, private=False))
        connection = await server.accept()
        join = await connection.joined(cursor=cursor(1))
        push = await connection.next("broadcast")
        await connection.message("not wanted", cursor(2))
        await connection.reply(push)
        await sent
        await connection.next("phx_leave")
        assert join["config"]["private"] is False

        taken = soon(anext(client.subscribe("room")))
        assert replay_of(await connection.joined()) is None
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_broadcasts_to_another_topic_and_a_subscription_to_it_wait_for_one_another() -> None:
    async with a_client() as (server, client):
        sent = [soon(client.send("room", "e", number)) for number in range(2)]
        connection = await server.accept()
        push = await connection.next("phx_join")
        room = client.subscribe("room")
        taken = soon(anext(room))
        await connection.reply(push)
        for number in b"01":
            push = await connection.next("broadcast")
            assert push.payload == bytes([number])
            await connection.reply(push)
            await connection.next("phx_leave")
            await connection.joined()
        await asyncio.gather(*sent)
        await connection.message("a")
        assert (await taken).id == "a"


@test
async def test_a_broadcast_without_an_answer_is_neither_sent_nor_not() -> None:
    async with a_client() as (server, client):
        sent = soon(client.send("room", "e", {}, answer_seconds=1.5))
        connection = await server.accept()
        await connection.joined()
        with pytest.raises(NotAnswered, match=r"in 1\.5 seconds"):
            await sent

        sent = soon(client.send("room", "e", {}))
        await connection.next("broadcast")
        await connection.next("phx_leave")
        await connection.joined()
        await connection.next("broadcast")
        await connection.drop()
        with pytest.raises(NotAnswered, match="connection was lost"):
            await sent


@test
async def test_a_private_topic_is_not_sent_to_as_a_public_one() -> None:
    async with a_client() as (server, client):
        taken = soon(anext(client.subscribe("room")))
        connection = await server.accept()
        await connection.joined()
        with pytest.raises(ValueError, match="is followed as a private topic"):
            await client.send("room", "e", {}, private=False)
        await connection.message("a")
        await taken


# The end


@test
async def test_an_iteration_that_is_left_leaves_the_topic() -> None:
    async with a_client() as (server, client):

        async def first() -> str | None:
            async for message in client.subscribe("room"):
                return message.id
            return None

        taken = soon(first())
        connection = await server.accept()
        await connection.joined()
        await connection.message("a")
        assert await taken == "a"
        gc.collect()
        push = await connection.next("phx_leave")
        assert push.topic == TOPIC


@test
async def test_closing_the_client_ends_its_iterations() -> None:
    async with a_server() as server:
        async with Client(server.url, "key") as client:
            room = client.subscribe("room")
            taken = soon(anext(room))
            connection = await server.accept()
            await connection.joined()
        with pytest.raises(StopAsyncIteration):
            await taken
        await connection.closed.wait()
        assert [message async for message in room] == []


@test
async def test_who_iterates_what_has_ended_for_ever_can_be_cancelled() -> None:
    client = Client("http://127.0.0.1:9", "key")
    room = client.subscribe("room")
    await client.aclose()

    async def for_ever() -> None:
        while True:
            async for _ in room:
                pass

    task = soon(for_ever())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@test
async def test_a_cancelled_wait_loses_no_message() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined()
        taken.cancel()
        await asyncio.wait([taken])
        await connection.message("a")
        assert (await anext(room)).id == "a"


@test
async def test_a_closed_subscription_ends_and_another_may_follow_the_topic() -> None:
    async with a_client() as (server, client):
        room = client.subscribe("room")
        taken = soon(anext(room))
        connection = await server.accept()
        await connection.joined()
        await room.aclose()
        with pytest.raises(StopAsyncIteration):
            await taken
        await connection.next("phx_leave")
        taken = soon(anext(client.subscribe("room")))
        join = await connection.next("phx_join")
        await connection.message("for the one before")
        await connection.reply(join)
        await connection.message("a")
        assert (await taken).id == "a"


# Parts


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_unreadable(data: bytes) -> None:
    for each in (data, b"\4" + data, b"[" + data):
        with suppress(wire.UnreadableFrame):
            wire.decode(each)


@given(
    topic=st.text(max_size=50),
    event=st.text(max_size=50),
    payload=st.binary(min_size=1, max_size=50),
)
def test_what_a_server_encodes_is_read_as_it_was(topic: str, event: str, payload: bytes) -> None:
    frame = V2.user_broadcast(topic, event, payload, meta=b'{"id":"i","cursor":"c"}', binary=True)

    assert wire.decode(frame.data) == wire.Broadcast(
        topic, event, payload, binary=True, id="i", cursor="c"
    )


def test_the_digits_of_a_replayed_number_stay() -> None:
    frame = V2.text(TOPIC, "broadcast", b'{"event":"e","payload":{"n":1.10000}}', join_ref="1")

    assert wire.decode(frame.data).payload == b'{"n":1.10000}'


def test_what_another_client_wrote_as_metadata_does_not_count() -> None:
    whole = b'{"event":"e","payload":1,"meta":{"id":"i","cursor":"c","replayed":true}}'

    assert wire.decode(V2.broadcast(TOPIC, whole).data) == wire.Broadcast(TOPIC, "e", b"1")


def test_a_join_is_what_the_server_reads() -> None:
    frame = wire.join(TOPIC, "7", private=True, own=True, token="t", cursor=None)

    push = decode_v2(frame.encode())
    join = parse_join(push.payload)
    assert (push.topic, push.event, push.ref, push.join_ref) == (TOPIC, "phx_join", "7", "7")
    assert (join.private, join.broadcast_ack, join.broadcast_self) == (True, True, True)
    assert join.access_token == "t"


def test_a_name_that_fits_into_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="255 bytes"):
        wire.push(TOPIC, "e" * 256, wire.body({}), join_ref="1", ref="2")


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        ({"a": [None, True, 1, 1.5, "é", (2,)]}, '{"a":[null,true,1,1.5,"é",[2]]}'),
        ({"n": Decimal("1.10"), "big": 10**40}, f'{{"n":1.10,"big":{10**40}}}'),
        ("text", '"text"'),
        (None, "null"),
    ],
)
def test_a_payload_goes_out_as_json_with_every_digit(payload: Any, data: str) -> None:
    assert wire.body(payload) == wire.Body(data.encode(), binary=False)
    assert wire.body(data.encode()) == wire.Body(data.encode(), binary=True)


@pytest.mark.parametrize(
    ("payload", "error", "text"),
    [
        ({"a": float("nan")}, ValueError, "JSON has no nan"),
        ([float("-inf")], ValueError, "JSON has no -inf"),
        (Decimal("NaN"), ValueError, "JSON has no NaN"),
        ("\ud800", ValueError, "surrogates not allowed"),
        ([[]] * 3 + [{1, 2}], TypeError, "JSON has no set: give text"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, TypeError, "JSON has no datetime"),
        ({"a": (b"x",)}, TypeError, "JSON has no bytes"),
        ({1: "a"}, TypeError, "a key in JSON is text, and 1 is of the type int"),
    ],
)
def test_what_would_arrive_as_something_else_is_no_payload(
    payload: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        wire.body(payload)


def test_a_payload_without_an_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested too deeply"):
        wire.body(endless)


def test_an_id_is_forgotten_once_no_resume_can_bring_it_again() -> None:
    seen_ids = Seen()
    for number in (20, 21, 22):
        at = cursor(number, shown_before=10)
        seen_ids.add(str(number), at)
        seen_ids.moved(at)

    seen_ids.moved(cursor(22, shown_before=22, seconds=1))
    assert "20" in seen_ids, "the next server may be behind"

    seen_ids.moved(cursor(22, shown_before=30, seconds=40))
    assert [id for id in ("20", "21", "22") if id in seen_ids] == ["22"]


def test_an_id_of_another_cluster_is_not_forgotten_by_its_number() -> None:
    seen_ids = Seen()
    at = cursor(20, shown_before=10)
    seen_ids.add("a", at)
    seen_ids.moved(at)

    for seconds in (40, 80, 120):
        seen_ids.moved(cursor(5, shown_before=1000 + seconds, cluster=8, seconds=seconds))

    assert "a" in seen_ids


def test_ids_that_no_cursor_shows_are_bounded_once_the_cursor_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seen, "MAX_IDS", 10)
    seen_ids = Seen()
    for number in range(50):
        seen_ids.add(str(number))
    assert len(seen_ids) == 50

    seen_ids.moved(cursor(1))

    assert len(seen_ids) == 10
    assert "49" in seen_ids


def test_a_message_for_an_earlier_join_is_not_taken() -> None:
    channel = Channel("room")
    channel.joining("1")
    channel.received(wire.Broadcast(TOPIC, "e", b"1"))
    channel.joined({})
    channel.received(wire.Broadcast(TOPIC, "e", b"2", join_ref="0"))

    assert channel.take() is None


def test_waits_double_up_to_a_limit_and_differ() -> None:
    backoff = Backoff()
    waits = [backoff.next_seconds() for _ in range(200)]

    assert all(0 <= wait <= FIRST_SECONDS * 2**number for number, wait in enumerate(waits[:8]))
    assert 1.0 < max(waits) <= MAX_SECONDS
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next_seconds() <= FIRST_SECONDS


@pytest.mark.parametrize(
    ("given", "socket"),
    [
        ("http://h:4000", "ws://h:4000/realtime/v1/websocket?vsn=2.0.0"),
        ("https://h/", "wss://h/realtime/v1/websocket?vsn=2.0.0"),
        ("ws://h:4000/socket", "ws://h:4000/socket/websocket?vsn=2.0.0"),
        ("wss://h/a/websocket?x=1", "wss://h/a/websocket?x=1&vsn=2.0.0"),
    ],
)
def test_the_url_of_a_server_leads_to_its_socket(given: str, socket: str) -> None:
    assert socket_url(given) == socket


@pytest.mark.parametrize("url", ["localhost:4000", "ftp://h", "http://", ""])
def test_a_url_of_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no http"):
        Client(url, "key")


def test_reasons_are_sorted_by_what_helps() -> None:
    assert passes("RealtimeRestarting: Realtime is restarting, please standby")
    assert not passes("UnableToReplayMessages: Replay params are not valid")
    assert not passes("ChannelRateLimitReached: Too many channels")
    assert is_of_the_token("JwtSignatureError: Failed to validate JWT signature")
    assert not is_of_the_token("PrivateOnly: This project only allows private channels")


def test_a_token_is_renewed_in_time() -> None:
    assert seconds_left("opaque") == float("inf")
    assert seconds_to_renewal("opaque") is None
    assert seconds_to_renewal(a_token("a", 3600)) == pytest.approx(3540, abs=5)
    assert seconds_to_renewal(a_token("a", 100)) == pytest.approx(50, abs=5)
    assert seconds_to_renewal(a_token("a", -5)) == 1.0


def test_a_payload_has_every_digit_if_one_asks() -> None:
    message = Message("room", "e", b'{"n": 1.10, "big": 1e400}')

    assert message.payload == {"n": 1.1, "big": float("inf")}
    assert json.loads(message.raw, parse_float=Decimal)["n"] == Decimal("1.10")


@pytest.mark.parametrize(
    "raw",
    [b"1" * 5_000, b"[" * 100_000 + b"]" * 100_000, b"no JSON"],
    ids=["a long number", "nested", "no JSON"],
)
def test_a_payload_that_python_cannot_read_is_an_error_of_the_client(raw: bytes) -> None:
    with pytest.raises(PayloadUnreadable, match="to 'room' cannot be read") as caught:
        _ = Message("room", "e", raw).payload
    assert caught.value.topic == "room"
    assert Message("room", "e", raw, binary=True).payload == raw


@pytest.mark.parametrize("before", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x"])
def test_a_time_that_is_none_is_a_gap_all_the_same(before: str) -> None:
    channel = Channel("room")
    channel.joining("1")
    channel.joined({"gap": before})
    error = channel.take()
    assert isinstance(error, MessagesMissing)
    assert error.before is None
