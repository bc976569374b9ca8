"""Bounces counted for a person: by class, by the reader's domain, by campaign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count
from django.utils.translation import gettext as _

from bounces.models import Bounce, BounceClassChoices, Kind

PERIOD = timedelta(days=30)
MOST_BARS = 10
COLOURS = {
    BounceClassChoices.HARD.value: "var(--pp-state-rejected)",
    BounceClassChoices.SOFT.value: "var(--pp-state-deferred)",
    BounceClassChoices.BLOCKED.value: "var(--pp-state-sending)",
    BounceClassChoices.UNDETERMINED.value: "var(--pp-state-suppressed)",
    Kind.COMPLAINT.value: "var(--pp-state-unconfirmed)",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar, in hundredths of the longest bar."""

    name: str
    count: int
    colour: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Bar:
    """``label`` is hostile text where it is a domain."""

    label: str
    total: int
    segments: tuple[Segment, ...]


def by_class(now: datetime) -> list[Bar]:
    names = _names()
    counts = {name: {key: 0} for key, name in names.items()}
    for row in _counted(now):
        key = _key(row)
        counts[names[key]][key] += row["n"]
    return _bars((name, count) for name, count in counts.items())


def by_domain(now: datetime) -> list[Bar]:
    return _top((row["domain"], row["domain"] or "?", row) for row in _counted(now, "domain"))


def by_campaign(now: datetime) -> list[Bar]:
    """Without a campaign: bounces that no token names. Two campaigns may have one name."""
    rows = _counted(now, "campaign", "campaign__name")
    return _top(
        (row["campaign"], row["campaign__name"] or _("no letter of ours"), row) for row in rows
    )


def _counted(now: datetime, *fields: str) -> Iterable[dict[str, Any]]:
    return (
        Bounce.objects.filter(at__gte=now - PERIOD, replaced=False)
        .order_by()
        .values(*fields, "kind", "bounce_class")
        .annotate(n=Count("*"))
    )


def _top(rows: Iterable[tuple[object, str, dict[str, Any]]]) -> list[Bar]:
    """The longest bars of rows with what they are grouped by, and how that is called."""
    groups: dict[object, tuple[str, dict[str, int]]] = {}
    for group, label, row in rows:
        _label, counts = groups.setdefault(group, (label, {}))
        counts[_key(row)] = counts.get(_key(row), 0) + row["n"]
    largest = sorted(groups.values(), key=lambda bar: (-sum(bar[1].values()), bar[0]))
    return _bars(largest[:MOST_BARS])


def _bars(groups: Iterable[tuple[str, dict[str, int]]]) -> list[Bar]:
    listed = list(groups)
    longest = max((sum(counts.values()) for _label, counts in listed), default=0) or 1
    names = _names()
    bars = []
    for label, counts in listed:
        x, segments = 0.0, []
        for key in (key for key in names if counts.get(key)):
            width = round(counts[key] * 100 / longest, 2)
            segments.append(Segment(names[key], counts[key], COLOURS[key], round(x, 2), width))
            x += width
        bars.append(Bar(label, sum(counts.values()), tuple(segments)))
    return bars


def _key(row: dict[str, Any]) -> str:
    return str(row["bounce_class"] or Kind.COMPLAINT.value)


def _names() -> dict[str, str]:
    classes = {choice.value: str(choice.label) for choice in BounceClassChoices}
    return classes | {Kind.COMPLAINT.value: str(Kind.COMPLAINT.label)}
