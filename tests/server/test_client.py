"""The client against a server as users start one, over connections that break."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from realtime_db.client import (
    Client,
    ConnectRefused,
    JoinRefused,
    MessagesMissing,
    SendRefused,
    Subscription,
)
from realtime_db.cursors import Cursor, Horizon, Snapshot
from tests.server.certificates import self_signed

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60.0

# Of another cluster, long ago.
OLD = str(Cursor("w", Horizon(1, Snapshot(1000, 1000), 1_000_000_000_000_000)))


def run(body: Awaitable[Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await body

    return asyncio.run(limited())


class Wire:
    """Takes connections to a port and passes them on, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        self._writers.discard(writer)

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


@pytest.fixture
def send(database: psycopg.Connection) -> Callable[..., list[str]]:
    """`send(topic, 3)` -> the ids of three messages, each committed by itself."""

    def send(topic: str, count: int, *, private: bool = True) -> list[str]:
        query = "select realtime.send('{}', 'e', %s, %s)::text"
        found = [database.execute(query, [topic, private]).fetchone() for _ in range(count)]
        return [row[0] for row in found if row is not None]

    return send


async def ids(subscription: Subscription, count: int) -> list[str | None]:
    return [(await anext(subscription)).id for _ in range(count)]


async def known(room: Subscription) -> None:
    """Waits for a cursor: a server that has just started has none."""
    while room.cursor is None:  # noqa: ASYNC110 - it comes with a heartbeat
        await asyncio.sleep(0.05)


def test_what_is_committed_while_the_connection_is_down_comes_once_and_in_order(
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
) -> None:
    async def body() -> None:
        async with (
            Wire(server.port) as wire,
            Client(wire.url, mint()) as client,
            client.subscribe(private_topic) as room,
        ):
            await known(room)
            sent, got = [], []
            for _ in range(5):
                sent += await asyncio.to_thread(send, private_topic, 20)
                got += await ids(room, 10)
                wire.cut()
                sent += await asyncio.to_thread(send, private_topic, 30)
            got += await ids(room, len(sent) - len(got))
            assert got == sent
            assert wire.connections > 1
            # And nothing is left over.
            last = await asyncio.to_thread(send, private_topic, 1)
            assert await ids(room, 1) == last

    run(body())


@pytest.mark.parametrize("private", [True, False])
def test_another_process_goes_on_with_a_cursor(
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
    private: bool,
) -> None:
    url = f"http://127.0.0.1:{server.port}"

    async def first() -> str | None:
        async with (
            Client(url, mint()) as client,
            client.subscribe(private_topic, private=private) as room,
        ):
            sent = await asyncio.to_thread(send, private_topic, 3, private=private)
            messages = [await anext(room) for _ in range(2)]
            assert [message.id for message in messages] == sent[:2]
            missed.append(sent[2])
            return messages[-1].cursor

    async def second(cursor: str | None) -> None:
        async with Client(url, mint()) as client:
            room = client.subscribe(private_topic, private=private, cursor=cursor)
            messages = [await anext(room) for _ in range(2500)]
            assert [message.id for message in messages] == missed
            assert messages[0].replayed

    missed: list[str] = []
    cursor = run(first())
    assert cursor is not None
    missed += send(private_topic, 2499, private=private)
    run(second(cursor))


def test_a_server_that_ends_is_replaced_by_another_and_nothing_is_missing(
    start_server: Callable[..., Any],
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
) -> None:
    other = start_server("--temporary-slot")
    other.says("following the WAL")
    urls = [f"http://127.0.0.1:{one.port}" for one in (other, server)]

    async def body() -> None:
        async with Client(urls, mint()) as client, client.subscribe(private_topic) as room:
            await known(room)
            sent = await asyncio.to_thread(send, private_topic, 10)
            got = await ids(room, 5)
            other.stop()
            sent += await asyncio.to_thread(send, private_topic, 10)
            got += await ids(room, 15)
            assert got == sent

    run(body())


def test_a_slow_client_that_is_thrown_out_gets_everything_later(
    start_server: Callable[..., Any],
    database: psycopg.Connection,
    private_topic: str,
    mint: Callable[..., str],
) -> None:
    server = start_server("--temporary-slot", "--max-write-buffer-bytes", "1000000")
    server.says("following the WAL")

    def send_much() -> None:
        for _ in range(30):
            database.execute(
                "select realtime.send(jsonb_build_object('x', repeat('x', 100000)), 'e', %s)"
                " from generate_series(1, 20)",
                [private_topic],
            )

    async def body() -> None:
        url = f"http://127.0.0.1:{server.port}"
        async with (
            Client(url, mint(), max_waiting=5) as client,
            client.subscribe(private_topic) as room,
        ):
            await known(room)
            await asyncio.to_thread(send_much)
            await asyncio.to_thread(server.says, "SlowClient")
            got = await ids(room, 600)
            rows = database.execute(
                "select id::text from realtime.messages where topic = %s order by position",
                [private_topic],
            ).fetchall()
            assert got == [row[0] for row in rows]

    run(body())


def test_a_cursor_from_before_what_is_stored_is_a_gap(
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
) -> None:
    async def body() -> None:
        async with Client(f"http://127.0.0.1:{server.port}", mint()) as client:
            room = client.subscribe(private_topic, cursor=OLD)
            with pytest.raises(MessagesMissing) as caught:
                await anext(room)
            assert caught.value.before is not None
            assert caught.value.before.year >= 2025
            entered = await asyncio.to_thread(send, private_topic, 1)
            assert await ids(room, 1) == entered

    run(body())


def blocks(topic: str) -> dict[str, Any]:
    """What the code of the documentation defines."""
    page = (ROOT / "docs" / "client.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block.replace("room:1", topic), names)
    return names


def test_the_certificate_of_a_private_authority_is_trusted_as_the_documentation_says(
    start_server: Callable[..., Any],
    private_topic: str,
    mint: Callable[..., str],
    tmp_path: Path,
) -> None:
    mine, other = (self_signed(tmp_path, name) for name in ("mine", "other"))
    server = start_server(
        "--temporary-slot", "--tls-certificate", str(mine.path), "--tls-key", str(mine.key)
    )
    url, trusting = f"https://127.0.0.1:{server.port}", blocks(private_topic)["trusting"]

    async def body() -> None:
        async with trusting(url, mint(), str(mine.path)) as client:
            assert await client.send(private_topic, "e", {}) is None
        for stranger in (trusting(url, mint(), str(other.path)), Client(url, mint())):
            async with stranger as client:
                with pytest.raises(ConnectRefused, match="certificate verify failed"):
                    await anext(client.subscribe(private_topic))

    run(body())


def test_the_code_of_the_documentation_runs(
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = blocks(private_topic)
    url = f"http://127.0.0.1:{server.port}"
    done: list[object] = []

    async def note(*what: object) -> None:
        done.extend(what)

    async def body() -> None:
        # Two greetings, which the other two get.
        reading = asyncio.create_task(names["main"](url, mint()))
        async with Client(url, mint()) as client:
            following = asyncio.create_task(names["follow"](client, OLD, note, note, note))
            while not done:  # noqa: ASYNC110 - the gap
                await asyncio.sleep(0.05)
            async with Client(url, mint()) as other:
                while not (printed := capsys.readouterr().out):
                    id = await names["greet"](other)
                    await asyncio.sleep(0.05)
                while id not in [getattr(one, "id", None) for one in done]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert printed.startswith("greeting {'text': 'hello")
        await following
        reading.cancel()

    run(body())


def test_a_topic_that_may_not_be_read_is_refused(
    server: Any, topic: str, mint: Callable[..., str]
) -> None:
    async def body() -> None:
        async with Client(f"http://127.0.0.1:{server.port}", mint()) as client:
            with pytest.raises(JoinRefused, match="Unauthorized") as caught:
                await anext(client.subscribe(topic))
            assert caught.value.topic == topic

    run(body())


def test_a_token_that_ends_is_renewed_and_nothing_is_missing(
    server: Any,
    private_topic: str,
    mint: Callable[..., str],
    send: Callable[..., list[str]],
) -> None:
    given = []

    async def token() -> str:
        given.append(mint(ttl_seconds=3))
        return given[-1]

    async def body() -> None:
        async with (
            Client(f"http://127.0.0.1:{server.port}", mint(), token=token) as client,
            client.subscribe(private_topic) as room,
        ):
            while len(given) < 4:
                sent = await asyncio.to_thread(send, private_topic, 1)
                assert await ids(room, 1) == sent

    run(body())


def test_what_a_client_sends_reaches_the_others(
    server: Any, private_topic: str, mint: Callable[..., str]
) -> None:
    url = f"http://127.0.0.1:{server.port}"

    async def body() -> None:
        async with Client(url, mint()) as one, Client(url, mint()) as two:
            async with one.subscribe(private_topic) as here, two.subscribe(private_topic) as there:
                assert await here.send("greeting", {"to": "all"}) is None
                assert await two.send(private_topic, "bytes", b"\0\xff") is None
                message = await anext(there)
                assert (message.event, message.payload) == ("greeting", {"to": "all"})
                message = await anext(here)
                assert (message.event, message.payload) == ("bytes", b"\0\xff")
            # And without following the topic.
            async with one.subscribe(private_topic) as here:
                await two.send(private_topic, "again", [1])
                assert (await anext(here)).payload == [1]

    run(body())


def test_what_a_client_has_stored_can_be_resumed_to(
    server: Any, private_topic: str, mint: Callable[..., str]
) -> None:
    url = f"http://127.0.0.1:{server.port}"

    async def body() -> None:
        async with Client(url, mint()) as client:
            async with client.subscribe(private_topic) as room:
                await known(room)
                cursor = room.cursor
                id = await room.send("e", {"n": 1}, persist=True)
                assert id is not None
            async with client.subscribe(private_topic, cursor=cursor) as room:
                message = await anext(room)
                assert (message.id, message.payload) == (id, {"n": 1})
            with pytest.raises(SendRefused):
                await client.send(private_topic, "e", {}, private=False, persist=True)

    run(body())
