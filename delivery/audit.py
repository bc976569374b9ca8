"""The proof of the ledger: each letter counted once, in one state, with the history behind it.

Reading only. Each campaign is looked at in one snapshot, so that a running one balances too. A
question that only downstream can answer (which bounces are on record?) is asked by a signal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet
from django.db.models.expressions import Combinable
from django.dispatch import Signal
from django.utils.translation import gettext as _

from campaigns.models import (
    Campaign,
    CampaignTotals,
    Subscription,
    SubscriptionEvent,
    Suppression,
)
from campaigns.states import CampaignStatus, SubscriptionStatus
from delivery import leases, queue_pages
from delivery.models import Attempt, Delivery, Resolution, WorkerLease
from delivery.reclaim import PATIENCE_WITH_THE_LIVING
from delivery.states import FINAL, IN_HAND, UNUSUAL, WAITING, DeliveryStatus

# Which letters came back? Argument: campaign_id. Receivers return a QuerySet of delivery ids.
bounced_asked = Signal()

_S = DeliveryStatus
# A lease may be older than its end by the patience of reclaim, and by some rounds of it.
OVERDUE = PATIENCE_WITH_THE_LIVING + timedelta(minutes=5)
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Something that cannot be. ``examples``: ids of some of the letters concerned."""

    what: str
    count: int
    examples: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class CampaignAudit:
    """One campaign's ledger. ``counted``: its letters by state, looked at one by one."""

    campaign: Campaign
    eligible: int
    counted: dict[str, int]
    imbalances: list[Imbalance] = field(default_factory=list)

    @property
    def open_letters(self) -> int:
        return sum(self.counted.get(state, 0) for state in (*WAITING, *IN_HAND))

    @property
    def final_letters(self) -> int:
        return sum(self.counted.get(state, 0) for state in FINAL)


def audit_campaign(campaign_id: int) -> CampaignAudit:
    """Everything that must hold for one campaign, at one moment."""
    with snapshot():
        campaign = Campaign.objects.defer("html", "text").get(pk=campaign_id)
        letters = Delivery.objects.filter(campaign=campaign, is_test=False)
        totals = CampaignTotals.of([campaign.pk])[campaign.pk]
        rows = letters.order_by().values_list("status").annotate(n=Count("*"))
        counted = {str(status): count for status, count in rows}
        imbalances = [
            *_sums(campaign, totals, counted),
            *_doubles(letters),
            *_histories(campaign, letters),
            *_whereabouts(campaign, letters),
            *_holders(letters),
        ]
        return CampaignAudit(campaign, totals["eligible"], counted, imbalances)


def audit_leases(now: datetime) -> list[Imbalance]:
    """Places in a pool that nobody gave back, long after their time."""
    return [
        Imbalance(
            _("the place %(provider)s/%(slot)d is held by %(holder)s since long before now")
            % {"provider": lease.provider, "slot": lease.slot, "holder": lease.holder},
            1,
        )
        for lease, expires_at in leases.held()
        if expires_at < now - OVERDUE
    ]


@contextmanager
def snapshot() -> Iterator[None]:
    """A transaction whose questions all see one moment."""
    outermost = not connection.in_atomic_block
    with transaction.atomic():
        # SQLite's transactions are snapshots anyway. Inside another one it is too late to ask.
        if outermost and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


# ------------------------------------------------------------------------------------- the sums


def _sums(
    campaign: Campaign, totals: dict[str, int], counted: dict[str, int]
) -> Iterator[Imbalance]:
    letters = sum(counted.values())
    if letters != totals["eligible"]:
        yield Imbalance(
            _("%(letters)d letters, and %(eligible)d were eligible")
            % {"letters": letters, "eligible": totals["eligible"]},
            abs(letters - totals["eligible"]),
        )
    for state in DeliveryStatus:
        if counted.get(state, 0) != totals[state]:
            yield Imbalance(
                _("%(counted)d letters are %(state)s, and the totals say %(total)d")
                % {"counted": counted.get(state, 0), "state": state, "total": totals[state]},
                abs(counted.get(state, 0) - totals[state]),
            )
    open_letters = sum(counted.get(state, 0) for state in (*WAITING, *IN_HAND))
    if campaign.status == CampaignStatus.FINISHED and open_letters:
        yield Imbalance(_("finished, with letters still open"), open_letters)
    if campaign.status == CampaignStatus.FINISHED and campaign.filled_at is None:
        yield Imbalance(_("finished, with its queue not filled"), 1)
    if campaign.status != CampaignStatus.CANCELLED and counted.get(_S.CANCELLED):
        yield Imbalance(
            _("cancelled letters in a campaign that was not"), counted[_S.CANCELLED.value]
        )


def _doubles(letters: QuerySet[Delivery]) -> Iterator[Imbalance]:
    """The database forbids them; an index that was lost or is broken would let them in."""
    for fields, what in (
        (("subscriber_id",), _("readers with two letters")),
        (("address_key",), _("addresses with two letters")),
    ):
        twice = (
            letters.filter(**{f"{fields[0]}__isnull": False})
            .order_by()
            .values(*fields)
            .annotate(n=Count("*"))
            .filter(n__gt=1)
        )
        if count := twice.count():
            yield Imbalance(what, count)
    resent = (
        Resolution.objects.filter(
            delivery__in=letters, means=Resolution.Means.POLICY, status=_S.QUEUED
        )
        .order_by()
        .values("delivery")
        .annotate(n=Count("*"))
        .filter(n__gt=1)
    )
    if count := resent.count():
        yield Imbalance(_("letters that the policy sent again more than once"), count)


# ----------------------------------------------------------------------------------- the history


def _histories(campaign: Campaign, letters: QuerySet[Delivery]) -> Iterator[Imbalance]:
    for state in (_S.REJECTED, _S.EXPIRED, _S.DEFERRED, _S.UNCONFIRMED):
        attempt = Attempt.objects.filter(delivery=OuterRef("pk"), status=state)
        yield from _unexplained(
            letters.filter(~Exists(attempt), status=state),
            _("%(state)s without the attempt that led to it") % {"state": state},
        )
    confirmed = Resolution.objects.filter(delivery=OuterRef("pk"), status=_S.SENT)
    yield from _unexplained(
        letters.filter(status=_S.SENT).filter(
            Q(settled_at__isnull=True) | Q(~Exists(confirmed), code__isnull=True, reply="")
        ),
        _("sent without the server's answer or its moment"),
    )
    bounced = letters.filter(status=_S.BOUNCED)
    answers: list[tuple[Any, Any]] = bounced_asked.send(Delivery, campaign_id=campaign.pk)
    for _receiver, came_back in answers:
        bounced = bounced.exclude(pk__in=came_back)
    yield from _unexplained(bounced, _("bounced without a report that says so"))
    yield from _unexplained(
        letters.filter(_taken_out_for_nothing(campaign), status=_S.SUPPRESSED),
        _("suppressed, though the reader never left and the address never was"),
    )
    yield from _unexplained(
        letters.filter(status__in=FINAL - {_S.SENT}, settled_at__isnull=True),
        _("final without the moment of it"),
    )


def _taken_out_for_nothing(campaign: Campaign) -> Combinable | Q:
    """A reader who is gone, who is or was unsubscribed, or whose address is or was suppressed
    explains it; so does a list that was taken from her."""
    suppressed = Suppression.objects.filter(address_key=OuterRef("address_key"))
    on_a_list = Subscription.objects.filter(
        subscriber_id=OuterRef("subscriber_id"),
        mailing_list__campaigns=campaign.pk,
        status=SubscriptionStatus.SUBSCRIBED,
    )
    left_once = SubscriptionEvent.objects.filter(
        subscription__subscriber_id=OuterRef("subscriber_id"),
        subscription__mailing_list__campaigns=campaign.pk,
        to_status=SubscriptionStatus.UNSUBSCRIBED,
    )
    return ~Exists(suppressed) & Exists(on_a_list) & ~Exists(left_once)


def _whereabouts(campaign: Campaign, letters: QuerySet[Delivery]) -> Iterator[Imbalance]:
    """Claims and lists look in pages and indexes, not at the state itself."""
    in_a_page = Q(pk__in=())
    for first_id, last_id in queue_pages.stretches(campaign.pk):
        in_a_page |= Q(pk__gte=first_id, pk__lte=last_id)
    yield from _unexplained(
        letters.filter(status__in=WAITING, waits_alone=False).exclude(in_a_page),
        _("waiting where no claim looks for them"),
    )
    yield from _unexplained(
        letters.filter(waits_alone=True).exclude(status__in=WAITING),
        _("looked for by every claim, and not waiting"),
    )
    yield from _unexplained(
        letters.filter(
            Q(status__in=UNUSUAL) & ~Q(unusual=F("status"))
            | Q(unusual__isnull=False) & ~Q(status__in=UNUSUAL)
        ),
        _("listed under another state than their own"),
    )


def _holders(letters: QuerySet[Delivery]) -> Iterator[Imbalance]:
    lease = WorkerLease.objects.filter(claim_key=OuterRef("claim_key"))
    yield from _unexplained(
        letters.filter(~Exists(lease), status__in=IN_HAND), _("in hand, and nobody holds a lease")
    )
    yield from _unexplained(
        letters.filter(status__in=WAITING, claim_key__isnull=False),
        _("waiting, and still claimed by somebody"),
    )


def _unexplained(letters: QuerySet[Delivery], what: str) -> Iterator[Imbalance]:
    if count := letters.count():
        examples = list(
            letters.order_by("campaign_id", "id").values_list("pk", flat=True)[:EXAMPLES]
        )
        yield Imbalance(what, count, examples)
