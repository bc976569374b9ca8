"""What an outcome does to a delivery. No database, no clock."""

from datetime import datetime, timedelta
from random import Random

import pytest

from delivery.outcomes import (
    Accepted,
    Deferred,
    Phase,
    Rejected,
    Reply,
    Unavailable,
    Unconfirmed,
)
from delivery.settlement import RetryPolicy, next_attempt, settle
from delivery.states import FINAL, IN_HAND, MOVES, WAITING, DeliveryStatus, permitted

POLICY = RetryPolicy(
    waits=[timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=4)],
    max_attempts=10,
    max_age=timedelta(hours=24),
)
REPLY = Reply(Phase.RCPT, 450, "4.2.0 Greylisted")


def settled(outcome, now, attempts=0, age=timedelta(0)):
    return settle(
        outcome, attempts=attempts, queued_at=now - age, now=now, policy=POLICY, dice=Random(1)
    )


def test_an_accepted_letter_is_sent(now):
    assert settled(Accepted(REPLY), now).status is DeliveryStatus.SENT


def test_a_deferred_letter_is_due_again_after_the_schedules_wait(now):
    settlement = settled(Deferred(REPLY), now)
    assert settlement.status is DeliveryStatus.DEFERRED
    assert timedelta(minutes=5) <= settlement.due_at - now <= timedelta(minutes=6)
    assert settlement.used_an_attempt


def test_the_far_sides_longer_wish_is_kept(now):
    settlement = settled(Deferred(REPLY, retry_after=timedelta(minutes=60)), now)
    assert settlement.due_at == now + timedelta(minutes=60)


def test_a_silly_wish_is_cut_to_the_longest_wait(now):
    settlement = settled(Deferred(REPLY, retry_after=timedelta(days=400)), now)
    assert settlement.due_at == now + timedelta(hours=4)


def test_a_letter_expires_after_its_last_attempt(now):
    assert settled(Deferred(REPLY), now, attempts=8).status is DeliveryStatus.DEFERRED
    assert settled(Deferred(REPLY), now, attempts=9).status is DeliveryStatus.EXPIRED


def test_a_letter_expires_when_the_next_attempt_would_come_too_late(now):
    assert settled(Deferred(REPLY), now, age=timedelta(hours=25)).status is DeliveryStatus.EXPIRED


def test_the_providers_trouble_uses_no_attempt_and_returns_the_letter(now):
    settlement = settled(Unavailable(REPLY), now, attempts=9)
    assert settlement.status is DeliveryStatus.QUEUED
    assert not settlement.used_an_attempt


def test_only_a_bad_address_is_suppressed(now):
    assert settled(Rejected(REPLY, address_is_bad=True), now).suppress
    assert not settled(Rejected(REPLY), now).suppress


def test_a_doubtful_letter_is_unconfirmed(now):
    assert settled(Unconfirmed(REPLY), now).status is DeliveryStatus.UNCONFIRMED


@pytest.mark.parametrize("attempts", range(1, 10))
def test_retries_are_spread_by_at_most_a_fifth(attempts, now: datetime):
    wait = POLICY.waits[min(attempts, 3) - 1]
    for seed in range(50):
        due = next_attempt(attempts, now, POLICY, Random(seed))
        assert wait <= due - now <= wait * 1.2


@pytest.mark.parametrize(
    "outcome",
    [Accepted(REPLY), Deferred(REPLY), Rejected(REPLY), Unavailable(REPLY), Unconfirmed(REPLY)],
    ids=lambda outcome: type(outcome).__name__,
)
def test_every_settlement_is_a_permitted_move(outcome, now):
    assert permitted(DeliveryStatus.SENDING, settled(outcome, now).status)


def test_the_groups_cover_every_state_once():
    assert WAITING | IN_HAND | FINAL == set(DeliveryStatus) == set(MOVES)
    assert not (WAITING & IN_HAND or WAITING & FINAL or IN_HAND & FINAL)


def test_a_letter_that_may_have_left_never_returns_to_claimed():
    assert DeliveryStatus.CLAIMED not in MOVES[DeliveryStatus.SENDING]
    assert DeliveryStatus.CLAIMED not in MOVES[DeliveryStatus.UNCONFIRMED]
