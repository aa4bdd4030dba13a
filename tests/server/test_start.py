"""What `realtime-db serve` needs to start: keys, an address, and certificates for TLS."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from websockets.sync.client import connect

from tests.server.certificates import Certificate, TlsFront, self_signed
from tests.server.conftest import DEADLINE_SECONDS, JWT_SECRET, Server, token


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return self_signed(tmp_path, "certificate")


def fails(database_url: str, *options: str, secret: str = JWT_SECRET) -> str:
    """What the command says when it cannot start."""
    finished = subprocess.run(
        [sys.executable, "-m", "realtime_db", "serve", *options],
        env={**os.environ, "DATABASE_URL": database_url, "REALTIME_DB_JWT_SECRET": secret},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    return finished.stderr


def test_https_is_served_with_a_certificate(
    start_server: Callable[..., Server], certificate: Certificate
) -> None:
    server = start_server(
        "--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1])
    )
    context = ssl.create_default_context(cafile=str(certificate[0]))

    connection = http.client.HTTPSConnection(
        "127.0.0.1", server.port, context=context, timeout=DEADLINE_SECONDS
    )
    connection.request("GET", "/healthcheck")

    assert connection.getresponse().read() == b"ok"
    connection.close()


def test_a_taken_port_is_named(served_database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        said = fails(served_database_url, "--port", str(port))

    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--port" in said


def test_two_addresses_of_one_server_are_two(served_database_url: str) -> None:
    for _ in range(3):  # somebody else may take it in between
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        said = fails(served_database_url, "--port", port, "--ops-port", port)
        if "--ops-port" in said:
            break

    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--ops-port" in said


def test_a_key_without_a_certificate_is_refused(
    served_database_url: str, certificate: Certificate
) -> None:
    assert "without a certificate" in fails(
        served_database_url, "--port", "0", "--tls-key", str(certificate[1])
    )


def test_a_certificate_that_is_none_is_refused(served_database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    path.write_text("no certificate")

    said = fails(served_database_url, "--port", "0", "--tls-certificate", str(path))

    assert f"{path} cannot be used" in said


def test_without_any_key_it_says_what_to_give(served_database_url: str) -> None:
    assert "--jwt-secret" in fails(served_database_url, "--port", "0", secret="")


def test_wss_is_served_and_nothing_else_on_that_port(
    start_server: Callable[..., Server], certificate: Certificate
) -> None:
    server = start_server(
        "--tls-certificate", str(certificate.path), "--tls-key", str(certificate.key)
    )
    context = ssl.create_default_context(cafile=str(certificate.path))

    url = f"wss://127.0.0.1:{server.port}/socket/websocket?apikey={token()}"
    with connect(url, ssl=context) as client:
        client.send(
            json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "1"})
        )
        assert json.loads(client.recv(DEADLINE_SECONDS))["ref"] == "1"

    # Plain HTTP gets no answer of HTTP, and a client that trusts nobody no connection.
    assert not server.exchange(b"GET /healthcheck HTTP/1.1\r\n\r\n").startswith(b"HTTP")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(url, ssl=ssl.create_default_context())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_old_versions_of_tls_are_refused(
    start_server: Callable[..., Server], certificate: Certificate
) -> None:
    server = start_server(
        "--tls-certificate", str(certificate.path), "--tls-key", str(certificate.key)
    )
    context = ssl.create_default_context(cafile=str(certificate.path))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1

    with server.open() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


# TLS to Postgres


@pytest.fixture
def behind_tls() -> Iterator[Callable[..., tuple[str, TlsFront]]]:
    """`behind_tls(database_url, certificate)` -> its URL there, without `sslrootcert`."""
    fronts: list[TlsFront] = []

    def start(database_url: str, certificate: Certificate) -> tuple[str, TlsFront]:
        known: Any = conninfo_to_dict(database_url)
        front = TlsFront(known.get("host", "127.0.0.1"), int(known["port"]), certificate)
        fronts.append(front)
        url = make_conninfo(database_url, host="127.0.0.1", port=front.port, sslmode="verify-full")
        return url, front

    yield start
    for front in fronts:
        front.close()


def test_all_connections_to_postgres_may_be_verified(
    start_server: Callable[..., Server],
    follow: Callable[..., Any],
    behind_tls: Callable[..., tuple[str, TlsFront]],
    own_database_url: str,
    certificate: Certificate,
) -> None:
    url, front = behind_tls(own_database_url, certificate)

    server = start_server(database_url=make_conninfo(url, sslrootcert=str(certificate.path)))

    server.said("following the WAL")
    follow("open:verified", private=True, to=server)  # asks the policies
    server.ready()
    server.said("maintenance: partitions")
    assert front.served >= 4


@pytest.mark.parametrize(
    ("address", "trusted", "cause"),
    [
        ("127.0.0.1", "another", "certificate verify failed"),
        ("127.0.0.9", "certificate", 'certificate for "127.0.0.9" .*does not match .*127.0.0.1'),
    ],
)
def test_a_postgres_that_is_another_one_gets_nothing(
    start_server: Callable[..., Server],
    open_events: Callable[..., Any],
    behind_tls: Callable[..., tuple[str, TlsFront]],
    served_database_url: str,
    tmp_path: Path,
    address: str,
    trusted: str,
    cause: str,
) -> None:
    shown = self_signed(tmp_path, "certificate", address)
    self_signed(tmp_path, "another")
    url, _ = behind_tls(served_database_url, shown)
    trusted_path = str(tmp_path / f"{trusted}.pem")

    server = start_server(
        "--statement-timeout-seconds", "2",
        database_url=make_conninfo(url, sslrootcert=trusted_path),
    )  # fmt: skip

    said = server.said(f"the database is not followed: (.*{cause}.*)")[1]
    assert "Check --database-url" in said
    server.said(f"maintenance: .*{cause}")
    server.said(f"error connecting in .*{cause}")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not re.search(cause, (ready := server.request("GET", "/readyz")).json["database"]):
        assert time.monotonic() < deadline, ready
    assert (ready.status, ready.json["ready"]) == (503, False)
    refused = open_events(f"topic=open:1&private=true&apikey={token()}", to=server)
    assert refused.status != 200
