"""Reports that speak of our own quota or account: no reader is marked, and the letter leaves again.

Scenario 16 c and d, and what a forger could make of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bounces.intake import Fetched, take_in
from bounces.models import Bounce, ReceivedMail, Verdict
from bounces.reading import read_whole
from bounces.reading_process import ReadingProcess
from campaigns.models import CampaignTotals, Suppression
from campaigns.states import CampaignStatus
from delivery import limits
from delivery.conf import delivery_settings
from delivery.models import Attempt, Delivery, QuotaWindow
from delivery.returned import MOST_OFTEN, about_us
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, message_id, report

pytestmark = pytest.mark.django_db

TENANT = (
    "5.7.233",
    "smtp;550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for"
    " sending email to external recipients (tenant external recipient rate limit)",
)
MAILBOX = (
    "5.1.90",
    "smtp;550 5.1.90 Your message can't be sent because you've reached your daily limit for"
    " message recipients",
)
BLOCKED = ("5.1.8", "smtp;550 5.1.8 Access denied, bad outbound sender")
GONE = ("5.1.10", "smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found by SMTP address")


@pytest.fixture(autouse=True)
def providers(settings) -> None:
    def graph(mailbox: str, tenant: str) -> dict:
        identity = {"tenant_id": tenant, "client_id": "a", "client_secret": "s"}
        return {
            "PROFILE": "microsoft365-graph",
            "OPTIONS": {"mailbox": mailbox, "identity": identity},
        }

    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": {
            "default": {"BACKEND": "delivery.providers.memory.MemoryProvider"},
            "graph": graph("news@contoso.example", "contoso"),
            "smtp": graph("news@contoso.example", "contoso") | {"PROFILE": "microsoft365-smtp"},
            "second": graph("more@contoso.example", "contoso"),
            "foreign": graph("news@fabrikam.example", "fabrikam"),
        }
    }


@pytest.fixture
def sent(deliver: Deliver):
    """Letters that went through a provider an hour ago."""

    def make(count: int, provider: str = "graph") -> list[Delivery]:
        letters = [deliver(f"r{number}@example.net") for number in range(count)]
        Delivery.objects.update(provider=provider, attempts=1, code=202)
        return letters

    return make


def comes_back(letters: list[Delivery], said: tuple[str, str], now: datetime) -> list[Verdict]:
    mails = [
        Fetched(
            f"{said[0]} {letter.pk} {now}",
            report(
                group(letter.rcpt_to, status=said[0], diagnostic=said[1]),
                returned=message_id(letter),
            ),
        )
        for letter in letters
    ]
    with ReadingProcess(read_whole, 10) as reader:
        return take_in("default", "1", mails, now, reader)


def statuses() -> list[str]:
    return list(Delivery.objects.order_by("pk").values_list("status", flat=True))


def closed(now: datetime) -> dict[str, datetime | None]:
    return {
        alias: limits.closed_until(limits.state_of(alias), now)
        for alias in ("graph", "smtp", "second", "foreign")
    }


def counted(alias: str, scope: str, at: datetime) -> None:
    """So many letters stand in our own log of this limit."""
    limit = next(
        one
        for one in delivery_settings().providers[alias].limits
        if one.scope.startswith(scope) and one.window == timedelta(days=1)
    )
    QuotaWindow.objects.create(key=limit.key, at=at, permits=10)


def test_16_a_spent_quota_of_the_tenant_takes_the_letters_back_and_closes_all_of_it(
    sent, campaign, now
) -> None:
    letters = sent(40)
    counted("graph", "tenant:", now - timedelta(hours=20))
    assert set(comes_back(letters, TENANT, now)) == {Verdict.BOUNCE}
    assert set(statuses()) == {DeliveryStatus.QUEUED}
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    assert {state: n for state, n in totals.items() if n} == {"eligible": 40, "queued": 40}
    until = now + timedelta(hours=4, minutes=5)
    assert closed(now) == {"graph": until, "smtp": until, "second": until, "foreign": None}
    assert not Suppression.objects.exists()
    assert not Bounce.objects.filter(counted=True).exists()
    assert set(Bounce.objects.values_list("bounce_class", flat=True)) == {"blocked"}
    assert set(Delivery.objects.values_list("attempts", "due_at")) == {(0, until)}


def test_16_a_spent_quota_of_the_mailbox_closes_its_providers_and_no_other(sent, now) -> None:
    letters = sent(3)
    counted("graph", "mailbox:", now - timedelta(hours=23))
    comes_back(letters, MAILBOX, now)
    assert set(statuses()) == {DeliveryStatus.QUEUED}
    until = now + timedelta(hours=1, minutes=5)
    assert closed(now) == {"graph": until, "smtp": until, "second": None, "foreign": None}


def test_a_quota_that_others_have_spent_is_waited_for_a_day(sent, now) -> None:
    comes_back(sent(3), MAILBOX, now)
    assert closed(now)["graph"] == now + timedelta(days=1)


def test_an_account_that_is_blocked_needs_a_person(sent, now) -> None:
    comes_back(sent(3), BLOCKED, now)
    assert set(statuses()) == {DeliveryStatus.QUEUED}
    assert limits.state_of("graph").stopped


def test_one_letter_alone_closes_nothing_for_its_reader_may_have_written_the_report(
    sent, now
) -> None:
    letters = sent(4)
    comes_back(letters[:2], TENANT, now)
    assert set(closed(now).values()) == {None}
    assert statuses().count(DeliveryStatus.QUEUED) == 2
    comes_back(letters[2:3], TENANT, now + timedelta(hours=2))
    assert set(closed(now).values()) == {None}


def test_the_same_letter_is_taken_back_three_times_and_then_bounces_without_harm(sent, now) -> None:
    (letter,) = sent(1)
    for day in range(MOST_OFTEN + 1):
        moment = now + timedelta(days=day)
        Delivery.objects.update(
            status=DeliveryStatus.SENT, handed_over_at=moment - timedelta(minutes=9)
        )
        comes_back([letter], TENANT, moment)
        expected = DeliveryStatus.BOUNCED if day == MOST_OFTEN else DeliveryStatus.QUEUED
        assert statuses() == [expected]
    assert not Suppression.objects.exists()
    assert Bounce.objects.get(counted=True).bounce_class == "blocked"


def test_an_old_report_says_nothing_about_the_letter_that_left_again(sent, now) -> None:
    (letter,) = sent(1)
    comes_back([letter], TENANT, now)
    Delivery.objects.update(
        status=DeliveryStatus.SENT, handed_over_at=now + timedelta(hours=4), code=202
    )
    # A second report about the first letter, which was examined late.
    ReceivedMail.objects.update(verdict=Verdict.WAITING)
    from bounces.intake import examine_again

    with ReadingProcess(read_whole, 10) as reader:
        examine_again(ReceivedMail.objects.get(), now + timedelta(hours=5), reader)
    assert statuses() == [DeliveryStatus.SENT]
    assert Attempt.objects.filter(outcome="returned").count() == 1


def test_a_finished_campaign_is_opened_again_and_a_cancelled_one_is_not(
    sent, campaign, now
) -> None:
    letters = sent(2)
    campaign.status = CampaignStatus.FINISHED
    campaign.save()
    comes_back(letters[:1], MAILBOX, now)
    campaign.refresh_from_db()
    assert campaign.status == CampaignStatus.SENDING
    campaign.cancel(now)
    comes_back(letters[1:], MAILBOX, now)
    assert statuses() == [DeliveryStatus.QUEUED, DeliveryStatus.BOUNCED]
    assert not Suppression.objects.exists()


def test_a_reader_who_is_gone_is_still_a_bad_address(sent, now) -> None:
    comes_back(sent(1), GONE, now)
    assert statuses() == [DeliveryStatus.BOUNCED]
    assert Suppression.objects.exists()


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        ("default", TENANT),  # no mailbox of Microsoft
        ("gone from the settings", TENANT),
        ("graph", GONE),
        ("graph", ("5.7.350", "550 5.7.350 Remote server returned message -> 554 5.7.501 banned")),
        ("graph", ("5.7.501", "Remote Server returned '550 5.7.501 Access denied'")),
        ("graph", ("5.1.8", "550 5.1.8 Sender address has null MX")),
        ("graph", ("5.7.1", "550 5.7.1 mail from news@5.7.233.example is not wanted")),
    ],
)
def test_what_others_say_is_about_the_reader(alias: str, said: tuple[str, str]) -> None:
    assert about_us(alias, *said) is None
