"""Limits and pauses of providers, shared by all processes and hosts through the database.

``take`` asks all limits of a provider at once and takes from all or from none; ``settle`` says
when the letters were answered, or that none left. Both lock the limits' rows, so that everybody
asks in turn, and then read the database's clock, the only one that all hosts share.
The arithmetic, and why it is exact, is in permits.py.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import monotonic

from django.db import connection, transaction
from django.db.models import F, Q, QuerySet, Sum

from delivery import day_quota, statements
from delivery.models import ProviderState, QuotaWindow, RateBucket, WorkerLease
from delivery.outcomes import Unavailable
from delivery.permits import Usage, next_at, plan, step_end
from delivery.rates import Limit, LimitKind
from delivery.replies.graph import TOTAL_SILENCE_RULE

Clock = Callable[[], datetime]

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=15)
# How long after its moment a permit may be used. A worker that was held up returns the letter.
SHELF_LIFE = timedelta(seconds=15)
# How long after its end a killed process's last octets may still arrive.
AFTERMATH = timedelta(seconds=5)
# Two clocks may run this much apart, the coarsest adjustment that NTP makes (500 ppm), doubled.
DRIFT = 0.001


@dataclass(frozen=True, slots=True)
class Grant:
    """Permits for letters, or when to ask again.

    ``not_before``: one moment for each permit by the database's clock, ascending. ``retry_at``:
    when to ask again if fewer than wanted were granted. A host's clock may differ by any amount, so
    the holder measures by its monotonic clock, in seconds: the grant was made somewhere between
    ``asked`` and ``got``, when the database's clock said ``granted_at``.
    """

    limits: tuple[Limit, ...]
    not_before: tuple[datetime, ...]
    retry_at: datetime | None
    granted_at: datetime
    asked: float
    got: float
    key: int = 0

    def opens(self, permit: int) -> float:
        """The monotonic moment before which this permit's letter may not leave."""
        return self.got + (self.not_before[permit] - self.granted_at).total_seconds()

    def expires(self, permit: int) -> float:
        """The monotonic moment after which it may not leave any more."""
        ahead = self.not_before[permit] - self.granted_at + SHELF_LIFE
        return self.asked + ahead.total_seconds()

    def by_database(self, moment: float) -> datetime:
        """What the database's clock said at most at a monotonic moment since the grant."""
        return self.granted_at + timedelta(seconds=(moment - self.asked) * (1 + DRIFT))


# ---------------------------------------------------------------------------------- permits


def take(
    limits: tuple[Limit, ...],
    wanted: int,
    claim_key: int,
    clock: Clock,
    ticks: Callable[[], float] = monotonic,
) -> Grant:
    """Up to ``wanted`` permits under all of these limits, for the holder of a worker lease.

    A short transaction of its own. The permits count until settle(), or until the lease ends
    (close_orphans). Without limits nothing is asked and everything is granted. ``ticks``: the
    holder's own seconds, that only grow.
    """
    if not limits:
        return no_limits(wanted, clock(), ticks)
    asked = ticks()
    with transaction.atomic():
        _need_not_reach_the_disk_yet()
        buckets = _lock(limits)
        now = clock()
        usages = _usages(limits, buckets, wanted, now)
        planned = plan(usages, wanted, now)
        key = 0
        if planned.not_before:
            for limit, usage in usages.items():
                if limit.kind is LimitKind.SMOOTH:
                    arrival = next_at(limit, usage, planned.not_before, now)
                    RateBucket.objects.filter(key=limit.key).update(theoretical_arrival=arrival)
            key = _open(limits, len(planned.not_before), claim_key)
    return Grant(
        limits, planned.not_before, planned.retry_at, now, asked=asked, got=ticks(), key=key
    )


def no_limits(wanted: int, now: datetime, ticks: Callable[[], float]) -> Grant:
    """So many permits of a provider without limits, at once."""
    moment = ticks()
    return Grant((), (now,) * wanted, None, now, moment, moment)


def settle(grant: Grant, answered: Sequence[float]) -> None:
    """The permits of a grant are done with: answers came at these monotonic moments.

    Every letter that began to leave has one, whatever was answered: a server may count what it
    refuses. A permit without an answer was used by no letter, nothing arrived for it, and so a cap
    forgets it; a smooth limit's moment has passed.
    """
    if not grant.key:
        return
    moments = [grant.by_database(moment) for moment in answered]
    with transaction.atomic():
        _need_not_reach_the_disk_yet()
        _lock(grant.limits)
        open_permits = QuotaWindow.objects.filter(grant=grant.key)
        # Gone: this worker's lease was lost, and its permits were closed without it.
        if not open_permits.delete()[0]:
            return
        for limit in _distinct(grant.limits):
            for at, permits in sorted(Counter(step_end(limit, m) for m in moments).items()):
                _log(limit, at, permits)


def close_orphans(now: datetime) -> int:
    """Permits whose worker's lease has ended count as answered; how many grants.

    Nothing can leave under them any more: a worker looks at its lease before each letter, and
    what a killed one had written to its sockets arrives within AFTERMATH or never.
    """
    held = WorkerLease.objects.filter(claim_key__isnull=False).values("claim_key")
    orphans = QuotaWindow.objects.filter(grant__isnull=False).exclude(claim_key__in=held)
    keys = sorted(set(orphans.values_list("key", flat=True)))
    if not keys:
        return 0
    with transaction.atomic():
        list(RateBucket.objects.select_for_update().filter(key__in=keys).order_by("key"))
        return orphans.filter(key__in=keys).update(grant=None, claim_key=None, at=now + AFTERMATH)


def used(limit: Limit, now: datetime) -> int:
    """How many permits count against a limit now, open ones included: for a person who looks."""
    return _counting(limit, now).aggregate(used=Sum("permits"))["used"] or 0


def _need_not_reach_the_disk_yet() -> None:
    """Lets PostgreSQL commit this transaction without waiting for its disk.

    A power cut cannot make the limit wrong. No letter leaves before the note that it is SENDING is
    on the disk, and PostgreSQL's log is written in order: the grant before that note is there too.
    An answer that was lost leaves its permit open, which counts the longer.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit TO off")


def _distinct(limits: tuple[Limit, ...]) -> list[Limit]:
    """One limit for each key, the strictest, in the order of the keys: two providers that share
    scopes then cannot deadlock."""
    strictest: dict[str, Limit] = {}
    for limit in sorted(limits, key=lambda limit: (limit.key, limit.permits)):
        strictest.setdefault(limit.key, limit)
    return list(strictest.values())


def _lock(limits: tuple[Limit, ...]) -> dict[str, RateBucket]:
    """A locked row for each limit, caps included: the row is what makes the askers take turns."""
    keys = [limit.key for limit in _distinct(limits)]
    rows = RateBucket.objects.select_for_update().filter(key__in=keys).order_by("key")
    found = {row.key: row for row in rows}
    if len(found) < len(keys):
        RateBucket.objects.bulk_create(
            [RateBucket(key=key) for key in keys if key not in found], ignore_conflicts=True
        )
        found = {row.key: row for row in rows.all()}
    return found


def _usages(
    limits: tuple[Limit, ...], buckets: dict[str, RateBucket], wanted: int, now: datetime
) -> dict[Limit, Usage]:
    return {
        limit: _usage(limit, buckets[limit.key].theoretical_arrival, wanted, now)
        for limit in _distinct(limits)
    }


def _usage(limit: Limit, arrival: datetime | None, wanted: int, now: datetime) -> Usage:
    count = used(limit, now)
    if count + wanted <= limit.permits:
        # Far from the limit it does not matter when they were answered.
        return Usage(open=count, next_at=arrival)
    counting = _counting(limit, now)
    rows = list(counting.order_by("at").values_list("at", "permits"))
    return Usage(
        answered=[(at, permits) for at, permits in rows if at is not None],
        open=sum(permits for at, permits in rows if at is None),
        next_at=arrival,
    )


def _counting(limit: Limit, now: datetime) -> QuerySet[QuotaWindow]:
    return QuotaWindow.objects.filter(
        Q(at__isnull=True) | Q(at__gte=now - limit.window), key=limit.key
    )


def _open(limits: tuple[Limit, ...], permits: int, claim_key: int) -> int:
    grant = secrets.randbits(62) + 1
    QuotaWindow.objects.bulk_create(
        QuotaWindow(key=limit.key, permits=permits, grant=grant, claim_key=claim_key)
        for limit in _distinct(limits)
    )
    return grant


def _log(limit: Limit, at: datetime, permits: int) -> None:
    """Adds to a step of the log, under the limit's lock; a new step sweeps those that are over."""
    log = QuotaWindow.objects.filter(key=limit.key)
    if log.filter(at=at, grant=None).update(permits=F("permits") + permits):
        return
    QuotaWindow.objects.create(key=limit.key, at=at, permits=permits)
    log.filter(at__lt=at - 2 * limit.window).delete()


# ---------------------------------------------------------------------------------- pauses


def state_of(alias: str) -> ProviderState:
    """The provider's row, made on first sight."""
    known = ProviderState.objects.raw(statements.STATE_OF_PROVIDER, [alias])
    return next(iter(known), None) or ProviderState.objects.get_or_create(alias=alias)[0]


def closed_until(state: ProviderState, now: datetime) -> datetime | None:
    """When a closed provider opens; datetime.max in UTC while only a person can open it; None
    when it is open."""
    if state.stopped:
        return datetime.max.replace(tzinfo=now.tzinfo)
    if state.paused_until and state.paused_until > now:
        return state.paused_until
    return None


def pause(alias: str, trouble: Unavailable, now: datetime) -> None:
    """Closes a provider for its own wish, or for 30 s doubling to 15 minutes, or until a person
    opens it; a longer pause that already holds is kept. A day's quota that is spent closes all
    providers that share it, until there is room."""
    if trouble.retry_after == timedelta(0):
        return  # nothing was asked of the provider: the letter came too late for its permit
    quota = day_quota.spent(alias, trouble, now)
    if quota is not None:
        aliases, wait = quota
        for one in aliases:
            _close(one, replace(trouble, retry_after=wait), now)
        return
    _close(alias, trouble, now)


def _close(alias: str, trouble: Unavailable, now: datetime) -> None:
    state = state_of(alias)
    # What is met during a pause belongs to the burst that began it, and is counted already.
    is_paused = state.paused_until is not None and state.paused_until > now
    before = min(state.failures - is_paused, 10) if state.failures else 0
    wait = trouble.retry_after or min(FIRST_PAUSE * 2**before, LONGEST_PAUSE)
    because = {"because": str(trouble.reply), "rule": trouble.rule, "paused_at": now}
    row = ProviderState.objects.filter(alias=alias, stopped=False)
    if trouble.needs_a_person:
        row.update(stopped=True, paused_until=None, **because)
        return
    # One burst of failures is one failure: several workers meet the same trouble at once.
    row.filter(Q(paused_until__isnull=True) | Q(paused_until__lte=now)).update(
        failures=F("failures") + 1
    )
    row.filter(Q(paused_until__isnull=True) | Q(paused_until__lt=now + wait)).update(
        paused_until=now + wait, **because
    )


def works_again(state: ProviderState) -> None:
    """A letter was accepted: the next trouble begins with a short pause again."""
    if state.failures:
        ProviderState.objects.filter(pk=state.pk).update(failures=0)


def resume(alias: str, now: datetime) -> bool:
    """Opens a paused or stopped provider, as a person asked; False when it was open, or when its
    mailbox must not be touched: that is over earlier for nobody (delivery/mailboxes.py)."""
    return bool(
        ProviderState.objects.filter(alias=alias)
        .filter(Q(stopped=True) | Q(paused_until__gt=now))
        .exclude(stopped=False, rule=TOTAL_SILENCE_RULE)
        .update(stopped=False, paused_until=None, because="", rule="", failures=0)
    )
