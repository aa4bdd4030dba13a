"""What the command line does with errors and with what is not installed."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from realtime_db.cli import main


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith(("joserfc", "realtime_db.auth"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "joserfc", None)

    result = CliRunner().invoke(main, ["token", "--jwt-secret", "secret"])

    assert result.exit_code == 1
    assert "needs the package joserfc" in result.output
    assert "pip install 'realtime-db[embedded,server]'" in result.output


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
