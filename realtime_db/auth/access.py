"""What a user may do with a topic, and why nobody knows. No I/O here.

Above: the channels, which ask and remember the answer until the next token, and REST. Below:
`policies`, which asks the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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

    @property
    def why_not(self) -> str:
        """The reason; without one, it was the policies."""
        return self.reason or "no policy allows it"

    def __bool__(self) -> bool:
        return self.granted
