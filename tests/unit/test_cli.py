"""What the command line does with errors, with Ctrl-C and with what is not installed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from realtime_db.auth import tokens
from realtime_db.cli import main

DEADLINE_SECONDS = 60.0


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith(("joserfc", "realtime_db.auth"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "joserfc", None)

    result = CliRunner().invoke(main, ["token", "--jwt-secret", "secret"])

    assert result.exit_code == 1
    assert "needs the package joserfc" in result.output
    assert "pip install '.[embedded,server]'" in result.output


def test_an_error_is_text_and_exit_status_1() -> None:
    result = CliRunner().invoke(main, ["status", "--database-url", "postgresql://[broken"])

    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output


def test_without_a_database_url_it_says_where_one_may_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)

    result = CliRunner().invoke(main, ["status"])

    assert result.exit_code == 2
    assert "--database-url" in result.output
    assert "DATABASE_URL" in result.output


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])

    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


@pytest.mark.parametrize("text", ["0s", "1w", "-1h", ""])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    result = CliRunner().invoke(
        main, ["maintain", "--database-url", "postgresql://x", "--every", text]
    )

    assert result.exit_code == 2
    assert "write 90s, 15m or 1h" in result.output


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:sec@ret@host/db",
        "postgres://ann:sec/ret@host/db",
        "postgresql://ann:12/ret@host/db",
        "postgresql://ann:sec%ret@host/db",
        "postgresql://ann:sec#/ret@host/db",
    ],
)
def test_a_password_that_must_be_encoded_is_not_shown(url: str) -> None:
    result = CliRunner().invoke(main, ["status", "--database-url", url])

    assert result.exit_code == 1
    assert "sec" not in result.output
    assert "ret" not in result.output
    assert "Percent-encode" in result.output


def test_two_kinds_of_jobs_at_once_are_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["schedule", "--systemd", "--pg-cron"])

    assert result.exit_code == 2
    assert "Choose one of" in result.output


def test_a_token_without_a_role_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["token", "--jwt-secret", "secret", "--role", ""])

    assert result.exit_code == 2
    assert "--role is empty" in result.output


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "99999"],
        ["--port", "-1"],
        ["--ops-port", "99999"],
        ["--pool-size", "0"],
        ["--max-connections", "0"],
        ["--max-payload-bytes", "-1"],
        ["--max-write-buffer-bytes", str(1 << 64)],
        ["--max-joins-per-second", "-1"],
        ["--max-messages-per-second", "nan"],
        ["--max-bytes-per-second", "inf"],
        ["--idle-seconds", "0"],
        ["--idle-seconds", "nan"],
        ["--statement-timeout-seconds", "0"],
        ["--statement-timeout-seconds", "1e300"],
        ["--log-level", "loud"],
    ],
)
def test_a_setting_that_cannot_be_is_wrong_usage(options: list[str]) -> None:
    known = ["--database-url", "postgresql://x", "--jwt-secret", "x"]

    result = CliRunner().invoke(main, ["serve", *known, *options])

    assert result.exit_code == 2
    assert options[0] in result.output
    assert "Traceback" not in result.output


def test_dev_refuses_a_port_that_cannot_be() -> None:
    result = CliRunner().invoke(main, ["dev", "--port", "99999"])

    assert result.exit_code == 2
    assert "--port" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate", "--to", ""],
        ["rollback", "--to", ""],
        ["schedule", "--kubernetes", "--image", ""],
        ["slot", "drop", "--slot", ""],
        ["serve", "--jwt-secret", "x", "--slot", ""],
        ["serve", "--jwt-secret", "x", "--host", ""],
    ],
)
def test_the_text_of_a_variable_that_was_never_set_is_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": "postgresql://127.0.0.1:1/x"})

    assert result.exit_code == 2
    assert f"{arguments[-2]} is empty" in result.output


def test_a_slot_with_a_name_does_not_go_with_a_temporary_one() -> None:
    known = ["--database-url", "postgresql://x", "--jwt-secret", "x"]

    result = CliRunner().invoke(main, ["serve", *known, "--slot", "x", "--temporary-slot"])

    assert result.exit_code == 2
    assert "--temporary-slot" in result.output


def test_a_token_is_signed_with_the_first_secret_that_the_server_is_given() -> None:
    result = CliRunner().invoke(
        main, ["token", "--sub", "ann"], env={"REALTIME_DB_JWT_SECRET": " new\nold "}
    )

    keys = tokens.KeySet(["new"])
    assert tokens.verify(result.output.strip(), keys, time.time()).sub == "ann"


def test_a_default_of_nought_is_shown() -> None:
    result = CliRunner().invoke(main, ["serve", "--help"], terminal_width=200)

    described = result.output.partition("--max-deliveries-per-second")[2].partition("--max-replay")
    assert "default: 0" in described[0]


@pytest.mark.parametrize("command", ["serve", "maintain", "migrate"])
def test_the_help_shows_a_database_url_in_one_piece(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"], terminal_width=78)

    assert re.search(r"postgresql://\S+/database\s", result.output)


def groups(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, *names, name)


@pytest.mark.parametrize("names", groups(main), ids=" ".join)
def test_lists_of_commands_say_whole_sentences(names: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*names, "--help"], terminal_width=78)

    listed = result.output.partition("Commands:\n")[2].splitlines()
    assert listed
    assert [line for line in listed if not re.fullmatch(r"  [a-z].*[^.]\.", line)] == []


# --- as a process -------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> list[str]:
    """The command line in a process of its own, which shares our environment but for this."""
    settings = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *settings, sys.executable, "-m", "realtime_db", *arguments]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["schedule", "--systemd"], ["--help"]], ids=" ".join)
def test_a_full_disk_is_an_error_in_a_sentence(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            command(*arguments, PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    assert finished.stderr == "error: cannot write the output: No space left on device\n"
    assert finished.returncode == 1


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["status"]),
        ("psycopg", ["migrate"]),
        ("joserfc", ["token", "--jwt-secret", "x"]),
        ("rich", ["demo"]),
        ("uvloop", ["dev"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_ctrl_c_during_an_import_ends_with_status_130_and_no_traceback(
    module: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )

    finished = subprocess.run(
        command(*arguments, PYTHONPATH=str(tmp_path), DATABASE_URL="postgresql://127.0.0.1:1/x"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments",
    [["migrate"], ["rollback"], ["doctor"], ["maintain"], ["uninstall", "--yes"], ["slot", "drop"]],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_at_work_ends_with_status_130_and_no_traceback(arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_SECONDS)
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x"
        with subprocess.Popen(
            command(*arguments, DATABASE_URL=url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            connected, _ = silent.accept()
            with connected:
                running.send_signal(signal.SIGINT)
                said = running.communicate(timeout=DEADLINE_SECONDS)

    assert (running.returncode, *said) == (130, "", "")


def test_ctrl_c_that_is_to_be_ignored_is_ignored() -> None:
    script = f"trap '' INT; exec {sys.executable} -c \"$0\""
    program = "from realtime_db import interrupts; import os, signal; interrupts.end_at_once(); "
    program += "os.kill(os.getpid(), signal.SIGINT); print('lives')"

    finished = subprocess.run(
        ["sh", "-c", script, program], capture_output=True, text=True, check=False
    )

    assert finished.stdout == "lives\n"
