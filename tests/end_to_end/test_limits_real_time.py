"""Three clusters as three hosts, whose clocks differ by 30 s, under one limit, in real time.

About a minute for each kind of limit. The server notes when each letter and each connection
arrives; nothing else is believed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from campaigns.models import MailingList
from delivery import tasks
from delivery.rates import parse_rate
from tests.database_url import database_url
from tests.delivery.conftest import make_campaign, make_readers
from tests.delivery.sending_hosts import most_in_any
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.slow,
    pytest.mark.postgresql,
    pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite serves one host"),
]

logger = logging.getLogger(__name__)
PERMITS, WINDOW = parse_rate("50/10 seconds")
CONNECTIONS = 3
MEASURED = 40  # seconds
CLOCKS = (-15, 0, 15)


class Host:
    """`manage.py qcluster` in a process group of its own."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment, self.log = environment, log
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "qcluster"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def restart(self) -> None:
        """As a service manager does: SIGTERM, and again when it has ended."""
        self.process.terminate()
        self.process.wait(30)
        self.start()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def real_settings(settings, tmp_path, monkeypatch):
    """What the clusters read from the environment, for the coordinator in this process."""
    settings.DELIVERY = {
        "WORKERS": 4,
        "RECORDERS": tmp_path / "recorders",
        "INSTALLATIONS": tmp_path / "installations",
        "PROVIDERS": {"default": {"BACKEND": "delivery.providers.memory.MemoryProvider"}},
    }
    monkeypatch.setenv("PENNYPOST_VAR", str(tmp_path))


@pytest.mark.parametrize("kind", ["rate", "cap"])
def test_three_hosts_never_exceed_a_limit_and_use_it(tmp_path, kind, real_settings):
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(weekly, 1000)
    make_campaign(weekly, timezone.now())
    with SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.01)]) as server:
        environment = os.environ | {
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.end_to_end.limited_settings",
            "SECRET_KEY": "the-key-of-a-test-and-of-nothing-else-in-the-world",
            "PENNYPOST_VAR": str(tmp_path),
            "DELIVERY_WORKERS": "4",
            "Q_WORKERS": "2",
            "SMTP_HOST": server.host,
            "SMTP_PORT": str(server.port),
            "SMTP_CONNECTIONS": str(CONNECTIONS),
            "LIMITS": json.dumps([{kind: "50/10 seconds"}, {"connections": CONNECTIONS}]),
            "LOG_LEVEL": "WARNING",
        }
        hosts: list[Host] = []
        try:
            hosts += [
                Host(environment | {"HOST_CLOCK_AHEAD": str(ahead)}, tmp_path / f"{number}.log")
                for number, ahead in enumerate(CLOCKS)
            ]
            tasks.coordinate()
            assert server.wait_until(lambda server: server.accepted, timeout=60), hosts[
                0
            ].log.read_text()[-3000:]
            began = server.accepted[0].at
            for number, host in enumerate(hosts):
                _sleep_until(began + 8 + 10 * number)
                host.restart()
            _sleep_until(began + MEASURED)
            used = [letter.at for letter in server.accepted if letter.at < began + MEASURED]

            # And all at once, without a warning. The coordinator's minute is called at once.
            for host in hosts:
                host.kill()
            assert server.wait_until(lambda server: server.open_connections == 0)
            killed = len(server.accepted)
            for host in hosts:
                host.start()
            tasks.coordinate()
            assert server.wait_until(
                lambda server: len(server.accepted) >= killed + 2 * PERMITS, timeout=60
            )
        finally:
            for host in hosts:
                host.kill()
    arrivals = [letter.at for letter in server.accepted]
    measured = (
        f"{len(used)} letters in {MEASURED} s, at most {most_in_any(WINDOW, arrivals)} in 10 s"
    )
    logger.info(measured)
    assert most_in_any(WINDOW, arrivals) <= PERMITS
    assert server.most_connections <= CONNECTIONS
    assert len(used) >= 0.95 * PERMITS * MEASURED / WINDOW.total_seconds()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
