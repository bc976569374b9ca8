"""What delivery does when campaigns announces something."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.dispatch import receiver
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from campaigns.addresses import address_key
from campaigns.models import Campaign, Edition, Subscriber
from campaigns.signals import (
    campaign_moved,
    forecast_asked,
    test_requested,
    unsubscribed,
    waiting_asked,
)
from campaigns.states import CampaignStatus
from delivery import alerts, claiming, coordinator, doubts, filling, groups, limits
from delivery.conf import delivery_settings
from delivery.forecast import forecast_of
from delivery.models import Alert, Delivery
from delivery.rates import in_words
from delivery.states import DeliveryStatus
from delivery.tasks import wake_coordinator, wake_workers


@receiver(campaign_moved)
def wake(sender: Any, campaign: Campaign, **kwargs: Any) -> None:
    """A campaign was scheduled, resumed or cancelled: not in a minute, but now."""
    wake_coordinator()


@receiver(test_requested)
def queue_test_letters(
    sender: Any,
    campaign: Campaign,
    edition: Edition,
    addresses: list[str],
    reader: Subscriber | None,
    **kwargs: Any,
) -> int:
    """Test letters are deliveries like all others, and go before them."""
    queued = filling.queue_tests(
        campaign,
        edition.pk,
        [(address, address_key(address)) for address in addresses],
        reader.pk if reader else None,
        timezone.now(),
    )
    for alias in delivery_settings().members_of(campaign.provider):
        wake_workers(alias)
    return queued


@receiver(waiting_asked)
def why_it_waits(sender: Any, campaign: Campaign, **kwargs: Any) -> str | None:
    """What a sending campaign is waiting for, in a sentence; None when nothing holds it up."""
    now = timezone.now()
    members = delivery_settings().members_of(campaign.provider)
    if not members:
        return _("The settings name no provider “%(alias)s”.") % {"alias": campaign.provider}
    if off := alerts.open_alerts().filter(kind=Alert.Kind.INSTALLATION).first():
        return f"{off.title}."
    # Of a pool the one that opens first: while any is open, none holds it up.
    opening = {alias: limits.closed_until(limits.state_of(alias), now) for alias in members}
    alias = min(members, key=lambda alias: opening[alias] or now)
    state, closed_until = limits.state_of(alias), opening[alias]
    if state.stopped:
        return _("The provider is stopped until a person opens it again: %(because)s") % {
            "because": state.because
        }
    if closed_until is not None:
        return _("The provider is paused until %(until)s: %(because)s") % {
            "until": date_format(timezone.localtime(closed_until), "H:i:s"),
            "because": state.because,
        }
    due = claiming.next_due([campaign.pk], [campaign.provider])
    resend_at = coordinator.next_resend(campaign, delivery_settings().resend_after)
    if due is None and resend_at is not None and campaign.status == CampaignStatus.SENDING:
        return _("Letters in doubt are sent again at %(when)s, unless evidence comes.") % {
            "when": date_format(timezone.localtime(resend_at), "H:i")
        }
    if (
        due is not None
        and due > now + timedelta(seconds=10)
        and (held := groups.held_now(members, now))
    ):
        return _("What is left waits for %(groups)s; the next letter is due at %(when)s.") % {
            "groups": ", ".join(dict.fromkeys(state.group for state in held[:5])),
            "when": date_format(timezone.localtime(due), "H:i"),
        }
    if due is not None and due > now + timedelta(seconds=10):
        return _("All letters that are left were deferred; the next is due at %(when)s.") % {
            "when": date_format(timezone.localtime(due), "H:i")
        }
    return None


@receiver(forecast_asked)
def when_it_would_be_done(
    sender: Any, campaign: Campaign, readers: int, **kwargs: Any
) -> str | None:
    """The earliest end that the limits permit, and which of them decides; None where none does."""
    settings = delivery_settings()
    members = settings.members_of(campaign.provider)
    now = timezone.now()
    if not members or not readers:
        return None
    found = forecast_of(settings, members, readers, now)
    if found.limit is None:
        return None
    ends_at = timezone.localtime(found.ends_at)
    is_today = ends_at.date() == timezone.localtime(now).date()
    return _("not before %(when)s; what decides is the limit of %(limit)s (%(scope)s)") % {
        "when": date_format(ends_at, "H:i" if is_today else "l, j F, H:i"),
        "limit": in_words(found.limit),
        "scope": found.limit.scope,
    }


@receiver(unsubscribed)
def letter_had_arrived(sender: Any, campaign_id: int, subscriber_id: int, **kwargs: Any) -> None:
    """Whoever uses the link in a letter has the letter: a doubt about it is over."""
    letters = Delivery.objects.filter(
        campaign_id=campaign_id,
        subscriber_id=subscriber_id,
        is_test=False,
        status=DeliveryStatus.UNCONFIRMED,
    )
    for pk in letters.values_list("pk", flat=True):
        doubts.confirm(pk, "The reader used the unsubscribe link in it.", timezone.now())
