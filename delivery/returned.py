"""Reports about ourselves: letters that were accepted and came back for a reason of ours.

Microsoft answers 202 before it looks at its quotas; the refusal follows minutes later, as a report
to the sending mailbox. Its reader is not a bad address: the letter is queued again, for the time
at which there is room, and the provider or the whole tenant rests.

One such report takes back its own letter only. The provider is closed when ENOUGH letters came
back within WITHIN: whoever has one of our letters can write a report about it, and must not be
able to stop all others. And a letter is taken back MOST_OFTEN times, then its bounce counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from campaigns.models import Campaign
from campaigns.states import CampaignStatus
from delivery import limits, queue
from delivery.conf import delivery_settings
from delivery.day_quota import room_at
from delivery.models import Attempt, Delivery
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.states import DeliveryStatus

logger = logging.getLogger(__name__)

ENOUGH = 3
WITHIN = timedelta(hours=1)
MOST_OFTEN = 3
# When a letter is tried again that came back because the account is blocked: a person is asked.
AFTER_A_BLOCK = timedelta(hours=1)
OUTCOME = "returned"


@dataclass(frozen=True, slots=True)
class _AboutUs:
    """``status`` is a regular expression for the whole x.y.z, ``text`` is searched."""

    rule: str
    status: str = ""
    text: str = ""
    needs_a_person: bool = False


# Exchange Online, non-delivery reports. "Tenant's" because of day_quota.spent.
_ABOUT_US = (
    _AboutUs("submission quota", text=r"submissionquotaexceeded"),
    _AboutUs("submission quota", status=r"5\.1\.90"),
    _AboutUs("tenant's quota", status=r"5\.7\.23[23]"),
    _AboutUs("no custom domain", status=r"5\.7\.236", needs_a_person=True),
    _AboutUs("bad outbound sender", r"5\.1\.8", r"bad outbound sender", needs_a_person=True),
    _AboutUs("account blocked", r"5\.7\.(50[123]|508|705|708|750)", needs_a_person=True),
)
_CODE = re.compile(r"(?<![\d.])[45]\.\d{1,3}\.\d{1,3}(?!\d|\.\d)")
# What another server said about us is a bounce like any other: 5.7.350 "... -> 554 5.7.1 ...".
_ANOTHER_SERVER = re.compile(r"->|remote server (returned|said)|\bsaid: ", re.IGNORECASE)


def about_us(alias: str, status: str, diagnostic: str) -> Unavailable | None:
    """What a report says about our own mailbox or tenant; None when it is about the reader, or
    the letter did not go through a mailbox of Microsoft."""
    provider = delivery_settings().providers.get(alias)
    if provider is None or not provider.mailbox or _ANOTHER_SERVER.search(diagnostic):
        return None
    code = _CODE.search(diagnostic)
    said = code[0] if code else status
    for one in _ABOUT_US:
        if one.status and not re.fullmatch(one.status, said):
            continue
        if re.search(one.text, diagnostic, re.IGNORECASE):
            text = re.sub(r"^\s*smtp\s*;\s*(?:\d{3}[ -])?", "", diagnostic, flags=re.IGNORECASE)
            reply = Reply.of(Phase.FINAL_DOT, 550, text)
            return Unavailable(reply, needs_a_person=one.needs_a_person, rule=one.rule)
    return None


def take_back(reports: Mapping[int, Unavailable], now: datetime) -> set[int]:
    """SENT -> QUEUED for deliveries that came back because of us; those that will be sent again.

    In the caller's transaction. The others were taken back too often, were cancelled with their
    campaign, or are test letters: their bounce counts, against nobody but us.
    """
    letters = _that_may_leave_again(list(reports))
    due: dict[datetime, list[int]] = {}
    for letter in letters:
        due.setdefault(_due(letter.provider, reports[letter.pk], now), []).append(letter.pk)
    taken: set[int] = set()
    with transaction.atomic():
        for moment, ids in sorted(due.items()):
            taken.update(queue.take_back(ids, moment, now))
        Attempt.objects.bulk_create(
            Attempt(
                delivery=letter,
                at=now,
                provider=letter.provider,
                outcome=OUTCOME,
                phase="report",
                code=reports[letter.pk].reply.code,
                reply=reports[letter.pk].reply.text,
                rule=reports[letter.pk].rule,
                used_an_attempt=False,
                status=DeliveryStatus.QUEUED,
            )
            for letter in letters
            if letter.pk in taken
        )
        for alias in {letter.provider for letter in letters if letter.pk in taken}:
            _close(alias, [reports[o.pk] for o in letters if o.provider == alias], now)
    for pk in sorted(taken):
        logger.info("delivery.taken_back", extra={"delivery": pk, "rule": reports[pk].rule})
    return taken


def _that_may_leave_again(ids: list[int]) -> list[Delivery]:
    """A finished campaign is opened for them; locked, so that none finishes meanwhile."""
    letters = Delivery.objects.filter(
        pk__in=ids, status__in=[DeliveryStatus.SENT, DeliveryStatus.UNCONFIRMED], is_test=False
    ).order_by("pk")
    campaigns = {
        campaign.pk: campaign
        for campaign in Campaign.objects.select_for_update(no_key=True)
        .filter(pk__in={letter.campaign_id for letter in letters})
        .order_by("pk")
    }
    returned = Attempt.objects.filter(delivery__in=ids, outcome=OUTCOME)
    often = list(returned.values_list("delivery_id", flat=True))
    found = [
        letter
        for letter in letters
        if campaigns[letter.campaign_id].status != CampaignStatus.CANCELLED
        and often.count(letter.pk) < MOST_OFTEN
    ]
    for campaign in campaigns.values():
        if campaign.status == CampaignStatus.FINISHED and any(
            letter.campaign_id == campaign.pk for letter in found
        ):
            campaign.reopen(note="a letter came back because of us and is sent again")
    return found


def _due(alias: str, trouble: Unavailable, now: datetime) -> datetime:
    provider = delivery_settings().providers.get(alias)
    if trouble.needs_a_person or provider is None:
        return now + AFTER_A_BLOCK
    return room_at(provider, now, of_tenant=trouble.rule == "tenant's quota")


def _close(alias: str, troubles: list[Unavailable], now: datetime) -> None:
    gravest = max(troubles, key=lambda trouble: trouble.needs_a_person)
    lately = Attempt.objects.filter(
        outcome=OUTCOME, provider=alias, rule=gravest.rule, at__gt=now - WITHIN
    )
    if lately.order_by().values("delivery").distinct().count() >= ENOUGH:
        limits.pause(alias, gravest, now)
