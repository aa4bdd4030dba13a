"""`realtime-db serve`, started as a user starts it and ended as nobody should."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from realtime_db.auth import tokens
from tests.faults import ports

DEADLINE_SECONDS = 60.0
SOURCES = pytest.mark.parametrize("source", ["wal", "poll"])
SECRET = secrets.token_urlsafe(32)


def token() -> str:
    """Of a user who may read everything."""
    return tokens.mint(SECRET, role="authenticated", sub="ann", now=time.time(), ttl_seconds=86_400)


class Server:
    """A server, which keeps its port when it is started again.

    Attributes:
        port: of 127.0.0.1.
        log: the lines of the run that goes on, or was the last.
    """

    def __init__(self, database_url: str, *options: str) -> None:
        self._database_url = database_url
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._news = threading.Condition()
        self.log: list[str] = []
        self._reserved = ports.reserve()
        self.port = int(self._reserved.getsockname()[1])

    def start(self) -> None:
        """Starts it; returns when it listens."""
        self.begin()
        self.says("listening on")

    def begin(self) -> None:
        """Starts it, and does not wait."""
        self.log = []
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-X", "faulthandler"),
                *("-m", "realtime_db", "serve", "--port", str(self.port), *self._options),
            ],
            env={
                **os.environ,
                "DATABASE_URL": self._database_url,
                "REALTIME_DB_JWT_SECRET": SECRET,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(
            target=self._read, args=(self._process, self.log), daemon=True
        )
        self._reader.start()

    def _read(self, process: subprocess.Popen[str], log: list[str]) -> None:
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                with self._news:
                    log.append(line)
                    self._news.notify_all()
        with self._news:
            log.append("(the server ended)\n")
            self._news.notify_all()

    def says(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Waits for a line of the log, the `count`th with this pattern."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._news:
            while True:
                found = [match for line in self.log if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                assert self.log[-1:] != ["(the server ended)\n"], "".join(self.log)
                left = deadline - time.monotonic()
                assert self._news.wait(left), f"no {pattern!r}:\n{''.join(self.log)}"

    def leads(self, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Waits until it is ready: it follows its source, and takes clients."""
        deadline = time.monotonic() + deadline_seconds
        while not self.is_ready():
            assert time.monotonic() < deadline, f"it is not ready:\n{''.join(self.log)}"
            time.sleep(0.05)  # an endpoint to poll is all there is

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """The status and body of an answer; 0 if there is none."""
        try:
            url = f"http://127.0.0.1:{self.port}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            # A server that is busy may not answer at once.
            text = self.get("/metrics")[1]
            if match := re.search(rf"^{name} (\S+)$", text, re.MULTILINE):
                return float(match[1])
            assert time.monotonic() < deadline, f"no metric {name}"

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        assert self._process
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`."""
        self.signal(signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """SIGTERM, if it still runs; what it said must be fit to read."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._end()
        finally:
            print(f"The log of the server of port {self.port}:\n", *self.log[-200:], sep="")
        assert "Traceback" not in "".join(self.log), "".join(self.log)

    def close(self) -> None:
        """Stops it, and lets go of its port."""
        try:
            self.stop()
        finally:
            self._reserved.close()

    def _end(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # it says where it hangs
            self._process.wait(DEADLINE_SECONDS)
            raise
        finally:
            self._process.kill()  # harmless if it has ended
            self._process.wait()
            self._reader.join()


def send(server: Server, topic: str, payload: object) -> int:
    """A broadcast over REST; the status of the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/api/broadcast",
        json.dumps({"messages": [{"topic": topic, "event": "e", "payload": payload}]}).encode(),
        {"authorization": f"Bearer {token()}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
