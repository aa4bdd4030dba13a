"""The only code that speaks COPY BOTH with a walsender.

Below are `pgoutput`, which knows what the bytes mean, and `session`, which knows what to tell the
server. Above is whoever takes the batches: `tail`, a server.

    async with open_stream(url) as stream:          # a temporary slot: gone with the connection
        async for batch in stream:
            hand_on(batch.messages)
            stream.acknowledge(batch.end_lsn)

psycopg has no replication API, so this uses its `pq` layer: `get_copy_data` and `put_copy_data` do
not block, and the event loop watches the socket in between. Manual: "55.4. Streaming Replication
Protocol" and "55.5. Logical Streaming Replication Protocol".

Cancelling a wait for the next batch loses nothing: bytes are taken from the socket and decoded
without an `await` in between, so a batch is either returned whole or still unread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import pq, sql

from realtime_db.database import Connection, first_line
from realtime_db.errors import ConnectionFailed, DecodeError, RealtimeDbError, SlotError
from realtime_db.wal.pgoutput import Begin, Commit, Decoder, LogicalMessage, Message
from realtime_db.wal.session import KEEPALIVE, XLOG_DATA, XLOG_DATA_HEADER_BYTES, Session
from realtime_db.wal.slot import (
    Slot,
    check_publication,
    connect,
    connection_lost,
    find_or_make_slot,
    identify,
)

PUBLICATION: Final = "realtime_messages"

# A batch ends when nothing more has arrived, or here: the event loop serves others in between.
_MAX_BATCH_MESSAGES: Final = 500
_MAX_BATCH_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """What arrived together, in commit order and, within a transaction, in insert order.

    A large transaction spans several batches, and a batch holds many small ones. One may be empty:
    it brings the end of a transaction, which came after its messages.

    Attributes:
        messages: the messages.
        end_lsn: the end of the last transaction that is complete with this batch: give it to
            `Stream.acknowledge` once this batch and those before it have been handed on.
        logical_messages: what `pg_logical_emit_message` wrote, if that was asked for.
    """

    messages: list[Message]
    end_lsn: int
    logical_messages: list[LogicalMessage]


@asynccontextmanager
async def open_stream(
    database_url: str,
    *,
    publication: str = PUBLICATION,
    schema: str = "realtime",
    slot: str | None = None,
    failover: bool = False,
    replace: bool = False,
    replace_lost: bool = False,
    take_over: bool = False,
    logical_messages: bool = False,
    status_interval_seconds: float = 10.0,
    slot_timeout_seconds: float = 600.0,
    active_slot_timeout_seconds: float = 15.0,
    on_connected: Callable[[Connection], object] = lambda connection: None,
) -> AsyncIterator[Stream]:
    """Opens a replication connection and makes its slot, or finds it.

    Args:
        database_url: a `postgresql://` URL or a libpq connection string, of a direct connection.
        publication: the publication to follow.
        schema: where its table `messages` is; rows of other tables are skipped.
        slot: the name of a durable slot, which is made unless it exists; what commits while nobody
            reads it is sent later. None: a temporary slot, which starts now.
        failover: makes the durable slot one that standbys take over (from Postgres 17 on).
        replace: makes the durable slot anew, though there is one.
        replace_lost: makes it anew if it is lost.
        take_over: ends the connection that uses the durable slot, if there is one.
        logical_messages: whether batches carry what `pg_logical_emit_message` wrote.
        status_interval_seconds: how often the server hears what has been acknowledged.
        slot_timeout_seconds: a slot can only be made when all transactions that run have ended.
        active_slot_timeout_seconds: how long to wait for a durable slot that another connection
            uses; a walsender notices a dead client after some seconds only.
        on_connected: is given the connection as soon as there is one, to `cut` it, say.

    Yields:
        The stream. Its first row is the first that commits after `Stream.snapshot`.

    Raises:
        ConnectionFailed: the database cannot be reached, or closes the connection.
        MissingRight: the role must not replicate; the hint is the grant.
        WalLevelTooLow: logical decoding is off.
        NotInstalled: there is no such publication.
        ForeignSchema: a schema `realtime` that is not ours.
        SlotError: the slot is in use, lost, or one too many.
        UnsupportedVersion: the server is older than 14.
    """
    connection = await connect(database_url)
    try:
        on_connected(connection)
        try:
            await check_publication(connection, publication)
            cluster = await identify(connection)
            async with asyncio.timeout(slot_timeout_seconds):
                found = await find_or_make_slot(
                    connection,
                    slot,
                    failover=failover,
                    replace=replace,
                    replace_lost=replace_lost,
                    take_over=take_over,
                )
        except TimeoutError:
            raise SlotError(
                f"no replication slot could be made within {slot_timeout_seconds:.0f} s",
                hint="It waits for every open transaction; see pg_stat_activity for old ones.",
            ) from None
        except psycopg.OperationalError as error:
            raise connection_lost(str(error)) from error
        stream = Stream(
            connection,
            publication=publication,
            schema=schema,
            slot=found,
            cluster=cluster,
            take_over=take_over and slot is not None,
            logical_messages=logical_messages,
            status_interval_seconds=status_interval_seconds,
            active_slot_timeout_seconds=active_slot_timeout_seconds,
        )
        try:
            yield stream
        finally:
            await stream.close()
    finally:
        connection.pgconn.finish()


class Stream:
    """Committed messages as they come; made by `open_stream`.

    Iterating starts it; `start` does so beforehand, which is when `snapshot` ends.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        publication: str,
        schema: str,
        slot: Slot,
        cluster: int,
        take_over: bool,
        logical_messages: bool,
        status_interval_seconds: float,
        active_slot_timeout_seconds: float,
    ) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._publication = publication
        self._slot = slot
        self._cluster = cluster
        self._take_over = take_over
        self._want_logical = logical_messages
        self._status_interval_seconds = status_interval_seconds
        self._active_slot_timeout_seconds = active_slot_timeout_seconds
        self._decoder = Decoder(namespace=schema)
        self._session = Session(start_lsn=slot.start_lsn, now=0.0)
        self._end_lsn = slot.start_lsn
        self._transaction_has_messages = False
        self._owes_end = False  # the last batch ended inside a transaction
        self._given_lsn = 0
        self._more = False
        self._started = False
        self._failure: RealtimeDbError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False

    @property
    def snapshot(self) -> str | None:
        """A snapshot for `set transaction snapshot`, of the moment where the stream begins.

        It can be taken until the stream is started. None if the slot existed before.
        """
        return None if self._started else self._slot.snapshot

    @property
    def cluster(self) -> int:
        """Which cluster this is; see `cursors.cluster_id`."""
        return self._cluster

    @property
    def backend_pid(self) -> int:
        """The process id of the walsender."""
        return self._connection.info.backend_pid

    @property
    def slot_name(self) -> str:
        """The slot's name, as in `pg_replication_slots`."""
        return self._slot.name

    @property
    def start_lsn(self) -> int:
        """Where the stream begins: every transaction that commits after it is sent."""
        return self._slot.start_lsn

    @property
    def received_lsn(self) -> int:
        """How far the stream has been read."""
        return self._session.received_lsn

    @property
    def acknowledged_lsn(self) -> int:
        """What the server may forget, and hears of with the next status update."""
        return self._session.acknowledged_lsn

    def acknowledge(self, lsn: int) -> None:
        """Says that all transactions that end at or before `lsn` have been handed on.

        The server hears of it with the next status update, or when the stream is closed. Until
        then, a durable slot sends them again after a crash.

        Args:
            lsn: the `Batch.end_lsn` of a batch.
        """
        self._session.acknowledge(lsn)

    async def start(self) -> None:
        """Starts the stream; a second call does nothing.

        Raises:
            SlotError: the slot is in use, or lost.
            ConnectionFailed: the connection ended.
        """
        if self._started:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._active_slot_timeout_seconds
        # The server tells nobody when a slot becomes free, so ask again. But not if it was taken
        # over: who came in between may have moved it.
        if self._take_over:
            deadline = loop.time()
        while not await self._start_replication(last_try=loop.time() >= deadline):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        # From here on, libpq must never wait for the socket: the loop does.
        self._pgconn.nonblocking = 1
        self._started = True
        self._session = Session(
            start_lsn=self._slot.start_lsn,
            now=loop.time(),
            status_interval_seconds=self._status_interval_seconds,
        )
        self._tick()

    async def _start_replication(self, *, last_try: bool) -> bool:
        """Sends START_REPLICATION once; False if another connection still holds the slot."""
        # 0/0: the server knows where the slot is, and never sends what has been confirmed.
        statement = sql.SQL(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0"
            " (proto_version '1', publication_names {publications}, messages {messages})"
        ).format(
            slot=sql.Identifier(self._slot.name),
            # The option is a list of identifiers inside a string, so quoted twice.
            publications=sql.Literal(sql.Identifier(self._publication).as_string()),
            messages=sql.Literal("true" if self._want_logical else "false"),
        )
        pgconn = self._pgconn
        try:
            pgconn.send_query(statement.as_bytes(self._connection))
            while pgconn.flush():
                await self._wait(write=True)
            while pgconn.is_busy():
                await self._wait()
                pgconn.consume_input()
            result = pgconn.get_result()
        except psycopg.Error as error:
            raise connection_lost(str(error)) from error
        if result is not None and result.status == pq.ExecStatus.COPY_BOTH:
            return True
        refusal = _server_error(self._connection, result)
        while pgconn.get_result() is not None:
            pass
        if refusal.sqlstate == "55006":
            if not last_try:
                return False
            raise SlotError(
                f"replication slot {self._slot.name} is in use: {first_line(refusal)}",
                hint="Another reader follows it. Stop that one, or use a slot of another name.",
            )
        raise _streaming_failed(refusal, self._slot.name)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        """Waits for the next batch; never ends by itself.

        Raises:
            ConnectionFailed: the connection ended.
            SlotError: the server gave up on the slot.
            DecodeError: the server sent what the manual does not allow.
        """
        await self.start()
        if self._more:
            # Others want the loop too. Nothing is in hand here, so being cancelled is harmless.
            await asyncio.sleep(0)
        while True:
            if self._failure is not None:
                raise self._failure
            batch = self._drain()
            if batch is not None:
                return batch
            if self._failure is None:
                await self._wait()

    def _drain(self) -> Batch | None:
        """Takes what has arrived, up to one batch; None if nobody would want it.

        A batch may be empty: the end of a transaction whose messages were in the one before.
        """
        messages: list[Message] = []
        logical: list[LogicalMessage] = []
        try:
            self._more = self._take(messages, logical)
        except RealtimeDbError as error:
            # What came before the error is good, and handed on first.
            self._failure = error
        except psycopg.Error as error:
            self._failure = connection_lost(str(error))
        if messages or logical or (self._owes_end and self._end_lsn != self._given_lsn):
            self._given_lsn = self._end_lsn
            self._owes_end = self._decoder.in_transaction and self._transaction_has_messages
            return Batch(messages, self._end_lsn, logical)
        return None

    def _take(self, messages: list[Message], logical: list[LogicalMessage]) -> bool:
        """Decodes into the lists; whether a limit ended it, so that more may be waiting."""
        pgconn = self._pgconn
        get = pgconn.get_copy_data
        decode = self._decoder.decode
        session = self._session
        append = messages.append
        room = _MAX_BATCH_BYTES
        looked = False
        while room > 0 and len(messages) < _MAX_BATCH_MESSAGES:
            size, view = get(1)
            if size == 0:
                if looked:
                    return False
                # libpq's buffer is empty. Ask the kernel once more before going to sleep: on a
                # busy stream that saves a turn of the event loop for every 8 kB.
                pgconn.consume_input()
                looked = True
                continue
            if size < 0:
                raise self._ended()
            looked = False
            room -= size
            frame = bytes(view)
            kind = frame[0]
            if kind == XLOG_DATA:
                event = decode(frame, XLOG_DATA_HEADER_BYTES)
                cls = type(event)
                if cls is Message:
                    append(event)  # type: ignore[arg-type]
                    self._transaction_has_messages = True
                elif cls is Commit:
                    self._end_lsn = event.end_lsn  # type: ignore[union-attr]
                    session.transaction_received(
                        self._end_lsn, has_messages=self._transaction_has_messages
                    )
                elif cls is Begin:
                    self._transaction_has_messages = False
                elif cls is LogicalMessage and self._want_logical:
                    logical.append(event)  # type: ignore[arg-type]
            elif kind == KEEPALIVE:
                now = asyncio.get_running_loop().time()
                session.keepalive(frame, now=now, in_transaction=self._decoder.in_transaction)
                if session.status_due(now):
                    self._send_status()
            else:
                raise DecodeError(f"the walsender sent a frame of unknown kind {frame[:1]!r}")
        return True

    def _ended(self) -> RealtimeDbError:
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return _streaming_failed(_server_error(self._connection, result), self._slot.name)
        return connection_lost("the server ended the replication, as it does when it shuts down")

    def _tick(self) -> None:
        """Keeps the server informed, also while whoever takes the batches is slow."""
        loop = asyncio.get_running_loop()
        if self._session.status_due(loop.time()):
            self._send_status()
        if self._failure is None:
            self._timer = loop.call_at(self._session.status_due_at, self._tick)

    def _send_status(self) -> None:
        now = asyncio.get_running_loop().time()
        try:
            self._pgconn.put_copy_data(self._session.status(now=now, clock=time.time()))
            self._flush()
        except psycopg.Error as error:
            self.fail(connection_lost(str(error)))

    def _flush(self) -> None:
        """Writes what libpq holds; what the socket does not take now goes when it can."""
        loop = asyncio.get_running_loop()
        try:
            pending = bool(self._pgconn.flush())
        except psycopg.Error as error:
            pending = False
            self.fail(connection_lost(str(error)))
        if pending and not self._writing:
            loop.add_writer(self._pgconn.socket, self._flush)
        elif self._writing and not pending:
            loop.remove_writer(self._pgconn.socket)
        self._writing = pending

    def fail(self, error: RealtimeDbError) -> None:
        """Ends the stream: whoever waits for the next batch gets the error.

        The connection is not used any more, so that nobody has to wait for its other end.
        """
        if self._failure is None:
            self._failure = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, *, write: bool = False) -> None:
        """Waits until the socket can be read, or written."""
        # Watched only while waiting: a socket that nobody reads would keep the loop spinning.
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiter = waiter
        fileno = self._pgconn.socket

        def ready() -> None:
            if not waiter.done():
                waiter.set_result(None)

        if write:
            loop.add_writer(fileno, ready)
        else:
            loop.add_reader(fileno, ready)
        try:
            await waiter
        finally:
            self._waiter = None
            if write:
                loop.remove_writer(fileno)
            else:
                loop.remove_reader(fileno)

    async def close(self) -> None:
        """Tells the server what has been acknowledged, and ends the replication in good order.

        Without it the walsender would hold its slot for some more seconds. A second call does
        nothing.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._started and self._failure is None:
            self._send_status()
            with suppress(psycopg.Error, TimeoutError, RealtimeDbError):
                async with asyncio.timeout(5.0):
                    await self._end_copy()
        if self._writing:
            asyncio.get_running_loop().remove_writer(self._pgconn.socket)
            self._writing = False
        if self._failure is None:
            self._failure = ConnectionFailed("the stream has been closed")

    async def _end_copy(self) -> None:
        pgconn = self._pgconn
        pgconn.put_copy_end()
        while pgconn.flush():
            await self._wait(write=True)
        # The server answers CopyDone with CopyDone, after what it had sent already.
        while (size := pgconn.get_copy_data(1)[0]) >= 0:
            if size == 0:
                await self._wait()
                pgconn.consume_input()


def _server_error(connection: Connection, result: pq.abc.PGresult | None) -> psycopg.Error:
    if result is None:
        return psycopg.OperationalError("the server sent no answer")
    return psycopg.errors.error_from_result(result, encoding=connection.info.encoding)


def _streaming_failed(error: psycopg.Error, slot: str) -> RealtimeDbError:
    # Classes 08 and 57 are about connections: an administrator's command, a crash, a shutdown.
    if error.sqlstate is None or error.sqlstate[:2] in ("08", "57"):
        return connection_lost(str(error))
    return SlotError(f"reading replication slot {slot} failed: {first_line(error)}")
