"""The disk of Postgres is full."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults.cluster import Cluster
from tests.faults.ledger import Ledger, Writer
from tests.faults.served import Server

DISK = "160m"
SETTINGS = {"min_wal_size": "32MB", "max_wal_size": "48MB", "max_slot_wal_keep_size": "48MB"}


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A small one."""
    if os.geteuid() != 0:
        pytest.skip("only root makes file systems")
    folder = Path(tempfile.mkdtemp(prefix="faults-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "none", folder], check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("this machine lets nobody make file systems")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


@pytest.fixture(scope="module")
def cluster(disk: Path) -> Iterator[Cluster]:
    """A Postgres on it."""
    started = Cluster(SETTINGS, disk / "data")
    yield started
    started.close()


def test_a_full_disk_loses_nothing_of_what_was_committed(
    cluster: Cluster,
    server: Server,
    ledger: Ledger,
    disk: Path,
    database_url: str,
    rounds: Callable[[int], Iterator[int]],
) -> None:
    ledger.follow(server.port)
    for _ in rounds(1):
        with ledger.writing() as writers:
            ledger.arriving(20)
            ballast = _fill(disk)
            try:
                _wait_until_all_fail(writers)
                _use_up_the_wal(cluster)
            finally:
                ballast.unlink()
            _comes_back(cluster, database_url)
            ledger.arriving(20)
        ledger.settle()


def _fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with (
        ballast.open("wb", buffering=0) as file,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        while True:
            file.write(bytes(65_536))
    return ballast


def _wait_until_all_fail(writers: list[Writer]) -> None:
    deadline = time.monotonic() + 60
    before = [writer.lost for writer in writers]
    # Pages that are not full yet have to be used up first.
    while not all(writer.lost > had + 5 for writer, had in zip(writers, before, strict=True)):
        assert time.monotonic() < deadline, "the disk is not full"
        time.sleep(0.05)


def _use_up_the_wal(cluster: Cluster) -> None:
    """Until now statements fail; without room for its WAL, Postgres itself ends."""
    with pytest.raises(psycopg.OperationalError), cluster.admin() as admin:
        for _ in range(200):
            admin.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 1000000))")


def _comes_back(cluster: Cluster, url: str) -> None:
    """By itself, or as a service manager does it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                connection.execute("select realtime.send('{}', 'e', 'back')")
                return
        except psycopg.Error:
            assert time.monotonic() < deadline, "Postgres does not come back"
            if not cluster.is_running:
                cluster.restart()
            time.sleep(0.1)
