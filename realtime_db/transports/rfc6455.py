"""The frames of WebSocket, RFC 6455, on the server's side. No I/O here.

Below are the sockets: whoever owns one feeds `Receiver` with what it reads, in chunks of any size,
and writes what `frame` makes. Above are the frames of `protocol`, each the content of one message.
The connection began with `handshake`, which declined all extensions.

`Receiver.receive` never raises, whatever the bytes; what a client does wrong ends its connection
with the close code that the RFC names. Sections in brackets are the RFC's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NO_STATUS: Final = 1005  # [7.1.5] stands for a Close without a code; never on the wire
PROTOCOL_ERROR: Final = 1002
NOT_UTF8: Final = 1007
TOO_BIG: Final = 1009

Event = tuple[int, bytes]
"""`(TEXT | BINARY | PING | PONG | CLOSE, payload)`; a message is one event, however fragmented."""

# [5.2] First bytes of a frame: FIN may be absent from data frames only, [5.5] "All control
# frames … MUST NOT be fragmented"; the reserved bits and the other opcodes are for extensions.
_FIRST_BYTES: Final = frozenset((0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A))
_WHOLE_TEXT: Final = 0x81
_MAX_CONTROL_BYTES: Final = 125
# [7.4.1] and the IANA registry it founded: 1004 has no meaning, 1005, 1006 and 1015 "MUST NOT be
# set as a status code in a Close control frame"; [7.4.2] 3000-4999 are for libraries and users.
_CLOSE_CODES: Final = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))


class _Violation(Exception):
    """The client broke a rule: close with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason


def _xor(data: bytes, mask: bytes) -> bytes:
    """[5.3] Unmasks: XOR of each octet with that "at index i modulo 4 of the masking key"."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


_unmask: Callable[[bytes, bytes], bytes] = _xor
try:
    from websockets.speedups import apply_mask
except ImportError:
    pass
else:
    _unmask = apply_mask


def frame(opcode: int, payload: bytes) -> bytes:
    """Makes a whole frame of the server: final, [5.1] not masked."""
    size = len(payload)
    # [5.2] "the minimal number of bytes MUST be used to encode the length".
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 0x10000:
        return bytes((0x80 | opcode, 126, size >> 8, size & 0xFF)) + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Makes a Close frame; of the reason as many characters as fit into a control frame [5.5.1]."""
    text = reason.encode()[: _MAX_CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)


class Receiver:
    """What one client sends, from bytes to events.

    After a `CLOSE` event, write `outgoing()` and close the socket; the server does so first
    [7.1.1]. Whatever the client sends then is ignored.

    Args:
        max_message_bytes: a longer message ends the connection as soon as its length is known,
            and before its bytes are kept.

    Attributes:
        close_code: after a `CLOSE` event, the client's code (`NO_STATUS` if it gave none), or
            the code with which it was thrown out.
        close_reason: the text beside it.
    """

    __slots__ = (
        "_buffer", "_closed", "_closing", "_max", "_needed", "_opcode", "_outgoing", "_parts",
        "close_code", "close_reason",
    )  # fmt: skip

    def __init__(self, *, max_message_bytes: int = 5_000_000) -> None:
        self.close_code: int | None = None
        self.close_reason = ""
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._needed = 0  # so many bytes must be in the buffer before it is worth another look
        self._opcode = CONTINUATION  # of the message whose fragments are in `_parts`
        self._parts = bytearray()
        self._outgoing = b""
        self._closing = False  # a Close has been sent
        self._closed = False  # a Close has been received, or the client was thrown out

    def close(self, code: int, reason: str = "") -> bytes:
        """Begins to close; returns what to write. Of what still comes, only `CLOSE` is told.

        Wait for it, but not for long, before closing the socket.
        """
        if self._closing or self._closed:
            return b""
        self._closing = True
        return close_frame(code, reason)

    def outgoing(self) -> bytes:
        """Takes what is to be written because of what was received: a Pong, a Close."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def receive(self, data: bytes) -> list[Event]:
        """Reads a chunk of bytes; never raises."""
        events: list[Event] = []
        if self._closed:
            # [7.1.7] "MUST NOT continue to attempt to process data … from the remote endpoint".
            return events
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return events
            data = bytes(self._buffer)
            self._buffer = bytearray()
        try:
            rest = self._read(data, events)
        except _Violation as violation:
            # [7.1.7] "SHOULD send a Close frame with an appropriate status code".
            self._end(violation.code, violation.reason)
            if not self._closing:
                self._outgoing += close_frame(violation.code, violation.reason)
            events.append((CLOSE, b""))
        else:
            if rest < len(data) and not self._closed:
                self._buffer += data[rest:]
        if self._closing:
            # [1.4] "After sending a control frame indicating the connection should be closed, a
            # peer does not send any further data": nothing that comes could be answered.
            return [event for event in events if event[0] == CLOSE]
        return events

    def _read(self, data: bytes, events: list[Event]) -> int:
        """Reads all whole frames; returns where the rest begins."""
        # Most of what comes are small, whole texts, at 1 us each: hence the names for everything.
        at = 0
        end = len(data)
        unmask = _unmask
        append = events.append
        in_message = self._opcode
        room = self._max - len(self._parts)
        while end - at >= 2:
            first = data[at]
            second = data[at + 1]
            whole_text = first == _WHOLE_TEXT and not in_message
            if not whole_text:
                self._check(first)
            if second < 0x80:
                # [5.1] "The server MUST close the connection upon receiving a frame that is
                # not masked … MAY send a Close frame with a status code of 1002".
                raise _Violation(PROTOCOL_ERROR, "frame is not masked")
            size = second & 0x7F
            mask = at + 2
            if size > _MAX_CONTROL_BYTES:
                mask = at + (4 if size == 126 else 10)
                if first & 0x08:
                    # [5.5] "All control frames MUST have a payload length of 125 bytes or less".
                    raise _Violation(PROTOCOL_ERROR, "control frame is too long")
                if end < mask:
                    self._needed = mask - at
                    return at
                size = _long_size(data[at + 2 : mask])
            if size > room and not first & 0x08:
                # [7.4.1] 1009: "a message that is too big for it to process".
                raise _Violation(TOO_BIG, "message is too big")
            start = mask + 4
            stop = start + size
            if end < stop:
                self._needed = stop - at
                return at
            payload = unmask(data[start:stop], data[mask:start])
            at = stop
            if whole_text:
                if not payload.isascii():
                    _check_utf8(payload)
                append((TEXT, payload))
            else:
                self._handle(first, payload, events)
                if self._closed:
                    return end
                in_message = self._opcode
                room = self._max - len(self._parts)
        self._needed = 2
        return at

    def _check(self, first: int) -> None:
        """Whether a frame that begins so is allowed here."""
        if first not in _FIRST_BYTES:
            if first & 0x70:
                # [5.2] "If a nonzero value is received and none of the negotiated extensions
                # defines the meaning …, the receiving endpoint MUST _Fail the … Connection_."
                raise _Violation(PROTOCOL_ERROR, "reserved bits are set")
            if first & 0x0F in (CLOSE, PING, PONG):
                raise _Violation(PROTOCOL_ERROR, "control frame is fragmented")  # [5.5]
            # [5.2] "If an unknown opcode is received, the receiving endpoint MUST _Fail …_".
            raise _Violation(PROTOCOL_ERROR, "opcode is reserved")
        opcode = first & 0x0F
        # [5.4] A fragmented message is a frame with an opcode, then continuations; "the fragments
        # of one message MUST NOT be interleaved", though control frames may come in between.
        if opcode == CONTINUATION and not self._opcode:
            raise _Violation(PROTOCOL_ERROR, "nothing to continue")
        if opcode in (TEXT, BINARY) and self._opcode:
            raise _Violation(PROTOCOL_ERROR, "a message begins inside another")

    def _handle(self, first: int, payload: bytes, events: list[Event]) -> None:
        """Takes every frame that is not a whole text message."""
        opcode = first & 0x0F
        if opcode == PING:
            # [5.5.2] "MUST send a Pong frame in response"; [5.5.3] "MAY elect to send a Pong frame
            # for only the most recently processed Ping", lest a flood of Pings makes one of Pongs.
            if not self._closing:
                self._outgoing = frame(PONG, payload)
        elif opcode == CLOSE:
            self._handle_close(payload)
        elif opcode != PONG:
            final = first & 0x80
            if opcode == BINARY and final:
                events.append((BINARY, payload))
                return
            self._opcode = opcode or self._opcode
            self._parts += payload
            if not final:
                return
            opcode, payload = self._opcode, bytes(self._parts)
            self._opcode = CONTINUATION
            self._parts = bytearray()
            if opcode == TEXT:
                _check_utf8(payload)
        events.append((opcode, payload))

    def _handle_close(self, payload: bytes) -> None:
        if not payload:
            self._end(NO_STATUS, "")
        else:
            # [5.5.1] "If there is a body, the first two bytes of the body MUST be a 2-byte
            # unsigned integer"; after it, "UTF-8-encoded data". (One byte makes no valid code.)
            code = int.from_bytes(payload[:2], "big")
            if code not in _CLOSE_CODES:
                raise _Violation(PROTOCOL_ERROR, "close code is not valid")
            _check_utf8(payload[2:])
            self._end(code, payload[2:].decode())
        # [5.5.1] "the endpoint MUST send a Close frame in response", if it has not sent one, and
        # "typically echos the status code it received".
        if not self._closing:
            self._outgoing += frame(CLOSE, payload[:2])

    def _end(self, code: int, reason: str) -> None:
        self.close_code = code
        self.close_reason = reason
        self._closed = True


def _long_size(data: bytes) -> int:
    """[5.2] The extended payload length, of 2 or 8 bytes."""
    size = int.from_bytes(data, "big")
    if size < (126 if len(data) == 2 else 0x10000):
        raise _Violation(PROTOCOL_ERROR, "length is not minimal")
    if size >> 63:
        raise _Violation(PROTOCOL_ERROR, "length is negative")  # "most significant bit MUST be 0"
    return size


def _check_utf8(data: bytes) -> None:
    """[8.1] If "not, in fact, a valid UTF-8 stream, that endpoint MUST _Fail the … Connection_"."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise _Violation(NOT_UTF8, "text is not UTF-8") from None
