"""Broadcast from Postgres: a row that commits in `realtime.messages` reaches its subscribers.

The folders, in the order in which a message passes them:

    sql/ -> migrations/ -> install/      the database package and its installer
    retention/                           daily partitions, made ahead and dropped
    wal/ -> tail                         committed messages, read out of the WAL
"""

from importlib.metadata import version

__version__ = version("realtime-db")
