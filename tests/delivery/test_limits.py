"""Limits hold in every trailing window, and pauses keep a provider still."""

from datetime import timedelta
from itertools import pairwise
from random import Random

import pytest

from delivery import limits
from delivery.models import ProviderState, QuotaWindow
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.rates import Limit, LimitKind

pytestmark = pytest.mark.django_db

REPLY = Reply(Phase.MAIL, 451, "4.7.500 Server busy")


def simulate(all_limits, now, length, wanted=5, seed=1):
    """The moments at which letters left when workers ask for ``length``, when told to or later."""
    dice, moment, left = Random(seed), now, []
    while moment < now + length:
        grant = limits.take(all_limits, wanted, moment)
        left += grant.not_before
        soon = moment + timedelta(milliseconds=1 + 20 * dice.random())
        moment = max(soon, grant.retry_at or soon)
    return sorted(left)


def most_in_any(window, moments):
    return max(
        sum(1 for other in moments[start:] if other < moment + window)
        for start, moment in enumerate(moments)
    )


def test_a_smooth_limit_is_never_exceeded_in_any_window(now):
    limit = Limit(LimitKind.SMOOTH, 30, timedelta(minutes=1), "provider:x")
    moments = simulate((limit,), now, timedelta(minutes=10))
    assert most_in_any(timedelta(minutes=1), moments) == 30
    gaps = [after - before for before, after in pairwise(moments)]
    assert min(gaps) >= timedelta(seconds=2)


def test_a_cap_is_never_exceeded_in_any_window_and_is_used(now):
    limit = Limit(LimitKind.CAP, 50, timedelta(minutes=5), "provider:x")
    moments = simulate((limit,), now, timedelta(minutes=20))
    assert most_in_any(timedelta(minutes=5), moments) == 50
    assert len(moments) >= 0.95 * 200


def test_all_limits_hold_at_once_and_none_is_spent_in_vain(now):
    smooth = Limit(LimitKind.SMOOTH, 600, timedelta(minutes=1), "provider:x")
    cap = Limit(LimitKind.CAP, 7, timedelta(hours=1), "tenant:contoso")
    assert len(limits.take((smooth, cap), 5, now).not_before) == 5
    second = limits.take((smooth, cap), 5, now + timedelta(seconds=10))
    assert len(second.not_before) == 2
    third = limits.take((smooth, cap), 5, now + timedelta(seconds=20))
    assert third.not_before == ()
    # The first grant's letters leave at up to now + 0.4 s, and count for an hour from then.
    assert timedelta(hours=1) <= third.retry_at - now <= timedelta(hours=1, seconds=1)


def test_two_providers_that_name_a_scope_share_its_limit(now):
    cap = Limit(LimitKind.CAP, 10, timedelta(days=1), "tenant:contoso")
    assert len(limits.take((cap,), 8, now).not_before) == 8
    assert len(limits.take((cap,), 8, now).not_before) == 2


def test_the_log_of_a_cap_is_swept(now):
    cap = Limit(LimitKind.CAP, 5, timedelta(seconds=1), "x")
    for second in range(0, 100, 5):
        limits.take((cap,), 1, now + timedelta(seconds=second))
    assert QuotaWindow.objects.count() <= 2


def test_without_limits_everything_is_granted_at_once(now):
    assert limits.take((), 3, now) == limits.Grant((now, now, now))


def test_trouble_pauses_for_thirty_seconds_and_then_doubles(now):
    waits = []
    for _ in range(8):
        limits.pause("x", Unavailable(REPLY, rule="server too busy"), now)
        until = limits.closed_until(limits.state_of("x"), now)
        waits.append((until - now).total_seconds())
        now = until + timedelta(seconds=1)
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


def test_one_burst_of_trouble_counts_once(now):
    for _ in range(5):
        limits.pause("x", Unavailable(REPLY), now)
    assert limits.state_of("x").failures == 1


def test_a_pause_tells_why_verbatim_and_by_which_rule(now):
    limits.pause("x", Unavailable(REPLY, rule="server too busy"), now)
    state = limits.state_of("x")
    assert (state.because, state.rule) == ("451 4.7.500 Server busy", "server too busy")


def test_a_longer_pause_is_not_shortened(now):
    limits.pause("x", Unavailable(REPLY, retry_after=timedelta(hours=1)), now)
    limits.pause("x", Unavailable(REPLY, retry_after=timedelta(minutes=1)), now)
    assert limits.closed_until(limits.state_of("x"), now) == now + timedelta(hours=1)


def test_a_configuration_error_closes_until_a_person_opens(now):
    limits.pause("x", Unavailable(REPLY, needs_a_person=True), now)
    later = now + timedelta(days=400)
    assert limits.closed_until(limits.state_of("x"), later) > later
    assert limits.resume("x", later)
    assert limits.closed_until(limits.state_of("x"), later) is None
    assert not limits.resume("x", later)


def test_an_accepted_letter_ends_the_doubling(now):
    limits.pause("x", Unavailable(REPLY), now)
    limits.works_again("x")
    assert ProviderState.objects.get(alias="x").failures == 0
