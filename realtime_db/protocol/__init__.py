"""What clients say and hear: between the hub above and the transports below. No I/O here.

    pushes      pure: bytes from a client, in either framing -> pushes
    frames      pure: messages -> bytes for a client, in either framing
    join        pure: the payload of `phx_join` -> what the channel is asked to do

All three follow "The Realtime wire protocol"; "PROTOCOL 3" is its section 3.
"""
