"""When a bounce suppresses an address. Pure: what is known comes in, the reason goes out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bounces.classification import BounceClass, classify
from bounces.report import BounceReport, ComplaintReport, Report
from campaigns.states import SuppressionReason


def class_of(report: BounceReport) -> BounceClass:
    """The class that counts: the rule's, softened where the detector is not sure itself."""
    bounce_class = classify(report.status, report.diagnostic)
    if bounce_class is BounceClass.HARD and not report.hard:
        return BounceClass.SOFT
    return bounce_class


def reason_to_suppress(reports: Collection[Report]) -> SuppressionReason | None:
    """Why the reader of these reports about *one* letter is to be suppressed; None: not at all.

    A complaint suppresses. Bounces do when all of them are hard: a letter to an alias may report
    several mailboxes behind it, and one that lives is enough. SOFT and UNDETERMINED count over
    several campaigns (``bounces_too_often``); BLOCKED never suppresses, since it is not the
    reader's fault.
    """
    if any(isinstance(report, ComplaintReport) for report in reports):
        return SuppressionReason.COMPLAINT
    classes = {class_of(report) for report in reports if isinstance(report, BounceReport)}
    return SuppressionReason.HARD_BOUNCE if classes == {BounceClass.HARD} else None


@dataclass(frozen=True, slots=True)
class SoftBounceRule:
    """So many soft bounces among the last so many letters, over at least so long a time."""

    bounces: int = 3
    campaigns: int = 5
    period: timedelta = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class PastLetter:
    """One letter to a reader, when it left, and whether it came back without a clear reason."""

    at: datetime
    bounced_softly: bool


def bounces_too_often(letters: Sequence[PastLetter], rule: SoftBounceRule) -> bool:
    """Whether a reader's mailbox has failed for so long that nobody reads it.

    ``letters`` in any order. The period keeps a full mailbox over a holiday, with three letters
    in it, from ending a subscription.
    """
    latest = sorted(letters, key=lambda letter: letter.at, reverse=True)[: rule.campaigns]
    bounced = [letter.at for letter in latest if letter.bounced_softly]
    return len(bounced) >= rule.bounces and bounced[0] - bounced[-1] >= rule.period
