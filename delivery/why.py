"""Why did this address get a campaign, or not? One sentence for each campaign. Reading only.

A letter explains itself by its state. Where there is none, the audience was chosen without the
reader, so the question is what held *then*: subscriptions are read from their history, and
suppressions by when they began and ended, not as they are today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Q, prefetch_related_objects
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from campaigns.addresses import address_key
from campaigns.models import (
    Campaign,
    MailingList,
    Subscriber,
    Subscription,
    SubscriptionEvent,
    Suppression,
)
from campaigns.states import CampaignStatus, SubscriptionStatus
from delivery.models import Delivery
from delivery.states import WAITING, DeliveryStatus
from delivery.story import unconfirmed_in_words, what_came_back

LONGEST_QUOTE = 220


@dataclass(frozen=True, slots=True)
class Answer:
    """One campaign's answer. ``tone`` as in StoryLine; ``delivery``: its letter, if any."""

    campaign: Campaign
    sentence: str
    tone: str = "neutral"
    delivery: Delivery | None = None


def asked_campaigns() -> list[CampaignStatus]:
    """The states in which a campaign has an answer: a draft has no audience yet."""
    return [status for status in CampaignStatus if status != CampaignStatus.DRAFT]


def why(address: str, campaigns: Sequence[Campaign], now: datetime) -> list[Answer]:
    """The answers for these campaigns, in their order. A fixed number of queries, and one more
    for each letter that bounced."""
    records = _Records.of(address, campaigns)
    answers = []
    for campaign in campaigns:
        delivery = records.deliveries.get(campaign.pk)
        if delivery is not None:
            answers.append(_about_letter(campaign, delivery, records))
        else:
            answers.append(_about_absence(campaign, records, now))
    return answers


# ---------------------------------------------------------------------------------- the records


@dataclass(slots=True)
class _Records:
    """All that is on record about an address and a page of campaigns, read once."""

    key: str
    reader: Subscriber | None
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    subscriptions: dict[int, Subscription] = field(default_factory=dict)  # by list
    events: dict[int, list[SubscriptionEvent]] = field(default_factory=dict)  # by subscription
    suppressions: list[Suppression] = field(default_factory=list)

    @classmethod
    def of(cls, address: str, campaigns: Sequence[Campaign]) -> _Records:
        key = address_key(address)
        reader = Subscriber.objects.filter(address_key=key).first()
        records = cls(key, reader)
        prefetch_related_objects(list(campaigns), "include_lists", "exclude_lists")
        which = Q(address_key=key)
        if reader is not None:
            # She may have had another address when the letter was sent.
            which |= Q(subscriber=reader)
        for delivery in Delivery.objects.filter(
            which, is_test=False, campaign__in=[campaign.pk for campaign in campaigns]
        ):
            known = records.deliveries.get(delivery.campaign_id)
            if known is None or known.address_key != key:
                records.deliveries[delivery.campaign_id] = delivery
        records.suppressions = list(Suppression.objects.filter(address_key=key).order_by("-id"))
        if reader is not None:
            records._read_subscriptions(reader)
        return records

    def _read_subscriptions(self, reader: Subscriber) -> None:
        self.subscriptions = {
            subscription.mailing_list_id: subscription
            for subscription in Subscription.objects.filter(subscriber=reader)
        }
        events = defaultdict(list)
        for event in (
            SubscriptionEvent.objects.filter(subscription__subscriber=reader)
            .select_related("campaign")
            .order_by("id")
        ):
            events[event.subscription_id].append(event)
        self.events = dict(events)

    def status_on(self, list_id: int, moment: datetime) -> str | None:
        """The reader's state on a list at that moment; None when she was not on it yet."""
        subscription = self.subscriptions.get(list_id)
        if subscription is None or subscription.created_at > moment:
            return None
        events = self.events.get(subscription.pk, [])
        before = [event for event in events if event.at <= moment]
        if before:
            return before[-1].to_status
        if events:
            return events[0].from_status or events[0].to_status
        return subscription.status

    def unsubscribed_on(self, list_id: int, moment: datetime) -> SubscriptionEvent | None:
        """The last step off a list before that moment."""
        subscription = self.subscriptions[list_id]
        for event in reversed(self.events.get(subscription.pk, [])):
            if event.at <= moment and event.to_status == SubscriptionStatus.UNSUBSCRIBED:
                return event
        return None

    def suppression_at(self, moment: datetime) -> Suppression | None:
        for suppression in self.suppressions:
            lifted = suppression.lifted_at
            if suppression.created_at <= moment and (lifted is None or lifted > moment):
                return suppression
        return None


# ---------------------------------------------------------------------------------- with a letter


def _about_letter(campaign: Campaign, delivery: Delivery, records: _Records) -> Answer:
    sentence, tone = _fate(campaign, delivery, records)
    if delivery.address_key != records.key:
        sentence = _("Under the address %(address)s: %(sentence)s") % {
            "address": delivery.rcpt_to,
            "sentence": sentence,
        }
    return Answer(campaign, sentence, tone, delivery)


def _fate(campaign: Campaign, delivery: Delivery, records: _Records) -> tuple[str, str]:
    settled = _when(delivery.settled_at)
    if delivery.status in WAITING and campaign.status == CampaignStatus.CANCELLED:
        return _cancelled(campaign.finished_at), "warning"
    match delivery.status:
        case DeliveryStatus.SENT:
            return (
                _("Sent on %(when)s: the provider's server accepted it (%(reply)s).")
                % {"when": settled, "reply": _reply(delivery)},
                "good",
            )
        case DeliveryStatus.BOUNCED:
            return (
                _("Sent, but it bounced on %(when)s because: %(reason)s")
                % {"when": settled, "reason": _bounce_reason(delivery)},
                "bad",
            )
        case DeliveryStatus.REJECTED if delivery.code is None:
            return (
                _("Not sent on %(when)s: %(reply)s") % {"when": settled, "reply": _reply(delivery)},
                "bad",
            )
        case DeliveryStatus.REJECTED:
            return (
                _("Refused for good on %(when)s: %(reply)s")
                % {"when": settled, "reply": _reply(delivery)},
                "bad",
            )
        case DeliveryStatus.EXPIRED:
            return (
                ngettext(
                    "Given up on %(when)s after %(n)d attempt; the last answer was: %(reply)s",
                    "Given up on %(when)s after %(n)d attempts; the last answer was: %(reply)s",
                    delivery.attempts,
                )
                % {"when": settled, "n": delivery.attempts, "reply": _reply(delivery)},
                "bad",
            )
        case DeliveryStatus.SUPPRESSED:
            return (
                _("Taken out on %(when)s, before it was sent: %(reason)s")
                % {"when": settled, "reason": _why_taken_out(campaign, delivery, records)},
                "warning",
            )
        case DeliveryStatus.CANCELLED:
            return _cancelled(delivery.settled_at), "warning"
        case DeliveryStatus.UNCONFIRMED:
            return (
                _("In doubt since %(when)s. %(explanation)s")
                % {"when": settled, "explanation": unconfirmed_in_words()},
                "warning",
            )
        case DeliveryStatus.DEFERRED:
            return (
                _("Refused for now, due again on %(due)s; the last answer was: %(reply)s")
                % {"due": _when(delivery.due_at), "reply": _reply(delivery)},
                "warning",
            )
        case DeliveryStatus.QUEUED if campaign.status == CampaignStatus.PAUSED:
            return (
                _("Still queued since %(when)s: the campaign is paused.")
                % {"when": _when(delivery.queued_at)},
                "info",
            )
        case DeliveryStatus.QUEUED:
            return (
                _("Still queued since %(when)s, waiting for its turn.")
                % {"when": _when(delivery.queued_at)},
                "info",
            )
        case _:
            return _("Being sent right now."), "info"


def _cancelled(when: datetime | None) -> str:
    return _("The campaign was cancelled on %(when)s, before this letter was sent.") % {
        "when": _when(when)
    }


def _bounce_reason(delivery: Delivery) -> str:
    """What came back, in the words of whoever read it."""
    lines = what_came_back(delivery)
    if not lines:
        return _("a report that is no longer on record.")
    last = max(lines, key=lambda line: (line.tone == "bad", line.at))
    return _cut(last.quote or last.detail or last.title)


def _why_taken_out(campaign: Campaign, delivery: Delivery, records: _Records) -> str:
    """A claim takes a letter out for a suppression, or because nothing is subscribed any more."""
    moment = delivery.settled_at or delivery.queued_at
    if suppression := records.suppression_at(moment):
        return _suppressed(suppression)
    return _not_subscribed(campaign, records, moment) or _(
        "the reader was no longer subscribed at that time."
    )


# ------------------------------------------------------------------------------- without a letter


def _about_absence(campaign: Campaign, records: _Records, now: datetime) -> Answer:
    reader = records.reader
    if campaign.status == CampaignStatus.SCHEDULED:
        when = _when(campaign.scheduled_at)
        if reason := _why_not_chosen(campaign, records, now):
            return Answer(
                campaign,
                _("It starts on %(when)s, and as things stand without this reader: %(reason)s")
                % {"when": when, "reason": reason},
            )
        return Answer(
            campaign,
            _("It starts on %(when)s, and as things stand with this reader.") % {"when": when},
            "info",
        )
    if campaign.started_at is None:
        return Answer(
            campaign,
            _("The campaign was cancelled on %(when)s, before it had started.")
            % {"when": _when(campaign.finished_at)},
        )
    not_reached = campaign.filled_at is None and (
        reader is not None and reader.pk > campaign.filled_up_to
    )
    if not_reached and campaign.status == CampaignStatus.CANCELLED:
        return Answer(
            campaign,
            _("The campaign was cancelled on %(when)s, before its queue had come to this reader.")
            % {"when": _when(campaign.finished_at)},
        )
    if not_reached:
        return Answer(
            campaign, _("Its queue is still being filled and has not come to this reader."), "info"
        )
    chosen_at = campaign.filled_at or campaign.finished_at or now
    reason = _why_not_chosen(campaign, records, chosen_at) or _(
        "nothing on record explains it; perhaps the address was another one then."
    )
    return Answer(campaign, _("Not in the audience: %(reason)s") % {"reason": reason})


def _why_not_chosen(campaign: Campaign, records: _Records, moment: datetime) -> str | None:
    """The first thing that kept the reader out of the audience at that moment; None if nothing."""
    reader = records.reader
    if reader is None:
        return _("the address is unknown: no reader has it.")
    if reader.created_at > moment:
        return _("the reader was added on %(when)s, after the audience had been chosen.") % {
            "when": _when(reader.created_at)
        }
    if reason := _not_subscribed(campaign, records, moment):
        return reason
    for mailing_list in campaign.exclude_lists.all():
        if records.status_on(mailing_list.pk, moment) == SubscriptionStatus.SUBSCRIBED:
            return _("the reader is on the list %(list)s, which the campaign leaves out.") % {
                "list": mailing_list.name
            }
    if suppression := records.suppression_at(moment):
        return _suppressed(suppression)
    return None


def _not_subscribed(campaign: Campaign, records: _Records, moment: datetime) -> str | None:
    """Why no subscription to the campaign's lists held at that moment; None when one did."""
    lists = list(campaign.include_lists.all())
    states = {mailing_list.pk: records.status_on(mailing_list.pk, moment) for mailing_list in lists}
    if SubscriptionStatus.SUBSCRIBED in states.values():
        return None
    if not lists:
        return _("the campaign goes to no list.")
    for mailing_list in lists:
        if states[mailing_list.pk] == SubscriptionStatus.UNSUBSCRIBED:
            return _unsubscribed(mailing_list, records, moment)
    for mailing_list in lists:
        if states[mailing_list.pk] == SubscriptionStatus.PENDING:
            return _("the subscription to %(list)s was not confirmed.") % {
                "list": mailing_list.name
            }
    for mailing_list in lists:
        if late := records.subscriptions.get(mailing_list.pk):
            return _("subscribed to %(list)s only on %(when)s, after that time.") % {
                "list": mailing_list.name,
                "when": _when(late.created_at),
            }
    return _("not subscribed to any of its lists (%(lists)s).") % {
        "lists": ", ".join(mailing_list.name for mailing_list in lists)
    }


def _unsubscribed(mailing_list: MailingList, records: _Records, moment: datetime) -> str:
    event = records.unsubscribed_on(mailing_list.pk, moment)
    if event is None:
        return _("unsubscribed from %(list)s.") % {"list": mailing_list.name}
    values = {
        "list": mailing_list.name,
        "when": _when(event.at),
        "source": event.source,
        "campaign": event.campaign.name if event.campaign else "",
    }
    if event.campaign:
        return (
            _(
                "unsubscribed from %(list)s on %(when)s (%(source)s, in a letter of the campaign "
                "%(campaign)s)."
            )
            % values
        )
    return _("unsubscribed from %(list)s on %(when)s (%(source)s).") % values


def _suppressed(suppression: Suppression) -> str:
    return _("the address is suppressed since %(when)s because: %(reason)s (%(source)s).") % {
        "when": _when(suppression.created_at),
        "reason": suppression.get_reason_display(),
        "source": suppression.source,
    }


# ---------------------------------------------------------------------------------- words


def _when(moment: datetime | None) -> str:
    if moment is None:
        return _("an unknown day")
    return date_format(timezone.localtime(moment), "j F Y, H:i")


def _reply(delivery: Delivery) -> str:
    reply = f"{delivery.code} {delivery.reply}" if delivery.code is not None else delivery.reply
    return _cut(reply) or _("no words")


def _cut(text: str) -> str:
    """On one line, and not longer than a sentence bears."""
    return Truncator(" ".join(text.split())).chars(LONGEST_QUOTE)
