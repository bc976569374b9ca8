"""One poll of one mailbox: mails are stored, examined, and only then done in the mailbox.

Killed at any moment, nothing is lost and nothing counts twice: a mail that was stored is found
again by its uid, one that was examined is only marked as done. The lease keeps two pollers from
doing the same work; it is not what keeps them right.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import Error as DatabaseTrouble
from django.db.models import F, Q
from django.utils.translation import gettext as _

from bounces.conf import MailboxSettings, bounce_settings
from bounces.intake import Fetched, examine, examine_again, take_in
from bounces.mailboxes.base import (
    Mailbox,
    MailboxRestsError,
    MailGoneError,
    OfAccount,
    Remembering,
    Resuming,
)
from bounces.models import (
    OPEN_VERDICTS,
    Breaker,
    MailboxState,
    ReceivedMail,
    Verdict,
)
from bounces.reading import Reading, read_whole
from bounces.reading_process import ReadingProcess
from bounces.report import printable
from bounces.rests import gate
from delivery.alerts import raise_alert, resolve
from delivery.models import Alert

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
# So many failed polls in a row, over some minutes, are told to a person.
FAILURES_THAT_ALERT = 3
MOST_OPEN_MAILS = 500
# Taken in together: one transaction for all of them costs hardly more than for one. The octets
# keep the memory flat whatever the mails are like.
BATCH = 50
BATCH_OCTETS = 4 * 1024 * 1024


@dataclass(slots=True)
class Poll:
    """What a poll came to. ``skipped`` says why there was none, ``error`` what stopped it."""

    mailbox: str
    verdicts: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    skipped: str = ""
    error: str = ""
    # What the far side asked for, where it did: no failure.
    rest: MailboxRestsError | None = None

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
        if self.rest:
            line += f"; left alone for {self.rest.wait.total_seconds():.0f} s: {self.rest}"
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
        with ReadingProcess(read_whole) as reader:
            _examine_what_is_open(result, now, deadline, reader)
            _empty(mailbox_settings, lease, result, now, deadline, reader)
    except DatabaseTrouble:
        raise  # not the mailbox's fault; the lease ends by itself
    except MailboxRestsError as rest:
        result.rest = rest
    # Somebody else's server, and perhaps somebody else's code: whatever it is, others go on.
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        logger.exception("bounces.poll_failed", extra={"mailbox": name})
    _end_lease(name, lease, result, now)
    return result


def _examine_what_is_open(
    result: Poll, now: datetime, deadline: float, reader: ReadingProcess[Reading]
) -> None:
    """Mails whose letters were not settled yet, or that were held back, together; and one by one
    those whose examiner died, since one of them may have killed it."""
    mails = ReceivedMail.objects.filter(mailbox=result.mailbox, verdict__in=OPEN_VERDICTS)
    if Breaker.is_tripped():
        mails = mails.exclude(verdict=Verdict.HELD)
    # Each kind has its own share: however many wait, those whose examiner died come first.
    new, others = (
        list(kind.order_by("id").values_list("pk", flat=True)[:MOST_OPEN_MAILS])
        for kind in (mails.filter(verdict=Verdict.NEW), mails.exclude(verdict=Verdict.NEW))
    )
    alone = [[pk] for pk in new]
    together = [others[start : start + BATCH] for start in range(0, len(others), BATCH)]
    for keys in alone + together:
        if time.monotonic() > deadline:
            return
        batch = list(ReceivedMail.objects.filter(pk__in=keys).order_by("pk"))
        if batch and batch[0].verdict == Verdict.NEW:
            verdicts = [examine_again(mail, now, reader) for mail in batch]
        else:
            verdicts = examine(batch, now, reader)
        result.verdicts.update(
            verdict for verdict in verdicts if verdict not in {Verdict.WAITING, Verdict.HELD}
        )


def _empty(
    settings: MailboxSettings,
    lease: str,
    result: Poll,
    now: datetime,
    deadline: float,
    reader: ReadingProcess[Reading],
) -> None:
    """What lies in the mailbox, batch by batch."""
    mailbox = settings.make()
    if isinstance(mailbox, OfAccount):
        try:
            mailbox.guard(gate(mailbox.account, now))
        except MailboxRestsError as rest:
            result.rest = rest
            return
    try:
        mailbox.open()
        visit = _Visit(mailbox, mailbox.uid_validity(), lease, result, now, reader)
        if isinstance(mailbox, Remembering):
            mailbox.remember_in(StoredUids(settings.name, visit.validity))
        if isinstance(mailbox, Resuming):
            mailbox.resume_at(MailboxState.objects.get(name=settings.name).position)
        batch: list[Fetched] = []
        octets = 0
        for one in _fetch_until_it_rests(mailbox, result, deadline):
            batch.append(one)
            octets += len(one.raw)
            if len(batch) >= BATCH or octets >= BATCH_OCTETS:
                visit.take(batch)
                batch, octets = [], 0
        visit.take(batch)
    finally:
        mailbox.close()


def _fetch_until_it_rests(mailbox: Mailbox, result: Poll, deadline: float) -> Iterator[Fetched]:
    """The mails that can be fetched. Where the far side asks for a rest, ``result`` says so."""
    try:
        yield from _fetch_all(mailbox, result, deadline)
    except MailboxRestsError as rest:
        result.rest = rest


def _fetch_all(mailbox: Mailbox, result: Poll, deadline: float) -> Iterator[Fetched]:
    """The mails that can be fetched, until the time is up."""
    largest = bounce_settings().largest_mail_bytes
    failed_in_a_row = 0
    for uid in mailbox.uids():
        if time.monotonic() > deadline:
            return
        try:
            # One octet more than is kept tells that there was more.
            raw = mailbox.fetch(uid, largest + 1)
        except MailGoneError:
            continue
        except MailboxRestsError:
            raise
        except Exception:
            result.unreadable += 1
            failed_in_a_row += 1
            logger.exception("bounces.fetch_failed", extra={"mailbox": result.mailbox})
            if failed_in_a_row == FETCHES_THAT_MAY_FAIL:
                raise
            continue
        failed_in_a_row = 0
        yield Fetched(uid, raw)


@dataclass(slots=True)
class _Visit:
    """One session in an open mailbox, under a lease."""

    mailbox: Mailbox
    validity: str
    lease: str
    result: Poll
    now: datetime
    reader: ReadingProcess[Reading]
    _position: str = ""

    def take(self, batch: Sequence[Fetched]) -> None:
        """Stores and examines these mails, and only then tells the mailbox that they are done.
        An empty batch may still move the position: there was nothing to be found."""
        uids = [one.uid for one in batch]
        move = self._to_move(uids)
        if batch:
            verdicts = take_in(
                self.result.mailbox, self.validity, batch, self.now, self.reader, move
            )
            self.result.verdicts.update(verdicts)
            self.mailbox.done(uids)
        else:
            move()

    def _to_move(self, uids: Sequence[str]) -> Callable[[], None]:
        """Writes the position down, as long as the mailbox is ours: another poller's is its own."""
        if not isinstance(self.mailbox, Resuming):
            return lambda: None
        position = self.mailbox.position_after(uids)
        ours = MailboxState.objects.filter(name=self.result.mailbox, lease_key=self.lease)

        def move() -> None:
            if position != self._position:
                ours.update(position=position)
                self._position = position

        return move


class StoredUids:
    """The memory of a mailbox without flags: a mail that was stored is done with there. If it was
    not examined yet, the next poll takes it from the database."""

    def __init__(self, mailbox: str, uid_validity: str) -> None:
        self._stored = ReceivedMail.objects.filter(mailbox=mailbox, uid_validity=uid_validity)

    def done(self, uids: Collection[str]) -> set[str]:
        return set(self._stored.filter(uid__in=uids).values_list("uid", flat=True))

    def add(self, uids: Collection[str]) -> None:
        """They are stored already."""


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
    if result.rest and not result.error:
        wait, because = result.rest.wait, printable(str(result.rest), 500)
        ours.update(lease_key="", leased_until=None, last_error=because, due_at=now + wait)
        return
    if not result.error:
        ours.update(
            lease_key="", leased_until=None, last_succeeded_at=now, failures=0, last_error="",
            due_at=None,
        )  # fmt: skip
        resolve(cause_of_mailbox(name), now)
        return
    failures = ours.values_list("failures", flat=True).first() or 0
    ours.update(
        lease_key="",
        leased_until=None,
        failures=F("failures") + 1,
        last_error=printable(result.error, 500),
        due_at=now + pause_after(failures + 1),
    )
    if failures + 1 >= FAILURES_THAT_ALERT:
        raise_alert(
            Alert.Kind.RETURNED,
            cause_of_mailbox(name),
            _("The bounce mailbox %(name)s fails") % {"name": name},
            printable(result.error, 500),
            now,
        )


def cause_of_mailbox(name: str) -> str:
    return f"mailbox {name}"


def pause_after(failures: int) -> timedelta:
    """How long a mailbox is left alone after so many failed polls in a row, from 1."""
    doubled: timedelta = FIRST_PAUSE * 2 ** min(failures - 1, 10)
    return min(doubled, LONGEST_PAUSE)
