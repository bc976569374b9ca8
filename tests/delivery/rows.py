"""Rows for the pages' tests, written as the queue would have left them."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from campaigns.addresses import address_key
from campaigns.models import Campaign, CampaignTotals, Edition, MailingList, Subscriber
from delivery.models import Attempt, Delivery
from delivery.states import DeliveryStatus


def a_campaign(name: str = "Spring", **changes: Any) -> Campaign:
    """A campaign with its edition; a finished one unless told otherwise."""
    changes.setdefault("status", "finished")
    campaign = Campaign.objects.create(name=name, from_email="news@example.org", **changes)
    Edition.objects.create(
        campaign=campaign,
        digest=hashlib.sha256(name.encode()).hexdigest(),
        from_email="news@example.org",
        subject=f"News of {name}",
        html="",
        text="",
    )
    return campaign


def a_reader(email: str, **changes: Any) -> Subscriber:
    return Subscriber.objects.create(email=email, **changes)


def a_list(name: str) -> MailingList:
    return MailingList.objects.create(name=name, label=name.lower())


def a_letter(
    campaign: Campaign, to: Subscriber | str, now: datetime, status: str = "sent", **changes: Any
) -> Delivery:
    """A delivery in this state, and its place in the totals."""
    reader = to if isinstance(to, Subscriber) else None
    address = reader.email if reader else str(to)
    changes = {"due_at": now, "queued_at": now, **changes}
    delivery = Delivery.objects.create(
        campaign=campaign,
        edition=campaign.editions.get(),
        subscriber=reader,
        rcpt_to=address,
        address_key=address_key(address),
        **Delivery.of_state(DeliveryStatus(status)),
        **changes,
    )
    if not delivery.is_test:
        CampaignTotals.add(campaign.pk, 0, {"eligible": 1, status: 1})
    return delivery


def an_attempt(delivery: Delivery, at: datetime, outcome: str, **changes: Any) -> Attempt:
    changes = {
        "provider": "default",
        "phase": "rcpt",
        "code": 450,
        "reply": "4.2.0 Greylisted",
        "used_an_attempt": True,
        "status": "deferred",
        **changes,
    }
    return Attempt.objects.create(delivery=delivery, at=at, outcome=outcome, **changes)
