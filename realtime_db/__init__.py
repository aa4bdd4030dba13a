"""Broadcast from Postgres: a row that commits in `realtime.messages` reaches its subscribers.

The folders, in the order in which a message passes them:

    sql/ -> migrations/ -> install/      the database package and its installer
    retention/                           daily partitions, made ahead and dropped
    wal/ -> tail                         committed messages, read out of the WAL
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        """`__version__`, not before it is asked for: looking it up imports a great deal."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("realtime-db")
