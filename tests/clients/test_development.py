"""What `realtime-db dev` prints works when it is pasted, and is true after the next start too."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

DEADLINE_SECONDS = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the account of Postgres may enter, if the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def dev(folder: Path) -> Iterator[str]:
    """What a running `realtime-db dev` has printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "realtime_db", "dev", "--data", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            printed = read_until("Ctrl-C ends it.", running)
            yield printed
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(DEADLINE_SECONDS) == 0


def read_until(text: str, process: subprocess.Popen[str]) -> str:
    """The lines up to one with this text; fails if none comes in time."""
    assert process.stdout is not None
    lines = []
    alarm = threading.Timer(DEADLINE_SECONDS, process.kill)
    alarm.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
    finally:
        alarm.cancel()
    raise AssertionError(f"waited in vain for {text!r} in:\n{''.join(lines)}")


def value(name: str, printed: str) -> str:
    return re.findall(rf"^{name} +(.+)$", printed, re.MULTILINE)[0]


def send(printed: str) -> None:
    with psycopg.connect(value("DATABASE_URL", printed), autocommit=True) as connection:
        connection.execute(value("Send:", printed).encode())


def test_the_next_start_prints_the_same_keys_and_the_same_database_url(folder: Path) -> None:
    with dev(folder) as first:
        pass
    with dev(folder) as second:
        send(second)

    for name in ("anon key", "service key", "DATABASE_URL"):
        assert value(name, first) == value(name, second), name


def test_a_port_that_is_taken_meanwhile_is_replaced_and_that_is_said(folder: Path) -> None:
    with dev(folder) as first:
        pass
    port = int((folder / "postgres-port").read_text())
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with dev(folder) as second:
            send(second)
    with dev(folder) as third:
        pass

    assert f"Another program has port {port}" in second
    assert value("DATABASE_URL", first) != value("DATABASE_URL", second)
    assert "Another program" not in third
    assert value("DATABASE_URL", third) == value("DATABASE_URL", second)


def test_the_command_for_a_users_key_makes_one_that_the_server_takes(folder: Path) -> None:
    with dev(folder) as printed:
        key = subprocess.run(
            ["bash", "-euc", value("user key", printed)],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        request = urllib.request.Request(
            value("URL", printed) + "/realtime/v1/api/broadcast",
            data=b'{"messages": [{"topic": "room:1", "event": "greeting", "payload": {}}]}',
            headers={"apikey": key, "content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 202


def test_the_program_runs_when_it_is_pasted(folder: Path, node_modules: Path) -> None:
    with dev(folder) as printed:
        program = printed.partition("node listen.mjs\n\n")[2].partition("\n\nSend:")[0]
        (folder / "listen.mjs").write_text(program)
        (folder / "node_modules").symlink_to(node_modules)
        with subprocess.Popen(
            ["node", "listen.mjs"], cwd=folder, stdout=subprocess.PIPE, text=True
        ) as listening:
            try:
                read_until("SUBSCRIBED", listening)
                send(printed)
                assert "hello: 1" in read_until("hello", listening)
            finally:
                listening.kill()
