"""Reads committed messages out of the WAL: between `realtime.messages` and whoever hands them on.

    lsn         positions in the WAL, which are plain `int` everywhere else
    pgoutput    pure: bytes of the output plugin -> messages
    session     pure: what has been received, what has been acknowledged, what to tell the server
    slot        opens the connection, finds or makes the slot, explains what is missing
    stream      the only code that speaks COPY BOTH with a walsender
"""
