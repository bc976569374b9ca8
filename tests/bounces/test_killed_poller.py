"""A real poller, killed with SIGKILL at a random moment: nothing lost, nothing counted twice.

Three seeds in the suite; twenty with PENNYPOST_SOAK=1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from django.utils import timezone

from bounces.models import Bounce, MailboxState, ReceivedMail, Verdict
from campaigns.models import Suppression
from delivery.models import Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_intake import totals
from tests.bounces.test_maildir import put
from tests.database_url import database_url

pytestmark = pytest.mark.django_db(transaction=True)

SEEDS = 20 if os.environ.get("PENNYPOST_SOAK") else 3
MAILS, KILLS = 160, 3


def start_poller(maildir: Path, var: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PENNYPOST_VAR": str(var),
        "BOUNCE_MAILDIR": str(maildir),
        "SECRET_KEY": "of the killed pollers, and of nobody else",
        "TOKEN_KEYS": "1:a secret for the tests",
        "LOG_LEVEL": "CRITICAL",
    }
    return subprocess.Popen(
        [sys.executable, "manage.py", "poll_bounces"], env=env, stdout=subprocess.DEVNULL
    )


def waiting(maildir: Path) -> int:
    return len(list((maildir / "new").iterdir()))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_poller_loses_and_doubles_nothing(seed: int, deliver: Deliver, tmp_path) -> None:
    dice = Random(seed)
    maildir, now = tmp_path / "maildir", timezone.now()
    letters = [deliver(f"r{number}@example.net") for number in range(MAILS)]
    Delivery.objects.update(handed_over_at=now)
    for letter in letters:
        put(maildir, report(group(letter.rcpt_to), delivered_to=return_path(letter)))

    for start in range(KILLS + 3):
        if not waiting(maildir) and not ReceivedMail.objects.filter(verdict=Verdict.NEW).exists():
            break
        # As if the dead poller's lease had run out.
        MailboxState.objects.update(leased_until=None, lease_key="")
        poller = start_poller(maildir, tmp_path)
        if start < KILLS:
            before = ReceivedMail.objects.count()
            # Until its first batch is stored, or it found nothing more to store.
            while poller.poll() is None and ReceivedMail.objects.count() == before:
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.25))
            poller.send_signal(signal.SIGKILL)
            poller.wait(60)
        else:
            assert poller.wait(60) == 0

    assert ReceivedMail.objects.count() == MAILS
    assert not ReceivedMail.objects.exclude(verdict=Verdict.BOUNCE).exists()
    assert Bounce.objects.count() == Bounce.objects.filter(counted=True).count() == MAILS
    assert Bounce.objects.filter(suppressed=True).count() == MAILS
    assert Suppression.objects.count() == MAILS
    assert Delivery.objects.filter(status=DeliveryStatus.BOUNCED).count() == MAILS
    assert totals(letters[0]) == {"eligible": MAILS, "bounced": MAILS}
    assert all(path.name.endswith(":2,S") for path in (maildir / "cur").iterdir())
