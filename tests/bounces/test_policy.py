"""When a reader is suppressed: only when all that is said about one letter is hard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bounces.classification import BounceClass
from bounces.policy import (
    PastLetter,
    SoftBounceRule,
    bounces_too_often,
    class_of,
    reason_to_suppress,
)
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


DAY = datetime(2026, 11, 21, tzinfo=UTC)


def letters(*pattern: tuple[int, bool]) -> list[PastLetter]:
    """(days ago, whether it bounced softly)"""
    return [PastLetter(DAY - timedelta(days=ago), soft) for ago, soft in pattern]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ([(0, True), (7, True), (14, True)], True),
        ([(0, True), (7, True), (13, True)], False),  # within a holiday
        ([(0, True), (7, True)], False),
        ([(0, True), (7, False), (14, True), (21, False), (28, True)], True),
        ([(0, True), (7, False), (14, True), (21, False), (28, False), (35, True)], False),
        ([(0, False), (7, True), (14, True), (21, True)], True),
        ([], False),
    ],
)
def test_soft_bounces_count_by_campaigns_and_by_time(pattern, expected: bool) -> None:
    history = letters(*pattern)
    assert bounces_too_often(history, SoftBounceRule()) is expected
    assert bounces_too_often(history[::-1], SoftBounceRule()) is expected


def test_the_rule_is_a_setting() -> None:
    strict = SoftBounceRule(bounces=1, campaigns=1, period=timedelta(0))
    assert bounces_too_often(letters((0, True)), strict)
    assert not bounces_too_often(letters((0, False), (1, True)), strict)
