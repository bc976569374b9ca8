"""When the next letters may leave: the arithmetic of limits, without a database or a clock.

A server counts a letter at a moment that nobody but the server knows. What we know is an interval:
the letter cannot arrive before its permit's ``not_before``, and has arrived when its answer is
here. So a permit is *open*, and counts, from the grant until the answer, however long that takes,
and counts on from the answer for one window; and the next permit is compared with what counts at
its own earliest moment. Whatever happens in between (composing, a slow connect, jitter, a clock
that differs from ours), no window of the limit's length can hold more than its permits.

The price is the time between grant and answer: at most ``permits`` in each ``window + answer``.
Within 95 % of "50/10 seconds" the server may take half a second for a letter, of "30/minute" three;
of "14/second" only fifty milliseconds. No sender that promises exactness can be better: what
it has not seen, it cannot know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from delivery.rates import Limit, LimitKind

# How far ahead a worker may reserve permits: it composes while it waits for their moments.
HORIZON = timedelta(milliseconds=500)
# When to ask again while every permit is open: somebody's answer is awaited.
ANSWERS_PENDING = timedelta(milliseconds=250)
# Counted answers are kept in so many steps a window. A step counts in full until its end has left
# the window, so a log has at most one row more than this, and loses a third of a percent.
STEPS = 288

_TICK = timedelta(microseconds=1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Usage:
    """What counts against one limit.

    ``answered``: (the latest moment of arrival, how many), ascending; ``open``: granted and not
    yet answered. ``next_at``: a smooth limit's next evenly spaced moment, None before the first.
    """

    answered: Sequence[tuple[datetime, int]] = ()
    open: int = 0
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """``not_before``: one moment for each permit, ascending. ``retry_at``: when to ask again if
    there are fewer than wanted; None when there are not."""

    not_before: tuple[datetime, ...]
    retry_at: datetime | None = None


def plan(limits: Mapping[Limit, Usage], wanted: int, now: datetime) -> Plan:
    """Up to ``wanted`` permits that all limits allow within HORIZON, from all or from none."""
    moments: list[datetime] = []
    for _ in range(min([wanted, *(largest_grant(limit) for limit in limits)])):
        earliest = [_earliest(limit, usage, now, moments) for limit, usage in limits.items()]
        if None in earliest:
            return Plan(tuple(moments), now + ANSWERS_PENDING)
        moment = max([now, *(one for one in earliest if one is not None), *moments[-1:]])
        if moment > now + HORIZON:
            return Plan(tuple(moments), moment - HORIZON)
        moments.append(moment)
    return Plan(tuple(moments), now if len(moments) < wanted else None)


def _earliest(
    limit: Limit, usage: Usage, now: datetime, granted: Sequence[datetime]
) -> datetime | None:
    """When one more letter may leave beside those already granted; None while that depends on
    answers that are still awaited."""
    moment = now
    if limit.kind is LimitKind.SMOOTH:
        moment = max(now, _theoretical(usage.next_at, now) + len(granted) * limit.interval)
    # So many of the answered ones must have left the window first.
    surplus = sum(n for _, n in usage.answered) + usage.open + len(granted) + 1 - limit.permits
    for answered_at, permits in usage.answered:
        if surplus <= 0:
            return moment
        moment = max(moment, answered_at + limit.window + _TICK)
        surplus -= permits
    return moment if surplus <= 0 else None


def _theoretical(next_at: datetime | None, now: datetime) -> datetime:
    """When the next permit of a smooth limit was due. Askers who come late catch up with HORIZON at
    most, or a busy machine would never use a limit; what a pause left unsent is not caught up."""
    return now if next_at is None else max(next_at, now - HORIZON)


def next_at(limit: Limit, usage: Usage, moments: Sequence[datetime], now: datetime) -> datetime:
    """A smooth limit's next evenly spaced moment after these were granted."""
    evenly = _theoretical(usage.next_at, now) + len(moments) * limit.interval
    return max(evenly, moments[-1] + limit.interval - HORIZON)


def largest_grant(limit: Limit) -> int:
    """A tenth of a limit, or what it allows within HORIZON: so much is lost for a while when the
    asker dies."""
    return max(1, limit.permits // 10, HORIZON // limit.interval)


def step_end(limit: Limit, moment: datetime) -> datetime:
    """The end of the step of this limit's log in which a moment lies: never earlier than it."""
    step = max(limit.window // STEPS, _TICK)
    return _EPOCH - (_EPOCH - moment) // step * step
