"""What follows beyond one letter: repeated soft bounces, alerts, complaints, the breaker."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bounces.intake import Fetched, resolve_ceased_refusals, take_in
from bounces.models import Bounce, Breaker, ReceivedMail, Verdict
from bounces.poller import poll
from bounces.reading import read_whole
from bounces.reading_process import ReadingProcess
from campaigns.models import Campaign, MailingList, Subscriber, Subscription, Suppression
from campaigns.states import CampaignStatus, SubscriptionStatus, SuppressionReason
from campaigns.tokens import Purpose
from delivery.alerts import open_alerts
from delivery.conf import GuardRails
from delivery.guard_rails import check_rates
from delivery.models import Alert, Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, message_id, report, return_path, token
from tests.bounces.samples import raw_sample
from tests.bounces.test_intake import suppressed, take, totals

pytestmark = pytest.mark.django_db

FULL = group(status="5.2.2", diagnostic="smtp; 552 5.2.2 mailbox full")


def letter_of(number: int, now: datetime, days_ago: int, deliver: Deliver) -> Delivery:
    """A letter of a campaign of its own, that many days ago."""
    campaign = Campaign.objects.create(name=f"No. {number}", from_email="news@example.org")
    delivery = deliver()
    Delivery.objects.filter(pk=delivery.pk).update(
        campaign=campaign, handed_over_at=now - timedelta(days=days_ago)
    )
    delivery.refresh_from_db()
    return delivery


def bounce_softly(letter: Delivery, now: datetime) -> None:
    take(report(FULL, delivered_to=return_path(letter)), now, uid=f"soft {letter.pk}")


def test_a_mailbox_that_is_full_for_three_campaigns_and_two_weeks_is_given_up(
    deliver: Deliver, now
) -> None:
    for number, days_ago in enumerate((15, 8)):
        bounce_softly(letter_of(number, now, days_ago, deliver), now)
    assert suppressed() == set()
    last = letter_of(3, now, 0, deliver)
    bounce_softly(last, now)
    suppression = Suppression.objects.get()
    assert suppression.reason == SuppressionReason.SOFT_BOUNCES
    assert str(Bounce.objects.get(delivery=last).pk) in suppression.source
    assert Bounce.objects.get(suppressed=True).delivery == last


def test_three_soft_bounces_in_a_week_are_a_holiday(deliver: Deliver, now) -> None:
    for number, days_ago in enumerate((6, 3, 0)):
        bounce_softly(letter_of(number, now, days_ago, deliver), now)
    assert suppressed() == set()


def test_letters_that_arrived_between_them_count_too(deliver: Deliver, now) -> None:
    for number, days_ago in enumerate((28, 24, 20, 16, 12, 8)):
        letter = letter_of(number, now, days_ago, deliver)
        if days_ago in {28, 8}:
            bounce_softly(letter, now)
    bounce_softly(letter_of(9, now, 0, deliver), now)
    assert suppressed() == set()


def test_a_person_who_lifts_the_suppression_starts_the_count_afresh(deliver: Deliver, now) -> None:
    for number, days_ago in enumerate((16, 8, 1)):
        bounce_softly(letter_of(number, now, days_ago, deliver), now)
    Suppression.objects.get().lift(now=now)
    bounce_softly(letter_of(9, now + timedelta(days=1), 0, deliver), now + timedelta(days=1))
    assert suppressed() == set()


def test_the_settings_say_how_many_soft_bounces_are_too_many(settings, deliver, now) -> None:
    settings.BOUNCES = settings.BOUNCES | {
        "SOFT_BOUNCES": 1, "SOFT_BOUNCE_CAMPAIGNS": 1, "SOFT_BOUNCE_DAYS": 0
    }  # fmt: skip
    bounce_softly(deliver(), now)
    assert suppressed() == {"ada@example.net"}


def test_refusals_that_are_about_us_suppress_nobody_and_tell_a_person(deliver, now, caplog) -> None:
    blocked = group(status="5.7.1", diagnostic="smtp; 554 5.7.1 blocked by <script>")
    for number in range(3):
        letter = deliver(f"r{number}@example.net")
        take(report(blocked, delivered_to=return_path(letter)), now, uid=str(number))
    assert suppressed() == set()
    alert = Alert.objects.get()
    assert (alert.kind, alert.campaign_id) == (Alert.Kind.RETURNED, letter.campaign_id)
    assert "5.7.1 is about the sender or a policy" in alert.text
    assert "bounces.blocked" in caplog.messages


def test_a_campaign_whose_letters_come_back_because_of_us_is_paused(deliver, now) -> None:
    letters = [deliver(f"r{number}@example.net") for number in range(120)]
    Campaign.objects.update(status=CampaignStatus.SENDING)
    dmarc = group(status="5.7.26", diagnostic="smtp; 550 5.7.26 DMARC policy")
    for letter in letters[:1]:
        take(report(dmarc, delivered_to=return_path(letter)), now, uid=str(letter.pk))
    assert check_rates(GuardRails(), now) == []
    for letter in letters[1:3]:
        take(report(dmarc, delivered_to=return_path(letter)), now, uid=str(letter.pk))
    assert check_rates(GuardRails(), now) == [letters[0].campaign_id]
    assert Campaign.objects.get().status == CampaignStatus.PAUSED
    assert "because of us" in open_alerts().get(kind=Alert.Kind.RAIL).text
    assert suppressed() == set()
    # A person who resumes it has decided.
    Campaign.objects.update(status=CampaignStatus.SENDING)
    assert check_rates(GuardRails(), now) == []


def test_an_alert_about_refusals_ends_when_they_have_ceased_for_a_day(deliver, now) -> None:
    blocked = group(status="5.7.1", diagnostic="smtp; 554 5.7.1 blocked")
    take(report(blocked, delivered_to=return_path(deliver())), now)
    assert resolve_ceased_refusals(now + timedelta(hours=23)) == 0
    assert resolve_ceased_refusals(now + timedelta(hours=25)) == 1
    assert not open_alerts().exists()


@pytest.fixture
def subscribed_letter(deliver: Deliver, campaign: Campaign) -> Delivery:
    reader = Subscriber.objects.create(email="ada@example.net", address_key="ada@example.net")
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    campaign.include_lists.add(weekly)
    Subscription.objects.create(
        subscriber=reader, mailing_list=weekly, status=SubscriptionStatus.SUBSCRIBED
    )
    letter = deliver()
    Delivery.objects.filter(pk=letter.pk).update(subscriber=reader)
    letter.refresh_from_db()
    return letter


def complaint_about(letter: Delivery, name: str = "rfc-5965-minimal-abuse") -> bytes:
    ours = message_id(letter).encode()
    forged = b"<aeaaaaaaaaagxxnvodkxvxqs.7@news.example.org>"
    return raw_sample(name).replace(forged, ours).replace(
        b"bounce+aeaaaaaaaaagxxnvodkxvxqs@bounces.example.org", b"fbl@example.org"
    )  # fmt: skip


def test_a_complaint_unsubscribes_and_suppresses(subscribed_letter: Delivery, now) -> None:
    assert take(complaint_about(subscribed_letter), now) is Verdict.BOUNCE
    subscription = Subscription.objects.get()
    assert subscription.status == SubscriptionStatus.UNSUBSCRIBED
    assert subscription.events.last().source == "complaint"
    assert Suppression.objects.get().reason == SuppressionReason.COMPLAINT
    subscribed_letter.refresh_from_db()
    assert subscribed_letter.status == DeliveryStatus.SENT


def test_a_complaint_that_comes_again_changes_nothing_more(subscribed_letter, now) -> None:
    take(complaint_about(subscribed_letter), now, uid="1")
    Suppression.objects.get().lift(now=now)
    take(complaint_about(subscribed_letter), now, uid="2")
    assert suppressed() == set()


def test_a_complaint_is_found_by_the_return_path_that_it_names(subscribed_letter, now) -> None:
    raw = complaint_about(subscribed_letter, "rfc-5965-full-abuse").replace(
        b"fbl@example.org", return_path(subscribed_letter).encode()
    )
    raw = raw.replace(message_id(subscribed_letter).encode(), b"<replaced@ses.example>")
    raw = b"Delivered-To: fbl@example.org\n" + raw.split(b"\n", 2)[2]
    assert take(raw, now) is Verdict.BOUNCE
    assert suppressed() == {"ada@example.net"}


@pytest.mark.parametrize("name", ["not-spam-in-capitals", "auth-failure-report", "other-feedback"])
def test_a_feedback_report_that_is_no_complaint_changes_nothing(name, subscribed_letter, now):
    assert take(complaint_about(subscribed_letter, name), now) is Verdict.NOTHING
    assert suppressed() == set()
    assert Subscription.objects.get().status == SubscriptionStatus.SUBSCRIBED


def qmail_text(address: str, delivered_to: str) -> bytes:
    raw = raw_sample("qmail-no-copy").replace(b"grace@example.com", address.encode())
    return raw.replace(
        b"bounce+aeaaaaaaaaagxxnvodkxvxqs@bounces.example.org", delivered_to.encode()
    )


def test_words_about_the_reader_of_the_token_are_believed(deliver: Deliver, now) -> None:
    letter = deliver("grace@example.com")
    take(qmail_text("Grace@example.com", return_path(letter)), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert Bounce.objects.get().bounce_class == "soft"


@pytest.mark.parametrize("delivered_to", ["somebody@example.org", ""])
def test_words_about_anybody_else_are_left_to_a_person(delivered_to, deliver: Deliver, now) -> None:
    letter = deliver("ada@example.net")
    raw = qmail_text("grace@example.com", delivered_to or return_path(letter))
    assert take(raw, now) is Verdict.UNRECOGNISED
    assert "only its text" in ReceivedMail.objects.get().remark
    assert not Bounce.objects.exists()
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT


def forged(number: int) -> bytes:
    return report(delivered_to=f"bounce+{'a' * 20}{number:04}@bounces.example.org")


def test_t12_a_flood_of_forged_tokens_stops_all_marking_until_a_person_closes_it(
    settings, deliver: Deliver, now
) -> None:
    settings.BOUNCES = settings.BOUNCES | {"MOST_FORGED_A_DAY": 60}
    letter = deliver()
    with ReadingProcess(read_whole) as reader:
        flood = [Fetched(str(number), forged(number)) for number in range(60)]
        take_in("default", "v", flood[:59], now, reader)
        assert not Breaker.is_tripped()
        take_in("default", "v", flood[59:], now, reader)
    assert Breaker.is_tripped()
    assert open_alerts().get().cause == "forged tokens"

    assert take(report(delivered_to=return_path(letter)), now, uid="real") is Verdict.HELD
    poll("default", now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    assert totals(letter) == {"eligible": 1, "sent": 1}
    assert suppressed() == set()

    breaker = Breaker.objects.get()
    assert breaker.reset(now)
    assert not breaker.reset(now)
    poll("default", now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert suppressed() == {"ada@example.net"}


def test_wrong_foreign_old_and_replayed_tokens_are_counted_and_strays_are_not(deliver, now) -> None:
    letter, old = deliver("a@example.net"), deliver("b@example.net", ago=timedelta(days=31))
    good = return_path(letter)
    foreign = token(Purpose.RETURN_PATH, letter.pk, key="of somebody else")
    missing = token(Purpose.RETURN_PATH, 999_999)
    take(report(delivered_to=good), now, uid="1")
    take(report(), now, uid="stray")
    assert not Breaker.objects.exists()
    for uid, address in enumerate(
        (
            f"bounce+{'a' * 24}@bounces.example.org",
            f"bounce+{foreign}@bounces.example.org",
            f"bounce+{missing}@bounces.example.org",
            return_path(old),
            good,
        )
    ):
        take(report(delivered_to=address), now, uid=f"bad {uid}")
    assert Breaker.objects.get().count == 5
    assert suppressed() == {"a@example.net"}


def test_the_count_of_forged_tokens_starts_afresh_after_a_day(db, now) -> None:
    assert not Breaker.add(9, 10, now)
    assert not Breaker.add(9, 10, now + timedelta(days=1, seconds=1))
    assert Breaker.add(1, 10, now + timedelta(days=1, seconds=2))
    assert not Breaker.add(1, 10, now + timedelta(days=1, seconds=3))  # it is open already


def test_ten_thousand_forged_tokens_trip_the_breaker_by_default(db, now) -> None:
    Breaker.objects.create(name=Breaker.FORGED_TOKENS, count=9_999, counting_since=now)
    take(forged(1), now)
    assert Breaker.is_tripped()


def test_a_batch_does_what_its_mails_would_do_one_by_one(deliver: Deliver, now) -> None:
    letters = [deliver(f"r{number}@example.net") for number in range(4)]
    mails = [report(delivered_to=return_path(letter)) for letter in letters]
    batch = [
        *(Fetched(f"{number}", raw) for number, raw in enumerate(mails)),
        Fetched("again", mails[0]),
        Fetched("stray", report()),
        Fetched("human", raw_sample("a-letter-of-a-reader")),
    ]
    with ReadingProcess(read_whole) as reader:
        verdicts = take_in("default", "v", batch, now, reader)
        assert take_in("default", "v", batch, now, reader) == verdicts
    assert verdicts == [Verdict.BOUNCE] * 6 + [Verdict.UNRECOGNISED]
    assert totals(letters[0]) == {"eligible": 4, "bounced": 4}
    assert len(suppressed()) == 4
    assert Bounce.objects.filter(counted=True).count() == 4
    assert Bounce.objects.filter(suppressed=True).count() == 4
    assert Bounce.objects.count() == 6
    assert ReceivedMail.objects.count() == 7


def test_a_batch_costs_the_database_little_more_than_one_mail(
    deliver: Deliver, now, django_assert_max_num_queries
) -> None:
    letters = [deliver(f"r{number}@example.net") for number in range(50)]
    batch = [
        Fetched(str(letter.pk), report(delivered_to=return_path(letter))) for letter in letters
    ]
    with ReadingProcess(read_whole) as reader, django_assert_max_num_queries(35):
        take_in("default", "v", batch, now, reader)
    assert len(suppressed()) == 50
