"""Who is on private channels, and whom to ask the policies about again. No I/O here.

Above are the channels and the streams of events, which are here while they are open, and the source
of messages, which brings what `realtime.revoke` wrote; below is `rechecking`, which asks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from realtime_db.auth.tokens import Claims

NO_LONGER: Final = "You no longer have permission to read from this Channel topic"


class Checked(Protocol):
    """A channel, or a stream of events."""

    @property
    def claims(self) -> Claims | None:
        """Those of its token; None if that is not known yet."""

    def forget_rights(self) -> None:
        """Has the right to write asked about before it is used again."""

    async def check_again(self) -> None:
        """Asks the policies, and ends it if it may no longer read."""


class Revocation(msgspec.Struct, frozen=True):
    """Whose rights may have gone; None is any.

    Attributes:
        topic: of the channels.
        role: of the users' tokens.
        sub: of the users' tokens.
    """

    topic: str | None = None
    role: str | None = None
    sub: str | None = None


_read: Final = msgspec.json.Decoder(Revocation).decode

_Users = set[tuple[str | None, str | None]]


class Rechecks:
    """Of one server.

    Args:
        interval_seconds: after which the policies are asked again anyway; 0 for never.

    Attributes:
        generation: grows with each revocation, once its transaction can be seen. Who was asked
            about before, and is added after, has to be asked about again.
        wake: called when there is something to do.
    """

    def __init__(self, interval_seconds: float = 0.0) -> None:
        self._interval_seconds = interval_seconds
        self._by_topic: dict[str, dict[Checked, None]] = {}
        self._due: dict[Checked, None] = {}
        self._revocations: list[tuple[int, Revocation]] = []
        self.generation = 0
        self.wake: Callable[[], object] = lambda: None

    def next_at(self, now: float) -> float:
        """When to ask about somebody again who was asked about now.

        Those who came at the same time are not all due at the same time.
        """
        if not self._interval_seconds:
            return math.inf
        return now + self._interval_seconds * random.uniform(0.5, 1.0)  # noqa: S311

    # Who is there

    def add(self, topic: str, one: Checked) -> None:
        """Somebody is on a private topic, or is about to be asked about."""
        self._by_topic.setdefault(topic, {})[one] = None

    def remove(self, topic: str, one: Checked) -> None:
        """Takes `add` back; harmless if that was done."""
        self._due.pop(one, None)
        there = self._by_topic.get(topic, {})
        if there.pop(one, one) is None and not there:
            del self._by_topic[topic]

    # Whom to ask about

    def ask(self, one: Checked) -> None:
        """Has somebody asked about, as soon as it is his turn."""
        self._due[one] = None
        self.wake()

    def ask_all(self) -> None:
        """Has everybody asked about: revocations may have been missed."""
        self._revocations.append((0, Revocation()))
        self.wake()

    def take(self) -> Checked | None:
        """Whose turn it is."""
        for one in self._due:
            del self._due[one]
            return one
        return None

    def revoke(self, payload: bytes | None, transaction_id: int) -> None:
        """Takes what `realtime.revoke` wrote. What cannot be read may mean everybody.

        Args:
            payload: the JSON of a `Revocation`.
            transaction_id: which may be in the WAL before queries see its work.
        """
        try:
            revocation = _read(payload or b"{}")
        except msgspec.MsgspecError:
            revocation = Revocation()
        self._revocations.append((transaction_id, revocation))
        self.wake()

    def take_revocations(self) -> list[tuple[int, Revocation]]:
        """Those that have come: the transaction and what it revoked; see `seen`."""
        taken, self._revocations = self._revocations, []
        return taken

    def seen(self, revocations: Iterable[Revocation]) -> None:
        """Their transactions can be seen: has those asked about whom they concern."""
        self.generation += 1
        # One pass, for a statement may revoke from thousands.
        anywhere: _Users = set()
        of_topic: dict[str, _Users] = {}
        for one in revocations:
            users = anywhere if one.topic is None else of_topic.setdefault(one.topic, set())
            users.add((one.role, one.sub))
        for topic in self._by_topic if anywhere else of_topic:
            users = anywhere | of_topic.get(topic, set())
            for there in self._by_topic.get(topic, ()):
                if _concerns(users, there.claims):
                    there.forget_rights()
                    self._due[there] = None
        self.wake()


def _concerns(users: _Users, claims: Claims | None) -> bool:
    if claims is None or (None, None) in users:
        return True
    role, sub = claims.role, claims.sub
    return (role, None) in users or (None, sub) in users or (role, sub) in users
