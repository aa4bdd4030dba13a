"""Brings messages to the hub, each once in the life of this process.

Above is `following`, which knows where they come from; below are the hub and `progress`, which is
told of each. A source that begins again brings some of them again, and they are known by their
place: in the WAL by the commit and how much of it came, in the polls by their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.services import Services
from realtime_db.recovery import Missed
from realtime_db.wal.pgoutput import Message


class Delivery:
    """Of one server.

    Args:
        services: its hub gets the messages, its progress is told.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.forget()

    def forget(self) -> None:
        """What was handed on does not matter any more, nor do its ids.

        Those who got it are gone, or the database is another one.
        """
        self._services.hub.forget_seen()
        self._last = (0, 0)  # transaction and position of the last message
        self._partly: dict[int, int] = {}  # transactions that came in part, and up to where
        self._commit_lsn = self._handed = 0  # of the last transaction, and how much of it came
        self._polled = (0, 0, 0)  # poll, transaction and position of the last message
        self.begin()

    def begin(self) -> None:
        """A connection begins. It brings whole transactions, perhaps some that came before."""
        self._again = 0  # how many messages of `_commit_lsn` it has brought

    def streamed(self, messages: Sequence[Message]) -> None:
        """Hands on what came out of the WAL, but for what an earlier connection brought."""
        for message in messages:
            lsn = message.commit_lsn
            if lsn > self._commit_lsn:
                self._commit_lsn, self._handed, self._again = lsn, 1, 1
            elif lsn == self._commit_lsn and self._again == self._handed:
                self._handed = self._again = self._handed + 1
            else:
                # It was not acknowledged yet when the connection before this one ended.
                self._again += lsn == self._commit_lsn
                continue
            self._publish(message)

    def polled(self, messages: Sequence[Message]) -> None:
        """Hands on what a poll found, but for what one before an earlier connection ended did."""
        for message in messages:
            place = message.commit_lsn, message.transaction_id, message.position
            if place > self._polled:
                self._polled = place
                self._publish(message)

    async def recovered(self, missed: Missed, order: int) -> int:
        """Hands on what the table has instead of a slot; returns how much that was.

        Args:
            missed: the messages.
            order: after all that was handed on, and before all that the new slot brings.
        """
        seen = missed.owed.seen
        known = set() if seen is None else {*self._services.progress.known(seen).transaction_ids}
        partly = self._partly
        partly.update([self._last])
        count = 0
        await self.written()  # also what `tell_missing` said: no cursor may say more before
        async for page in missed.pages(order):
            for message in page:
                number = message.transaction_id
                if number in known and message.position <= partly.get(number, message.position):
                    continue
                self._publish(message)
                count += 1
            await self.written()
        partly.clear()
        return count

    def tell_missing(self, before: str) -> None:
        """Tells every subscriber that messages before a time may not have come.

        Args:
            before: the time, as in ISO 8601.
        """
        services = self._services
        services.gaps += 1
        for topic, private in services.hub.followed:
            missing = Broadcast(f"realtime:{topic}", "", b"{}", missing_before=before)
            services.hub.publish((topic, private), missing)

    def _publish(self, message: Message) -> None:
        services, progress = self._services, self._services.progress
        order, transaction_id, position = (
            message.commit_lsn, message.transaction_id, message.position
        )  # fmt: skip
        self._last = (transaction_id, position)
        progress.handed(transaction_id, order, position)
        if message.extension == "revocation":
            services.revoke(message)
            return
        besides = services.own.came(message.id) if services.own else None
        key = (message.topic, message.private)
        if not services.hub.has_subscribers(key):
            return
        binary = message.binary_payload
        payload = binary if binary is not None else message.payload
        assert payload is not None, "the decoder skips rows without a payload"
        if not services.fits(message.id, len(payload), message.topic):
            return
        services.hub.publish(
            key,
            Broadcast(
                f"realtime:{message.topic}",
                message.event,
                payload,
                id=message.id,
                binary=binary is not None,
                transaction_id=transaction_id,
                cursor=progress.cursor(order, transaction_id, position),
                cursor_of_all=progress.now,
            ),
            besides=besides,
        )

    async def written(self) -> None:
        """Waits until what was handed on has been written to the sockets of all subscribers.

        So a large transaction does not put its clients behind by all of it at once, and what a
        crash would lose is not acknowledged.
        """
        hub = self._services.hub
        mark = hub.mark()
        await asyncio.sleep(0)
        while not hub.is_written(mark):  # noqa: ASYNC110 - the hub needs the turns of the loop
            await asyncio.sleep(0)
