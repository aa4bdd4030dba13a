"""0.4.0, written by `make release`: runs the frozen files as they are."""

from realtime_db.install import migrate

revision = "0.4.0"
down_revision = "0.3.0"


def upgrade() -> None:
    migrate.run_frozen("realtime_db--0.3.0--0.4.0.sql")


def downgrade() -> None:
    migrate.run_frozen("realtime_db--0.4.0--0.3.0.sql")
