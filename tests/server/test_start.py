"""What `realtime-db serve` needs to start: keys, an address, and certificates for TLS."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.server.conftest import DEADLINE_SECONDS, JWT_SECRET, Server


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


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
    start_server: Callable[..., Server], certificate: tuple[Path, Path]
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


def test_a_key_without_a_certificate_is_refused(
    served_database_url: str, certificate: tuple[Path, Path]
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
