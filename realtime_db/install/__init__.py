"""Puts the database package into a database, keeps it current, checks it, removes it.

    source      the living `sql/` tree as one script
    releases    the frozen scripts in `migrations/`: their order, checksums, and how one is made
    inspect     what is installed, and by whom
    preflight   what must hold before anything is changed
    migrate     runs the releases through alembic, under a lock
    checks      what a check of `doctor` says; check_server and check_objects make them
    doctor      all checks, and a message sent and received
    uninstall   what depends on us, and removing us
    triggers    broadcast triggers in the users' schemas; trigger_options, trigger_template and
                trigger_catalog are its parts

Above: the command line. Below: the system catalogs, by way of `database`.
"""
