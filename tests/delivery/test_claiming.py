"""A worker's claim, in one statement or procedure or in many."""

from __future__ import annotations

from collections import Counter

import pytest

from campaigns.models import Campaign, CampaignTotals, Subscription, Suppression
from delivery import claiming, filling
from delivery.models import Claim, Delivery
from tests.delivery.conftest import make_campaign, make_readers, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("either_way")]


def test_a_claim_brings_all_that_a_letter_needs(mailing_list, lease, now):
    (reader,) = make_readers(mailing_list, 1)
    attributes = {"first_name": "Łucja", "tags": ["a", {"b": None}], "n": 1.5}
    type(reader).objects.update(name="Zoë “Z” \\ Ünal", language="de", attributes=attributes)
    campaign = make_campaign(mailing_list, now)
    assert campaign.start(now)
    queued_at = now.replace(microsecond=120_000)
    assert filling.fill_page(campaign, 1, queued_at) == 1
    (letter,) = Delivery.objects.all()
    (claimed,) = claiming.claim(lease, [campaign.pk], 5, queued_at)
    assert claimed == claiming.Claimed(
        letter.pk, campaign.pk, campaign.edition_id, reader.pk, reader.email, False, 0,
        claimed.queued, "Zoë “Z” \\ Ünal", "de", attributes, "Weekly", "weekly",
    )  # fmt: skip
    assert claimed.queued_at == queued_at


def test_a_claim_counts_what_it_moves(mailing_list, campaign, readers, lease, now):
    """Three of twelve wait for another attempt; of these and of the others one reader each is
    gone, one of them suppressed."""
    letters = list(Delivery.objects.order_by("pk"))
    Delivery.objects.filter(pk__in=[letter.pk for letter in letters[:3]]).update(status="deferred")
    CampaignTotals.add(campaign.pk, 0, {"queued": -3, "deferred": 3})
    Subscription.objects.filter(subscriber=letters[0].subscriber_id).update(status="unsubscribed")
    Suppression.objects.create(address_key=letters[5].address_key)
    claims = claiming.claim(lease, [campaign.pk], 12, now)
    assert [claimed.id for claimed in claims] == [
        letter.pk for letter in letters if letter not in (letters[0], letters[5])
    ]
    assert statuses(campaign) == {"claimed": 10, "suppressed": 2}
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    assert {name: count for name, count in totals.items() if count} == {
        "eligible": 12, "claimed": 10, "suppressed": 2,
    }  # fmt: skip
    assert Claim.letters(claim_key=lease.claim_key) == [claimed.id for claimed in claims][::-1]
    letters[0].refresh_from_db()
    assert (letters[0].settled_at, letters[0].claim_key) == (now, None)


def test_a_test_letter_goes_first_and_needs_no_campaign_that_sends(campaign, readers, lease, now):
    filling.queue_tests(
        campaign, campaign.edition_id, [("t@example.org", "t@example.org")], None, now
    )
    claims = claiming.claim(lease, [campaign.pk], 3, now)
    assert [claimed.is_test for claimed in claims] == [True, False, False]
    assert (claims[0].subscriber_id, claims[0].attributes) == (0, None)
    assert CampaignTotals.of([campaign.pk])[campaign.pk]["claimed"] == 2
    filling.queue_tests(
        campaign, campaign.edition_id, [("u@example.org", "u@example.org")], None, now
    )
    assert [claimed.rcpt_to for claimed in claiming.claim(lease, [], 3, now)] == ["u@example.org"]


def test_campaigns_share_a_claim_either_way(mailing_list, campaign, lease, now):
    """What the urgent one leaves is shared by its equals, of which one has a single letter."""
    urgent, small = (make_campaign(mailing_list, now, name=name) for name in ("Urgent", "Small"))
    for other, letters in ((urgent, 3), (small, 1)):
        assert other.start(now)
        assert filling.fill_page(other, letters, now) == letters
    Campaign.objects.filter(pk=urgent.pk).update(priority=10)
    claims = claiming.claim(lease, [small.pk, campaign.pk, urgent.pk], 10, now)
    assert Counter(claimed.campaign_id for claimed in claims) == {
        urgent.pk: 3, small.pk: 1, campaign.pk: 6,
    }  # fmt: skip
