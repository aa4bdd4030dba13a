"""Every error that realtime-db raises on purpose.

    RealtimeDbError             what happened, to which object; `hint` says what to do next
    ├── ConnectionFailed        the database could not be reached, or refused the login
    ├── UnsupportedVersion      the server is older than PostgreSQL 14
    ├── MissingRight            the role lacks a right; the hint is the statement that grants it
    ├── WalLevelTooLow          logical decoding is off; the hint says how to turn it on
    ├── InstallError            installing, upgrading or removing would do harm
    │   ├── NotInstalled        no realtime-db in this database
    │   ├── ForeignSchema       a schema `realtime` that is not ours
    │   ├── ManagedByExtension  installed by `create extension`, which also upgrades it
    │   ├── NewerThanProgram    the database has a release that this program does not know
    │   └── Busy                another process held the lock for too long
    ├── MaintenanceError        a partition could not be made or dropped
    ├── TriggerError            a broadcast trigger cannot be made as asked
    ├── DecodeError             bytes from the walsender that are not what the manual says
    ├── SlotError               a replication slot is missing, in use or lost
    ├── ServerError             the server cannot listen, or not as it was told
    ├── ClientError             a client cannot go on by itself; see `client.errors`
    └── EmbeddedPostgresError   the private Postgres could not be started

`str(error)` is meant for people and is all that the command line prints.
"""

from __future__ import annotations


class RealtimeDbError(Exception):
    """What happened, to which object, and what to do next.

    Args:
        message: one sentence, with the name of the object.
        hint: what to type next; shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConnectionFailed(RealtimeDbError):
    """The database could not be reached, or refused the login."""


class UnsupportedVersion(RealtimeDbError):
    """The server is older than PostgreSQL 14."""


class MissingRight(RealtimeDbError):
    """The role lacks a right; the hint is the statement that grants it."""


class WalLevelTooLow(RealtimeDbError):
    """Logical decoding is off; the hint says how to turn it on."""


class InstallError(RealtimeDbError):
    """Installing, upgrading or removing would do harm."""


class NotInstalled(InstallError):
    """No realtime-db in this database."""


class ForeignSchema(InstallError):
    """A schema `realtime` that is not ours."""


class ManagedByExtension(InstallError):
    """Installed by `create extension`, which also upgrades it."""


class NewerThanProgram(InstallError):
    """The database has a release that this program does not know."""


class Busy(InstallError):
    """Another process held the lock for too long."""


class MaintenanceError(RealtimeDbError):
    """A partition could not be made or dropped."""


class TriggerError(RealtimeDbError):
    """A broadcast trigger cannot be made as asked."""


class DecodeError(RealtimeDbError):
    """Bytes from the walsender that are not what the manual says."""


class SlotError(RealtimeDbError):
    """A replication slot is missing, in use or lost."""


class ServerError(RealtimeDbError):
    """The server cannot listen, or not as it was told."""


class EmbeddedPostgresError(RealtimeDbError):
    """The private Postgres could not be started."""
