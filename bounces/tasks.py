"""What django-q2 calls."""

from __future__ import annotations

import time

from django.utils import timezone
from django_q.tasks import async_task

from bounces import watches
from bounces.conf import bounce_settings
from bounces.intake import forget_raw, resolve_ceased_refusals
from bounces.poller import poll
from delivery.conf import delivery_settings
from delivery.installation import Standing, check_in
from delivery.tasks import SENDING_IS_OFF

# Far below the queue's time-out; what is left is forgotten an hour later.
HOUSE_KEEPING_SECONDS = 60.0


def poll_mailboxes() -> str:
    """Queues a poll of each mailbox of the settings; each minute. A task for each, so that one
    whose server is slow keeps no other waiting."""
    names = list(bounce_settings().mailboxes)
    for name in names:
        async_task("bounces.tasks.poll_mailbox", name, group=f"mailbox {name}")
    return ", ".join(names) or "no mailbox in the settings"


def poll_mailbox(name: str) -> str:
    """One poll. A task that comes twice, or while another one is at it, does nothing. Where sending
    is off nothing is fetched either: a copy must not empty the original's mailbox."""
    if name not in bounce_settings().mailboxes:
        return f"no mailbox is called {name!r} any more"
    if check_in(delivery_settings(), timezone.now()) is not Standing.OURS:
        return SENDING_IS_OFF
    return str(poll(name, timezone.now()))


def keep_watching() -> str:
    """Sees to it that mailboxes call when a mail arrives, where NOTIFICATION_URL says so; every
    five minutes. Whatever fails here costs a minute of delay and no mail."""
    if not bounce_settings().notification_url:
        return "no NOTIFICATION_URL in the settings"
    if check_in(delivery_settings(), timezone.now()) is not Standing.OURS:
        return SENDING_IS_OFF
    return ", ".join(watches.keep(name, timezone.now()) for name in bounce_settings().mailboxes)


def keep_house() -> str:
    """Forgets raw mail beyond its retention, and ends alerts about refusals that have ceased; each
    hour. One large campaign brings tens of thousands of mails: all of them are due on one day."""
    now, ends = timezone.now(), time.monotonic() + HOUSE_KEEPING_SECONDS
    resolve_ceased_refusals(now)
    forgotten = 0
    while time.monotonic() < ends and (some := forget_raw(now)):
        forgotten += some
    return f"{forgotten} mails forgotten"
