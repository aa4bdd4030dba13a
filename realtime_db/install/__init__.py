"""Puts the database package into a database, keeps it current, checks it, removes it.

    source      the living `sql/` tree as one script (no I/O but reading files)
    releases    the frozen scripts in `migrations/sql/`, their order and checksums
    migrate     runs them through alembic, under a lock
    inspect     what is installed here, and by whom
    doctor      every right, setting and object that delivery depends on, and a live probe
    uninstall   what depends on us, and removing us
    triggers    broadcast triggers in the users' own schemas
"""
