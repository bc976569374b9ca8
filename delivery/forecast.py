"""When a campaign will have been handed over, and which limit decides that. Before it starts.

Arithmetic over the limits of its providers and what counts against them now; how quick servers and
networks are is not in it, so it is the earliest end that the limits permit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Min

from delivery.conf import DeliverySettings
from delivery.limits import used
from delivery.models import QuotaWindow
from delivery.rates import Limit, LimitKind


@dataclass(frozen=True, slots=True)
class Gauge:
    """What counts against a limit now. ``free_at``: when some of it leaves the window again; None
    where nothing is spent, or answers are still awaited."""

    limit: Limit
    used: int
    free_at: datetime | None = None

    @property
    def room(self) -> int:
        return max(0, self.limit.permits - self.used)


@dataclass(frozen=True, slots=True)
class Forecast:
    """``limit``: the one that decides; None where nothing limits the provider."""

    ends_at: datetime
    limit: Limit | None = None


def gauge(limit: Limit, now: datetime) -> Gauge:
    """Reads what counts against a limit."""
    counted = QuotaWindow.objects.filter(key=limit.key, at__gt=now - limit.window)
    first = counted.aggregate(at=Min("at"))["at"]
    return Gauge(limit, used(limit, now), first + limit.window if first else None)


def forecast_of(
    settings: DeliverySettings, members: Sequence[str], letters: int, now: datetime
) -> Forecast:
    """For so many letters through these providers, which share them evenly."""
    limits = [set(settings.providers[alias].limits) for alias in members]
    sharing = Counter(limit for of_one in limits for limit in of_one)
    gauges = {limit: gauge(limit, now) for limit in sharing}
    shares = {limit: -(-letters * count // len(members)) for limit, count in sharing.items()}
    return forecast(gauges, shares, now)


def forecast(
    gauges: Mapping[Limit, Gauge], letters: Mapping[Limit, int], now: datetime
) -> Forecast:
    """The latest of the ends under each limit alone. ``letters``: how many are counted by each.

    A day's cap begins where another limit has spread the letters of the day before; that is at
    most one window's worth earlier than what is said here, never later.
    """
    ends = {limit: _end(gauges[limit], letters[limit], now) for limit in gauges}
    if not ends:
        return Forecast(now)
    limit = max(ends, key=lambda limit: ends[limit])
    pace = max(
        (one.interval * _last_part(limit, gauges[limit], letters[limit])
         for one in ends if one.kind is LimitKind.SMOOTH),
        default=None,
    )  # fmt: skip
    ends_at = ends[limit]
    if limit.kind is LimitKind.CAP and ends_at > now and pace is not None:
        # What a cap lets go on its last day leaves no quicker than evenly.
        ends_at += pace
    return Forecast(ends_at, limit)


def _end(gauge: Gauge, letters: int, now: datetime) -> datetime:
    limit = gauge.limit
    if limit.kind is LimitKind.SMOOTH:
        return now + limit.window * letters / limit.permits
    left = letters - gauge.room
    if left <= 0:
        return now
    free_at = gauge.free_at or now + limit.window
    return free_at + limit.window * ((left - 1) // limit.permits)


def _last_part(limit: Limit, gauge: Gauge, letters: int) -> int:
    """How many letters a cap lets go after its last wait."""
    left = letters - gauge.room
    return 0 if left <= 0 else (left - 1) % limit.permits + 1
