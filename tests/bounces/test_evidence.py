"""What comes back is evidence for delivery: about doubts, for the guard rails and for the audit."""

from __future__ import annotations

from datetime import datetime

import pytest

from campaigns.models import Campaign
from delivery import guard_rails
from delivery.audit import audit_campaign
from delivery.conf import GuardRails
from delivery.models import Resolution
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, report, return_path
from tests.bounces.test_consequences import complaint_about
from tests.bounces.test_intake import take

pytestmark = pytest.mark.django_db


def test_a_complaint_about_a_letter_in_doubt_ends_the_doubt(
    deliver: Deliver, campaign: Campaign, now: datetime
) -> None:
    letter = deliver(status=DeliveryStatus.UNCONFIRMED)
    take(complaint_about(letter), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    resolution = Resolution.objects.get()
    assert (resolution.means, resolution.status) == ("evidence", "sent")
    assert "complaint" in resolution.because


def test_a_bounce_of_a_letter_in_doubt_needs_no_other_record(
    deliver: Deliver, campaign: Campaign, now: datetime
) -> None:
    letter = deliver(status=DeliveryStatus.UNCONFIRMED)
    take(report(delivered_to=return_path(letter)), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert not Resolution.objects.exists()
    assert audit_campaign(campaign.pk).imbalances == []


def test_complaints_are_counted_by_letter_for_the_guard_rails(
    deliver: Deliver, campaign: Campaign, now: datetime
) -> None:
    Campaign.objects.update(status="sending")
    letters = [deliver(f"reader{number}@example.net") for number in range(100)]
    for uid, number in enumerate((1, 2, 2)):
        take(complaint_about(letters[number]), now, uid=str(uid))
    assert guard_rails.complaints_of(campaign.pk) == 2
    assert guard_rails.check_rates(GuardRails(complained=0.02), now) == []
    assert guard_rails.check_rates(GuardRails(complained=0.019), now) == [campaign.pk]
    campaign.refresh_from_db()
    assert campaign.status == "paused"
