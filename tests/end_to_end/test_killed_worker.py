"""A worker is killed at a random moment: nothing lost, nothing doubled, doubts named rightly."""

import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from django.utils import timezone

from campaigns.models import MailingList
from delivery.audit import audit_campaign
from delivery.models import Delivery, WorkerLease
from tests.database_url import database_url
from tests.delivery import conftest
from tests.delivery.conftest import make_campaign, make_readers, statuses
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)

CONNECTIONS = 4
LETTERS = 400


def environment(server: SMTPServer, var: Path, *, with_recorder: bool) -> dict[str, str]:
    return os.environ | {
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PENNYPOST_VAR": str(var),
        "DELIVERY_RECORDERS": "1" if with_recorder else "0",
        "DELIVERY_CYCLE_BATCH_SIZE": "100",
        "DELIVERY_SEND_BATCH_SIZE": "50",
        "SMTP_HOST": server.host,
        "SMTP_PORT": str(server.port),
        "SMTP_CONNECTIONS": str(CONNECTIONS),
        "BASE_URL": "https://news.example.org",
        "LOG_LEVEL": "CRITICAL",
    }


def coordinate(recorders: Path | None) -> None:
    """One round; where no recording can show that a worker is dead, after its lease."""
    ahead = timedelta(0) if recorders else timedelta(minutes=2)
    conftest.coordinate(lambda: timezone.now() + ahead, recorders)


@pytest.mark.parametrize(
    ("seed", "with_recorder"),
    [(0, True), (1, True), (2, False)],
    ids=["0-recorder", "1-recorder", "2-no recorder"],
)
def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, seed, with_recorder, settings):
    # Four kills among so few letters leave more doubts than the guard rail lets pass.
    settings.DELIVERY = settings.DELIVERY | {"GUARD_RAILS": {"UNCONFIRMED": None}}
    dice = Random(seed)
    mailing_list = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(mailing_list, LETTERS)
    campaign = make_campaign(mailing_list, timezone.now())
    coordinate(tmp_path)
    recorders = tmp_path / "recorders" if with_recorder else None
    kills, doubts = 0, []
    with SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.01)]) as server:
        env = environment(server, tmp_path, with_recorder=with_recorder)
        while Delivery.objects.filter(status__in=["queued", "claimed", "sending"]).exists():
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.end_to_end.worker_process", "default", "9"], env=env
            )
            if kills < 4:
                goal = len(server.accepted) + dice.randrange(5, 90)
                server.wait_until(lambda s, goal=goal: len(s.accepted) >= goal, timeout=20)
                worker.send_signal(signal.SIGKILL)
                kills += 1
            worker.wait(60)
            # What the dead worker's connections still had in their buffers.
            assert server.wait_until(lambda s: s.open_connections == 0)
            before = Delivery.objects.filter(status="unconfirmed").count()
            coordinate(recorders)
            doubts.append(Delivery.objects.filter(status="unconfirmed").count() - before)

    coordinate(recorders)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()
    assert audit_campaign(campaign.pk).imbalances == []

    taken = Counter(letter.rcpt_to[0] for letter in server.accepted)
    assert max(taken.values()) == 1, "doubled"
    by_status = {
        status: set(Delivery.objects.filter(status=status).values_list("rcpt_to", flat=True))
        for status in statuses(campaign)
    }
    assert set(by_status) <= {"sent", "unconfirmed"}
    assert by_status["sent"] <= set(taken), "called sent, and was not"
    assert set(taken) <= by_status["sent"] | by_status.get("unconfirmed", set()), (
        "not accounted for"
    )
    if with_recorder:
        assert max(doubts) <= CONNECTIONS
        assert not list((tmp_path / "recorders").iterdir())
    else:
        assert max(doubts) <= 50
