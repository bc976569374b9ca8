"""Rates as a settings file writes them: "30/minute", "50/5 minutes", "14/second", "10000/day"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

_RATE = re.compile(r"\s*(\d+)\s*/\s*(?:(\d+)\s*)?(second|minute|hour|day)s?\s*", re.IGNORECASE)
_UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}


class LimitKind(StrEnum):
    SMOOTH = "rate"  # evenly spaced: GCRA
    CAP = "cap"  # never more in any window of that length: sliding log


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``permits`` in any ``window``. Providers that name the same ``scope`` share it.

    A letter has one recipient, so a limit of messages and one of recipients are the same.
    """

    kind: LimitKind
    permits: int
    window: timedelta
    scope: str

    @property
    def key(self) -> str:
        """What shares a log. Not the number of permits: whoever lowers a limit in the middle of a
        day has still sent what was sent."""
        return f"{self.scope}|{self.kind}|{self.window.total_seconds():g}s"

    @property
    def interval(self) -> timedelta:
        """The time between two evenly spaced permits."""
        return self.window / self.permits

    def __str__(self) -> str:
        return f"{self.permits} per {self.window}"


@dataclass(frozen=True, slots=True)
class Connections:
    """At most so many connections at a time, over all providers that name the same ``scope``."""

    most: int
    scope: str

    def __str__(self) -> str:
        return str(self.most)


def parse_rate(text: str) -> tuple[int, timedelta]:
    """Permits and window of "50/5 minutes". ValueError with an example for anything else."""
    match = _RATE.fullmatch(text)
    if not match or int(match[1]) == 0 or match[2] == "0":
        raise ValueError(f'"{text}" is not a rate such as "30/minute" or "50/5 minutes"')
    return int(match[1]), int(match[2] or 1) * _UNITS[match[3].lower()]


def in_words(limit: Limit) -> str:
    """ "10,000 a day", "28 a minute", "50 in 5 minutes": for a person, in English as in the
    settings."""
    for unit, length in reversed(_UNITS.items()):
        number, rest = divmod(limit.window, length)
        if number >= 1 and not rest:
            return f"{limit.permits:,} " + (f"a {unit}" if number == 1 else f"in {number} {unit}s")
    return f"{limit.permits:,} in {limit.window.total_seconds():g} seconds"
