"""When a bounce suppresses an address. Pure: what is known comes in, the reason goes out."""

from __future__ import annotations

from collections.abc import Collection

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
    several mailboxes behind it, and one that lives is enough. SOFT and UNDETERMINED count towards
    a threshold over several campaigns, which is decided here too once their history comes in;
    BLOCKED never suppresses, since it is not the reader's fault.
    """
    if any(isinstance(report, ComplaintReport) for report in reports):
        return SuppressionReason.COMPLAINT
    classes = {class_of(report) for report in reports if isinstance(report, BounceReport)}
    return SuppressionReason.HARD_BOUNCE if classes == {BounceClass.HARD} else None
