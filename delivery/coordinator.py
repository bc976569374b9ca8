"""Starts due campaigns, fills their queues, takes back what dead workers held, keeps the pool
manned, and finishes. Plain sync; every step may be repeated or run twice at once without harm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum, Value
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from campaigns.models import Campaign, CampaignTotals
from campaigns.states import CampaignStatus
from delivery import (
    alerts,
    claiming,
    doubts,
    filling,
    groups,
    guard_rails,
    leases,
    limits,
    queue,
    resolution,
)
from delivery.conf import DeliverySettings, ProviderSettings
from delivery.models import Alert
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
    look_out(settings, clock())
    start_due(clock(), settings.stale_after)
    unfinished = groups.call_back(settings.names_of, clock, end)
    to_fill = list(_sending().filter(filled_at=None))
    if to_fill:
        # Workers need as long to come as the first page needs to be written.
        top_up(settings, clock(), start_workers)
    for campaign in to_fill:
        unfinished |= fill_queue(campaign, clock, end)
    doubts.resend_due(clock(), settings.resend_after, resolution.may_be_sent_again(settings))
    for campaign_id in _cancelled_with_waiting_letters():
        unfinished |= sweep_cancelled(campaign_id, clock, end)
    top_up(settings, clock(), start_workers)
    for campaign in _sending():
        finish(campaign, clock(), settings.resend_after)
    guard_rails.suppress_due()
    # Last, for it may take seconds: nothing waits for a mail server.
    alerts.tell(settings.alerts, clock())
    return unfinished


def look_out(settings: DeliverySettings, now: datetime) -> None:
    """What a person must know: rates that were passed, providers that stopped, and what is over."""
    alerts.resolve_what_is_over(now)
    guard_rails.check_rates(settings.guard_rails, now)
    alerts.of_stopped_providers(now)


def _sending() -> QuerySet[Campaign]:
    return Campaign.objects.filter(status=CampaignStatus.SENDING).order_by("id")


def start_due(now: datetime, stale_after: timedelta) -> list[Campaign]:
    """SCHEDULED -> SENDING for the campaigns whose time has come; those whose time passed longer
    than ``stale_after`` ago are held for a person: yesterday's invitation to a concert."""
    due = Campaign.objects.filter(
        status=CampaignStatus.SCHEDULED, scheduled_at__lte=now, held_at__isnull=True
    )
    started = []
    for campaign in due:
        if campaign.scheduled_at is not None and campaign.scheduled_at < now - stale_after:
            hold(campaign, now)
        elif campaign.start(now):
            started.append(campaign)
    return started


def hold(campaign: Campaign, now: datetime) -> None:
    """Leaves a late campaign to a person, and says so."""
    due = date_format(localtime(campaign.scheduled_at), "j F Y, H:i")
    with transaction.atomic():
        if not campaign.hold(now):
            return
        alerts.raise_alert(
            Alert.Kind.STALE,
            f"stale: campaign {campaign.pk}",
            _("“%(campaign)s” was not started: its time has passed")
            % {"campaign": campaign.name[:120]},
            _(
                "It was to start on %(due)s, and nothing was running then. A person must say "
                "whether it shall still go out."
            )
            % {"due": due},
            now,
            campaign=campaign,
        )


def fill_queue(campaign: Campaign, clock: Clock, end: datetime) -> bool:
    """Audience -> deliveries, page by page from the checkpoint; True when time ran out first."""
    size = FIRST_PAGE if campaign.filled_up_to == 0 else PAGE
    while filling.fill_page(campaign, size, clock()) is not None:
        # A page is written faster than it is sent: with these, no worker waits for the next one.
        size = min(2 * size, PAGE)
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
    """Starts workers for each provider that is open, has free places and something to do."""
    for alias, provider in settings.providers.items():
        if limits.closed_until(limits.state_of(alias), now) is not None:
            continue
        if not _has_work(provider, settings.names_of(alias), now):
            continue
        free = leases.free_places(alias, settings.workers_for(alias))
        if free:
            start_workers(alias, free)


def _has_work(provider: ProviderSettings, names: Sequence[str], now: datetime) -> bool:
    """Whether letters or looks are due, or letters are on their way into the queue."""
    campaign_ids = claiming.open_campaigns(names)
    if claiming.is_being_filled(campaign_ids):
        return True
    due = [claiming.next_due(campaign_ids, names)]
    if provider.can_confirm:
        due.append(resolution.next_due(provider.alias, names, now))
    return any(moment is not None and moment <= now for moment in due)


def finish(campaign: Campaign, now: datetime, resend_after: timedelta) -> bool:
    """SENDING -> FINISHED, only when every eligible letter has a final state.

    The totals say when it is worth looking; the rows themselves are counted before it is done,
    with the campaign locked: no letter in doubt is sent again between the count and the move.
    """
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    if campaign.filled_at is None or any(totals[state] for state in (*WAITING, *IN_HAND)):
        return False
    with transaction.atomic():
        Campaign.objects.select_for_update(no_key=True).only("pk").get(pk=campaign.pk)
        # Before the count: a letter that is sent again meanwhile is then counted as waiting.
        if next_resend(campaign, resend_after) is not None:
            return False
        totals = CampaignTotals.of([campaign.pk])[campaign.pk]
        counted = queue.counted(campaign.pk)
        if any(counted.get(state, 0) for state in (*WAITING, *IN_HAND)):
            return False
        if sum(counted.values()) != totals["eligible"]:
            logger.error(
                "delivery.unbalanced",
                extra={"campaign": campaign.pk, "totals": totals, "counted": counted},
            )
            return False
        if not campaign.finish(now):
            return False
        guard_rails.suppress_due_of(campaign)
    return True


def next_resend(campaign: Campaign, resend_after: timedelta) -> datetime | None:
    """When the first of a campaign's letters in doubt goes out again by its policy; None: never."""
    may_still_be = ~Q(due_at__gt=resolution.NOTHING_FOUND)
    return doubts.next_resend(campaign, resend_after, may_still_be)
