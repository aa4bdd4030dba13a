"""What `realtime-db serve` is told: one frozen dataclass, from flags and the environment.

Above: the command line, which makes an option of every field, with its help. Units are in the
names. An option `--max-replay` is `REALTIME_DB_MAX_REPLAY` in the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _setting(help_text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server; the help of each field says what it is."""

    database_url: str
    host: str = _setting("Address to listen on; 0.0.0.0 for all.", "127.0.0.1")
    port: int = _setting("Port to listen on; 0 for a free one.", 4000)
    jwt_secrets: tuple[str, ...] = _setting(
        "Shared secret of tokens; may be given several times, to rotate.", ()
    )
    jwt_secrets_file: Path | None = _setting(
        "File with shared secrets, one a line; read again on SIGHUP.", None
    )
    jwks: str | None = _setting("Path or URL of a JWKS, for RS, ES and EdDSA tokens.", None)
    private_only: bool = _setting("Refuse public channels.", False)
    max_payload_bytes: int = _setting("Of one broadcast.", 3_000_500)
    max_frame_bytes: int = _setting("Of one WebSocket message; a longer one ends it.", 5_000_000)
    max_body_bytes: int = _setting("Of one HTTP request.", 8_000_000)
    max_channels_per_connection: int = _setting("A further join is refused.", 1_000)
    max_connections: int = _setting("A further handshake is answered 429.", 100_000)
    max_joins_per_second: float = _setting(
        "On average; over it a join is refused and its connection closed. 0 is no limit.", 10_000.0
    )
    max_messages_per_second: float = _setting(
        "Of one client, on average; over it the channel is closed. 0 is no limit.", 10_000.0
    )
    max_replay: int = _setting("Messages in one replay.", 25)
    max_write_buffer_bytes: int = _setting(
        "A client that is further behind is thrown out.", 8_388_608
    )
    idle_seconds: float = _setting("A client that says nothing for so long is closed.", 60.0)
    no_channel_seconds: float = _setting("A client without a channel is closed.", 600.0)
    pool_size: int = _setting("Connections that ask policies and read stored messages.", 10)
    statement_timeout_seconds: float = _setting("Of each of their questions.", 5.0)
    maintain: bool = _setting("Make and drop partitions, every hour.", True)
    inspector: bool = _setting("Serve a page at / that shows messages as they arrive.", True)
    log_json: bool = _setting("Log one JSON object a line, with the protocol's error codes.", False)
    tls_certificate: Path | None = _setting("Certificate chain in PEM.", None)
    tls_key: Path | None = _setting("Its private key in PEM.", None)
