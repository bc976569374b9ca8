"""A real django-q2 cluster whose processes are killed at random moments while it sends a campaign.

Three short runs in the suite; `make soak` runs twenty with 20,000 letters and ten kills each
(PENNYPOST_SOAK=1). The SMTP server answers after 0 to 20 ms and names every letter that it took.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from django.utils import timezone
from django_q.conf import Conf

from campaigns.models import Campaign, MailingList
from delivery import tasks
from delivery.models import Delivery, WorkerLease
from tests.database_url import database_url
from tests.delivery.conftest import make_campaign, make_readers, statuses
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)

LONG = os.environ.get("PENNYPOST_SOAK") == "1"
SEEDS = range(20) if LONG else range(3)
LETTERS, KILLS = (20_000, 10) if LONG else (1_500, 4)
WORKERS, CONNECTIONS = 4, 5
PATIENCE = 1_200 if LONG else 240  # seconds until a run has failed
SECRET_KEY = "the-key-of-a-test-and-of-nothing-else-in-the-world"


class Cluster:
    """`manage.py qcluster` in a process group of its own; started again when it died."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment, self.log = environment, log
        self.process: subprocess.Popen[bytes] | None = None
        # A killed parent leaves its children to themselves: all groups are ended together.
        self.groups: list[int] = []

    def keep_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "manage.py", "qcluster"],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.groups.append(self.process.pid)

    def processes(self) -> list[psutil.Process]:
        """Parent, sentinel, workers, pusher and monitor: whatever lives in our groups."""
        return [
            process
            for process in psutil.process_iter()
            if _group_of(process) in self.groups and process.status() != psutil.STATUS_ZOMBIE
        ]

    def kill_one(self, dice: random.Random) -> None:
        with suppress(IndexError, psutil.NoSuchProcess):
            dice.choice(self.processes()).send_signal(signal.SIGKILL)

    def stop(self) -> None:
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


def _group_of(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError, PermissionError):
        return os.getpgid(process.pid)
    return None


@pytest.fixture
def real_settings(settings, tmp_path, monkeypatch):
    """What the cluster's processes read from the environment, for the coordinator in this one."""
    settings.DELIVERY = {
        "WORKERS": WORKERS,
        "GUARD_RAILS": {"UNCONFIRMED": None},
        "RETURN_PATH": "bounce+{token}@bounces.example.org",
        "RECORDERS": tmp_path / "recorders",
        "PROVIDERS": {"default": {"BACKEND": "delivery.providers.memory.MemoryProvider"}},
    }
    monkeypatch.setenv("PENNYPOST_VAR", str(tmp_path))
    # Tasks are signed: the cluster takes none from a stranger.
    monkeypatch.setattr(Conf, "SECRET_KEY", SECRET_KEY)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path, seed, real_settings):
    dice = random.Random(seed)
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(weekly, LETTERS)
    campaign = make_campaign(weekly, timezone.now())
    delays = [
        Rule(At.FINAL_DOT, delay=seconds, when=lambda session, share=share: dice.random() < share)
        for seconds, share in ((0.02, 0.2), (0.01, 0.4), (0.005, 0.6))
    ]
    with SMTPServer(rules=delays) as server:
        cluster = Cluster(
            os.environ
            | {
                "DATABASE_URL": database_url(),
                "DJANGO_SETTINGS_MODULE": "tests.end_to_end.soak_settings",
                "SECRET_KEY": SECRET_KEY,
                "PENNYPOST_VAR": str(tmp_path),
                "DELIVERY_WORKERS": str(WORKERS),
                "Q_WORKERS": str(WORKERS + 2),
                "SMTP_HOST": server.host,
                "SMTP_PORT": str(server.port),
                "SMTP_CONNECTIONS": str(CONNECTIONS),
                "LOG_LEVEL": "WARNING",
            },
            tmp_path / "cluster.log",
        )
        try:
            kills = _send_and_kill(campaign, cluster, server, dice)
        finally:
            cluster.stop()
        assert server.wait_until(lambda server: server.open_connections == 0, timeout=30)
    assert kills == KILLS

    taken = Counter(letter.rcpt_to[0] for letter in server.accepted)
    by_status = {
        status: set(Delivery.objects.filter(status=status).values_list("rcpt_to", flat=True))
        for status in statuses(campaign)
    }
    in_doubt = by_status.get("unconfirmed", set())
    assert max(taken.values()) == 1, "doubled"
    assert set(by_status) <= {"sent", "unconfirmed"}
    assert by_status["sent"] <= set(taken), "called sent, and was not taken"
    assert set(taken) <= by_status["sent"] | in_doubt, "taken, and neither sent nor in doubt"
    # A kill of the parent lets the test end its whole group: then all workers die at once.
    assert len(in_doubt) <= KILLS * WORKERS * CONNECTIONS
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def _send_and_kill(
    campaign: Campaign, cluster: Cluster, server: SMTPServer, dice: random.Random
) -> int:
    """Until the campaign is finished; how often something was killed. The coordinator is called
    each second, as its schedule would each minute: tasks in a killed process's hands are lost."""
    goals = sorted(dice.sample(range(LETTERS // 50, LETTERS * 9 // 10), KILLS))
    kills, end = 0, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        cluster.keep_running()
        tasks.coordinate()
        campaign.refresh_from_db()
        if campaign.status == "finished":
            return kills
        if kills == KILLS:
            time.sleep(0.5)
        elif server.wait_until(
            lambda server, goal=goals[kills]: len(server.accepted) >= goal, timeout=1
        ):
            cluster.kill_one(dice)
            kills += 1
    log = cluster.log.read_text(errors="replace")[-3000:]
    raise AssertionError(f"not finished after {PATIENCE} s: {statuses(campaign)}\n{log}")
