"""Being called when a mail has arrived, instead of waiting for the next poll.

Calls get lost: some of them always, and for minutes all of them. So a call is a trigger only, that
brings the next poll forward by most of a minute; the poll of each minute comes regardless. Calls
come in bursts: they are gathered for some seconds, and the mailbox is polled once.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q
from django.urls import reverse
from django_q.conf import Conf

from bounces.conf import bounce_settings
from bounces.mailboxes.base import Mailbox, MailboxRestsError, Notifying, OfAccount
from bounces.models import MailboxState, Watch
from bounces.rests import gate
from delivery.wakeups import queue_later

logger = logging.getLogger(__name__)

# Calls are gathered for so long. Microsoft counts a mailbox's requests.
GATHER = timedelta(seconds=5)
# Microsoft allows 10,080 minutes; renewed at half of it.
LIFE = timedelta(days=6)

MISSED, REMOVED, REAUTHORISE = "missed", "subscriptionRemoved", "reauthorizationRequired"


@dataclass(frozen=True, slots=True)
class Call:
    """What is believed of a notification once its secret is right. ``event``: of the watch's own
    life; "" for new mail."""

    key: str
    secret: str
    event: str = ""


def hear(calls: Sequence[Call], now: datetime) -> None:
    """Wishes for polls and renewals, as the genuine ones among the calls ask."""
    known = Watch.objects.in_bulk({call.key for call in calls if call.key}, field_name="key")
    genuine = [call for call in calls if _is_genuine(call, known.get(call.key))]
    if len(genuine) < len(calls):
        logger.warning("bounces.strange_calls", extra={"calls": len(calls) - len(genuine)})
    for call in genuine:
        if call.event:
            logger.info("bounces.watch_event", extra={"event": call.event})
    removed = {call.key for call in genuine if call.event == REMOVED}
    Watch.objects.filter(key__in=removed).delete()
    stale = {call.key for call in genuine if call.event == REAUTHORISE}
    Watch.objects.filter(key__in=stale).update(renew_at=now)
    for name in sorted({known[call.key].mailbox for call in genuine if call.event != REAUTHORISE}):
        want_poll(name, now)


def _is_genuine(call: Call, watch: Watch | None) -> bool:
    """Takes as long for an unknown watch and for a wrong secret."""
    expected = watch.secret_digest if watch else _digest("")
    return hmac.compare_digest(_digest(call.secret), expected) and watch is not None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def want_poll(name: str, now: datetime) -> bool:
    """Queues a poll for the end of the gathering; False when one is queued already. With another
    broker than the ORM's the poll of the minute is soon enough."""
    if name not in bounce_settings().mailboxes or not Conf.ORM:
        return False
    MailboxState.objects.get_or_create(name=name)
    free = Q(wanted_at=None) | Q(wanted_at__lte=now)
    if not MailboxState.objects.filter(free, name=name).update(wanted_at=now + GATHER):
        return False
    queue_later("bounces.tasks.poll_mailbox", name, group=f"mailbox {name}", wait=GATHER)
    return True


def keep(name: str, now: datetime) -> str:
    """Makes the watches of a mailbox that are missing and renews those past half their life; what
    was done, in words. A new one is followed by a poll: nobody called meanwhile."""
    mailbox = bounce_settings().mailboxes[name].make()
    if not isinstance(mailbox, Notifying):
        return f"{name}: cannot call"
    Watch.objects.filter(mailbox=name).exclude(place__in=mailbox.places).delete()
    missing = [place for place in mailbox.places if _needs_care(name, place, now)]
    if not missing:
        return f"{name}: watched"
    try:
        if isinstance(mailbox, OfAccount):
            mailbox.guard(gate(mailbox.account, now))
        mailbox.open()
        made = sum(_care_for(mailbox, name, place, now) for place in missing)
    except MailboxRestsError as rest:
        return f"{name}: left alone, {rest}"
    # The far side's trouble, or our address cannot be reached from there: polls go on.
    except Exception as error:
        logger.exception("bounces.not_watched", extra={"mailbox": name})
        return f"{name}: not watched, {type(error).__name__}: {error}"
    finally:
        mailbox.close()
    if made:
        want_poll(name, now)
    return f"{name}: {made} made, {len(missing) - made} renewed"


def _needs_care(name: str, place: str, now: datetime) -> bool:
    watch = Watch.objects.filter(mailbox=name, place=place).first()
    return watch is None or now >= watch.renew_at


def _care_for(mailbox: Mailbox, name: str, place: str, now: datetime) -> bool:
    """Renews a watch, or makes it; whether it was made."""
    assert isinstance(mailbox, Notifying)
    until = now + LIFE
    watch = Watch.objects.filter(mailbox=name, place=place).first()
    if watch and watch.expires_at > now and mailbox.renew(watch.key, until):
        Watch.objects.filter(pk=watch.pk).update(renew_at=now + LIFE / 2, expires_at=until)
        return False
    secret = secrets.token_urlsafe(32)
    url = bounce_settings().notification_url + reverse("bounce_notifications")
    key = mailbox.watch(place, url, secret, until)
    Watch.objects.update_or_create(
        mailbox=name,
        place=place,
        defaults={
            "key": key,
            "secret_digest": _digest(secret),
            "renew_at": now + LIFE / 2,
            "expires_at": until,
        },
    )
    return True
