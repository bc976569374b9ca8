"""The demo's folder (var/demo), its lock, and the environment of the demo's processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from config.demo.report import make_maildir

BASE_DIR = Path(__file__).resolve().parents[2]

# What a run leaves behind, and the next one removes. Nothing else in the folder is touched.
LEFT_BEHIND = (
    "pennypost.sqlite3",
    "pennypost.sqlite3-wal",
    "pennypost.sqlite3-shm",
    "readers.csv",
    "secret-key",
    "smtp-server.jsonl",
    "bounces",
    "log",
    "rehearsal",
    "static",
    "uploads",
)

# All that the processes inherit from the person's shell. Nothing that config/settings.py reads is
# among it: a DATABASE_URL or SMTP_HOST of a real installation must not lead the demo there.
INHERITED = (
    "PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8",
)  # fmt: skip


def shown(path: Path) -> Path:
    """A path as it is printed: within this project without the project's own folder."""
    return path.relative_to(BASE_DIR) if path.is_relative_to(BASE_DIR) else path


class FolderInUseError(Exception):
    """Another demo lives in the folder. The text is for the person at the terminal."""


@dataclass
class Folder:
    """The demo's own folder. Hold it (``with``) before anything in it is touched."""

    path: Path
    _lock: TextIO | None = field(default=None, init=False)

    @classmethod
    def usual(cls) -> Folder:
        """demo/ in Pennypost's own folder for data: PENNYPOST_VAR, or var/ of this project."""
        return cls(Path(os.environ.get("PENNYPOST_VAR", BASE_DIR / "var")).resolve() / "demo")

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def readers(self) -> Path:
        return self.path / "readers.csv"

    @property
    def bounces(self) -> Path:
        return self.path / "bounces"

    @property
    def smtp_log(self) -> Path:
        return self.path / "smtp-server.jsonl"

    def __enter__(self) -> Folder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = self._message()
            self._lock.close()
            raise FolderInUseError(message) from None
        self._lock.truncate(0)
        self.note(os.getpid(), "demo")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        self._lock.close()

    @property
    def lock_descriptor(self) -> int:
        assert self._lock is not None
        return self._lock.fileno()

    def note(self, pid: int, name: str) -> None:
        """Writes into the lock who lives here; children inherit the lock itself."""
        assert self._lock is not None
        self._lock.write(f"{pid} {name}\n")
        self._lock.flush()

    def _message(self) -> str:
        """Who holds the lock, and what the person can do."""
        assert self._lock is not None
        self._lock.seek(0)
        alive = {}
        for line in self._lock.read().splitlines():
            pid, _, name = line.partition(" ")
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid), 0)
                alive[name] = f"{name} (process {pid})"
        way_out = (
            "End it with Ctrl-C in its terminal"
            if "demo" in alive
            else "It was killed and left these processes behind: end them"
        )
        return (
            f"Another demo is running in {shown(self.path)}: {', '.join(alive.values())}.\n"
            f"{way_out}, or give this one a folder of its own: PENNYPOST_VAR=/tmp/mine make demo"
        )

    def make_fresh(self) -> None:
        """Removes what the last run left behind and makes the folders of this one."""
        for name in LEFT_BEHIND:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.log.mkdir()
        (self.path / "static").mkdir()  # whitenoise warns when it is missing
        make_maildir(self.bounces)

    def environment(
        self,
        web_port: int,
        smtp_port: int,
        mailbox: Mapping[str, Any],
        provider: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """The environment of all processes of this run; ``mailbox`` is their bounce mailbox. Makes
        the run's secret key."""
        secret_key = secrets.token_urlsafe(48)
        key_file = self.path / "secret-key"
        key_file.touch(mode=0o600)
        key_file.write_text(secret_key + "\n", encoding="ascii")
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        by_graph = {"DEMO_PROVIDER": json.dumps(provider)} if provider else {}
        return inherited | {
            "DJANGO_SETTINGS_MODULE": "config.demo.settings",
            "PENNYPOST_VAR": str(self.path),
            "SECRET_KEY": secret_key,
            "BASE_URL": f"http://localhost:{web_port}",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp_port),
            "SMTP_CONNECTIONS": "4",
            "RETURN_PATH": "bounce+{token}@bounces.example.org",
            "DEMO_MAILBOX": json.dumps(mailbox),
            # Greylisting ends in seconds here, not in five minutes.
            "DELIVERY_RETRY_SECONDS": "3",
            # Two workers keep two cores busy; SQLite has one writer anyhow.
            "DELIVERY_WORKERS": "2",
            "DELIVERY_CYCLE_BATCH_SIZE": "100",
            "DELIVERY_SEND_BATCH_SIZE": "20",
            "PYTHONUNBUFFERED": "1",
            **by_graph,
        }
