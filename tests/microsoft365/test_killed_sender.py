"""Proof by SIGKILL: a worker that dies between Microsoft's 202 and its own commit.

Real processes, a real socket, the strict emulator behind it. The flight recorder knows that one
letter was on the wire; Sent Items knows that it left. Nothing is doubled, nothing is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from django.utils import timezone

from campaigns.models import MailingList
from delivery.audit import audit_campaign
from delivery.models import Delivery, Resolution
from tests.database_url import database_url
from tests.delivery.conftest import coordinate, make_campaign, make_readers, statuses
from tests.emulators.graph import GraphEmulator
from tests.emulators.server import EmulatorServer
from tests.microsoft365 import killed_settings
from tests.microsoft365.site import MAILBOX

pytestmark = pytest.mark.django_db(transaction=True)
READERS = 30
# Doubts are looked for until ten minutes after they arose; here they are found in seconds.
PATIENCE_SECONDS = 90


def kill_between_202_and_commit(kills: int, folder: Path) -> None:
    mailing_list = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(mailing_list, READERS)
    campaign = make_campaign(mailing_list, timezone.now(), provider="graph")
    recorders = folder / "recorders"
    coordinate(timezone.now, recorders)
    emulator = GraphEmulator(timezone.now, [MAILBOX], visible_after=timedelta(seconds=0.5))
    dice = Random(kills)
    with EmulatorServer(emulator) as server:
        environment = os.environ | {
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.microsoft365.killed_settings",
            "PENNYPOST_VAR": str(folder),
            "GRAPH_EMULATOR": server.url,
            "BASE_URL": "https://news.example.org",
            "LOG_LEVEL": "CRITICAL",
        }

        def start(letters: int) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "tests.microsoft365.killed_sender", str(letters)]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

        for _ in range(kills):
            with start(dice.randint(1, 2)) as worker:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "taken\n"
                worker.send_signal(signal.SIGKILL)
            before = Delivery.objects.filter(status="unconfirmed").count()
            coordinate(timezone.now, recorders)
            # The one whose 202 nobody wrote down; the others had not left, or are written.
            assert Delivery.objects.filter(status="unconfirmed").count() == before + 1
        with start(0) as worker:
            worker.wait(PATIENCE_SECONDS)
    coordinate(timezone.now, recorders)
    assert statuses(campaign) == {"sent": READERS}
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert Resolution.objects.filter(means="evidence").count() == kills
    assert len(emulator.delivered) == READERS
    emulator.assert_promises()
    assert audit_campaign(campaign.pk).imbalances == []


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.BASE_URL = "https://news.example.org"
    # Ten doubts among thirty letters are more than the guard rail lets pass.
    settings.DELIVERY = killed_settings.DELIVERY | {"GUARD_RAILS": {"UNCONFIRMED": None}}


def test_a_worker_killed_between_202_and_commit_doubles_and_loses_nothing(tmp_path):
    kill_between_202_and_commit(2, tmp_path)


@pytest.mark.slow
def test_ten_workers_killed_between_202_and_commit_double_and_lose_nothing(tmp_path):
    kill_between_202_and_commit(10, tmp_path)
