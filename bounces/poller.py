"""One poll of one mailbox: every mail stored, examined, and only then done in the mailbox.

Killed at any moment, nothing is lost and nothing counts twice: a mail that was stored is found
again by its uid, one that was examined is only marked as done. The lease keeps two pollers from
doing the same work; it is not what keeps them right.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import Error as DatabaseTrouble
from django.db.models import F, Q

from bounces.conf import MailboxSettings, bounce_settings
from bounces.intake import examine_again, take_in
from bounces.mailboxes.base import MailGoneError
from bounces.models import OPEN_VERDICTS, MailboxState, ReceivedMail, Verdict
from bounces.report import printable

logger = logging.getLogger(__name__)

# Less than the minute between two polls.
POLL_BUDGET = timedelta(seconds=50)
# A poller of which nothing was heard for so long is dead. One mail never takes as long.
LEASE = timedelta(minutes=5)
# After a failed poll: one minute, doubled with each further failure, at most an hour.
FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
# One mail that cannot be fetched is passed over; so many in a row are the mailbox's trouble.
FETCHES_THAT_MAY_FAIL = 3
MOST_OPEN_MAILS = 500


@dataclass(slots=True)
class Poll:
    """What a poll came to. ``skipped`` says why there was none, ``error`` what stopped it."""

    mailbox: str
    verdicts: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    skipped: str = ""
    error: str = ""

    @property
    def taken(self) -> int:
        """Mails of which something was made, in the mailbox or left over from before."""
        return sum(self.verdicts.values())

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.mailbox}: not polled, {self.skipped}"
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self.verdicts.items()))
        line = f"{self.mailbox}: {self.taken} mails" + (f" ({counts})" if counts else "")
        if self.unreadable:
            line += f", {self.unreadable} could not be fetched"
        return f"{line}; stopped by {self.error}" if self.error else line


def poll(
    name: str, now: datetime, budget: timedelta = POLL_BUDGET, *, at_once: bool = False
) -> Poll:
    """Takes in what lies in the mailbox, for ``budget`` at most; KeyError for an unknown name.

    A mailbox that fails is left alone for a while; ``at_once`` asks it regardless.
    """
    mailbox_settings = bounce_settings().mailboxes[name]
    result = Poll(name)
    lease = _take_lease(name, now, at_once)
    if lease is None:
        result.skipped = "another poller is at it, or it failed and waits"
        return result
    deadline = time.monotonic() + budget.total_seconds()
    try:
        _examine_what_is_open(result, now, deadline)
        _empty(mailbox_settings, result, now, deadline)
    except DatabaseTrouble:
        raise  # not the mailbox's fault; the lease ends by itself
    # Somebody else's server, and perhaps somebody else's code: whatever it is, others go on.
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        logger.exception("bounces.poll_failed", extra={"mailbox": name})
    _end_lease(name, lease, result, now)
    return result


def _examine_what_is_open(result: Poll, now: datetime, deadline: float) -> None:
    """Mails whose letters were not settled yet, or whose examiner died after the mail was done."""
    still_open = ReceivedMail.objects.filter(
        mailbox=result.mailbox, verdict__in=OPEN_VERDICTS
    ).order_by("id")
    for mail_id in still_open.values_list("pk", flat=True)[:MOST_OPEN_MAILS]:
        if time.monotonic() > deadline:
            return
        verdict = examine_again(ReceivedMail.objects.get(pk=mail_id), now)
        if verdict is not Verdict.WAITING:
            result.verdicts[verdict] += 1


def _empty(settings: MailboxSettings, result: Poll, now: datetime, deadline: float) -> None:
    """Each mail of the mailbox in a transaction of its own."""
    largest = bounce_settings().largest_mail_bytes
    mailbox = settings.make()
    failed_in_a_row = 0
    try:
        mailbox.open()
        validity = mailbox.uid_validity()
        for uid in mailbox.uids():
            if time.monotonic() > deadline:
                return
            try:
                # One octet more than is kept tells that there was more.
                raw = mailbox.fetch(uid, largest + 1)
            except MailGoneError:
                continue
            except Exception:
                result.unreadable += 1
                failed_in_a_row += 1
                logger.exception("bounces.fetch_failed", extra={"mailbox": settings.name})
                if failed_in_a_row == FETCHES_THAT_MAY_FAIL:
                    raise
                continue
            failed_in_a_row = 0
            _mail, verdict = take_in(settings.name, validity, uid, raw, now)
            result.verdicts[verdict] += 1
            mailbox.done(uid)
    finally:
        mailbox.close()


def _take_lease(name: str, now: datetime, at_once: bool) -> str | None:
    """The key under which this process polls the mailbox; None when it may not."""
    MailboxState.objects.get_or_create(name=name)
    free = MailboxState.objects.filter(Q(leased_until=None) | Q(leased_until__lte=now), name=name)
    if not at_once:
        free = free.filter(Q(due_at=None) | Q(due_at__lte=now))
    key = secrets.token_hex(16)
    taken = free.update(lease_key=key, leased_until=now + LEASE, last_polled_at=now)
    return key if taken else None


def _end_lease(name: str, key: str, result: Poll, now: datetime) -> None:
    """Gives the mailbox back with what was learnt; nothing, when the lease went to another."""
    ours = MailboxState.objects.filter(name=name, lease_key=key)
    if not result.error:
        ours.update(
            lease_key="", leased_until=None, last_succeeded_at=now, failures=0, last_error="",
            due_at=None,
        )  # fmt: skip
        return
    failures = ours.values_list("failures", flat=True).first() or 0
    ours.update(
        lease_key="",
        leased_until=None,
        failures=F("failures") + 1,
        last_error=printable(result.error, 500),
        due_at=now + pause_after(failures + 1),
    )


def pause_after(failures: int) -> timedelta:
    """How long a mailbox is left alone after so many failed polls in a row, from 1."""
    doubled: timedelta = FIRST_PAUSE * 2 ** min(failures - 1, 10)
    return min(doubled, LONGEST_PAUSE)
