"""Limits and pauses of providers, shared by all processes and hosts through the database.

``take`` asks all limits of a provider at once and takes from all or from none. A smooth limit is
GCRA with a burst of one: permits are exactly ``window / permits`` apart, so no window of that
length can hold more. A cap is a log of grants: what was granted within the trailing window
counts, however it is cut. Neither a fixed window nor a token bucket with a burst keeps that
promise (they let 50 to 59 through "30 per minute").
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Min, Q, Sum

from delivery.models import ProviderState, QuotaWindow, RateBucket
from delivery.outcomes import Unavailable
from delivery.rates import Limit, LimitKind

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=15)
# How far ahead a worker may reserve evenly spaced permits: what it has, it must send in time.
HORIZON = timedelta(milliseconds=500)


@dataclass(frozen=True, slots=True)
class Grant:
    """``not_before``: one moment for each permit, ascending; a letter may not leave earlier.
    ``retry_at``: when to ask again if fewer than wanted were granted; None after a full grant."""

    not_before: tuple[datetime, ...]
    retry_at: datetime | None = None


def take(limits: tuple[Limit, ...], wanted: int, now: datetime) -> Grant:
    """Up to ``wanted`` permits under all of these limits.

    A short transaction of its own; permits are spent when granted, whatever happens to the letter.
    """
    if not limits:
        return Grant((now,) * wanted)
    with transaction.atomic():
        buckets = _lock_buckets(limits, now)
        free, retry_at = wanted, None
        for limit in limits:
            allowed, when = (
                _free_smooth(limit, buckets[limit.key], wanted, now)
                if limit.kind is LimitKind.SMOOTH
                else _free_cap(limit, wanted, now)
            )
            if allowed < free:
                free, retry_at = allowed, when
        if free <= 0:
            return Grant((), retry_at)
        return Grant(_spend(limits, buckets, free, now), retry_at)


def _lock_buckets(limits: tuple[Limit, ...], now: datetime) -> dict[str, RateBucket]:
    """A locked row for each limit, caps included: the row is what serialises the askers.

    Always in the order of the keys, so that two providers with shared scopes cannot deadlock.
    """
    keys = sorted({limit.key for limit in limits})
    found = {
        b.key: b
        for b in RateBucket.objects.select_for_update().filter(key__in=keys).order_by("key")
    }
    if len(found) < len(keys):
        RateBucket.objects.bulk_create(
            [RateBucket(key=key, theoretical_arrival=now) for key in keys if key not in found],
            ignore_conflicts=True,
        )
        found = {
            b.key: b
            for b in RateBucket.objects.select_for_update().filter(key__in=keys).order_by("key")
        }
    return found


def _free_smooth(
    limit: Limit, bucket: RateBucket, wanted: int, now: datetime
) -> tuple[int, datetime]:
    first = max(bucket.theoretical_arrival, now)
    if first > now + HORIZON:
        return 0, first - HORIZON
    allowed = 1 + (now + HORIZON - first) // limit.interval
    return min(wanted, allowed), first + allowed * limit.interval - HORIZON


def _free_cap(limit: Limit, wanted: int, now: datetime) -> tuple[int, datetime]:
    log = QuotaWindow.objects.filter(key=limit.key, at__gt=now - limit.window)
    used = log.aggregate(used=Sum("permits"), oldest=Min("at"))
    allowed = max(0, limit.permits - (used["used"] or 0))
    return min(wanted, allowed), (used["oldest"] or now) + limit.window


def _spend(
    limits: tuple[Limit, ...], buckets: dict[str, RateBucket], permits: int, now: datetime
) -> tuple[datetime, ...]:
    not_before = [now] * permits
    for limit in limits:
        bucket = buckets[limit.key]
        if limit.kind is LimitKind.SMOOTH:
            first = max(bucket.theoretical_arrival, now)
            times = [first + n * limit.interval for n in range(permits)]
            not_before = [max(pair) for pair in zip(not_before, times, strict=True)]
            bucket.theoretical_arrival = first + permits * limit.interval
            bucket.save(update_fields=["theoretical_arrival"])
    # A cap counts a permit at the moment at which its letter may leave, not when it was asked for.
    caps = [limit for limit in limits if limit.kind is LimitKind.CAP]
    QuotaWindow.objects.bulk_create(
        QuotaWindow(key=limit.key, at=max(not_before), permits=permits) for limit in caps
    )
    for limit in caps:
        QuotaWindow.objects.filter(key=limit.key, at__lt=now - 2 * limit.window).delete()
    return tuple(not_before)


# ---------------------------------------------------------------------------------- pauses


def state_of(alias: str) -> ProviderState:
    """The provider's row, made on first sight."""
    return ProviderState.objects.get_or_create(alias=alias)[0]


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
    opens it; a longer pause that already holds is kept."""
    state = state_of(alias)
    wait = trouble.retry_after or min(FIRST_PAUSE * 2 ** min(state.failures, 10), LONGEST_PAUSE)
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


def works_again(alias: str) -> None:
    """A letter was accepted: the next trouble begins with a short pause again."""
    ProviderState.objects.filter(alias=alias, failures__gt=0).update(failures=0)


def resume(alias: str, now: datetime) -> bool:
    """Opens a paused or stopped provider, as a person asked; False when it was open."""
    return bool(
        ProviderState.objects.filter(alias=alias)
        .filter(Q(stopped=True) | Q(paused_until__gt=now))
        .update(stopped=False, paused_until=None, because="", rule="", failures=0)
    )
