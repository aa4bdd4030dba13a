"""What a channel is sent while it resumes, turn by turn; and what is kept for it meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from realtime_db.cursors import Cursor, Horizon, Snapshot
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.replaying import MESSAGE_BYTES, Held
from realtime_db.stored import ReplayFailed
from tests.unit.protocol.test_channel import Client, Stored, World

KEY = ("room", False)
CURSOR = Cursor("w", Horizon(7, Snapshot(5, 5), 1_000, 900))
RESUME = {"broadcast": {"replay": {"cursor": str(CURSOR)}}}


def message(event: str, transaction_id: int = 0, payload: bytes = b"{}") -> Broadcast:
    return Broadcast("realtime:room", event, payload, id=event, transaction_id=transaction_id)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


def join(client: Client, *, steps: int) -> None:
    client.push("phx_join", {"config": RESUME}, ref="1")
    for _ in range(steps):
        client.step()


WAITING, HOLDING, ANSWERED = 1, 2, 3


def sent(client: Client) -> list[Any]:
    frames, client.frames = client.frames, []
    return [frame[4].get("event", frame[3]) for frame in frames]


# A channel


def test_the_cursor_goes_with_the_last_message_only(world: World, client: Client) -> None:
    world.stored = Stored([message("a"), message("b")], [message("c")])
    reply = client.join(**RESUME)
    assert reply["response"] == {"postgres_changes": [], "cursor": str(CURSOR)}
    assert world.resumed_after == CURSOR
    metas = [frame[4]["meta"] for frame in client.frames]
    assert metas == [
        {"replayed": True, "id": "a"},
        {"replayed": True, "id": "b"},
        {"replayed": True, "id": "c", "cursor": "the-new-cursor"},
    ]


def test_with_nothing_to_send_the_reply_has_the_new_cursor(world: World, client: Client) -> None:
    assert client.join(**RESUME)["response"]["cursor"] == "the-new-cursor"
    assert client.frames == []


def test_a_gap_is_in_the_reply_and_in_a_message_after_it(world: World, client: Client) -> None:
    world.stored = Stored([message("a")], gap="2026-08-01T00:00:00Z")
    assert client.join(**RESUME)["response"]["gap"] == "2026-08-01T00:00:00Z"
    system = client.take("system")
    text = "MessagesMissing: messages before 2026-08-01T00:00:00Z are no longer stored"
    assert (system["status"], system["message"]) == ("error", text)
    assert sent(client) == ["a"]


def test_a_client_that_is_moved_on_over_a_gap_is_told_in_the_same_frame(
    world: World, client: Client
) -> None:
    world.stored = Stored(gap="2026-08-01T00:00:00Z")
    response = client.join(**RESUME)["response"]
    assert (response["cursor"], response["gap"]) == ("the-new-cursor", "2026-08-01T00:00:00Z")


def test_what_is_published_meanwhile_follows_unless_the_snapshot_shows_it(
    world: World, client: Client
) -> None:
    hub = world.services.hub
    world.stored = Stored([message("stored")])
    Client(world).join()  # somebody else for whom it waits in the hub
    join(client, steps=HOLDING)
    hub.publish(KEY, message("shown", 9))
    hub.publish(KEY, message("not shown", 10))
    client.step()
    hub.publish(KEY, message("shown, too", 8))
    hub.publish(KEY, message("not stored"))
    client.settle()
    hub.publish(KEY, message("late, and shown", 7))
    hub.publish(KEY, message("next", 11))
    world.flush()
    assert sent(client) == ["phx_reply", "stored"]
    assert len(client.written) == 3
    for data, event in zip(client.written, (b"not shown", b"not stored", b"next"), strict=True):
        assert event in data
    assert b"late" not in client.written[2]


def test_pushes_wait_until_all_has_been_sent(world: World, client: Client) -> None:
    world.stored = Stored([message("stored")])
    join(client, steps=ANSWERED)
    client.broadcast("mine")
    other = Client(world)
    other.join()
    assert other.written == []
    client.settle()
    assert b"mine" in other.written[0]
    assert sent(client) == ["phx_reply", "stored"]


def test_a_leave_does_not_wait(world: World, client: Client) -> None:
    world.stored = Stored(*([message(str(n))] for n in range(50)))
    join(client, steps=ANSWERED + 4)
    client.push("phx_leave")
    client.settle()
    assert sent(client)[-2:] == ["phx_reply", "phx_close"]
    assert world.services.hub.topics == 0


def test_a_leave_before_the_answer_waits_for_it(world: World, client: Client) -> None:
    join(client, steps=HOLDING)
    client.push("phx_leave", ref="2")
    client.settle()
    assert [frame[1] for frame in client.frames] == ["1", "2", "1"]
    assert world.services.hub.topics == 0


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("how", ["close", "join again"])
def test_nothing_is_left_of_a_resume_that_was_ended(
    world: World, client: Client, steps: int, how: str
) -> None:
    world.stored = Stored([message("a")], [message("b")])
    join(client, steps=steps)
    if how == "close":
        client.connection.closed()
    else:
        client.push("phx_join", {}, ref="2")
        client.push("phx_leave")
    client.settle()
    assert world.services.hub.topics == 0
    assert client.connection.channels == {}


def test_a_resume_that_cannot_begin_refuses_the_join(world: World, client: Client) -> None:
    world.stored.failure = ReplayFailed("down")
    reason = "UnableToReplayMessages: Realtime was unable to replay messages"
    assert client.join(**RESUME)["response"] == {"reason": reason}
    assert world.services.hub.topics == 0


class Broken(Stored):
    async def pages(self) -> Any:
        yield [message("a"), message("b")]
        raise ReplayFailed("the connection was lost")


def test_a_resume_that_breaks_off_makes_the_client_join_again_where_it_was(
    world: World, client: Client
) -> None:
    world.stored = Broken([])
    client.join(**RESUME)
    assert [frame[3] for frame in client.frames] == ["broadcast", "phx_error"]
    assert "cursor" not in client.frames[0][4]["meta"]
    assert client.connection.channels == {}
    assert world.services.hub.topics == 0


def test_rights_that_were_withdrawn_meanwhile_end_a_resume(world: World, client: Client) -> None:
    world.stored = Stored([message("a")], [message("b")])
    join(client, steps=ANSWERED)
    client.connection.channels["realtime:room"]._check_due = True
    client.settle()
    assert sent(client) == ["phx_reply", "phx_error"]


def test_a_client_for_whom_too_much_would_be_kept_is_thrown_out() -> None:
    world = World(max_write_buffer_bytes=10_000)
    client = Client(world)
    world.stored = Stored([message("a")])
    join(client, steps=ANSWERED)
    for number in range(100):
        world.services.hub.publish(KEY, message(str(number), 99, b"x" * 100))
    assert client.closed == [1001]
    assert world.services.limits.struck["max_write_buffer_bytes"] == 1


def test_a_heartbeat_during_a_resume_has_no_cursor(world: World, client: Client) -> None:
    progress = world.services.progress
    progress.begin(7)
    progress.look(Snapshot(9, 9), at=5, taken_us=10_000)
    progress.passed(5)
    progress.settled(5)
    world.stored = Stored([message("a")])

    def heartbeat() -> Any:
        text = b'[null,"h","phoenix","heartbeat",{"cursor":true}]'
        client.connection.receive(text, binary=False)
        return client.frames.pop()[4]["response"]

    assert heartbeat() == {"cursor": progress.now}
    client.push("phx_join", {"config": RESUME}, ref="1")
    for _ in range(WAITING, ANSWERED + 1):
        assert heartbeat() == {}
        client.step()
    assert heartbeat() == {}
    client.settle()
    assert heartbeat() == {"cursor": progress.now}


# What is kept


def test_what_a_snapshot_shows_takes_no_room() -> None:
    calls: list[Any] = []
    hub = Hub(calls.append)
    held = Held(hub, [KEY], max_bytes=3 * MESSAGE_BYTES, too_much=lambda: calls.append("too much"))
    hub.publish(KEY, message("a", 1))
    hub.publish(KEY, message("b", 5))
    held.skip(Snapshot(4, 4))
    for _ in range(100):
        hub.publish(KEY, message("c", 2))
    hub.publish(KEY, message("d", 6))
    assert [one.event for one in held.release(Snapshot(4, 4))] == ["b", "d"]
    assert "too much" not in calls
    assert hub.topics == 0


def test_too_much_is_told_once_and_ends_it() -> None:
    told: list[int] = []
    hub = Hub(lambda _: None)
    held = Held(hub, [KEY, ("news", False)], max_bytes=1_000, too_much=lambda: told.append(1))
    for _ in range(9):
        hub.publish(KEY, message("a", 1))
    assert told == [1]
    assert hub.topics == 0
    assert held.release(None) == []
