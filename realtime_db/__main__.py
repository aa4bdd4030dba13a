"""The command `realtime-db`, and `python -m realtime_db`."""

from realtime_db import interrupts


def main() -> None:
    """Runs the command line; Ctrl-C is heeded before the imports, which take a while."""
    interrupts.end_at_once()
    from realtime_db.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
