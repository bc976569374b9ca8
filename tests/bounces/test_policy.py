"""When a reader is suppressed: only when all that is said about one letter is hard."""

from __future__ import annotations

from bounces.classification import BounceClass
from bounces.policy import class_of, reason_to_suppress
from bounces.report import BounceReport, ComplaintReport
from campaigns.states import SuppressionReason


def bounce(status: str = "5.1.1", *, hard: bool = True, diagnostic: str = "") -> BounceReport:
    return BounceReport("ada@example.net", "failed", status, hard, diagnostic)


def test_a_hard_bounce_suppresses() -> None:
    assert reason_to_suppress([bounce()]) == SuppressionReason.HARD_BOUNCE


def test_soft_blocked_and_unknown_failures_do_not() -> None:
    for status in ("5.2.2", "4.4.7", "5.7.1", "5.0.0", ""):
        assert reason_to_suppress([bounce(status)]) is None


def test_one_mailbox_that_lives_behind_an_alias_is_enough() -> None:
    assert reason_to_suppress([bounce(), bounce("5.2.2")]) is None
    assert reason_to_suppress([bounce(), bounce("5.1.6")]) == SuppressionReason.HARD_BOUNCE


def test_a_complaint_suppresses() -> None:
    assert reason_to_suppress([ComplaintReport("", "abuse")]) == SuppressionReason.COMPLAINT


def test_nothing_said_is_no_reason() -> None:
    assert reason_to_suppress([]) is None


def test_a_detector_may_be_more_careful_than_the_rule_but_never_less() -> None:
    assert class_of(bounce("5.1.1", hard=False)) is BounceClass.SOFT
    assert class_of(bounce("5.7.1", hard=True)) is BounceClass.BLOCKED
