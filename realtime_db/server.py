"""`realtime-db serve`: the one place where the parts are put together.

    following ─► hub ─► transports.websocket ─► clients
                  ▲
    protocol.connection ◄─ transports.http ◄─ clients

One process, one event loop. Fan-out is synchronous: nothing in it waits for a client.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import uvloop

from realtime_db import logs
from realtime_db.auth.keys import Keys
from realtime_db.auth.policies import Policies
from realtime_db.database import Pool
from realtime_db.errors import RealtimeDbError, ServerError
from realtime_db.following import Following
from realtime_db.hub import Hub
from realtime_db.last_word import LastWord
from realtime_db.protocol.connection import Services
from realtime_db.rechecking import Rechecking
from realtime_db.retention import maintenance
from realtime_db.settings import Settings
from realtime_db.stored import StoredMessages
from realtime_db.storing import Storing
from realtime_db.transports.application import Application, Front
from realtime_db.transports.http import HttpProtocol
from realtime_db.wheel import Wheel

BACKLOG: Final = 4096
SEND_BUFFER_BYTES: Final = 131_072
MAINTENANCE_SECONDS: Final = 3600.0
DRAIN_SECONDS: Final = 5.0
STORE_SECONDS: Final = 5.0
END_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 1.0
LAST_SECONDS: Final = 25.0
"""So long after SIGTERM the process ends, come what may: more than all that it waits for takes."""

DECIDE_SECONDS: Final = 2.0
"""So long a server that begins waits for its messages before it takes clients."""

log = logging.getLogger("realtime_db")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Attributes:
        host, port: where it listens.
        keys: what verifies tokens.
        following: set while the WAL is being read.
        application: whose clients the keys are for.
        operations: host and port of the second address, if there is one.
    """

    host: str
    port: int
    keys: Keys
    following: asyncio.Event
    application: Application
    operations: tuple[str, int] | None


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; reads the keys again on SIGHUP.

    Returns:
        The exit status.

    Raises:
        RealtimeDbError: it cannot begin.
    """
    logs.configure(as_json=settings.log_json, level=settings.log_level)

    async def until_told() -> None:
        async with serve(settings) as server:

            def say() -> None:
                scheme = "http" if settings.tls_certificate is None else "https"
                log.info("listening on %s://%s:%d", scheme, server.host, server.port)
                if server.operations is not None:
                    log.info("operations on %s://%s:%d", scheme, *server.operations)

            await until_signalled(server, say)
            log.info("stopping")
            last_word.start()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        last_word = LastWord(LAST_SECONDS, runner.get_loop())
        runner.run(until_told())
    last_word.cancel()
    return 0


async def until_signalled(server: Server, say: Callable[[], object]) -> None:
    """Waits for SIGTERM or SIGINT; reads the keys again on SIGHUP.

    Args:
        server: whose keys they are.
        say: called once signals are waited for: who reads what it says may send one at once.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(server))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    say()
    await ended.wait()


async def _reload(server: Server) -> None:
    keys, before = server.keys, server.keys.current
    try:
        await keys.reload()
    except RealtimeDbError as error:
        log.error("the keys stay as they are: %s", error)
        return
    log.info("the keys were read again")
    if keys.current is not before:
        await server.application.check_tokens()


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
        seconds = settings.statement_timeout_seconds
        pool = Pool(settings.database_url, size=settings.pool_size, statement_seconds=seconds)
        await pool.open()
        stack.push_async_callback(pool.close)
        services = Services(
            settings=settings,
            hub=Hub(
                loop.call_soon, max_per_second=settings.max_deliveries_per_second, now=time.time
            ),
            keys=keys,
            policies=Policies(pool),
            stored=StoredMessages(pool),
            wheel=Wheel(time.time()),
            now=time.time,
            log=log,
        )
        stack.callback(services.limits.flush)
        application = Application(services)
        tls = _tls(settings)
        answering: dict[socket.socket, Application | Front] = {}
        if settings.ops_port is None:
            answering[listen(settings.host, settings.port)] = application
        else:
            answering[listen(settings.host, settings.port)] = Front(application)
            answering[listen(settings.ops_host, settings.ops_port, "ops-")] = application
        connections: set[HttpProtocol] = set()
        following = Following(settings, services, partial(_send_away, application))
        tasks = [loop.create_task(following.run(), name="following")]
        stack.push_async_callback(_end, tasks)
        with suppress(TimeoutError):
            async with asyncio.timeout(DECIDE_SECONDS):
                await following.decided.wait()
        servers = [
            await loop.create_server(
                partial(
                    HttpProtocol,
                    answers,
                    wheel=services.wheel,
                    now=services.now,
                    max_body_bytes=settings.max_body_bytes,
                    connections=connections,
                ),
                sock=listener,
                backlog=BACKLOG,
                ssl=tls,
            )
            for listener, answers in answering.items()
        ]
        # Joins need the pool, too.
        at_once = max(1, settings.pool_size // 2)
        rechecking = Rechecking(pool, services.rechecks, at_once=at_once)
        storing = Storing(pool, services.to_store)
        to_the_table = loop.create_task(storing.run(), name="storing")
        tasks += [
            to_the_table,
            loop.create_task(_turn(services.wheel), name="wheel"),
            loop.create_task(rechecking.run(), name="rechecking"),
        ]
        if settings.maintain:
            tasks.append(loop.create_task(_maintain(settings), name="maintenance"))
        # What is alive by now stays alive; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)  # a join makes hundreds of objects, and keeps them
        (host, port), *more = (listener.getsockname()[:2] for listener in answering)
        operations = more[0] if more else None
        try:
            yield Server(host, port, keys, following.following, application, operations)
        finally:
            services.restarting = True
            for one in servers:
                one.close()
            answers = [answer for one in list(connections) if (answer := one.finish())]
            services.to_store.close()
            await asyncio.wait([to_the_table], timeout=STORE_SECONDS)
            storing.give_up()
            _send_away(application, "Server is restarting")
            await _end(tasks)
            await _drain([*answers, *(client.closed for client in application.clients)])
            for client in list(application.clients):
                client.reset()


def _send_away(application: Application, why: str) -> None:
    """Closes the clients such that they connect again."""
    for client in list(application.clients):
        client.connection.disconnect_requested()
        client.close(1012, why)
    for stream in list(application.streams):
        stream.close(why)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels tasks until they have ended, but not for long.

    Once is not enough: in Python 3.11 `asyncio.wait_for` forgets a cancellation that comes together
    with what it waits for, and the pool of connections waits with it.
    """
    pending, tasks[:] = {*tasks}, []
    for _ in range(round(END_SECONDS / AGAIN_SECONDS)):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)


async def _drain(waits: Collection[asyncio.Future[None]]) -> None:
    """Waits for answers to be written and clients to close, but not for long."""
    if waits:
        await asyncio.wait(waits, timeout=DRAIN_SECONDS)


def listen(host: str, port: int, prefix: str = "") -> socket.socket:
    """A socket that has the address.

    Raises:
        ServerError: the address is taken, or there is none such.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. The kernel would hide megabytes of what a client has not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # else two of ours could have the same
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint=f"Give another --{prefix}port or --{prefix}host, or stop what listens there.",
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
    complaints = logs.Complaints(log)

    def report(one: maintenance.Report) -> None:
        # Each fact is on a line of its own, and a hint below what it is about.
        facts = re.split(r"\n(?! )", one.as_text())
        text = "maintenance: " + "; ".join(facts)
        if one.ok:
            complaints.over()
            log.info("%s", text)
        else:
            complaints.say(text)

    await maintenance.run_every(
        settings.database_url,
        interval_seconds=MAINTENANCE_SECONDS,
        on_report=report,
        max_slot_lag_bytes=settings.max_slot_lag_bytes,
    )
