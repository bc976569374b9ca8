"""Why did X (not) get it? One true sentence for each campaign."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from campaigns.models import Campaign, MailingList, Subscriber, Subscription, SubscriptionEvent
from campaigns.models import Suppression as SuppressionRow
from delivery.models import Delivery
from delivery.story import StoryLine, story_asked
from delivery.why import Answer, why
from tests.delivery.rows import a_campaign, a_letter, a_list, a_reader

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
ADA = "ada@example.org"


@pytest.fixture
def weekly() -> MailingList:
    return a_list("Weekly")


@pytest.fixture
def campaign(weekly: MailingList, now: datetime) -> Campaign:
    """A finished campaign to Weekly, whose audience was chosen at ``now``."""
    campaign = a_campaign(started_at=now, filled_at=now, finished_at=now)
    campaign.include_lists.set([weekly])
    return campaign


def reader_since(when: datetime, email: str = ADA) -> Subscriber:
    reader = a_reader(email)
    Subscriber.objects.filter(pk=reader.pk).update(created_at=when)
    return reader


def subscribe(
    reader: Subscriber, mailing_list: MailingList, when: datetime, status: str = "subscribed"
) -> Subscription:
    subscription = Subscription.objects.create(
        subscriber=reader, mailing_list=mailing_list, status=status
    )
    Subscription.objects.filter(pk=subscription.pk).update(created_at=when)
    return subscription


def move(subscription: Subscription, status: str, when: datetime, **changes: Any) -> None:
    subscription.move(status, source=changes.pop("source", "a person"), **changes)
    latest = SubscriptionEvent.objects.filter(subscription=subscription).latest("id")
    SubscriptionEvent.objects.filter(pk=latest.pk).update(at=when)


def suppress(when: datetime, *, lifted_at: datetime | None = None) -> None:
    SuppressionRow.objects.create(
        address_key=ADA, reason="hard_bounce", source="bounce 7", lifted_at=lifted_at
    )
    SuppressionRow.objects.update(created_at=when)


def asked(campaign: Campaign, now: datetime, address: str = ADA) -> Answer:
    return why(address, [Campaign.objects.get(pk=campaign.pk)], now)[0]


# ---------------------------------------------------------------------------------- with a letter


@pytest.mark.parametrize(
    ("status", "changes", "sentence"),
    [
        (
            "sent",
            {"code": 250, "reply": "2.0.0 Ok"},
            "Sent on 21 November 2026, 10:00: the provider's server accepted it (250 2.0.0 Ok).",
        ),
        (
            "rejected",
            {"code": 550, "reply": "5.1.1 No such user"},
            "Refused for good on 21 November 2026, 10:00: 550 5.1.1 No such user",
        ),
        (
            "rejected",
            {"reply": "The letter could not be written: no value for first_name"},
            "Not sent on 21 November 2026, 10:00: The letter could not be written: "
            "no value for first_name",
        ),
        (
            "expired",
            {"attempts": 6, "code": 450, "reply": "4.2.0 Later"},
            "Given up on 21 November 2026, 10:00 after 6 attempts; the last answer was: "
            "450 4.2.0 Later",
        ),
        (
            "cancelled",
            {},
            "The campaign was cancelled on 21 November 2026, 10:00, before this letter was sent.",
        ),
        (
            "unconfirmed",
            {},
            "In doubt since 21 November 2026, 10:00. The connection broke after the letter had "
            "been handed over. It may or may not have arrived; sending it again may give the "
            "reader two copies.",
        ),
        (
            "deferred",
            {"code": 450, "reply": "4.2.0 Greylisted"},
            "Refused for now, due again on 21 November 2026, 10:00; the last answer was: "
            "450 4.2.0 Greylisted",
        ),
        ("queued", {}, "Still queued since 21 November 2026, 10:00, waiting for its turn."),
        ("sending", {}, "Being sent right now."),
    ],
)
def test_a_letter_explains_itself_by_its_state(
    campaign: Campaign, now: datetime, status: str, changes: dict[str, Any], sentence: str
) -> None:
    letter = a_letter(campaign, a_reader(ADA), now, status, settled_at=now, **changes)
    answer = asked(campaign, now)
    assert answer.sentence == sentence
    assert answer.delivery == letter


def test_a_bounced_letter_says_because_of_what(campaign: Campaign, now: datetime) -> None:
    a_letter(campaign, a_reader(ADA), now, "bounced", settled_at=now)

    def tell(*, delivery: Delivery, **_: object) -> list[StoryLine]:
        return [
            StoryLine(now, "Bounced", "5.1.1 Mailbox\n  does not exist", "bad"),
            StoryLine(now + DAY, "An automatic reply", "I am away"),
        ]

    story_asked.connect(tell)
    try:
        sentence = asked(campaign, now).sentence
    finally:
        story_asked.disconnect(tell)
    assert sentence == (
        "Sent, but it bounced on 21 November 2026, 10:00 because: 5.1.1 Mailbox does not exist"
    )


def test_a_letter_in_a_paused_campaign_waits_for_the_campaign(
    campaign: Campaign, now: datetime
) -> None:
    Campaign.objects.update(status="paused")
    a_letter(campaign, a_reader(ADA), now, "queued")
    assert "the campaign is paused" in asked(campaign, now).sentence


def test_a_waiting_letter_of_a_cancelled_campaign_will_not_be_sent(
    campaign: Campaign, now: datetime
) -> None:
    Campaign.objects.update(status="cancelled")
    a_letter(campaign, a_reader(ADA), now, "queued")
    assert "was cancelled on 21 November" in asked(campaign, now).sentence


def test_a_letter_taken_out_at_its_claim_says_which_unsubscription_did_it(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    reader = reader_since(now - DAY)
    subscription = subscribe(reader, weekly, now - DAY)
    move(subscription, "unsubscribed", now, source="one-click", campaign_id=campaign.pk)
    a_letter(campaign, reader, now, "suppressed", settled_at=now)
    assert asked(campaign, now).sentence == (
        "Taken out on 21 November 2026, 10:00, before it was sent: unsubscribed from Weekly on "
        "21 November 2026, 10:00 (one-click, in a letter of the campaign Spring)."
    )


def test_a_letter_to_a_former_address_is_found_through_the_reader(
    campaign: Campaign, now: datetime
) -> None:
    reader = a_reader(ADA)
    letter = a_letter(campaign, reader, now, settled_at=now)
    Delivery.objects.update(rcpt_to="old@example.org", address_key="old@example.org")
    answer = asked(campaign, now)
    assert answer.delivery == letter
    assert answer.sentence.startswith("Under the address old@example.org: Sent on")


def test_the_address_may_be_typed_in_any_case(campaign: Campaign, now: datetime) -> None:
    a_letter(campaign, a_reader(ADA), now, settled_at=now)
    assert asked(campaign, now, "ADA@Example.ORG").tone == "good"


# ------------------------------------------------------------------------------- without a letter


def test_an_unknown_address_is_called_unknown(campaign: Campaign, now: datetime) -> None:
    assert asked(campaign, now).sentence == (
        "Not in the audience: the address is unknown: no reader has it."
    )


def test_a_reader_added_later_was_too_late(campaign: Campaign, now: datetime) -> None:
    reader_since(now + DAY)
    assert "added on 22 November 2026, 10:00, after" in asked(campaign, now).sentence


def test_a_reader_on_other_lists_only_was_not_subscribed(campaign: Campaign, now: datetime) -> None:
    subscribe(reader_since(now - DAY), a_list("Other"), now - DAY)
    assert "not subscribed to any of its lists (Weekly)." in asked(campaign, now).sentence


def test_a_reader_who_unsubscribed_before_is_told_when_and_how(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    subscription = subscribe(reader_since(now - 3 * DAY), weekly, now - 3 * DAY)
    move(subscription, "unsubscribed", now - DAY)
    # Back again since: what counts is what held when the audience was chosen.
    move(subscription, "subscribed", now + DAY)
    assert asked(campaign, now).sentence == (
        "Not in the audience: unsubscribed from Weekly on 20 November 2026, 10:00 (a person)."
    )


def test_an_unsubscription_since_then_does_not_explain_an_absence(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    subscription = subscribe(reader_since(now - DAY), weekly, now - DAY)
    move(subscription, "unsubscribed", now + DAY)
    assert "nothing on record explains it" in asked(campaign, now).sentence


def test_a_subscription_that_was_never_confirmed_is_named(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    subscribe(reader_since(now - DAY), weekly, now - DAY, "pending")
    assert "the subscription to Weekly was not confirmed." in asked(campaign, now).sentence


def test_a_subscription_made_later_is_named(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    subscribe(reader_since(now - DAY), weekly, now + DAY)
    assert "subscribed to Weekly only on 22 November 2026" in asked(campaign, now).sentence


def test_an_excluded_list_is_named(campaign: Campaign, weekly: MailingList, now: datetime) -> None:
    staff = a_list("Staff")
    campaign.exclude_lists.set([staff])
    reader = reader_since(now - DAY)
    subscribe(reader, weekly, now - DAY)
    subscribe(reader, staff, now - DAY)
    assert "on the list Staff, which the campaign leaves out" in asked(campaign, now).sentence


def test_a_suppression_in_force_then_is_named_and_one_lifted_before_is_not(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    subscribe(reader_since(now - 5 * DAY), weekly, now - 5 * DAY)
    suppress(now - 2 * DAY)
    assert asked(campaign, now).sentence == (
        "Not in the audience: the address is suppressed since 19 November 2026, 10:00 because: "
        "Hard bounce (bounce 7)."
    )
    SuppressionRow.objects.update(lifted_at=now - DAY)
    assert "suppressed" not in asked(campaign, now).sentence


def test_a_campaign_cancelled_before_its_start_says_so(campaign: Campaign, now: datetime) -> None:
    Campaign.objects.update(status="cancelled", started_at=None, filled_at=None)
    assert asked(campaign, now).sentence == (
        "The campaign was cancelled on 21 November 2026, 10:00, before it had started."
    )


def test_a_queue_that_is_still_filling_says_so(campaign: Campaign, now: datetime) -> None:
    reader = reader_since(now - DAY)
    Campaign.objects.update(status="sending", filled_at=None, filled_up_to=reader.pk - 1)
    assert "still being filled" in asked(campaign, now).sentence
    Campaign.objects.update(status="cancelled")
    assert "before its queue had come to this reader" in asked(campaign, now).sentence


def test_a_scheduled_campaign_tells_how_things_stand(
    campaign: Campaign, weekly: MailingList, now: datetime
) -> None:
    Campaign.objects.update(
        status="scheduled", started_at=None, filled_at=None, scheduled_at=now + DAY
    )
    assert "as things stand without this reader: the address is unknown" in (
        asked(campaign, now).sentence
    )
    subscribe(reader_since(now - DAY), weekly, now - DAY)
    assert asked(campaign, now).sentence == (
        "It starts on 22 November 2026, 10:00, and as things stand with this reader."
    )


def test_twenty_campaigns_cost_as_many_queries_as_one(weekly: MailingList, now: datetime) -> None:
    reader = reader_since(now - DAY)
    subscription = subscribe(reader, weekly, now - DAY)
    move(subscription, "unsubscribed", now - DAY / 2)
    campaigns = []
    for number in range(20):
        campaign = a_campaign(f"Number {number}", started_at=now, filled_at=now)
        campaign.include_lists.set([weekly])
        campaigns.append(campaign)
        if number % 2:
            a_letter(campaign, reader, now, settled_at=now)

    def cost(pks: list[int]) -> int:
        found = list(Campaign.objects.filter(pk__in=pks))
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert len(why(ADA, found, now)) == len(pks)
        return len(queries)

    pks = [campaign.pk for campaign in campaigns]
    assert cost(pks) == cost(pks[:2])
