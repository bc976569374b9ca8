"""Hostile mail through the real poller, by the numbers of our list of threats.

T6, text of strangers in the admin: test_t6_... in test_admin_pages.py and test_admin.py send it
through the mailbox and open every page. T12, forged reports: the floods below; each single forgery
is test_t12_... in test_intake.py, and in test_correlation.py. T13, mails that are bombs: hostile.py
through the poller below, and test_t13_... of the reading process and the intake. T14, loops and
storms: below, and test_t14_... in test_intake.py.
"""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.core import mail
from django.utils import timezone
from django_q.models import OrmQ

from bounces.models import Bounce, Breaker, ReceivedMail, Verdict
from bounces.poller import poll
from campaigns.models import Suppression
from campaigns.tokens import Purpose
from delivery.alerts import open_alerts
from delivery.models import Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, message_id, report, return_path, token
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import raw_sample
from tests.bounces.test_intake import totals
from tests.bounces.test_killed_poller import Pollers

pytestmark = pytest.mark.django_db


@pytest.fixture
def maildir(settings) -> Path:
    return Path(settings.BOUNCES["MAILBOXES"]["default"]["OPTIONS"]["path"])


NUMBERS = itertools.count()


def fill(maildir: Path, mails: list[bytes]) -> None:
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    for raw in mails:
        (maildir / "new" / f"1795255200.M{next(NUMBERS):08}P1.mx").write_bytes(raw)


def poll_all(now) -> None:
    while (result := poll("default", now, timedelta(minutes=10))).taken:
        assert not result.error


@pytest.mark.parametrize("flood_of", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_t12_a_flood_of_forged_reports_trips_the_breaker_and_changes_nobody(
    flood_of: int, maildir, deliver: Deliver, now
) -> None:
    victims = [deliver(f"victim{number}@example.net") for number in range(20)]
    old = deliver("old@example.net", ago=timedelta(days=31))
    waiting = deliver("unsent@example.net", DeliveryStatus.SUPPRESSED, handed_over=False)
    gone = deliver("gone@example.net", DeliveryStatus.BOUNCED)
    lies = itertools.cycle(
        [
            lambda n: f"{'a' * 20}{n:04}",  # no token at all
            lambda n: token(Purpose.RETURN_PATH, victims[n % 20].pk, key="of another"),
            lambda n: token(Purpose.MESSAGE_ID, victims[n % 20].pk),
            lambda n: token(Purpose.RETURN_PATH, 900_000 + n),  # no such letter
            lambda n: token(Purpose.RETURN_PATH, old.pk),
            lambda n: token(Purpose.RETURN_PATH, waiting.pk),
            lambda n: token(Purpose.RETURN_PATH, gone.pk),  # a replay
        ]
    )
    flood = [
        report(
            group(victims[number % 20].rcpt_to),
            delivered_to=f"bounce+{lie(number)}@bounces.example.org",
        )
        for number, lie in zip(range(flood_of), lies, strict=False)
    ]
    # The short flood is the end of a long one.
    Breaker.objects.create(name=Breaker.FORGED_TOKENS, count=10_000 - flood_of, counting_since=now)
    genuine = deliver("ada@example.net")
    before = list(Delivery.objects.values())
    fill(maildir, [*flood, report(delivered_to=return_path(genuine))])
    poll_all(now)
    assert ReceivedMail.objects.count() == flood_of + 1
    assert list(Delivery.objects.values()) == before
    assert not Suppression.objects.exists()
    assert not Bounce.objects.filter(counted=True).exists()
    assert Breaker.objects.get().count == 10_000
    assert Breaker.is_tripped()
    assert open_alerts().get().cause == "forged tokens"
    # What came honestly in the meantime waits for the person who closes the breaker.
    assert ReceivedMail.objects.get(verdict=Verdict.HELD).bounces.count() == 0
    Breaker.objects.get().reset(now)
    poll_all(now)
    assert Suppression.objects.get().address_key == genuine.address_key


@pytest.mark.parametrize("kind", ["abuse", "fraud", "opt-out"])
def test_t12_a_forged_complaint_unsubscribes_and_suppresses_nobody(
    kind: str, maildir, deliver: Deliver, now
) -> None:
    victim = deliver("ada@example.net")
    raw = raw_sample("complaint")
    raw = raw.replace(b"Feedback-Type: abuse", f"Feedback-Type: {kind}".encode())
    for lie in (
        "a" * 24,
        token(Purpose.RETURN_PATH, victim.pk, key="of another"),
        # Both are genuine, each in the place of the other: every reader sees the Message-ID.
        token(Purpose.MESSAGE_ID, victim.pk),
    ):
        forged = raw.replace(b"bounce+aeaaaaaaaaagxxnvodkxvxqs", f"bounce+{lie}".encode())
        fill(maildir, [forged, re.sub(rb"(?m)^To: bounce.*$", b"To: fbl@example.org", forged)])
        poll_all(now)
    assert ReceivedMail.objects.count() == 6
    assert Bounce.objects.filter(kind="complaint", delivery=None).count() == 6
    assert not Suppression.objects.exists()


@pytest.mark.parametrize("storm", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_t14_a_storm_of_automatic_replies_sends_no_mail_and_marks_nobody(
    storm: int, maildir, deliver: Deliver, now
) -> None:
    letter = deliver()
    reply = (
        f"Return-Path: <>\nDelivered-To: {return_path(letter)}\nFrom: <a@example.net>\n"
        "Subject: Automatic reply: away\nAuto-Submitted: auto-replied\n\n"
        "I am away. 550 5.1.1 user unknown. Write to somebody else.\n"
    ).encode()
    fill(maildir, [reply] * storm)
    poll_all(now)
    assert mail.outbox == []
    assert ReceivedMail.objects.filter(verdict=Verdict.NOTHING).count() == storm
    assert not Bounce.objects.exists()
    assert not Breaker.objects.exists()
    assert totals(letter) == {"eligible": 1, "sent": 1}
    assert OrmQ.objects.count() == 0


def test_t14_our_own_letters_that_come_round_again_are_not_answered(maildir, deliver, now) -> None:
    """A reader whose mailbox sends everything back to us: a loop, if anybody answered."""
    letter = deliver()
    looped = (
        f"Delivered-To: {return_path(letter)}\nFrom: <news@example.org>\nPrecedence: bulk\n"
        f"Message-ID: {message_id(letter)}\nList-Id: <news.example.org>\nSubject: Hello\n\nHello"
    ).encode()
    fill(maildir, [looped] * 50)
    poll_all(now)
    assert mail.outbox == []
    assert totals(letter) == {"eligible": 1, "sent": 1}


@pytest.mark.django_db(transaction=True)
def test_t13_bombs_take_less_than_300_mb_and_the_next_mail_is_processed(
    tmp_path: Path, deliver: Deliver
) -> None:
    letter = deliver()
    Delivery.objects.update(handed_over_at=timezone.now())
    maildir = tmp_path / "bombs"
    huge = b"Subject: huge\n\n" + b"x" * 50_000_000
    honest = report(delivered_to=return_path(letter))
    fill(maildir, [*HOSTILE.values(), huge, honest])
    entry = {
        "BACKEND": "bounces.mailboxes.maildir.MaildirMailbox",
        "OPTIONS": {"path": str(maildir)},
    }
    with Pollers(entry, tmp_path) as pollers:
        status, peak = pollers.wait_and_weigh(pollers.start())
    assert status == 0
    assert peak < 300_000_000
    assert ReceivedMail.objects.count() == len(HOSTILE) + 2
    assert ReceivedMail.objects.get(subject="huge").truncated
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
