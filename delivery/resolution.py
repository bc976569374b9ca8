"""Looking for evidence about letters in doubt, at a provider that can look (Confirms).

When to look is pure; what was found is written through delivery.doubts. While a letter is
UNCONFIRMED, its ``due_at`` is the moment of its next look, or says how the looks ended. Whether
a letter is then sent again is not decided here: that is its campaign's policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Min, Q, QuerySet

from campaigns.models import Campaign
from campaigns.states import CampaignStatus
from delivery import doubts, limits, message_ids
from delivery.bridge import Bridge
from delivery.composing import message_id_of
from delivery.conf import DeliverySettings
from delivery.message import Envelope, OutgoingMessage
from delivery.models import Delivery
from delivery.outcomes import Accepted, Outcome, Unavailable, Unconfirmed
from delivery.providers.base import Confirms
from delivery.states import DeliveryStatus

logger = logging.getLogger(__name__)

# After the doubt arose. A letter that was taken may need minutes until it is seen; only when the
# last look finds nothing is that some evidence that it was not.
LOOKS = tuple(timedelta(seconds=seconds) for seconds in (1, 2, 4, 8, 30, 120, 300, 600))
# In ``due_at``: no more looks. Far away, and apart from each other.
NOTHING_FOUND = datetime(9000, 1, 1, tzinfo=UTC)  # the letter may be sent again
STILL_THERE = datetime(9001, 1, 1, tzinfo=UTC)  # it waits at the provider: never send it again
CANNOT_LOOK = datetime(9002, 1, 1, tzinfo=UTC)  # nothing will ever be known
# A finished campaign's doubts are looked at for so long.
AFTERWARDS = timedelta(days=2)
# Looks before the worker turns to its letters again.
AT_ONCE = 20


def next_look(doubted_at: datetime, now: datetime) -> datetime | None:
    """The next moment for a look after one at ``now``; None when the last was the last."""
    return next((doubted_at + look for look in LOOKS if doubted_at + look > now), None)


def after_a_look(doubted_at: datetime, found: Outcome | None, now: datetime) -> datetime | None:
    """What ``due_at`` becomes when a look found this; None when it stays, for nobody could look."""
    match found:
        case None:
            return next_look(doubted_at, now) or NOTHING_FOUND
        case Unavailable(needs_a_person=True, rule="cannot look"):
            return CANNOT_LOOK
        case Unavailable():
            return None
        case _:
            return next_look(doubted_at, now) or STILL_THERE


@dataclass(frozen=True, slots=True)
class Doubt:
    """A letter whose look is due."""

    id: int
    campaign_id: int
    rcpt_to: str
    settled_at: datetime
    # The Message-ID that the provider gave it in place of ours; empty where it did not say.
    assigned_id: str = ""

    @property
    def message(self) -> OutgoingMessage:
        """As much of the letter as a look needs."""
        message_id = self.assigned_id or message_id_of(self.id, self.campaign_id)
        return OutgoingMessage(self.id, Envelope("", self.rcpt_to), (), message_id)


def may_be_sent_again(settings: DeliverySettings) -> Q:
    """Letters in doubt for which no evidence can come any more that they were taken."""
    looking = [alias for alias, provider in settings.providers.items() if provider.can_confirm]
    return ~Q(provider__in=looking) | Q(due_at=NOTHING_FOUND)


def next_due(alias: str, names: Sequence[str], now: datetime) -> datetime | None:
    """When the next look at a letter of this provider is due, and the provider open; None when
    none will be, or only a person can open it."""
    moments = _open(alias, names, now).aggregate(look=Min("due_at"), doubt=Min("settled_at"))
    if moments["look"] is None:
        return None
    state = limits.state_of(alias)
    if state.stopped:
        return None
    opens_at = limits.closed_until(state, now) or now
    due: datetime = max(moments["look"], moments["doubt"] + LOOKS[0], opens_at)
    return due


def due_looks(alias: str, names: Sequence[str], now: datetime, most: int = AT_ONCE) -> list[Doubt]:
    """Letters to look for now, the oldest first; none while the provider is closed: a look is a
    request too."""
    if limits.closed_until(limits.state_of(alias), now) is not None:
        return []
    rows = list(
        _open(alias, names, now)
        .filter(due_at__lte=now, settled_at__lte=now - LOOKS[0])
        .order_by("due_at", "id")
        .values_list("id", "campaign_id", "rcpt_to", "settled_at")[:most]
    )
    assigned = message_ids.assigned_to(row[0] for row in rows)
    return [Doubt(*row[:3], row[3], assigned.get(row[0], "")) for row in rows if row[3] is not None]


def record_look(alias: str, doubt: Doubt, found: Outcome | None, now: datetime) -> bool:
    """Writes what one look found; False when the provider is in trouble and looking must end."""
    if isinstance(found, Accepted):
        doubts.confirm(doubt.id, found.reply.text, now)
        return True
    due_at = after_a_look(doubt.settled_at, found, now)
    if due_at is not None:
        Delivery.objects.filter(
            pk=doubt.id, status=DeliveryStatus.UNCONFIRMED, settled_at=doubt.settled_at
        ).update(due_at=due_at)
    trouble = _trouble_of(found)
    if trouble is None:
        return True
    limits.pause(alias, trouble, now)
    return False


def _trouble_of(found: Outcome | None) -> Unavailable | None:
    match found:
        case Unavailable(rule="cannot look"):
            return None
        case Unavailable():
            return found
        case Unconfirmed(reply=reply, rule=rule, rests=True, retry_after=wait):
            return Unavailable(reply, wait, rule=rule)
        case _:
            return None


def _open(alias: str, names: Sequence[str], now: datetime) -> QuerySet[Delivery]:
    """Letters in doubt at this provider whose looks are not over: those that it had itself, whoever
    else is in its pools. By campaign, for the sake of the index; test letters are looked for by
    whoever asked for them."""
    campaigns = Campaign.objects.filter(provider__in=names).exclude(
        Q(status__in=[CampaignStatus.DRAFT, CampaignStatus.SCHEDULED])
        | Q(status=CampaignStatus.FINISHED, finished_at__lt=now - AFTERWARDS)
    )
    return Delivery.objects.filter(
        campaign_id__in=list(campaigns.values_list("pk", flat=True)),
        status=DeliveryStatus.UNCONFIRMED,
        provider=alias,
        is_test=False,
        due_at__lt=NOTHING_FOUND,
    )


async def look(
    bridge: Bridge,
    provider: Confirms,
    alias: str,
    names: Sequence[str],
    clock: Callable[[], datetime],
) -> datetime | None:
    """All looks that are due now, by a worker of this provider; when the next one is due.
    ``names``: those by which campaigns reach it.

    The worker's own provider looks, under the worker's lease: so a look takes none of the places
    for requests under way that belong to others.
    """
    pending: Sequence[Doubt] = await bridge.call(due_looks, alias, names, clock())
    for doubt in pending:
        found = await provider.confirm(doubt.message)
        logger.info("delivery.looked", extra={"delivery": doubt.id, "found": type(found).__name__})
        if not await bridge.call(record_look, alias, doubt, found, clock()):
            return None
    return await bridge.call(next_due, alias, names, clock())
