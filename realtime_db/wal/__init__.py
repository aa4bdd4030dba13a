"""Reads committed messages out of the WAL: between `realtime.messages` and whoever hands them on.

Its modules, in the order in which a message passes them:

    slot        opens the connection, finds or makes the slot, explains what is missing
    stream      the only code that speaks COPY BOTH with a walsender
    session     pure: what has been received, what has been acknowledged, what to tell the server
    pgoutput    pure: bytes of the output plugin -> messages
    lsn         positions in the WAL, which are plain `int` everywhere else
"""
