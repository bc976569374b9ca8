"""How far a campaign has come: its counts as a bar, a line and a speed.

Pure: counts and times in, values out. Counts are those of CampaignTotals, by delivery state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext_lazy as _

# State, word, what it means to a person: in the order of the bar, the good news first. The words
# are those of the delivery list, so that a count and the filter behind it are called the same.
STATES: tuple[tuple[str, Any, Any], ...] = (
    ("sent", _("Sent"), _("The provider's server took responsibility for the letter.")),
    ("bounced", _("Bounced"), _("Taken at first, then returned by the reader's side.")),
    (
        "unconfirmed",
        _("Unconfirmed"),
        _(
            "The connection broke after the letter had been handed over. It may or may not have "
            "arrived; sending it again may give the reader two copies."
        ),
    ),
    ("rejected", _("Rejected"), _("The reader's server refused it for good.")),
    ("expired", _("Expired"), _("Refused for the time being until we gave up.")),
    ("suppressed", _("Suppressed"), _("The address must not be written to; nothing left.")),
    ("cancelled", _("Cancelled"), _("The campaign was cancelled before its turn came.")),
    ("sending", _("Sending"), _("On the wire right now.")),
    ("claimed", _("Claimed"), _("In the hands of a worker, certainly not sent yet.")),
    ("deferred", _("Deferred"), _("Refused for the time being; it is tried again.")),
    ("queued", _("Queued"), _("Waits for its turn.")),
)
OPEN_STATES = ("sending", "claimed", "deferred", "queued")
FAILED_STATES = ("rejected", "expired")
# Shown even when nothing is in them; the others appear when something is.
ALWAYS_SHOWN = frozenset({"sent", "bounced", "deferred", "queued"})
LONGEST_FORESEEN = timedelta(days=365).total_seconds()


@dataclass(frozen=True, slots=True)
class Segment:
    """One state's part of the bar."""

    state: str
    label: Any
    meaning: Any
    count: int
    percent: float  # of all letters, 0 to 100

    @property
    def width(self) -> str:
        """For a style attribute: never localised, "12,5%" is no CSS."""
        return f"{self.percent:.3f}%"

    @property
    def is_shown(self) -> bool:
        return bool(self.count) or self.state in ALWAYS_SHOWN


@dataclass(frozen=True, slots=True)
class Progress:
    """The counts of one campaign at one moment."""

    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        return max(0, self.counts["eligible"])

    @property
    def left(self) -> int:
        """Letters whose fate is still open."""
        return max(0, sum(self.counts[state] for state in OPEN_STATES))

    @property
    def done(self) -> int:
        return max(0, self.total - self.left)

    @property
    def percent(self) -> int:
        """Rounded down: 100 means all of them."""
        return self.done * 100 // self.total if self.total else 0

    @property
    def segments(self) -> list[Segment]:
        """Every state in the order of the bar, empty ones too."""
        whole = self.total or 1
        return [
            Segment(state, label, meaning, count, min(100.0, count * 100 / whole))
            for state, label, meaning in STATES
            for count in [max(0, self.counts[state])]
        ]

    @property
    def headline(self) -> str:
        """The campaign in one line. Doubts are never hidden among the sent or the failed."""
        failed = sum(self.counts[state] for state in FAILED_STATES)
        parts = [_("%(count)s sent") % {"count": f"{self.counts['sent']:,}"}]
        if self.counts["bounced"]:
            parts.append(_("%(count)s bounced") % {"count": f"{self.counts['bounced']:,}"})
        if failed:
            parts.append(_("%(count)s failed") % {"count": f"{failed:,}"})
        if self.counts["unconfirmed"]:
            parts.append(_("%(count)s in doubt") % {"count": f"{self.counts['unconfirmed']:,}"})
        return " · ".join(str(part) for part in parts)

    def average_per_second(
        self, started_at: datetime | None, now: datetime, finished_at: datetime | None = None
    ) -> float:
        """Letters settled per second since the start, pauses included; 0.0 before it."""
        if started_at is None:
            return 0.0
        seconds = ((finished_at or now) - started_at).total_seconds()
        return self.done / seconds if seconds > 0 else 0.0

    def expected_finish(self, now: datetime, per_second: float) -> datetime | None:
        """When the last letter is settled at this speed; None when none is left, none moves, or it
        lies further ahead than anybody plans."""
        if not self.left or not per_second > 0:
            return None
        seconds = self.left / per_second
        return now + timedelta(seconds=seconds) if seconds < LONGEST_FORESEEN else None
