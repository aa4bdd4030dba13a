"""Our end of the pipe to the process that keeps Postgres; the other end is `keeper_process`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import subprocess
import sys
from pathlib import Path

from realtime_db.embedded import folders, keeper_process
from realtime_db.embedded.account import Account, bare_environment
from realtime_db.errors import EmbeddedPostgresError


class Keeper:
    """Runs programs that end when we do, and removes the folder after them.

    Synchronous below, so that it belongs to no event loop: a test fixture may start the server in
    one loop and stop it in another.

    Args:
        folder: the private one, removed at the end.
        account: whom the programs run as; None: as we do.
    """

    def __init__(self, folder: Path, account: Account | None) -> None:
        self.folder = folder
        self.account = account
        self.log_file = folders.log_file_in(folder)
        ids = (account.uid, account.gid) if account else ()
        with folders.open_log(folder) as log:
            self._process = subprocess.Popen(
                # Isolated: it neither needs nor sees the packages around us.
                [sys.executable, "-I", "-S", keeper_process.__file__, folder, *map(str, ids)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd="/",
                env=bare_environment(),
                start_new_session=True,
            )
        assert self._process.stdin
        assert self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout

    @property
    def running(self) -> bool:
        """Whether the program that was begun last still runs."""
        # All that the keeper ever says unasked is that the program ended.
        return not select.select([self._answers], [], [], 0)[0]

    async def begin(self, command: list[str]) -> int:
        """Run a program, as the account; one at a time. Returns its pid."""
        self._order(command)
        pid = await self._answer()
        if not pid:
            raise self.failure(f"{command[0]} could not be started")
        return pid

    async def finished(self) -> int:
        """Wait until the program ends; returns its status."""
        return await self._answer()

    async def close(self) -> None:
        """Stop what runs and remove the folder; returns when both are gone."""
        # In a thread, so that it goes on if we are cancelled; asyncio.run waits for it.
        await asyncio.to_thread(self._close)

    def log_tail(self) -> str:
        """The end of what the programs said."""
        return "\n".join(folders.read(self.log_file).splitlines()[-20:])

    def failure(self, message: str) -> EmbeddedPostgresError:
        """An error that shows the end of the log."""
        return EmbeddedPostgresError(f"{message}. The end of its log:\n{self.log_tail()}")

    def _order(self, command: list[str] | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # then the answer is an end of file
            self._orders.write(json.dumps(command).encode() + b"\n")

    async def _answer(self) -> int:
        line: bytes = await asyncio.to_thread(self._answers.readline)
        if not line.endswith(b"\n"):
            raise self.failure("The process that keeps Postgres has ended")
        return int(line)

    def _close(self) -> None:
        self._order(None)  # closing is not enough if a fork of us holds the pipe too
        self._orders.close()
        self._process.wait()
        self._answers.close()
