"""`make fuzz`: lets the fuzz targets run, each for a while, guided by what it has reached.

    python -m tests.fuzz.run --seconds 60 frames join      two targets, a minute each
    python -m tests.fuzz.run --minimise                    keeps what is worth keeping
    python -m tests.fuzz.run --input crash-0a1b2c frames   one input once more

What an input reaches for the first time makes it part of the corpus, `corpus/<target>/`, with which
the next run begins, and which the tests run too. An input that fails is written to `failures/`.
Needs atheris, which exists for Linux and macOS.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.words import WORDS

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FAILURES = HERE / "failures"
MAX_INPUT_BYTES = {"client": 2_500, "connection": 3_000, "cursor": 200, "session": 2_500}
INPUT_BYTES = 1_200


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", choices=[*WORDS, []], help="all by default")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default: 60)")
    parser.add_argument("--minimise", action="store_true", help="only make the corpus small")
    parser.add_argument("--input", type=Path, help="a file to run once")
    given = parser.parse_args()
    FAILURES.mkdir(exist_ok=True)
    failed = []
    for target in given.targets or WORDS:
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        if given.input is not None:
            status = _fuzz(target, [str(given.input)])
        elif given.minimise:
            status = _minimise(target)
        else:
            status = _run(target, given.seconds)
        if status:
            failed.append(target)
    if failed:
        print(f"failed: {', '.join(failed)}; see {FAILURES}")
    return 1 if failed else 0


def _run(target: str, seconds: int) -> int:
    before = _files(target)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS[target]))
        log = Path(folder) / "log"
        status = _fuzz(
            target,
            [
                f"-dict={words}",
                f"-max_total_time={seconds}",
                f"-max_len={MAX_INPUT_BYTES.get(target, INPUT_BYTES)}",
                "-timeout=10",
                "-rss_limit_mb=2000",
                "-print_final_stats=1",
                "-report_slow_units=5",
                f"-artifact_prefix={FAILURES}/{target}-",
                str(CORPUS / target),
            ],
            log,
        )
        text = log.read_text(errors="replace")
    found = re.search(r"stat::number_of_executed_units: (\d+)", text)
    runs = int(found[1]) if found else 0
    reached = re.findall(r" cov: (\d+) ft: (\d+)", text)
    edges = reached[-1][0] if reached else "?"
    print(
        f"{target:12} {runs:9} inputs in {time.monotonic() - begun:4.0f} s, {edges} branches,"
        f" corpus {before} -> {_files(target)}" + (", FAILED" if status else ""),
        flush=True,
    )
    if status:
        print(text[-4_000:])
    return status


def _minimise(target: str) -> int:
    """Keeps the smallest inputs that reach all that the corpus reaches."""
    old = CORPUS / target
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "new"
        new.mkdir()
        before = _files(target)
        status = _fuzz(target, ["-merge=1", str(new), str(old)], Path(folder) / "log")
        if status or not any(new.iterdir()):
            print((Path(folder) / "log").read_text(errors="replace")[-4_000:])
            return status or 1
        for path in old.iterdir():
            if not (new / path.name).exists():
                path.unlink()
        shutil.copytree(new, old, dirs_exist_ok=True)
        print(f"{target:12} corpus {before} -> {_files(target)}", flush=True)
    return 0


def _fuzz(target: str, options: list[str], log: Path | None = None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        # To minimise, the fuzzer starts itself again, by this name.
        program = Path(folder) / "one"
        command = shlex.join([sys.executable, "-m", "tests.fuzz.one", target, str(program)])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o700)
        with (log or Path(folder) / "log").open("wb") as output:
            return subprocess.run(
                [program, *options],
                check=False,
                stdout=output if log else None,
                stderr=subprocess.STDOUT if log else None,
            ).returncode


def _files(target: str) -> int:
    return sum(1 for _ in (CORPUS / target).iterdir())


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
