"""What django-q2 calls."""

from __future__ import annotations

from django.utils import timezone

from bounces.conf import bounce_settings
from bounces.intake import forget_raw
from bounces.poller import poll


def poll_mailboxes() -> str:
    """Polls every mailbox that is due, and drops raw mail beyond its retention. Each minute; one
    mailbox that fails does not keep the next from being polled."""
    polls = [poll(name, timezone.now()) for name in bounce_settings().mailboxes]
    forget_raw(timezone.now())
    return "; ".join(map(str, polls)) or "no mailbox in the settings"
