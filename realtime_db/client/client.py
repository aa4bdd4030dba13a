"""The client: one connection for all subscriptions, made again whenever it is lost.

Above is the application; below is `connection`, of which there is one at a time, and only while
something is subscribed to. What a subscription has and wants is in its `channel`, which outlives
connections.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode, urlsplit, urlunsplit
from weakref import WeakValueDictionary

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from realtime_db.client import wire
from realtime_db.client.backoff import Backoff
from realtime_db.client.channel import Channel, Message, State
from realtime_db.client.connection import STEADY_SECONDS, Connection
from realtime_db.client.errors import ClientError, ConnectRefused, NotAnswered
from realtime_db.client.tokens import Source, Tokens
from realtime_db.client.wire import PREFIX

MAX_MESSAGE_BYTES: Final = 67_108_864

_OPEN_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
# Besides 5xx: what a proxy or a limit says, and would not say later.
_PASSING: Final = frozenset({408, 425, 429})

_log = logging.getLogger("realtime_db.client")


class _Unavailable(Exception):
    """A server that may be there later."""


class Subscription:
    """The messages of a topic: `async for message in subscription`.

    It joins at the first message that is asked for, or in `async with`, and leaves when it is
    closed or forgotten. Get one from `Client.subscribe`.

    After `MessagesMissing` it can be iterated again to go on, after other errors to try again.
    """

    def __init__(self, client: Client, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._channel = channel
        self._loop = loop

    @property
    def topic(self) -> str:
        """Without `realtime:`."""
        return self._channel.topic

    @property
    def cursor(self) -> str | None:
        """Where to go on after what was handed out; None if the server has not said yet.

        On a topic where nothing happens it moves on as well, while a message is waited for.
        """
        return self._channel.handed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message.

        Raises:
            MessagesMissing: the gap since the cursor is longer than what is stored.
            JoinRefused: the topic may not be followed, or the cursor cannot be read.
            ConnectRefused: the server does not take the key.
            TokenUnavailable: the callable that gives tokens failed.
        """
        channel = self._channel
        while channel.state is not State.CLOSED:
            item = channel.take()
            if isinstance(item, Message):
                return item
            if item is not None:
                raise item
            await self._client._open(channel)
            await channel.ready.wait()
        await asyncio.sleep(0)  # whoever iterates again and again can at least be cancelled
        raise StopAsyncIteration

    async def send(self, event: str, payload: Any, **options: Any) -> str | None:
        """Broadcasts on this topic; see `Client.send`."""
        private = self._channel.private
        return await self._client.send(self.topic, event, payload, private=private, **options)

    async def __aenter__(self) -> Self:
        """Joins the topic; all that is committed from then on will come."""
        try:
            await self._client._open(self._channel)
            await _joined(self._channel)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leaves the topic; the iteration ends."""
        self._client._close(self._channel)

    def __del__(self) -> None:
        if not self._loop.is_closed() and self._channel.state is not State.CLOSED:
            self._loop.call_soon_threadsafe(self._client._close, self._channel)


class Client:
    """Follows topics of a server, over one connection that is made again whenever it is lost.

    Use it with `async with`. All subscriptions share the connection: one whose messages are not
    taken stops the others when too many wait. Give it a client of its own if it is to be slow.

    Args:
        url: of the server, such as `http://localhost:4000`, or several, of which one answers.
        key: the token to connect with, or an async callable that gives one.
        token: the user's token, or an async callable that gives a new one whenever it is called;
            it is when a token ends or is refused. None for the key.
        headers: `x-…` headers that policies may ask for.
        heartbeat_seconds: between two signs of life, 15 to 25.
        max_waiting: how many messages of a subscription may wait before no more are read.
        tls: for `https` with certificates of one's own.

    Raises:
        ValueError: a URL is none.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        key: Source,
        *,
        token: Source | None = None,
        headers: Mapping[str, str] | None = None,
        heartbeat_seconds: float = 20.0,
        max_waiting: int = 1_000,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._urls = [socket_url(one) for one in ([url] if isinstance(url, str) else url)]
        if not self._urls:
            raise ValueError("a client needs the URL of a server")
        self._key = Tokens(key)
        self._tokens = self._key if token is None else Tokens(token)
        self._headers = dict(headers or {})
        self._heartbeat_seconds = heartbeat_seconds
        self._max_waiting = max_waiting
        self._tls = tls
        self._channels: dict[str, Channel] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wanted = asyncio.Event()
        self._backoff = Backoff()
        self._connection: Connection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection; all iterations end."""
        self._is_closed = True
        for channel in list(self._channels.values()):
            channel.closed()
        self._channels.clear()
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner

    def subscribe(
        self, topic: str, *, private: bool = True, own: bool = False, cursor: str | None = None
    ) -> Subscription:
        """Follows a topic.

        Args:
            topic: without `realtime:`.
            private: whether a policy says who may follow it; see docs/policies.md.
            own: whether what this subscription sends comes back to it.
            cursor: `Message.cursor` or `Subscription.cursor` of an earlier time, to get what came
                after it; None to begin with what comes next.
        """
        channel = Channel(
            topic,
            private=private,
            own=own,
            cursor=cursor,
            max_waiting=self._max_waiting,
            made_room=self._made_room,
        )
        return Subscription(self, channel, asyncio.get_running_loop())

    async def send(
        self,
        topic: str,
        event: str,
        payload: Any,
        *,
        private: bool = True,
        persist: bool = False,
        ttl_seconds: int | None = None,
        answer_seconds: float = 10.0,
    ) -> str | None:
        """Broadcasts to those who follow a topic, and waits until the server has done so.

        A topic that this client does not follow is joined for it and left again, which takes
        longer, and takes the right to read it as well.

        Args:
            topic: without `realtime:`.
            event: a name for it, at most 255 bytes.
            payload: bytes go out as they are, anything else as JSON.
            private: whether a policy says who may follow and send.
            persist: whether to store it, so that it can be resumed to.
            ttl_seconds: for how long to store it; implies `persist`.
            answer_seconds: how long to wait for the server, connecting included.

        Returns:
            The message's id if it was stored; None otherwise.

        Raises:
            SendRefused: it was not sent.
            NotAnswered: it may have been sent or not. Without the right to send to a private topic
                no answer comes either.
            JoinRefused: the topic may not be joined.
            ValueError: the client follows this topic the other way, private or public; or the
                payload has what JSON does not, such as NaN, or is nested too deeply.
            TypeError: the payload has a value of another type than JSON has. Give dates and the
                like as text.
        """
        body = wire.body(payload)
        wish = {"ttl": ttl_seconds} if ttl_seconds is not None else persist or None
        try:
            async with asyncio.timeout(answer_seconds):
                channel = self._channels.get(PREFIX + topic)
                if channel is not None and not channel.mute:
                    if channel.private is not private:
                        kind = "private" if channel.private else "public"
                        raise ValueError(f"{topic!r} is followed as a {kind} topic")
                    return await self._push(channel, event, body, wish)
                async with self._lock(PREFIX + topic):
                    channel = Channel(topic, private=private, mute=True)
                    try:
                        self._add(channel)
                        return await self._push(channel, event, body, wish)
                    finally:
                        self._close(channel)
        except TimeoutError as error:
            raise NotAnswered(
                f"no answer to a broadcast to {topic!r} in {answer_seconds:g} seconds",
                hint="Who may not write to a private topic gets none; see docs/policies.md.",
            ) from error

    async def _push(
        self, channel: Channel, event: str, body: wire.Body, persist: Any
    ) -> str | None:
        while True:
            await _joined(channel)
            connection = self._connection
            if connection is not None and channel.state is State.JOINED:
                return await connection.push(channel, event, body, persist)

    # Channels

    def _lock(self, full_topic: str) -> asyncio.Lock:
        """Held by whoever adds a channel of the topic, and while one is there to send only."""
        return self._locks.setdefault(full_topic, asyncio.Lock())

    async def _open(self, channel: Channel) -> None:
        """Sees to it that a channel is followed."""
        if self._is_closed:
            channel.closed()
        elif channel.state is not State.CLOSED and (
            self._channels.get(channel.full_topic) is not channel
        ):
            async with self._lock(channel.full_topic):
                self._add(channel)

    def _add(self, channel: Channel) -> None:
        other = self._channels.get(channel.full_topic)
        if other is channel:
            return
        if other is not None:
            raise ClientError(
                f"this client follows {channel.topic!r} already",
                hint="Close the other subscription first, or use another client.",
            )
        channel.again()
        self._channels[channel.full_topic] = channel
        self._wanted.set()
        if self._connection is not None:
            self._connection.join(channel)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    def _close(self, channel: Channel) -> None:
        """Leaves a channel for good."""
        if channel.state is State.CLOSED:
            return
        if self._channels.get(channel.full_topic) is channel:
            self._forget(channel)
            if self._connection is not None:
                self._connection.leave(channel)
        channel.closed()

    def _forget(self, channel: Channel) -> None:
        del self._channels[channel.full_topic]
        if not self._channels:
            self._wanted.clear()

    def _made_room(self) -> None:
        if self._connection is not None:
            self._connection.read_on()

    # The connection

    async def _run(self) -> None:
        """Connects, again and again, while there is something to follow."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wanted.wait()
                socket = await self._connect()
                self._connection = Connection(
                    socket,
                    self._channels,
                    self._tokens,
                    heartbeat_seconds=self._heartbeat_seconds,
                    given_up=self._forget,
                )
                connected_at = loop.time()
                try:
                    await self._connection.run()
                finally:
                    self._connection = None
                    await socket.close()
                if loop.time() - connected_at >= STEADY_SECONDS:
                    self._backoff.reset()
                await asyncio.sleep(self._backoff.next_seconds())
        except ClientError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("the client failed")
            self._fail(ClientError(f"the client failed: {error!r}"))

    def _fail(self, error: ClientError) -> None:
        for channel in list(self._channels.values()):
            self._forget(channel)
            channel.failed(error)

    async def _connect(self) -> ClientConnection:
        """Tries one server after the other; waits after each round."""
        while True:
            for _ in self._urls:
                url = self._urls[0]
                try:
                    return await self._connect_to(url)
                except _Unavailable as error:
                    _log.warning("%s is not available: %s", url, error)
                    self._urls.append(self._urls.pop(0))
            await asyncio.sleep(self._backoff.next_seconds())

    async def _connect_to(self, url: str) -> ClientConnection:
        refused: str | None = None
        options: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls}
        while True:
            key = await self._key.get(unlike=refused)
            try:
                return await connect(
                    url,
                    # Not in the URL, which ends up in logs.
                    additional_headers={**self._headers, "x-api-key": key},
                    compression=None,
                    open_timeout=_OPEN_SECONDS,
                    close_timeout=_CLOSE_SECONDS,
                    ping_interval=None,  # heartbeats do that
                    max_size=MAX_MESSAGE_BYTES,
                    **options,
                )
            except InvalidStatus as error:
                status = error.response.status_code
                reason = _reason(error.response.body)
                if status >= 500 or status in _PASSING:
                    raise _Unavailable(f"HTTP {status} {reason}") from error
                if status not in (401, 403) or not self._key.renews or refused is not None:
                    raise ConnectRefused(url, status, reason) from error
                refused = key
            except ssl.SSLCertVerificationError as error:
                raise ConnectRefused(url, None, str(error)) from error
            except (OSError, EOFError, WebSocketException) as error:
                raise _Unavailable(str(error) or repr(error)) from error


def socket_url(url: str) -> str:
    """The URL of a server's WebSocket, from that of the server or of the socket.

    Raises:
        ValueError: it is no URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) or ws(s) URL of a server")
    path = parts.path.rstrip("/")
    if not path:
        path = "/realtime/v1/websocket"
    elif not path.endswith("/websocket"):
        path += "/websocket"
    query = "&".join(filter(None, [parts.query, urlencode({"vsn": "2.0.0"})]))
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, query, ""))


async def _joined(channel: Channel) -> None:
    """Waits until a channel is joined; raises what it was given up for."""
    while channel.state is not State.JOINED:
        if channel.state is State.CLOSED:
            raise ClientError(f"the subscription to {channel.topic!r} is closed")
        if channel.error is not None:
            raise channel.error
        await channel.settled.wait()


def _reason(body: bytes | None) -> str:
    """What an HTTP answer says."""
    text = (body or b"").decode(errors="replace")
    try:
        content = json.loads(text)
        return str(content.get("error") or content.get("message") or text)
    except (ValueError, AttributeError, RecursionError):
        return text[:200].strip()
