"""The keeper: runs what it is asked to until its parent is gone, then leaves nothing behind.

    python -I -S keeper_process.py FOLDER [UID GID]

A process of its own; `keeper` starts it and holds the other end of the pipe. Run as a file and
isolated from every installed package, so it imports nothing but the standard library.

Standard input: one JSON list a line, a command to run; null ends it all. Standard output: the pid
when it has begun (0: it could not) and the status when it has ended. Standard error, also that of
the commands: the log. If there is a UID, the commands run as that account, and only they: the
keeper needs its rights to signal them and to remove what they wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Obey until the end; then stop what runs and remove the folder."""
    folder, *ids = sys.argv[1:]
    uid, gid = map(int, ids) if ids else (None, None)
    child = obey(uid, gid)
    os.close(1)
    if child:
        stop(child)
    remove(folder)


def obey(uid: int | None, gid: int | None) -> subprocess.Popen[bytes] | None:
    """Run commands, one at a time; returns the one that still runs when the parent is gone."""
    parent, alarm, prepare = os.getppid(), alarm_on_signals(), dying_with_us()
    child = None
    while True:
        # The pipe ends with the parent, unless a fork of it has the pipe too: hence the look.
        ready = select.select([0, alarm], [], [], 1)[0]
        if alarm in ready:
            os.read(alarm, 4096)
        if child and child.poll() is not None:
            answer(child.returncode)
            child = None
        if os.getppid() != parent:
            return child
        if 0 not in ready:
            continue
        command = read_order()
        if command is None:
            return child
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                preexec_fn=prepare,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.write(2, f"{error}\n".encode())
        answer(child.pid if child else 0)


def read_order() -> list[str] | None:
    """The next command; None: to end, or the parent is gone."""
    order = os.read(0, 65536)
    while order and not order.endswith(b"\n"):
        order = order + more if (more := os.read(0, 65536)) else b""
    command: list[str] | None = json.loads(order or b"null")
    return command


def answer(number: int) -> None:
    """Tell the parent, if it is still there."""
    with contextlib.suppress(OSError):
        os.write(1, b"%d\n" % number)


def alarm_on_signals() -> int:
    """Survive what a terminal or a service manager sends; returns a pipe that wakes a select."""
    # A handler and not SIG_IGN, which Postgres would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    alarm, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell)
    return alarm


def dying_with_us() -> Callable[[], None] | None:
    """What a child does before it runs its command, should somebody kill the keeper itself."""
    if sys.platform != "linux":
        return None
    libc, keeper = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:  # after setuid, which would undo it
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != keeper:
            os._exit(1)

    return prepare


def stop(child: subprocess.Popen[bytes]) -> None:
    """Fast, immediate, at once. initdb, too, tidies up at the first."""
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 6), (signal.SIGKILL, 5)):
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


def remove(folder: str) -> None:
    """Remove the folder; after a SIGKILL, the rest of Postgres needs a moment to let go of it."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
