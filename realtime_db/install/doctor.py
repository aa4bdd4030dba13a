"""`realtime-db doctor`: everything that delivery depends on, and a message sent and received.

Above: the command line. Below: `check_server` and `check_objects`, which look at one thing at a
time, `inspect`, and `wal.stream`, through which the message comes back.

For the command line:

    await examine(database_url, *, probe=True) -> Report
    Report.ok, .checks, .as_text(), .as_json()
    Check.name / .outcome / .detail / .mend
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import asdict, dataclass

import psycopg

from realtime_db.database import Connection, connect, describe
from realtime_db.errors import RealtimeDbError
from realtime_db.install import check_objects, check_server, inspect
from realtime_db.install.checks import Check, Finding, Outcome, counted, identifier
from realtime_db.wal.stream import open_stream

PROBE_SECONDS = 30.0
_LAST_RESORT = "Run this again; if it stays, the log of Postgres has more."

_MARKS = {Outcome.PASS: "ok  ", Outcome.WARN: "warn", Outcome.FAIL: "FAIL", Outcome.SKIP: "skip"}


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination found.

    Attributes:
        database: `user@host:port/database`.
        release: what is installed; None for nothing.
        checks: in the order in which things depend on each other.
    """

    database: str
    release: str | None
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.outcome is not Outcome.FAIL for check in self.checks)

    def as_text(self) -> str:
        """A line for each check; below it what to type, if something is wrong."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{_MARKS[check.outcome]}  {check.name:{width}}  {check.detail}")
            if check.mend:
                lines += [f"      {line}" for line in check.mend.splitlines()]
        failures = sum(check.outcome is Outcome.FAIL for check in self.checks)
        warnings = sum(check.outcome is Outcome.WARN for check in self.checks)
        lines.append(f"{self.database}: {failures} failed, {counted(warnings, 'warning')}")
        return "\n".join(lines)

    def as_json(self) -> str:
        """One object: `{"database", "release", "ok", "checks": [{"name", "outcome", …}]}`."""
        return json.dumps(
            {
                "database": self.database,
                "release": self.release,
                "ok": self.ok,
                "checks": [asdict(check) for check in self.checks],
            }
        )


async def examine(database_url: str, *, probe: bool = True) -> Report:
    """Looks at everything; changes nothing, but for the probe's message, which it deletes.

    Args:
        database_url: as the role that the server or `realtime-db tail` logs in as.
        probe: send a message and receive it.

    Raises:
        ConnectionFailed, UnsupportedVersion: see `database.connect`.
    """
    async with connect(database_url) as connection:
        found = await inspect.look(connection)
        results = [check_server.installed(found)]
        for name, check in check_server.SERVER.items():
            results += await _guarded(name, check(connection), found)
        if found.messages_owner is not None:
            for name, look in check_objects.OBJECTS.items():
                results += await _guarded(name, look(connection, found), found)
            if probe:
                results.append(await _probe(database_url, connection, results))
    return Report(describe(database_url), found.release, tuple(results))


async def _guarded(name: str, check: Finding, found: inspect.Installation) -> list[Check]:
    """A check that may not look has failed; the others go on."""
    try:
        return await check
    except psycopg.errors.InsufficientPrivilege as error:
        owner = identifier(found.messages_owner)
        mend = f"-- Run this as {owner}."
        detail = f"could not be checked: {error.diag.message_primary}"
        return [Check(name, Outcome.FAIL, detail, mend)]
    except psycopg.Error as error:
        detail = f"could not be checked: {error.diag.message_primary or error}"
        return [Check(name, Outcome.FAIL, detail, "Mend the others first, and run this again.")]


async def _probe(database_url: str, connection: Connection, results: list[Check]) -> Check:
    """Sends a message to a topic that nobody else knows, and waits for it to come back."""
    broken = [
        check.name
        for check in results
        if check.name in check_server.NEEDED_BY_PROBE and check.outcome is not Outcome.PASS
    ]
    if broken:
        return Check("live probe", Outcome.SKIP, f"needs: {', '.join(broken)}")
    topic = f"realtime-db:doctor:{secrets.token_hex(8)}"
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            milliseconds = await _round_trip(database_url, connection, topic)
    except TimeoutError:
        return Check(
            "live probe",
            Outcome.FAIL,
            f"a message was not received within {PROBE_SECONDS:g} s",
            "select pid, state, xact_start, query from pg_stat_activity order by xact_start;",
        )
    except RealtimeDbError as error:
        return Check("live probe", Outcome.FAIL, error.message, error.hint or _LAST_RESORT)
    except psycopg.Error as error:
        primary = error.diag.message_primary or str(error)
        hint = error.diag.message_hint or _LAST_RESORT
        return Check("live probe", Outcome.FAIL, primary, hint)
    return Check("live probe", Outcome.PASS, f"a message came back after {milliseconds:.1f} ms")


async def _round_trip(database_url: str, connection: Connection, topic: str) -> float:
    """Milliseconds from the statement that sends to the message in our hands."""
    loop = asyncio.get_running_loop()
    async with open_stream(database_url) as stream:
        await stream.start()
        # An error must be one, whatever is set for this role.
        await connection.execute("set realtime.on_send_error = 'raise'")
        started = loop.time()
        try:
            await connection.execute(
                "select realtime.send('{}'::jsonb, 'probe', %s, true)", [topic]
            )
            async for batch in stream:
                if any(message.topic == topic for message in batch.messages):
                    break
            return (loop.time() - started) * 1000
        finally:
            await connection.execute("delete from realtime.messages where topic = %s", [topic])
