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

from realtime_db import development
from realtime_db.errors import EmbeddedPostgresError
from tests.clients.conftest import port_to_keep

DEADLINE_SECONDS = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the account of Postgres may enter, if the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def command(folder: Path, *options: str) -> list[str]:
    dev = [sys.executable, "-m", "realtime_db", "dev"]
    return [*dev, "--data", str(folder), "--port", "0", *options]


@contextmanager
def dev(folder: Path, *options: str) -> Iterator[str]:
    """What a running `realtime-db dev` has printed."""
    with subprocess.Popen(command(folder, *options), stdout=subprocess.PIPE, text=True) as running:
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


def refusal(folder: Path, *options: str) -> str:
    """What `realtime-db dev` says when it cannot start."""
    finished = subprocess.run(
        command(folder, *options),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ")
    return finished.stderr


def value(name: str, printed: str) -> str:
    return re.findall(rf"^{name} +(.+)$", printed, re.MULTILINE)[0]


def send(printed: str) -> None:
    with psycopg.connect(value("DATABASE_URL", printed), autocommit=True) as connection:
        connection.execute(value("Send:", printed).encode())


def test_the_next_start_prints_the_same_keys_and_the_same_database_url(folder: Path) -> None:
    (folder / "postgres-port").write_text(f"{port_to_keep()}\n")  # nobody takes it in between
    with dev(folder) as first:
        pass
    with dev(folder) as second:
        send(second)

    for name in ("anon key", "service key", "DATABASE_URL"):
        assert value(name, first) == value(name, second), name


def test_a_port_that_is_taken_meanwhile_is_replaced_and_that_is_said(folder: Path) -> None:
    port = port_to_keep()
    (folder / "postgres-port").write_text(f"{port}\n")
    with dev(folder) as first:
        pass
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


def test_a_file_that_names_no_port_is_as_none(folder: Path) -> None:
    (folder / "postgres-port").write_text("abc\n")
    with dev(folder) as printed:
        send(printed)

    assert (folder / "postgres-port").read_text().strip().isdigit()


def test_the_psql_that_it_prints_connects(folder: Path) -> None:
    with dev(folder) as printed:
        sent = subprocess.run(
            ["bash", "-euc", value("psql", printed) + ' -Atc "$0"', value("Send:", printed)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert sent.returncode == 0, sent.stderr


def test_on_all_addresses_it_prints_one_that_can_be_opened(folder: Path) -> None:
    with dev(folder, "--host", "0.0.0.0") as printed:
        url = value("URL", printed)
        with urllib.request.urlopen(url + "/healthcheck") as answer:
            assert answer.status == 200

    assert url.startswith("http://127.0.0.1:")
    assert f"createClient('{url}'" in printed
    assert "all addresses" in printed
    assert "0.0.0.0" not in printed


@pytest.mark.parametrize("name", ["file/data", "postgres-port"])
def test_a_folder_that_cannot_keep_the_data_is_named(folder: Path, name: str) -> None:
    """It is below a file, or one of its files cannot be written."""
    if name == "postgres-port":
        data = folder
        (folder / name).mkdir()
    else:
        data = folder / name
        data.parent.touch()

    said = refusal(data)

    assert f"{data} cannot keep the data" in said
    assert "--data" in said


def test_an_account_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)

    with pytest.raises(EmbeddedPostgresError, match="no home folder") as raised:
        development.run(None, host="127.0.0.1", port=0)

    assert "--data" in str(raised.value.hint)


def test_a_port_that_is_taken_is_said_before_anything_is_made(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        said = refusal(folder / "data", "--port", str(port))

    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert not (folder / "data").exists()


def test_it_says_at_once_what_it_does_and_ctrl_c_then_ends_it(folder: Path) -> None:
    with subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        read_until(f"starting a private Postgres in {folder}", running)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=DEADLINE_SECONDS)

    assert (running.returncode, out, err) == (130, "", "")


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
