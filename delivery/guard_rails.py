"""What stops a campaign by itself: the circuit breaker, and rates that were passed.

The breaker looks at each refusal as it is written, in the worker's transaction: a relay that
answers 550 to everybody must not cost a list. Until it is known that a refusal belongs to no such
burst, nobody is suppressed by it: the address is *due*, and becomes suppressed when OF_LAST more
letters had their answer or the campaign has ended. Those of a burst are *held* for a person.

Rates are looked at by the coordinator: bounces and complaints come minutes later anyway.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet
from django.dispatch import Signal
from django.utils.translation import gettext as _

from campaigns.models import Campaign, CampaignEvent, CampaignTotals, Suppression
from campaigns.states import CampaignStatus, SuppressionReason
from delivery import alerts
from delivery.conf import GuardRails, delivery_settings
from delivery.models import Alert, Attempt, SuppressionDue
from delivery.settlement import Settlement
from delivery.states import DeliveryStatus

logger = logging.getLogger(__name__)

# How many readers complained about a campaign is known downstream. Argument: campaign_id.
# Receivers return a number of letters.
complaints_asked = Signal()
# The same for letters that came back because of us: policy, reputation, authentication.
blocked_asked = Signal()

# States of a letter that had its last answer; SENT may still become BOUNCED.
ANSWERED = ("sent", "bounced", "unconfirmed", "rejected", "expired")
# Bounces come in for some days after the last letter left.
WATCHED_AFTER = timedelta(days=3)
# Addresses suppressed by one transaction.
AT_ONCE = 500
_D = SuppressionDue


@dataclass(frozen=True, slots=True)
class Burst:
    """Refusals that are alike: by this rule or reply, so many of so many letters."""

    likeness: str
    refused: int
    of: int


# ---------------------------------------------------------------------------- the circuit breaker


def places(settled: Sequence[tuple[int, int, Settlement]]) -> dict[int, int]:
    """Which place among their campaign's answers the refusals of a wave have, by delivery.

    ``settled``: (delivery, campaign, settlement) in the order of their answers. Empty, and asks no
    database, where nothing was refused: that is nearly every wave.
    """
    refused = {
        campaign_id
        for _delivery, campaign_id, settlement in settled
        if settlement.status is DeliveryStatus.REJECTED
    }
    if not refused:
        return {}
    next_place = {
        campaign_id: sum(totals[state] for state in ANSWERED)
        for campaign_id, totals in CampaignTotals.of(sorted(refused)).items()
    }
    found = {}
    for delivery_id, campaign_id, settlement in settled:
        if campaign_id not in refused or settlement.status not in ANSWERED:
            continue
        if settlement.status is DeliveryStatus.REJECTED:
            found[delivery_id] = next_place[campaign_id]
        next_place[campaign_id] += 1
    return found


def watch(campaign_ids: Iterable[int], now: datetime) -> list[int]:
    """Trips the breaker of each of these campaigns whose last answers are refused alike; those
    that tripped. In the transaction that wrote the refusals."""
    rails = delivery_settings().guard_rails
    tripped = []
    for campaign_id in campaign_ids:
        refusals = _last_refusals(campaign_id, rails)
        burst = find_burst([(place, likeness) for _pk, place, likeness in refusals], rails)
        if burst is None:
            continue
        _hold_back([pk for pk, _place, likeness in refusals if likeness == burst.likeness])
        _trip(campaign_id, burst, now)
        tripped.append(campaign_id)
    return tripped


def find_burst(refusals: Sequence[tuple[int, str]], rails: GuardRails) -> Burst | None:
    """The burst among a campaign's last refusals, (place, likeness) in any order; None where they
    are few or differ.

    Places say how many answers lie between two refusals. Waves that are written at the same time
    may give one place twice: then the refusals look a little denser than they were.
    """
    if not refusals:
        return None
    end = max(place for place, _likeness in refusals) + 1
    recent = [(place, likeness) for place, likeness in refusals if place >= end - rails.of_last]
    for likeness, count in Counter(likeness for _place, likeness in recent).most_common():
        alike = sorted(place for place, other in recent if other == likeness)
        if rails.alike is not None and count > rails.alike * rails.of_last:
            return Burst(likeness, count, rails.of_last)
        n = rails.in_a_row
        if n is not None and any(
            last - first < n for first, last in zip(alike, alike[n - 1 :], strict=False)
        ):
            return Burst(likeness, n, n)
    return None


def _last_refusals(campaign_id: int, rails: GuardRails) -> list[tuple[int, int, str]]:
    """(attempt, place, likeness) of a campaign's refusals since a person last let it go on."""
    let_go = (
        CampaignEvent.objects.filter(campaign_id=campaign_id, action="resumed")
        .order_by("-id")
        .values_list("at", flat=True)
        .first()
    )
    rows = Attempt.objects.filter(
        delivery__campaign_id=campaign_id,
        delivery__is_test=False,
        answered_before__isnull=False,
    )
    if let_go is not None:
        rows = rows.filter(at__gt=let_go)
    # Newest first, and no more than the breaker could need: other campaigns' refusals lie between.
    return [
        (pk, place or 0, rule or " ".join(reply.split()[:2]) or str(code))
        for pk, place, rule, code, reply in rows.order_by("-id").values_list(
            "pk", "answered_before", "rule", "code", "reply"
        )[: rails.of_last]
    ]


def _hold_back(attempt_ids: Sequence[int]) -> None:
    Attempt.objects.filter(pk__in=attempt_ids, suppression=_D.DUE).update(suppression=_D.HELD)


def _trip(campaign_id: int, burst: Burst, now: datetime) -> None:
    campaign = Campaign.objects.get(pk=campaign_id)
    reason = _("%(refused)d of the last %(of)d letters were refused alike (%(likeness)s).") % {
        "refused": burst.refused,
        "of": burst.of,
        "likeness": burst.likeness,
    }
    campaign.pause(note=_("circuit breaker: ") + reason)
    alerts.raise_alert(
        Alert.Kind.BREAKER,
        f"breaker: campaign {campaign_id}",
        _("“%(campaign)s” is paused: its letters are refused alike")
        % {"campaign": campaign.name[:120]},
        reason
        + "\n\n"
        + _(
            "Nobody was suppressed by it. Find out whether the trouble is ours; then resume or "
            "cancel the campaign, and decide about the addresses that were held back."
        ),
        now,
        campaign=campaign,
    )


# ------------------------------------------------------------------------- addresses that are due


def suppress_due() -> int:
    """Suppresses the addresses whose refusals proved to be no burst; how many."""
    campaigns = Campaign.objects.filter(
        pk__in=Attempt.objects.filter(suppression=_D.DUE).values("delivery__campaign_id")
    )
    return sum(suppress_due_of(campaign) for campaign in campaigns.only("status"))


def suppress_due_of(campaign: Campaign) -> int:
    """The same for one campaign: all that are due once it has ended, and before that those which
    the breaker no longer looks at."""
    ripe = Attempt.objects.filter(suppression=_D.DUE, delivery__campaign_id=campaign.pk)
    if not campaign.is_final:
        totals = CampaignTotals.of([campaign.pk])[campaign.pk]
        answered = sum(totals[state] for state in ANSWERED)
        ripe = ripe.filter(answered_before__lt=answered - delivery_settings().guard_rails.of_last)
    return _suppress(ripe)


def held_back(campaign_id: int) -> QuerySet[Attempt]:
    """The refusals of a campaign whose addresses wait for a person's decision."""
    return Attempt.objects.filter(suppression=_D.HELD, delivery__campaign_id=campaign_id)


def suppress_held(campaign_id: int, *, by: object = None) -> int:
    """The refusals were right, says a person: their addresses are suppressed; how many."""
    return _suppress(held_back(campaign_id), by=by)


def drop_held(campaign_id: int) -> int:
    """The trouble was ours, says a person: nobody is suppressed by it; how many were let be."""
    ids = list(held_back(campaign_id).values_list("pk", flat=True))
    return Attempt.objects.filter(pk__in=ids).update(suppression=_D.DROPPED)


def _suppress(attempts: QuerySet[Attempt], *, by: object = None) -> int:
    count = 0
    while True:
        with transaction.atomic():
            some = list(
                attempts.select_related("delivery")
                .select_for_update(of=("self",), skip_locked=True)
                .order_by("suppression", "id")[:AT_ONCE]
            )
            for attempt in some:
                count += Suppression.add(
                    attempt.delivery.rcpt_to,
                    SuppressionReason.HARD_BOUNCE,
                    source=f"refused by the reader's server (delivery {attempt.delivery_id})",
                    evidence=attempt.reply
                    if attempt.code is None
                    else f"{attempt.code} {attempt.reply}",
                    by=by,
                )
            Attempt.objects.filter(pk__in=[attempt.pk for attempt in some]).update(
                suppression=_D.DONE
            )
        if len(some) < AT_ONCE:
            return count


# ------------------------------------------------------------------------------------- the rates


def check_rates(rails: GuardRails, now: datetime) -> list[int]:
    """Pauses each campaign that passed a rate, and tells; those for which a rail was passed now.

    Once for each rail and campaign: a person who resumes it has decided, and is not asked again.
    A campaign that finished within WATCHED_AFTER cannot be paused any more, but is told of.
    """
    watched = Campaign.objects.filter(
        Q(status=CampaignStatus.SENDING)
        | Q(status=CampaignStatus.FINISHED, finished_at__gt=now - WATCHED_AFTER)
    ).defer("html", "text")
    campaigns = {campaign.pk: campaign for campaign in watched}
    passed = []
    for campaign_id, totals in CampaignTotals.of(list(campaigns)).items():
        rates = rates_of(
            totals, complaints_of(campaign_id), rails.at_least, blocked_of(campaign_id)
        )
        for name, (rate, count, of) in rates.items():
            limit = getattr(rails, name)
            if limit is None or rate <= limit:
                continue
            if _stop(campaigns[campaign_id], name, rate, limit, count, of, now):
                passed.append(campaign_id)
    return passed


def rates_of(
    totals: Mapping[str, int], complaints: int, at_least: int, blocked: int = 0
) -> dict[str, tuple[float, int, int]]:
    """Each rail's (rate, letters, of how many); empty with fewer than ``at_least`` answers.

    A refusal at the door and a report that comes back are one rate: whoever judges us by it does
    not tell them apart.
    """
    answered = sum(totals[state] for state in ANSWERED)
    if answered < at_least:
        return {}
    taken = totals["sent"] + totals["bounced"]
    tried = answered + totals["deferred"]
    counts = {
        "bounced": (totals["bounced"] + totals["rejected"], answered),
        "blocked": (blocked, answered),
        "complained": (complaints, taken),
        "deferred": (totals["deferred"], tried),
        "unconfirmed": (totals["unconfirmed"], answered),
    }
    return {name: (count / of if of else 0.0, count, of) for name, (count, of) in counts.items()}


def complaints_of(campaign_id: int) -> int:
    """How many readers complained about a campaign, as downstream knows."""
    answers = complaints_asked.send(Campaign, campaign_id=campaign_id)
    return sum(int(answer or 0) for _receiver, answer in answers)


def blocked_of(campaign_id: int) -> int:
    """How many letters of a campaign came back because of us, as downstream knows."""
    answers = blocked_asked.send(Campaign, campaign_id=campaign_id)
    return sum(int(answer or 0) for _receiver, answer in answers)


def _stop(
    campaign: Campaign, name: str, rate: float, limit: float, count: int, of: int, now: datetime
) -> bool:
    cause = f"rail: campaign {campaign.pk} {name}"
    if Alert.objects.filter(cause=cause).exists():
        return False
    what = {
        "bounced": _("were refused or bounced"),
        "blocked": _("came back because of us, not of their readers"),
        "complained": _("led to a complaint"),
        "deferred": _("are deferred"),
        "unconfirmed": _("are unconfirmed"),
    }[name]
    reason = _("%(count)d of %(of)d letters %(what)s: %(rate)s, the limit is %(limit)s.") % {
        "count": count,
        "of": of,
        "what": what,
        "rate": f"{rate:.1%}",
        "limit": f"{limit:.1%}",
    }
    with transaction.atomic():
        paused = campaign.pause(note=_("guard rail: ") + reason)
        title = (
            _("“%(campaign)s” is paused: %(rate)s %(what)s")
            if paused
            else _("“%(campaign)s” passed a limit: %(rate)s %(what)s")
        )
        alerts.raise_alert(
            Alert.Kind.RAIL,
            cause,
            title % {"campaign": campaign.name[:100], "rate": f"{rate:.1%}", "what": what},
            reason,
            now,
            campaign=campaign,
        )
    return True
