"""Keeps the daily partitions of `realtime.messages`: made ahead, dropped when they are old.

    plan          which to make, finish and drop, given today and what is there (no I/O)
    maintenance   looks, plans, acts, each partition on its own; once or every so often
    schedule      how others run it: pg_cron, systemd, Kubernetes

`realtime.maintain()` does the same from within the database, by other means.
"""
