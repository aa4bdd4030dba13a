"""`realtime-db tail`: prints messages as they commit.

Above `wal.stream`, which gives the messages, and below the command line, which gives the options.
A temporary slot is used, so nothing stays behind in the database, and nothing is held back.

With `from_start`, what the table holds comes first, read with the snapshot that Postgres exports
when it makes the slot: what the snapshot sees is not streamed, and what is streamed it does not
see, so no message is missed or shown twice.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, BinaryIO, Final

import psycopg
from psycopg import sql
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from realtime_db.database import Connection, connect
from realtime_db.errors import ConnectionFailed, MissingRight
from realtime_db.wal.lsn import format_lsn
from realtime_db.wal.pgoutput import COLUMNS, SENDABLE, Message
from realtime_db.wal.stream import PUBLICATION, Stream, open_stream

_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141
_ROWS_AT_A_TIME: Final = 500
_WAITING_NOTICE_SECONDS: Final = 3.0

# A topic could otherwise clear the screen of whoever watches, or worse.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# `stored.` in the order: a bare transaction_id would be the text of the select list.
_STORED: Final = sql.SQL(
    f"""
    select {COLUMNS}
    from realtime.messages as m
    where m.extension = 'broadcast' and {SENDABLE}
        and (%(all)s or m.topic = any(%(exact)s) or m.topic like any(%(patterns)s))
    order by m.transaction_id, m.position
    """  # noqa: S608 - constants of ours
)

Render = Callable[[Sequence[Message]], bytes]


def run(
    database_url: str,
    topics: Sequence[str] = (),
    *,
    json_lines: bool = False,
    from_start: bool = False,
    count: int | None = None,
    publication: str = PUBLICATION,
) -> int:
    """Runs `follow` until it ends or the user ends it.

    Returns:
        The exit status: 0 after `count` messages, 130 after Ctrl-C, 141 if the pipe that it
        writes to was closed.

    Raises:
        RealtimeDbError: as `follow` does.
    """
    try:
        asyncio.run(
            _while_somebody_reads(
                follow(
                    database_url,
                    topics,
                    json_lines=json_lines,
                    from_start=from_start,
                    count=count,
                    publication=publication,
                )
            )
        )
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return 0


async def follow(
    database_url: str,
    topics: Sequence[str] = (),
    *,
    json_lines: bool = False,
    from_start: bool = False,
    count: int | None = None,
    publication: str = PUBLICATION,
    out: BinaryIO | None = None,
) -> None:
    """Prints messages until `count` of them have been printed, or for ever.

    Says on stderr from where it follows, as soon as it does.

    Args:
        database_url: of a direct connection, as a role with REPLICATION.
        topics: the topics to show, without the `realtime:` prefix; `*` in one stands for any
            text. None means all.
        json_lines: one JSON object a line, `{"topic", "event", "payload", "private", "id",
            "inserted_at", "lsn"}`, with the payload digit for digit as Postgres has it; a binary
            message has `binary_payload`, in base64, and a null payload. A stored message has a
            null lsn. Otherwise lines for people.
        from_start: shows what the table holds first.
        count: how many messages to print, at least 1.
        publication: the publication to follow.
        out: where to print; stdout by default.

    Raises:
        ConnectionFailed: the database cannot be reached, or the connection was lost.
        MissingRight: the role must not replicate, or not read the table.
        WalLevelTooLow: logical decoding is off.
        NotInstalled: there is no such publication.
        SlotError: no slot could be made.
    """
    target = sys.stdout.buffer if out is None else out
    render: Render = _json_lines if json_lines else _lines_for_people()
    wanted = _topic_filter(topics)
    left = sys.maxsize if count is None else count

    loop = asyncio.get_running_loop()
    notice = loop.call_later(
        _WAITING_NOTICE_SECONDS,
        _say,
        "waiting for the database: a stream begins when all open transactions have ended",
    )
    try:
        async with open_stream(database_url, publication=publication) as stream:
            notice.cancel()
            if from_start:
                async with aclosing(_stored(database_url, stream, topics)) as stored:
                    async for rows in stored:
                        shown = rows[:left]
                        left -= len(shown)
                        await _write(target, render(shown))
                        if not left:
                            return
            await stream.start()
            _say(f"following realtime.messages from LSN {format_lsn(stream.start_lsn)}")
            async for batch in stream:
                shown = [
                    message
                    for message in batch.messages
                    if message.extension == "broadcast" and wanted(message.topic)
                ][:left]
                if shown:
                    left -= len(shown)
                    await _write(target, render(shown))
                stream.acknowledge(batch.end_lsn)
                if not left:
                    return
    finally:
        notice.cancel()


async def _while_somebody_reads(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, and raises BrokenPipeError when the other end of stdout's pipe is closed.

    Without it, `realtime-db tail | head -1` would go on until the next message.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    try:
        fileno = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(fileno).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    left = False

    def reader_left() -> None:
        nonlocal left
        left = True
        loop.remove_reader(fileno)
        task.cancel()

    if is_pipe:
        # Nothing ever arrives at this end of a pipe, so all that can wake it is the end.
        loop.add_reader(fileno, reader_left)
    try:
        await task
    except asyncio.CancelledError:
        if left:
            raise BrokenPipeError from None
        raise
    finally:
        if is_pipe:
            loop.remove_reader(fileno)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _write(target: BinaryIO, lines: bytes) -> None:
    """Writes in a thread: a pager that is not read must not stop the keepalives."""

    def write() -> None:
        target.write(lines)
        target.flush()

    await asyncio.to_thread(write)


def _topic_filter(topics: Sequence[str]) -> Callable[[str], bool]:
    if not topics:
        return lambda topic: True
    exact = frozenset(topic for topic in topics if "*" not in topic)
    patterns = [
        re.compile(".*".join(map(re.escape, topic.split("*"))), re.DOTALL)
        for topic in topics
        if "*" in topic
    ]
    return lambda topic: topic in exact or any(p.fullmatch(topic) for p in patterns)


def _like(topic: str) -> str:
    """The same pattern for SQL's `like`."""
    return re.sub(r"[\\%_]", r"\\\g<0>", topic).replace("*", "%")


async def _stored(
    database_url: str, stream: Stream, topics: Sequence[str]
) -> AsyncGenerator[list[Message], None]:
    """What the table holds at the moment where the stream begins, oldest transaction first."""
    snapshot = stream.snapshot
    assert snapshot is not None, "a temporary slot always exports one, until the stream starts"
    try:
        async with connect(database_url, autocommit=False) as connection:
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.set_read_only(True)
            await connection.execute(sql.SQL("set transaction snapshot {}").format(snapshot))
            await connection.execute("set local datestyle = 'ISO'")
            await connection.execute("set local statement_timeout = 0")
            await _check_rights(connection)
            async with connection.cursor(name="realtime_tail") as cursor:
                await cursor.execute(
                    _STORED,
                    {
                        "all": not topics,
                        "exact": [topic for topic in topics if "*" not in topic],
                        "patterns": [_like(topic) for topic in topics if "*" in topic],
                    },
                )
                while rows := await cursor.fetchmany(_ROWS_AT_A_TIME):
                    yield [Message.of_row(row, 0) for row in rows]
    except psycopg.OperationalError as error:
        message = " ".join(str(error).split())
        raise ConnectionFailed(f"the stored messages cannot be read: {message}") from error


async def _check_rights(connection: Connection) -> None:
    """Refuses rather than showing nothing: row level security hides rows without a word."""
    cursor = await connection.execute(
        """
        select quote_ident(current_user),
            has_schema_privilege('realtime', 'usage')
                and has_table_privilege('realtime.messages', 'select'),
            has_schema_privilege('realtime', 'usage')
                and row_security_active('realtime.messages')
        """
    )
    row = await cursor.fetchone()
    assert row is not None, "a select without from has one row"
    role, may_select, rows_hidden = row
    if not may_select:
        raise MissingRight(
            f"role {role} may not read realtime.messages",
            hint=f"As its owner: grant usage on schema realtime to {role};"
            f" grant select on realtime.messages to {role};",
        )
    if rows_hidden:
        raise MissingRight(
            f"row level security hides stored messages from role {role}",
            hint="Connect as the owner of realtime.messages, or as an administrator:"
            f" alter role {role} bypassrls;",
        )


def _json_lines(messages: Sequence[Message]) -> bytes:
    return b"".join(map(_json_line, messages))


def _json_line(message: Message) -> bytes:
    # The payload is spliced in. Reading and writing it again would round its numbers.
    binary = message.binary_payload
    lsn = f'"{format_lsn(message.commit_lsn)}"' if message.commit_lsn else "null"
    return b"".join(
        (
            f'{{"topic": {_quote(message.topic)}, "event": {_quote(message.event)},'.encode(),
            b' "payload": ',
            b"null" if message.payload is None else message.payload,
            b"" if binary is None else b', "binary_payload": "%b"' % base64.b64encode(binary),
            f', "private": {"true" if message.private else "false"}, "id": "{message.id}",'
            f' "inserted_at": "{message.inserted_at.replace(" ", "T")}Z",'
            f' "lsn": {lsn}}}\n'.encode(),
        )
    )


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _lines_for_people() -> Render:
    """Colours on a terminal, the same words without them elsewhere."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        return lambda messages: "".join(
            "  ".join(text for text, _ in _columns(message)) + "\n" for message in messages
        ).encode()
    highlight = JSONHighlighter()

    def render(messages: Sequence[Message]) -> bytes:
        with console.capture() as capture:
            for message in messages:
                *head, (payload, _) = _columns(message)
                body = Text(payload)
                highlight.highlight(body)
                line = Text("  ").join([*(Text(text, style) for text, style in head), body])
                console.print(line, soft_wrap=True, highlight=False)
        return capture.get().encode(sys.stdout.encoding or "utf-8", "replace")

    return render


def _columns(message: Message) -> list[tuple[str, str]]:
    """`(text, style)` of time, topic, event and payload, safe to show."""
    binary = message.binary_payload
    if message.payload is not None:
        payload = message.payload.decode()
    else:
        assert binary is not None, "a row with neither payload is no message"
        payload = f"{len(binary)} bytes {binary[:32].hex()}{'…' if len(binary) > 32 else ''}"
    seconds, _, fraction = message.inserted_at.partition(".")
    columns = [
        (f"{seconds}.{fraction[:3]:0<3}Z", "dim"),
        (message.topic, "cyan"),
        (message.event, "bold magenta"),
        # Private is what realtime.send makes; a subscriber that asks for the other sees nothing.
        *([] if message.private else [("public", "yellow")]),
        (payload, ""),
    ]
    return [(_CONTROL.sub(lambda c: f"\\u{ord(c[0]):04x}", text), style) for text, style in columns]
