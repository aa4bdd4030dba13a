"""`python -m realtime_db` is the `realtime-db` command."""

from realtime_db.cli import main

if __name__ == "__main__":
    main()
