"""Starts due campaigns, fills their queues, takes back what dead workers held, keeps the pool
manned, and finishes. Plain sync; every step may be repeated or run twice at once without harm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from django.db.models import F, Sum, Value

from campaigns.models import Campaign, CampaignTotals
from campaigns.states import CampaignStatus
from delivery import leases, limits, queue, resolution
from delivery.conf import DeliverySettings
from delivery.reclaim import reclaim_all
from delivery.states import IN_HAND, WAITING

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
FIRST_PAGE = 1_000  # small: the first letter leaves before the last row is written
PAGE = 10_000
# Starts worker tasks: (provider alias, how many).
Start = Callable[[str, int], None]


def coordinate(
    settings: DeliverySettings,
    clock: Clock,
    start_workers: Start,
    budget: timedelta,
    *,
    dice: Random,
    recorders: Path | None,
) -> bool:
    """One round of everything; True when it ran out of time and wants another at once."""
    end = clock() + budget
    reclaim_all(settings, clock(), dice, recorders)
    start_due(clock())
    unfinished = False
    for campaign in _open_campaigns():
        unfinished |= fill_queue(
            campaign, clock, end, lambda: top_up(settings, clock(), start_workers)
        )
    for campaign_id in _cancelled_with_waiting_letters():
        unfinished |= sweep_cancelled(campaign_id, clock, end)
    top_up(settings, clock(), start_workers)
    for campaign in _open_campaigns():
        finish(campaign, clock())
    return unfinished


def _open_campaigns() -> list[Campaign]:
    return list(Campaign.objects.filter(status=CampaignStatus.SENDING).order_by("id"))


def start_due(now: datetime) -> list[Campaign]:
    """SCHEDULED -> SENDING for the campaigns whose time has come."""
    due = Campaign.objects.filter(status=CampaignStatus.SCHEDULED, scheduled_at__lte=now)
    return [campaign for campaign in due if campaign.start(now)]


def fill_queue(
    campaign: Campaign, clock: Clock, end: datetime, after_first_page: Callable[[], None]
) -> bool:
    """Audience -> deliveries, page by page from the checkpoint; True when time ran out first."""
    if campaign.filled_at is not None:
        return False
    size = FIRST_PAGE if campaign.filled_up_to == 0 else PAGE
    while queue.fill_page(campaign, size, clock()) is not None:
        if size == FIRST_PAGE:
            after_first_page()
        size = PAGE
        if clock() >= end:
            return True
    return False


def _cancelled_with_waiting_letters() -> list[int]:
    """By their totals: a letter that a worker releases later is found by the next round."""
    waiting = Sum(sum((F(state) for state in WAITING), start=Value(0)))
    return list(
        CampaignTotals.objects.filter(campaign__status=CampaignStatus.CANCELLED)
        .order_by()
        .values("campaign_id")
        .annotate(waiting=waiting)
        .filter(waiting__gt=0)
        .values_list("campaign_id", flat=True)
    )


def sweep_cancelled(campaign_id: int, clock: Clock, end: datetime) -> bool:
    """Waiting letters of a cancelled campaign -> CANCELLED; True when time ran out first."""
    while queue.cancel_waiting(campaign_id, PAGE, clock()):
        if clock() >= end:
            return True
    return False


def top_up(settings: DeliverySettings, now: datetime, start_workers: Start) -> None:
    """Starts workers for each provider that is open, has free places and due letters or looks."""
    for alias, provider in settings.providers.items():
        if limits.closed_until(limits.state_of(alias), now) is not None:
            continue
        due = [queue.next_due(queue.open_campaigns(alias), alias)]
        if provider.can_confirm:
            due.append(resolution.next_due(alias, now))
        if not any(moment is not None and moment <= now for moment in due):
            continue
        free = leases.free_places(alias, settings.workers_for(alias))
        if free:
            start_workers(alias, free)


def finish(campaign: Campaign, now: datetime) -> bool:
    """SENDING -> FINISHED, only when every eligible letter has a final state.

    The totals say when it is worth looking; the rows themselves are counted before it is done.
    """
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    if campaign.filled_at is None or any(totals[state] for state in (*WAITING, *IN_HAND)):
        return False
    counted = queue.counted(campaign.pk)
    open_letters = sum(counted.get(state, 0) for state in (*WAITING, *IN_HAND))
    if open_letters or sum(counted.values()) != totals["eligible"]:
        logger.error(
            "delivery.unbalanced",
            extra={"campaign": campaign.pk, "totals": totals, "counted": counted},
        )
        return False
    return campaign.finish(now)
