"""`make install` without what it needs."""

import shutil
import subprocess

import pytest

from realtime_db import resources


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_install_without_pgxs_says_what_to_give() -> None:
    result = subprocess.run(
        ["make", "install", "PG_CONFIG=/nope"],
        cwd=resources.migrations().parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert "/nope names no PGXS" in result.stderr
    assert "give PG_CONFIG=/path/to/its/pg_config" in result.stderr
