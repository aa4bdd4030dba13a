"""One WebSocket to a server, and the channels on it: joins, heartbeats, answers.

Above is `client`, which makes the next connection when this one is gone; below are the channels.
The reader never waits for the database or for tokens: each channel has a task that joins it, and
joins it again whenever the server ends it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from realtime_db.client import wire
from realtime_db.client.backoff import Backoff
from realtime_db.client.channel import Channel, State
from realtime_db.client.errors import (
    ClientError,
    JoinRefused,
    NotAnswered,
    SendRefused,
    TokenUnavailable,
)
from realtime_db.client.tokens import Tokens, seconds_to_renewal
from realtime_db.client.wire import Broadcast, Control

ANSWER_SECONDS: Final = 15.0
"""How long after a heartbeat its answer, or anything else, has to come."""

STEADY_SECONDS: Final = 1.0
"""What held for so long is tried again without much waiting."""

_NO_CURSOR_SECONDS: Final = 0.25
_NO_CURSOR_BEATS: Final = 20

# Reasons that pass; the part before the colon. All others would be the same next time.
_PASSING: Final = frozenset(
    {
        "ClientJoinRateLimitReached",
        "ConnectionRateLimitReached",
        "DatabaseLackOfConnections",
        "IncreaseConnectionPool",
        "InitializingProjectConnection",
        "MissingPartition",
        "QueryCanceled",
        "RealtimeRestarting",
        "UnableToConnectToProject",
        "Unknown Error on Channel",
    }
)
_REPLAY_FAILED: Final = "UnableToReplayMessages: Realtime was unable to replay messages"

# Reasons that another token may change.
_OF_THE_TOKEN: Final = frozenset(
    {"InvalidJWTToken", "JwtSignatureError", "JwtSignerError", "MalformedJWT", "Unauthorized"}
)

_MISSING: Final = re.compile(r"MessagesMissing: messages before (\S+) are no longer stored")

_log = logging.getLogger("realtime_db.client")


def passes(reason: str) -> bool:
    """Whether a join that was refused for this reason may succeed later."""
    return reason.partition(":")[0] in _PASSING or reason == _REPLAY_FAILED


def is_of_the_token(reason: str) -> bool:
    """Whether a join that was refused for this reason may succeed with another token."""
    return reason.partition(":")[0] in _OF_THE_TOKEN


class Connection:
    """What is joined on one WebSocket.

    Args:
        socket: after the handshake.
        channels: by their full topics; those of the client.
        tokens: for joins.
        heartbeat_seconds: between two heartbeats.
        given_up: is called with a channel that failed.
    """

    def __init__(
        self,
        socket: ClientConnection,
        channels: dict[str, Channel],
        tokens: Tokens,
        *,
        heartbeat_seconds: float,
        given_up: Callable[[Channel], object],
    ) -> None:
        self._socket = socket
        self._channels = channels
        self._tokens = tokens
        self._heartbeat_seconds = heartbeat_seconds
        self._given_up = given_up
        self._refs = map(str, itertools.count(1))
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._go_on = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._joiners: dict[Channel, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Reads until the connection is gone."""
        try:
            for channel in list(self._channels.values()):
                self.join(channel)
            self._start(self._beat())
            self._start(self._renew())
            await self._read()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for channel in self._channels.values():
                channel.parted()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(NotAnswered("the connection was lost meanwhile"))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, ConnectionClosed | NotAnswered):
                _log.error("a task of the client failed", exc_info=error)
            self._socket.transport.abort()

    # Reading

    async def _read(self) -> None:
        silence = self._heartbeat_seconds + ANSWER_SECONDS
        try:
            while True:
                # Only the time in which nothing comes counts, not that of a slow application.
                async with asyncio.timeout(silence):
                    data = await self._socket.recv(decode=False)
                channel = self._receive(data)
                # Whoever waits for an answer may be the one who is to take the messages.
                while channel is not None and channel.is_full and not self._answers:
                    self._go_on.clear()
                    await self._go_on.wait()
        except ConnectionClosed as error:
            _log.info("the connection was lost: %s", error)
        except TimeoutError:
            _log.warning("the connection is given up: nothing came for %g seconds", silence)
            self._socket.transport.abort()

    def read_on(self) -> None:
        """There is room again."""
        self._go_on.set()

    def _receive(self, data: bytes) -> Channel | None:
        """Takes one message; returns the channel that it went to."""
        try:
            frame = wire.decode(data)
        except wire.UnreadableFrame as error:
            _log.warning("dropped: %s", error)
            return None
        channel = self._channels.get(frame.topic)
        if isinstance(frame, Broadcast):
            if channel is not None:
                channel.received(frame)
            return channel
        if frame.topic == wire.PHOENIX:
            self._beaten(frame)
        elif frame.event == "phx_reply":
            self._answered(frame, channel)
        elif channel is not None and frame.join_ref in (None, channel.join_ref):
            self._told(frame, channel)
        return None

    def _beaten(self, frame: Control) -> None:
        response = frame.payload.get("response")
        cursor = response.get("cursor") if isinstance(response, dict) else None
        for channel in self._channels.values():
            channel.beat(cursor if isinstance(cursor, str) else None)

    def _answered(self, frame: Control, channel: Channel | None) -> None:
        if frame.ref is None:
            return
        answer = self._answers.pop(frame.ref, None)
        if channel is not None and frame.ref == channel.join_ref and answer is not None:
            response = frame.payload.get("response")
            if frame.payload.get("status") == "ok":
                channel.joined(response if isinstance(response, dict) else {})
            else:
                channel.parted()
        if answer is not None and not answer.done():
            answer.set_result(frame.payload)

    def _told(self, frame: Control, channel: Channel) -> None:
        if frame.event in ("phx_close", "phx_error"):
            reason = frame.payload.get("reason")
            channel.parted(reason if isinstance(reason, str) else None)
        elif frame.event == "system" and frame.payload.get("status") == "error":
            text = str(frame.payload.get("message"))
            if (match := _MISSING.fullmatch(text)) is None:
                channel.reason = text
            elif channel.state is State.JOINED:
                channel.missing(match[1])

    # Asking

    async def _ask(self, ref: str, data: str | bytes) -> dict[str, Any]:
        """Sends a frame and waits for its answer, the payload of `phx_reply`."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[ref] = answer
        self._go_on.set()
        try:
            await self._socket.send(data)
            return await answer
        except ConnectionClosed as error:
            raise NotAnswered("the connection was lost meanwhile") from error
        finally:
            self._answers.pop(ref, None)

    async def push(self, channel: Channel, event: str, body: wire.Body, persist: Any) -> str | None:
        """Sends a broadcast on a joined channel; its id if it was stored."""
        assert channel.join_ref is not None, "only what was asked to join can be joined"
        ref = next(self._refs)
        frame = wire.push(
            channel.full_topic, event, body, join_ref=channel.join_ref, ref=ref, persist=persist
        )
        answer = await self._ask(ref, frame)
        response = answer.get("response")
        if answer.get("status") != "ok":
            reason = response
            if isinstance(response, dict):
                reason = response.get("error") or response.get("reason") or response
            raise SendRefused(channel.topic, str(reason))
        id = response.get("id") if isinstance(response, dict) else None
        if not isinstance(id, str):
            return None
        channel.stored_own(id)
        return id

    # Channels

    def join(self, channel: Channel) -> None:
        """Keeps a channel joined from now on."""
        self._joiners[channel] = self._start(self._keep_joined(channel))

    def leave(self, channel: Channel) -> None:
        """Leaves a channel, if it was joined."""
        joiner = self._joiners.pop(channel, None)
        if joiner is not None:
            joiner.cancel()
        if channel.join_ref is not None:
            frame = wire.text(
                channel.full_topic, "phx_leave", {}, channel.join_ref, next(self._refs)
            )
            self._start(self._say(frame))

    async def _say(self, frame: str) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(frame)

    async def _keep_joined(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        refused: str | None = None
        while True:
            # Whoever is thrown out for being slow need not come back before it has caught up.
            await channel.room.wait()
            try:
                token = await self._tokens.get(unlike=refused)
            except TokenUnavailable as error:
                self._give_up(channel, error)
                return
            reason = await self._join(channel, token)
            if reason is None:
                joined_at = loop.time()
                await channel.apart.wait()
                if loop.time() - joined_at >= STEADY_SECONDS:
                    backoff.reset()
                _log.info("%s ended: %s", channel.full_topic, channel.reason)
                refused = token  # it may be why
            elif is_of_the_token(reason) and self._tokens.renews and refused is None:
                refused = token
                continue
            elif not passes(reason):
                self._give_up(channel, JoinRefused(channel.topic, reason))
                return
            else:
                _log.warning("the join of %s was refused: %s", channel.full_topic, reason)
            await asyncio.sleep(backoff.next_seconds())

    async def _join(self, channel: Channel, token: str) -> str | None:
        """Joins; why not, if it was refused."""
        ref = next(self._refs)
        frame = wire.join(
            channel.full_topic,
            ref,
            private=channel.private,
            own=channel.own,
            token=token,
            cursor=channel.joining(ref),
        )
        answer = await self._ask(ref, frame)
        if answer.get("status") == "ok":
            return None
        response = answer.get("response")
        return str(response.get("reason") if isinstance(response, dict) else response)

    def _give_up(self, channel: Channel, error: ClientError) -> None:
        self._joiners.pop(channel, None)
        self._given_up(channel)
        channel.failed(error)

    # Beside

    async def _beat(self) -> None:
        """Keeps the connection, and the cursors of topics on which nothing happens."""
        with suppress(ConnectionClosed):
            for number in itertools.count():
                seconds = self._heartbeat_seconds * random.uniform(0.8, 1)  # noqa: S311 - no secret
                if number < _NO_CURSOR_BEATS and self._without_cursor():
                    seconds = min(seconds, _NO_CURSOR_SECONDS)
                await asyncio.sleep(seconds)
                await self._socket.send(wire.heartbeat(next(self._refs)))

    def _without_cursor(self) -> bool:
        """Whether a channel could not resume: the server did not know a cursor at its join."""
        return any(one.cursor is None for one in self._channels.values())

    async def _renew(self) -> None:
        """Gives the channels the next token before theirs ends."""
        if not self._tokens.renews:
            return
        token: str | None = None
        while True:
            try:
                token = await self._tokens.get()
                seconds = seconds_to_renewal(token)
                if seconds is None:
                    return
                await asyncio.sleep(seconds)
                new = await self._tokens.get(unlike=token)
            except TokenUnavailable as error:
                _log.warning("the token was not renewed: %s", error)
                await asyncio.sleep(self._heartbeat_seconds)
                continue
            if new != token:
                await self._push_token(new)

    async def _push_token(self, token: str) -> None:
        for channel in list(self._channels.values()):
            if channel.state is State.JOINED:
                await self._say(
                    wire.text(
                        channel.full_topic,
                        "access_token",
                        {"access_token": token},
                        channel.join_ref,
                        next(self._refs),
                    )
                )
