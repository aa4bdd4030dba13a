"""What the life of the source of messages promises, whatever the connections do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from realtime_db import leadership
from realtime_db.cursors import Snapshot
from realtime_db.errors import ConnectionFailed, SlotError
from realtime_db.following import Following
from realtime_db.protocol.services import Services
from tests.unit.parts import KEY, message, services

NOTHING = Snapshot(1, 1)


def following(**settings: Any) -> tuple[Following, Services]:
    served = services(**settings)
    return Following(served.settings, served, lambda why: None), served


def test_orders_of_another_cluster_are_forgotten_and_what_is_owed_goes_by_time() -> None:
    subject, served = following()
    served.progress.begin(7)
    subject._identify(7, "w")
    subject._delivery.streamed([message(5, 1)])
    assert served.progress.known(NOTHING).transaction_ids == [5]

    subject._identify(8, "w")

    assert served.progress.cluster == 8
    assert served.progress.known(NOTHING).transaction_ids == []
    assert subject._owed().seen is None
    # The same commit is another one there.
    got: list[str] = []
    served.hub.tap(KEY, lambda broadcast: got.append(broadcast.id))
    subject._delivery.streamed([message(1, 1)])
    assert got == ["1-1"]


@pytest.mark.parametrize(("idle_seconds", "standby"), [(60.0, False), (-1.0, True)])
def test_only_for_a_while_the_lock_may_be_that_of_a_session_of_ours(
    monkeypatch: pytest.MonkeyPatch, idle_seconds: float, standby: bool
) -> None:
    monkeypatch.setattr(leadership, "IDLE_SECONDS", idle_seconds)
    monkeypatch.setattr(leadership, "TRY_SECONDS", 0.0)
    subject, served = following()
    # The answer of the first, that it has the lock, never came.
    locked = iter([None, False, False, True])

    class Session:
        def __init__(self, backend_pid: int) -> None:
            self.backend_pid = backend_pid

        async def try_lock(self, name: str) -> bool:
            if (answer := next(locked)) is None:
                raise ConnectionFailed("no answer")
            return answer

        async def holder(self, name: str) -> int:
            return 5

    sessions: Any = Session(5), Session(6)
    with pytest.raises(ConnectionFailed):
        asyncio.run(subject._win(sessions[0], "a"))
    asyncio.run(subject._win(sessions[1], "a"))

    assert served.standby is standby


def test_a_slot_of_a_name_that_is_not_ours_is_refused_before_anything_begins() -> None:
    with pytest.raises(SlotError, match="begins with realtime_db_"):
        following(slot="mine")
