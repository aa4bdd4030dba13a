"""What is compared: a server of each side, runs in turns, and the lines of the table.

Above: `bench_server` and the cases. Below: `programs` and `database`. The machine may be busy with
other things, which moves the clock by a factor of two and processor time by a tenth: so what counts
is processor time of the server, and of that the ratio of two runs that were next to each other.
"""

from __future__ import annotations

import shutil
import subprocess
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from harness import Spread, spread

from server.database import Database
from server.programs import (
    HERE,
    Cores,
    Load,
    Loader,
    Ours,
    Server,
    Unavailable,
    free_port,
    running,
)

Begin = Callable[[], AbstractContextManager[Server]]
"""Begins a server of a side."""

OURS = "ours"
LIMIT = "C"
PEERS = ("websockets", "uvicorn", "ws")
_PACKAGES = ("websockets", "uvloop", "uvicorn[standard]", "starlette")


@dataclass(frozen=True, slots=True)
class Bench:
    """What the cases measure with.

    Attributes:
        cores: which are whose.
        loader: the load generator.
        database: the one behind our server.
        ours: our server.
        folder: for programs and files.
        rounds: how often each side has its turn.
        many: whether this machine allows 10,000 connections.
        peers: what else to compare with, by the names of `PEERS`.
    """

    cores: Cores
    loader: Loader
    database: Database
    ours: Ours
    folder: Path
    rounds: int
    many: bool
    peers: Mapping[str, Begin] = field(default_factory=dict)

    def begin_ours(self, *options: str) -> AbstractContextManager[Server]:
        """Ours, with a client free to say as much as it can."""
        return self.ours.serve("--max-messages-per-second", "0", *options)

    @contextmanager
    def begin_limit(self, *, coalesce: bool = False) -> Iterator[Server]:
        """The fan-out in C; coalescing what is pending only if asked."""
        port = free_port()
        command = [str(self.folder / "cfan"), str(port), str(int(coalesce))]
        with running(command, self.cores, port=port) as (port, pid):
            yield Server(port, pid)

    def token_file(self, count: int) -> Path:
        """A file with as many tokens, each of another user."""
        file = self.folder / f"tokens-{count}"
        if not file.exists():
            file.write_text("".join(f"{self.ours.token(f'user{n}')}\n" for n in range(count)))
        return file

    def take_turns(self, turns: Mapping[str, Callable[[], Load]]) -> Turns:
        """Runs the sides in turn, each round beginning with another one."""
        names = list(turns)
        loads: dict[str, list[Load]] = {name: [] for name in names}
        for number in range(self.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                loads[name].append(turns[name]())
        return Turns(loads)


@dataclass(frozen=True, slots=True)
class Turns:
    """What came of each side, turn by turn."""

    loads: Mapping[str, list[Load]]

    def all(self, side: str, figure: str) -> list[float]:
        """A figure of all turns of a side."""
        return [getattr(load, figure) for load in self.loads[side]]

    def of(self, side: str, figure: str) -> float:
        """Its median."""
        return median(self.all(side, figure))

    def ratio(self, above: str, below: str, figure: str) -> Spread:
        """The ratios of two sides, turn by turn."""
        pairs = zip(self.all(above, figure), self.all(below, figure), strict=True)
        return spread([a / b for a, b in pairs if b])

    def per_second(self, side: str, figure: str) -> Spread:
        """How many of what costs so many microseconds one core does in a second."""
        return spread([1e6 / value for value in self.all(side, figure)])

    def cells(self, cell: Callable[[Turns, str], str]) -> dict[str, str]:
        """A cell for each side that took part."""
        return {side: cell(self, side) for side in self.loads}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured.
        got: what is compared with `must`.
        must: the figure that is demanded; empty if none is.
        reached: whether it was; None if nothing is demanded.
        sides: absolute figures of each side.
    """

    what: str
    got: str
    must: str = ""
    reached: bool | None = None
    sides: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """As many as there are headings."""
        reached = {True: "yes", False: "NO", None: ""}[self.reached]
        sides = [self.sides.get(side, "") for side in (OURS, LIMIT, *PEERS)]
        return [self.what, self.got, self.must, reached, *sides]


HEADINGS = ("what", "result", "must", "reached", OURS, LIMIT, *PEERS)


def install_peers(folder: Path, cores: Cores) -> tuple[dict[str, Begin], list[str]]:
    """Installs the peers into a folder.

    Returns:
        How to begin each of those that could be installed; and for each, its version or what
        it lacks.
    """
    peers: dict[str, Begin] = {}
    notes = []
    try:
        python, versions = _python_peers(folder)
        for name, file in (("websockets", "websockets_broadcast"), ("uvicorn", "starlette_app")):
            script = HERE / "peers" / f"{file}.py"
            peers[name] = _beginner([str(python), str(script)], cores)
        notes += versions
    except Unavailable as error:
        notes.append(str(error))
    try:
        command, version = _node_peer(folder)
        peers["ws"] = _beginner(command, cores)
        notes.append(version)
    except Unavailable as error:
        notes.append(str(error))
    return peers, notes


def _beginner(command: list[str], cores: Cores) -> Begin:
    @contextmanager
    def begin() -> Iterator[Server]:
        port = free_port()
        with running([*command, str(port)], cores, port=port) as (port, pid):
            yield Server(port, pid)

    return begin


def _python_peers(folder: Path) -> tuple[Path, list[str]]:
    home = folder / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", *_PACKAGES], "the packages of the peers in Python")
    names = {package.partition("[")[0] for package in _PACKAGES}
    frozen = _run([*pip, "freeze"], "pip").split()
    return python, [
        line.replace("==", " ") for line in frozen if line.partition("==")[0].lower() in names
    ]


def _node_peer(folder: Path) -> tuple[list[str], str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable("no node or no npm on PATH, so no `ws`")
    home = folder / "node"
    home.mkdir()
    shutil.copy(HERE / "peers" / "ws.mjs", home)
    (home / "package.json").write_text("{}")
    _run([npm, "install", "--silent", "--prefix", str(home), "ws"], "the package ws")
    version = _run(
        [
            node,
            "-p",
            "require(process.argv[1]).version",
            str(home / "node_modules/ws/package.json"),
        ],
        "node",
    )
    return [
        node,
        str(home / "ws.mjs"),
    ], f"ws {version.strip()} on node {_run([node, '-v'], 'node')}"


def _run(command: list[str], what: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"cannot install {what}: {result.stderr.strip()[-300:]}")
    return result.stdout.strip()


@contextmanager
def everybody(bench: Bench, *, limit: bool = True) -> Iterator[dict[str, Server]]:
    """Servers of all sides, one process each; who has no turn is idle."""
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(bench.begin_ours())}
        if limit:
            servers[LIMIT] = stack.enter_context(bench.begin_limit())
        for name, begin in bench.peers.items():
            servers[name] = stack.enter_context(begin())
        yield servers
