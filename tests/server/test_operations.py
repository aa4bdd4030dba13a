"""What those who run the server see of it, and that its interface is what its description says."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from realtime_db.health import LagClock, Reader, Watch, days_left
from realtime_db.metrics import DatabaseCounts

HEALTHY = {"ready": True, "server": "ok", "database": "ok", "slot": "ok", "partitions": "ok"}


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
    return found


def metrics(server: Any) -> dict[str, float]:
    """By name and labels."""
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in samples)}


# Is it alive, is it ready


def test_a_live_server_says_ok(server) -> None:
    health, ping = server.request("GET", "/healthcheck"), server.request("GET", "/api/ping")

    assert (health.status, health.body) == (200, b"ok")
    assert (ping.status, ping.body) == (200, b'{"message":"Success"}')


def test_a_server_that_delivers_is_ready(server) -> None:
    assert server.ready().json == HEALTHY


def test_without_a_partition_for_today_it_is_not_ready(start_server, own_database_url) -> None:
    server = start_server("--no-maintain", database_url=own_database_url)
    with psycopg.connect(own_database_url, autocommit=True) as owner:
        for (name,) in owner.execute("select partition_name from realtime.partitions()").fetchall():
            owner.execute(f"drop table realtime.{name}")

    answer = until_readyz(server, lambda it: it["slot"] == "ok" and it["partitions"] != "ok")

    text = "none for today; run: realtime-db maintain"
    assert (answer.status, answer.json) == (503, {**HEALTHY, "ready": False, "partitions": text})
    assert metrics(server)["realtime_db_partition_days"] == 0


def test_without_the_wal_or_the_database_it_is_not_ready(
    start_server, own_database_url, as_admin
) -> None:
    server = start_server(database_url=own_database_url)
    until_readyz(server, lambda it: it["ready"])
    admin = as_admin("dbname=postgres")
    name = conninfo_to_dict(own_database_url)["dbname"]
    admin.execute(f"alter database {name} allow_connections false")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
    )

    refused = "not currently accepting connections"
    answer = until_readyz(server, lambda it: it["slot"] != "ok" and refused in it["database"])

    assert answer.status == 503
    assert answer.json["slot"] == "the database is not followed"
    assert answer.json["partitions"] == "unknown"
    assert server.request("GET", "/healthcheck").status == 200
    assert metrics(server)["realtime_db_database_up"] == 0
    admin.execute(f"alter database {name} allow_connections true")
    until_readyz(server, lambda it: it["ready"])


def until_readyz(server: Any, condition: Callable[[dict[str, Any]], bool]) -> Any:
    def ask() -> Any:
        answer = server.request("GET", "/readyz")
        return answer if condition(answer.json) else None

    return until(ask)


def test_a_thousand_questions_open_one_connection(server, database) -> None:
    def sessions() -> int:
        (count,) = database.execute(
            "select sessions from pg_stat_database where datname = current_database()"
        ).fetchone()
        return count

    server.ready()
    before = sessions()
    received = server.exchange(
        b"GET /readyz HTTP/1.1\r\n\r\n" * 999 + b"GET /readyz HTTP/1.1\r\nconnection: close\r\n\r\n"
    )

    assert received.count(b"HTTP/1.1 200 OK") == 1000
    assert sessions() - before < 100  # an answer is good for a second


# How is it doing


def test_metrics_count_what_happens(start_server, follow, topic, private_topic) -> None:
    server = start_server("--max-payload-bytes", "100")
    server.says("following the WAL")
    follow(topic, f"{topic}2", to=server)
    follow(private_topic, private=True, to=server)
    before = metrics(server)
    assert before['realtime_db_connections{transport="sse"}'] == 2
    assert before['realtime_db_channels{transport="sse"}'] == 3
    assert before['realtime_db_connections{transport="websocket"}'] == 0
    assert before["realtime_db_topics"] == 3
    assert before["realtime_db_replicating"] == 1
    assert before["realtime_db_slow_clients_total"] == 0

    message = {"topic": topic, "event": "e", "payload": {}}
    too_large = {**message, "payload": {"a": "x" * 100}}
    private = {**message, "topic": private_topic, "private": True}
    assert server.post("/api/broadcast", {"messages": [message, message, private]}).status == 202
    assert server.post("/api/broadcast", {"messages": [too_large]}).status == 422

    after = metrics(server)
    assert after["realtime_db_deliveries_total"] - before["realtime_db_deliveries_total"] == 3
    written = (
        after["realtime_db_delivered_bytes_total"] - before["realtime_db_delivered_bytes_total"]
    )
    assert 3 * 60 < written < 3 * 120
    assert after['realtime_db_limited_total{limit="max_payload_bytes"}'] == 1
    assert after['realtime_db_limited_total{limit="max_connections"}'] == 0
    assert after['realtime_db_authorization_seconds_count{right="read"}'] == 1
    assert after['realtime_db_authorization_seconds_count{right="write"}'] == 1
    assert 0 < after['realtime_db_authorization_seconds_sum{right="write"}'] < 20
    assert after["process_resident_memory_bytes"] > 1_000_000


def test_metrics_tell_how_the_database_stands(server, day, migrated_on) -> None:
    server.ready()  # the same answer of the database is in both
    found = metrics(server)

    assert found["realtime_db_database_up"] == 1
    # Today and seven ahead; one less if midnight has passed since they were made.
    assert found["realtime_db_partition_days"] in ((8,) if day == migrated_on else (7, 8))
    assert 0 <= found["realtime_db_replication_lag_bytes"] < 100_000_000
    assert found["realtime_db_wal_retained_bytes"] >= 0
    assert found["realtime_db_replication_lag_seconds"] >= 0


def test_a_database_of_an_older_release_is_not_served_before_it_is_migrated(
    start_server, own_database_url
) -> None:
    with psycopg.connect(own_database_url, autocommit=True) as owner:
        released = "create or replace function realtime.version() returns text language sql as "
        owner.execute(released + "$$ select '0.3.0' $$")
        server = start_server(database_url=own_database_url)
        server.said("has realtime-db 0.3.0, and this server needs 0.4.0")
        ready = until_readyz(server, lambda it: "has realtime-db 0.3.0" in it["database"])
        assert ready.status == 503
        owner.execute(released + "$$ select '0.10.0' $$")
        server.says("following the WAL")


def test_a_reader_that_does_not_read_lags(own_database_url) -> None:
    seconds = 0.0
    with psycopg.connect(own_database_url, autocommit=True) as owner:
        owner.execute("select pg_create_logical_replication_slot('stuck', 'pgoutput', true)")
        (lsn,) = owner.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
        received = int(lsn)
        watch = Watch(own_database_url, lambda: seconds, lambda: Reader("stuck", received))

        async def look() -> DatabaseCounts:
            health = await watch.look()
            assert health.problem is None
            return health.counts

        with asyncio.Runner() as runner:
            owner.execute("create table filler as select generate_series(1, 100000)")
            first = runner.run(look())
            owner.execute("create table more as select generate_series(1, 100000)")
            assert runner.run(look()) == first  # its answer is good for a second
            seconds = 7.0
            second = runner.run(look())
            received += second.lag_bytes
            seconds = 9.0
            third = runner.run(look())

    assert first.lag_bytes > 3_000_000
    assert first.lag_seconds == 0
    assert second.lag_bytes > first.lag_bytes + 3_000_000
    assert second.lag_seconds == 7
    assert second.retained_bytes >= second.lag_bytes
    assert third.lag_bytes < 1_000_000


def test_every_metric_has_a_help_and_a_unit_that_promtool_would_take(server) -> None:
    text = server.request("GET", "/metrics").body.decode()

    for name in re.findall(r"^# TYPE (realtime_db_\w+) ", text, re.MULTILINE):
        assert f"# HELP {name} " in text
        assert not name.endswith(("_count", "_sum", "_bucket", "_milliseconds", "_kilobytes"))
    counters = re.findall(r"^# TYPE (realtime_db_\w+) counter", text, re.MULTILINE)
    assert counters
    assert all(name.endswith("_total") for name in counters)


@pytest.mark.parametrize(
    ("looks", "behind"),
    [
        ([(10, 10, 0.0)], 0),
        ([(10, 5, 0.0)], 0),
        ([(10, 5, 0.0), (20, 5, 7.0)], 7),
        ([(10, 5, 0.0), (20, 10, 7.0)], 0),
        ([(10, 5, 0.0), (20, 10, 7.0), (30, 10, 9.0)], 2),
        ([(10, 5, 0.0), (20, 20, 7.0), (30, 20, 9.0)], 0),
        ([(10, 5, 5.0), (20, 5, 3.0)], 0),
    ],
)
def test_lag_is_the_age_of_the_oldest_wal_that_was_seen_and_not_read(looks, behind) -> None:
    clock = LagClock()

    assert [clock.behind(*look) for look in looks][-1] == behind


@pytest.mark.parametrize(
    ("ahead", "left"), [([], 0), ([1, 2], 0), ([0], 1), ([-1, 0, 1, 2], 3), ([0, 1, 3], 2)]
)
def test_days_are_counted_from_today_without_a_gap(ahead, left) -> None:
    today = date(2024, 2, 28)

    assert days_left(today, [today + timedelta(days=day) for day in ahead]) == left


# Who may see it


def test_operators_may_have_a_port_of_their_own(start_server, mint) -> None:
    server = start_server("--ops-port", "0")
    operations = Operations(server, int(server.says(r"operations on http://127.0.0.1:(\d+)")[1]))

    for path in ("/metrics", "/", "//metrics/"):
        assert (path, server.request("GET", path).status) == (path, 404)
    for path in ("/metrics", "/", "/readyz", "/healthcheck", "/api/ping"):
        assert (path, operations.request("GET", path).status in (200, 503)) == (path, True)
    for path in ("/readyz", "/healthcheck", "/api/ping"):
        assert (path, server.request("GET", path).status in (200, 503)) == (path, True)
    # The inspector is served from there, and talks to where it came from.
    path = "/api/broadcast/room/events/e"
    assert operations.request("POST", path, "{}", {"apikey": mint()}).status == 202


class Operations:
    """A server at its other port."""

    def __init__(self, server: Any, port: int) -> None:
        self.port = port
        self._request = type(server).request

    def request(self, *arguments: Any) -> Any:
        return self._request(self, *arguments)


def test_metrics_and_inspector_can_be_switched_off(start_server) -> None:
    server = start_server("--no-metrics", "--no-inspector", "--ops-port", "0")
    operations = Operations(server, int(server.says(r"operations on http://127.0.0.1:(\d+)")[1]))

    for path in ("/metrics", "/"):
        assert server.request("GET", path).status == 404
        assert operations.request("GET", path).status == 404


# What is refused is in the log


def test_the_log_says_why_a_client_was_refused(start_server, mint, open_events, topic) -> None:
    server = start_server("--log-json", "--private-only")
    stale = mint(ttl_seconds=-9)

    server.request("GET", f"/socket/websocket?apikey={stale}")
    server.request("GET", "/socket/websocket")
    server.request("GET", f"/realtime/v1/sse?topic={topic}")
    server.request("GET", f"/realtime/v1/sse?topic={topic}&apikey={mint()}")
    server.request("GET", f"/realtime/v1/sse?topic={topic}&private=true&apikey={mint()}")
    server.request("POST", "/api/broadcast", "{}", {"authorization": f"Bearer {stale}"})
    server.post("/api/broadcast", {})
    server.exchange(b"nonsense\r\n\r\n")
    server.says("This is not HTTP")

    lines = [json.loads(line) for line in server.log]
    said = [(one["level"], one["message"]) for one in lines if "refused" in one["message"]]
    assert said == [
        ("info", "GET /socket/websocket refused, 401: Token has expired"),
        ("info", "GET /socket/websocket refused, 401: API key is missing"),
        ("info", "GET /realtime/v1/sse refused, 401: API key is missing"),
        ("info", "GET /realtime/v1/sse refused, 403: PrivateOnly: This project only allows "
         "private channels"),
        ("info", "GET /realtime/v1/sse refused, 403: Unauthorized: You do not have permissions to "
         f"read from this Channel topic: {topic}"),
        ("info", "POST /api/broadcast refused, 401: Unauthorized"),
        ("info", "POST /api/broadcast refused, 422: "
         """{"errors":{"messages":["can't be blank"]}}"""),
        ("info", "a request was refused, 400: This is not HTTP/1.1"),
    ]  # fmt: skip
    assert [one["code"] for one in lines if "code" in one] == ["PrivateOnly", "Unauthorized"]
    assert not any("None" in line for line in server.log)


def test_limits_of_requests_are_counted(start_server, mint, topic, follow) -> None:
    server = start_server(
        "--max-body-bytes", "100", "--max-connections", "1", "--max-channels-per-connection", "2"
    )
    events = "/realtime/v1/sse?" + "".join(f"topic={topic}{number}&" for number in range(3))

    assert server.request("POST", "/api/broadcast", "x" * 101).status == 413
    assert server.request("GET", f"{events}&apikey={mint()}").status == 429
    follow(topic, to=server)
    assert server.request("GET", f"/realtime/v1/sse?topic={topic}&apikey={mint()}").status == 429

    found = metrics(server)
    for limit in ("max_body_bytes", "max_connections", "max_channels_per_connection"):
        assert found[f'realtime_db_limited_total{{limit="{limit}"}}'] == 1


# The description


def test_the_interface_is_what_its_description_says(server, mint, tmp_path) -> None:
    pytest.importorskip("schemathesis")
    finished = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run",
            f"http://127.0.0.1:{server.port}/api/openapi",
            "--header", f"Authorization: Bearer {mint()}",
            "--exclude-path", "/realtime/v1/sse",  # it does not end
            "--max-examples", "15",
            "--seed", "1",
            "--phases", "examples,coverage,fuzzing",
            "--request-timeout", "20",
            "--no-color",
        ],
        cwd=tmp_path,  # for its cache
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip

    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]


def test_the_description_names_every_path_in_both_layouts(server) -> None:
    document = server.request("GET", "/api/openapi").json

    assert document["openapi"].startswith("3.1")
    assert {path for path in document["paths"] if "broadcast" in path} == {
        "/api/broadcast",
        "/realtime/v1/api/broadcast",
        "/api/broadcast/{topic}/events/{event}",
        "/realtime/v1/api/broadcast/{topic}/events/{event}",
    }
    for path, operations in document["paths"].items():
        if "get" in operations and path != "/realtime/v1/sse":
            assert server.request("GET", path).status == 200
