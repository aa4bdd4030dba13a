"""Connections and channels against answers that come when the test says so; no loop, no socket."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from realtime_db.auth import policies
from realtime_db.auth.access import Access, CheckFailed, WriteAccess
from realtime_db.auth.tokens import BadSignature, Claims, Expired, NoSigner, TokenError
from realtime_db.cursors import Cursor, Snapshot
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Broadcast, Replayed
from realtime_db.protocol.channel import RECHECK_SECONDS, REPLICATION_SECONDS
from realtime_db.protocol.connection import MAX_WAITING_BYTES, Connection
from realtime_db.protocol.frames import V2, Frame
from realtime_db.protocol.join import Replay
from realtime_db.protocol.persist import NotStored
from realtime_db.protocol.services import Extension, Services, Subscriber
from realtime_db.settings import Settings
from realtime_db.stored import ReplayFailed
from realtime_db.wheel import Wheel

NOW = 1_000_000.0


class _Turn:
    """Lets others go first, once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Wire:
    def encode(self, message: Broadcast) -> bytes | None:
        frame = message.encode(V2)
        return None if frame is None else frame.data


class Stored:
    """What is stored after any cursor."""

    def __init__(self, *pages: list[Broadcast], gap: str | None = None) -> None:
        self.seen = Snapshot(10, 10)
        self.cursor = "the-new-cursor"
        self.gap = gap
        self.is_empty = not pages
        self.failure: CheckFailed | None = None
        self._pages = pages

    async def pages(self) -> AsyncIterator[list[Broadcast]]:
        for page in self._pages:
            await _Turn()
            yield page


class World:
    """A server whose keys, policies and stored messages are what the test puts here."""

    def __init__(self, **settings: Any) -> None:
        self.now = NOW
        self.calls: list[Callable[[], None]] = []
        self.tokens: dict[str, Claims | TokenError] = {"key": self.claims()}
        self.new_tokens: dict[str, Claims | TokenError] = {}
        self.read: Access | Exception = Access(broadcast=True, presence=True)
        self.write: WriteAccess | Exception = WriteAccess(True)
        self.replayed: Replayed | Exception = Replayed([])
        self.asked_for: list[int] = []
        self.stored = Stored()
        self.resumed_after: Cursor | None = None
        self.questions = 0
        self.services = Services(
            settings=Settings(database_url="", **settings),
            hub=Hub(self.calls.append),
            keys=self,
            policies=self,
            stored=self,
            wheel=Wheel(NOW),
            now=lambda: self.now,
            log=logging.getLogger("test"),
        )

    @staticmethod
    def claims(exp: float = NOW + 10_000) -> Claims:
        return Claims(role="anon", exp=int(exp), sub=None, json="{}")

    def verify_known(self, token: str, now: float) -> Claims:
        found = self.tokens[token]
        if isinstance(found, TokenError):
            raise found
        found.check_expiry(now)
        return found

    async def verify(self, token: str, now: float) -> Claims:
        await _Turn()
        self.tokens |= self.new_tokens
        return self.verify_known(token, now)

    async def _answer(self, answer: Any) -> Any:
        self.questions += 1
        await _Turn()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read_access(
        self, topic: str, claims: Claims, headers: Mapping[str, str] | None = None
    ) -> Access:
        return await self._answer(self.read)  # type: ignore[no-any-return]

    async def write_access(
        self,
        topic: str,
        claims: Claims,
        headers: Mapping[str, str] | None = None,
        extension: Extension = "broadcast",
    ) -> WriteAccess:
        return await self._answer(self.write)  # type: ignore[no-any-return]

    async def latest(self, topic: str, replay: Replay, services: Services) -> Replayed:
        self.asked_for = services.progress.unseen()
        return await self._answer(self.replayed)  # type: ignore[no-any-return]

    @asynccontextmanager
    async def resume(
        self,
        topics: Collection[str],
        *,
        private: bool,
        cursor: Cursor,
        services: Services,
        subscriber: Subscriber,
    ) -> AsyncIterator[Stored]:
        self.resumed_after = cursor
        await self._answer(None)
        subscriber.hold()
        await self._answer(self.stored.failure)
        subscriber.skip(self.stored.seen)
        yield self.stored

    def flush(self) -> None:
        while self.calls:
            self.calls.pop(0)()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.services.wheel.advance(self.now)


class Client:
    """One connection, and what its client has been sent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frames: list[list[Any]] = []
        self.written: list[bytes] = []
        self.closed: list[int] = []
        self.reading = True
        self.takes = True
        self._running: list[Coroutine[Any, Any, None]] = []
        self.connection = Connection(
            world.services,
            V2,
            "key",
            {},
            wire=Wire(),
            write=self.written.append,
            send=self._take,
            start=self._running.append,
            close=lambda code, reason: self.closed.append(code),
            read=self._read,
            drained=self._drained,
        )

    def _take(self, frame: Frame) -> None:
        self.frames.append(json.loads(frame.data))

    def _read(self, more: bool) -> None:
        self.reading = more

    async def _drained(self) -> bool:
        await _Turn()
        return self.takes

    def push(self, event: str, payload: Any = None, ref: str = "9") -> None:
        text = json.dumps([None, ref, "realtime:room", event, payload or {}])
        self.connection.receive(text.encode(), binary=False)

    def step(self) -> None:
        """Runs every question until it waits, or ends."""
        running, self._running[:] = list(self._running), []
        for one in running:
            try:
                one.send(None)
            except StopIteration:
                continue
            self._running.append(one)

    def settle(self) -> None:
        """Answers all questions, and those that follow from the answers."""
        while self._running:
            self.step()
        self.world.flush()

    def join(self, token: str | None = None, **config: Any) -> Any:
        """Joins the room with all questions answered; returns the payload of the reply."""
        self.push("phx_join", {"config": config, "access_token": token}, ref="1")
        self.settle()
        return self.take("phx_reply")

    def take(self, event: str) -> Any:
        """The payload of the oldest frame, which has this event."""
        frame = self.frames.pop(0)
        assert frame[3] == event, frame
        return frame[4]

    def broadcast(self, event: str = "e", ref: str = "9", text: str = "") -> None:
        self.push("broadcast", {"type": "broadcast", "event": event, "text": text}, ref)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


OK = {"status": "ok", "response": {"postgres_changes": []}}


def refused(reason: str) -> dict[str, Any]:
    return {"status": "error", "response": {"reason": reason}}


# Joins


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (policies.QueryCanceled, "QueryCanceled: Query was cancelled, please try again"),
        (
            policies.MissingPartition,
            "MissingPartition: Realtime was unable to find the expected messages partition",
        ),
        (
            policies.IncreaseConnectionPool,
            "IncreaseConnectionPool: Please increase your connection pool size",
        ),
        (
            policies.DatabaseLackOfConnections,
            "DatabaseLackOfConnections: Database can't accept more connections, "
            "Realtime won't connect",
        ),
        (
            policies.UnableToConnectToProject,
            "UnableToConnectToProject: Realtime was unable to connect to the project database",
        ),
        (CheckFailed, "Unknown Error on Channel"),
    ],
)
def test_a_join_that_cannot_be_checked_is_refused_with_the_cause(
    world: World, client: Client, error: type[CheckFailed], reason: str
) -> None:
    world.read = error("down")
    assert client.join(private=True) == refused(reason)
    assert client.connection.channels == {}
    assert client.closed == []


def test_a_defect_refuses_the_join(world: World, client: Client) -> None:
    world.read = ZeroDivisionError()
    assert client.join(private=True) == refused("Unknown Error on Channel")


def test_a_replay_that_fails_refuses_the_join_and_leaves_nothing(
    world: World, client: Client
) -> None:
    world.replayed = ReplayFailed("down")
    config = {"private": True, "broadcast": {"replay": {"since": 1}}}
    reason = "UnableToReplayMessages: Realtime was unable to replay messages"
    assert client.join(**config) == refused(reason)
    assert world.services.hub.topics == 0


def test_a_server_that_ends_refuses_joins(world: World, client: Client) -> None:
    world.services.restarting = True
    reason = "RealtimeRestarting: Realtime is restarting, please standby"
    assert client.join() == refused(reason)


def test_a_key_that_is_not_known_is_looked_for(world: World, client: Client) -> None:
    world.tokens["new"] = NoSigner(unknown_kid="k")
    world.new_tokens["new"] = world.claims()
    assert client.join(token="new") == OK
    world.tokens["newer"] = NoSigner(unknown_kid="k2")
    world.new_tokens = {}
    assert client.frames == []
    client.push("phx_leave")
    client.frames.clear()
    assert client.join(token="newer")["response"]["reason"].startswith("JwtSignerError: ")


def test_a_stored_message_that_fits_into_no_frame_does_not_end_the_replay(
    world: World, client: Client
) -> None:
    long = Broadcast("realtime:room", "e" * 300, b"\x00", id="long", binary=True)
    world.replayed = Replayed([long, Broadcast("realtime:room", "e", b"{}", id="short")])
    assert client.join(private=True, broadcast={"replay": {"since": 1}}) == OK
    assert client.take("broadcast")["meta"]["id"] == "short"
    assert "realtime:room" in client.connection.channels


def test_what_is_published_during_a_replay_follows_it_unless_the_query_saw_it(
    world: World, client: Client
) -> None:
    hub, key = world.services.hub, ("room", True)

    def stored(event: str, number: int) -> Broadcast:
        return Broadcast("realtime:room", event, b"{}", id=event, transaction_id=number)

    world.replayed = Replayed([stored("b", 5)], Snapshot(4, 9, frozenset([7])))
    config = {"private": True, "broadcast": {"replay": {"since": 1, "limit": 1}}}
    client.push("phx_join", {"config": config}, ref="1")
    client.step()  # asks the policies
    world.services.progress.handed(2, 100, 1)
    world.services.progress.handed(3, 200, 1)
    client.step()  # asks for what is stored
    assert sorted(world.asked_for) == [2, 3]
    hub.publish(key, stored("beyond the limit", 3))
    hub.publish(key, stored("b", 5))
    hub.publish(key, stored("not seen", 7))
    client.settle()
    hub.publish(key, stored("seen, and late", 8))
    hub.publish(key, stored("next", 9))
    world.flush()
    assert client.take("phx_reply") == OK
    assert client.take("broadcast")["event"] == "b"
    assert client.frames == []
    assert len(client.written) == 2
    assert b"not seen" in client.written[0]
    assert b"seen, and late" not in client.written[1]
    assert b"next" in client.written[1]


# What waits


def test_a_write_that_cannot_be_checked_is_dropped_and_the_next_asks_again(
    world: World, client: Client
) -> None:
    client.join(private=True, broadcast={"ack": True, "self": True})
    world.write = policies.QueryCanceled("slow")
    for ref in "abc":
        client.broadcast("lost", ref)
    asked = world.questions
    client.settle()
    assert world.questions == asked + 1
    assert client.frames == client.written == []
    world.write = WriteAccess(True)
    client.broadcast("heard", "d")
    client.settle()
    assert client.take("phx_reply")["status"] == "ok"
    assert b"heard" in client.written[0]


def test_the_right_to_write_is_asked_about_once(world: World, client: Client) -> None:
    client.join(private=True)
    before = world.questions
    for _ in range(5):
        client.broadcast()
        client.settle()
    assert world.questions == before + 1


def test_too_much_that_waits_stops_the_reading_until_it_is_answered(
    world: World, client: Client
) -> None:
    client.push("phx_join", {"config": {"private": True}}, ref="1")
    while client.reading:
        client.broadcast(text="x" * 10_000)
    channel = client.connection.channels["realtime:room"]
    assert len(channel._waiting or ()) * 10_400 > MAX_WAITING_BYTES
    client.settle()
    assert client.reading


@pytest.mark.parametrize("how", ["join again", "close"])
def test_what_waits_is_forgotten_with_its_channel(world: World, client: Client, how: str) -> None:
    client.push("phx_join", {"config": {"private": True}}, ref="1")
    while client.reading:
        client.broadcast(text="x" * 10_000)
    if how == "close":
        client.connection.closed()
        assert client.reading
    else:
        client.push("phx_join", {"config": {}}, ref="2")
    client.settle()
    assert client.reading


def test_a_question_with_a_defect_makes_the_client_join_again(world: World, client: Client) -> None:
    client.join(private=True)
    world.write = ZeroDivisionError()
    client.broadcast()
    client.settle()
    assert client.frames == [["1", "1", "realtime:room", "phx_error", {}]]
    assert client.connection.channels == {}


def test_nothing_is_sent_for_a_channel_that_ended_while_it_asked(
    world: World, client: Client
) -> None:
    world.tokens["short"] = world.claims(NOW + 1)
    client.join(token="short", private=True)
    other = Client(world)
    other.join(private=True)
    client.broadcast("too late")
    world.pass_time(3)
    client.settle()
    assert client.take("system")["message"] == "Token has expired 2 seconds ago"
    assert client.take("phx_close") == {}
    assert client.frames == other.written == []


def test_a_renewal_of_a_channel_that_ended_leaves_nothing(world: World, client: Client) -> None:
    world.tokens["other"] = world.claims()
    client.join(private=True)
    client.push("access_token", {"access_token": "other"})
    client.step()
    client.connection.closed()
    client.settle()
    assert world.services.hub.topics == 0


# Tokens


def test_a_token_is_verified_again_every_five_minutes(world: World, client: Client) -> None:
    """Its key may have been retired."""
    client.join()
    world.pass_time(RECHECK_SECONDS + 1)
    assert client.frames == []
    world.tokens["key"] = BadSignature()
    world.pass_time(RECHECK_SECONDS + 2)
    assert client.take("system")["message"] == "Failed to validate JWT signature"
    assert client.take("phx_close") == {}


def test_a_channel_that_was_left_is_not_ended_again(world: World, client: Client) -> None:
    world.tokens["short"] = world.claims(NOW + 5)
    client.join(token="short")
    client.push("phx_leave")
    client.frames.clear()
    world.pass_time(60)
    assert client.frames == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            policies.UnableToConnectToProject("down"),
            "Realtime was unable to connect to the project database",
        ),
        (policies.QueryCanceled("slow"), "Query was cancelled, please try again"),
        (Expired(7), "Token has expired 7 seconds ago"),
    ],
)
def test_a_renewal_that_cannot_be_checked_ends_the_channel(
    world: World, client: Client, error: Exception, message: str
) -> None:
    world.tokens["other"] = world.claims()
    client.join(private=True)
    world.read = error
    client.push("access_token", {"access_token": "other"})
    client.settle()
    assert client.take("system")["message"] == message
    assert client.take("phx_close") == {}


# The database stream


def test_a_channel_is_told_when_the_stream_runs(world: World, client: Client) -> None:
    client.join(broadcast={"replication_ready": True})
    assert client.frames == []
    world.services.replicating = True
    assert client.take("system")["message"] == "Replication connection established"
    world.pass_time(REPLICATION_SECONDS + 2)
    world.services.replicating = True
    assert client.frames == []


def test_a_channel_ends_when_the_stream_does_not_run_in_time(world: World, client: Client) -> None:
    client.join(broadcast={"replication_ready": True})
    world.pass_time(REPLICATION_SECONDS + 2)
    text = "Replication connection was not established in time"
    assert client.take("system")["message"] == text
    assert client.take("phx_close") == {}


def test_a_channel_that_was_left_does_not_wait_for_the_stream(world: World, client: Client) -> None:
    client.join(broadcast={"replication_ready": True})
    client.push("phx_leave")
    client.frames.clear()
    world.services.replicating = True
    world.pass_time(REPLICATION_SECONDS + 2)
    assert client.frames == []


# The end of a connection


def test_a_connection_that_ends_leaves_nothing(world: World, client: Client) -> None:
    client.join(private=True, presence={"enabled": True, "key": "k"})
    client.push("presence", {"event": "track", "payload": {}})
    client.settle()
    other = Client(world)
    other.join(private=True, presence={"enabled": True})
    client.connection.closed()
    world.flush()
    assert b'"leaves":{"k":' in other.written[-1]
    other.connection.closed()
    assert len(world.services.presences) == 0
    assert world.services.hub.topics == world.services.presence_hub.topics == 0


def test_a_track_that_is_too_large_ends_the_channel() -> None:
    client = Client(World(max_payload_bytes=10))
    client.join()
    client.push("presence", {"event": "track", "payload": {"a": "x" * 20}})
    assert client.take("system")["message"] == "Track message size exceeded"
    assert client.take("phx_close") == {}


# Limits


def test_a_client_that_sends_too_many_bytes_ends_its_channel() -> None:
    client = Client(World(max_bytes_per_second=20.0))  # two hundred at once
    client.join(broadcast={"self": True})
    client.broadcast(text="x" * 100)
    client.settle()
    client.broadcast(text="x" * 100)
    client.settle()
    assert len(client.written) == 1
    assert client.take("system")["message"] == "Too many bytes per second"
    assert client.take("phx_close") == {}
    assert client.connection.services.limits.struck["max_bytes_per_second"] == 1


def test_a_channel_that_would_get_too_much_ends_and_others_stay(world: World) -> None:
    world.services.hub = Hub(world.calls.append, max_per_second=0.1, now=lambda: world.now)
    sender, client = Client(world), Client(world)
    for one in (sender, client):
        one.join()
    for _ in range(2):
        sender.broadcast()
    client.settle()
    assert client.written == sender.written == []
    assert client.take("system")["message"] == "Too many messages per second"
    assert client.take("phx_close") == {}
    assert sender.frames == []  # it would have got nothing
    assert world.services.limits.struck["max_deliveries_per_second"] == 1


def test_a_channel_that_would_get_too_much_presence_ends(world: World) -> None:
    world.services.presence_hub = Hub(world.calls.append, max_per_second=0.1, now=lambda: world.now)
    tracker, client = Client(world), Client(world)
    client.join(presence={"enabled": True})
    client.take("presence_state")
    tracker.join()
    for _ in range(2):
        tracker.push("presence", {"event": "track", "payload": {}})
    client.settle()
    assert client.take("system")["message"] == "Too many presence messages per second"
    assert client.take("phx_close") == {}


def test_a_broadcast_that_is_too_large_is_not_lost_in_silence() -> None:
    client = Client(World(max_payload_bytes=100))
    client.join()
    client.broadcast(text="x" * 100)
    assert client.take("system") == {
        "extension": "system",
        "status": "error",
        "message": "payload_size_exceeded",
        "channel": "room",
    }
    client = Client(World(max_payload_bytes=100))
    client.join(broadcast={"ack": True})
    client.broadcast(text="x" * 100)
    assert client.take("phx_reply") == {"status": "error", "response": "payload_size_exceeded"}
    assert client.frames == []


# New keys


def test_new_keys_end_the_channels_whose_token_they_do_not_open(world: World) -> None:
    world.tokens |= {"old": world.claims(), "new": world.claims()}
    client = Client(world)
    client.join("old")
    world.tokens["old"] = BadSignature()
    assert client.connection.keys_changed()
    assert client.take("system")["message"] == "Failed to validate JWT signature"
    assert client.take("phx_close") == {}
    client.join("new")
    assert client.connection.keys_changed()
    assert client.closed == client.frames == []
    assert "realtime:room" in client.connection.channels


def test_new_keys_end_the_connection_whose_own_key_they_do_not_open(world: World) -> None:
    world.tokens["mine"] = world.claims()
    client = Client(world)
    client.join("mine")
    world.tokens["key"] = BadSignature()
    assert not client.connection.keys_changed()
    assert client.take("system")["message"] == "Server requested disconnect"
    assert client.closed == [1012]


def test_a_connection_whose_key_has_expired_outlives_new_keys(world: World) -> None:
    world.tokens["mine"] = world.claims()
    client = Client(world)
    client.join("mine")
    world.tokens["key"] = Expired(1)
    assert client.connection.keys_changed()
    assert client.closed == client.frames == []


# Rights, again


def run(client: Client, coroutine: Coroutine[Any, Any, None]) -> None:
    client.connection.start(coroutine)
    client.settle()


def test_the_policies_are_asked_again_after_an_interval() -> None:
    world = World(recheck_seconds=100.0)
    private, public = Client(world), Client(world)
    private.join(private=True)
    public.join()
    world.pass_time(40)
    assert world.services.rechecks.take() is None
    for _ in range(2):
        world.pass_time(102)
        assert world.services.rechecks.take() is private.connection.channels["realtime:room"]
        assert world.services.rechecks.take() is None
        run(private, private.connection.channels["realtime:room"].check_again())


def test_without_an_interval_only_the_token_is_looked_at() -> None:
    world = World(recheck_seconds=0.0)
    client = Client(world)
    client.join(private=True)
    world.pass_time(RECHECK_SECONDS + 2)
    assert world.services.rechecks.take() is None
    assert client.frames == []


def test_policies_that_cannot_be_asked_end_no_channel_and_are_asked_later(
    world: World, client: Client
) -> None:
    client.join(private=True)
    channel = client.connection.channels["realtime:room"]
    world.read = policies.UnableToConnectToProject("down")
    run(client, channel.check_again())
    assert client.frames == []
    assert world.services.rechecks.take() is None
    world.pass_time(7)
    assert world.services.rechecks.take() is channel
    world.read = Access(broadcast=False, presence=True)
    run(client, channel.check_again())
    text = "You no longer have permission to read from this Channel topic: room"
    assert client.take("system")["message"] == text
    assert client.take("phx_close") == {}
    assert world.services.rechecks.take() is None


def test_what_was_asked_before_a_revocation_is_asked_again_after_it(
    world: World, client: Client
) -> None:
    client.push("phx_join", {"config": {"private": True}}, ref="1")
    client.step()  # the policies have been asked, and have said yes
    world.services.rechecks.revoke(b"{}", 0)
    world.services.rechecks.seen(what for _, what in world.services.rechecks.take_revocations())
    one = world.services.rechecks.take()
    assert one is client.connection.channels["realtime:room"]
    world.read = Access(broadcast=False, presence=False)
    with pytest.raises(StopIteration):  # not now: the join has not been answered
        one.check_again().send(None)
    client.settle()
    assert client.take("phx_reply") == OK
    assert "no longer" in client.take("system")["message"]
    assert client.take("phx_close") == {}


def test_a_broadcast_that_waits_for_a_check_is_sent_with_the_rights_of_then(
    world: World, client: Client
) -> None:
    client.join(private=True)
    other = Client(world)
    other.join(private=True)
    client.broadcast("may")
    client.settle()
    channel = client.connection.channels["realtime:room"]
    client.connection.start(channel.check_again())
    client.step()
    client.broadcast("may not")
    world.write = WriteAccess(False)
    client.settle()
    assert [json.loads(data)[4]["event"] for data in other.written] == ["may"]


# To be stored


def persisted(client: Client, event: str, payload: bytes = b"{}", ref: str = "9") -> None:
    fields = [b"", ref.encode(), b"realtime:room", event.encode(), b'{"persist":true}']
    frame = bytes((3, *map(len, fields), 1)) + b"".join(fields) + payload
    client.connection.receive(frame, binary=True)


def test_what_is_not_to_be_stored_waits_for_what_is(world: World, client: Client) -> None:
    client.join(private=True)
    other = Client(world)
    other.join(private=True)
    world.services.replicating = True
    persisted(client, "first")
    client.settle()
    (message,) = world.services.to_store.take(10, 1000)
    client.broadcast("second")
    client.broadcast("third")
    message.done(None)
    world.flush()
    assert other.written == []

    own = world.services.own
    stored = Broadcast("realtime:room", "first", b"{}", id=message.id)
    world.services.hub.publish(("room", True), stored, besides=own.came(message.id))
    world.flush()

    text = b"".join(other.written)
    assert 0 < text.index(b"first") < text.index(b"second") < text.index(b"third")
    assert client.written == []
    assert not own


def test_it_does_not_wait_for_ever(world: World, client: Client) -> None:
    client.join(private=True)
    other = Client(world)
    other.join(private=True)
    world.services.replicating = True
    persisted(client, "first")
    client.settle()
    client.broadcast("second")
    client.broadcast("third")
    world.pass_time(4)
    world.flush()
    text = b"".join(other.written)
    assert b"first" not in text
    assert 0 < text.index(b"second") < text.index(b"third")
    client.connection.closed()
    assert not world.services.own


def test_nobody_waits_while_nothing_can_come_back(world: World, client: Client) -> None:
    client.join(private=True)
    other = Client(world)
    other.join(private=True)
    persisted(client, "first")
    client.settle()
    client.broadcast("second")
    world.flush()
    assert [json.loads(data)[4]["event"] for data in other.written] == ["second"]


def test_what_was_not_stored_is_waited_for_no_more(world: World, client: Client) -> None:
    client.join(private=True)
    other = Client(world)
    other.join(private=True)
    world.services.replicating = True
    persisted(client, "first", ref="7")
    client.settle()
    client.broadcast("second")
    (message,) = world.services.to_store.take(10, 1000)
    message.done(NotStored("why"))
    world.flush()
    assert client.take("phx_reply") == {"status": "error", "response": {"error": "why"}}
    assert [json.loads(data)[4]["event"] for data in other.written] == ["second"]


def test_a_right_to_write_that_cannot_be_asked_about_refuses_all_that_waits(
    world: World, client: Client
) -> None:
    client.join(private=True)
    world.write = policies.QueryCanceled("slow")
    persisted(client, "a", ref="1")
    client.broadcast("b", ref="2")
    persisted(client, "c", ref="3")
    client.settle()
    assert [frame[1] for frame in client.frames if frame[3] == "phx_reply"] == ["1", "3"]
    error = {"error": "Unable to authorize broadcast"}
    assert client.take("phx_reply") == {"status": "error", "response": error}
    assert not world.services.to_store


def test_a_client_that_sends_faster_than_is_stored_is_not_read_from(
    world: World, client: Client
) -> None:
    client.join(private=True)
    for payload in (b"", b'"%b"' % (b"x" * 500_000), b'"%b"' % (b"x" * 600_000)):
        persisted(client, "e", payload or b"0")
        client.settle()
    assert not client.reading
    for message in world.services.to_store.take(10, 10_000_000):
        message.done(None)
    assert client.reading
