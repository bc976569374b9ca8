"""Letters in doubt: what happens to them by evidence, by a person, and by their campaign's policy.

A letter is UNCONFIRMED when the connection broke, or its worker died, after the letter had left
and before the answer was read: it may have been taken (RFC 1047). Every way out of that state goes
through ``resolve`` and leaves a Resolution, except a report that comes back
(queue.mark_all_bounced):
that one is its own record.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, Min, OuterRef, Q, QuerySet

from campaigns.models import Campaign
from campaigns.states import CampaignStatus, OnDoubt
from delivery import queue
from delivery.models import Delivery, Resolution
from delivery.states import DeliveryStatus

logger = logging.getLogger(__name__)

# Letters moved by one transaction: a bulk decision must not hold thousands of rows.
AT_ONCE = 200
_MEANS = Resolution.Means


@dataclass(frozen=True, slots=True)
class SentAgain:
    """``queued``: how many are on their way again. ``cancelled``: how many stay in doubt because
    their campaign was cancelled: what has not left it never will."""

    queued: int = 0
    cancelled: int = 0


def confirm(delivery_id: int, because: str, now: datetime) -> bool:
    """UNCONFIRMED -> SENT: there is evidence that the letter had been taken. False when it was
    in no doubt. May be called in the caller's transaction."""
    return bool(resolve([delivery_id], DeliveryStatus.SENT, _MEANS.EVIDENCE, now, because=because))


def treat_as_sent(ids: Iterable[int], now: datetime, *, by: Any) -> int:
    """UNCONFIRMED -> SENT, as a person decided; how many moved."""
    return sum(
        len(resolve(some, DeliveryStatus.SENT, _MEANS.PERSON, now, by=by)) for some in _parts(ids)
    )


def send_again(ids: Iterable[int], now: datetime, *, by: Any) -> SentAgain:
    """UNCONFIRMED -> QUEUED, as a person decided. The Message-ID stays the same, and the claim
    looks again whether the reader may get it. A finished campaign is opened again."""
    queued = cancelled = 0
    for some in _parts(ids):
        with transaction.atomic():
            open_ids, gone = _reopened(some, by)
            cancelled += gone
            queued += len(resolve(open_ids, DeliveryStatus.QUEUED, _MEANS.PERSON, now, by=by))
    return SentAgain(queued, cancelled)


def resend_due(now: datetime, wait: timedelta, which: Q, most: int = 1000) -> int:
    """Sends again what has been in doubt for ``wait`` in campaigns that say so; how many letters.

    The wait is for evidence: a report, or the worker that was taken for dead. ``which``: letters
    of which no more evidence is awaited. Each goes out a second time at most once, whoever asked.
    """
    ids = list(
        _resendable(Campaign.objects.filter(status=CampaignStatus.SENDING))
        .filter(which, settled_at__lte=now - wait)
        .values_list("pk", flat=True)[:most]
    )
    return sum(
        len(resolve(some, DeliveryStatus.QUEUED, _MEANS.POLICY, now)) for some in _parts(ids)
    )


def next_resend(campaign: Campaign, wait: timedelta, which: Q) -> datetime | None:
    """When the first of a campaign's doubts will be sent again; None when none will be.
    ``which``: letters that may still be."""
    if campaign.on_doubt != OnDoubt.RESEND_ONCE:
        return None
    letters = _resendable(Campaign.objects.filter(pk=campaign.pk)).filter(which)
    since = letters.order_by().aggregate(at=Min("settled_at"))
    return since["at"] + wait if since["at"] else None


def resolve(
    ids: Sequence[int],
    status: DeliveryStatus,
    means: str,
    now: datetime,
    *,
    because: str = "",
    by: Any = None,
) -> list[int]:
    """UNCONFIRMED -> SENT or QUEUED with a Resolution for each; those that moved."""
    with transaction.atomic():
        moved = queue.resolve(ids, status, now)
        Resolution.objects.bulk_create(
            Resolution(
                delivery_id=delivery_id,
                at=now,
                means=means,
                status=status,
                because=because[:300],
                by=by,
            )
            for delivery_id in moved
        )
    for delivery_id in moved:
        logger.info(
            "delivery.resolved", extra={"delivery": delivery_id, "status": status, "means": means}
        )
    return moved


def _resendable(campaigns: QuerySet[Campaign]) -> QuerySet[Delivery]:
    """Letters in doubt of these campaigns that their policy sends again. Test letters are not
    among them: whoever asked for one sees that it does not come."""
    sent_again = Resolution.objects.filter(
        Q(means=_MEANS.PERSON) | Q(means=_MEANS.POLICY),
        delivery=OuterRef("pk"),
        status=DeliveryStatus.QUEUED,
    )
    return Delivery.objects.filter(
        ~Exists(sent_again),
        campaign__in=campaigns.filter(on_doubt=OnDoubt.RESEND_ONCE),
        status=DeliveryStatus.UNCONFIRMED,
        is_test=False,
    ).order_by("campaign_id", "id")


def _reopened(ids: Sequence[int], by: Any) -> tuple[list[int], int]:
    """(letters that may leave again, letters of cancelled campaigns). In a transaction: campaigns
    stay locked, so that none finishes between this look and the letters' move."""
    letters = list(
        Delivery.objects.filter(pk__in=ids, status=DeliveryStatus.UNCONFIRMED).values_list(
            "pk", "campaign_id", "is_test"
        )
    )
    campaigns = {
        campaign.pk: campaign
        for campaign in Campaign.objects.select_for_update(no_key=True)
        .filter(pk__in={campaign_id for _pk, campaign_id, is_test in letters if not is_test})
        .order_by("pk")
    }
    # A test letter belongs to no campaign's ledger and leaves in any state.
    may_leave = [
        pk
        for pk, campaign_id, is_test in letters
        if is_test or campaigns[campaign_id].status != CampaignStatus.CANCELLED
    ]
    for campaign in campaigns.values():
        if campaign.status == CampaignStatus.FINISHED:
            campaign.reopen(by=by, note="a letter in doubt is sent again")
    return may_leave, len(letters) - len(may_leave)


def _parts(ids: Iterable[int]) -> Iterator[list[int]]:
    everything = list(ids)
    for start in range(0, len(everything), AT_ONCE):
        yield everything[start : start + AT_ONCE]
