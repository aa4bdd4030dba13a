"""Partition maintenance: the program's, and that of the SQL function for pg_cron."""

import asyncio
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from realtime_db import embedded
from realtime_db.errors import ForeignSchema, MissingRight, NotInstalled
from realtime_db.install import migrate
from realtime_db.retention.maintenance import LEAVING, Report, Skipped, run_every, run_once
from realtime_db.retention.plan import partition_name

DAY = timedelta(days=1)
DEADLINE_SECONDS = 60
SQL_RESULT = list[tuple[str, str, str | None]]


def maintain(database_url: str, **options: object) -> Report:
    return asyncio.run(run_once(database_url, **options))


def maintain_in_sql(connection: psycopg.Connection, today: date | None = None) -> SQL_RESULT:
    if today is None:
        return connection.execute("select * from realtime.maintain()").fetchall()
    return connection.execute("select * from realtime.maintain(%s)", [today]).fetchall()


def utc_today(connection: psycopg.Connection) -> date:
    row = connection.execute("select (clock_timestamp() at time zone 'utc')::date").fetchone()
    assert row
    return row[0]


def make_days(connection: psycopg.Connection, *days: date) -> None:
    for day in days:
        connection.execute("select realtime.create_partition(%s)", [day])


def attached_days(connection: psycopg.Connection) -> list[date]:
    rows = connection.execute("select day from realtime.partitions() where attached").fetchall()
    return [day for (day,) in rows]


def exists(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute("select to_regclass('realtime.' || %s) is not null", [name]).fetchone()
    assert row
    return bool(row[0])


def days(first: date, last: date) -> list[date]:
    return [first + n * DAY for n in range((last - first).days + 1)]


def table(day: date) -> sql.Identifier:
    return sql.Identifier("realtime", partition_name(day))


@contextmanager
def reader(database_url: str) -> Iterator[None]:
    """A transaction that has read all of realtime.messages and stays open."""
    with psycopg.connect(database_url) as connection:
        connection.execute("select count(*) from realtime.messages")
        yield


@contextmanager
def sender(database_url: str) -> Iterator[list[str]]:
    """Sends all the time; yields the errors of those sends that had to wait for too long.

    That is half a second twice running: a machine that stands still lets one wait as well.
    """
    refused: list[str] = []
    sent = threading.Event()
    stop = threading.Event()

    def send() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("set lock_timeout = '500ms'")
            waited = False
            while not stop.is_set():
                try:
                    connection.execute("select realtime.send('{}', 'event', 'topic')")
                    waited = False
                except errors.LockNotAvailable as error:
                    if waited:
                        refused.append(str(error))
                    waited = True
                sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert sent.wait(DEADLINE_SECONDS)
        yield refused
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)


def interrupt_a_detach(database_url: str, day: date) -> None:
    """`detach … concurrently` waits for a reader and is canceled, as by Ctrl-C."""
    detach = sql.SQL("alter table realtime.messages detach partition {} concurrently")
    impatient = make_conninfo(database_url, options="-c statement_timeout=200ms")
    with (
        reader(database_url),
        psycopg.connect(database_url, autocommit=True) as looking,
        psycopg.connect(impatient, autocommit=True) as connection,
    ):
        # More than once if the machine stands still, and it is canceled before it waits.
        while not looking.execute("select from realtime.partitions() where detaching").fetchall():
            with pytest.raises(errors.QueryCanceled):
                connection.execute(detach.format(table(day)))


# --- the program --------------------------------------------------------------------------------


def test_a_run_makes_the_days_ahead_and_drops_those_older_than_three_days(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    make_days(connection, *days(today - 6 * DAY, today - 2 * DAY))
    connection.execute(sql.SQL("drop table {}").format(table(today + 7 * DAY)))

    report = maintain(database_url)

    assert report == Report(
        created=(partition_name(today + 7 * DAY),),
        dropped=tuple(partition_name(today - n * DAY) for n in (6, 5, 4)),
        days_left=7,
    )
    assert report.ok
    assert attached_days(connection) == days(today - 3 * DAY, today + 7 * DAY)


def test_a_second_run_has_nothing_to_do(database_url: str, connection: psycopg.Connection) -> None:
    make_days(connection, utc_today(connection) - 9 * DAY)
    maintain(database_url)

    assert maintain(database_url) == Report(days_left=7)


def test_both_settings_are_followed(database_url: str, connection: psycopg.Connection) -> None:
    today = utc_today(connection)
    make_days(connection, *days(today - 3 * DAY, today - 2 * DAY))
    connection.execute("update realtime.settings set retention_days = 1, days_ahead = 9")

    report = maintain(database_url)

    assert report.days_left == 9
    assert attached_days(connection) == days(today - DAY, today + 9 * DAY)


def test_a_message_goes_into_a_partition_that_a_run_made(
    database_url: str, connection: psycopg.Connection
) -> None:
    connection.execute(sql.SQL("drop table {}").format(table(utc_today(connection))))
    with pytest.raises(psycopg.Error, match="no partition"):
        connection.execute("select realtime.send('{}', 'event', 'topic')")

    maintain(database_url)

    connection.execute("select realtime.send('{}', 'event', 'topic')")


@pytest.mark.parametrize(
    ("today", "oldest", "newest"),
    [
        # Far from the days of the clock, which have partitions already.
        (date(2128, 2, 29), "messages_2128_02_26", "messages_2128_03_07"),
        (date(2127, 4, 30), "messages_2127_04_27", "messages_2127_05_07"),
        (date(2126, 12, 31), "messages_2126_12_28", "messages_2127_01_07"),
        (date(2127, 1, 1), "messages_2126_12_29", "messages_2127_01_08"),
    ],
)
def test_the_end_of_a_month_or_year_is_a_day_like_any_other(
    database_url: str, connection: psycopg.Connection, today: date, oldest: str, newest: str
) -> None:
    # Midnight passes between the two runs of each maintainer.
    maintain(database_url, today=today - 3 * DAY)
    maintain_in_sql(connection, today - DAY)

    report = maintain(database_url, today=today)

    assert report.ok
    present = connection.execute(
        "select partition_name from realtime.partitions() where day between %s and %s",
        [today - 30 * DAY, today + 30 * DAY],
    ).fetchall()
    names = [name for (name,) in present]
    assert (names[0], names[-1]) == (oldest, newest)
    assert len(names) == 11


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])  # one has another date now
@pytest.mark.parametrize("maintainer", ["program", "function"])
def test_today_is_the_utc_day_whatever_the_time_zone_of_the_session(
    database_url: str, connection: psycopg.Connection, maintainer: str, zone: str
) -> None:
    today = utc_today(connection)
    connection.execute(sql.SQL("drop table {}").format(table(today + 7 * DAY)))

    if maintainer == "program":
        maintain(make_conninfo(database_url, options=f"-c TimeZone={zone}"))
    else:
        connection.execute(sql.SQL("set time zone {}").format(zone))
        maintain_in_sql(connection)

    assert attached_days(connection) == days(today - DAY, today + 7 * DAY)


def test_a_database_that_slept_for_two_weeks_is_whole_after_one_run(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection) + 14 * DAY  # all its partitions are in the past

    report = maintain(database_url, today=today)

    assert report.ok
    assert report.days_left == 7
    assert len(report.created) == 8
    assert len(report.dropped) == 9
    assert attached_days(connection) == days(today, today + 7 * DAY)


def test_beside_a_reader_no_sender_waits_and_the_next_run_goes_on(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    old = [today - 5 * DAY, today - 4 * DAY]
    make_days(connection, *old)
    connection.execute(sql.SQL("drop table {}").format(table(today + 7 * DAY)))
    connection.execute("update realtime.settings set days_ahead = 8")

    with reader(database_url), sender(database_url) as refused:
        beside = maintain(database_url, detach_timeout_seconds=1.5)
    after = maintain(database_url)

    assert refused == []
    assert beside.created == tuple(partition_name(today + n * DAY) for n in (7, 8))
    assert beside.dropped == ()
    assert [one.name for one in beside.skipped] == [partition_name(day) for day in old]
    assert beside.ok
    assert after.finalized == (partition_name(old[0]),)
    assert after.dropped == tuple(partition_name(day) for day in old)


def test_an_interrupted_detach_is_finished_and_the_partition_dropped(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old, old - DAY)
    interrupt_a_detach(database_url, old)

    report = maintain(database_url)

    assert report == Report(
        finalized=(partition_name(old),),
        dropped=(partition_name(old - DAY), partition_name(old)),
        days_left=7,
    )
    assert not exists(connection, partition_name(old))


def test_an_interrupted_detach_of_today_is_undone(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    connection.execute("select realtime.send('{}', 'event', 'topic')")
    interrupt_a_detach(database_url, today)

    report = maintain(database_url)

    assert report.created == (partition_name(today),)
    assert connection.execute("select count(*) from realtime.messages").fetchone() == (1,)


def test_a_run_that_is_canceled_while_it_detaches_is_finished_by_the_next(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)

    async def cancel_while_detaching() -> None:
        running = asyncio.create_task(run_once(database_url))
        while not connection.execute(
            "select 1 from realtime.partitions() where detaching"
        ).fetchone():
            assert not running.done()
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with reader(database_url):
        asyncio.run(asyncio.wait_for(cancel_while_detaching(), DEADLINE_SECONDS))
    report = maintain(database_url)

    assert report.finalized == report.dropped == (partition_name(old),)


def test_what_a_run_detached_before_it_died_is_dropped_by_the_next(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)
    connection.execute(sql.SQL("comment on table {} is {}").format(table(old), LEAVING))
    connection.execute(
        sql.SQL("alter table realtime.messages detach partition {}").format(table(old))
    )

    report = maintain(database_url)

    assert report.dropped == (partition_name(old),)


@pytest.mark.parametrize("maintainer", ["program", "function"])
def test_what_somebody_detached_to_keep_it_is_kept(
    database_url: str, connection: psycopg.Connection, maintainer: str
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)
    connection.execute(
        sql.SQL("alter table realtime.messages detach partition {}").format(table(old))
    )

    if maintainer == "program":
        report = maintain(database_url)
        assert report.skipped == (Skipped(partition_name(old), "detached by hand, which keeps it"),)
        assert report.ok
    else:
        assert maintain_in_sql(connection) == []

    assert exists(connection, partition_name(old))


@pytest.mark.parametrize("maintainer", ["program", "function"])
def test_what_was_leaving_comes_back_when_retention_is_raised(
    database_url: str, connection: psycopg.Connection, maintainer: str
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)
    connection.execute(sql.SQL("comment on table {} is {}").format(table(old), LEAVING))
    connection.execute(
        sql.SQL("alter table realtime.messages detach partition {}").format(table(old))
    )
    connection.execute("update realtime.settings set retention_days = 30")

    if maintainer == "program":
        assert maintain(database_url).created == (partition_name(old),)
    else:
        assert maintain_in_sql(connection) == [("created", partition_name(old), None)]

    assert old in attached_days(connection)
    assert maintain(database_url) == Report(days_left=7)


def test_two_maintainers_at_once_do_the_work_once(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    make_days(connection, *days(today - 8 * DAY, today - 4 * DAY))
    connection.execute("update realtime.settings set days_ahead = 12")

    async def both() -> list[Report]:
        runs = (run_once(database_url, lock_wait_seconds=DEADLINE_SECONDS) for _ in range(2))
        return await asyncio.gather(*runs)

    reports = asyncio.run(both())

    assert all(report.ok and not report.busy for report in reports)
    assert sorted(len(report.created) for report in reports) == [0, 5]
    assert sorted(len(report.dropped) for report in reports) == [0, 5]


def test_a_maintainer_beside_another_does_nothing_and_is_content(
    database_url: str, connection: psycopg.Connection
) -> None:
    make_days(connection, utc_today(connection) - 4 * DAY)
    with psycopg.connect(database_url) as other:
        # The function works until its transaction ends.
        other.execute("select * from realtime.maintain()")

        report = maintain(database_url, lock_wait_seconds=0)
        by_function = maintain_in_sql(connection)
        other.rollback()

    assert report == Report(busy=True, days_left=7)
    assert report.ok
    assert by_function == []
    assert len(maintain(database_url).dropped) == 1


def test_a_maintainer_that_is_locked_out_still_says_that_today_is_missing(
    database_url: str, connection: psycopg.Connection
) -> None:
    connection.execute(sql.SQL("drop table {}").format(table(utc_today(connection))))
    with psycopg.connect(database_url) as other:
        other.execute("select pg_advisory_lock(hashtextextended('realtime-db maintain', 0))")

        report = maintain(database_url, lock_wait_seconds=0)

    assert report == Report(busy=True, days_left=-1)
    assert not report.ok
    assert "no partition for today" in report.as_text()


@pytest.mark.parametrize("maintainer", ["program", "function"])
def test_a_hand_made_partition_in_the_way_costs_its_day_and_no_other(
    database_url: str, connection: psycopg.Connection, maintainer: str
) -> None:
    today = utc_today(connection)
    connection.execute("update realtime.settings set days_ahead = 10")
    odd = today + 9 * DAY
    connection.execute(
        sql.SQL(
            "create table realtime.odd partition of realtime.messages for values from ({}) to ({})"
        ).format(f"{odd} 06:00", f"{odd} 12:00")
    )

    if maintainer == "program":
        report = maintain(database_url)
        assert report.problems == (
            f"no partition for {odd}, {partition_name(odd)}: "
            f'partition "{partition_name(odd)}" would overlap partition "odd"',
        )
        assert report.created == tuple(partition_name(today + n * DAY) for n in (8, 10))
        assert report.days_left == 8
        assert not report.ok
    else:
        assert maintain_in_sql(connection) == [
            ("created", partition_name(today + 8 * DAY), None),
            (
                "failed",
                partition_name(odd),
                f'partition "{partition_name(odd)}" would overlap partition "odd"',
            ),
            ("created", partition_name(today + 10 * DAY), None),
        ]

    assert exists(connection, "odd")
    assert not exists(connection, partition_name(odd))


@pytest.mark.parametrize("maintainer", ["program", "function"])
def test_what_realtime_db_did_not_make_is_never_dropped(
    database_url: str, connection: psycopg.Connection, maintainer: str
) -> None:
    today = utc_today(connection)
    theirs = {
        # A name of ours with bounds that are not.
        partition_name(today - 30 * DAY): (today - 30 * DAY, today - 25 * DAY),
        "messages_old": (today - 20 * DAY, today - 19 * DAY),
        "messages_2020_13_01": (today - 18 * DAY, today - 17 * DAY),
        "messages_2020_02_30": (today - 16 * DAY, today - 15 * DAY),
    }
    for name, (first, end) in theirs.items():
        connection.execute(
            sql.SQL(
                "create table {} partition of realtime.messages for values from ({}) to ({})"
            ).format(sql.Identifier("realtime", name), str(first), str(end))
        )
    connection.execute("create table realtime.messages_2019_01_01 (id integer)")

    if maintainer == "program":
        assert maintain(database_url).dropped == ()
    else:
        assert maintain_in_sql(connection) == []

    assert all(exists(connection, name) for name in (*theirs, "messages_2019_01_01"))


def test_beside_a_default_partition_old_days_are_dropped_all_the_same(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)
    connection.execute("create table realtime.rest partition of realtime.messages default")

    with sender(database_url) as refused:
        with reader(database_url):
            beside = maintain(database_url)
        for _ in range(10):  # once, but on a slow machine
            after = maintain(database_url)
            if not after.skipped:
                break

    assert beside.skipped == (
        Skipped(partition_name(old), "a transaction that uses it is still open"),
    )
    assert after.dropped == (partition_name(old),)
    assert refused == []


def test_a_view_on_a_partition_is_a_problem_and_keeps_no_other_from_being_dropped(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 5 * DAY
    make_days(connection, old, old + DAY)
    connection.execute(sql.SQL("create view public.archive as select * from {}").format(table(old)))

    report = maintain(database_url)

    assert report.dropped == (partition_name(old + DAY),)
    assert len(report.problems) == 1
    assert partition_name(old) in report.problems[0]
    assert not report.ok


def test_a_report_as_json_is_one_line_with_everything(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)

    line = maintain(database_url).as_json()

    assert "\n" not in line
    assert json.loads(line) == {
        "ok": True,
        "days_left": 7,
        "created": [],
        "finalized": [],
        "dropped": [partition_name(old)],
        "skipped": [],
        "problems": [],
        "standby": False,
        "busy": False,
    }


def test_the_lines_of_the_daemon_begin_with_the_time() -> None:
    report = Report(created=("messages_2031_01_01",), days_left=7)

    lines = report.as_log().splitlines()

    for line, text in zip(lines, report.as_text().splitlines(), strict=True):
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} {re.escape(text)}", line)


def test_a_database_without_realtime_db_is_told_to_migrate(empty_database_url: str) -> None:
    with pytest.raises(NotInstalled, match="realtime-db migrate"):
        maintain(empty_database_url)


def test_over_a_schema_of_somebody_else_nobody_is_told_to_migrate(
    empty_database_url: str,
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("create schema realtime create table messages (id int)")

    with pytest.raises(ForeignSchema, match="not of realtime-db") as refused:
        maintain(empty_database_url)

    assert "migrate" not in str(refused.value)


def test_a_role_that_does_not_own_the_table_is_told_who_does(
    database_url: str, server_url: str
) -> None:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("create role maintenance_passerby login password 'secret'")
        try:
            url = make_conninfo(database_url, user="maintenance_passerby", password="secret")
            with pytest.raises(MissingRight, match='grant "app" to "maintenance_passerby"'):
                maintain(url)
        finally:
            admin.execute("drop role maintenance_passerby")


@pytest.fixture
def data_directory() -> Iterator[Path]:
    """For a server that is started twice; not below tmp_path, where only we may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "data"


def test_on_a_standby_nothing_is_done(data_directory: Path) -> None:
    binaries = os.environ.get("REALTIME_DB_TEST_BINARIES")

    async def primary_then_standby() -> tuple[Report, SQL_RESULT, list[date], list[date]]:
        async with embedded.start(data_directory, binaries=binaries) as primary:
            await migrate.migrate(primary.url)
            with psycopg.connect(primary.url, autocommit=True) as connection:
                make_days(connection, utc_today(connection) - 9 * DAY)
                before = attached_days(connection)
        signal = data_directory / "standby.signal"
        signal.touch()
        owner = data_directory.stat()
        os.chown(signal, owner.st_uid, owner.st_gid)
        async with embedded.start(data_directory, binaries=binaries) as standby:
            report = await run_once(standby.url)
            with psycopg.connect(standby.url, autocommit=True) as connection:
                return report, maintain_in_sql(connection), before, attached_days(connection)

    report, by_function, before, after = asyncio.run(primary_then_standby())

    assert report == Report(standby=True, days_left=7)
    assert report.ok
    assert "standby" in report.as_text()
    assert by_function == []
    assert after == before


# --- the daemon ---------------------------------------------------------------------------------


def test_the_daemon_reports_a_lost_database_and_goes_on_when_it_is_back(
    database_url: str, server_url: str, connection: psycopg.Connection
) -> None:
    name = sql.Identifier(connection.info.dbname)
    reports: list[Report] = []

    async def live_through_an_outage() -> None:
        with psycopg.connect(server_url, autocommit=True) as admin:
            seen = asyncio.Event()

            def on_report(report: Report) -> None:
                reports.append(report)
                if len(reports) == 1:
                    admin.execute(sql.SQL("alter database {} connection limit 0").format(name))
                elif not report.ok:
                    admin.execute(sql.SQL("alter database {} connection limit -1").format(name))
                else:
                    seen.set()

            daemon = asyncio.create_task(
                run_every(database_url, interval_seconds=0.01, on_report=on_report)
            )
            await asyncio.wait_for(seen.wait(), DEADLINE_SECONDS)
            daemon.cancel()
            with pytest.raises(asyncio.CancelledError):
                await daemon

    asyncio.run(live_through_an_outage())

    assert [report.ok for report in reports[:3]] == [True, False, True]
    assert "cannot connect" in reports[1].problems[0]
    assert reports[1].days_left is None


# --- the function for pg_cron -------------------------------------------------------------------


def test_the_function_makes_the_days_ahead_and_drops_those_older_than_three_days(
    connection: psycopg.Connection,
) -> None:
    today = utc_today(connection)
    make_days(connection, *days(today - 5 * DAY, today - 2 * DAY))
    connection.execute(sql.SQL("drop table {}").format(table(today + 7 * DAY)))

    first, oldest, *others = maintain_in_sql(connection)
    while any(action == "left" for action, _, _ in others):  # on a slow machine
        others = maintain_in_sql(connection)

    assert first == ("created", partition_name(today + 7 * DAY), None)
    assert oldest == ("dropped", partition_name(today - 5 * DAY), None)
    assert others == [("dropped", partition_name(today - 4 * DAY), None)]
    assert attached_days(connection) == days(today - 3 * DAY, today + 7 * DAY)


def test_the_function_lets_senders_pass_beside_a_reader_and_leaves_the_rest(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    old = today - 4 * DAY
    make_days(connection, old)
    connection.execute(sql.SQL("drop table {}").format(table(today + 7 * DAY)))

    with reader(database_url), sender(database_url) as refused:
        beside = maintain_in_sql(connection)

    assert refused == []
    assert beside == [
        ("created", partition_name(today + 7 * DAY), None),
        ("left", partition_name(old), "realtime.messages was in use all the time"),
    ]
    assert maintain_in_sql(connection) == [("dropped", partition_name(old), None)]


def test_the_function_drops_what_slept_for_two_weeks_in_a_few_calls(
    connection: psycopg.Connection,
) -> None:
    today = utc_today(connection) + 14 * DAY

    calls = 0
    while rows := maintain_in_sql(connection, today):
        calls += 1
        if calls == 1:
            assert [row[0] for row in rows].count("created") == 8
        assert "dropped" in [row[0] for row in rows]

    assert attached_days(connection) == days(today, today + 7 * DAY)


def test_the_function_finishes_and_drops_an_interrupted_detach(
    database_url: str, connection: psycopg.Connection
) -> None:
    old = utc_today(connection) - 4 * DAY
    make_days(connection, old)
    interrupt_a_detach(database_url, old)

    assert maintain_in_sql(connection) == [("dropped", partition_name(old), None)]


def test_the_function_undoes_an_interrupted_detach_of_today(
    database_url: str, connection: psycopg.Connection
) -> None:
    today = utc_today(connection)
    interrupt_a_detach(database_url, today)

    assert maintain_in_sql(connection) == [("created", partition_name(today), None)]


def test_only_the_owner_may_call_the_functions_that_make_and_drop(
    connection: psycopg.Connection,
) -> None:
    rows = connection.execute(
        """
        select p.proname from pg_proc as p
        where p.pronamespace = 'realtime'::regnamespace
            and p.proname in ('maintain', 'create_partition', 'drop_partition')
            and not has_function_privilege('anon', p.oid, 'execute')
        order by 1
        """
    ).fetchall()

    assert rows == [("create_partition",), ("drop_partition",), ("maintain",)]


@pytest.mark.parametrize("in_sql", [False, True])
def test_swallowed_errors_are_forgotten_with_the_messages_of_their_day(
    database_url: str, connection: psycopg.Connection, in_sql: bool
) -> None:
    connection.execute(
        "insert into realtime.send_errors (happened_at, error_code, message) values "
        "(now() - interval '5 days', 'RT002', 'old'), (now(), 'RT002', 'new')"
    )

    if in_sql:
        maintain_in_sql(connection)
    else:
        maintain(database_url)

    assert connection.execute("select message from realtime.send_errors").fetchall() == [("new",)]
