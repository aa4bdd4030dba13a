"""What `realtime-db serve` is told: one frozen dataclass, from flags and the environment.

Above: the command line, which makes an option of every field, with its help. Units are in the
names. An option `--max-replay` is `REALTIME_DB_MAX_REPLAY` in the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

LARGEST: Final = 2_147_483_647
"""Of a setting: what every counter below us takes."""


MAX_SLOT_LAG_BYTES: Final = 10_737_418_240
"""10 GB of WAL: hours of it on most servers, and less than most disks have to spare."""


class Range(NamedTuple):
    """What a number may be, both ends included."""

    least: float
    most: float


_ANY: Final = Range(0, LARGEST)
_SOME: Final = Range(1, LARGEST)
_PORT: Final = Range(0, 65_535)
# Beyond it, Postgres does not take a timeout of that many milliseconds.
_SECONDS: Final = Range(0.001, LARGEST // 1000)


def _setting(
    help_text: str, default: Any, within: Range | None = None, choices: tuple[str, ...] = ()
) -> Any:
    return field(
        default=default, metadata={"help": help_text, "within": within, "choices": choices}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server; the help of each field says what it is."""

    database_url: str
    host: str = _setting("Address to listen on; 0.0.0.0 for all.", "127.0.0.1")
    port: int = _setting("Port to listen on; 0 for a free one.", 4000, _PORT)
    ops_host: str = _setting("Address of --ops-port.", "127.0.0.1")
    ops_port: int | None = _setting(
        "A second port, for those who run the server: only there are /metrics and the inspector.",
        None,
        _PORT,
    )
    jwt_secrets: tuple[str, ...] = _setting(
        "Shared secret of tokens; may be given several times, to rotate.", ()
    )
    jwt_secrets_file: Path | None = _setting(
        "File with shared secrets, one a line; read again on SIGHUP.", None
    )
    jwks: str | None = _setting("Path or URL of a JWKS, for RS, ES and EdDSA tokens.", None)
    private_only: bool = _setting("Refuse public channels and public broadcasts.", False)
    max_payload_bytes: int = _setting("Of one broadcast.", 3_000_500, _SOME)
    max_frame_bytes: int = _setting(
        "Of one WebSocket message; a longer one ends it.", 5_000_000, _SOME
    )
    max_body_bytes: int = _setting("Of one HTTP request.", 8_000_000, _SOME)
    max_channels_per_connection: int = _setting("A further join is refused.", 1_000, _SOME)
    max_connections: int = _setting("A further handshake is answered 429.", 100_000, _SOME)
    max_joins_per_second: float = _setting(
        "On average; over it a join is refused and its connection closed. 0 is no limit.",
        10_000.0,
        _ANY,
    )
    max_messages_per_second: float = _setting(
        "From one client, on average; over it the channel is closed. 0 is no limit.",
        10_000.0,
        _ANY,
    )
    max_bytes_per_second: float = _setting(
        "Of payloads from one client, likewise. 0 is no limit.", 100_000_000.0, _ANY
    )
    max_deliveries_per_second: float = _setting(
        "Messages to one channel, likewise. 0 is no limit.", 0.0, _ANY
    )
    max_replay: int = _setting("Messages in one replay.", 25, _SOME)
    recheck_seconds: float = _setting(
        "The policies are asked again at least so often for who is on a private channel. 0: only "
        "at a new token, and when realtime.revoke() is called.",
        300.0,
        _ANY,
    )
    max_write_buffer_bytes: int = _setting(
        "A client that is further behind is thrown out.", 8_388_608, _SOME
    )
    idle_seconds: float = _setting(
        "A client that says nothing for so long is closed.", 60.0, _SECONDS
    )
    no_channel_seconds: float = _setting("A client without a channel is closed.", 600.0, _SECONDS)
    source: str = _setting(
        "Where messages come from: the WAL, or the table, which is asked again and again; auto is "
        "the WAL if this login may read it.",
        "auto",
        choices=("wal", "poll", "auto"),
    )
    poll_seconds: float = _setting(
        "With --source poll, the pause between two questions.", 0.25, _SECONDS
    )
    slot: str | None = _setting(
        "Name of the replication slot, if it is not realtime_db_ and the database's oid.", None
    )
    temporary_slot: bool = _setting(
        "A slot that goes with the server, and no standbys: several servers may follow at once.",
        False,
    )
    max_slot_lag_bytes: int = _setting(
        "WAL that is held back for the slot and was not delivered; over it the slot is made anew, "
        "and what it had not brought comes from the table. 0 is no limit.",
        MAX_SLOT_LAG_BYTES,
        Range(0, 2**62),
    )
    pool_size: int = _setting("Connections that ask policies and read stored messages.", 10, _SOME)
    statement_timeout_seconds: float = _setting("Of each of their questions.", 5.0, _SECONDS)
    maintain: bool = _setting("Make and drop partitions, every hour.", True)
    metrics: bool = _setting("Serve /metrics, for Prometheus.", True)
    inspector: bool = _setting("Serve a page at / that shows messages as they arrive.", True)
    log_level: str = _setting(
        "The least that is logged.", "info", choices=("debug", "info", "warning", "error")
    )
    log_json: bool = _setting("Log one JSON object a line, with the protocol's error codes.", False)
    tls_certificate: Path | None = _setting("Certificate chain in PEM.", None)
    tls_key: Path | None = _setting("Its private key in PEM.", None)
