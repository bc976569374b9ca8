"""Pause, resume and cancel while real worker processes send as fast as they can."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from campaigns.models import Campaign, MailingList
from delivery import limits
from delivery.audit import audit_campaign
from delivery.outcomes import Phase, Reply, Unavailable
from tests.delivery.conftest import coordinate, make_campaign, make_readers, statuses
from tests.end_to_end.clusters import cluster_environment
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)

LETTERS, WORKERS, WAVE = 600, 3, 20
# A wave for each worker: what may be noted when somebody says stop.
MOST_AFTER = WORKERS * WAVE


@pytest.fixture
def campaign() -> Campaign:
    mailing_list = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(mailing_list, LETTERS)
    campaign = make_campaign(mailing_list, timezone.now())
    coordinate(timezone.now)
    campaign.refresh_from_db()
    return campaign


@contextmanager
def workers(server: SMTPServer, folder: Path, number: int = WORKERS) -> Iterator[None]:
    """They end by themselves when nothing is left to do; the block waits for that."""
    environment = cluster_environment(
        server,
        folder,
        DELIVERY_WORKERS=WORKERS,
        DELIVERY_CYCLE_BATCH_SIZE=3 * WAVE,
        DELIVERY_SEND_BATCH_SIZE=WAVE,
        SMTP_CONNECTIONS=4,
    )
    command = [sys.executable, "-m", "tests.end_to_end.worker_process", "default", "5"]
    processes = [subprocess.Popen(command, env=environment) for _ in range(number)]
    try:
        yield
        for process in processes:
            assert process.wait(60) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_load(server: SMTPServer) -> None:
    assert server.wait_until(lambda server: len(server.accepted) >= LETTERS // 6, timeout=60)


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    with SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.005)]) as server:
        yield server


def test_after_a_pause_at_most_one_wave_of_each_worker_leaves_and_resume_sends_the_rest(
    campaign, server, tmp_path
):
    with workers(server, tmp_path):
        wait_for_load(server)
        campaign.pause()
        at_the_commit = len(server.accepted)
    assert len(server.accepted) - at_the_commit <= MOST_AFTER
    assert set(statuses(campaign)) == {"sent", "queued"}

    campaign.refresh_from_db()
    campaign.resume()
    with workers(server, tmp_path, number=1):
        pass
    assert statuses(campaign) == {"sent": LETTERS}
    assert max(Counter(letter.rcpt_to[0] for letter in server.accepted).values()) == 1


def test_after_a_cancellation_at_most_one_wave_of_each_worker_leaves(campaign, server, tmp_path):
    with workers(server, tmp_path):
        wait_for_load(server)
        campaign.cancel(timezone.now())
        at_the_commit = len(server.accepted)
    assert len(server.accepted) - at_the_commit <= MOST_AFTER
    coordinate(timezone.now)
    assert set(statuses(campaign)) == {"sent", "cancelled"}
    assert statuses(campaign)["sent"] == len(server.accepted)
    assert audit_campaign(campaign.pk).imbalances == []


def test_after_a_provider_was_paused_at_most_one_wave_of_each_worker_leaves(
    campaign, server, tmp_path
):
    busy = Unavailable(Reply(Phase.MAIL, 421, "4.3.2 Busy"), timedelta(hours=1))
    with workers(server, tmp_path):
        wait_for_load(server)
        limits.pause("default", busy, timezone.now())
        at_the_commit = len(server.accepted)
    assert len(server.accepted) - at_the_commit <= MOST_AFTER
    assert set(statuses(campaign)) == {"sent", "queued"}
