"""What an outcome does to a delivery, and when a deferred one is due again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from delivery.outcomes import (
    Accepted,
    Deferred,
    Outcome,
    Rejected,
    Reply,
    Unavailable,
    Unconfirmed,
)
from delivery.states import DeliveryStatus


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``waits``: after the first attempt, the second ...; the last one repeats. A letter is given
    up after ``max_attempts`` attempts or ``max_age`` in the queue."""

    waits: Sequence[timedelta]
    max_attempts: int
    max_age: timedelta


class Settlement(NamedTuple):
    """What is written for one delivery. ``used_an_attempt``: it was the reader's side."""

    status: DeliveryStatus
    reply: Reply
    due_at: datetime | None = None
    used_an_attempt: bool = True
    suppress: bool = False
    rule: str = ""


def next_attempt(
    attempts: int, now: datetime, policy: RetryPolicy, dice: Random
) -> datetime | None:
    """When to try a deferred delivery again; None when we give up.

    RFC 5321 section 4.5.4.1 suggests days before giving up, but last week's newsletter is worth
    less than no newsletter. Adds up to a fifth of random delay, so that a deferred campaign does
    not come back as one wave. ``attempts`` counts finished attempts, from 1.
    """
    if attempts >= policy.max_attempts:
        return None
    wait = policy.waits[min(attempts, len(policy.waits)) - 1]
    return now + wait * (1 + 0.2 * dice.random())


def settle(
    outcome: Outcome,
    *,
    attempts: int,
    queued_at: datetime,
    now: datetime,
    policy: RetryPolicy,
    dice: Random,
) -> Settlement:
    """The settlement of one delivery that had ``attempts`` finished attempts before this one."""
    match outcome:
        case Accepted(reply=reply):
            return Settlement(DeliveryStatus.SENT, reply)
        case Rejected(reply=reply, address_is_bad=bad, rule=rule):
            return Settlement(DeliveryStatus.REJECTED, reply, suppress=bad, rule=rule)
        case Unconfirmed(reply=reply, rule=rule):
            return Settlement(DeliveryStatus.UNCONFIRMED, reply, rule=rule)
        case Unavailable(reply=reply, rule=rule):
            # The provider's trouble: no attempt is used; the provider's pause is the wait.
            return Settlement(
                DeliveryStatus.QUEUED, reply, due_at=now, used_an_attempt=False, rule=rule
            )
        case Deferred(reply=reply, retry_after=wish, rule=rule):
            due_at = next_attempt(attempts + 1, now, policy, dice)
            if due_at is not None and wish is not None:
                due_at = max(due_at, now + min(wish, policy.waits[-1]))
            if due_at is None or due_at - queued_at > policy.max_age:
                return Settlement(DeliveryStatus.EXPIRED, reply, rule=rule)
            return Settlement(DeliveryStatus.DEFERRED, reply, due_at=due_at, rule=rule)
