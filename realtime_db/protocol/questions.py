"""Questions of a channel to the database, and what waits for their answers. No I/O here.

Above is the channel; below is the transport, which runs the coroutines. While a question is open,
its join above all, a channel keeps the pushes that come, in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from realtime_db.protocol.pushes import Push

if TYPE_CHECKING:
    from realtime_db.protocol.connection import Connection

JSON_ERRORS: Final = (msgspec.MsgspecError, RecursionError)

Then = Callable[[], None]
"""What a question leads to, if the channel is still there when it has been answered."""


class State(Enum):
    """Where a channel is."""

    ASKING = "asking"
    JOINED = "joined"
    CLOSED = "closed"


class Asking:
    """What can ask and has to wait: the part of a channel that knows about time.

    Attributes:
        state: nothing is done for a channel that is closed, whatever the answer.
    """

    __slots__ = ("_waiting", "state")

    connection: Connection
    topic: str

    def __init__(self) -> None:
        self.state = State.JOINED
        self._waiting: deque[Push] | None = None  # most channels never need it

    def receive(self, push: Push) -> None:
        """Takes a push that is not a join."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state is not State.CLOSED

    def ask(self, question: Callable[..., Awaitable[Then]], *args: object) -> None:
        """Asks; what comes meanwhile waits, so that the order is kept."""
        self.state = State.ASKING
        self.connection.start(self._ask(question, *args))

    async def _ask(self, question: Callable[..., Awaitable[Then]], *args: object) -> None:
        try:
            then = await question(*args)
        except Exception:
            self.connection.services.log.exception("a question of %s failed", self.topic)
            then = self.crash
        self.go_on(then)

    def go_on(self, then: Then) -> None:
        """Does what was waited for, and takes what came meanwhile."""
        if self.state is not State.ASKING:
            self._drop_waiting()
            return
        self.state = State.JOINED
        then()
        if self.state is State.JOINED:
            self.answered()
        self._take_waiting()

    def answered(self) -> None:
        """Nothing is asked any more; may ask something else, before what waits is taken."""

    def crash(self) -> None:
        """Ends it, such that its client joins again in a second."""
        raise NotImplementedError

    def keep(self, push: Push) -> None:
        """Keeps a push for later."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(push)
        self.connection.waits(len(push.payload))

    def _take_waiting(self) -> None:
        while self._waiting and self.state is not State.ASKING:
            push = self._waiting.popleft()
            self.connection.waits(len(push.payload), -1)
            if self.state is State.JOINED:
                self.receive(push)
            else:
                self.connection.route(push)

    def drop_waiting_broadcasts(self) -> list[Push]:
        """Forgets the broadcasts that wait, as the one that could not be asked about."""
        waiting, self._waiting = self._waiting or deque(), deque()
        dropped = []
        for push in waiting:
            if push.event == "broadcast":
                self.connection.waits(len(push.payload), -1)
                dropped.append(push)
            else:
                self._waiting.append(push)
        return dropped

    def _drop_waiting(self) -> None:
        """Forgets all pushes that wait."""
        waiting, self._waiting = self._waiting or deque(), None
        for push in waiting:
            self.connection.waits(len(push.payload), -1)


class _Content(msgspec.Struct):
    """The payload of a broadcast or a presence push in a text frame."""

    event: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")


_read_content: Final = msgspec.json.Decoder(_Content).decode


def read_content(payload: bytes) -> tuple[str | None, bytes]:
    """The user's event and payload in that of a text frame, as far as there are any."""
    try:
        content = _read_content(payload)
    except JSON_ERRORS:
        return None, b"{}"
    return content.event, bytes(content.payload)
