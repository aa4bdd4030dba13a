"""0.1.0, written by `make release`: runs the frozen files as they are."""

from realtime_db.install import migrate

revision = "0.1.0"
down_revision = None


def upgrade() -> None:
    migrate.run_frozen("realtime_db--0.1.0.sql")


def downgrade() -> None:
    migrate.refuse_to_remove()
