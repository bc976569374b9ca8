"""Unsubscribing through the link in a letter: one click (RFC 8058), or a page with a button.

Decided: the link ends every subscription through which its campaign may reach the reader, that
is all of the campaign's lists, not only the one that happened to be counted. A reader who is on
two lists of a campaign and unsubscribes must get nothing more of it, and cannot know that there
are two. Her other lists stay as they are, and the address is not suppressed: she said "not this",
not "never again".

Genuine tokens never expire (RFC 8058 section 4 wants old letters to work too), and are read
before any query: a flood of guessed ones costs no database.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery

from campaigns.conf import campaign_settings
from campaigns.models import MailingList, Subscriber, Subscription, SubscriptionEvent
from campaigns.signals import unsubscribed
from campaigns.states import SubscriptionStatus
from campaigns.tokens import Purpose

logger = logging.getLogger(__name__)

# How the history names what led to a change.
BY_ONE_CLICK = "one-click unsubscribe"
BY_PAGE = "unsubscribe page"
# The subscriber id of a test letter that was filled with example values: nobody's.
NOBODY = 0
# "That was a mistake" is for the person who just pressed the button, not for whoever finds
# a forwarded letter next year.
UNDO_WITHIN = timedelta(days=1)


def unsubscribe_url(campaign_id: int, subscriber_id: int) -> str:
    """The https half of List-Unsubscribe, and the link in the letter's text.

    ``subscriber_id`` NOBODY for a test letter: its page says so, and nobody loses anything.
    At most 75 characters when the base URL has at most 43: beyond 77 in angle brackets,
    e-mail libraries on the way write encoded words, which one-click does not survive.
    """
    token = campaign_settings().signer.sign(Purpose.UNSUBSCRIBE, campaign_id, subscriber_id)
    return url_of(token)


def url_of(token: str) -> str:
    """The same for a token that was signed with the letter's others."""
    return f"{campaign_settings().base_url}/u/{token}"


@dataclass(frozen=True, slots=True)
class Link:
    """What a genuine token speaks of: one campaign's letter to one reader."""

    campaign_id: int
    subscriber_id: int

    @property
    def is_of_a_test_letter(self) -> bool:
        return self.subscriber_id == NOBODY


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """What was done now. ``reader``: None for a test letter. ``lists``: those that were ended;
    empty when they had been before."""

    reader: Subscriber | None
    lists: list[MailingList]


def read_link(token: str) -> Link | None:
    """The link behind a token; None for every other string. Asks no database."""
    numbers = campaign_settings().signer.read(Purpose.UNSUBSCRIBE, token)
    return Link(*numbers) if numbers is not None else None


def unsubscribe(token: str, *, source: str) -> Unsubscribed | None:
    """Ends the reader's subscriptions to the campaign's lists; None for a token that is not
    genuine, or whose reader was erased. Safe to repeat.

    Announces it to delivery even when nothing was left to end: it proves that the letter arrived.
    """
    link = read_link(token)
    if link is None:
        return None
    if link.is_of_a_test_letter:
        return Unsubscribed(None, [])
    reader = Subscriber.objects.filter(pk=link.subscriber_id).first()
    if reader is None:
        return None
    with transaction.atomic():
        ended = _move_all(
            list(subscribed(link)), SubscriptionStatus.UNSUBSCRIBED, link, source=source
        )
        transaction.on_commit(
            lambda: unsubscribed.send(
                Subscription, campaign_id=link.campaign_id, subscriber_id=link.subscriber_id
            ),
            # The reader is unsubscribed, whatever a receiver makes of it.
            robust=True,
        )
    logger.info(
        "campaigns.unsubscribed",
        extra={
            "campaign": link.campaign_id,
            "subscriber": link.subscriber_id,
            "lists": [mailing_list.pk for mailing_list in ended],
        },
    )
    return Unsubscribed(reader, ended)


def subscribe_again(token: str, *, source: str, now: datetime) -> list[MailingList]:
    """Takes back what this very link ended within UNDO_WITHIN, and nothing else."""
    link = read_link(token)
    if link is None:
        return []
    with transaction.atomic():
        return _move_all(
            list(ended_by(link, now)), SubscriptionStatus.SUBSCRIBED, link, source=source
        )


def subscribed(link: Link) -> QuerySet[Subscription]:
    """The subscriptions that the link would end."""
    return (
        Subscription.objects.filter(
            subscriber=link.subscriber_id,
            status=SubscriptionStatus.SUBSCRIBED,
            mailing_list__campaigns=link.campaign_id,
        )
        .select_related("mailing_list")
        .order_by("mailing_list__name")
    )


def ended_by(link: Link, now: datetime) -> QuerySet[Subscription]:
    """The subscriptions whose last change was made through this link, within UNDO_WITHIN."""
    latest = SubscriptionEvent.objects.filter(subscription=OuterRef("pk")).order_by("-id")
    return (
        Subscription.objects.filter(
            subscriber=link.subscriber_id, status=SubscriptionStatus.UNSUBSCRIBED
        )
        .annotate(
            ended_by=Subquery(latest.values("campaign")[:1]),
            ended_at=Subquery(latest.values("at")[:1]),
        )
        .filter(ended_by=link.campaign_id, ended_at__gte=now - UNDO_WITHIN)
        .select_related("mailing_list")
        .order_by("mailing_list__name")
    )


def masked(address: str) -> str:
    """Enough for its owner to know an address, too little to write to: ``a•••@example.org``."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}•••@{domain}"


def _move_all(
    subscriptions: list[Subscription], status: str, link: Link, *, source: str
) -> list[MailingList]:
    """The lists of those that really moved: another request may have been faster."""
    return [
        subscription.mailing_list
        for subscription in subscriptions
        if subscription.move(status, source=source, campaign_id=link.campaign_id)
    ]
