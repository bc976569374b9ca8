"""A real django-q2 cluster, whose processes may be killed, and whose end is known exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from tests.database_url import database_url
from tests.smtp_server import SMTPServer

# Tasks are signed: whoever queues one for a cluster needs its key (conftest.py).
SECRET_KEY = "the-key-of-a-test-and-of-nothing-else-in-the-world"


def cluster_environment(server: SMTPServer, var: Path, **more: object) -> dict[str, str]:
    """What `manage.py qcluster` reads: this test's database, that SMTP server, its own folder."""
    return (
        dict(os.environ)
        | {
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "SECRET_KEY": SECRET_KEY,
            "PENNYPOST_VAR": str(var),
            "BASE_URL": "https://news.example.org",
            "SMTP_HOST": server.host,
            "SMTP_PORT": str(server.port),
            "LOG_LEVEL": "WARNING",
        }
        | {name: str(value) for name, value in more.items()}
    )


@dataclass(frozen=True, slots=True)
class Killed:
    """A killed process: its number, and its ends of the connections to the SMTP server that were
    open at that moment."""

    pid: int
    ports: frozenset[int]


class Cluster:
    """`manage.py qcluster` in a process group of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment, self.log = environment, log
        self.process: subprocess.Popen[bytes] | None = None
        # A killed parent leaves its children to themselves: all groups are ended together.
        self.groups: list[int] = []

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "qcluster"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.groups.append(self.process.pid)

    def keep_running(self) -> None:
        """Starts it, and again when it has died, as a service manager does."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def restart(self) -> None:
        """As a service manager does: SIGTERM, and again when it has ended."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(90)
        self.start()

    def processes(self) -> list[psutil.Process]:
        """Parent, sentinel, workers, pusher and monitor: whatever lives in our groups."""
        return [
            process
            for process in psutil.process_iter()
            if _group_of(process) in self.groups and process.status() != psutil.STATUS_ZOMBIE
        ]

    def kill_one(self, dice: Random) -> Killed | None:
        """SIGKILL to one of the processes; None if it was quicker to end by itself."""
        with suppress(IndexError, psutil.NoSuchProcess):
            return kill(dice.choice(self.processes()), int(self.environment["SMTP_PORT"]))
        return None

    def kill_all(self) -> list[Killed]:
        """As a watchdog does with a cluster that does nothing any more."""
        port = int(self.environment["SMTP_PORT"])
        killed = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                killed.append(kill(process, port))
        if self.process is not None:
            self.process.wait()
        return killed

    def stop(self) -> None:
        """Ends all of it at once."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def kill(process: psutil.Process, smtp_port: int) -> Killed:
    """Stops the process first, so that it opens and closes no connection while one looks."""
    process.send_signal(signal.SIGSTOP)
    ports = frozenset(
        connection.laddr.port
        for connection in process.net_connections("tcp")
        if connection.raddr and connection.raddr.port == smtp_port
    )
    process.send_signal(signal.SIGKILL)
    return Killed(process.pid, ports)


def _group_of(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError, PermissionError):
        return os.getpgid(process.pid)
    return None
