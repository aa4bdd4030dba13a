"""What a user may do with a topic, and why nobody knows. No I/O here.

Above: the channels and REST, which ask and remember the answer in an `AccessCache`. Below:
`policies`, which asks the database.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from realtime_db.errors import RealtimeDbError


class CheckFailed(RealtimeDbError):
    """The policies could not be asked, so nobody knows what they would have said.

    Attributes:
        join: the reason of the error reply that refuses a join.
        close: the text of the `system` message when a token is checked again.
        rest_status: the status that a REST single broadcast is answered with.
        rest: the text of that answer.
    """

    join: ClassVar[str] = "Unknown Error on Channel"
    close: ClassVar[str] = "Unknown Error on Channel"
    rest_status: ClassVar[int] = 500
    rest: ClassVar[str] = "Unable to authorize broadcast"


class QueryCanceled(CheckFailed):
    """It took longer than statement_timeout or lock_timeout, or somebody canceled it."""

    join = "QueryCanceled: Query was cancelled, please try again"
    close = "Query was cancelled, please try again"
    rest_status = 422
    rest = "Query canceled"


class MissingPartition(CheckFailed):
    """`realtime.messages` has no partition for today: maintenance does not run."""

    join = "MissingPartition: Realtime was unable to find the expected messages partition"
    close = "Realtime was unable to find the expected messages partition"
    rest_status = 422
    rest = "Missing messages partition"


class IncreaseConnectionPool(CheckFailed):
    """All connections of the pool were in use for too long."""

    join = "IncreaseConnectionPool: Please increase your connection pool size"
    close = "Please increase your connection pool size"
    rest_status = 429
    rest = "Connection pool exhausted"


class DatabaseLackOfConnections(CheckFailed):
    """The database has no connection left for us."""

    join = (
        "DatabaseLackOfConnections: Database can't accept more connections, Realtime won't connect"
    )
    close = "Database can't accept more connections, Realtime won't connect"
    rest_status = 422
    rest = "Tenant database unavailable"


class UnableToConnectToProject(CheckFailed):
    """The database cannot be reached."""

    join = "UnableToConnectToProject: Realtime was unable to connect to the project database"
    close = "Realtime was unable to connect to the project database"
    rest_status = 422
    rest = "Tenant database unavailable"


@dataclass(frozen=True, slots=True)
class Access:
    """What a user may read of a topic. True if it is anything at all, which is enough to join.

    Attributes:
        broadcast: messages.
        presence: who is there.
        reason: why nothing, if it was an error that said no: for the log, not for the user.
    """

    broadcast: bool
    presence: bool
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.broadcast or self.presence


@dataclass(frozen=True, slots=True)
class WriteAccess:
    """Whether a user may write to a topic. True if so.

    Attributes:
        granted: whether.
        reason: why not: for the log, not for the user.
        failed: an error said no, and not a policy: REST tells the two apart (422 and 403).
    """

    granted: bool
    reason: str | None = None
    failed: bool = False

    def __bool__(self) -> bool:
        return self.granted


_Value = TypeVar("_Value")


class AccessCache(Generic[_Value]):
    """Remembers what a token may do with a topic. The least recently used is forgotten first.

    An answer may come back after `forget`, for a question that was asked before. So take `epoch`
    before asking, and hand it to `put`, which then drops such an answer.
    """

    def __init__(self, max_entries: int = 100_000, *, max_age_seconds: float = 300.0) -> None:
        self._max_entries = max_entries
        self._max_age_seconds = max_age_seconds
        self._topics: dict[str, dict[str, None]] = {}
        self._answers: OrderedDict[tuple[str, str], tuple[_Value, float]] = OrderedDict()
        self.epoch = 0

    def get(self, token: str, topic: str, now: float) -> _Value | None:
        """The answer, if it is known and not too old.

        Args:
            now: seconds, of the same clock as in `put`.
        """
        found = self._answers.get((token, topic))
        if found is None:
            return None
        value, asked_at = found
        if now - asked_at >= self._max_age_seconds:
            self._remove(token, topic)
            return None
        self._answers.move_to_end((token, topic))
        return value

    def put(self, token: str, topic: str, value: _Value, now: float, *, epoch: int) -> None:
        """Remembers an answer, unless something was forgotten since `epoch`."""
        if epoch != self.epoch:
            return
        self._answers[token, topic] = (value, now)
        self._answers.move_to_end((token, topic))
        self._topics.setdefault(topic, {})[token] = None
        if len(self._answers) > self._max_entries:
            self._remove(*next(iter(self._answers)))

    def forget(self, topic: str) -> None:
        """Forgets all answers about a topic: its rights have changed."""
        self.epoch += 1
        for token in self._topics.pop(topic, ()):
            del self._answers[token, topic]

    def clear(self) -> None:
        """Forgets everything: policies have changed."""
        self.epoch += 1
        self._topics.clear()
        self._answers.clear()

    def __len__(self) -> int:
        return len(self._answers)

    def _remove(self, token: str, topic: str) -> None:
        del self._answers[token, topic]
        tokens = self._topics[topic]
        del tokens[token]
        if not tokens:
            del self._topics[topic]
