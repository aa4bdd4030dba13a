"""`realtime-db serve`: the one place where the parts are put together.

    wal.stream ─► hub ─► transports.websocket ─► clients
                   ▲
    protocol.connection ◄─ transports.http ◄─ clients

One process, one event loop. Fan-out is synchronous: nothing in it waits for a client.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import uvloop
from psycopg_pool import AsyncConnectionPool

from realtime_db import logs
from realtime_db.auth.keys import Keys
from realtime_db.auth.policies import Policies
from realtime_db.database import Connection, conninfo
from realtime_db.errors import RealtimeDbError, ServerError
from realtime_db.hub import Hub
from realtime_db.protocol.broadcast import Broadcast
from realtime_db.protocol.connection import Services
from realtime_db.retention import maintenance
from realtime_db.settings import Settings
from realtime_db.stored import StoredMessages
from realtime_db.transports.application import Application
from realtime_db.transports.http import HttpProtocol
from realtime_db.wal.pgoutput import Message
from realtime_db.wal.stream import open_stream
from realtime_db.wheel import Wheel

BACKLOG: Final = 4096
SEND_BUFFER_BYTES: Final = 131_072
MAINTENANCE_SECONDS: Final = 3600.0
DRAIN_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = (0.2, 5.0)

log = logging.getLogger("realtime_db")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Attributes:
        host, port: where it listens.
        keys: what verifies tokens.
        following: set while the WAL is being read.
    """

    host: str
    port: int
    keys: Keys
    following: asyncio.Event


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; reads the keys again on SIGHUP.

    Returns:
        The exit status.

    Raises:
        RealtimeDbError: it cannot begin.
    """
    logs.configure(as_json=settings.log_json)

    async def until_told() -> None:
        async with serve(settings) as server:
            scheme = "http" if settings.tls_certificate is None else "https"
            log.info("listening on %s://%s:%d", scheme, server.host, server.port)
            await until_signalled(server)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_told())
    return 0


async def until_signalled(server: Server) -> None:
    """Waits for SIGTERM or SIGINT; reads the keys again on SIGHUP."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(server.keys))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await ended.wait()


async def _reload(keys: Keys) -> None:
    try:
        await keys.reload()
    except RealtimeDbError as error:
        log.error("the keys stay as they are: %s", error)
    else:
        log.info("the keys were read again")


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Server]:
    """Runs a server for the length of the block.

    Raises:
        UnusableKey: the keys cannot be read.
        ServerError: the address is taken, or TLS cannot be had.
    """
    loop = asyncio.get_running_loop()
    keys = Keys(
        secrets=settings.jwt_secrets, secrets_file=settings.jwt_secrets_file, jwks=settings.jwks
    )
    await keys.reload()
    async with AsyncExitStack() as stack:
        pool = _pool(settings)
        await pool.open()
        stack.push_async_callback(pool.close)
        services = Services(
            settings=settings,
            hub=Hub(loop.call_soon),
            keys=keys,
            policies=Policies(pool),
            stored=StoredMessages(pool),
            wheel=Wheel(time.time()),
            now=time.time,
            log=log,
        )
        application = Application(services)
        listener = _listen(settings)
        connections: set[asyncio.Transport] = set()
        server = await loop.create_server(
            lambda: HttpProtocol(
                application,
                wheel=services.wheel,
                now=services.now,
                max_body_bytes=settings.max_body_bytes,
                connections=connections,
            ),
            sock=listener,
            backlog=BACKLOG,
            ssl=_tls(settings),
        )
        following = asyncio.Event()
        jobs = [_follow(settings, services, following), _turn(services.wheel)]
        if settings.maintain:
            jobs.append(_maintain(settings))
        tasks = [loop.create_task(job) for job in jobs]
        # What is alive by now stays alive; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)  # a join makes hundreds of objects, and keeps them
        host, port = listener.getsockname()[:2]
        try:
            yield Server(host, port, keys, following)
        finally:
            services.restarting = True
            server.close()
            for client in list(application.clients):
                client.connection.disconnect_requested()
                client.close(1012, "Server is restarting")
            for stream in list(application.streams):
                stream.close("Server is restarting")
            for transport in list(connections):
                transport.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _drain(application)
            for client in list(application.clients):
                client.reset()


async def _drain(application: Application) -> None:
    """Waits for the clients to close, but not for long."""
    clients = [client.closed for client in application.clients]
    if clients:
        await asyncio.wait(clients, timeout=DRAIN_SECONDS)


def _pool(settings: Settings) -> AsyncConnectionPool[Connection]:
    timeout = int(settings.statement_timeout_seconds * 1000)
    return AsyncConnectionPool(
        conninfo(settings.database_url, options=f"-c statement_timeout={timeout}"),
        min_size=1,
        max_size=settings.pool_size,
        timeout=settings.statement_timeout_seconds,
        kwargs={"autocommit": True},
        open=False,
    )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. The kernel would hide megabytes of what a client has not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setblocking(False)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            hint="Give another --port or --host, or stop what listens there.",
        ) from error
    return listener


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise ServerError(
                f"{settings.tls_key} is a key without a certificate",
                hint="Give --tls-certificate as well; or neither, for plain HTTP.",
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"{settings.tls_certificate} cannot be used: {error}",
            hint="It is a file in PEM, and --tls-key (or the same file) has the key of it.",
        ) from error
    return context


async def _turn(wheel: Wheel) -> None:
    while True:
        now = time.time()
        await asyncio.sleep(1 - now % 1 + 0.001)
        wheel.advance(time.time())


async def _maintain(settings: Settings) -> None:
    def report(one: maintenance.Report) -> None:
        log.log(logging.INFO if one.ok else logging.ERROR, "maintenance: %s", one.as_text())

    await maintenance.run_every(
        settings.database_url, interval_seconds=MAINTENANCE_SECONDS, on_report=report
    )


async def _follow(settings: Settings, services: Services, following: asyncio.Event) -> None:
    """Brings what commits to the hub, for ever; begins again when the database went away."""
    pause, longest = _RETRY_SECONDS
    while True:
        try:
            async with open_stream(settings.database_url) as stream:
                await stream.start()
                pause = _RETRY_SECONDS[0]
                services.reader = stream
                services.replicating = True
                following.set()
                log.info("following the WAL from %X/%X", *divmod(stream.start_lsn, 1 << 32))
                async for batch in stream:
                    for message in batch.messages:
                        _publish(services, message)
                    # The hub writes before the next batch is read: a large transaction must not
                    # put its clients behind by all of it at once.
                    await asyncio.sleep(0)
                    stream.acknowledge(batch.end_lsn)
        except RealtimeDbError as error:
            log.error("the WAL is not followed: %s", error)
        finally:
            services.reader = None
            services.replicating = False
            following.clear()
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)


def _publish(services: Services, message: Message) -> None:
    committed = services.committed
    if not committed or committed[-1] != message.transaction_id:
        committed.append(message.transaction_id)
    key = (message.topic, message.private)
    if not services.hub.has_subscribers(key):
        return
    binary = message.binary_payload
    payload = binary if binary is not None else message.payload
    assert payload is not None, "the decoder skips rows without a payload"
    services.hub.publish(
        key,
        Broadcast(
            f"realtime:{message.topic}",
            message.event,
            payload,
            id=message.id,
            binary=binary is not None,
            transaction_id=message.transaction_id,
        ),
    )
