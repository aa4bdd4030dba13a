"""Brings what commits to the hub: the life of the source of messages, from start to end.

    leadership ─► wal.stream ─► delivery ─► hub, progress
                  recovery  ─┤
                  polling   ─┘

Above is the server, which starts it; below are the parts in the picture. One after the other it

    competes     with other servers, for there is one reader of a slot; who loses is a standby
    opens        the slot, or makes it; what a lost one would have brought comes from the table;
                 without a right to the WAL, the table is asked again and again
    hands on     each message
    acknowledges what has been written to every subscriber, and what no cursor may still ask about

and begins again when anything of it fails. Subscribers do not notice, but that they wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import psycopg

from realtime_db import leadership, logs
from realtime_db.database import Connection, cut
from realtime_db.delivery import Delivery
from realtime_db.errors import (
    ConnectionFailed,
    MissingRight,
    RealtimeDbError,
    SlotError,
    WalLevelTooLow,
)
from realtime_db.leadership import Look, Session
from realtime_db.polling import open_poller
from realtime_db.progress import CLOCK_SLACK_US
from realtime_db.protocol.services import Services
from realtime_db.recovery import Owed, open_missed
from realtime_db.settings import Settings
from realtime_db.stored import iso
from realtime_db.wal import slots
from realtime_db.wal.lsn import format_lsn
from realtime_db.wal.stream import Stream, open_stream

RETRY_SECONDS: Final = (0.2, 2.0)
PATIENCE_SECONDS: Final = 1.0
STATUS_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 0.1
WAITING_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 5.0
MAKE_SLOT_SECONDS: Final = 7 * 86_400.0

NOT_FOLLOWING: Final = "the database is not followed"
_WAITING: Final = "waiting for open transactions to end, to make the replication slot"

log = logging.getLogger("realtime_db")


class Following:
    """Of one server.

    Args:
        settings: of the server.
        services: is told how things stand; its hub gets the messages.
        send_away: called, with the reason, when whoever is connected has to resume, here or at
            another server.

    Attributes:
        following: set while messages come.
        decided: set once messages come, or another server leads, or something failed.
    """

    def __init__(
        self, settings: Settings, services: Services, send_away: Callable[[str], object]
    ) -> None:
        if settings.slot is not None:
            slots.check_name(settings.slot)
        self._settings = settings
        self._services = services
        self._delivery = Delivery(services)
        self._send_away = send_away
        self.following = asyncio.Event()
        self.decided = asyncio.Event()
        self._complaints = logs.Complaints(log)
        self._connections: list[Connection] = []
        self._replace = False
        self._polls = settings.source == "poll"
        self._pids: set[int] = set()  # of our sessions that may have the lock, or had it
        self._forget()
        self._stop()

    def _forget(self) -> None:
        """What was handed on does not matter any more: those who got it are gone."""
        self._services.progress.begin(0)
        self._first: Look | None = None
        self._owed_by_time_us: int | None = None
        self._received_lsn = 0  # where the connection before this one ended
        self._delivery.forget()

    def _stop(self) -> None:
        self.following.clear()
        self._services.replicating = False
        self._services.reader = None
        self._services.leading = False
        self._services.slot_state = NOT_FOLLOWING
        self._services.stored.polls = None
        self._connections.clear()
        self._stream: Stream | None = None
        self._at_rest = False
        self._delivery.begin()
        self._not_ours = 0
        self._wal_status: str | None = "reserved"
        self._lags = 0

    async def run(self) -> None:
        """Follows, for ever; begins again when the database went away."""
        shortest, longest = RETRY_SECONDS
        pause = shortest
        while True:
            followed = False
            try:
                await self._follow()
            except (RealtimeDbError, psycopg.Error) as error:
                followed = self.following.is_set()
                if self._settings.source == "auto" and _is_for_good(error) and not self._polls:
                    self._polls = True
                    log.warning("the WAL cannot be followed, so the table is asked: %s", error)
                else:
                    self._complaints.say(f"{NOT_FOLLOWING}: {error}")
            finally:
                self._stop()
                self.decided.set()
            pause = shortest if followed else min(pause * 2, longest)
            await asyncio.sleep(pause)

    # Who reads

    async def _follow(self) -> None:
        settings, services = self._settings, self._services
        async with leadership.open_session(settings.database_url) as session:
            await session.check_release()
            slot = None
            if self._polls or not settings.temporary_slot:
                slot = settings.slot or await session.slot_name()
                await self._win(session, slot)
            # Whoever comes from now on is owed what commits from now on.
            look = await session.look(slot)
            self._first = self._first or look
            self._pids = {session.backend_pid}
            services.leading = True
            if services.standby:
                services.standby = False
                log.info("this server leads now")
            if self._polls and look.wal_status is not None:
                self._complaints.say(
                    f"replication slot {slot} holds back WAL, and this server reads none; if no "
                    "other one does: realtime-db slot drop",
                    level=logging.WARNING,
                )
            await self._read_and_watch(session, slot, look)

    async def _win(self, session: Session, slot: str) -> None:
        """Returns when no other server leads."""
        services = self._services
        if services.standby:
            # After a restart of the database, who led before should again: it has clients.
            await asyncio.sleep(PATIENCE_SECONDS)
        # A session of ours that was cut off holds the lock until the database ends it. Later, its
        # process id may be that of another one.
        loop = asyncio.get_running_loop()
        ours_until = loop.time() + leadership.IDLE_SECONDS + 1.0
        self._pids.add(session.backend_pid)  # it may get the lock, and the answer be lost
        while not await session.try_lock(slot):
            holder = await session.holder(slot)
            ours = holder in self._pids and loop.time() < ours_until
            if not services.standby and holder is not None and not ours:
                services.standby = True
                self._pids = {session.backend_pid}
                log.info("this server is a standby: another one leads")
                self._send_away("Another server leads")
                self._forget()
            self.decided.set()
            await asyncio.sleep(leadership.TRY_SECONDS)

    async def _read_and_watch(self, session: Session, slot: str | None, look: Look) -> None:
        """Reads while the session lives, for without it another server may lead."""
        loop = asyncio.get_running_loop()
        watching = loop.create_task(session.watch(partial(self._slot_name, slot), self._looked))
        reading = loop.create_task(self._poll() if self._polls else self._read(slot, look))
        tasks = watching, reading

        def again() -> None:  # Python 3.11 may forget a cancellation: see `server._end`
            self._abandon()
            for task in tasks:
                task.cancel()

        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                self._abandon()
        finally:
            late = loop.call_later(CLOSE_SECONDS, again)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            late.cancel()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _abandon(self) -> None:
        """Ends the other connections without a word: nobody may be there to answer."""
        if self._stream is not None:
            self._stream.fail(ConnectionFailed("the session beside it ended"))
        for connection in self._connections:
            cut(connection)

    # Reading

    @asynccontextmanager
    async def _open(self, slot: str | None) -> AsyncIterator[Stream]:
        """Opens the source of messages."""
        late = asyncio.get_running_loop().call_later(WAITING_SECONDS, self._still_waiting)
        try:
            async with open_stream(
                self._settings.database_url,
                slot=slot,
                failover=True,
                replace=self._replace,
                replace_lost=True,
                take_over=True,
                status_interval_seconds=STATUS_SECONDS,
                slot_timeout_seconds=MAKE_SLOT_SECONDS,
                on_connected=self._connections.append,
            ) as stream:
                late.cancel()
                yield stream
        finally:
            late.cancel()

    def _still_waiting(self) -> None:
        if self._connections:
            self._services.slot_state = _WAITING
            log.warning("%s; the oldest is in pg_stat_activity", _WAITING)

    async def _read(self, slot: str | None, look: Look) -> None:
        services, progress, delivery = self._services, self._services.progress, self._delivery
        async with self._open(slot) as stream:
            if self._is_behind(stream):
                log.warning("another server led meanwhile: clients are sent away, to resume")
                self._send_away("Another server led meanwhile")
                self._forget()
                self._first = look
            self._identify(stream.cluster, "w")
            self._stream = stream
            self._looked(look)
            await self._start(stream)
            services.reader = stream
            self._begun()
            log.info(
                "following the WAL from %s, with slot %s",
                format_lsn(stream.start_lsn),
                stream.slot_name,
            )
            settling = asyncio.create_task(self._settle(stream))
            try:
                self._at_rest = True
                async for batch in stream:
                    self._at_rest = False
                    delivery.streamed(batch.messages)
                    await delivery.written()
                    progress.passed(stream.received_lsn)
                    progress.settled(batch.end_lsn)
                    stream.acknowledge(min(batch.end_lsn, progress.forgettable))
                    self._at_rest = True
            finally:
                self._received_lsn = stream.received_lsn
                settling.cancel()

    def _is_behind(self, stream: Stream) -> bool:
        """Whether the slot was acknowledged by another reader, beyond what has come here."""
        same = stream.snapshot is None and stream.cluster == self._services.progress.cluster
        return same and 0 < self._received_lsn < stream.start_lsn

    def _begun(self) -> None:
        self._services.replicating = True
        self.following.set()
        self.decided.set()
        self._complaints.over()

    async def _poll(self) -> None:
        """Asks the table, where the WAL cannot be read."""
        services, progress, delivery = self._services, self._services.progress, self._delivery
        settings = self._settings
        async with open_poller(
            settings.database_url,
            progress=progress,
            topics=lambda: {topic for topic, _ in services.hub.followed},
            interval_seconds=settings.poll_seconds,
            on_connected=self._connections.append,
        ) as poller:
            if progress.source == "w" and progress.cluster:
                # What commits between the two nobody brings.
                log.warning("messages come from the table now: clients are sent away, to resume")
                self._send_away("Messages come from the table now")
                self._forget()
            self._identify(poller.cluster, "p")
            if self._owed_by_time_us is not None:
                delivery.tell_missing(iso(int(services.now() * 1_000_000)))
                self._owed_by_time_us = None
            await poller.start()
            services.stored.polls = poller
            self._begun()
            log.info("asking realtime.messages for what is new, every %g s", settings.poll_seconds)
            async for batch in poller:
                delivery.polled(batch.messages)
                await delivery.written()
                progress.passed(poller.received_lsn)
                progress.settled(poller.received_lsn)

    def _identify(self, cluster: int, source: str) -> None:
        """Forgets the order of another cluster, or of one that failed over."""
        progress = self._services.progress
        if progress.cluster not in (0, cluster):
            horizon, first = progress.horizon, self._first
            since_us = horizon.since_us or horizon.taken_us if horizon else 0
            if not since_us and first is not None:
                since_us = first.taken_us
            self._forget()
            # An id may be that of another transaction now: what is owed is told by its time.
            self._owed_by_time_us = since_us - CLOCK_SLACK_US
            log.warning("the database failed over or is another one: messages may come twice")
        progress.begin(cluster, source)

    async def _start(self, stream: Stream) -> None:
        """Starts the stream; before what it brings comes what a new slot does not bring."""
        services, snapshot = self._services, stream.snapshot
        fresh = services.progress.horizon is None and self._owed_by_time_us is None
        topics = {topic for topic, _ in services.hub.followed}
        if snapshot is None or not topics:
            await stream.start()
        else:
            self._replace = True  # until all of it has been handed on
            async with open_missed(
                self._settings.database_url,
                snapshot=snapshot,
                owed=self._owed(),
                topics=topics,
                on_connected=self._connections.append,
            ) as missed:
                await stream.start()
                if (before := await missed.incomplete_before()) is not None:
                    text = "messages before %s are no longer stored: they were not delivered"
                    log.error(text, before)
                    self._delivery.tell_missing(before)
                # No commit is there: after all that was handed on, before all that it brings.
                count = await self._delivery.recovered(missed, order=stream.start_lsn - 1)
        self._replace = False
        self._owed_by_time_us = None
        if snapshot is None:
            return
        services.progress.passed(stream.start_lsn)
        services.progress.settled(stream.start_lsn)
        if not fresh:
            services.recoveries += 1
            log.warning(
                "replication slot %s is new: %d messages came from the table",
                stream.slot_name,
                count if topics else 0,
            )
        elif not self._settings.temporary_slot:
            log.info(
                "replication slot %s is new: what committed before is for those who resume",
                stream.slot_name,
            )

    def _owed(self) -> Owed:
        """From where on subscribers are owed what commits."""
        first, horizon = self._first, self._services.progress.horizon
        if self._owed_by_time_us is not None:
            return Owed(None, self._owed_by_time_us, self._owed_by_time_us)
        if horizon is not None:
            return Owed(horizon.seen, horizon.since_us, horizon.taken_us)
        assert first is not None, "taken before the source is opened"
        return Owed(first.seen, 0, first.taken_us)

    async def _settle(self, stream: Stream) -> None:
        """Moves on while nothing comes, too: other databases write to the same WAL."""
        progress = self._services.progress
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            received = stream.received_lsn
            progress.passed(received)
            if self._at_rest:
                progress.settled(received)
                stream.acknowledge(min(received, progress.forgettable))

    # How the slot stands

    def _slot_name(self, slot: str | None) -> str | None:
        return slot if self._stream is None else self._stream.slot_name

    def _looked(self, look: Look) -> None:
        """Takes what the database said."""
        stream = self._stream
        if stream is None:
            return
        self._services.progress.look(look.seen, at=look.at, taken_us=look.taken_us)
        if not self.following.is_set():
            return
        # One look may be older than the stream.
        self._not_ours = 0 if look.reader_pid == stream.backend_pid else self._not_ours + 1
        if self._not_ours > 1:
            stream.fail(SlotError(f"replication slot {stream.slot_name} was taken from us"))
        elif look.reader_pid == stream.backend_pid:
            self._judge(stream, look)

    def _judge(self, stream: Stream, look: Look) -> None:
        """Warns of a slot that holds back much, and gives up one that holds back too much.

        But not for a transaction that is open: the next slot could not be made before it ends, and
        would hold back WAL all the same.
        """
        name, limit = stream.slot_name, self._settings.max_slot_lag_bytes
        retained_bytes, wal_status = look.retained_bytes or 0, look.wal_status or ""
        unread_bytes = max(0, look.at - stream.acknowledged_lsn)
        retained = slots.as_text(retained_bytes)
        if wal_status != self._wal_status:
            self._wal_status = wal_status
            level = logging.INFO if wal_status == "reserved" else logging.WARNING
            log.log(level, "replication slot %s holds back %s: %s", name, retained, wal_status)
        if not limit:
            return
        lags = 2 * retained_bytes // limit
        if lags > self._lags:  # each time that it is half a limit more
            log.warning(
                "replication slot %s holds back %s, of which %s have not been delivered; at %s of "
                "these it is given up. The rest is for open transactions: see pg_stat_activity",
                name,
                retained,
                slots.as_text(unread_bytes),
                slots.as_text(limit),
            )
        self._lags = lags
        if unread_bytes > limit:
            self._replace = True
            stream.fail(
                SlotError(
                    f"replication slot {name} holds back {retained}, over --max-slot-lag-bytes: "
                    "it is given up, and what it did not bring comes from the table"
                )
            )


def _is_for_good(error: Exception) -> bool:
    """Whether the WAL cannot be read until somebody changes the database."""
    return isinstance(error, (WalLevelTooLow, MissingRight))
