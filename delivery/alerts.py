"""What a person must know: an Alert for each cause, told once by mail, webhook and banner.

Raising is part of the transaction that found the cause; telling is not, since mail and webhook may
hang: the coordinator does that afterwards. No alert names a reader.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from smtplib import SMTPException
from typing import Any

import httpx
from django.conf import settings
from django.core.mail import mail_admins
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.urls import NoReverseMatch, reverse

from campaigns.conf import campaign_settings
from campaigns.models import Campaign
from campaigns.states import CampaignStatus
from delivery.conf import AlertSettings
from delivery.models import Alert, GroupState, MailboxState, ProviderState

logger = logging.getLogger(__name__)

WEBHOOK_PATIENCE = timedelta(seconds=5)
# A mail server or webhook that failed so often is left alone; the banner stays.
MOST_FAILURES = 20


def raise_alert(
    kind: str,
    cause: str,
    title: str,
    text: str,
    now: datetime,
    *,
    campaign: Campaign | None = None,
) -> bool:
    """Makes an alert; False when the same cause is open already. In the caller's transaction."""
    if open_alerts().filter(cause=cause).exists():
        return False
    # Another process may be as quick: the constraint, not the look before, makes it one alert.
    Alert.objects.bulk_create(
        [
            Alert(
                kind=kind,
                cause=cause[:200],
                title=title[:200],
                text=text,
                at=now,
                campaign=campaign,
            )
        ],
        ignore_conflicts=True,
    )
    logger.error("delivery.alert", extra={"kind": kind, "cause": cause})
    return True


def open_alerts() -> QuerySet[Alert]:
    """The alerts whose cause still holds, the newest first."""
    return Alert.objects.filter(resolved_at__isnull=True)


def resolve(cause: str, now: datetime) -> bool:
    """Ends the alert of a cause; False when there was none."""
    return bool(open_alerts().filter(cause=cause).update(resolved_at=now))


def resolve_what_is_over(now: datetime) -> int:
    """Ends the alerts whose cause has gone: a campaign that somebody resumed or cancelled, a
    provider that was opened again, a group whose pause is over; how many."""
    stopped = ProviderState.objects.filter(stopped=True).values_list("alias", flat=True)
    silent = MailboxState.objects.filter(silent_until__gt=now).values_list("mailbox", flat=True)
    held = GroupState.objects.filter(Q(paused_until__gt=now) | Q(slow_until__gt=now))
    over = (
        Q(kind=Alert.Kind.STALE, campaign__held_at__isnull=True)
        | Q(
            kind__in=[Alert.Kind.BREAKER, Alert.Kind.RAIL],
            campaign__status__in=[CampaignStatus.SENDING, CampaignStatus.CANCELLED],
        )
        | Q(kind=Alert.Kind.PROVIDER)
        & ~Q(cause__in=[cause_of_provider(alias) for alias in stopped])
        & ~Q(cause__in=[cause_of_silence(mailbox) for mailbox in silent])
        | Q(kind=Alert.Kind.GROUP) & ~Q(cause__in=[cause_of_group(group) for group in held])
    )
    ids = list(open_alerts().filter(over).values_list("pk", flat=True))
    return open_alerts().filter(pk__in=ids).update(resolved_at=now)


def of_stopped_providers(now: datetime) -> None:
    """An alert for each provider that only a person can open again."""
    for state in ProviderState.objects.filter(stopped=True):
        raise_alert(
            Alert.Kind.PROVIDER,
            cause_of_provider(state.alias),
            f"The provider {state.alias} is stopped",
            "Nothing is sent through it until a person opens it again. It said:\n" + state.because,
            now,
        )


def cause_of_provider(alias: str) -> str:
    return f"provider stopped: {alias}"


def cause_of_group(state: GroupState) -> str:
    return f"group: {state.provider} {state.group}"[:200]


def cause_of_silence(mailbox: str) -> str:
    return f"silent again: {mailbox}"


# ---------------------------------------------------------------------------------- telling


def tell(alert_settings: AlertSettings, now: datetime) -> int:
    """Mails and posts what nobody was told yet; how many alerts were told in any way."""
    told = 0
    for alert in open_alerts().filter(failures__lt=MOST_FAILURES).order_by("id"):
        mailed = alert_settings.mail_admins and bool(settings.ADMINS)
        posted = bool(alert_settings.webhook)
        ways = [
            mailed and _once(alert, "mailed_at", now, lambda alert=alert: _mail(alert)),
            posted
            and _once(
                alert, "posted_at", now, lambda alert=alert: _post(alert, alert_settings.webhook)
            ),
        ]
        told += any(ways)
    return told


def _once(alert: Alert, field: str, now: datetime, send: Any) -> bool:
    """Sends if nobody has; another host may be telling the same alert at this moment. What failed
    is tried again by the next round."""
    row = Alert.objects.filter(pk=alert.pk)
    if not row.filter(**{f"{field}__isnull": True}).update(**{field: now}):
        return False
    try:
        send()
    except (OSError, SMTPException, httpx.HTTPError, httpx.InvalidURL) as error:
        # The class alone: messages of HTTP clients quote the address, which may hold a secret.
        logger.warning(
            "delivery.alert_not_told",
            extra={"alert": alert.pk, "way": field, "error": type(error).__name__},
        )
        row.update(**{field: None, "failures": F("failures") + 1})
        return False
    return True


def _mail(alert: Alert) -> None:
    mail_admins(" ".join(alert.title.split()), f"{alert.text}\n\n{address_of(alert)}\n")


def _post(alert: Alert, webhook: str) -> None:
    """POSTs JSON. A redirect is a failure: it would carry the alert to who knows where."""
    body = {
        "kind": alert.kind,
        "title": alert.title,
        "text": alert.text,
        "campaign": alert.campaign_id,
        "at": alert.at.isoformat(),
        "url": address_of(alert),
    }
    seconds = WEBHOOK_PATIENCE.total_seconds()
    with (
        httpx.Client(timeout=seconds, follow_redirects=False, trust_env=False) as client,
        # The answer's body is nobody's concern, and may be endless.
        client.stream("POST", webhook, json=body) as answer,
    ):
        if not answer.is_success:
            raise httpx.HTTPStatusError("refused", request=answer.request, response=answer)


def address_of(alert: Alert) -> str:
    """Where the admin shows it; "" in an installation without the admin."""
    try:
        return campaign_settings().base_url + reverse(
            "admin:delivery_alert_change", args=[alert.pk]
        )
    except NoReverseMatch:
        return ""


def see(alert: Alert, user: Any) -> None:
    """A person has read it: her banner goes away, the alert stays until its cause is gone."""
    with transaction.atomic():
        alert.seen_by.add(user)


def unseen_by(user: Any) -> QuerySet[Alert]:
    """The open alerts that a person has not put away."""
    return open_alerts().exclude(seen_by=user)
